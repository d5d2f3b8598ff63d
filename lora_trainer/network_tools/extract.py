"""What training changed in a checkpoint, as a LoRA: for each layer the best low-rank pair for the difference of two files' weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
from torch import Tensor

from lora_trainer.errors import ModelError
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.detection.infer_config import TARGET
from lora_trainer.network_tools import low_rank
from lora_trainer.network_tools.layers import Layer, Place, layers_of
from lora_trainer.network_tools.low_rank import Pair, Wanted
from lora_trainer.network_tools.safetensors_stream import opened
from lora_trainer.network_tools.saving import made_words, write_network

UNCHANGED = 1e-12


@attrs.frozen
class Extracting:
    """What is wanted: the rank of the attention layers, that of all other layers of the U-Net (0: none), or as much energy as asked."""

    rank: int = 32
    conv_rank: int = 0
    energy: float = 1.0
    text: bool = True

    def of(self, layer: Layer) -> Wanted | None:
        """What is wanted of one layer; None: nothing."""
        if len(layer.shape) == 1 or (layer.part != "unet" and not self.text):
            return None
        if TARGET.fullmatch(f"{layer.path}.weight"):
            return Wanted(self.rank, self.energy)
        return Wanted(self.conv_rank, self.energy) if self.conv_rank and layer.part == "unet" else None


@attrs.frozen
class Extracted:
    """Layers taken, layers in which nothing differs, and the share of the squares of all differences that the file holds."""

    family: str
    layers: int
    unchanged: int
    energy: float
    ranks: dict[str, int]


def extract(
    base: Path,
    tuned: Path,
    out: Path,
    wanted: Extracting,
    *,
    precision: str = "fp16",
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Extracted:
    """Writes the difference of two checkpoints as a LoRA, layer by layer; both are only read.

    Raises ModelError when they do not belong together, or do not differ.
    """
    row, layers = layers_of(base)
    other_row, others = layers_of(tuned)
    if row.family != other_row.family:
        raise ModelError(
            "{base} is of the family {one}, {tuned} of {other}.",
            base=base.name,
            tuned=tuned.name,
            one=row.label,
            other=other_row.label,
            fix="Choose two checkpoints of the same family.",
        )
    asked = [(layer, want) for layer in layers.values() if (want := wanted.of(layer)) is not None]
    wrong = next((layer.name for layer, _ in asked if layer.name not in others or others[layer.name].shape != layer.shape), "")
    if wrong:
        raise ModelError("{name} is of another shape in {tuned}.", name=wrong, tuned=tuned.name, fix="Choose two models of the same build.")
    pairs: dict[str, Pair] = {}
    state: dict[str, Tensor] = {}
    with opened(base) as before, opened(tuned) as after:
        for number, (layer, want) in enumerate(asked, start=1):
            difference = placed(after, others[layer.name].weight).float() - placed(before, layer.weight).float()
            tell(number, len(asked))
            if not float(difference.abs().max()) > UNCHANGED:
                continue
            pair = pairs[layer.name] = low_rank.of_matrix(difference.flatten(1), want)
            state |= low_rank.tensors_of(layer.name, pair, layer.shape)
    if not pairs:
        raise ModelError("{base} and {tuned} do not differ.", base=base.name, tuned=tuned.name, fix="Choose the trained checkpoint.")
    ranks = {name: pair.rank for name, pair in pairs.items()}
    write_network(out, state, _words(row, base, tuned, out, list(ranks.values())), precision)
    return Extracted(row.family, len(pairs), len(asked) - len(pairs), low_rank.shares(pairs), ranks)


def placed(tensor_of: Callable[[str], Tensor], place: Place) -> Tensor:
    """The numbers of a place in a checkpoint, as modules see them."""
    whole = tensor_of(place.key)
    seen = whole.t() if place.turned else whole
    return seen[place.first_row : place.first_row + place.shape[0]] if seen.ndim else seen


def _words(row: layout.Row, base: Path, tuned: Path, out: Path, ranks: list[int]) -> dict[str, str]:
    prediction = inspect(base).prediction
    words = {
        "ss_v2": str(row.v2),
        "ss_base_model_version": row.base_version(prediction),
        "ss_sd_model_name": base.name,
        "ss_network_args": "{}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": row.architecture_for(prediction),
        "modelspec.prediction_type": prediction,
    }
    done = {"tool": "extract", "base": base.name, "from": tuned.name}
    return made_words(words, ranks, [float(rank) for rank in ranks], out, done)
