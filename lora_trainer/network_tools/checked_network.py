"""A network's file, opened and checked: layers by sd-scripts' names, whatever names the file has; everything else is named and refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.files.tensor_file import Entry, contents, is_pickle
from lora_trainer.network_tools import key_suffixes, naming
from lora_trainer.network_tools.layers import Layer, stock_layers

if TYPE_CHECKING:
    from torch import Tensor

    from lora_trainer.adapters.network_file import ModuleState

CHOOSE = "Choose a LoRA or LyCORIS file."
ONE_PROGRAM = "Choose a file that one program wrote."
FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")


@attrs.frozen
class Module:
    """One layer's network as the file holds it: `keys` and `entries` by suffix, in sd-scripts' words."""

    name: str
    kind: str
    keys: Mapping[str, str]
    entries: Mapping[str, Entry]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Suffix -> shape."""
        return {suffix: entry.shape for suffix, entry in self.entries.items()}

    @property
    def rank(self) -> int:
        """0 where the kind has none."""
        return key_suffixes.rank_of(self.kind, self.shapes) if self.kind in key_suffixes.KINDS else 0


@attrs.frozen
class NetworkFile:
    """What a file holds. `family` is told from names and shapes; `extra` are keys that belong to no layer (bundled embeddings)."""

    path: Path
    words: Mapping[str, str]
    naming: str
    family: str
    modules: Mapping[str, Module]
    unknown: tuple[str, ...] = ()
    """Names of layers that no family has."""
    extra: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The number format of most tensors, in safetensors' words."""
        formats = [entry.dtype for module in self.modules.values() for suffix, entry in module.entries.items() if suffix != "alpha"]
        return max(set(formats), key=formats.count)


def open_network(path: Path) -> NetworkFile:
    """A network's file, checked as far as names and shapes go. Raises ModelError that says what is wrong with it, or what else it is."""
    if is_pickle(path) and path.is_file():
        raise ModelError(
            "{path} is a pickle: networks are read from safetensors files only.",
            path=str(path),
            fix="Convert it with the program it is from.",
        )
    held = contents(path)
    _refuse_others(path, held.tensors)
    grouped: dict[str, dict[str, str]] = {}
    extra = tuple(key for key in held.tensors if key.startswith(naming.BUNDLED))
    for key in held.tensors:
        if key not in extra:
            layer, suffix = naming.split(key)
            grouped.setdefault(layer, {})[suffix] = key
    named = naming.namings_of(key for key in held.tensors if key not in extra)
    if not named:
        _refuse(path, "its layers have names that no program is known to use", CHOOSE)
    if len(named) > 1:
        _refuse(path, "its layers are named in two ways at once", ONE_PROGRAM)
    family = _family(grouped, held.tensors, held.words)
    layers = stock_layers(family)
    places = naming.places_of(layers)
    modules: dict[str, Module] = {}
    for layer, keys in grouped.items():
        name = places.get(layer, layer)
        if name in modules:
            _refuse(path, say("{name} stands in it twice, under two names", name=name), ONE_PROGRAM)
        modules[name] = _module(path, name, keys, held.tensors)
    unknown = tuple(name for name in modules if name not in layers)
    if len(unknown) == len(modules):
        _refuse(path, say("none of its layers is known, the first is {name}", name=unknown[0]), CHOOSE)
    return NetworkFile(path, held.words, named.pop(), family, modules, unknown, extra)


def read_modules(file: NetworkFile) -> dict[str, ModuleState]:
    """The layers' tensors. Raises ModelError for a kind that is not calculated here, and for numbers that are not finite."""
    import torch

    from lora_trainer.adapters.network_file import modules_of
    from lora_trainer.network_tools.safetensors_stream import opened

    state: dict[str, Tensor] = {}
    with opened(file.path) as tensor_of:
        for module in file.modules.values():
            if module.kind in key_suffixes.FOREIGN:
                _refuse(file.path, say("{name} is of the kind {kind}", name=module.name, kind=module.kind), "Only its facts can be told.")
            for suffix, key in module.keys.items():
                tensor = tensor_of(key)
                if not bool(torch.isfinite(tensor.float()).all()):
                    _refuse(
                        file.path,
                        say("{key} holds numbers that are not finite", key=key),
                        "The training went wrong before it was saved: take an earlier epoch.",
                    )
                state[f"{module.name}.{suffix}"] = _as_ours(suffix, tensor, module)
    return modules_of(state, str(file.path))


def _as_ours(suffix: str, tensor: Tensor, module: Module) -> Tensor:
    """PEFT keeps DoRA's strengths, one a row, as a single row of numbers."""
    if suffix == "dora_scale" and tensor.ndim == 1:
        return tensor.reshape(-1, *(1,) * (len(module.shapes["lora_down.weight"]) - 1))
    return tensor


def fits(module: Module, layer: Layer) -> bool:
    """Whether a layer's network belongs to a weight of this shape."""
    if module.kind not in key_suffixes.KINDS:
        return True
    rows, count = key_suffixes.fit_of(module.kind, module.shapes)
    return rows == layer.shape[0] and count in (0, layer.weight_numbers)


def _refuse_others(path: Path, tensors: Mapping[str, Entry]) -> None:
    if not tensors:
        _refuse(path, "it holds no tensors", CHOOSE)
    if (kind := naming.stranger(tensors)) is not None:
        raise ModelError("{path} is {kind}.", path=str(path), kind=kind, fix=CHOOSE)
    if naming.namings_of(tensors):
        return
    if "emb_params" in tensors or "clip_g" in tensors:
        raise ModelError("{path} is {kind}.", path=str(path), kind=say("an embedding, not a network"), fix=CHOOSE)
    if any(key.startswith((layout.UNET, layout.VAE)) for key in tensors):
        inspect(path)  # raises for what is no whole checkpoint, and says what it is
        raise ModelError("{path} is {kind}.", path=str(path), kind=say("a checkpoint, not a network"), fix=CHOOSE)


def _module(path: Path, name: str, keys: Mapping[str, str], tensors: Mapping[str, Entry]) -> Module:
    entries = {suffix: tensors[key] for suffix, key in keys.items()}
    kinds = key_suffixes.kinds_of(entries)
    if len(kinds) > 1:
        _refuse(path, say("{name} is of two kinds at once: {kinds}", name=name, kinds=", ".join(kinds)), CHOOSE)
    if not kinds:
        _refuse(path, say("{name} holds {found}, which is nothing known", name=name, found=", ".join(sorted(keys)) or "-"), CHOOSE)
    kind = kinds[0]
    strange = sorted(set(keys) - {*key_suffixes.SHARED, *({**key_suffixes.KINDS, **key_suffixes.FOREIGN}[kind])})
    if strange:
        _refuse(path, say("{name} holds {found}, which is nothing known", name=name, found=strange[0]), CHOOSE)
    if lacking := key_suffixes.missing(kind, entries):
        _refuse(path, say("{name} is only half there: it lacks {lacking}", name=name, lacking=lacking), "Get the file again.")
    wrong = next((suffix for suffix, entry in entries.items() if entry.dtype not in FLOATS), "")
    if wrong:
        _refuse(path, say("{key} holds {format}, no fractions", key=keys[wrong], format=entries[wrong].dtype), CHOOSE)
    if "alpha" in entries and entries["alpha"].count != 1:
        _refuse(path, say("{key} is not one number", key=keys["alpha"]), CHOOSE)
    module = Module(name, kind, dict(keys), entries)
    if kind in key_suffixes.KINDS and not all(key_suffixes.fit_of(kind, module.shapes)[:1]):
        _refuse(path, say("the shapes of {name} contradict each other", name=name), "Get the file again.")
    return module


def _family(grouped: Mapping[str, Mapping[str, str]], tensors: Mapping[str, Entry], words: Mapping[str, str]) -> str:
    """Told by names that only one family has, else by the width of the text that is read, else by the header's word."""
    if any(
        name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.", "lora_unet_input_blocks_", "lora_unet_output_blocks_"))
        for name in grouped
    ):
        return "sdxl"
    if _known(grouped, "sdxl") > _known(grouped, "sd1"):
        return "sdxl"
    for layer, keys in grouped.items():
        if layer.replace(".", "_").endswith("attn2_to_k") and (key := keys.get("lora_down.weight")) is not None:
            width = tensors[key].shape[1] if tensors[key].ndim > 1 else 0
            if width in (768, 1024, 2048):
                return {768: "sd1", 1024: "sd2", 2048: "sdxl"}[width]
    said = words.get("ss_base_model_version", "")
    deep = any("layers_12" in name or "layers.12." in name for name in grouped)
    return "sdxl" if said.startswith("sdxl") else "sd2" if deep or said.startswith("sd_v2") or words.get("ss_v2") == "True" else "sd1"


def _known(grouped: Mapping[str, Mapping[str, str]], family: str) -> int:
    places = naming.places_of(stock_layers(family))
    return sum(name in places for name in grouped)


def _refuse(path: Path, why: Message | str, fix: str) -> NoReturn:
    raise ModelError("{path} cannot be used: {why}.", path=str(path), why=why if isinstance(why, Message) else say(why), fix=fix)
