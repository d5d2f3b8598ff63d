"""Gradient checkpointing: parts of the model are recomputed in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_trainer.config.schema import MemoryConfig
from lora_trainer.data.records import ImageRecord
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.train.memory import activations
from lora_trainer.train.memory.activations import Block, DtypeSizes, RecomputeChoice, UNetShape
from lora_trainer.train.step.attention import wants_upcast

WHOLE = frozenset({"ResnetBlock2D", "BasicTransformerBlock", "CLIPEncoderLayer"})
TEXT = "text_encoder."


class Checkpointing:
    """Wraps `forward` of modules on the instances; `remove` restores them.

    `options`: name of a block (of the text encoder with the prefix "text_encoder.") -> activations.KeepOption.name. A block that is not
    in it is recomputed whole; without `options` every one is.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, options: Mapping[str, str] | None = None) -> None:
        self._wrapped: list[nn.Module] = []
        for name, module in _blocks(unet, text_encoder):
            option = (options or {}).get(name, "whole")
            if option == "whole":
                self._wrap(module, _checkpointed(module.forward))
            elif option == "forward":
                feed_forward: nn.Module = module.ff  # type: ignore[assignment]
                self._wrap(feed_forward, _checkpointed(feed_forward.forward))
            elif option == "light" and _is_plain(module):
                self._wrap(module, _checkpoint_norms(module))

    def remove(self) -> None:
        """Gives every block its own `forward` back."""
        for module in self._wrapped:
            module.__dict__.pop("forward", None)
        self._wrapped = []

    def _wrap(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = forward  # type: ignore[method-assign]
        self._wrapped.append(module)


def activation_blocks(
    bundle: ModelBundle, *, pixels: int, pictures: int, rank: int, trains_text: bool, sizes: DtypeSizes
) -> tuple[list[Block], float]:
    """The blocks of a bundle with the activations that each keeps, and the bytes of the rest. `pixels` of one picture."""
    shape, cells = unet_shape(bundle), pixels // 64
    blocks = list(activations.unet_blocks(shape, cells, pictures, rank, sizes))
    modules = dict(_blocks(bundle.unet, text_encoder_module(bundle)))
    if trains_text:
        blocks += [
            activations.clip_layer(name, int(module.self_attn.embed_dim), pictures, rank, sizes)  # type: ignore[union-attr, arg-type]
            for name, module in modules.items()
            if name.startswith(TEXT)
        ]
    return [block for block in blocks if block.name in modules], activations.bytes_between_blocks(shape, cells * pictures, rank, sizes)


def unet_shape(bundle: ModelBundle) -> UNetShape:
    """The dimensions of a bundle's U-Net, from its config."""
    config: Any = bundle.unet.config
    channels = tuple(config.block_out_channels)
    depths, heads = (_each(value, len(channels)) for value in (config.transformer_layers_per_block, config.attention_head_dim))
    attends = ["CrossAttn" in kind for kind in config.down_block_types]
    levels = tuple(zip(channels, (depth * attend for depth, attend in zip(depths, attends, strict=True)), heads, strict=True))
    return UNetShape(levels, depths[-1], int(config.cross_attention_dim), upcast=wants_upcast(bundle))


def _each(value: Any, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def option_names(choice: RecomputeChoice) -> dict[str, str]:
    """Block name -> option name, for Checkpointing."""
    return {block.name: option.name for block, option in choice.blocks}


def text_encoder_module(bundle: ModelBundle) -> nn.Module:
    """The text encoder, or SDXL's two as one module."""
    return bundle.text_encoder if bundle.text_encoder_2 is None else nn.ModuleList(bundle.text_encoders)


def _blocks(unet: nn.Module, text_encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for prefix, root in (("", unet), (TEXT, text_encoder)):
        for name, module in root.named_modules():
            if type(module).__name__ in WHOLE:
                yield prefix + name, module


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def _is_plain(block: Any) -> bool:
    """Whether a ResnetBlock2D does nothing but what `_checkpoint_norms` does."""
    return block.time_embedding_norm == "default" and block.upsample is None and block.downsample is None and not block.skip_time_act


def _checkpoint_norms(block: Any) -> Callable[..., Tensor]:
    """ResnetBlock2D.forward that keeps only the inputs of its two norms: norm and activation are recomputed, no convolution is.

    torch stops recomputing as soon as the last saved tensor is there, which is the convolution's input.
    """

    def first(hidden: Tensor) -> Tensor:
        return block.conv1(block.nonlinearity(block.norm1(hidden)))  # type: ignore[no-any-return]

    def second(hidden: Tensor) -> Tensor:
        return block.conv2(block.dropout(block.nonlinearity(block.norm2(hidden))))  # type: ignore[no-any-return]

    first, second = _checkpointed(first), _checkpointed(second)

    def run(input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden = first(input_tensor) + block.time_emb_proj(block.nonlinearity(temb))[:, :, None, None]
        skip = input_tensor if block.conv_shortcut is None else block.conv_shortcut(input_tensor)
        return (skip + second(hidden)) / block.output_scale_factor  # type: ignore[no-any-return]

    return run


GB = 2**30


def apply_checkpointing(memory: MemoryConfig, bundle: ModelBundle, blocks: Sequence[Block], rest_bytes: float) -> Checkpointing | None:
    """Wraps the blocks that the config wants recomputed; None where it wants none. `blocks` and `rest_bytes` are of the largest batch."""
    if not memory.gradient_checkpointing:
        return None
    return Checkpointing(bundle.unet, text_encoder_module(bundle), option_names(choose_recompute(memory, blocks, rest_bytes)))


def choose_recompute(memory: MemoryConfig, blocks: Sequence[Block], rest_bytes: float) -> RecomputeChoice:
    """The option of each block under these settings: keep all, recompute all, or as little as the budget allows."""
    if not memory.gradient_checkpointing:
        return activations.keep_all(blocks, rest_bytes)
    budget = memory.checkpointing_budget_gb * GB
    return activations.recompute_within(blocks, rest_bytes, budget) if budget else activations.recompute_all(blocks, rest_bytes)


def half_budget_gb(blocks: Sequence[Block], rest_bytes: float) -> float:
    """Half of what the largest batch keeps without recomputing, in GB."""
    return max(0.001, round(activations.keep_all(blocks, rest_bytes).kept_bytes / 2 / GB, 3))


def largest_batch(records: Iterable[ImageRecord], batch_sizes: Sequence[int], max_pictures: int) -> tuple[int, int]:
    """Pixels of a picture, and pictures, of the batch with most pixels in total; `max_pictures` limits its pictures (0: no limit)."""
    pixels, pictures = 0, 1
    for record in records:
        width, height = record.bucket or (0, 0)
        batch_size = batch_sizes[record.dataset]
        batch_size = min(batch_size, max_pictures) if max_pictures else batch_size
        if width * height * batch_size > pixels * pictures:
            pixels, pictures = width * height, batch_size
    return pixels, pictures
