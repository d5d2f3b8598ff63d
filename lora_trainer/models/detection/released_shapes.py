"""The measures of the released models, worked out from a few numbers a family: names and shapes without any file (no torch)."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

Shapes = dict[str, tuple[int, ...]]


@attrs.frozen
class Text:
    """A CLIP text encoder: width and number of layers."""

    width: int
    layers: int
    projected: bool = False


@attrs.frozen
class Measures:
    """A family's U-Net: widths and transformers per level, width of the text that it reads, and its text encoders."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    context: int
    texts: tuple[Text, ...]
    linear_projection: bool = True
    label: int = 0
    """Width of the further input of what is known of the whole picture."""


STOCK = {
    "sd1": Measures((320, 640, 1280, 1280), (1, 1, 1, 0), 768, (Text(768, 12),), linear_projection=False),
    "sd2": Measures((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, (Text(1024, 23),)),
    "sdxl": Measures((320, 640, 1280), (0, 2, 10), 2048, (Text(768, 12), Text(1280, 32, projected=True)), label=2816),
}


def attends(family: str) -> tuple[bool, ...]:
    """Which levels attend to the text, from the widest picture to the narrowest."""
    return tuple(depth > 0 for depth in STOCK[family].depths)


def shapes(family: str) -> Mapping[str, Shapes]:
    """ "unet", "text" and, where there is one, "text_2": names as diffusers' and transformers' modules have them -> shapes."""
    measures = STOCK[family]
    texts = {"text" if not number else f"text_{number + 1}": _text(text) for number, text in enumerate(measures.texts)}
    return {"unet": _unet(measures), **texts}


def _unet(of: Measures) -> Shapes:
    widths, time = of.widths, of.widths[0] * 4
    found = _layer("conv_in", widths[0], 4, 3) | _norm("conv_norm_out", widths[0]) | _layer("conv_out", 4, widths[0], 3)
    found |= _layer("time_embedding.linear_1", time, widths[0]) | _layer("time_embedding.linear_2", time, time)
    if of.label:
        found |= _layer("add_embedding.linear_1", time, of.label) | _layer("add_embedding.linear_2", time, time)
    skips, width, last = [widths[0]], widths[0], len(widths) - 1
    for level, (out, depth) in enumerate(zip(widths, of.depths, strict=True)):
        place = f"down_blocks.{level}"
        for block in range(2):
            found |= _resnet(f"{place}.resnets.{block}", width, out, time) | _attention(f"{place}.attentions.{block}", out, depth, of)
            width = out
            skips.append(out)
        if level < last:
            found |= _layer(f"{place}.downsamplers.0.conv", out, out, 3)
            skips.append(out)
    deepest = of.depths[-1] or 1
    found |= _resnet("mid_block.resnets.0", width, width, time) | _resnet("mid_block.resnets.1", width, width, time)
    found |= _attention("mid_block.attentions.0", width, deepest, of)
    for level, (out, depth) in enumerate(zip(reversed(widths), reversed(of.depths), strict=True)):
        place = f"up_blocks.{level}"
        for block in range(3):
            found |= _resnet(f"{place}.resnets.{block}", width + skips.pop(), out, time)
            found |= _attention(f"{place}.attentions.{block}", out, depth, of)
            width = out
        if level < last:
            found |= _layer(f"{place}.upsamplers.0.conv", out, out, 3)
    return found


def _resnet(place: str, width: int, out: int, time: int) -> Shapes:
    found = _norm(f"{place}.norm1", width) | _layer(f"{place}.conv1", out, width, 3) | _layer(f"{place}.time_emb_proj", out, time)
    found |= _norm(f"{place}.norm2", out) | _layer(f"{place}.conv2", out, out, 3)
    return found | (_layer(f"{place}.conv_shortcut", out, width, 1) if width != out else {})


def _attention(place: str, width: int, depth: int, of: Measures) -> Shapes:
    if not depth:
        return {}
    kernel = 0 if of.linear_projection else 1
    found = (
        _norm(f"{place}.norm", width) | _layer(f"{place}.proj_in", width, width, kernel) | _layer(f"{place}.proj_out", width, width, kernel)
    )
    for number in range(depth):
        inner = f"{place}.transformer_blocks.{number}"
        for norm in ("norm1", "norm2", "norm3"):
            found |= _norm(f"{inner}.{norm}", width)
        for name, reads in (("attn1", width), ("attn2", of.context)):
            found |= {f"{inner}.{name}.to_q.weight": (width, width)}
            found |= {f"{inner}.{name}.to_{letter}.weight": (width, reads) for letter in "kv"}
            found |= _layer(f"{inner}.{name}.to_out.0", width, width)
        found |= _layer(f"{inner}.ff.net.0.proj", width * 8, width) | _layer(f"{inner}.ff.net.2", width, width * 4)
    return found


def _text(of: Text) -> Shapes:
    found: Shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, of.width),
        "text_model.embeddings.position_embedding.weight": (77, of.width),
        **_norm("text_model.final_layer_norm", of.width),
    }
    for number in range(of.layers):
        place = f"text_model.encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _layer(f"{place}.self_attn.{name}", of.width, of.width)
        found |= _layer(f"{place}.mlp.fc1", of.width * 4, of.width) | _layer(f"{place}.mlp.fc2", of.width, of.width * 4)
        found |= _norm(f"{place}.layer_norm1", of.width) | _norm(f"{place}.layer_norm2", of.width)
    return found | ({"text_projection.weight": (of.width, of.width)} if of.projected else {})


def _layer(place: str, out: int, width: int, kernel: int = 0) -> Shapes:
    return {f"{place}.weight": (out, width, kernel, kernel) if kernel else (out, width), f"{place}.bias": (out,)}


def _norm(place: str, width: int) -> Shapes:
    return {f"{place}.weight": (width,), f"{place}.bias": (width,)}
