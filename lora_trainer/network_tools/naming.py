"""Three ways to name the layers of a network in a file: sd-scripts' (hosts read it), diffusers' and PEFT's (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lora_trainer.messages import Message, say
from lora_trainer.network_tools.key_suffixes import KNOWN, OTHER_WORDS
from lora_trainer.network_tools.layers import Layer, other_names

NAMINGS = ("kohya", "diffusers", "peft")
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
DOTTED = {"unet.": "unet", "text_encoder.": "text", "text_encoder_2.": "text_2"}
"""How paths begin in diffusers' files -> the part."""
WRAPPED = "base_model.model."
"""What PEFT puts in front of a path, with or without the part."""
BUNDLED = "bundle_emb."
STRANGERS: tuple[tuple[tuple[str, ...], Message], ...] = (
    (("lora_unet_double_blocks", "lora_unet_single_blocks", "transformer.single_transformer_blocks"), say("a network of a Flux model")),
    (("lora_unet_joint_blocks", "lora_te3_", "transformer.transformer_blocks"), say("a network of a Stable Diffusion 3 model")),
    (("lora_prior_",), say("a network of a Stable Cascade model")),
    (("diffusion_model.", "transformer.", "lora_transformer_"), say("a network of a model of another family")),
    (("oft_unet_", "oft_te"), say("an OFT network in sd-scripts' own names, which no WebUI reads")),
    (("control_model.", "lllite_", "controlnet_"), say("a ControlNet")),
    (("ip_adapter.", "image_proj."), say("an IP-Adapter")),
    (("motion_modules.",), say("an AnimateDiff motion module")),
)


def stranger(keys: Iterable[str]) -> Message | None:
    """What a file of these keys is when it is known and no network that is read here."""
    keys = list(keys)
    return next((kind for beginnings, kind in STRANGERS if any(key.startswith(beginnings) for key in keys)), None)


def namings_of(keys: Iterable[str]) -> set[str]:
    """The ways in which keys are named: one where all is well."""
    found = set()
    for key in keys:
        if key.startswith(KOHYA):
            found.add("kohya")
        elif key.startswith((WRAPPED, *DOTTED)):
            found.add("peft" if any(f".{word}" in key for word in ("lora_A", "lora_B", "lora_magnitude_vector")) else "diffusers")
    return found


def split(key: str) -> tuple[str, str]:
    """(layer, suffix) of a key in any naming; the suffix in sd-scripts' words. Where it is not known, what stands behind the first dot."""
    for theirs, ours in OTHER_WORDS.items():
        if key.endswith(f".{theirs}"):
            return key[: -len(theirs) - 1], ours
    if key.startswith(KOHYA):
        layer, _, suffix = key.partition(".")
        return layer, suffix
    suffix = next((known for known in KNOWN if key.endswith(f".{known}")), "")
    return (key[: -len(suffix) - 1], suffix) if suffix else (key, "")


def places_of(layers: Mapping[str, Layer]) -> dict[str, str]:
    """Every way to name a layer -> its name in sd-scripts' words."""
    found = dict(other_names(layers))
    found |= {name: name for name in layers}
    for name, layer in layers.items():
        for path in paths_of(layer):
            found[path] = name
            found[f"{WRAPPED}{path}"] = name
            found[path.replace(".to_", ".processor.to_")] = name
        if layer.part == "unet":
            found[f"{WRAPPED}{layer.path}"] = name
    return found


def paths_of(layer: Layer) -> tuple[str, ...]:
    """A layer's path with its part in front, as diffusers' files have it; a text encoder's also without `text_model.`."""
    beginning = next(start for start, part in DOTTED.items() if part == layer.part)
    return (f"{beginning}{layer.path}", f"{beginning}{layer.path.removeprefix('text_model.')}")[: 1 if layer.part == "unet" else 2]


def renamed(name: str, suffix: str, layer: Layer, naming: str) -> str:
    """A key in another naming. `name` and `suffix` are sd-scripts'."""
    if naming == "kohya":
        return f"{name}.{suffix}"
    words = {ours: theirs for theirs, ours in OTHER_WORDS.items() if theirs.startswith(_words(layer, naming))}
    return f"{paths_of(layer)[0]}.{words.get(suffix, suffix)}"


def _words(layer: Layer, naming: str) -> tuple[str, ...]:
    if naming == "peft":
        return ("lora_A.", "lora_B.", "lora_magnitude_vector.")
    return ("lora.",) if layer.part == "unet" else ("lora_linear_layer.",)
