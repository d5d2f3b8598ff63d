"""The difference of two checkpoints as a LoRA: for each layer the best low-rank pair for the difference of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, TensorSlice, checkpoint_layers
from lora_trainer.errors import ModelError
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.detection.infer_config import TARGET
from lora_trainer.models.files.safetensors_stream import open_tensors
from lora_trainer.network_tools import low_rank
from lora_trainer.network_tools.low_rank import LowRankPair, RankTarget
from lora_trainer.network_tools.saving import derived_metadata, write_network

UNCHANGED = 1e-12
"""Layers whose largest difference is not above this are left out."""


@attrs.frozen
class ExtractOptions:
    """Ranks of the attention layers and of the U-Net's other layers (0: left out), the energy to keep, whether to take text encoders."""

    rank: int = 32
    conv_rank: int = 0
    energy: float = 1.0
    text: bool = True
    skip_rounding: bool = False
    """Leave out layers that differ by rounding alone, as between a checkpoint in float32 and its copy in bf16."""

    def target_for(self, layer: CheckpointLayer) -> RankTarget | None:
        """The target of one layer; None: it is left out."""
        if len(layer.shape) == 1 or (layer.part != "unet" and not self.text):
            return None
        if TARGET.fullmatch(f"{layer.path}.weight"):
            return RankTarget(self.rank, self.energy)
        return RankTarget(self.conv_rank, self.energy) if self.conv_rank and layer.part == "unet" else None


@attrs.frozen
class ExtractResult:
    """How many layers are in the file, how many do not differ, the share of squared singular values kept, and the ranks by layer.

    `rounding`: how many differ by rounding alone; they are in the file unless they were to be left out.
    """

    family: str
    layers: int
    unchanged: int
    rounding: int
    energy: float
    ranks: dict[str, int]


def extract(
    base: Path,
    tuned: Path,
    out: Path,
    options: ExtractOptions,
    *,
    precision: str = "fp16",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractResult:
    """Writes the difference of two checkpoints as a LoRA, layer by layer.

    `on_progress` gets (layers done, layers in all). Raises ModelError where the checkpoints have other families or shapes, or do not
    differ.
    """
    row, layers = checkpoint_layers(base)
    other_row, others = checkpoint_layers(tuned)
    if row.family != other_row.family:
        raise ModelError(
            "{base} is of the family {one}, {tuned} of {other}.",
            base=base.name,
            tuned=tuned.name,
            one=row.label,
            other=other_row.label,
            fix="Choose two checkpoints of the same family.",
        )
    targets = [(layer, target) for layer in layers.values() if (target := options.target_for(layer)) is not None]
    mismatched = next((layer.name for layer, _ in targets if layer.name not in others or others[layer.name].shape != layer.shape), "")
    if mismatched:
        raise ModelError(
            "{name} is of another shape in {tuned}.", name=mismatched, tuned=tuned.name, fix="Choose two models of the same build."
        )
    pairs: dict[str, LowRankPair] = {}
    state: dict[str, Tensor] = {}
    rounding = 0
    with open_tensors(base) as before, open_tensors(tuned) as after:
        for number, (layer, target) in enumerate(targets, start=1):
            one, other = read_slice(before, layer.weight), read_slice(after, others[layer.name].weight)
            difference = other.float() - one.float()
            on_progress(number, len(targets))
            if not float(difference.abs().max()) > UNCHANGED:
                continue
            if differs_by_rounding(one, other):
                rounding += 1
                if options.skip_rounding:
                    continue
            pair = pairs[layer.name] = low_rank.decompose(difference.flatten(1), target)
            state |= low_rank.lora_state(layer.name, pair, layer.shape)
    if not pairs and rounding:
        raise ModelError(
            "{base} and {tuned} differ by rounding alone.", base=base.name, tuned=tuned.name, fix="Choose the trained checkpoint."
        )
    if not pairs:
        raise ModelError("{base} and {tuned} do not differ.", base=base.name, tuned=tuned.name, fix="Choose the trained checkpoint.")
    ranks = {name: pair.rank for name, pair in pairs.items()}
    write_network(out, state, _metadata(row, base, tuned, out, list(ranks.values())), precision)
    left_out = rounding if options.skip_rounding else 0
    return ExtractResult(row.family, len(pairs), len(targets) - len(pairs) - left_out, rounding, low_rank.energy_share(pairs), ranks)


def differs_by_rounding(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of different dtypes are one, rounded to nearest: no value is further off than half a step of each dtype."""
    if one.dtype == other.dtype:
        return False
    infos = [torch.finfo(tensor.dtype) for tensor in (one, other)]
    relative, absolute = sum(info.eps for info in infos) / 2, sum(info.tiny * info.eps for info in infos) / 2
    first, second = one.double(), other.double()
    return bool(((first - second).abs() <= relative * torch.maximum(first.abs(), second.abs()) + absolute).all())


def read_slice(tensor_of: Callable[[str], Tensor], tensor_slice: TensorSlice) -> Tensor:
    """A module's tensor in a checkpoint, a view of the stored one."""
    stored = tensor_of(tensor_slice.key)
    tensor = stored.t() if tensor_slice.transposed else stored
    return tensor[tensor_slice.first_row : tensor_slice.first_row + tensor_slice.shape[0]] if tensor.ndim else tensor


def _metadata(row: layout.FamilyRow, base: Path, tuned: Path, out: Path, ranks: list[int]) -> dict[str, str]:
    prediction = inspect(base).prediction
    metadata = {
        "ss_v2": str(row.v2),
        "ss_base_model_version": row.base_version(prediction),
        "ss_sd_model_name": base.name,
        "ss_network_args": "{}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": row.architecture_for(prediction),
        "modelspec.prediction_type": prediction,
    }
    history = {"tool": "extract", "base": base.name, "from": tuned.name}
    return derived_metadata(metadata, ranks, [float(rank) for rank in ranks], out, history)
