"""Which WebUI reads which kind of network, and which layers by which names, as data (no torch).

tests/host/test_network_hosts.py derives each row with the hosts' own loaders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from lora_trainer.messages import Message, say

HOSTS: Mapping[str, str] = {"a1111": "AUTOMATIC1111", "forge": "Forge", "reforge": "reForge", "neo": "Forge Neo"}
"""Host -> its label."""
ALL, PARTLY, NO = "all", "partly", "no"

_OUTPUT_AXIS = say("It computes the magnitude over outputs in another way than DoRA defines it: pictures differ from those in training.")
_LAST_NORM = say("AUTOMATIC1111 reads all norm layers but the U-Net's last one.")
_FORGE_OFT = say("Forge has no reader for OFT: the file would change nothing.")
_NEO_OFT = say("Forge Neo reads OFT without its rescaling, and takes its limit for a narrower one.")
_REFORGE_OFT = say("reForge reads OFT without its limit and its rescaling, and at other strengths than 1 it turns too far or too little.")

SUPPORT: Mapping[str, Mapping[str, tuple[str, Message | None]]] = {
    "lora": {},
    "locon": {},
    "loha": {},
    "lokr": {},
    "full": {},
    "norm": {"a1111": (PARTLY, _LAST_NORM)},
    "dora": {},
    "dora_out": {
        "a1111": (PARTLY, _OUTPUT_AXIS),
        "forge": (PARTLY, _OUTPUT_AXIS),
        "reforge": (PARTLY, _OUTPUT_AXIS),
        "neo": (PARTLY, _OUTPUT_AXIS),
    },
    "oft": {"forge": (NO, _FORGE_OFT), "reforge": (PARTLY, _REFORGE_OFT), "neo": (PARTLY, _NEO_OFT)},
}
"""Kind of a file -> host -> (how much of it the host reads, reason not all of it); a host that is missing reads all of it."""
UNTESTED = (PARTLY, say("This program does not train it, and it was not tested."))


_LDM = r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)"
_DIFFUSERS = r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding)"
_BLOCKS = r"(down_blocks_\d+|up_blocks_\d+|mid_block)_(attentions|resnets)_\d+_.+"
_ENDS = "conv_in|conv_out|time_embedding_linear_[12]"
_TEXT_LAYER = r"text_model_encoder_layers_\d+"
_TEXT_LINEAR = "(self_attn_[kqv]_proj|self_attn_out_proj|mlp_fc[12])"
_DOTTED_TEXT = r"text_model\.encoder\.layers\.\d+\.(self_attn\.([kqv]|out)_proj|mlp\.fc[12])"
_A1111_UNET = rf"lora_unet_({_LDM}_\d.*|{_ENDS}|{_BLOCKS}|down_blocks_\d+_downsamplers_0_conv"
_FORGE_UNET = (
    r"lora_unet_.+",
    r"lycoris_.+",
    rf"diffusion_model\.{_LDM}\..+",
    rf"(unet\.)?{_DIFFUSERS}(\.(?!to_)[a-z0-9_]+)*",
    rf"(unet\.)?{_DIFFUSERS}(\.[a-z0-9_]+)+\.processor\.to_(q|k|v|out)",
)
_FORGE_TEXT = (rf"lora_te1?_{_TEXT_LAYER}_{_TEXT_LINEAR}", rf"text_encoder\.{_DOTTED_TEXT}")
_FORGE_XL = (rf"lora_te2_({_TEXT_LAYER}_{_TEXT_LINEAR}|text_projection)", rf"text_encoder_2\.{_DOTTED_TEXT}")
_NEO_XL = (rf"lora_te2_{_TEXT_LAYER}_{_TEXT_LINEAR}", rf"text_encoder_2\.{_DOTTED_TEXT}")
_REFORGE_TEXT = (r"text_encoders\.clip_[lgh]\.transformer\..+",)
LAYERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "a1111": {
        "sd1": (
            rf"{_A1111_UNET}|up_blocks_\d+_upsamplers_0_conv)",
            rf"lora_te_{_TEXT_LAYER}_.+",
            r"lora_te1_text_model_.+",
        ),
        "sd2": (rf"{_A1111_UNET}|up_blocks_\d+_upsamplers_0_conv)", rf"lora_te_{_TEXT_LAYER}_{_TEXT_LINEAR}"),
        "sdxl": (
            rf"{_A1111_UNET}|up_blocks_[1-9]_upsamplers_0_conv)",
            r"lora_te1_text_model_.+",
            rf"lora_te2_{_TEXT_LAYER}_{_TEXT_LINEAR}",
        ),
    },
    "forge": {
        "sd1": (*_FORGE_UNET, *_FORGE_TEXT),
        "sd2": (*_FORGE_UNET, *_FORGE_TEXT),
        "sdxl": (*_FORGE_UNET, *_FORGE_TEXT, *_FORGE_XL),
    },
    "reforge": {
        "sd1": (*_FORGE_UNET, *_FORGE_TEXT, *_REFORGE_TEXT),
        "sd2": (*_FORGE_UNET, *_FORGE_TEXT, *_REFORGE_TEXT),
        "sdxl": (*_FORGE_UNET, *_FORGE_TEXT, *_FORGE_XL, *_REFORGE_TEXT),
    },
    "neo": {
        "sd1": (*_FORGE_UNET, *_FORGE_TEXT, *_REFORGE_TEXT),
        "sdxl": (*_FORGE_UNET, *_FORGE_TEXT, *_NEO_XL, *_REFORGE_TEXT),
    },
}
"""Host -> family -> patterns of the names, as a file holds them, by which it finds a layer that the family has."""
MOST_UNREAD_KEYS = {"forge": 12}
"""Host -> how many keys of a file it may leave unread: with more it refuses the whole file."""
LARGEST_UNREAD_SHARE = {"neo": 0.5}
"""Host -> which share of a file's keys it may leave unread."""
SEVERITY = (ALL, PARTLY, NO)


@attrs.frozen
class LayerInFile:
    """A layer's name as the file has it, how many keys belong to it, and whether the family has such a layer."""

    name: str
    keys: int
    is_known: bool = True


def layer_support(layers: Iterable[LayerInFile], host: str, family: str) -> tuple[str, Message | None]:
    """("all" | "partly" | "no", reason): how many of a file's layers a host finds by their names."""
    if family not in LAYERS[host]:
        return NO, say("It does not load models of this family.")
    layers = list(layers)
    unread = [layer for layer in layers if not layer.is_known or not _is_read(layer.name, host, family)]
    if not unread:
        return ALL, None
    if len(unread) == len(layers):
        return NO, say("Its layers have other names than WebUIs read: convert it with --to kohya.")
    keys = sum(layer.keys for layer in unread)
    values = {"count": len(unread), "total": len(layers), "name": unread[0].name}
    if keys > MOST_UNREAD_KEYS.get(host, keys):
        return NO, say(
            "It refuses a file with more than {most} keys that it does not know: {name} and others.", most=MOST_UNREAD_KEYS[host], **values
        )
    if keys > LARGEST_UNREAD_SHARE.get(host, 1.0) * sum(layer.keys for layer in layers):
        return NO, say("It refuses a file of which it does not know more than half of the keys: {name} and others.", **values)
    return PARTLY, say("It leaves out {count} of {total} layers, the first is {name}.", **values)


def _is_read(name: str, host: str, family: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in LAYERS[host][family])


def host_support(kind: str, host: str) -> tuple[str, Message | None]:
    """("all" | "partly" | "no", reason) of a kind of file in a host."""
    return SUPPORT[kind].get(host, (ALL, None)) if kind in SUPPORT else UNTESTED


def file_kind(network_type: str, dora_axis: str = "in") -> str:
    """The kind of file that a `network.type` saves."""
    if network_type == "dora" and dora_axis == "out":
        return "dora_out"
    return {"dylora": "lora", "rslora": "lora"}.get(network_type, network_type)


def support_warning(network_type: str, host: str, dora_axis: str = "in") -> Message | None:
    """The warning before a network of this type is trained in this host; None where the host reads all of it."""
    if host not in HOSTS:
        return None
    support, reason = host_support(file_kind(network_type, dora_axis), host)
    if support == ALL or reason is None:
        return None
    if support == NO:
        return say("{host} does not read this type of network: {why}", host=HOSTS[host], why=reason)
    return say("{host} reads this type of network only in part: {why}", host=HOSTS[host], why=reason)
