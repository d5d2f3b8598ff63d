"""Several networks as one LoRA, or added into a checkpoint: the same pictures as with all of them in the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.network_file import ModuleState, bias_delta_of, delta_of
from lora_trainer.errors import ModelError
from lora_trainer.files import file_sha256
from lora_trainer.models.files.tensor_file import contents
from lora_trainer.network_tools import key_suffixes, low_rank
from lora_trainer.network_tools.checked_network import NetworkFile, fits, open_network, read_modules
from lora_trainer.network_tools.extract import placed
from lora_trainer.network_tools.layers import Layer, layers_of, stock_layers
from lora_trainer.network_tools.low_rank import Pair, Wanted
from lora_trainer.network_tools.resize import places_of
from lora_trainer.network_tools.safetensors_stream import opened, write_streamed
from lora_trainer.network_tools.saving import made_words, precision_of, write_network


@attrs.frozen
class Weighted:
    """A network's file with the strength at which it counts: of the U-Net, and of the text encoders."""

    path: Path
    unet: float = 1.0
    text: float = 1.0

    def of(self, name: str) -> float:
        """The strength of one layer."""
        return self.unet if name.startswith("lora_unet_") else self.text


@attrs.frozen
class Merged:
    """How many layers were changed, and the share of the squares of the sum's singular values that the file holds (1: exact)."""

    layers: int
    energy: float
    rank: int = 0


def merge_networks(sources: Sequence[Weighted], out: Path, *, rank: int = 0, precision: str = "") -> Merged:
    """Writes the weighted sum of networks as one LoRA.

    Without `rank` plain LoRA are put side by side, so the ranks add up and nothing is lost; any other kind becomes its best pair.
    Raises ModelError for networks of different families, and for kinds that depend on the model's weights.
    """
    files = [open_network(source.path) for source in sources]
    _check_families(files)
    states = [read_modules(file) for file in files]
    names = list(dict.fromkeys(name for found in states for name in found))
    most = max((module.rank for file in files for module in file.modules.values()), default=1) * len(files)
    state: dict[str, Tensor] = {}
    pairs: dict[str, Pair] = {}
    for name in names:
        parts = [
            (source.of(name), found[name], file)
            for source, found, file in zip(sources, states, files, strict=True)
            if name in found and source.of(name)
        ]
        if not parts:
            continue
        pair, shape = _sum(name, parts, Wanted(rank or most), exact=not rank)
        pairs[name] = pair
        state |= low_rank.tensors_of(name, pair, shape)
    if not pairs:
        raise ModelError("nothing is left to merge: all strengths are 0.", fix="Give a strength, as in FILE:0.8")
    ranks = [pair.rank for pair in pairs.values()]
    done = {"tool": "merge", "from": [[source.path.name, source.unet, source.text] for source in sources]}
    words = made_words(_shared_words(files), ranks, [float(one) for one in ranks], out, done)
    words["modelspec.merged_from"] = ", ".join(source.path.stem for source in sources)
    write_network(out, state, words, precision or precision_of(files[0]))
    return Merged(len(pairs), low_rank.shares(pairs), max(ranks))


def merge_into_checkpoint(
    checkpoint: Path, sources: Sequence[Weighted], out: Path, *, precision: str = "", tell: Callable[[int, int], None] | None = None
) -> Merged:
    """Writes a checkpoint with networks added to its weights, tensor by tensor; every other tensor is copied as it is.

    `precision` "" keeps each tensor's format. Raises ModelError for a network of another model, which names the first layer.
    """
    files = [open_network(source.path) for source in sources]
    row, layers = layers_of(checkpoint)
    for file in files:
        _check_fits(file, layers, row.family, checkpoint)
    states = [read_modules(file) for file in files]
    changes: dict[str, list[tuple[Layer, str]]] = {}
    for name in dict.fromkeys(name for found in states for name in found):
        changes.setdefault(layers[name].weight.key, []).append((layers[name], "weight"))
        if (bias := layers[name].bias) is not None:
            changes.setdefault(bias.key, []).append((layers[name], "bias"))
    held = contents(checkpoint)
    form = {"fp16": "F16", "bf16": "BF16", "float": "F32"}.get(precision, "")
    entries = {
        key: attrs.evolve(entry, dtype=form) if form and entry.dtype in ("F16", "BF16", "F32", "F64") else entry
        for key, entry in held.tensors.items()
    }
    done = 0
    with opened(checkpoint) as tensor_of:

        def made(key: str) -> Tensor:
            nonlocal done
            done += 1
            if tell is not None:
                tell(done, len(entries))
            return _changed(key, tensor_of, changes.get(key, []), sources, states)

        write_streamed(out, entries, made, _checkpoint_words(held.words, sources))
    return Merged(len({layer.name for found in changes.values() for layer, _ in found}), 1.0)


def _changed(
    key: str,
    tensor_of: Callable[[str], Tensor],
    changes: Sequence[tuple[Layer, str]],
    sources: Sequence[Weighted],
    states: Sequence[Mapping[str, ModuleState]],
) -> Tensor:
    """A tensor of the checkpoint with what the networks add to its layers, in float32 where anything is added."""
    if not changes:
        return tensor_of(key)
    whole = tensor_of(key).clone().float()
    for layer, kind in changes:
        place = layer.weight if kind == "weight" else layer.bias
        assert place is not None
        before = placed(lambda _: whole, place)
        for source, found in zip(sources, states, strict=True):
            if layer.name in found and source.of(layer.name):
                state = found[layer.name]  # of the weight as it is by then: so hosts put one network upon another
                added = delta_of(state, before) if kind == "weight" else bias_delta_of(state)
                if added is not None:
                    before.add_(added.reshape(before.shape), alpha=source.of(layer.name))
    return whole


Part = tuple[float, ModuleState, NetworkFile]


def _sum(name: str, parts: Sequence[Part], wanted: Wanted, *, exact: bool) -> tuple[Pair, tuple[int, ...]]:
    """The pair of one layer, and the shape of its weight."""
    shape = _common_shape(name, parts)
    if all(low_rank.is_plain(state) for _, state, _ in parts):
        own = [(weight, low_rank.own_pair(state)) for weight, state, _ in parts]
        up, down = torch.cat([pair.up * weight for weight, pair in own], dim=1), torch.cat([pair.down for _, pair in own])
        whole = Pair(up, down, low_rank.norm_of_product(up, down))
        return whole if exact else low_rank.of_pair(whole, wanted), shape
    total = torch.zeros(shape).flatten(1)
    for weight, state, _ in parts:
        total += low_rank.matrix_of(state, shape) * weight
    return low_rank.of_matrix(total, wanted), shape


def _common_shape(name: str, parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of a layer's weight. Raises ModelError where the files disagree, or hold what is no sum of matrices."""
    layer = stock_layers(parts[0][2].family).get(name)
    shapes = set()
    for _, state, file in parts:
        if low_rank.reads_weights(state) or state.kind.name == "norm":
            raise ModelError(
                "{path} cannot become a LoRA: {name} is of a kind ({kind}) that is no sum of matrices.",
                path=str(file.path),
                name=name,
                kind="DoRA" if "dora_scale" in state.tensors else state.kind.name,
                fix="Merge it into a checkpoint instead.",
            )
        held = file.modules[name]
        shapes.add(low_rank.weight_shape(key_suffixes.fit_of(held.kind, held.shapes), places_of(name, held.shapes, layer)))
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


def _check_fits(file: NetworkFile, layers: Mapping[str, Layer], family: str, checkpoint: Path) -> None:
    if file.extra:
        raise ModelError("{path} brings embeddings along: a checkpoint cannot hold them.", path=str(file.path), fix="Use it in the prompt.")
    for name, module in file.modules.items():
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


def _shared_words(files: Sequence[NetworkFile]) -> dict[str, str]:
    """Of the files' headers what all of them say, so that nothing is claimed that is true of one alone."""
    first, *others = (file.words for file in files)
    return {key: value for key, value in first.items() if all(words.get(key) == value for words in others)}


def _checkpoint_words(words: Mapping[str, str], sources: Sequence[Weighted]) -> dict[str, str]:
    merged = [
        {"name": source.path.name, "sha256": file_sha256(source.path), "unet": source.unet, "text": source.text} for source in sources
    ]
    kept = {key: value for key, value in words.items() if key not in ("modelspec.hash_sha256",)}
    return {
        "format": "pt",
        **kept,
        "modelspec.merged_from": ", ".join(source.path.stem for source in sources),
        "lora_trainer.merged": json.dumps(merged, ensure_ascii=False),
    }
