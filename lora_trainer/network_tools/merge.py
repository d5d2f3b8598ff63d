"""Merges networks into one LoRA or into a checkpoint: the same images as with all of them in the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.files.checked_network import NetworkFile, fits, open_network, read_modules
from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, checkpoint_layers, released_layers
from lora_trainer.adapters.network_file import ModuleState, bias_delta_of, delta_of
from lora_trainer.errors import ModelError
from lora_trainer.files import file_sha256
from lora_trainer.models.files.safetensors_stream import open_tensors, write_streamed
from lora_trainer.models.files.tensor_file import contents
from lora_trainer.network_tools import low_rank
from lora_trainer.network_tools.extract import read_slice
from lora_trainer.network_tools.low_rank import LowRankPair, RankTarget
from lora_trainer.network_tools.resize import kernel_size
from lora_trainer.network_tools.saving import derived_metadata, precision_of, write_network


@attrs.frozen
class WeightedNetwork:
    """A network's file with its strength, for the U-Net and for the text encoders."""

    path: Path
    unet: float = 1.0
    text: float = 1.0

    def strength_of(self, name: str) -> float:
        """The strength of one layer, by its name in a file."""
        return self.unet if name.startswith("lora_unet_") else self.text


@attrs.frozen
class MergeResult:
    """How many layers were merged, the share of the sum's squared singular values that the file keeps (1: exact), and the highest rank.

    `left_out`: layers that no model of the family has.
    """

    layers: int
    energy: float
    rank: int = 0
    left_out: tuple[str, ...] = ()


def merge_networks(sources: Sequence[WeightedNetwork], out: Path, *, rank: int = 0, precision: str = "") -> MergeResult:
    """Writes the weighted sum of networks as one LoRA.

    Without `rank` nothing is lost: the ranks of plain LoRAs add up, and any other kind gets the rank that its sum has. With `rank` each
    layer becomes its best pair.
    `precision`: "float", "fp16", "bf16", "keep"; "": the first file's. Raises ModelError for networks of different families, and for
    kinds that depend on the model's weights.
    """
    files = [open_network(source.path) for source in sources]
    _check_families(files)
    states = [read_modules(file) for file in files]
    names = list(dict.fromkeys(name for modules in states for name in modules))
    state: dict[str, Tensor] = {}
    pairs: dict[str, LowRankPair] = {}
    for name in names:
        parts = [
            (source.strength_of(name), modules[name], file)
            for source, modules, file in zip(sources, states, files, strict=True)
            if name in modules and source.strength_of(name)
        ]
        if not parts:
            continue
        pair, shape = _sum_layer(name, parts, RankTarget(rank) if rank else None)
        pairs[name] = pair
        state |= low_rank.lora_state(name, pair, shape)
    if not pairs:
        raise ModelError("nothing is left to merge: all strengths are 0.", fix="Give a strength, as in FILE:0.8")
    ranks = [pair.rank for pair in pairs.values()]
    history = {"tool": "merge", "from": [[source.path.name, source.unet, source.text] for source in sources]}
    metadata = derived_metadata(_shared_metadata(files), ranks, [float(rank) for rank in ranks], out, history)
    metadata["modelspec.merged_from"] = ", ".join(source.path.stem for source in sources)
    write_network(out, state, metadata, precision or precision_of(files[0]))
    return MergeResult(len(pairs), low_rank.energy_share(pairs), max(ranks))


def merge_into_checkpoint(
    checkpoint: Path,
    sources: Sequence[WeightedNetwork],
    out: Path,
    *,
    precision: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeResult:
    """Writes a checkpoint with networks added to its weights, tensor by tensor; every other tensor is copied unchanged.

    `precision` "" keeps each tensor's dtype. `on_progress` gets (tensors done, tensors in all). Layers that no model of the family has are
    left out, as WebUIs do. Raises ModelError for a network of another model; the error names the first layer that does not fit.
    """
    files = [open_network(source.path) for source in sources]
    row, layers = checkpoint_layers(checkpoint)
    for file in files:
        _check_fits(file, layers, row.family, checkpoint)
    left_out = tuple(dict.fromkeys(name for file in files for name in file.unknown_layers))
    states = [{name: state for name, state in read_modules(file).items() if name not in left_out} for file in files]
    changes: dict[str, list[tuple[CheckpointLayer, str]]] = {}
    for name in dict.fromkeys(name for modules in states for name in modules):
        changes.setdefault(layers[name].weight.key, []).append((layers[name], "weight"))
        if (bias := layers[name].bias) is not None:
            changes.setdefault(bias.key, []).append((layers[name], "bias"))
    content = contents(checkpoint)
    dtype = {"fp16": "F16", "bf16": "BF16", "float": "F32"}.get(precision, "")
    entries = {
        key: attrs.evolve(entry, dtype=dtype) if dtype and entry.dtype in ("F16", "BF16", "F32", "F64") else entry
        for key, entry in content.tensors.items()
    }
    done = 0
    with open_tensors(checkpoint) as tensor_of:

        def merged_tensor(key: str) -> Tensor:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done, len(entries))
            return _merged_tensor(key, tensor_of, changes.get(key, []), sources, states)

        write_streamed(out, entries, merged_tensor, _checkpoint_metadata(content.metadata, sources))
    changed_layers = {layer.name for changed in changes.values() for layer, _ in changed}
    return MergeResult(len(changed_layers), 1.0, left_out=left_out)


def _merged_tensor(
    key: str,
    tensor_of: Callable[[str], Tensor],
    changes: Sequence[tuple[CheckpointLayer, str]],
    sources: Sequence[WeightedNetwork],
    states: Sequence[Mapping[str, ModuleState]],
) -> Tensor:
    """A tensor of the checkpoint with the networks' deltas of its layers; float32 where there are any."""
    if not changes:
        return tensor_of(key)
    tensor = tensor_of(key).clone().float()
    for layer, kind in changes:
        tensor_slice = layer.weight if kind == "weight" else layer.bias
        assert tensor_slice is not None
        merged = read_slice(lambda _: tensor, tensor_slice)
        for source, modules in zip(sources, states, strict=True):
            if layer.name in modules and source.strength_of(layer.name):
                state = modules[layer.name]
                # from the weight with the networks before it: that is how hosts apply several networks
                delta = delta_of(state, merged) if kind == "weight" else bias_delta_of(state)
                if delta is not None:
                    merged.add_(delta.reshape(merged.shape), alpha=source.strength_of(layer.name))
    return tensor


Part = tuple[float, ModuleState, NetworkFile]
"""A network's share in one layer: its strength, its module, its file."""


def _sum_layer(name: str, parts: Sequence[Part], target: RankTarget | None) -> tuple[LowRankPair, tuple[int, ...]]:
    """The pair of one layer, and the shape of its weight; without a target the sum itself."""
    shape = _shared_shape(name, parts)
    if all(low_rank.is_plain(state) for _, state, _ in parts):
        pairs = [(strength, low_rank.pair_of(state)) for strength, state, _ in parts]
        up, down = torch.cat([pair.up * strength for strength, pair in pairs], dim=1), torch.cat([pair.down for _, pair in pairs])
        stacked = LowRankPair(up, down, low_rank.norm_of_product(up, down))
        return stacked if target is None else low_rank.reduce_pair(stacked, target), shape
    total = torch.zeros(shape).flatten(1)
    for strength, state, _ in parts:
        total += low_rank.delta_matrix(state, shape) * strength
    return low_rank.whole_pair(total) if target is None else low_rank.decompose(total, target), shape


def _shared_shape(name: str, parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of a layer's weight. Raises ModelError where the files disagree, or a kind cannot be summed as matrices."""
    layer = released_layers(parts[0][2].family).get(name)
    shapes = set()
    for _, state, file in parts:
        if state.reads_weight or state.kind.spec.layers == {"norm"}:
            raise ModelError(
                "{path} cannot become a LoRA: {name} is of a kind ({kind}) that is not a sum of matrices.",
                path=str(file.path),
                name=name,
                kind="DoRA" if "dora_scale" in state.tensors else state.kind.name,
                fix="Merge it into a checkpoint instead.",
            )
        module = file.modules[name]
        shapes.add(low_rank.weight_shape(module.weight_size, kernel_size(name, module.shapes, layer)))
    if len(shapes) != 1:
        raise ModelError(
            "{name} has different shapes in {paths}.",
            name=name,
            paths=", ".join(file.path.name for _, _, file in parts),
            fix="Merge networks of the same model only.",
        )
    return shapes.pop()


def _check_families(files: Sequence[NetworkFile]) -> None:
    for file in files[1:]:
        if file.family != files[0].family:
            raise ModelError(
                "{path} is of the family {one}, {first} of {other}.",
                path=file.path.name,
                one=file.family,
                first=files[0].path.name,
                other=files[0].family,
                fix="Merge networks of the same family only.",
            )


def _check_fits(file: NetworkFile, layers: Mapping[str, CheckpointLayer], family: str, checkpoint: Path) -> None:
    if file.embedding_keys:
        raise ModelError("{path} brings embeddings along: a checkpoint cannot hold them.", path=str(file.path), fix="Use it in the prompt.")
    for name, module in file.modules.items():
        if name in file.unknown_layers and file.family == family:
            continue
        if name not in layers and file.family == family:
            raise ModelError(
                "{path} holds {name}, which {checkpoint} does not have.",
                path=file.path.name,
                checkpoint=checkpoint.name,
                name=name,
                fix="Choose a network and a checkpoint of the same build.",
            )
        if name not in layers:
            raise ModelError(
                "{path} is of the family {one}, {checkpoint} of {other}: {name} is not in it.",
                path=file.path.name,
                one=file.family,
                checkpoint=checkpoint.name,
                other=family,
                name=name,
                fix="Choose a network and a checkpoint of the same family.",
            )
        if not fits(module, layers[name]):
            raise ModelError(
                "{path}: {name} has another shape than the model.",
                path=file.path.name,
                name=name,
                fix="Choose a network and a checkpoint of the same family.",
            )


def _shared_metadata(files: Sequence[NetworkFile]) -> dict[str, str]:
    """The metadata that all files agree on, so that nothing is claimed that holds for one file alone."""
    first, *others = (file.metadata for file in files)
    return {key: value for key, value in first.items() if all(metadata.get(key) == value for metadata in others)}


def _checkpoint_metadata(metadata: Mapping[str, str], sources: Sequence[WeightedNetwork]) -> dict[str, str]:
    merged = [
        {"name": source.path.name, "sha256": file_sha256(source.path), "unet": source.unet, "text": source.text} for source in sources
    ]
    kept = {key: value for key, value in metadata.items() if key not in ("modelspec.hash_sha256",)}
    return {
        "format": "pt",
        **kept,
        "modelspec.merged_from": ", ".join(source.path.stem for source in sources),
        "lora_trainer.merged": json.dumps(merged, ensure_ascii=False),
    }
