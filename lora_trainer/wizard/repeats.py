"""How often each picture is trained on, as whole repeats and epochs (no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from lora_trainer.wizard.facts import BucketCounts
from lora_trainer.wizard.subjects import Subject

MIN_STEPS, MAX_STEPS, MAX_STEPS_SDXL = 400, 3000, 4000
EPOCHS = range(8, 13)
ENOUGH_PICTURES = 40
PREFERRED_EPOCHS = 10


@attrs.frozen
class SampleCount:
    """Pictures per bucket and the batch size, from which a run's steps are counted; `max_steps` is the upper limit."""

    bucket_counts: Sequence[BucketCounts]
    batch: int
    accumulation: int
    max_steps: int = MAX_STEPS

    @property
    def pictures(self) -> int:
        """Number of training pictures."""
        return sum(counts.pictures for counts in self.bucket_counts)

    @property
    def effective_batch_size(self) -> int:
        """Pictures per optimizer step: batch size times accumulation steps."""
        return self.batch * self.accumulation

    @property
    def folder_repeats(self) -> float:
        """Mean repeats set by the folder names."""
        return sum(counts.examples for counts in self.bucket_counts) / self.pictures

    def steps(self, repeats: int | None, epochs: int) -> int:
        """Exact number of optimizer steps: a bucket's last batch and an epoch's last step may be smaller.

        `repeats` None: those of the folder names.
        """
        scale = 1.0 if repeats is None else repeats / self.folder_repeats
        examples = [
            (counts.examples if repeats is None else counts.pictures * repeats) + round(counts.regularisation * scale)
            for counts in self.bucket_counts
        ]
        batches = sum(math.ceil(count / self.batch) for count in examples)
        return epochs * math.ceil(batches / self.accumulation)


@attrs.frozen
class RepeatsAndEpochs:
    """Whole repeats (None: the folders') and epochs; `exposures` is their product, how often a picture is trained on.

    `bound` is "few" or "many" where the minimum or maximum number of steps decided.
    """

    repeats: int | None
    epochs: int
    exposures: float
    bound: str


def target_exposures(subject: Subject, pictures: int) -> float:
    """How often each picture should be trained on: more often where there are fewer than 40."""
    return subject.exposures * math.sqrt(math.sqrt(max(1.0, ENOUGH_PICTURES / pictures)))


def choose_repeats(subject: Subject, counts: SampleCount, *, repeats: int | None, epochs: int | None, by_folder: bool) -> RepeatsAndEpochs:
    """The whole repeats and epochs nearest to the target exposures, within 400 to `max_steps` steps.

    `repeats` and `epochs` are fixed where the user set them, else None; `by_folder`: the folder names set the repeats.
    """
    target = target_exposures(subject, counts.pictures)
    low, high = (steps * counts.effective_batch_size / counts.pictures for steps in (MIN_STEPS, counts.max_steps))
    aim = min(max(target, low), high)
    bound = "few" if target < low else "many" if target > high else ""
    if by_folder:
        candidates: list[tuple[int | None, int]] = [(None, count) for count in _around(aim / counts.folder_repeats)]
    elif repeats is not None:
        candidates = [(repeats, count) for count in _around(aim / repeats)]
    elif epochs is not None:
        candidates = [(count, epochs) for count in _around(aim / epochs)]
    else:
        candidates = [(count, number) for number in EPOCHS for count in _around(aim / number)]
        if not any(_within(counts, candidate) for candidate in candidates):
            candidates += [(1, number) for number in range(1, EPOCHS.start)]

    def distance(candidate: tuple[int | None, int]) -> tuple[float, ...]:
        steps = counts.steps(*candidate)
        outside = max(0, MIN_STEPS - steps, steps - counts.max_steps)
        return outside, abs(_exposures(counts, candidate) - aim), abs(candidate[1] - PREFERRED_EPOCHS), -candidate[1]

    best = min(candidates, key=distance)
    return RepeatsAndEpochs(*best, _exposures(counts, best), bound)


def _exposures(counts: SampleCount, candidate: tuple[int | None, int]) -> float:
    return (counts.folder_repeats if candidate[0] is None else candidate[0]) * candidate[1]


def _within(counts: SampleCount, candidate: tuple[int | None, int]) -> bool:
    return MIN_STEPS <= counts.steps(*candidate) <= counts.max_steps


def _around(value: float) -> list[int]:
    """Whole numbers near a value, at least 1; some below it, since uneven buckets make more steps than the mean says."""
    middle = max(1, round(value))
    return list(range(max(1, middle // 3), middle + 2))
