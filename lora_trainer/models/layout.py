"""The one table between the names in checkpoints (LDM, SGM, open_clip) and those of diffusers' and transformers' modules.

`ROWS` holds one row per family. A `..._prefixes` function gives the beginning of an LDM key -> the beginning of a diffusers key;
turned round it is the way back. No torch: tensors are handed through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


@attrs.frozen
class Row:
    """One family as files know it: where its text encoders stand in a checkpoint, and what its LoRA files say."""

    family: str
    label: str
    text: tuple[str, ...]
    """Prefixes of its text encoders, in the order in which the U-Net reads them."""
    native_size: int
    lora_text: tuple[str, ...] = ("lora_te",)
    lora_unet: str = "diffusers"
    """Whose module names stand in a LoRA: "diffusers" or "ldm"."""
    unread_text_layers: int = 0
    """Layers at the end of an open_clip encoder that nothing ever reads: they are left out of the module."""
    version: str = "sd_v1"
    """`ss_base_model_version`; "_v" is added where it predicts v and `marks_v` says so."""
    marks_v: bool = True
    architecture: str = "stable-diffusion-v1"
    architecture_v: str = ""
    """`modelspec.architecture` of a v-prediction model, where it has a name of its own."""
    v2: bool = False
    """What sd-scripts' flag `v2` says of it."""
    native_size_v: int = 0
    """Native size of models that predict v, where it is another."""
    unet_heads: int = 0
    """Heads at every width; 0: one for 64 channels."""
    has_label: bool = False
    """Whether the U-Net has a further input for what is known of the whole picture."""

    def base_version(self, prediction: str) -> str:
        """`ss_base_model_version` of a LoRA, by which hosts list it."""
        return f"{self.version}_v" if prediction == "v" and self.marks_v else self.version

    def architecture_for(self, prediction: str) -> str:
        """`modelspec.architecture` of a LoRA."""
        return f"{self.architecture_v if prediction == 'v' and self.architecture_v else self.architecture}/lora"

    def size_for(self, prediction: str) -> int:
        """The native size of models that predict this."""
        return self.native_size_v if prediction == "v" and self.native_size_v else self.native_size


ROWS = (
    Row("sd1", "Stable Diffusion 1", (TEXT,), 512, unet_heads=8),
    Row(
        "sd2",
        "Stable Diffusion 2",
        ("cond_stage_model.model.",),
        512,
        native_size_v=768,
        unread_text_layers=1,
        version="sd_v2",
        architecture="stable-diffusion-v2-512",
        architecture_v="stable-diffusion-v2-768-v",
        v2=True,
    ),
    Row(
        "sdxl",
        "SDXL",
        ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
        1024,
        lora_text=("lora_te1", "lora_te2"),
        lora_unet="ldm",
        version="sdxl_base_v1-0",
        marks_v=False,
        architecture="stable-diffusion-xl-v1-base",
        has_label=True,
    ),
)

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.1": "mid_block.attentions.0",
}
VAE_RESNET = {"nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""diffusers' own names before 0.12."""
OPEN_CLIP = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
PACKED = ("q_proj", "k_proj", "v_proj")
"""What open_clip keeps as one matrix, `attn.in_proj_weight`, from top to bottom."""
RESNETS = 2
SD1_LEVELS = (True, True, True, False)
"""Which levels of the U-Net attend to the text, from the widest picture to the narrowest."""


def is_open_clip(prefix: str) -> bool:
    """Whether the text encoder that stands below a prefix of a checkpoint is in open_clip's layout."""
    return prefix.endswith(".model.")


def row(family: str) -> Row:
    """The row of a family."""
    return next(found for found in ROWS if found.family == family)


def family_of(keys: Iterable[str]) -> Row | None:
    """The family whose text encoders a checkpoint holds; None when it holds those of no family."""
    keys = list(keys)
    fits = [known for known in ROWS if all(any(key.startswith(prefix) for key in keys) for prefix in known.text)]
    return max(fits, key=lambda known: len(known.text), default=None)


def levels_of(keys: Iterable[str]) -> tuple[bool, ...]:
    """Which levels attend to the text, read off the names of an LDM U-Net."""
    keys = set(keys)
    inner = {int(key.split(".")[1]) for key in keys if key.startswith("input_blocks.") and key.split(".")[2] == "1"}
    count = 1 + len({key.split(".")[1] for key in keys if key.startswith("input_blocks.") and ".0.op." in key})
    return tuple(level * (RESNETS + 1) + 1 in inner for level in range(count)) if keys else SD1_LEVELS


def unet_names(keys: Iterable[str]) -> dict[str, str]:
    """LDM key -> diffusers key of the U-Net; `keys` without the prefix. Keys that belong nowhere are left out."""
    keys = list(keys)
    return renamed(keys, unet_prefixes(levels_of(keys)))


def unet_prefixes(attends: Sequence[bool] = SD1_LEVELS) -> dict[str, str]:
    """The U-Net's table for levels that attend or not: beginning of an LDM key -> beginning of a diffusers key."""
    prefixes = dict(UNET_ENDS)
    for place, mid in (("0", "0"), ("2", "1")):
        prefixes.update(_inside(f"middle_block.{place}", f"mid_block.resnets.{mid}", RESNET))
    for level, attending in enumerate(attends):
        for block in range(RESNETS):
            number = level * (RESNETS + 1) + block + 1
            prefixes.update(_inside(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{block}", RESNET))
            if attending:
                prefixes[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{block}"
        if level + 1 < len(attends):
            prefixes[f"input_blocks.{(level + 1) * (RESNETS + 1)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    for level, attending in enumerate(reversed(attends)):
        for block in range(RESNETS + 1):
            number = level * (RESNETS + 1) + block
            prefixes.update(_inside(f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{block}", RESNET))
            if attending:
                prefixes[f"output_blocks.{number}.1"] = f"up_blocks.{level}.attentions.{block}"
        if level + 1 < len(attends):
            behind = 2 if attending else 1
            prefixes[f"output_blocks.{level * (RESNETS + 1) + RESNETS}.{behind}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return prefixes


def vae_names(keys: Iterable[str]) -> dict[str, str]:
    """LDM key -> diffusers key of the VAE; `keys` without the prefix."""
    keys = list(keys)
    levels = 1 + max((int(key.split(".")[2]) for key in keys if key.startswith("encoder.down.")), default=3)
    return renamed(keys, vae_prefixes(levels))


def vae_prefixes(levels: int) -> dict[str, str]:
    """The table of a VAE with so many levels: beginning of an LDM key -> beginning of a diffusers key."""
    prefixes = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side in ("encoder", "decoder"):
        prefixes.update(
            {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out", f"{side}.norm_out": f"{side}.conv_norm_out"}
        )
        for number, block in enumerate(("block_1", "block_2")):
            prefixes.update(_vae_resnet(f"{side}.mid.{block}", f"{side}.mid_block.resnets.{number}"))
        prefixes.update(_inside(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", VAE_ATTENTION))
    for level in range(levels):
        for place in range(8):
            prefixes.update(_vae_resnet(f"encoder.down.{level}.block.{place}", f"encoder.down_blocks.{level}.resnets.{place}"))
            prefixes.update(_vae_resnet(f"decoder.up.{level}.block.{place}", f"decoder.up_blocks.{levels - 1 - level}.resnets.{place}"))
        prefixes[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        prefixes[f"decoder.up.{level}.upsample.conv"] = f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0.conv"
    return prefixes


def turned_round(prefixes: Mapping[str, str]) -> dict[str, str]:
    """Beginning of a diffusers key -> beginning of an LDM key."""
    return {new: old for old, new in prefixes.items()}


def text_names(keys: Iterable[str]) -> dict[str, str]:
    """LDM key -> transformers key of a CLIP text encoder in transformers' layout; very old files lack `text_model.`."""
    named = {}
    for key in keys:
        if key.endswith("position_ids"):
            continue
        if key.startswith(("text_model.", "embeddings.", "encoder.", "final_layer_norm.")):
            named[key] = key if key.startswith("text_model.") else f"text_model.{key}"
        elif key in ("text_projection.weight", "transformer.text_projection.weight"):
            named[key] = "text_projection.weight"
    return named


def text_tensors(state: Mapping[str, Any], *, unread_layers: int = 0) -> dict[str, Any]:
    """A text encoder's tensors under transformers' names, be they in its layout or in open_clip's.

    Nothing is copied: open_clip's packed matrix is seen as three, its projection turned. Its last `unread_layers` are
    left out, and with them the projection that would read them.
    """
    if "positional_embedding" not in state:
        return {new: state[old] for old, new in text_names(state).items()}
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("transformer.resblocks.")) - unread_layers
    found: dict[str, Any] = {}
    for key, tensor in state.items():
        if key.startswith("transformer.resblocks."):
            _, _, number, rest = key.split(".", 3)
            if int(number) < layers:
                found.update(_open_clip_layer(f"text_model.encoder.layers.{number}", rest, tensor))
        elif key == "text_projection" and unread_layers:
            continue
        elif key in OPEN_CLIP:
            found[OPEN_CLIP[key]] = tensor.t() if key == "text_projection" else tensor
        else:
            found.update(dict.fromkeys(renamed([key], OPEN_CLIP).values(), tensor))
    return found


def split_parts(keys: Iterable[str], family: str = "sd1") -> dict[str, list[str]]:
    """Checkpoint keys by part, prefixes cut off: {"unet": [...], "vae": [...], "text": [...], "text_2": [...]}."""
    prefixes = part_prefixes(family)
    parts: dict[str, list[str]] = {part: [] for part in prefixes}
    for key in keys:
        for part, prefix in prefixes.items():
            if key.startswith(prefix):
                parts[part].append(key[len(prefix) :])
    return parts


def part_prefixes(family: str) -> dict[str, str]:
    """Part -> its prefix in a family's checkpoints."""
    texts = {"text" if not number else f"text_{number + 1}": prefix for number, prefix in enumerate(row(family).text)}
    return {"unet": UNET, "vae": VAE, **texts}


def parts_of(found: Mapping[str, Any], family: str) -> dict[str, dict[str, Any]]:
    """A checkpoint's tensors by part, under diffusers' and transformers' names; nothing is copied. Other keys are left out."""
    return {
        part: modules_names(part, {name: found[f"{part_prefixes(family)[part]}{name}"] for name in names}, family)
        for part, names in split_parts(found, family).items()
    }


def modules_names(part: str, state: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The tensors of one part, prefix cut off, under diffusers' or transformers' names."""
    if part.startswith("text"):
        return text_tensors(state, unread_layers=row(family).unread_text_layers)
    names = unet_names(state) if part == "unet" else vae_names(state)
    return {new: state[old] for old, new in names.items()}


def renamed(keys: Iterable[str], prefixes: Mapping[str, str]) -> dict[str, str]:
    """Key -> key with its longest known beginning replaced; keys without a known beginning are left out."""
    named = {}
    for key in keys:
        words = key.split(".")
        for length in range(len(words) - 1, 0, -1):  # the longest known beginning wins
            if (new := prefixes.get(".".join(words[:length]))) is not None:
                named[key] = ".".join([new, *words[length:]])
                break
    return named


def _open_clip_layer(place: str, rest: str, tensor: Any) -> dict[str, Any]:
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{place}.self_attn.{name}.{kind}": part for name, part in zip(PACKED, tensor.chunk(3), strict=True)}
    return {f"{place}.{new}": tensor for new in renamed([rest], OPEN_CLIP_LAYER).values()}


def _inside(old: str, new: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{old}.{name}": f"{new}.{other}" for name, other in names.items()}


def _vae_resnet(old: str, new: str) -> dict[str, str]:
    names = ("norm1", "conv1", "norm2", "conv2")
    return _inside(old, new, {**{name: name for name in names}, **VAE_RESNET})
