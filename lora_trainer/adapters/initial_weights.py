"""Training that begins with a file: its ranks for the config, its values for the network."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path

import torch

from lora_trainer.adapters.lora_file import read_lora
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.network_file import ModuleState, modules_of
from lora_trainer.errors import ModelError

GROUPS = ("", "conv_", "text_encoder_")
"""What the options of a rank and its alpha begin with: of all layers, of wide convolutions, of text encoders."""


def ranks_of_file(path: Path, *, rs_lora: bool = False) -> dict[str, tuple[int, float]]:
    """(rank, alpha) of a network file by group; groups that have what all layers have are left out.

    `rs_lora`: the file's alphas are those of rank-stabilised layers. Raises ModelError for another file, and where the layers of a
    group have different ranks or alphas.
    """
    found: dict[str, set[tuple[int, float]]] = {}
    for name, state in modules_of(read_lora(path)[0], str(path)).items():
        if state.kind.facts.ranked and not _whole(state):
            alpha = state.alpha / sqrt(state.rank) if rs_lora else state.alpha
            found.setdefault(_group(name, state), set()).add((state.rank, alpha))
    if not found or any(len(pairs) > 1 for pairs in found.values()):
        raise ModelError(
            "the layers of {path} have different ranks or alphas.",
            path=str(path),
            fix="Turn off network.dim_from_weights, or choose another file.",
        )
    pairs = {group: next(iter(found[group])) for group in GROUPS if group in found}
    usual = next(iter(pairs.values()))
    return {"": usual, **{group: pair for group, pair in pairs.items() if pair != usual}}


def _group(name: str, state: ModuleState) -> str:
    if name.startswith("lora_te"):
        return "text_encoder_"
    return "conv_" if any(tensor.dim() == 4 and tensor.shape[-1] > 1 for tensor in state.tensors.values()) else ""


def _whole(state: ModuleState) -> bool:
    """A Kronecker product of two whole matrices has no rank."""
    return state.kind.name == "lokr" and {"lokr_w1", "lokr_w2"} <= set(state.tensors)


def load_initial_weights(adapter: NetworkAdapter, path: Path) -> None:
    """Gives a network the values of a file. Raises ModelError where names, ranks or shapes do not fit."""
    state: Mapping[str, torch.Tensor] = read_lora(path)[0]
    own = adapter.state_dict()
    ranks = {f"{layer.plan.name}.alpha": torch.tensor(float(layer.kind.rank(layer.parameters))) for layer in adapter.iter_layers()}
    whole = {**{name: ranks[name] for name in own if name in ranks}, **state}  # a file without alphas means alpha = rank
    wrong = sorted(set(own) ^ set(whole)) or [name for name in own if own[name].shape != whole[name].shape]
    if wrong:
        raise ModelError(
            "{path} does not fit this run: {name}.",
            path=str(path),
            name=wrong[0],
            fix="Take a file of the same model, rank and trained parts, or set network.dim_from_weights.",
        )
    adapter.load_state_dict(whole)
