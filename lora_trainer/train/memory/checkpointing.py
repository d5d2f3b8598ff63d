"""Our own gradient checkpointing: parts of the model are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_trainer.config.schema import MemoryConfig
from lora_trainer.data.records import ImageRecord
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.train.memory import activations
from lora_trainer.train.memory.activations import Block, DtypeSizes, RecomputeChoice, UNetShape
from lora_trainer.train.step.attention import wants_upcast
from lora_trainer.train.step.precision import lies_on

WHOLE = frozenset({"ResnetBlock2D", "BasicTransformerBlock", "CLIPEncoderLayer"})
TEXT = "text_encoder."


class Checkpointing:
    """Wraps `forward` of modules on the instances; `remove` gives them back.

    `ways`: for the U-Net's blocks by name, and the text encoder's behind "text_encoder.", how each is treated (activations.Way.name).
    A block that is not named is computed again whole; without `ways` every one.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, ways: Mapping[str, str] | None = None) -> None:
        self._wrapped: list[nn.Module] = []
        for name, module in _blocks(unet, text_encoder):
            way = (ways or {}).get(name, "whole")
            if way == "whole":
                self._wrap(module, _recomputed(module.forward))
            elif way == "forward":
                feed_forward: nn.Module = module.ff  # type: ignore[assignment]
                self._wrap(feed_forward, _recomputed(feed_forward.forward))
            elif way == "light" and _is_plain(module):
                self._wrap(module, _light(module))

    def remove(self) -> None:
        """Gives every block its own `forward` back."""
        for module in self._wrapped:
            module.__dict__.pop("forward", None)
        self._wrapped = []

    def _wrap(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = forward  # type: ignore[method-assign]
        self._wrapped.append(module)


def blocks_of(bundle: ModelBundle, *, pixels: int, pictures: int, rank: int, words: bool, numbers: DtypeSizes) -> tuple[list[Block], float]:
    """The blocks of a bundle with what each keeps, and the bytes of the rest. `pixels` of one picture; `words`: captions learn too."""
    shape, cells = shape_of(bundle), pixels // 64
    found = list(activations.unet(shape, cells, pictures, rank, numbers))
    known = dict(_blocks(bundle.unet, texts_of(bundle)))
    if words:
        found += [
            activations.text_layer(name, int(module.self_attn.embed_dim), pictures, rank, numbers)  # type: ignore[union-attr, arg-type]
            for name, module in known.items()
            if name.startswith(TEXT)
        ]
    return [block for block in found if block.name in known], activations.rest(shape, cells * pictures, rank, numbers)


def shape_of(bundle: ModelBundle) -> UNetShape:
    """What the configuration of a bundle's U-Net says of its shape."""
    config: Any = bundle.unet.config
    channels = tuple(config.block_out_channels)
    depths, heads = (_each(value, len(channels)) for value in (config.transformer_layers_per_block, config.attention_head_dim))
    attends = ["CrossAttn" in kind for kind in config.down_block_types]
    levels = tuple(zip(channels, (depth * attend for depth, attend in zip(depths, attends, strict=True)), heads, strict=True))
    return UNetShape(levels, depths[-1], int(config.cross_attention_dim), upcast=wants_upcast(bundle))


def _each(value: Any, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def names(choice: RecomputeChoice) -> dict[str, str]:
    """Block name -> way, for Checkpointing."""
    return {block.name: way.name for block, way in choice.ways}


def texts_of(bundle: ModelBundle) -> nn.Module:
    """The text encoder, or SDXL's two as one module, whose blocks are computed again whole."""
    return bundle.text_encoder if bundle.text_encoder_2 is None else nn.ModuleList(bundle.text_encoders)


def _blocks(unet: nn.Module, text_encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for prefix, root in (("", unet), (TEXT, text_encoder)):
        for name, module in root.named_modules():
            if type(module).__name__ in WHOLE:
                yield prefix + name, module


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def _is_plain(block: Any) -> bool:
    """Whether a ResnetBlock2D does nothing but what `_light` does."""
    return block.time_embedding_norm == "default" and block.upsample is None and block.downsample is None and not block.skip_time_act


def _light(block: Any) -> Callable[..., Tensor]:
    """ResnetBlock2D.forward that keeps what goes into its two norms only: norm and activation are computed again, no convolution is.

    torch ends the second computing where the last kept tensor is there, which is what goes into the convolution.
    """

    def first(hidden: Tensor) -> Tensor:
        return block.conv1(block.nonlinearity(block.norm1(hidden)))  # type: ignore[no-any-return]

    def second(hidden: Tensor) -> Tensor:
        return block.conv2(block.dropout(block.nonlinearity(block.norm2(hidden))))  # type: ignore[no-any-return]

    first, second = _recomputed(first), _recomputed(second)

    def run(input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden = first(input_tensor) + block.time_emb_proj(block.nonlinearity(temb))[:, :, None, None]
        straight = input_tensor if block.conv_shortcut is None else block.conv_shortcut(input_tensor)
        return (straight + second(hidden)) / block.output_scale_factor  # type: ignore[no-any-return]

    return run


GB = 2**30


def checkpointing(memory: MemoryConfig, bundle: ModelBundle, blocks: Sequence[Block], rest: float) -> Checkpointing | None:
    """As the config wants it: none, everything, or as much as the budget asks for. Blocks and rest are those of the largest batch."""
    if not memory.gradient_checkpointing:
        return None
    return Checkpointing(bundle.unet, texts_of(bundle), names(kept(memory, blocks, rest)))


def kept(memory: MemoryConfig, blocks: Sequence[Block], rest: float) -> RecomputeChoice:
    """What becomes of each block with the settings as they are."""
    if not memory.gradient_checkpointing:
        return activations.keep_all(blocks, rest)
    budget = memory.checkpointing_budget_gb * GB
    return activations.within(blocks, rest, budget) if budget else activations.all_again(blocks, rest)


def half_budget_gb(blocks: Sequence[Block], rest: float) -> float:
    """GB that are half of what the largest batch keeps when nothing is computed again."""
    return max(0.001, round(activations.keep_all(blocks, rest).kept / 2 / GB, 3))


def largest_batch(records: Iterable[ImageRecord], batch_sizes: Sequence[int], most: int) -> tuple[int, int]:
    """Pixels of a picture, and pictures, of the batch with most of both; at most `most` pictures at a time unless that is 0."""
    pixels, pictures = 0, 1
    for record in records:
        width, height = record.bucket or (0, 0)
        together = batch_sizes[record.dataset]
        together = min(together, most) if most else together
        if width * height * together > pixels * pictures:
            pixels, pictures = width * height, together
    return pixels, pictures


def offload(parts: Iterable[nn.Module], device: torch.device) -> bool:
    """Takes parts off the device; False when none was there. They come back by themselves when they are used (`runtime.ready`)."""
    moved = [part for part in parts if lies_on(part, device)]
    with torch.inference_mode(False):
        for part in moved:
            part.to("cpu")
    return bool(moved)
