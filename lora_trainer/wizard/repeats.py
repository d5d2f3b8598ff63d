"""How often each picture is seen, as whole repeats and epochs (no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from lora_trainer.wizard.facts import Group
from lora_trainer.wizard.subjects import Subject

FEWEST_STEPS, MOST_STEPS, MOST_STEPS_SDXL = 400, 3000, 4000
EPOCHS = range(8, 13)
ENOUGH_PICTURES = 40
LIKED_EPOCHS = 10


@attrs.frozen
class SampleCount:
    """A run's length: `repeats` None where the folders' names say them. `most`: steps that it should not go beyond."""

    groups: Sequence[Group]
    batch: int
    accumulation: int
    most: int = MOST_STEPS

    @property
    def pictures(self) -> int:
        """How many are trained on."""
        return sum(group.pictures for group in self.groups)

    @property
    def together(self) -> int:
        """Pictures of one optimizer step."""
        return self.batch * self.accumulation

    @property
    def folder_repeats(self) -> float:
        """Mean repeats by the folders' names."""
        return sum(group.showings for group in self.groups) / self.pictures

    def steps(self, repeats: int | None, epochs: int) -> int:
        """Exact steps: a bucket's last batch and an epoch's last step may be smaller."""
        grown = 1.0 if repeats is None else repeats / self.folder_repeats
        showings = [
            (group.showings if repeats is None else group.pictures * repeats) + round(group.regularisation * grown) for group in self.groups
        ]
        batches = sum(math.ceil(count / self.batch) for count in showings)
        return epochs * math.ceil(batches / self.accumulation)


@attrs.frozen
class RepeatsAndEpochs:
    """Whole repeats (None: the folders') and epochs; `bound` is "few" or "many" where the number of steps set them."""

    repeats: int | None
    epochs: int
    seen: float
    bound: str


def wanted_exposures(subject: Subject, pictures: int) -> float:
    """How often each picture is to be seen: more often where there are fewer than 40."""
    return subject.exposures * math.sqrt(math.sqrt(max(1.0, ENOUGH_PICTURES / pictures)))


def choose(subject: Subject, course: SampleCount, *, repeats: int | None, epochs: int | None, folder: bool) -> RepeatsAndEpochs:
    """The nearest whole amount of 400 steps or more, and no more than the course may have.

    `repeats` and `epochs` are those that the user has set, else None.
    """
    wanted = wanted_exposures(subject, course.pictures)
    low, high = (steps * course.together / course.pictures for steps in (FEWEST_STEPS, course.most))
    aim = min(max(wanted, low), high)
    bound = "few" if wanted < low else "many" if wanted > high else ""
    if folder:
        pairs: list[tuple[int | None, int]] = [(None, count) for count in _around(aim / course.folder_repeats)]
    elif repeats is not None:
        pairs = [(repeats, count) for count in _around(aim / repeats)]
    elif epochs is not None:
        pairs = [(count, epochs) for count in _around(aim / epochs)]
    else:
        pairs = [(count, many) for many in EPOCHS for count in _around(aim / many)]
        if not any(_within(course, pair) for pair in pairs):
            pairs += [(1, many) for many in range(1, EPOCHS.start)]

    def distance(pair: tuple[int | None, int]) -> tuple[float, ...]:
        steps = course.steps(*pair)
        outside = max(0, FEWEST_STEPS - steps, steps - course.most)
        return outside, abs(_seen(course, pair) - aim), abs(pair[1] - LIKED_EPOCHS), -pair[1]

    best = min(pairs, key=distance)
    return RepeatsAndEpochs(*best, _seen(course, best), bound)


def _seen(course: SampleCount, pair: tuple[int | None, int]) -> float:
    return (course.folder_repeats if pair[0] is None else pair[0]) * pair[1]


def _within(course: SampleCount, pair: tuple[int | None, int]) -> bool:
    return FEWEST_STEPS <= course.steps(*pair) <= course.most


def _around(value: float) -> list[int]:
    """Whole numbers near a value, at least 1; some below it, since uneven groups make more steps than the mean says."""
    middle = max(1, round(value))
    return list(range(max(1, middle // 3), middle + 2))
