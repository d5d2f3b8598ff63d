"""Whether a network's file fits the network that a run trains, with the remedy for each way in which it may not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NoReturn

import attrs

from lora_trainer.adapters.files.checked_network import NetworkFile
from lora_trainer.adapters.files.network_module import NetworkModule
from lora_trainer.config.choices.networks import DORA, NETWORK_KINDS
from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    from lora_trainer.adapters.layer_selection import SelectedLayer

TAKE_RANKS = say("Set network.dim_from_weights: the run then trains the layers of the file, at their ranks.")
SAME_OPTIONS = say("Set the type's options as they were when the file was trained: network info shows what its header says of them.")
OTHER_FILE = say("Choose a file of the same family.")
RATES = {"unet": "optimizer.unet_lr", "text_encoder": "optimizer.text_encoder_lr"}


@attrs.frozen
class TrainedLayer:
    """A layer that the run trains: its part, its kind, and the shapes of its tensors by suffix, without alpha."""

    part: str
    kind: str
    shapes: Mapping[str, tuple[int, ...]]


def trained_layers(selected: Iterable[SelectedLayer]) -> dict[str, TrainedLayer]:
    """The layers of a plan by their names in a file."""
    return {
        row.plan.name: TrainedLayer(
            row.plan.part, row.plan.kind, NETWORK_KINDS[row.plan.kind].shapes(row.shape, row.plan.rank, row.plan.options)
        )
        for row in selected
    }


def require_fit(file: NetworkFile, trained: Mapping[str, TrainedLayer], family: str, *, takes_ranks: bool) -> None:
    """Raises ModelError with the remedy where a file and the layers that a run trains differ. `takes_ranks`: dim_from_weights is on."""
    missing, beyond = [name for name in trained if name not in file.modules], [name for name in file.modules if name not in trained]
    if beyond and file.family != family:
        _refuse(file, say("it is of the family {one}, the model of {other}", one=file.family, other=family), OTHER_FILE)
    if file.unknown_layers:
        _refuse(file, say("the model has no {name}", name=file.unknown_layers[0]), OTHER_FILE)
    parts = {layer.part for layer in trained.values()}
    for name in beyond:
        if part_of(name) not in parts:
            untrained = say("it holds {name}, and the run does not train this part", name=name)
            _refuse(file, untrained, say("Set {option} to more than 0, or choose a file without it.", option=RATES[part_of(name)]))
    for name, layer in trained.items():
        if name in file.modules:
            _compare(file, name, file.modules[name], layer, takes_ranks)
    if beyond:
        _refuse(file, say("it holds {name}, which the run does not train", name=beyond[0]), OTHER_FILE if takes_ranks else TAKE_RANKS)
    if missing:
        _refuse(file, say("it does not hold {name}, which the run trains", name=missing[0]), OTHER_FILE if takes_ranks else TAKE_RANKS)


def _compare(file: NetworkFile, name: str, module: NetworkModule, layer: TrainedLayer, takes_ranks: bool) -> None:
    one, other = _kind(module.kind, module.entries), _kind(layer.kind, layer.shapes)
    if one != other:
        _refuse(
            file,
            say("{name} is of the kind {one}, the run's network of the kind {other}", name=name, one=one, other=other),
            say("Choose the network.type that the file was trained with."),
        )
    if {suffix: shape for suffix, shape in module.shapes.items() if suffix != "alpha"} == dict(layer.shapes):
        return
    if module.rank and not takes_ranks:
        _refuse(file, say("{name} has another rank or shape ({rank}) than the run's network", name=name, rank=module.rank), TAKE_RANKS)
    _refuse(file, say("{name} has other tensors than the run's network", name=name), SAME_OPTIONS)


def _kind(kind: str, suffixes: Iterable[str]) -> str:
    kind = "lora" if kind == "dylora" else kind  # a file of it is one of LoRA
    return "dora" if kind == "lora" and DORA in suffixes else kind


def part_of(name: str) -> str:
    """ "unet" or "text_encoder", by a layer's name in sd-scripts' names."""
    return "text_encoder" if name.startswith("lora_te") else "unet"


def _refuse(file: NetworkFile, reason: Message, fix: Message) -> NoReturn:
    raise ModelError("{path} does not fit this run: {why}.", path=str(file.path), why=reason, fix=fix.template, **fix.values)
