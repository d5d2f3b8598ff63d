"""The activations that a U-Net keeps for backward, block by block, and the cost of recomputing them (no torch).

Counted from the operations of diffusers' blocks; `benchmarks/memory.py` compares it with what is really kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import attrs

TOKENS = 77
ELEMENTWISE = 40.0
"""FLOP that one byte of a norm or an activation counts as when it is recomputed: such operations are memory-bound."""
MIN_BYTES_PER_FLOP = 1.2e-4
"""Bytes that a recomputed FLOP has to save: the wide convolutions of the deep levels save next to nothing and take long."""
STEP_PER_FORWARD = 2.2
"""FLOP of a step relative to those of its forward pass: backward through a frozen layer is one product (counted: 2.15 to 2.22)."""


@attrs.frozen
class UNetShape:
    """The dimensions of a U-Net. `levels`: channels, transformer blocks per attention (0: none) and heads; `mid_blocks`: of the middle.

    `context_dim`: width of the text encoders' states. `upcast`: attention is computed in float32 where the rest is not.
    """

    levels: tuple[tuple[int, int, int], ...]
    mid_blocks: int
    context_dim: int
    upcast: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(width for width, _, _ in self.levels)


SD1 = UNetShape(((320, 1, 8), (640, 1, 8), (1280, 1, 8), (1280, 0, 8)), 1, 768)
"""Stable Diffusion 1.x."""


@attrs.frozen
class DtypeSizes:
    """Bytes of an element: `compute` in matrix products and convolutions, `norm` in norms (4 in CUDA's autocast)."""

    compute: int = 4
    norm: int = 4


@attrs.frozen
class KeepOption:
    """One way to treat a block: bytes kept until backward, bytes that backward recomputes for a moment, and the FLOP of that."""

    name: str
    kept_bytes: float
    recomputed_bytes: float = 0.0
    flop: float = 0.0


@attrs.frozen
class Block:
    """A block of the U-Net or text encoder by its module's name. The first option keeps all, each next one less. `flop` of its forward."""

    name: str
    options: tuple[KeepOption, ...]
    flop: float = 0.0


@attrs.frozen
class RecomputeChoice:
    """An option for each block, and the bytes of the rest of the model, which is never recomputed."""

    blocks: tuple[tuple[Block, KeepOption], ...]
    rest_bytes: float

    @property
    def kept_bytes(self) -> float:
        """Bytes kept for the backward pass."""
        return self.rest_bytes + sum(option.kept_bytes for _, option in self.blocks)

    @property
    def peak_bytes(self) -> float:
        """Bytes kept and those of the largest recomputed block."""
        return self.kept_bytes + max((option.recomputed_bytes for _, option in self.blocks), default=0.0)

    @property
    def flop(self) -> float:
        """FLOP that are recomputed."""
        return sum(option.flop for _, option in self.blocks)


def resnet(name: str, in_channels: int, out_channels: int, pixels: float, sizes: DtypeSizes) -> Block:
    """ResnetBlock2D on `pixels` latent cells of all pictures together."""
    in_elements, mid_elements = in_channels * pixels, out_channels * pixels
    norms, activations = (in_elements + mid_elements) * sizes.norm, (in_elements + mid_elements) * (sizes.norm + sizes.compute)
    convolutions = 18.0 * out_channels * (in_channels + out_channels) * pixels
    return Block(
        name,
        (
            KeepOption("keep", norms + activations),
            KeepOption("light", norms, activations, activations * ELEMENTWISE),
            KeepOption("whole", in_elements * sizes.compute, norms + activations, activations * ELEMENTWISE + convolutions),
        ),
        convolutions,
    )


def transformer(
    name: str,
    channels: int,
    tokens: float,
    pictures: int,
    context_dim: int,
    rank: int,
    sizes: DtypeSizes,
    *,
    heads: int,
    upcast: bool = False,
) -> Block:
    """BasicTransformerBlock on `tokens` of all pictures together; `context_dim` is the width of the text encoders' states."""
    stream, text_tokens = float(channels * tokens), pictures * TOKENS
    inner, text_inner = rank * tokens * sizes.compute, rank * text_tokens * sizes.compute
    feed_forward = 16 * stream * sizes.compute + 2 * inner
    attention = (6 * stream + 2 * channels * text_tokens) * sizes.compute + 8 * heads * tokens + 6 * inner + 2 * text_inner
    if upcast and sizes.compute < 4:  # queries, keys and values are kept in float32, the output in both
        attention += 6 * stream * (4 - sizes.compute) + 2 * stream * sizes.compute
    norms = 3 * stream * (sizes.norm + sizes.compute)
    feed_forward_flop = 24.0 * channels * stream
    self_flop = 8.0 * channels * stream + 4.0 * stream * tokens / pictures
    cross_flop = 4.0 * channels * stream + 4.0 * channels * context_dim * text_tokens + 4.0 * stream * TOKENS
    total = feed_forward + attention + norms
    return Block(
        name,
        (
            KeepOption("keep", total),
            KeepOption("forward", attention + norms, feed_forward, feed_forward_flop),
            KeepOption("whole", stream * sizes.compute, total, feed_forward_flop + self_flop + cross_flop),
        ),
        feed_forward_flop + self_flop + cross_flop,
    )


def clip_layer(name: str, width: int, pictures: int, rank: int, sizes: DtypeSizes) -> Block:
    """CLIPEncoderLayer of `width` channels."""
    stream = float(width * TOKENS * pictures)
    kept = stream * (2 * sizes.norm + 16 * sizes.compute) + 6 * rank * TOKENS * pictures * sizes.compute
    flop = 24.0 * width * stream
    return Block(name, (KeepOption("keep", kept), KeepOption("whole", stream * sizes.compute, kept, flop)), flop)


def bytes_between_blocks(shape: UNetShape, pixels: float, rank: int, sizes: DtypeSizes) -> float:
    """Bytes kept between the blocks: inputs and outputs of transformers, up- and downsampling, the last convolution.

    `pixels`: latent cells of all pictures together.
    """
    channels = shape.channels
    total, last = 0.0, len(channels) - 1
    for level, (width, depth, _) in enumerate(shape.levels):
        cells = pixels / 4**level
        if depth:
            total += 5 * width * cells * (sizes.norm + 2 * sizes.compute) + 10 * rank * cells * sizes.compute
        if level < last:
            total += width * cells * sizes.compute
            total += channels[level + 1] * cells * sizes.compute
    middle = channels[-1] * pixels / 4**last
    total += middle * (sizes.norm + 2 * sizes.compute)
    return total + channels[0] * pixels * (2 * sizes.norm + sizes.compute)


def unet_blocks(shape: UNetShape, pixels: float, pictures: int, rank: int, sizes: DtypeSizes) -> Iterator[Block]:
    """The blocks of a U-Net under diffusers' names, for pictures of `pixels` latent cells each."""
    channels, last = shape.channels, len(shape.levels) - 1

    def cells(level: int) -> float:
        return pixels / 4**level * pictures

    def transformers(name: str, level: int, depth: int) -> Iterator[Block]:
        width, _, heads = shape.levels[level]
        for number in range(depth):
            block = f"{name}.transformer_blocks.{number}"
            yield transformer(block, width, cells(level), pictures, shape.context_dim, rank, sizes, heads=heads, upcast=shape.upcast)

    skip_channels, width = [channels[0]], channels[0]
    for level, (wide, depth, _) in enumerate(shape.levels):
        for number in range(2):
            yield resnet(f"down_blocks.{level}.resnets.{number}", width, wide, cells(level), sizes)
            yield from transformers(f"down_blocks.{level}.attentions.{number}", level, depth)
            width = wide
            skip_channels.append(wide)
        if level < last:
            skip_channels.append(wide)
    for number in range(2):
        yield resnet(f"mid_block.resnets.{number}", width, width, cells(last), sizes)
    yield from transformers("mid_block.attentions.0", last, shape.mid_blocks)
    for index, level in enumerate(reversed(range(len(channels)))):
        for number in range(3):
            yield resnet(f"up_blocks.{index}.resnets.{number}", width + skip_channels.pop(), channels[level], cells(level), sizes)
            yield from transformers(f"up_blocks.{index}.attentions.{number}", level, shape.levels[level][1])
            width = channels[level]


def step_flop(shape: UNetShape, pixels: float) -> float:
    """FLOP of forward and backward of one picture of `pixels` latent cells, without those of the adapter."""
    between = sum(20.0 * width**2 * pixels / 4**level for level, (width, depth, _) in enumerate(shape.levels) if depth)
    for level, (wide, narrow) in enumerate(itertools.pairwise(shape.channels)):
        between += 18.0 * (narrow**2 + wide**2 / 4) * pixels / 4**level  # the convolutions that change the size
    return STEP_PER_FORWARD * (between + sum(block.flop for block in unet_blocks(shape, pixels, 1, 0, DtypeSizes())))


def keep_all(blocks: Iterable[Block], rest_bytes: float) -> RecomputeChoice:
    """Nothing is recomputed."""
    return RecomputeChoice(tuple((block, block.options[0]) for block in blocks), rest_bytes)


def recompute_all(blocks: Iterable[Block], rest_bytes: float) -> RecomputeChoice:
    """Every block is recomputed as far as that is worth its time."""
    return RecomputeChoice(tuple((block, _last_worthwhile(block)) for block in blocks), rest_bytes)


def _last_worthwhile(block: Block) -> KeepOption:
    options = [option for saved, flop, option in _worthwhile(block) if saved >= MIN_BYTES_PER_FLOP * flop]
    return options[-1] if options else block.options[0]


def recompute_within(blocks: Iterable[Block], rest_bytes: float, budget: float) -> RecomputeChoice:
    """Recomputes as little as keeps the peak within `budget` bytes: what saves most bytes per FLOP first.

    Everything that is worth it, where that is not enough.
    """
    blocks = list(blocks)
    chosen = {block.name: block.options[0] for block in blocks}
    candidates = [
        (saved / max(flop, 1.0), number, option, block)
        for block in blocks
        for number, (saved, flop, option) in enumerate(_worthwhile(block))
    ]
    for _, _, option, block in sorted(candidates, key=lambda candidate: (-candidate[0], candidate[1])):
        choice = RecomputeChoice(tuple((each, chosen[each.name]) for each in blocks), rest_bytes)
        if choice.peak_bytes <= budget:
            return choice
        chosen[block.name] = option
    return RecomputeChoice(tuple((each, chosen[each.name]) for each in blocks), rest_bytes)


def _worthwhile(block: Block) -> Iterator[tuple[float, float, KeepOption]]:
    """(bytes saved, FLOP, option) from one option to the next; an option that a later one beats in bytes per FLOP is skipped."""
    current, left = block.options[0], list(block.options[1:])
    while left:
        best = max(left, key=lambda option: (current.kept_bytes - option.kept_bytes) / max(option.flop - current.flop, 1.0))
        yield current.kept_bytes - best.kept_bytes, best.flop - current.flop, best
        left = [option for option in left if option.kept_bytes < best.kept_bytes]
        current = best
