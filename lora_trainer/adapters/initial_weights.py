"""Training that starts from a network's file: its ranks for the config, its values for the network."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path

import torch

from lora_trainer.adapters.files.checked_network import open_network, read_state
from lora_trainer.adapters.initial_fit import TrainedLayer, require_fit
from lora_trainer.adapters.kinds.base import AdapterLayer
from lora_trainer.adapters.lora_file import read_lora
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.network_file import ModuleState, modules_of
from lora_trainer.errors import ModelError

GROUPS = ("", "conv_", "text_encoder_")
"""Prefixes of the options for rank and alpha: of all layers, of convolutions larger than 1 x 1, of text encoders."""


def ranks_of_file(path: Path, *, rs_lora: bool = False) -> dict[str, tuple[int, float]] | None:
    """(rank, alpha) of a network file by group (`GROUPS`); groups that equal the first one are left out.

    None where the layers of a group have different ranks or alphas: `file_ranks` has those of each layer. `rs_lora`: the file's alphas are
    those of rank-stabilised layers. Raises ModelError for a file that is not a network, or has no ranks.
    """
    by_group: dict[str, set[tuple[int, float]]] = {}
    for name, state in modules_of(read_lora(path)[0], str(path)).items():
        if state.kind.has_rank(state.tensors):
            alpha = state.alpha / sqrt(state.rank) if rs_lora else state.alpha
            by_group.setdefault(_group(name, state), set()).add((state.rank, alpha))
    if not by_group:
        raise ModelError(
            "the layers of {path} have no ranks.", path=str(path), fix="Turn off network.dim_from_weights, or choose another file."
        )
    if any(len(pairs) > 1 for pairs in by_group.values()):
        return None
    pairs = {group: next(iter(by_group[group])) for group in GROUPS if group in by_group}
    default = next(iter(pairs.values()))
    return {"": default, **{group: pair for group, pair in pairs.items() if pair != default}}


def _group(name: str, state: ModuleState) -> str:
    if name.startswith("lora_te"):
        return "text_encoder_"
    return "conv_" if any(tensor.dim() == 4 and tensor.shape[-1] > 1 for tensor in state.tensors.values()) else ""


def load_initial_weights(adapter: NetworkAdapter, path: Path, *, takes_ranks: bool = False) -> None:
    """Loads a file's values into a network; each layer has the scale that the file says. `takes_ranks`: dim_from_weights is on.

    Raises ModelError where names, kinds or shapes do not fit.
    """
    file, layers = open_network(path), list(adapter.iter_layers())
    trained = {layer.plan.name: _trained_layer(layer) for layer in layers}
    require_fit(file, trained, adapter.family, takes_ranks=takes_ranks)
    own, state = adapter.state_dict(), read_state(file)
    ranks = {f"{layer.plan.name}.alpha": torch.tensor(float(layer.kind.rank(layer.parameters))) for layer in layers}
    adapter.load_state_dict({**{name: ranks[name] for name in own if name in ranks}, **_known(state, own)})


def _trained_layer(layer: AdapterLayer) -> TrainedLayer:
    return TrainedLayer(layer.plan.part, layer.plan.kind, {suffix: tuple(tensor.shape) for suffix, tensor in layer.parameters.items()})


def _known(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the alphas of kinds that have none."""
    return {name: tensor for name, tensor in state.items() if name in own or not name.endswith(".alpha")}
