"""Key names and shapes of the released models, computed from a few sizes of each family, without a file (no torch)."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from lora_trainer.models import layout

Shapes = dict[str, tuple[int, ...]]


@attrs.frozen
class TextEncoderSize:
    """Width and number of layers of a CLIP text encoder."""

    width: int
    layers: int
    projected: bool = False


@attrs.frozen
class ReleasedModel:
    """Sizes of a family: channels and transformer depth of each level, cross-attention width, text encoders."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    context: int
    texts: tuple[TextEncoderSize, ...]
    linear_projection: bool = True
    label: int = 0
    """Width of the added conditioning (SDXL: pooled text and time ids)."""


RELEASED = {
    "sd1": ReleasedModel((320, 640, 1280, 1280), (1, 1, 1, 0), 768, (TextEncoderSize(768, 12),), linear_projection=False),
    "sd2": ReleasedModel((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, (TextEncoderSize(1024, 23),)),
    "sdxl": ReleasedModel(
        (320, 640, 1280), (0, 2, 10), 2048, (TextEncoderSize(768, 12), TextEncoderSize(1280, 32, projected=True)), label=2816
    ),
}


def attends(family: str) -> tuple[bool, ...]:
    """Whether each level has cross-attention, from the highest resolution to the lowest."""
    return tuple(depth > 0 for depth in RELEASED[family].depths)


def shapes(family: str) -> Mapping[str, Shapes]:
    """ "unet", "text" and perhaps "text_2" -> shapes by diffusers' and transformers' names."""
    model = RELEASED[family]
    texts = {"text" if not number else f"text_{number + 1}": _text(text) for number, text in enumerate(model.texts)}
    return {"unet": _unet(model, layout.row(family).latent_channels), **texts}


def _unet(model: ReleasedModel, latent_channels: int) -> Shapes:
    widths, time_width = model.widths, model.widths[0] * 4
    shapes = (
        _layer("conv_in", widths[0], latent_channels, 3)
        | _norm("conv_norm_out", widths[0])
        | _layer("conv_out", latent_channels, widths[0], 3)
    )
    shapes |= _layer("time_embedding.linear_1", time_width, widths[0]) | _layer("time_embedding.linear_2", time_width, time_width)
    if model.label:
        shapes |= _layer("add_embedding.linear_1", time_width, model.label) | _layer("add_embedding.linear_2", time_width, time_width)
    skips, width, last = [widths[0]], widths[0], len(widths) - 1
    for level, (out, depth) in enumerate(zip(widths, model.depths, strict=True)):
        prefix = f"down_blocks.{level}"
        for block in range(2):
            shapes |= _resnet(f"{prefix}.resnets.{block}", width, out, time_width) | _attention(
                f"{prefix}.attentions.{block}", out, depth, model
            )
            width = out
            skips.append(out)
        if level < last:
            shapes |= _layer(f"{prefix}.downsamplers.0.conv", out, out, 3)
            skips.append(out)
    deepest = model.depths[-1] or 1
    shapes |= _resnet("mid_block.resnets.0", width, width, time_width) | _resnet("mid_block.resnets.1", width, width, time_width)
    shapes |= _attention("mid_block.attentions.0", width, deepest, model)
    for level, (out, depth) in enumerate(zip(reversed(widths), reversed(model.depths), strict=True)):
        prefix = f"up_blocks.{level}"
        for block in range(3):
            shapes |= _resnet(f"{prefix}.resnets.{block}", width + skips.pop(), out, time_width)
            shapes |= _attention(f"{prefix}.attentions.{block}", out, depth, model)
            width = out
        if level < last:
            shapes |= _layer(f"{prefix}.upsamplers.0.conv", out, out, 3)
    return shapes


def _resnet(prefix: str, width: int, out: int, time_width: int) -> Shapes:
    shapes = _norm(f"{prefix}.norm1", width) | _layer(f"{prefix}.conv1", out, width, 3) | _layer(f"{prefix}.time_emb_proj", out, time_width)
    shapes |= _norm(f"{prefix}.norm2", out) | _layer(f"{prefix}.conv2", out, out, 3)
    return shapes | (_layer(f"{prefix}.conv_shortcut", out, width, 1) if width != out else {})


def _attention(prefix: str, width: int, depth: int, model: ReleasedModel) -> Shapes:
    if not depth:
        return {}
    kernel = 0 if model.linear_projection else 1
    shapes = (
        _norm(f"{prefix}.norm", width)
        | _layer(f"{prefix}.proj_in", width, width, kernel)
        | _layer(f"{prefix}.proj_out", width, width, kernel)
    )
    for number in range(depth):
        inner = f"{prefix}.transformer_blocks.{number}"
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _norm(f"{inner}.{norm}", width)
        for name, reads in (("attn1", width), ("attn2", model.context)):
            shapes |= {f"{inner}.{name}.to_q.weight": (width, width)}
            shapes |= {f"{inner}.{name}.to_{letter}.weight": (width, reads) for letter in "kv"}
            shapes |= _layer(f"{inner}.{name}.to_out.0", width, width)
        shapes |= _layer(f"{inner}.ff.net.0.proj", width * 8, width) | _layer(f"{inner}.ff.net.2", width, width * 4)
    return shapes


def _text(size: TextEncoderSize) -> Shapes:
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, size.width),
        "text_model.embeddings.position_embedding.weight": (77, size.width),
        **_norm("text_model.final_layer_norm", size.width),
    }
    for number in range(size.layers):
        prefix = f"text_model.encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{prefix}.self_attn.{name}", size.width, size.width)
        shapes |= _layer(f"{prefix}.mlp.fc1", size.width * 4, size.width) | _layer(f"{prefix}.mlp.fc2", size.width, size.width * 4)
        shapes |= _norm(f"{prefix}.layer_norm1", size.width) | _norm(f"{prefix}.layer_norm2", size.width)
    return shapes | ({"text_projection.weight": (size.width, size.width)} if size.projected else {})


def _layer(prefix: str, out: int, width: int, kernel: int = 0) -> Shapes:
    return {f"{prefix}.weight": (out, width, kernel, kernel) if kernel else (out, width), f"{prefix}.bias": (out,)}


def _norm(prefix: str, width: int) -> Shapes:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}
