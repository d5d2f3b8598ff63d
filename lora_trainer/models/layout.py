"""Key names in checkpoints (LDM, SGM, open_clip) and in diffusers' and transformers' modules.

`ROWS` has one row per family. The `..._prefixes` functions map prefixes of LDM keys to prefixes of diffusers keys; `invert` gives the
way back. No torch: tensors are passed through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


@attrs.frozen
class FamilyRow:
    """One family's properties in files: prefixes of its text encoders in checkpoints, and metadata of its LoRA files."""

    family: str
    label: str
    text: tuple[str, ...]
    """Prefixes of its text encoders, in the order of their states."""
    native_size: int
    latent_channels: int = 4
    lora_text: tuple[str, ...] = ("lora_te",)
    lora_unet: str = "diffusers"
    """Whose module names its LoRA files use: "diffusers" or "ldm"."""
    unused_text_layers: int = 0
    """Last layers of an open_clip encoder that are never used: the module is built without them."""
    version: str = "sd_v1"
    """`ss_base_model_version`; "_v" is added for v-prediction if `marks_v`."""
    marks_v: bool = True
    architecture: str = "stable-diffusion-v1"
    architecture_v: str = ""
    """`modelspec.architecture` of v-prediction models, if different."""
    v2: bool = False
    """sd-scripts' flag `v2`."""
    native_size_v: int = 0
    """Native size of v-prediction models, if different."""
    unet_heads: int = 0
    """Attention heads at every level; 0: one for each 64 channels."""
    has_label: bool = False
    """Whether the U-Net has a label embedding (SDXL's added conditioning)."""

    def base_version(self, prediction: str) -> str:
        """`ss_base_model_version` of a LoRA, by which WebUIs filter."""
        return f"{self.version}_v" if prediction == "v" and self.marks_v else self.version

    def architecture_for(self, prediction: str) -> str:
        """`modelspec.architecture` of a LoRA."""
        return f"{self.architecture_v if prediction == 'v' and self.architecture_v else self.architecture}/lora"

    def size_for(self, prediction: str) -> int:
        """The native size in pixels of models with this prediction."""
        return self.native_size_v if prediction == "v" and self.native_size_v else self.native_size


ROWS = (
    FamilyRow("sd1", "Stable Diffusion 1", (TEXT,), 512, unet_heads=8),
    FamilyRow(
        "sd2",
        "Stable Diffusion 2",
        ("cond_stage_model.model.",),
        512,
        native_size_v=768,
        unused_text_layers=1,
        version="sd_v2",
        architecture="stable-diffusion-v2-512",
        architecture_v="stable-diffusion-v2-768-v",
        v2=True,
    ),
    FamilyRow(
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

LATENT_CHANNELS = frozenset(row.latent_channels for row in ROWS)
"""Of all families that can be trained."""

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
"""diffusers' names before 0.12."""
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
"""Rows of open_clip's matrix `attn.in_proj_weight`, from top to bottom."""
RESNETS = 2
SD1_LEVELS = (True, True, True, False)
"""Whether each level of the U-Net has cross-attention, from the highest resolution to the lowest."""


def is_open_clip(prefix: str) -> bool:
    """Whether a text encoder with this prefix is in open_clip's layout."""
    return prefix.endswith(".model.")


def row(family: str) -> FamilyRow:
    """The row of a family."""
    return next(row for row in ROWS if row.family == family)


def family_of(keys: Iterable[str]) -> FamilyRow | None:
    """The family whose text encoders the keys contain, else None."""
    keys = list(keys)
    matches = [row for row in ROWS if all(any(key.startswith(prefix) for key in keys) for prefix in row.text)]
    return max(matches, key=lambda known: len(known.text), default=None)


def attention_levels(keys: Iterable[str]) -> tuple[bool, ...]:
    """For each level of an LDM U-Net, whether it has cross-attention."""
    keys = set(keys)
    inner = {int(key.split(".")[1]) for key in keys if key.startswith("input_blocks.") and key.split(".")[2] == "1"}
    count = 1 + len({key.split(".")[1] for key in keys if key.startswith("input_blocks.") and ".0.op." in key})
    return tuple(level * (RESNETS + 1) + 1 in inner for level in range(count)) if keys else SD1_LEVELS


def unet_names(keys: Iterable[str]) -> dict[str, str]:
    """LDM key -> diffusers key of the U-Net; `keys` without prefix. Unknown keys are left out."""
    keys = list(keys)
    return rename_keys(keys, unet_prefixes(attention_levels(keys)))


def unet_prefixes(attends: Sequence[bool] = SD1_LEVELS) -> dict[str, str]:
    """LDM prefix -> diffusers prefix of a U-Net; `attends`: whether each level has cross-attention."""
    prefixes = dict(UNET_ENDS)
    for place, mid in (("0", "0"), ("2", "1")):
        prefixes.update(_join_prefixes(f"middle_block.{place}", f"mid_block.resnets.{mid}", RESNET))
    for level, attending in enumerate(attends):
        for block in range(RESNETS):
            number = level * (RESNETS + 1) + block + 1
            prefixes.update(_join_prefixes(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{block}", RESNET))
            if attending:
                prefixes[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{block}"
        if level + 1 < len(attends):
            prefixes[f"input_blocks.{(level + 1) * (RESNETS + 1)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    for level, attending in enumerate(reversed(attends)):
        for block in range(RESNETS + 1):
            number = level * (RESNETS + 1) + block
            prefixes.update(_join_prefixes(f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{block}", RESNET))
            if attending:
                prefixes[f"output_blocks.{number}.1"] = f"up_blocks.{level}.attentions.{block}"
        if level + 1 < len(attends):
            position = 2 if attending else 1
            prefixes[f"output_blocks.{level * (RESNETS + 1) + RESNETS}.{position}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return prefixes


def vae_names(keys: Iterable[str]) -> dict[str, str]:
    """LDM key -> diffusers key of the VAE; `keys` without prefix."""
    keys = list(keys)
    levels = 1 + max((int(key.split(".")[2]) for key in keys if key.startswith("encoder.down.")), default=3)
    return rename_keys(keys, vae_prefixes(levels))


def vae_prefixes(levels: int) -> dict[str, str]:
    """LDM prefix -> diffusers prefix of a VAE with this number of levels."""
    prefixes = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side in ("encoder", "decoder"):
        prefixes.update(
            {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out", f"{side}.norm_out": f"{side}.conv_norm_out"}
        )
        for number, block in enumerate(("block_1", "block_2")):
            prefixes.update(_vae_resnet(f"{side}.mid.{block}", f"{side}.mid_block.resnets.{number}"))
        prefixes.update(_join_prefixes(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", VAE_ATTENTION))
    for level in range(levels):
        for place in range(8):
            prefixes.update(_vae_resnet(f"encoder.down.{level}.block.{place}", f"encoder.down_blocks.{level}.resnets.{place}"))
            prefixes.update(_vae_resnet(f"decoder.up.{level}.block.{place}", f"decoder.up_blocks.{levels - 1 - level}.resnets.{place}"))
        prefixes[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        prefixes[f"decoder.up.{level}.upsample.conv"] = f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0.conv"
    return prefixes


def invert(prefixes: Mapping[str, str]) -> dict[str, str]:
    """The inverse table: diffusers prefix -> LDM prefix."""
    return {new: old for old, new in prefixes.items()}


def text_names(keys: Iterable[str]) -> dict[str, str]:
    """LDM key -> transformers key of a CLIP text encoder in transformers' layout; very old files lack `text_model.`."""
    names = {}
    for key in keys:
        if key.endswith("position_ids"):
            continue
        if key.startswith(("text_model.", "embeddings.", "encoder.", "final_layer_norm.")):
            names[key] = key if key.startswith("text_model.") else f"text_model.{key}"
        elif key in ("text_projection.weight", "transformer.text_projection.weight"):
            names[key] = "text_projection.weight"
    return names


def text_tensors(state: Mapping[str, Any], *, unused_layers: int = 0) -> dict[str, Any]:
    """A text encoder's tensors under transformers' names, from transformers' or open_clip's layout.

    Nothing is copied: views split open_clip's packed matrix and transpose its projection. With `unused_layers`, the last layers and
    the projection are left out.
    """
    if "positional_embedding" not in state:
        return {new: state[old] for old, new in text_names(state).items()}
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("transformer.resblocks.")) - unused_layers
    tensors: dict[str, Any] = {}
    for key, tensor in state.items():
        if key.startswith("transformer.resblocks."):
            _, _, number, rest = key.split(".", 3)
            if int(number) < layers:
                tensors.update(_open_clip_layer(f"text_model.encoder.layers.{number}", rest, tensor))
        elif key == "text_projection" and unused_layers:
            continue
        elif key in OPEN_CLIP:
            tensors[OPEN_CLIP[key]] = tensor.t() if key == "text_projection" else tensor
        else:
            tensors.update(dict.fromkeys(rename_keys([key], OPEN_CLIP).values(), tensor))
    return tensors


def split_keys(keys: Iterable[str], family: str = "sd1") -> dict[str, list[str]]:
    """Checkpoint keys by part, without prefixes: {"unet": [...], "vae": [...], "text": [...], "text_2": [...]}."""
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


def parts_of_checkpoint(tensors: Mapping[str, Any], family: str) -> dict[str, dict[str, Any]]:
    """A checkpoint's tensors by part under diffusers' and transformers' names, without copies. Other keys are left out."""
    return {
        part: rename_part(part, {name: tensors[f"{part_prefixes(family)[part]}{name}"] for name in names}, family)
        for part, names in split_keys(tensors, family).items()
    }


def rename_part(part: str, state: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The tensors of one part (keys without prefix) under diffusers' or transformers' names."""
    if part.startswith("text"):
        return text_tensors(state, unused_layers=row(family).unused_text_layers)
    names = unet_names(state) if part == "unet" else vae_names(state)
    return {new: state[old] for old, new in names.items()}


def rename_keys(keys: Iterable[str], prefixes: Mapping[str, str]) -> dict[str, str]:
    """Key -> key with its longest known prefix replaced; keys without one are left out."""
    renamed = {}
    for key in keys:
        parts = key.split(".")
        for length in range(len(parts) - 1, 0, -1):  # the longest prefix wins
            if (new := prefixes.get(".".join(parts[:length]))) is not None:
                renamed[key] = ".".join([new, *parts[length:]])
                break
    return renamed


def _open_clip_layer(prefix: str, rest: str, tensor: Any) -> dict[str, Any]:
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{prefix}.self_attn.{name}.{kind}": part for name, part in zip(PACKED, tensor.chunk(3), strict=True)}
    return {f"{prefix}.{new}": tensor for new in rename_keys([rest], OPEN_CLIP_LAYER).values()}


def _join_prefixes(old: str, new: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{old}.{name}": f"{new}.{other}" for name, other in names.items()}


def _vae_resnet(old: str, new: str) -> dict[str, str]:
    names = ("norm1", "conv1", "norm2", "conv2")
    return _join_prefixes(old, new, {**{name: name for name in names}, **VAE_RESNET})
