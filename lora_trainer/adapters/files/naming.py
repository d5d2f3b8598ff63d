"""Keys in a network's file: the one table of names that programs have used since 2022, read key by key (no torch).

A key is a prefix, the path of a layer, and a suffix: `lora_unet_` + `mid_block_attentions_0_proj_in` + `.lora_down.weight`. `PREFIXES` and
`SUFFIXES` hold what programs write for the first and the last; the path in the middle is diffusers' or the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache

import attrs

from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, released_layers
from lora_trainer.config.choices.networks import DORA, NETWORK_KINDS
from lora_trainer.messages import Message, say
from lora_trainer.models import layout

NAMINGS = ("kohya", "diffusers", "peft")
"""Those that a file can be written in."""
UNET, TEXT, TEXT_2 = "unet", "text", "text_2"


@attrs.frozen
class Prefix:
    """What a key may begin with: the parts whose layers follow it (the first that has the layer counts), the naming, and who writes it."""

    text: str
    parts: tuple[str, ...]
    naming: str
    programs: str


PREFIXES = (
    Prefix(
        "lora_unet_", (UNET,), "kohya", "sd-scripts 2022-, LyCORIS 2023-, OneTrainer 2023-, ai-toolkit 2023-, diffusers' kohya export 2023-"
    ),
    Prefix("lora_te_", (TEXT,), "kohya", "sd-scripts 2022-, LyCORIS 2023-, OneTrainer 2023-"),
    Prefix("lora_te1_", (TEXT,), "kohya", "sd-scripts for SDXL 2023-, OneTrainer 2023-, diffusers' kohya export 2023-"),
    Prefix("lora_te2_", (TEXT_2,), "kohya", "sd-scripts for SDXL 2023-, OneTrainer 2023-, diffusers' kohya export 2023-"),
    Prefix("lycoris_", (UNET, TEXT, TEXT_2), "lycoris", "LyCORIS' wrapper 2023-, SimpleTuner 2024-"),
    Prefix("unet.", (UNET,), "diffusers", "diffusers 2023-, PEFT in diffusers 2023-, OneTrainer (OMI) 2025-"),
    Prefix("text_encoder.", (TEXT,), "diffusers", "diffusers 2023-"),
    Prefix("text_encoder_2.", (TEXT_2,), "diffusers", "diffusers for SDXL 2023-"),
    Prefix("lora_unet.", (UNET,), "onetrainer", "OneTrainer 2025-"),
    Prefix("lora_te.", (TEXT,), "onetrainer", "OneTrainer 2025-"),
    Prefix("lora_te1.", (TEXT,), "onetrainer", "OneTrainer 2025-"),
    Prefix("lora_te2.", (TEXT_2,), "onetrainer", "OneTrainer 2025-"),
    Prefix("clip_l.", (TEXT,), "onetrainer", "OneTrainer (OMI) 2025-"),
    Prefix("clip_g.", (TEXT_2,), "onetrainer", "OneTrainer (OMI) 2025-"),
    Prefix("lora_clip_l.", (TEXT,), "onetrainer", "OneTrainer (OMI, first version) 2025"),
    Prefix("lora_clip_g.", (TEXT_2,), "onetrainer", "OneTrainer (OMI, first version) 2025"),
    Prefix("diffusion_model.", (UNET,), "comfyui", "ComfyUI 2024-"),
    Prefix("model.diffusion_model.", (UNET,), "comfyui", "scripts after the checkpoint's own names 2023-"),
    Prefix("text_encoders.clip_l.transformer.", (TEXT,), "comfyui", "ComfyUI 2024-"),
    Prefix("text_encoders.clip_g.transformer.", (TEXT_2,), "comfyui", "ComfyUI 2024-"),
    Prefix("text_encoders.clip_h.transformer.", (TEXT,), "comfyui", "ComfyUI for Stable Diffusion 2 2024-"),
    Prefix("base_model.model.unet.", (UNET,), "peft", "PEFT on a whole pipeline 2023-"),
    Prefix("base_model.model.text_encoder.", (TEXT,), "peft", "PEFT on a whole pipeline 2023-"),
    Prefix("base_model.model.text_encoder_2.", (TEXT_2,), "peft", "PEFT on a whole pipeline 2023-"),
    Prefix("base_model.model.", (UNET, TEXT, TEXT_2), "peft", "PEFT on one model 2023-"),
    Prefix("", (UNET, TEXT, TEXT_2), "diffusers", "diffusers' attention processors 2023, PEFT without its wrapper 2023-"),
)
"""The rows in which a key is looked up, the longest prefix first."""
LONGEST_PREFIX_FIRST = tuple(sorted(PREFIXES, key=lambda row: -len(row.text)))
BARE_ROOTS = ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding", "text_model", "encoder")
"""First name of a path that stands without any prefix."""
BUNDLED = "bundle_emb."
"""Prefix of embeddings that a file brings along."""

PEFT_MAGNITUDE = "lora_magnitude_vector"
PEFT_SUFFIXES = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", PEFT_MAGNITUDE: DORA}
"""PEFT's word -> sd-scripts' suffix. The adapter's name may follow it, and `.weight`."""
SUFFIXES = {
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
}
"""Suffix in diffusers' files (the U-Net's and the text encoder's words of 2023) -> sd-scripts'."""
PROCESSOR_SUFFIXES = {"_lora.down.weight": "lora_down.weight", "_lora.up.weight": "lora_up.weight"}
"""End of a key of diffusers' attention processors of 2023: `attn1.processor.to_q_lora.down.weight` -> sd-scripts' suffix."""
PROCESSOR_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Their names of a text encoder's layers -> transformers'."""
SHARED = frozenset({"alpha", DORA})
"""Suffixes of several kinds."""
SCALARS = frozenset({"alpha", "on_input"})
"""Suffixes of single numbers, which may be of any format."""
UNSUPPORTED_KINDS: Mapping[str, frozenset[str]] = {
    "IA3": frozenset({"weight", "on_input"}),
    "GLoRA": frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"}),
    "BOFT": frozenset({"boft_blocks"}),
    "OFTv2": frozenset({"oft_R.weight", "oft_r"}),
}
"""Other programs' kinds -> their suffixes: they are recognised, but their deltas cannot be computed."""
KINDS: Mapping[str, frozenset[str]] = {
    **{name: kind.suffixes - SHARED for name, kind in NETWORK_KINDS.items() if kind.needed},
    **UNSUPPORTED_KINDS,
}
"""Kind -> the suffixes that tell it from others."""
LONGEST_FIRST = tuple(sorted(SHARED.union(*KINDS.values()), key=len, reverse=True))
UNSUPPORTED_FILES: tuple[tuple[tuple[str, ...], Message], ...] = (
    (
        (
            *("lora_unet_double_blocks", "lora_unet_single_blocks", "transformer.single_transformer_blocks"),
            *("diffusion_model.double_blocks", "diffusion_model.single_blocks"),
        ),
        say("a network of a Flux model"),
    ),
    (
        ("lora_unet_joint_blocks", "lora_te3_", "transformer.transformer_blocks", "diffusion_model.joint_blocks"),
        say("a network of a Stable Diffusion 3 model"),
    ),
    (("lora_prior_",), say("a network of a Stable Cascade model")),
    (("transformer.", "lora_transformer_"), say("a network of a model of another family")),
    (("oft_unet_", "oft_te"), say("an OFT network in sd-scripts' own names, which no WebUI reads")),
    (
        ("unet:", "text_encoder:"),
        say("a LoRA of cloneofsimo's lora (2022 and 2023), whose layers have numbers instead of names"),
    ),
    (("control_model.", "lllite_", "controlnet_"), say("a ControlNet")),
    (("ip_adapter.", "image_proj."), say("an IP-Adapter")),
    (("motion_modules.",), say("an AnimateDiff motion module")),
)
COMFYUI = "diffusion_model."
LDM_ROOTS = ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out")
"""First names of a Stable Diffusion U-Net's paths in a checkpoint."""


@attrs.frozen
class ParsedKey:
    """A key taken apart. `path`: the layer's, with "_" for "."; `suffix`: sd-scripts', or the file's own where it is unknown."""

    key: str
    prefix: Prefix
    path: str
    suffix: str
    naming: str
    adapter: str = ""
    """PEFT's name of the adapter, which some files hold."""


def parse_key(key: str) -> ParsedKey | None:
    """A network's key in any naming, taken apart; None for a key that no program's naming has."""
    layer, suffix, adapter = _split_suffix(key)
    prefix = next((row for row in LONGEST_PREFIX_FIRST if layer.startswith(row.text)), None)
    if prefix is None or (not prefix.text and layer.split(".")[0] not in BARE_ROOTS):
        return None
    if not prefix.text.endswith("_") and (not suffix or suffix in UNSUPPORTED_KINDS["IA3"]):
        return None  # a model's own weight
    path = layer.removeprefix(prefix.text)
    if prefix.text.endswith("_"):
        path, _, rest = path.partition(".")  # sd-scripts' names have no dots
        suffix = f"{rest}.{suffix}".strip(".") if rest else suffix
    return ParsedKey(key, prefix, _plain_path(path, prefix.parts), suffix, _naming_of_key(key, prefix, suffix), adapter)


def _naming_of_key(key: str, prefix: Prefix, suffix: str) -> str:
    if prefix.naming != "diffusers":
        return prefix.naming
    if any(key.endswith(f".{word}") or f".{word}." in key for word in PEFT_SUFFIXES):
        return "peft"
    return "onetrainer" if prefix.text and suffix not in SHARED and key.endswith(f".{suffix}") else "diffusers"


def name_in_file(key: str, suffix: str) -> str:
    """The layer's name as a key has it, without the suffix that stands for sd-scripts' `suffix`."""
    peft = [f".{word}.weight" for word, ours in PEFT_SUFFIXES.items() if ours == suffix]
    diffusers = [f".{theirs}" for theirs, ours in SUFFIXES.items() if ours == suffix]
    processor = [theirs for theirs, ours in PROCESSOR_SUFFIXES.items() if ours == suffix]
    for ending in (f".{suffix}", *peft, *diffusers, *processor):
        if key.endswith(ending):
            return key[: -len(ending)]
    return key


def _split_suffix(key: str) -> tuple[str, str, str]:
    """(layer, sd-scripts' suffix, PEFT's adapter name) of a key; an unknown suffix is what follows the last ".lora", or ""."""
    words = key.split(".")
    tail = words[:-1] if words[-1] == "weight" else words
    if len(tail) > 1 and tail[-1] in PEFT_SUFFIXES:
        return ".".join(tail[:-1]), PEFT_SUFFIXES[tail[-1]], ""
    if len(tail) > 2 and tail[-2] in PEFT_SUFFIXES and tail[-1] != "bias":
        return ".".join(tail[:-2]), PEFT_SUFFIXES[tail[-2]], tail[-1]
    for theirs, ours in SUFFIXES.items():
        if key.endswith(f".{theirs}"):
            return key[: -len(theirs) - 1], ours, ""
    for theirs, ours in PROCESSOR_SUFFIXES.items():
        if key.endswith(theirs):
            return key[: -len(theirs)], ours, ""
    suffix = next((suffix for suffix in LONGEST_FIRST if key.endswith(f".{suffix}")), "")
    if suffix:
        return key[: -len(suffix) - 1], suffix, ""
    if len(words) > 2 and words[-2] in LONGEST_FIRST:  # PEFT's LoHa and LoKr: hada_w1_a.default
        return ".".join(words[:-2]), words[-2], words[-1]
    layer, dot, rest = key.rpartition(".lora")
    return (layer, f"lora{rest}", "") if dot else (key, "", "")


def _plain_path(path: str, parts: tuple[str, ...]) -> str:
    """The path with "_" for ".", without `.processor`, and with transformers' names of the layers of a text encoder."""
    path = path.replace(".processor.", ".")
    head, _, last = path.rpartition(".")
    if last in PROCESSOR_LAYERS and head.endswith(".self_attn"):
        path = f"{head}.{PROCESSOR_LAYERS[last]}"
    elif last == "to_out" and parts[0] == UNET:
        path = f"{path}.0"
    return path.replace(".", "_")


@lru_cache(maxsize=4)
def layer_names(family: str) -> Mapping[tuple[str, str], str]:
    """(part, path with "_" for ".") of every layer of a family, by diffusers' and by the checkpoint's names -> its name in sd-scripts'."""
    names = {}
    for name, layer in released_layers(family).items():
        for path in _known_paths(layer):
            names[layer.part, path.replace(".", "_")] = name
    return names


def _known_paths(layer: CheckpointLayer) -> Iterator[str]:
    yield layer.path
    if layer.part == UNET:
        yield layer.weight.key.removeprefix(layout.UNET).removesuffix(".weight")
    else:
        yield layer.path.removeprefix("text_model.")


def find_layers(family: str, parts: tuple[str, ...], path: str) -> list[str]:
    """The names, in sd-scripts' names, of the layers that a parsed key can mean; none where the family does not have it."""
    names = layer_names(family)
    return [names[part, path] for part in parts if (part, path) in names]


def label_of(parts: tuple[str, ...], path: str) -> str:
    """A layer's name in sd-scripts' style where no family has it, or the family is not known yet."""
    return {UNET: "lora_unet_", TEXT: "lora_te_", TEXT_2: "lora_te2_"}[parts[0]] + path


def unsupported_file(keys: Iterable[str]) -> Message | None:
    """What a file with these keys is, where that is known and not a supported network."""
    keys = list(keys)
    for prefixes, kind in UNSUPPORTED_FILES:
        if any(key.startswith(prefixes) for key in keys):
            return kind
    if any(key.startswith(COMFYUI) and key.split(".")[1] not in LDM_ROOTS for key in keys):
        return say("a network of a model of another family")
    return None


def kinds_of(suffixes: Collection[str]) -> list[str]:
    """The kinds that a layer's suffixes belong to; exactly one in a valid file."""
    return [kind for kind, own in KINDS.items() if any(suffix in own for suffix in suffixes)]


def naming_of(namings: Collection[str]) -> str:
    """One word for the namings of a file's keys: diffusers writes PEFT's words into its own files too; else several are "mixed"."""
    if len(namings) == 1:
        return next(iter(namings))
    return "diffusers" if set(namings) == {"diffusers", "peft"} else "mixed"


def paths_of(layer: CheckpointLayer) -> str:
    """A layer's path prefixed by its part, as in diffusers' files."""
    prefix = {UNET: "unet.", TEXT: "text_encoder.", TEXT_2: "text_encoder_2."}[layer.part]
    return f"{prefix}{layer.path}"


def rename_key(name: str, suffix: str, layer: CheckpointLayer | None, naming: str) -> str:
    """The key of a layer in another naming; `name` and `suffix` are sd-scripts'. "" where the naming has no name for it."""
    if naming == "kohya":
        return f"{name}.{suffix}"
    if layer is None:
        return ""
    if naming == "peft":
        theirs = {ours: f"{word}.weight" for word, ours in PEFT_SUFFIXES.items()}
    else:
        word = "lora." if layer.part == UNET else "lora_linear_layer."
        theirs = {ours: text for text, ours in SUFFIXES.items() if text.startswith(word)}
    return f"{paths_of(layer)}.{theirs.get(suffix, suffix)}"
