"""Opens and checks a network's file: its layers by sd-scripts' names, whatever naming it has. Any other file is identified and refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import attrs

from lora_trainer.adapters.files import naming
from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, released_layers
from lora_trainer.adapters.files.declared_alphas import NOTHING_DECLARED, DeclaredAlphas, declared_alphas
from lora_trainer.adapters.files.naming import ParsedKey
from lora_trainer.adapters.files.network_module import NetworkModule
from lora_trainer.config.choices.networks import DORA, NETWORK_KINDS
from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.files import pickled
from lora_trainer.models.files.tensor_file import TensorInfo, contents, is_pickle

if TYPE_CHECKING:
    from torch import Tensor

    from lora_trainer.adapters.network_file import ModuleState

CHOOSE = "Choose a LoRA or LyCORIS file."
ONE_PROGRAM = "Choose a file that one program wrote."
FAMILIES = tuple(row.family for row in layout.ROWS)
SDXL_PREFIXES = ("lora_te1_", "lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")


@attrs.frozen
class NetworkFile:
    """A file's contents. `family` is detected from names and shapes; `embedding_keys` belong to no layer, but to bundled embeddings."""

    path: Path
    metadata: Mapping[str, str]
    namings: tuple[str, ...]
    """Of its keys, the most frequent first."""
    family: str
    modules: Mapping[str, NetworkModule]
    unknown_layers: tuple[str, ...] = ()
    """Names of layers that the family does not have."""
    embedding_keys: tuple[str, ...] = ()
    declared: DeclaredAlphas = NOTHING_DECLARED
    """Alphas of the layers that have no key for it."""

    @property
    def naming(self) -> str:
        """One word for its namings."""
        return naming.naming_of(self.namings)

    @property
    def dtype(self) -> str:
        """The most frequent dtype, in safetensors' words ("F16")."""
        dtypes = [entry.dtype for module in self.modules.values() for suffix, entry in module.entries.items() if suffix != "alpha"]
        return max(set(dtypes), key=dtypes.count)


def open_network(path: Path) -> NetworkFile:
    """Reads and checks the names, dtypes and shapes in a network's file. Raises ModelError, which says what is wrong."""
    if is_pickle(path) and path.is_file():
        _refuse_pickle(path)
    content = contents(path)
    parsed = {key: naming.parse_key(key) for key in content.tensors if not key.startswith(naming.BUNDLED)}
    _refuse_others(path, content.tensors, parsed)
    modules = _modules_by_path(path, parsed, content.tensors)
    family = _family(modules, content.metadata)
    named: dict[str, NetworkModule] = {}
    for (parts, layer_path), module in modules.items():
        name = _layer_name(family, parts, layer_path, module)
        if name in named:
            _refuse(path, say("{name} is in it twice, under two names", name=name), ONE_PROGRAM)
        named[name] = attrs.evolve(module, name=name)
    layers = released_layers(family)
    unknown_layers = tuple(name for name in named if name not in layers)
    if len(unknown_layers) == len(named):
        _refuse(path, say("none of its layers is known, the first is {name}", name=unknown_layers[0]), CHOOSE)
    counts = Counter(found.naming for found in parsed.values() if found is not None and found.suffix != "alpha")
    embedding_keys = tuple(key for key in content.tensors if key.startswith(naming.BUNDLED))
    namings = tuple(name for name, _ in counts.most_common())
    declared = declared_alphas(path, content.metadata, named, layers)
    return NetworkFile(path, content.metadata, namings, family, named, unknown_layers, embedding_keys, declared)


def read_modules(file: NetworkFile) -> dict[str, ModuleState]:
    """The layers' tensors. Raises ModelError for an unsupported kind, and for values that are not finite."""
    from lora_trainer.adapters.network_file import modules_of

    return modules_of(read_state(file), str(file.path))


def read_state(file: NetworkFile) -> dict[str, Tensor]:
    """The tensors by sd-scripts' names, with an alpha for each layer that has one, wherever the file says it.

    Raises ModelError for an unsupported kind, and for values that are not finite.
    """
    import torch

    from lora_trainer.models.files.safetensors_stream import open_tensors

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
                state[f"{module.name}.{suffix}"] = tensor.reshape(module.entries[suffix].shape)
            if module.name in file.declared.factors:
                state[f"{module.name}.lokr_w1"] = state[f"{module.name}.lokr_w1"].float() * file.declared.factors[module.name]
            if module.name in file.declared.alphas:
                state[f"{module.name}.alpha"] = torch.tensor(file.declared.alphas[module.name])
    return state


def _with_column_magnitude(keys: Mapping[str, str], entries: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """PEFT stores DoRA's magnitude as [out], of convolutions as [1, out, 1, 1]: here as [out, 1(, 1, 1)]."""
    magnitude, down = entries.get(DORA), entries.get("lora_down.weight")
    if magnitude is None or down is None or not (magnitude.ndim == 1 or naming.PEFT_MAGNITUDE in keys[DORA]):
        return entries
    return {**entries, DORA: attrs.evolve(magnitude, shape=(magnitude.count, *(1,) * (down.ndim - 1)))}


def fits(module: NetworkModule, layer: CheckpointLayer) -> bool:
    """Whether a layer's network fits a weight of this shape."""
    if not module.is_supported:
        return True
    rows, elements = module.weight_size
    return rows == layer.shape[0] and elements in (0, layer.weight_numel)


def _refuse_pickle(path: Path) -> NoReturn:
    if pickled.is_tensor_list(path):
        raise ModelError(
            "{path} is {kind}.",
            path=str(path),
            kind=say("a LoRA of cloneofsimo's lora (2022 and 2023), whose layers have numbers instead of names"),
            fix="Convert it with that program, or train it again.",
        )
    raise ModelError(
        "{path} is a pickle: networks are read from safetensors files only.",
        path=str(path),
        fix="Convert it with the program it is from.",
    )


def _refuse_others(path: Path, tensors: Mapping[str, TensorInfo], parsed: Mapping[str, ParsedKey | None]) -> None:
    if not tensors:
        _refuse(path, "it holds no tensors", CHOOSE)
    if (kind := naming.unsupported_file(tensors)) is not None:
        raise ModelError("{path} is {kind}.", path=str(path), kind=kind, fix=CHOOSE)
    if any(found is not None for found in parsed.values()):
        unknown = next((key for key, found in parsed.items() if found is None), "")
        if unknown:
            _refuse(path, say("{key} is no part of a network that is known", key=unknown), ONE_PROGRAM)
        return
    if "emb_params" in tensors or "clip_g" in tensors:
        raise ModelError("{path} is {kind}.", path=str(path), kind=say("an embedding, not a network"), fix=CHOOSE)
    if any(key.startswith((layout.UNET, layout.VAE)) for key in tensors):
        inspect(path)  # raises for an incomplete checkpoint, and says what it is
        raise ModelError("{path} is {kind}.", path=str(path), kind=say("a checkpoint, not a network"), fix=CHOOSE)
    _refuse(path, "its layers have names that no program is known to use", CHOOSE)


def _modules_by_path(
    path: Path, parsed: Mapping[str, ParsedKey | None], tensors: Mapping[str, TensorInfo]
) -> dict[tuple[tuple[str, ...], str], NetworkModule]:
    """(parts, path) of each layer -> its module, whose name is not final yet."""
    grouped: dict[tuple[tuple[str, ...], str], dict[str, str]] = {}
    adapters: dict[str, None] = {}
    for found in parsed.values():
        assert found is not None
        keys = grouped.setdefault((found.prefix.parts, found.path), {})
        if found.adapter:
            adapters[found.adapter] = None
        if len(adapters) > 1:
            _refuse(path, say("it holds several adapters: {names}", names=", ".join(adapters)), "Save each of them to a file of its own.")
        if found.suffix in keys:
            name = naming.label_of(found.prefix.parts, found.path)
            _refuse(path, say("{name} is in it twice, under two names", name=name), ONE_PROGRAM)
        keys[found.suffix] = found.key
    return {(parts, layer): _module(path, naming.label_of(parts, layer), keys, tensors) for (parts, layer), keys in grouped.items()}


def _layer_name(family: str, parts: tuple[str, ...], path: str, module: NetworkModule) -> str:
    """The layer that a module belongs to: of several candidates the first that it fits."""
    candidates, layers = naming.find_layers(family, parts, path), released_layers(family)
    fitting = [name for name in candidates if fits(module, layers[name])]
    return next(iter([*fitting, *candidates]), naming.label_of(parts, path))


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
    not_float = next((suffix for suffix, entry in entries.items() if entry.dtype not in FLOATS and suffix not in naming.SCALARS), "")
    if not_float:
        _refuse(path, say("{key} holds {format}, not floating-point values", key=keys[not_float], format=entries[not_float].dtype), CHOOSE)
    for suffix in naming.SCALARS & set(entries):
        if entries[suffix].count != 1:
            _refuse(path, say("{key} is not one number", key=keys[suffix]), CHOOSE)
    empty = next((suffix for suffix, entry in entries.items() if not entry.count), "")
    if empty:
        shape = "x".join(map(str, entries[empty].shape))
        _refuse(path, say("{key} holds no values (its shape is {shape})", key=keys[empty], shape=shape), "Get the file again.")
    module = NetworkModule(name, kind, dict(keys), _with_column_magnitude(keys, entries))
    if module.is_supported and not module.weight_size[0]:
        _refuse(path, say("the shapes of {name} contradict each other", name=name), "Get the file again.")
    return module


def _family(modules: Mapping[tuple[tuple[str, ...], str], NetworkModule], metadata: Mapping[str, str]) -> str:
    """The family that has most of the layers, by name, then by shape; then what the metadata says, and what is usual."""
    scores = {}
    for family in FAMILIES:
        layers = released_layers(family)
        candidates = [(module, naming.find_layers(family, parts, path)) for (parts, path), module in modules.items()]
        known = sum(bool(names) for _, names in candidates)
        fitting = sum(any(fits(module, layers[name]) for name in names) for module, names in candidates)
        scores[family] = (known, fitting, family == _declared_family(metadata), family == _usual_family(modules))
    return max(scores, key=lambda family: scores[family])


def _declared_family(metadata: Mapping[str, str]) -> str:
    version, architecture = metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", "")
    if version.startswith("sdxl") or architecture.startswith("stable-diffusion-xl"):
        return "sdxl"
    if version.startswith("sd_v2") or metadata.get("ss_v2") == "True" or architecture.startswith("stable-diffusion-v2"):
        return "sd2"
    return "sd1" if version or architecture else ""


def _usual_family(modules: Mapping[tuple[tuple[str, ...], str], NetworkModule]) -> str:
    """The family whose files are mostly named so, where the names alone leave it open."""
    keys = [key for module in modules.values() for key in module.keys.values()]
    return "sdxl" if any(key.startswith(SDXL_PREFIXES) for key in keys) else "sd1"


def _refuse(path: Path, reason: Message | str, fix: str) -> NoReturn:
    raise ModelError("{path} cannot be used: {why}.", path=str(path), why=reason if isinstance(reason, Message) else say(reason), fix=fix)
