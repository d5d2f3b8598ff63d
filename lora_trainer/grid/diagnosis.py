"""What a grid without a best cell looks like: trained too little, too much, or with captions that do not name the subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from lora_trainer.grid.cell_scores import OVERTRAINED_RATIO, Cell, Scores
from lora_trainer.messages import Message, say

TOO_LITTLE, TOO_MUCH, WRONG_CAPTIONS = "too-little", "too-much", "captions"
HIGHER_RATE, LOWER_RATE, MORE_EPOCHS, LOWER_WEIGHTS, CAPTIONS = "higher-rate", "lower-rate", "more-epochs", "lower-weights", "captions"
HARDLY_CHANGED = 0.15
"""Largest change, as a share of the way to real pictures or to unrelated ones, that counts as none."""
KEEPS_LITTLE, LOW_WEIGHT = 0.5, 0.6
NEARER, NEARER_ERRORS = 0.05, 2.0


@attrs.frozen
class Diagnosis:
    """`kind` is one of the first three words above, `because` says what was seen, `remedy` is one of the others."""

    kind: str
    because: Message
    remedy: str


def diagnose(scores: Sequence[Scores], changes: Mapping[Cell, float], losses: Mapping[int, float | None]) -> Diagnosis:
    """Of measured cells, none of which shows the concept without copying.

    `changes`: how far each cell's pictures with the trigger moved from the base model's own, as a share of the way to unrelated ones.
    """
    if copied := sorted({score.epoch for score in scores if score.copies}):
        text = "It looks trained too much: epoch {epochs} copies training pictures."
        return Diagnosis(TOO_MUCH, say(text, epochs=", ".join(map(str, copied))), LOWER_RATE)
    if (lowest := _epoch_before_rise(losses)) is not None:
        text = "It looks trained too much: the validation loss rises after epoch {epoch}."
        return Diagnosis(TOO_MUCH, say(text, epoch=lowest), LOWER_RATE)
    keeping = min((score.keeping for score in scores), default=1.0)
    if max([*changes.values(), 1.0 - keeping], default=0.0) < HARDLY_CHANGED:
        text = "It looks trained too little: pictures hardly differ from those without the network."
        return Diagnosis(TOO_LITTLE, say(text), HIGHER_RATE)
    if keeping < KEEPS_LITTLE:
        text = "It looks trained too much, or at too high a weight: other prompts keep only {percent} % of what they drew before."
        lowest_weight = min(score.weight for score in scores)
        return Diagnosis(TOO_MUCH, say(text, percent=round(100 * keeping)), LOWER_WEIGHTS if lowest_weight > LOW_WEIGHT else LOWER_RATE)
    nearest = max(scores, key=lambda score: score.likeness)
    if nearest.likeness > max(NEARER, NEARER_ERRORS * nearest.likeness_error):
        text = "It looks trained too little: pictures come nearer to yours ({percent} % of the way), but not near enough."
        return Diagnosis(TOO_LITTLE, say(text, percent=round(100 * nearest.likeness)), MORE_EPOCHS)
    text = (
        "It looks like wrong captions: pictures change, but not towards yours. Does each caption hold the trigger word and fit its picture?"
    )
    return Diagnosis(WRONG_CAPTIONS, say(text), CAPTIONS)


def _epoch_before_rise(losses: Mapping[int, float | None]) -> int | None:
    """The epoch with the lowest validation loss, if the last one's is clearly higher."""
    measured = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    if len(measured) < 2:
        return None
    lowest, last = min(measured, key=lambda epoch: (measured[epoch], epoch)), max(measured)
    return lowest if measured[last] > OVERTRAINED_RATIO * measured[lowest] else None
