"""Learning-rate schedules as plain functions of the step (no torch: the tab draws them before the start)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs

from lora_trainer.config import arguments
from lora_trainer.config.choices.optimizers import PATH, SCHEDULE_ALSO, SCHEDULE_CHOICES
from lora_trainer.config.schema import ScheduleConfig
from lora_trainer.errors import TrainerError
from lora_trainer.registry import Registry

BEHIND_NO_WARM_UP = 10_000
"""Time scale of the inverse square root without a warm-up, as transformers has it."""


@attrs.frozen
class Moment:
    """Where a run is: `progress` from the end of the warm-up (0) to the end (1), `step` counted from the end of the warm-up."""

    progress: float
    step: int
    steps: int
    warmup: int


@attrs.frozen
class Shape:
    """What a schedule may look at besides the moment."""

    floor: float = 0.0
    cycles: float = 1.0
    power: float = 1.0
    decay: int = 0
    timescale: int = 0
    args: str = ""


Curve = Callable[[Moment, Shape], float]
SCHEDULES: Registry[Curve] = Registry("schedule")


def _schedule(name: str) -> Callable[[Curve], Curve]:
    return SCHEDULES.add(name, SCHEDULE_CHOICES[name])


def _above(floor: float, share: float) -> float:
    return floor + (1.0 - floor) * share


@_schedule("constant")
def constant(at: Moment, shape: Shape) -> float:
    """1 all the time."""
    return 1.0


@_schedule("cosine")
def cosine(at: Moment, shape: Shape) -> float:
    """Half a cosine from 1 to the floor (Loshchilov & Hutter 2017, eq. 5)."""
    return _above(shape.floor, 0.5 * (1.0 + math.cos(math.pi * at.progress)))


@_schedule("linear")
def linear(at: Moment, shape: Shape) -> float:
    """A straight line from 1 to the floor."""
    return _above(shape.floor, 1.0 - at.progress)


@_schedule("cosine_with_restarts")
def cosine_with_restarts(at: Moment, shape: Shape) -> float:
    """Half a cosine in each cycle, at its height again where the next begins (Loshchilov & Hutter 2017)."""
    if at.progress >= 1.0:
        return shape.floor
    return _above(shape.floor, 0.5 * (1.0 + math.cos(math.pi * (at.progress * shape.cycles % 1.0))))


@_schedule("cosine_annealing")
def cosine_annealing(at: Moment, shape: Shape) -> float:
    """Half a cosine down in each odd cycle and up again in each even one (torch's CosineAnnealingLR with T_max of one cycle)."""
    return _above(shape.floor, 0.5 * (1.0 + math.cos(math.pi * at.progress * shape.cycles)))


@_schedule("polynomial")
def polynomial(at: Moment, shape: Shape) -> float:
    """What is left of the way, to a power."""
    return _above(shape.floor, (1.0 - at.progress) ** shape.power)


@_schedule("inverse_sqrt")
def inverse_sqrt(at: Moment, shape: Shape) -> float:
    """Falls with the root of the steps once the time scale is over (Vaswani et al. 2017, without their factor)."""
    scale = shape.timescale or at.warmup or BEHIND_NO_WARM_UP
    return max(shape.floor, 1.0 / math.sqrt((at.step + scale) / scale))


@_schedule("warmup_stable_decay")
def warmup_stable_decay(at: Moment, shape: Shape) -> float:
    """1, then half a cosine to the floor over the last `decay` steps (Hu et al. 2024)."""
    into = at.step - (at.steps - shape.decay)
    if into <= 0:
        return 1.0
    return _above(shape.floor, 0.5 * (1.0 + math.cos(math.pi * min(1.0, into / max(1, shape.decay)))))


@_schedule("rex")
def rex(at: Moment, shape: Shape) -> float:
    """Stays high for long and falls ever faster (Chen et al. 2022, eq. 1)."""
    left = 1.0 - at.progress
    return _above(shape.floor, left / (0.5 + 0.5 * left))


@_schedule("piecewise_constant")
def piecewise_constant(at: Moment, shape: Shape) -> float:
    """A share until each of the named steps, counted from the run's first: 1:100,0.1:200,0.01."""
    pieces, last = step_rules(shape.args)
    return next((share for end, share in pieces if at.step + at.warmup < end), last)


@_schedule("adafactor")
def adafactor(at: Moment, shape: Shape) -> float:
    """1: the optimizer AdaFactor makes its own schedule."""
    return 1.0


def step_rules(args: str) -> tuple[list[tuple[int, float]], float]:
    """([(until step, share)], share after that). Raises TrainerError where the rules cannot be read."""
    text = str(arguments.values(args.replace(" ", "") if "step_rules" in args else f"step_rules={args.strip()}").get("step_rules", ""))
    *pieces, last = text.split(",")
    try:
        found = [(int(end), float(share)) for share, end in (piece.split(":") for piece in pieces)]
        return found, float(last)
    except ValueError as error:
        raise TrainerError(
            "the pieces {value} cannot be read.",
            path="schedule.args",
            value=f'"{args}"',
            fix="Write for example step_rules=1:100,0.1:200,0.01: all of the rate for 100 steps, a tenth until step 200, then a hundredth.",
        ) from error


@attrs.frozen
class Schedule:
    """The course of a run's rates: `factor(step)` is the share of each group's rate at a step, 0 the first."""

    name: str
    total: int
    warmup: int = 0
    shape: Shape = Shape()
    table: tuple[float, ...] = ()
    """Of a schedule that is a class: its shares from the end of the warm-up."""

    def factor(self, step: int) -> float:
        """Rises over the warm-up from 0, then follows the schedule; behind the end it stays where it ended."""
        if step < self.warmup:
            return step / self.warmup
        steps = max(1, self.total - self.warmup)
        after = step - self.warmup
        if self.table:
            return self.table[min(after, len(self.table) - 1)]
        moment = Moment(min(1.0, after / steps), after, steps, self.warmup)
        return float(SCHEDULES[SCHEDULE_ALSO.get(self.name, self.name)].make(moment, self.shape))


def schedule_of(section: ScheduleConfig, total: int, warmup: int, decay: int) -> Schedule:
    """The schedule of a run of `total` steps. Raises TrainerError for a class that cannot be found, or rules that cannot be read."""
    shape = Shape(section.min_lr_ratio, section.num_cycles, section.power, decay, section.timescale, section.args)
    if section.type == "piecewise_constant":
        step_rules(section.args)
    table: Sequence[float] = ()
    if section.type not in SCHEDULE_CHOICES and PATH.fullmatch(section.type):
        from lora_trainer.optim.dotted_class import schedule_table

        table = schedule_table(section.type, arguments.values(section.args), total - warmup)
    return Schedule(section.type, total, warmup, shape, tuple(table))


def curve(schedule: Schedule, rate: float, points: int = 200) -> list[tuple[int, float]]:
    """(step, learning rate) at no more than about `points` steps, first and last included, and where the warm-up ends."""
    if not schedule.total:
        return []
    count = min(points, schedule.total)
    steps = {round(number * (schedule.total - 1) / max(1, count - 1)) for number in range(count)}
    if 0 < schedule.warmup < schedule.total:
        steps.add(schedule.warmup)
    return [(step + 1, float(f"{rate * schedule.factor(step):.6g}")) for step in sorted(steps)]


def factor(name: str, step: int, total: int, warmup: int, floor: float) -> float:
    """Share of the learning rate at `step` (0 is the first) of a schedule that needs no more than a floor."""
    return Schedule(SCHEDULES[SCHEDULE_ALSO.get(name, name)].name, total, warmup, Shape(floor)).factor(step)
