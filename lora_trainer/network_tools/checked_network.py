"""Opens and checks a network's file: its layers by sd-scripts' names, whatever naming it has. Any other file is identified and refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import attrs

from lora_trainer.adapters.kinds import kind_named
from lora_trainer.config.choices.networks import NETWORK_KINDS
from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.files.tensor_file import TensorInfo, contents, is_pickle
from lora_trainer.network_tools import naming
from lora_trainer.network_tools.layers import CheckpointLayer, released_layers

if TYPE_CHECKING:
    from torch import Tensor

    from lora_trainer.adapters.network_file import ModuleState

CHOOSE = "Choose a LoRA or LyCORIS file."
ONE_PROGRAM = "Choose a file that one program wrote."
FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")


@attrs.frozen
class NetworkModule:
    """One layer's network: `keys` (names in the file) and `entries` (dtype and shape) by sd-scripts' suffix."""

    name: str
    kind: str
    keys: Mapping[str, str]
    entries: Mapping[str, TensorInfo]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Suffix -> shape."""
        return {suffix: entry.shape for suffix, entry in self.entries.items()}

    @property
    def rank(self) -> int:
        """0 where the kind has none."""
        return kind_named(self.kind).rank(self.entries) if self.is_supported and kind_named(self.kind).has_rank(self.entries) else 0

    @property
    def is_supported(self) -> bool:
        """Whether its delta can be computed here."""
        return self.kind not in naming.UNSUPPORTED_KINDS

    @property
    def weight_size(self) -> tuple[int, int]:
        """(rows, elements) of the layer's weight, as `Kind.weight_size`."""
        return kind_named(self.kind).weight_size(self.shapes)


@attrs.frozen
class NetworkFile:
    """A file's contents. `family` is detected from names and shapes; `embedding_keys` belong to no layer, but to bundled embeddings."""

    path: Path
    metadata: Mapping[str, str]
    naming: str
    family: str
    modules: Mapping[str, NetworkModule]
    unknown_layers: tuple[str, ...] = ()
    """Names of layers that the family does not have."""
    embedding_keys: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The most frequent dtype, in safetensors' words ("F16")."""
        dtypes = [entry.dtype for module in self.modules.values() for suffix, entry in module.entries.items() if suffix != "alpha"]
        return max(set(dtypes), key=dtypes.count)


def open_network(path: Path) -> NetworkFile:
    """Reads and checks the names, dtypes and shapes in a network's file. Raises ModelError, which says what is wrong."""
    if is_pickle(path) and path.is_file():
        raise ModelError(
            "{path} is a pickle: networks are read from safetensors files only.",
            path=str(path),
            fix="Convert it with the program it is from.",
        )
    content = contents(path)
    _refuse_others(path, content.tensors)
    grouped: dict[str, dict[str, str]] = {}
    embedding_keys = tuple(key for key in content.tensors if key.startswith(naming.BUNDLED))
    for key in content.tensors:
        if key not in embedding_keys:
            layer, suffix = naming.split_key(key)
            grouped.setdefault(layer, {})[suffix] = key
    namings = naming.namings_of(key for key in content.tensors if key not in embedding_keys)
    if not namings:
        _refuse(path, "its layers have names that no program is known to use", CHOOSE)
    if len(namings) > 1:
        _refuse(path, "its layers are named in two ways at once", ONE_PROGRAM)
    family = _family(grouped, content.tensors, content.metadata)
    layers = released_layers(family)
    names = naming.layer_names(layers)
    modules: dict[str, NetworkModule] = {}
    for layer, keys in grouped.items():
        name = names.get(layer, layer)
        if name in modules:
            _refuse(path, say("{name} is in it twice, under two names", name=name), ONE_PROGRAM)
        modules[name] = _module(path, name, keys, content.tensors)
    unknown_layers = tuple(name for name in modules if name not in layers)
    if len(unknown_layers) == len(modules):
        _refuse(path, say("none of its layers is known, the first is {name}", name=unknown_layers[0]), CHOOSE)
    return NetworkFile(path, content.metadata, namings.pop(), family, modules, unknown_layers, embedding_keys)


def read_modules(file: NetworkFile) -> dict[str, ModuleState]:
    """The layers' tensors. Raises ModelError for an unsupported kind, and for values that are not finite."""
    import torch

    from lora_trainer.adapters.network_file import modules_of
    from lora_trainer.network_tools.safetensors_stream import open_tensors

    state: dict[str, Tensor] = {}
    with open_tensors(file.path) as tensor_of:
        for module in file.modules.values():
            if not module.is_supported:
                _refuse(
                    file.path,
                    say("{name} is of the kind {kind}", name=module.name, kind=module.kind),
                    "Only network info and network verify can read it.",
                )
            for suffix, key in module.keys.items():
                tensor = tensor_of(key)
                if not bool(torch.isfinite(tensor.float()).all()):
                    _refuse(
                        file.path,
                        say("{key} holds values that are not finite", key=key),
                        "The training went wrong before it was saved: take an earlier epoch.",
                    )
                state[f"{module.name}.{suffix}"] = _column_magnitude(suffix, tensor, module)
    return modules_of(state, str(file.path))


def _column_magnitude(suffix: str, tensor: Tensor, module: NetworkModule) -> Tensor:
    """PEFT stores DoRA's magnitude as [out]: here as [out, 1(, 1, 1)]."""
    if suffix == "dora_scale" and tensor.ndim == 1:
        return tensor.reshape(-1, *(1,) * (len(module.shapes["lora_down.weight"]) - 1))
    return tensor


def fits(module: NetworkModule, layer: CheckpointLayer) -> bool:
    """Whether a layer's network fits a weight of this shape."""
    if not module.is_supported:
        return True
    rows, elements = module.weight_size
    return rows == layer.shape[0] and elements in (0, layer.weight_numel)


def _refuse_others(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    if not tensors:
        _refuse(path, "it holds no tensors", CHOOSE)
    if (kind := naming.unsupported_file(tensors)) is not None:
        raise ModelError("{path} is {kind}.", path=str(path), kind=kind, fix=CHOOSE)
    if naming.namings_of(tensors):
        return
    if "emb_params" in tensors or "clip_g" in tensors:
        raise ModelError("{path} is {kind}.", path=str(path), kind=say("an embedding, not a network"), fix=CHOOSE)
    if any(key.startswith((layout.UNET, layout.VAE)) for key in tensors):
        inspect(path)  # raises for an incomplete checkpoint, and says what it is
        raise ModelError("{path} is {kind}.", path=str(path), kind=say("a checkpoint, not a network"), fix=CHOOSE)


def _module(path: Path, name: str, keys: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> NetworkModule:
    entries = {suffix: tensors[key] for suffix, key in keys.items()}
    kinds = naming.kinds_of(entries)
    if len(kinds) > 1:
        _refuse(path, say("{name} is of two kinds at once: {kinds}", name=name, kinds=", ".join(kinds)), CHOOSE)
    if not kinds:
        _refuse(path, say("{name} holds {found}, which is unknown", name=name, found=", ".join(sorted(keys)) or "-"), CHOOSE)
    kind = kinds[0]
    unknown = sorted(set(keys) - naming.SHARED - naming.KINDS[kind])
    if unknown:
        _refuse(path, say("{name} holds {found}, which is unknown", name=name, found=unknown[0]), CHOOSE)
    if kind in NETWORK_KINDS and (lacking := NETWORK_KINDS[kind].missing(entries)):
        _refuse(path, say("{name} is incomplete: it lacks {lacking}", name=name, lacking=lacking), "Get the file again.")
    not_float = next((suffix for suffix, entry in entries.items() if entry.dtype not in FLOATS), "")
    if not_float:
        _refuse(path, say("{key} holds {format}, not floating-point values", key=keys[not_float], format=entries[not_float].dtype), CHOOSE)
    if "alpha" in entries and entries["alpha"].count != 1:
        _refuse(path, say("{key} is not one number", key=keys["alpha"]), CHOOSE)
    module = NetworkModule(name, kind, dict(keys), entries)
    if module.is_supported and not module.weight_size[0]:
        _refuse(path, say("the shapes of {name} contradict each other", name=name), "Get the file again.")
    return module


def _family(grouped: Mapping[str, Mapping[str, str]], tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> str:
    """By names that only one family has, else by the width of the text embeddings that it reads, else by the metadata."""
    if any(
        name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.", "lora_unet_input_blocks_", "lora_unet_output_blocks_"))
        for name in grouped
    ):
        return "sdxl"
    if _count_known(grouped, "sdxl") > _count_known(grouped, "sd1"):
        return "sdxl"
    for layer, keys in grouped.items():
        if layer.replace(".", "_").endswith("attn2_to_k") and (key := keys.get("lora_down.weight")) is not None:
            width = tensors[key].shape[1] if tensors[key].ndim > 1 else 0
            if width in (768, 1024, 2048):
                return {768: "sd1", 1024: "sd2", 2048: "sdxl"}[width]
    version = metadata.get("ss_base_model_version", "")
    has_layer_12 = any("layers_12" in name or "layers.12." in name for name in grouped)
    if version.startswith("sdxl"):
        return "sdxl"
    return "sd2" if has_layer_12 or version.startswith("sd_v2") or metadata.get("ss_v2") == "True" else "sd1"


def _count_known(grouped: Mapping[str, Mapping[str, str]], family: str) -> int:
    names = naming.layer_names(released_layers(family))
    return sum(name in names for name in grouped)


def _refuse(path: Path, reason: Message | str, fix: str) -> NoReturn:
    raise ModelError("{path} cannot be used: {why}.", path=str(path), why=reason if isinstance(reason, Message) else say(reason), fix=fix)
