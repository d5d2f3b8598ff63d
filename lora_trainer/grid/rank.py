"""Which cell is best, from drawn pictures alone: arithmetic on latents and on the numbers that come out of it.

Two questions for each cell of a shortlist. Likeness: how near do pictures drawn with the trigger come to pictures that the
training never saw? Keeping: how near do pictures of other things stay to what the base draws at the same seed? The best cell has
the highest product of the two, each from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor

from lora_trainer.messages import Message, say

MOST = 6
SEEDS = 16
PROMPTS = 8
SHOWN_ERRORS = 3.0
SHOWN_LIKENESS = 0.15
SURE_ERRORS = 2.0
RISEN = 1.03
Cell = tuple[int, float]


@attrs.frozen(eq=False)
class Drawn:
    """Scaled latents of one cell's pictures: `concept` [n, 4, h, w] with the trigger, `others` [m, 4, h, w] without.

    Picture i of every cell, and of the base, has the same prompt and seed.
    """

    concept: Tensor
    others: Tensor


@attrs.frozen
class Measured:
    """What is kept of a cell's pictures. `distances` to the nearest reference and `drifts` from the base, one per picture.

    `copied` is the share of pictures that lie nearer to a training picture than any two of those lie to each other.
    """

    distances: tuple[float, ...]
    drifts: tuple[float, ...]
    copied: float = 0.0


@attrs.frozen
class Yardstick:
    """What distances mean: `base` without the network, `real` of real pictures from each other, `unrelated` of base pictures."""

    base: tuple[float, ...]
    real: float
    unrelated: float


@attrs.frozen
class Scores:
    """A cell's numbers. `fidelity` is the mean distance (lower is nearer); likeness and keeping are 0 to 1 with their standard errors."""

    epoch: int
    weight: float
    fidelity: float
    likeness: float
    likeness_error: float
    keeping: float
    keeping_error: float
    product: float
    shown: bool
    copies: bool

    @property
    def cell(self) -> Cell:
        """(epoch, weight)."""
        return self.epoch, self.weight


@attrs.frozen
class Ranking:
    """`best` None: no cell shows the concept, `because` says so. `margin`: how far the next one is behind, in standard errors."""

    scores: tuple[Scores, ...]
    best: Scores | None
    because: tuple[Message, ...]
    margin: float | None = None
    overtrained: bool | None = None

    @property
    def sure(self) -> str:
        """ "sure" or "close"; "" without a best."""
        if self.best is None:
            return ""
        return "sure" if self.margin is None or self.margin >= SURE_ERRORS else "close"


# which cells are measured


def shortlist(losses: Mapping[int, float | None], weights: Sequence[float], most: int = MOST) -> list[Cell]:
    """At most `most` cells: the epoch with the lowest validation loss at the weight nearest to 1, then its neighbours in weight.

    The last epoch at that weight is among them: it is what one takes without looking. Then come the next lowest losses. Without
    validation the epochs are taken from the end of the run, its third quarter and its middle. Weight 0 is no network.
    """
    columns = sorted((weight for weight in set(weights) if weight), key=lambda weight: (abs(weight - 1.0), weight))
    if not columns or not losses:
        return []
    rows = _promising(losses)
    first, last = rows[0], max(losses)
    wanted = [(first, columns[0]), (last, columns[0]), *((first, weight) for weight in columns[1:3])]
    for row in rows[1:]:
        wanted += [(row, weight) for weight in columns[:2]]
    wanted += [(row, weight) for row in rows for weight in columns]
    return list(dict.fromkeys(wanted))[:most]


def _promising(losses: Mapping[int, float | None]) -> list[int]:
    epochs = sorted(losses)
    known = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    if known:
        return sorted(known, key=lambda epoch: (known[epoch], epoch))
    places = (1.0, 0.75, 0.5)
    return list(dict.fromkeys(epochs[max(0, math.ceil(len(epochs) * place) - 1)] for place in places))


# pictures to numbers


def distances(pictures: Tensor, references: Tensor) -> Tensor:
    """[n, m]: 1 - correlation of latents [n, 4, h, w] and [m, 4, h, w], each channel less its own mean.

    An empty picture is at 1 from everything. (A squared distance calls it nearer than a wrong shape; measured on the small model.)
    """
    shapes = [(latents - latents.mean((2, 3), keepdim=True)).flatten(1) for latents in (pictures.float(), references.float())]
    first, second = (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6) for flat in shapes)
    return 1.0 - first @ second.T


def apart(pictures: Tensor, references: Tensor) -> Tensor:
    """[n, m]: root of the mean squared difference of latents; 0 for the same picture."""
    return torch.cdist(pictures.float().flatten(1), references.float().flatten(1)) / math.sqrt(pictures[0].numel())


def yardstick(base: Drawn, references: Tensor, training: Tensor | None) -> Yardstick:
    """From what the base draws. `training` None: the references are training pictures themselves."""
    if training is None:
        between = distances(references, references).fill_diagonal_(1.0)
    else:
        between = distances(references, training)
    spread = distances(base.others, base.others).fill_diagonal_(0.0)
    pairs = len(spread) * (len(spread) - 1)
    return Yardstick(
        base=tuple(distances(base.concept, references).min(1).values.tolist()),
        real=float(between.min(1).values.mean()) if len(references) > 1 else 0.0,
        unrelated=float(spread.sum()) / pairs if pairs else 1.0,
    )


def measure(drawn: Drawn, base: Drawn, references: Tensor, *, are_training: bool) -> Measured:
    """Numbers of a cell; copies are looked for where the references are training pictures."""
    near = distances(drawn.concept, references).min(1).values
    drifts = distances(drawn.others, base.others).diagonal()
    return Measured(tuple(near.tolist()), tuple(drifts.tolist()), _copied(drawn.concept, references) if are_training else 0.0)


def _copied(pictures: Tensor, training: Tensor) -> float:
    if len(training) < 2:
        return 0.0
    between = apart(training, training)
    nearest_two = float(between[~torch.eye(len(training), dtype=torch.bool)].min())
    return float((apart(pictures, training).min(1).values < nearest_two).float().mean())


# numbers to a choice


def rank(measured: Mapping[Cell, Measured], measure_of: Yardstick, losses: Mapping[int, float | None]) -> Ranking:
    """Scores of the measured cells, the best of them, and why."""
    scores = {cell: _scores(cell, found, measure_of) for cell, found in measured.items()}
    able = [score for score in scores.values() if score.shown and not score.copies]
    ordered = tuple(sorted(scores.values(), key=lambda score: score.cell))
    overtrained = _overtrained(scores, losses)
    if not able:
        return Ranking(ordered, None, (_why_none(ordered),), None, overtrained)
    best, *others = sorted(able, key=lambda score: (-score.product, score.epoch, score.weight))
    behind = [(_margin(measured[best.cell], measured[other.cell], best, other, measure_of), other) for other in others]
    margin, second = min(behind, key=lambda pair: pair[0], default=(None, None))
    because = _why(best, second if margin is not None and margin < SURE_ERRORS else None, losses, ordered)
    if overtrained:
        because.append(say("The last epoch is over-trained."))
    return Ranking(ordered, best, tuple(because), margin, overtrained)


def _scores(cell: Cell, found: Measured, measure_of: Yardstick) -> Scores:
    gains = [before - now for before, now in zip(measure_of.base, found.distances, strict=True)]
    span = _span(measure_of)
    gain, error = mean(gains), standard_error(gains)
    likeness, keeping = _share(gain / span), _share(1.0 - mean(found.drifts) / measure_of.unrelated)
    return Scores(
        epoch=cell[0],
        weight=cell[1],
        fidelity=mean(found.distances),
        likeness=likeness,
        likeness_error=error / span,
        keeping=keeping,
        keeping_error=seed_error(found.drifts) / measure_of.unrelated,
        product=likeness * keeping,
        shown=gain > SHOWN_ERRORS * error and gain > SHOWN_LIKENESS * span,
        copies=found.copied > 0.5,
    )


def _span(measure_of: Yardstick) -> float:
    """What there is to gain: from the base's distance to that of real pictures."""
    return max(mean(measure_of.base) - measure_of.real, 1e-3)


def _margin(best: Measured, other: Measured, first: Scores, second: Scores, measure_of: Yardstick) -> float:
    """How far the product of `other` lies behind, in standard errors of the paired differences."""
    nearer = [theirs - mine for mine, theirs in zip(best.distances, other.distances, strict=True)]
    steadier = [theirs - mine for mine, theirs in zip(best.drifts, other.drifts, strict=True)]
    keeping, likeness = (first.keeping + second.keeping) / 2, (first.likeness + second.likeness) / 2
    error = math.hypot(keeping * standard_error(nearer) / _span(measure_of), likeness * seed_error(steadier) / measure_of.unrelated)
    behind = first.product - second.product
    return behind / error if error else (math.inf if behind else 0.0)


def _overtrained(scores: Mapping[Cell, Scores], losses: Mapping[int, float | None]) -> bool | None:
    """Whether the last epoch is worse than an earlier one; None when nothing tells."""
    last = max(losses)
    known = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    if last in known and len(known) > 1 and known[last] > RISEN * min(known.values()):
        return True
    told = False
    for late in (score for score in scores.values() if score.epoch == last):
        for early in (score for score in scores.values() if score.epoch != last and score.weight == late.weight):
            error = math.hypot(early.keeping * early.likeness_error, early.likeness * early.keeping_error)
            if (late.copies and not early.copies) or early.product - late.product > SURE_ERRORS * error > 0:
                return True
            told = True
    return False if told or last in known else None


def _why(best: Scores, as_good: Scores | None, losses: Mapping[int, float | None], scores: Sequence[Scores]) -> list[Message]:
    because = [
        say(
            "Best product of likeness ({likeness}) and keeping the base ({keeping}).",
            likeness=f"{best.likeness:.2f}",
            keeping=f"{best.keeping:.2f}",
        )
    ]
    known = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    if known and known.get(best.epoch) == min(known.values()):
        because.append(say("Its epoch has the lowest validation loss."))
    if as_good is not None:
        because.append(say("Epoch {epoch} at {weight} is as good within the error.", epoch=as_good.epoch, weight=f"{as_good.weight:g}"))
    if copying := sorted({score.epoch for score in scores if score.copies}):
        because.append(say("Epoch {epochs} copies training pictures.", epochs=", ".join(map(str, copying))))
    return because


def _why_none(scores: Sequence[Scores]) -> Message:
    if any(score.copies for score in scores):
        return say("No cell shows the concept without copying a training picture.")
    return say("No cell shows the concept: with the network, pictures are no nearer to yours than without it.")


def mean(values: Sequence[float]) -> float:
    """Average; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def seed_error(values: Sequence[float]) -> float:
    """Standard error of the mean where the same prompts come again with other seeds, one round after the other.

    The prompts are fixed and the seeds are what chance chose: what differs between prompts is no error.
    """
    if len(values) % PROMPTS or len(values) == PROMPTS:
        return standard_error(values)
    return math.sqrt(sum(standard_error(values[number::PROMPTS]) ** 2 for number in range(PROMPTS))) / PROMPTS


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
