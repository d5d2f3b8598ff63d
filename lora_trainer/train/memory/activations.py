"""What a step keeps of a U-Net for its backward pass, block by block, and what computing it again costs (no torch).

Counted from the operations of diffusers' blocks; `benchmarks/memory.py` compares it with what is really kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import attrs

TOKENS = 77
ELEMENTWISE = 40.0
"""FLOP that one byte of a norm or an activation counts as when it is computed again: such operations wait for memory."""
WORTH = 1.2e-4
"""Bytes that a FLOP has to save: the wide convolutions of the deep levels save next to nothing and take long."""
WITH_BACKWARD = 2.2
"""FLOP of a whole step in those of its forward pass: through a frozen layer one product goes back (counted: 2.15 to 2.22)."""


@attrs.frozen
class UNetShape:
    """What tells U-Nets apart: of each level the channels, transformer blocks in an attention (0: none) and heads; `middle` blocks.

    `context`: width of what the text encoders say. `upcast`: attention is summed in float32 where the rest is not.
    """

    levels: tuple[tuple[int, int, int], ...]
    middle: int
    context: int
    upcast: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return tuple(width for width, _, _ in self.levels)


SD1 = UNetShape(((320, 1, 8), (640, 1, 8), (1280, 1, 8), (1280, 0, 8)), 1, 768)
"""Stable Diffusion 1.x."""


@attrs.frozen
class DtypeSizes:
    """Bytes of a number: `size` in matrices and convolutions, `fine` where norms read (CUDA's autocast takes 4 there)."""

    size: int = 4
    fine: int = 4


@attrs.frozen
class KeepOption:
    """One way to treat a block: `kept` bytes until backward, `again` bytes that backward makes anew for a moment, `flop` that costs."""

    name: str
    kept: float
    again: float = 0.0
    flop: float = 0.0


@attrs.frozen
class Block:
    """A block of the U-Net or text encoder by its module's name; the first way keeps all, each next one less. `flop` of its forward."""

    name: str
    ways: tuple[KeepOption, ...]
    flop: float = 0.0


@attrs.frozen
class RecomputeChoice:
    """A way for each block, and the rest of the model, which is never computed again. Bytes and FLOP."""

    ways: tuple[tuple[Block, KeepOption], ...]
    rest: float

    @property
    def kept(self) -> float:
        """Bytes that wait for the backward pass."""
        return self.rest + sum(way.kept for _, way in self.ways)

    @property
    def peak(self) -> float:
        """With the largest block that is computed again."""
        return self.kept + max((way.again for _, way in self.ways), default=0.0)

    @property
    def flop(self) -> float:
        """What is computed again."""
        return sum(way.flop for _, way in self.ways)


def resnet(name: str, inside: int, outside: int, pixels: float, numbers: DtypeSizes) -> Block:
    """ResnetBlock2D of `inside` to `outside` channels on so many pixels (of all pictures together)."""
    inputs, middle = inside * pixels, outside * pixels
    norms, folded = (inputs + middle) * numbers.fine, (inputs + middle) * (numbers.fine + numbers.size)
    convolutions = 18.0 * outside * (inside + outside) * pixels
    return Block(
        name,
        (
            KeepOption("keep", norms + folded),
            KeepOption("light", norms, folded, folded * ELEMENTWISE),
            KeepOption("whole", inputs * numbers.size, norms + folded, folded * ELEMENTWISE + convolutions),
        ),
        convolutions,
    )


def transformer(
    name: str,
    channels: int,
    tokens: float,
    pictures: int,
    context: int,
    rank: int,
    numbers: DtypeSizes,
    *,
    heads: int,
    upcast: bool = False,
) -> Block:
    """BasicTransformerBlock on so many tokens of all pictures together; `context` is the width of what the text encoder says."""
    stream, words = float(channels * tokens), pictures * TOKENS
    inner = rank * tokens * numbers.size
    forward = 16 * stream * numbers.size + 2 * inner
    attention = (6 * stream + 2 * channels * words) * numbers.size + 8 * heads * tokens + 6 * inner + 2 * rank * words * numbers.size
    if upcast and numbers.size < 4:  # what is attended with is kept in float32, and what comes out in both
        attention += 6 * stream * (4 - numbers.size) + 2 * stream * numbers.size
    norms = 3 * stream * (numbers.fine + numbers.size)
    forward_flop = 24.0 * channels * stream
    self_flop = 8.0 * channels * stream + 4.0 * stream * tokens / pictures
    cross_flop = 4.0 * channels * stream + 4.0 * channels * context * words + 4.0 * stream * TOKENS
    everything = forward + attention + norms
    return Block(
        name,
        (
            KeepOption("keep", everything),
            KeepOption("forward", attention + norms, forward, forward_flop),
            KeepOption("whole", stream * numbers.size, everything, forward_flop + self_flop + cross_flop),
        ),
        forward_flop + self_flop + cross_flop,
    )


def text_layer(name: str, width: int, pictures: int, rank: int, numbers: DtypeSizes) -> Block:
    """CLIPEncoderLayer."""
    stream = float(width * TOKENS * pictures)
    kept = stream * (2 * numbers.fine + 16 * numbers.size) + 6 * rank * TOKENS * pictures * numbers.size
    flop = 24.0 * width * stream
    return Block(name, (KeepOption("keep", kept), KeepOption("whole", stream * numbers.size, kept, flop)), flop)


def rest(shape: UNetShape, pixels: float, rank: int, numbers: DtypeSizes) -> float:
    """Bytes of what stands between the blocks: what goes into and out of transformers, changes of size, the last convolution.

    `pixels`: latent cells of all pictures together.
    """
    channels = shape.channels
    found, last = 0.0, len(channels) - 1
    for level, (width, depth, _) in enumerate(shape.levels):
        here = pixels / 4**level
        if depth:
            found += 5 * width * here * (numbers.fine + 2 * numbers.size) + 10 * rank * here * numbers.size
        if level < last:
            found += width * here * numbers.size
            found += channels[level + 1] * here * numbers.size
    middle = channels[-1] * pixels / 4**last
    found += middle * (numbers.fine + 2 * numbers.size)
    return found + channels[0] * pixels * (2 * numbers.fine + numbers.size)


def unet(shape: UNetShape, pixels: float, pictures: int, rank: int, numbers: DtypeSizes) -> Iterator[Block]:
    """Blocks of a U-Net under diffusers' names, for pictures of `pixels` latent cells each."""
    channels, last = shape.channels, len(shape.levels) - 1

    def cells(level: int) -> float:
        return pixels / 4**level * pictures

    def turning(name: str, level: int, depth: int) -> Iterator[Block]:
        width, _, heads = shape.levels[level]
        for number in range(depth):
            block = f"{name}.transformer_blocks.{number}"
            yield transformer(block, width, cells(level), pictures, shape.context, rank, numbers, heads=heads, upcast=shape.upcast)

    skips, width = [channels[0]], channels[0]
    for level, (wide, depth, _) in enumerate(shape.levels):
        for number in range(2):
            yield resnet(f"down_blocks.{level}.resnets.{number}", width, wide, cells(level), numbers)
            yield from turning(f"down_blocks.{level}.attentions.{number}", level, depth)
            width = wide
            skips.append(wide)
        if level < last:
            skips.append(wide)
    for number in range(2):
        yield resnet(f"mid_block.resnets.{number}", width, width, cells(last), numbers)
    yield from turning("mid_block.attentions.0", last, shape.middle)
    for place, level in enumerate(reversed(range(len(channels)))):
        for number in range(3):
            yield resnet(f"up_blocks.{place}.resnets.{number}", width + skips.pop(), channels[level], cells(level), numbers)
            yield from turning(f"up_blocks.{place}.attentions.{number}", level, shape.levels[level][1])
            width = channels[level]


def step_flop(shape: UNetShape, pixels: float) -> float:
    """FLOP of forward and backward of one picture of so many latent cells, without a network's own."""
    between = sum(20.0 * width**2 * pixels / 4**level for level, (width, depth, _) in enumerate(shape.levels) if depth)
    for level, (wide, narrow) in enumerate(itertools.pairwise(shape.channels)):
        between += 18.0 * (narrow**2 + wide**2 / 4) * pixels / 4**level  # the convolutions that change the size
    return WITH_BACKWARD * (between + sum(block.flop for block in unet(shape, pixels, 1, 0, DtypeSizes())))


def keep_all(blocks: Iterable[Block], rest: float) -> RecomputeChoice:
    """Nothing is computed again."""
    return RecomputeChoice(tuple((block, block.ways[0]) for block in blocks), rest)


def all_again(blocks: Iterable[Block], rest: float) -> RecomputeChoice:
    """Every block is computed again as far as that is worth its time."""
    return RecomputeChoice(tuple((block, _furthest(block)) for block in blocks), rest)


def _furthest(block: Block) -> KeepOption:
    worth = [way for saved, flop, way in _worthwhile(block) if saved >= WORTH * flop]
    return worth[-1] if worth else block.ways[0]


def within(blocks: Iterable[Block], rest: float, budget: float) -> RecomputeChoice:
    """As little computed again as keeps the peak within `budget` bytes: what saves most bytes for a FLOP first.

    Everything, where that is not enough.
    """
    blocks = list(blocks)
    chosen = {block.name: block.ways[0] for block in blocks}
    steps = [
        (saved / max(flop, 1.0), number, way, block) for block in blocks for number, (saved, flop, way) in enumerate(_worthwhile(block))
    ]
    for _, _, way, block in sorted(steps, key=lambda step: (-step[0], step[1])):
        found = RecomputeChoice(tuple((each, chosen[each.name]) for each in blocks), rest)
        if found.peak <= budget:
            return found
        chosen[block.name] = way
    return RecomputeChoice(tuple((each, chosen[each.name]) for each in blocks), rest)


def _worthwhile(block: Block) -> Iterator[tuple[float, float, KeepOption]]:
    """(bytes saved, FLOP, way) from one way to the next; a way that another one beats by its share is passed over."""
    here, left = block.ways[0], list(block.ways[1:])
    while left:
        best = max(left, key=lambda way: (here.kept - way.kept) / max(way.flop - here.flop, 1.0))
        yield here.kept - best.kept, best.flop - here.flop, best
        left = [way for way in left if way.kept < best.kept]
        here = best
