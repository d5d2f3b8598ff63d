"""The one table between the names in a checkpoint (LDM) and the names in diffusers' modules, for Stable Diffusion 1.x.

Each function takes the LDM names of one part and gives LDM name -> diffusers name; turned round it is the way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

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
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.1": "mid_block.attentions.0",
}
VAE_RESNET = {"nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
LEVELS, RESNETS = 4, 2


def unet_names(keys: Iterable[str]) -> dict[str, str]:
    """LDM key -> diffusers key of the U-Net; `keys` without the prefix. Keys that belong nowhere are left out."""
    return renamed(keys, unet_prefixes())


def unet_prefixes() -> dict[str, str]:
    """The U-Net's table: beginning of an LDM key -> beginning of a diffusers key."""
    prefixes = dict(UNET_ENDS)
    for place, mid in (("0", "0"), ("2", "1")):
        prefixes.update(_inside(f"middle_block.{place}", f"mid_block.resnets.{mid}", RESNET))
    for level in range(LEVELS):
        for block in range(RESNETS):
            number = level * (RESNETS + 1) + block + 1
            prefixes.update(_inside(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{block}", RESNET))
            prefixes[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{block}"
        prefixes[f"input_blocks.{(level + 1) * (RESNETS + 1)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for block in range(RESNETS + 1):
            number = level * (RESNETS + 1) + block
            prefixes.update(_inside(f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{block}", RESNET))
            for inner in ("1", "2"):
                prefixes[f"output_blocks.{number}.{inner}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
            prefixes[f"output_blocks.{number}.1"] = f"up_blocks.{level}.attentions.{block}"
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
        for block in range(8):
            prefixes.update(_vae_resnet(f"encoder.down.{level}.block.{block}", f"encoder.down_blocks.{level}.resnets.{block}"))
            prefixes.update(_vae_resnet(f"decoder.up.{level}.block.{block}", f"decoder.up_blocks.{levels - 1 - level}.resnets.{block}"))
        prefixes[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        prefixes[f"decoder.up.{level}.upsample.conv"] = f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0.conv"
    return prefixes


def turned_round(prefixes: Mapping[str, str]) -> dict[str, str]:
    """Beginning of a diffusers key -> beginning of an LDM key. Where a level has no attention its upsampler moves up by one."""
    turned = {new: old for old, new in prefixes.items()}
    if "up_blocks.0.upsamplers.0.conv" in turned:
        turned["up_blocks.0.upsamplers.0.conv"] = "output_blocks.2.1.conv"
    return turned


def text_names(keys: Iterable[str]) -> dict[str, str]:
    """LDM key -> transformers key of the CLIP text encoder; very old files lack `text_model.`."""
    named = {}
    for key in keys:
        if key.endswith("position_ids"):
            continue
        if key.startswith(("text_model.", "embeddings.", "encoder.", "final_layer_norm.")):
            named[key] = key if key.startswith("text_model.") else f"text_model.{key}"
    return named


def split_parts(keys: Iterable[str]) -> dict[str, list[str]]:
    """Checkpoint keys by part, prefixes cut off: {"unet": [...], "vae": [...], "text": [...]}."""
    parts: dict[str, list[str]] = {"unet": [], "vae": [], "text": []}
    for key in keys:
        for part, prefix in (("unet", UNET), ("vae", VAE), ("text", TEXT)):
            if key.startswith(prefix):
                parts[part].append(key[len(prefix) :])
    return parts


def _inside(old: str, new: str, table: Mapping[str, str]) -> dict[str, str]:
    return {f"{old}.{inner}": f"{new}.{renamed}" for inner, renamed in table.items()}


def _vae_resnet(old: str, new: str) -> dict[str, str]:
    names = ("norm1", "conv1", "norm2", "conv2")
    return _inside(old, new, {**{name: name for name in names}, **VAE_RESNET})


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
