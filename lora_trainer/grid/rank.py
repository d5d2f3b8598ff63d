"""Ranks the cells of a grid from the latents of drawn pictures.

Two scores from 0 to 1 for each cell of a shortlist. Likeness: how close pictures drawn with the trigger come to validation
pictures. Keeping: how close pictures of unrelated prompts stay to what the base model draws at the same seed. The best cell has
the highest product of the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor

from lora_trainer.grid.cell_scores import OVERTRAINED_RATIO, Cell, Scores
from lora_trainer.grid.diagnosis import Diagnosis, diagnose
from lora_trainer.messages import Message, say

MAX_CELLS = 6
SEEDS = 16
PROMPTS = 8
MIN_GAIN_ERRORS = 3.0
MIN_GAIN_SHARE = 0.15
SURE_ERRORS = 2.0


@attrs.frozen(eq=False)
class CellLatents:
    """Scaled latents of one cell's pictures: `concept` [n, channels, h, w] with the trigger, `others` [m, channels, h, w] without.

    Picture i of every cell, and of the base, has the same prompt and seed.
    """

    concept: Tensor
    others: Tensor


@attrs.frozen
class Measurements:
    """Measurements of a cell's pictures: `distances` to the nearest reference and `drifts` from the base model, one per picture.

    `moved`: as `drifts`, of the pictures with the trigger; empty where an older version measured. `copied` is the share of pictures that
    are closer to a training picture than any two training pictures are to each other.
    """

    distances: tuple[float, ...]
    drifts: tuple[float, ...]
    copied: float = 0.0
    moved: tuple[float, ...] = ()


@attrs.frozen
class Baseline:
    """Reference distances: `base` of pictures without the network, `real` between real pictures, `unrelated` between base pictures."""

    base: tuple[float, ...]
    real: float
    unrelated: float


@attrs.frozen
class Ranking:
    """`best` None: no cell shows the concept, as `because` says. `margin`: lead over the second best, in standard errors."""

    scores: tuple[Scores, ...]
    best: Scores | None
    because: tuple[Message, ...]
    margin: float | None = None
    overtrained: bool | None = None
    diagnosis: Diagnosis | None = None
    """What it looks like where there is no best."""

    @property
    def sure(self) -> str:
        """ "sure" or "close"; "" without a best."""
        if self.best is None:
            return ""
        return "sure" if self.margin is None or self.margin >= SURE_ERRORS else "close"


# choosing the cells to measure


def shortlist(losses: Mapping[int, float | None], weights: Sequence[float], limit: int = MAX_CELLS) -> list[Cell]:
    """At most `limit` cells: the epoch with the lowest validation loss at the weight nearest to 1, then its neighbours in weight.

    The last epoch at that weight is included, since it is the default choice. Then come the next lowest losses. Without validation
    the epochs are the last one and those at 75 % and 50 % of the run. Weight 0 is skipped: it has no network.
    """
    columns = sorted((weight for weight in set(weights) if weight), key=lambda weight: (abs(weight - 1.0), weight))
    if not columns or not losses:
        return []
    rows = _epochs_by_loss(losses)
    first, last = rows[0], max(losses)
    cells = [(first, columns[0]), (last, columns[0]), *((first, weight) for weight in columns[1:3])]
    for row in rows[1:]:
        cells += [(row, weight) for weight in columns[:2]]
    cells += [(row, weight) for row in rows for weight in columns]
    return list(dict.fromkeys(cells))[:limit]


def _epochs_by_loss(losses: Mapping[int, float | None]) -> list[int]:
    epochs = sorted(losses)
    measured_losses = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    if measured_losses:
        return sorted(measured_losses, key=lambda epoch: (measured_losses[epoch], epoch))
    shares = (1.0, 0.75, 0.5)
    return list(dict.fromkeys(epochs[max(0, math.ceil(len(epochs) * share) - 1)] for share in shares))


# measuring


def distances(pictures: Tensor, references: Tensor) -> Tensor:
    """[n, m]: 1 - correlation of latents [n, channels, h, w] and [m, channels, h, w], each channel minus its mean.

    A blank picture has distance 1 to everything. (With a squared distance it would be closer than a wrong shape; measured on the
    small model.)
    """
    flattened = [(latents - latents.mean((2, 3), keepdim=True)).flatten(1) for latents in (pictures.float(), references.float())]
    first, second = (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6) for flat in flattened)
    return 1.0 - first @ second.T


def rms_distances(pictures: Tensor, references: Tensor) -> Tensor:
    """[n, m]: root mean squared difference of latents; 0 for the same picture."""
    return torch.cdist(pictures.float().flatten(1), references.float().flatten(1)) / math.sqrt(pictures[0].numel())


def make_baseline(base: CellLatents, references: Tensor, training: Tensor | None) -> Baseline:
    """The reference distances. `training` None: the references are the training pictures themselves."""
    if training is None:
        between = distances(references, references).fill_diagonal_(1.0)
    else:
        between = distances(references, training)
    spread = distances(base.others, base.others).fill_diagonal_(0.0)
    pairs = len(spread) * (len(spread) - 1)
    return Baseline(
        base=tuple(distances(base.concept, references).min(1).values.tolist()),
        real=float(between.min(1).values.mean()) if len(references) > 1 else 0.0,
        unrelated=float(spread.sum()) / pairs if pairs else 1.0,
    )


def measure(drawn: CellLatents, base: CellLatents, references: Tensor, *, are_training: bool) -> Measurements:
    """Measurements of a cell; copies are only looked for where the references are training pictures."""
    nearest = distances(drawn.concept, references).min(1).values
    drifts = distances(drawn.others, base.others).diagonal()
    moved = distances(drawn.concept, base.concept).diagonal()
    copied = _copied_share(drawn.concept, references) if are_training else 0.0
    return Measurements(tuple(nearest.tolist()), tuple(drifts.tolist()), copied, tuple(moved.tolist()))


def _copied_share(pictures: Tensor, training: Tensor) -> float:
    if len(training) < 2:
        return 0.0
    differences = rms_distances(training, training)
    closest_pair = float(differences[~torch.eye(len(training), dtype=torch.bool)].min())
    return float((rms_distances(pictures, training).min(1).values < closest_pair).float().mean())


# ranking


def rank(measured: Mapping[Cell, Measurements], baseline: Baseline, losses: Mapping[int, float | None]) -> Ranking:
    """Scores of the measured cells, the best of them, and why."""
    scores = {cell: _scores(cell, measurements, baseline) for cell, measurements in measured.items()}
    eligible = [score for score in scores.values() if score.shown and not score.copies]
    ordered = tuple(sorted(scores.values(), key=lambda score: score.cell))
    overtrained = _overtrained(scores, losses)
    if not eligible:
        changes = {cell: _concept_change(measurements, baseline) for cell, measurements in measured.items()}
        return Ranking(ordered, None, (_no_best_reason(ordered),), None, overtrained, diagnose(ordered, changes, losses))
    best, *others = sorted(eligible, key=lambda score: (-score.product, score.epoch, score.weight))
    behind = [(_margin(measured[best.cell], measured[other.cell], best, other, baseline), other) for other in others]
    margin, second = min(behind, key=lambda pair: pair[0], default=(None, None))
    because = _reasons(best, second if margin is not None and margin < SURE_ERRORS else None, losses, ordered)
    if overtrained:
        because.append(say("The last epoch is over-trained."))
    return Ranking(ordered, best, tuple(because), margin, overtrained)


def _scores(cell: Cell, measurements: Measurements, baseline: Baseline) -> Scores:
    gains = [before - after for before, after in zip(baseline.base, measurements.distances, strict=True)]
    span = _span(baseline)
    gain, error = mean(gains), standard_error(gains)
    likeness, keeping = _clamp(gain / span), _clamp(1.0 - mean(measurements.drifts) / baseline.unrelated)
    return Scores(
        epoch=cell[0],
        weight=cell[1],
        fidelity=mean(measurements.distances),
        likeness=likeness,
        likeness_error=error / span,
        keeping=keeping,
        keeping_error=seed_error(measurements.drifts) / baseline.unrelated,
        product=likeness * keeping,
        shown=gain > MIN_GAIN_ERRORS * error and gain > MIN_GAIN_SHARE * span,
        copies=measurements.copied > 0.5,
    )


def _concept_change(measurements: Measurements, baseline: Baseline) -> float:
    """How far the pictures with the trigger moved from the base model's own, as a share of the way to unrelated ones."""
    if measurements.moved:
        return mean(measurements.moved) / baseline.unrelated
    return mean([abs(before - after) for before, after in zip(baseline.base, measurements.distances, strict=True)]) / _span(baseline)


def _span(baseline: Baseline) -> float:
    """The largest possible gain: from the base model's distance down to that of real pictures."""
    return max(mean(baseline.base) - baseline.real, 1e-3)


def _margin(best: Measurements, other: Measurements, first: Scores, second: Scores, baseline: Baseline) -> float:
    """How far the product of `other` is behind, in standard errors of the paired differences."""
    distance_differences = [theirs - mine for mine, theirs in zip(best.distances, other.distances, strict=True)]
    drift_differences = [theirs - mine for mine, theirs in zip(best.drifts, other.drifts, strict=True)]
    keeping, likeness = (first.keeping + second.keeping) / 2, (first.likeness + second.likeness) / 2
    error = math.hypot(
        keeping * standard_error(distance_differences) / _span(baseline), likeness * seed_error(drift_differences) / baseline.unrelated
    )
    behind = first.product - second.product
    return behind / error if error else (math.inf if behind else 0.0)


def _overtrained(scores: Mapping[Cell, Scores], losses: Mapping[int, float | None]) -> bool | None:
    """Whether the last epoch is worse than an earlier one; None without any comparison."""
    last = max(losses)
    measured_losses = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    if last in measured_losses and len(measured_losses) > 1 and measured_losses[last] > OVERTRAINED_RATIO * min(measured_losses.values()):
        return True
    is_compared = False
    for late in (score for score in scores.values() if score.epoch == last):
        for early in (score for score in scores.values() if score.epoch != last and score.weight == late.weight):
            error = math.hypot(early.keeping * early.likeness_error, early.likeness * early.keeping_error)
            if (late.copies and not early.copies) or early.product - late.product > SURE_ERRORS * error > 0:
                return True
            is_compared = True
    return False if is_compared or last in measured_losses else None


def _reasons(best: Scores, tied: Scores | None, losses: Mapping[int, float | None], scores: Sequence[Scores]) -> list[Message]:
    because = [
        say(
            "Best product of likeness ({likeness}) and keeping the base ({keeping}).",
            likeness=f"{best.likeness:.2f}",
            keeping=f"{best.keeping:.2f}",
        )
    ]
    measured_losses = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    if measured_losses and measured_losses.get(best.epoch) == min(measured_losses.values()):
        because.append(say("Its epoch has the lowest validation loss."))
    if tied is not None:
        because.append(say("Epoch {epoch} at {weight} is as good within the error.", epoch=tied.epoch, weight=f"{tied.weight:g}"))
    if copying := sorted({score.epoch for score in scores if score.copies}):
        because.append(say("Epoch {epochs} copies training pictures.", epochs=", ".join(map(str, copying))))
    return because


def _no_best_reason(scores: Sequence[Scores]) -> Message:
    if any(score.copies for score in scores):
        return say("No cell shows the concept without copying a training picture.")
    return say("No cell shows the concept: with the network, pictures are no nearer to yours than without it.")


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 of an empty sequence."""
    return sum(values) / len(values) if values else 0.0


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def seed_error(values: Sequence[float]) -> float:
    """Standard error of the mean over seeds, where `values` repeat the same PROMPTS prompts once per seed.

    Prompts are fixed and only seeds are random, so differences between prompts do not count as error.
    """
    if len(values) % PROMPTS or len(values) == PROMPTS:
        return standard_error(values)
    return math.sqrt(sum(standard_error(values[number::PROMPTS]) ** 2 for number in range(PROMPTS))) / PROMPTS


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value))
