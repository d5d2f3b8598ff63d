"""Keys in a network's file: layers named after sd-scripts (hosts read those), diffusers or PEFT, and the suffixes of kinds (no torch)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from lora_trainer.config.choices.networks import DORA, NETWORK_KINDS
from lora_trainer.messages import Message, say
from lora_trainer.network_tools.layers import CheckpointLayer, alias_names

NAMINGS = ("kohya", "diffusers", "peft")
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
DOTTED = {"unet.": "unet", "text_encoder.": "text", "text_encoder_2.": "text_2"}
"""Prefix of a path in diffusers' files -> the part."""
WRAPPED = "base_model.model."
"""PEFT's prefix of a path, with or without the part."""
BUNDLED = "bundle_emb."
"""Prefix of embeddings that a file brings along."""
SUFFIX_ALIASES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_magnitude_vector.weight": "dora_scale",
    "lora_magnitude_vector": "dora_scale",
}
"""Suffix in PEFT's and diffusers' files -> sd-scripts'."""
SHARED = frozenset({"alpha", DORA})
"""Suffixes of several kinds."""
UNSUPPORTED_KINDS: Mapping[str, frozenset[str]] = {
    "IA3": frozenset({"weight", "on_input"}),
    "GLoRA": frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"}),
    "BOFT": frozenset({"boft_blocks"}),
}
"""Other programs' kinds -> their suffixes: they are recognised, but their deltas cannot be computed."""
KINDS: Mapping[str, frozenset[str]] = {
    **{name: kind.suffixes - SHARED for name, kind in NETWORK_KINDS.items() if kind.needed},
    **UNSUPPORTED_KINDS,
}
"""Kind -> the suffixes that tell it from others."""
LONGEST_FIRST = tuple(sorted(SHARED.union(*KINDS.values()), key=len, reverse=True))
UNSUPPORTED_FILES: tuple[tuple[tuple[str, ...], Message], ...] = (
    (("lora_unet_double_blocks", "lora_unet_single_blocks", "transformer.single_transformer_blocks"), say("a network of a Flux model")),
    (("lora_unet_joint_blocks", "lora_te3_", "transformer.transformer_blocks"), say("a network of a Stable Diffusion 3 model")),
    (("lora_prior_",), say("a network of a Stable Cascade model")),
    (("diffusion_model.", "transformer.", "lora_transformer_"), say("a network of a model of another family")),
    (("oft_unet_", "oft_te"), say("an OFT network in sd-scripts' own names, which no WebUI reads")),
    (("control_model.", "lllite_", "controlnet_"), say("a ControlNet")),
    (("ip_adapter.", "image_proj."), say("an IP-Adapter")),
    (("motion_modules.",), say("an AnimateDiff motion module")),
)


def unsupported_file(keys: Iterable[str]) -> Message | None:
    """What a file with these keys is, where that is known and not a supported network."""
    keys = list(keys)
    return next((kind for prefixes, kind in UNSUPPORTED_FILES if any(key.startswith(prefixes) for key in keys)), None)


def kinds_of(suffixes: Collection[str]) -> list[str]:
    """The kinds that a layer's suffixes belong to; exactly one in a valid file."""
    return [kind for kind, own in KINDS.items() if any(suffix in own for suffix in suffixes)]


def namings_of(keys: Iterable[str]) -> set[str]:
    """The namings that keys follow; exactly one in a valid file."""
    namings = set()
    for key in keys:
        if key.startswith(KOHYA):
            namings.add("kohya")
        elif key.startswith((WRAPPED, *DOTTED)):
            namings.add("peft" if any(f".{suffix}" in key for suffix in ("lora_A", "lora_B", "lora_magnitude_vector")) else "diffusers")
    return namings


def split_key(key: str) -> tuple[str, str]:
    """(layer, suffix) of a key in any naming, the suffix in sd-scripts'; an unknown suffix is empty, or what follows the first dot."""
    for theirs, ours in SUFFIX_ALIASES.items():
        if key.endswith(f".{theirs}"):
            return key[: -len(theirs) - 1], ours
    if key.startswith(KOHYA):
        layer, _, suffix = key.partition(".")
        return layer, suffix
    suffix = next((suffix for suffix in LONGEST_FIRST if key.endswith(f".{suffix}")), "")
    return (key[: -len(suffix) - 1], suffix) if suffix else (key, "")


def layer_names(layers: Mapping[str, CheckpointLayer]) -> dict[str, str]:
    """Every name of a layer, in any naming -> its name in sd-scripts'."""
    names = dict(alias_names(layers))
    names |= {name: name for name in layers}
    for name, layer in layers.items():
        for path in paths_of(layer):
            names[path] = name
            names[f"{WRAPPED}{path}"] = name
            names[path.replace(".to_", ".processor.to_")] = name
        if layer.part == "unet":
            names[f"{WRAPPED}{layer.path}"] = name
    return names


def paths_of(layer: CheckpointLayer) -> tuple[str, ...]:
    """A layer's path prefixed by its part, as in diffusers' files; a text encoder's also without `text_model.`."""
    prefix = next(prefix for prefix, part in DOTTED.items() if part == layer.part)
    return (f"{prefix}{layer.path}", f"{prefix}{layer.path.removeprefix('text_model.')}")[: 1 if layer.part == "unet" else 2]


def rename_key(name: str, suffix: str, layer: CheckpointLayer, naming: str) -> str:
    """The key of a layer in another naming; `name` and `suffix` are sd-scripts'."""
    if naming == "kohya":
        return f"{name}.{suffix}"
    suffixes = {ours: theirs for theirs, ours in SUFFIX_ALIASES.items() if theirs.startswith(_suffix_prefixes(layer, naming))}
    return f"{paths_of(layer)[0]}.{suffixes.get(suffix, suffix)}"


def _suffix_prefixes(layer: CheckpointLayer, naming: str) -> tuple[str, ...]:
    if naming == "peft":
        return ("lora_A.", "lora_B.", "lora_magnitude_vector.")
    return ("lora.",) if layer.part == "unet" else ("lora_linear_layer.",)
