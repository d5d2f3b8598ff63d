"""Learning rate schedules as plain functions of the step (no torch: the tab draws them before a run).

In the formulas p is the progress from the end of the warm-up (0) to the end of the run (1), and f the floor, `min_lr_ratio`; each
function returns a factor of the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs

from lora_trainer.config import arguments
from lora_trainer.config.choices.optimizers import CLASS_PATH, SCHEDULE_ALIASES, SCHEDULE_CHOICES
from lora_trainer.config.schema import ScheduleConfig
from lora_trainer.errors import TrainerError
from lora_trainer.registry import Registry

DEFAULT_TIMESCALE = 10_000
"""Time scale of inverse_sqrt without a warm-up, as in transformers."""


@attrs.frozen
class ScheduleStep:
    """The current step: `progress` p; `step` and `steps` count from the end of the warm-up."""

    progress: float
    step: int
    steps: int
    warmup_steps: int


@attrs.frozen
class ScheduleOptions:
    """Options of the schedules; `decay` in steps, `args` as the config has it."""

    floor: float = 0.0
    cycles: float = 1.0
    power: float = 1.0
    decay: int = 0
    timescale: int = 0
    args: str = ""


Curve = Callable[[ScheduleStep, ScheduleOptions], float]
SCHEDULES: Registry[Curve] = Registry("schedule")


def _schedule(name: str) -> Callable[[Curve], Curve]:
    return SCHEDULES.add(name, SCHEDULE_CHOICES[name])


def _scale_above(floor: float, share: float) -> float:
    return floor + (1.0 - floor) * share


@_schedule("constant")
def constant(now: ScheduleStep, options: ScheduleOptions) -> float:
    """1."""
    return 1.0


@_schedule("cosine")
def cosine(now: ScheduleStep, options: ScheduleOptions) -> float:
    """f + (1 - f) (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017, eq. 5, https://arxiv.org/abs/1608.03983)."""
    return _scale_above(options.floor, 0.5 * (1.0 + math.cos(math.pi * now.progress)))


@_schedule("linear")
def linear(now: ScheduleStep, options: ScheduleOptions) -> float:
    """f + (1 - f) (1 - p)."""
    return _scale_above(options.floor, 1.0 - now.progress)


@_schedule("cosine_with_restarts")
def cosine_with_restarts(now: ScheduleStep, options: ScheduleOptions) -> float:
    """f + (1 - f) (1 + cos(pi (p cycles mod 1))) / 2: a cosine that restarts at 1 in each cycle (Loshchilov & Hutter 2017)."""
    if now.progress >= 1.0:
        return options.floor
    return _scale_above(options.floor, 0.5 * (1.0 + math.cos(math.pi * (now.progress * options.cycles % 1.0))))


@_schedule("cosine_annealing")
def cosine_annealing(now: ScheduleStep, options: ScheduleOptions) -> float:
    """f + (1 - f) (1 + cos(pi p cycles)) / 2: down in odd cycles, up in even ones (torch's CosineAnnealingLR, T_max of one cycle)."""
    return _scale_above(options.floor, 0.5 * (1.0 + math.cos(math.pi * now.progress * options.cycles)))


@_schedule("polynomial")
def polynomial(now: ScheduleStep, options: ScheduleOptions) -> float:
    """f + (1 - f) (1 - p)^power."""
    return _scale_above(options.floor, (1.0 - now.progress) ** options.power)


@_schedule("inverse_sqrt")
def inverse_sqrt(now: ScheduleStep, options: ScheduleOptions) -> float:
    """max(f, 1 / sqrt((t + s) / s)), t the step and s the time scale (Vaswani et al. 2017, without their factor)."""
    scale = options.timescale or now.warmup_steps or DEFAULT_TIMESCALE
    return max(options.floor, 1.0 / math.sqrt((now.step + scale) / scale))


@_schedule("warmup_stable_decay")
def warmup_stable_decay(now: ScheduleStep, options: ScheduleOptions) -> float:
    """1, then a cosine from 1 to f over the last `decay` steps (Hu et al. 2024, https://arxiv.org/abs/2404.06395)."""
    decay_step = now.step - (now.steps - options.decay)
    if decay_step <= 0:
        return 1.0
    return _scale_above(options.floor, 0.5 * (1.0 + math.cos(math.pi * min(1.0, decay_step / max(1, options.decay)))))


@_schedule("rex")
def rex(now: ScheduleStep, options: ScheduleOptions) -> float:
    """f + (1 - f) (1 - p) / (1/2 + (1 - p) / 2) (REX; Chen et al. 2022, eq. 1, https://arxiv.org/abs/2107.04197)."""
    remaining = 1.0 - now.progress
    return _scale_above(options.floor, remaining / (0.5 + 0.5 * remaining))


@_schedule("piecewise_constant")
def piecewise_constant(now: ScheduleStep, options: ScheduleOptions) -> float:
    """A factor until each of the given steps, counted from the run's first: 1:100,0.1:200,0.01."""
    pieces, last = parse_step_rules(options.args)
    return next((factor for end, factor in pieces if now.step + now.warmup_steps < end), last)


@_schedule("adafactor")
def adafactor(now: ScheduleStep, options: ScheduleOptions) -> float:
    """1: AdaFactor has its own schedule."""
    return 1.0


def parse_step_rules(args: str) -> tuple[list[tuple[int, float]], float]:
    """([(until step, factor)], factor after that). Raises TrainerError where the rules cannot be parsed."""
    text = str(arguments.parse_args(args.replace(" ", "") if "step_rules" in args else f"step_rules={args.strip()}").get("step_rules", ""))
    *pieces, last = text.split(",")
    try:
        return [(int(end), float(factor)) for factor, end in (piece.split(":") for piece in pieces)], float(last)
    except ValueError as error:
        raise TrainerError(
            "the step rules {value} cannot be parsed.",
            path="schedule.args",
            value=f'"{args}"',
            fix="Write for example step_rules=1:100,0.1:200,0.01: all of the rate for 100 steps, a tenth until step 200, then a hundredth.",
        ) from error


@attrs.frozen
class Schedule:
    """The schedule of a run: `factor(step)` multiplies each group's learning rate at a step, 0 the first."""

    name: str
    total_steps: int
    warmup_steps: int = 0
    options: ScheduleOptions = ScheduleOptions()
    factors: tuple[float, ...] = ()
    """Of a schedule that is a torch class: its factors from the end of the warm-up."""

    def factor(self, step: int) -> float:
        """Rises linearly from 0 over the warm-up, then follows the schedule; after the end it stays at the last value."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        steps = max(1, self.total_steps - self.warmup_steps)
        after = step - self.warmup_steps
        if self.factors:
            return self.factors[min(after, len(self.factors) - 1)]
        now = ScheduleStep(min(1.0, after / steps), after, steps, self.warmup_steps)
        return float(SCHEDULES[SCHEDULE_ALIASES.get(self.name, self.name)].build(now, self.options))


def make_schedule(config: ScheduleConfig, total_steps: int, warmup_steps: int, decay_steps: int) -> Schedule:
    """The schedule of a run. Raises TrainerError for a class that cannot be found, or rules that cannot be parsed."""
    options = ScheduleOptions(config.min_lr_ratio, config.num_cycles, config.power, decay_steps, config.timescale, config.args)
    if config.type == "piecewise_constant":
        parse_step_rules(config.args)
    factors: Sequence[float] = ()
    if config.type not in SCHEDULE_CHOICES and CLASS_PATH.fullmatch(config.type):
        from lora_trainer.optim.dotted_class import schedule_factors

        factors = schedule_factors(config.type, arguments.parse_args(config.args), total_steps - warmup_steps)
    return Schedule(config.type, total_steps, warmup_steps, options, tuple(factors))


def lr_curve(schedule: Schedule, rate: float, points: int = 200) -> list[tuple[int, float]]:
    """(step, learning rate) at about `points` steps at most, with the first, the last, and the end of the warm-up; steps count from 1."""
    if not schedule.total_steps:
        return []
    count = min(points, schedule.total_steps)
    steps = {round(number * (schedule.total_steps - 1) / max(1, count - 1)) for number in range(count)}
    if 0 < schedule.warmup_steps < schedule.total_steps:
        steps.add(schedule.warmup_steps)
    return [(step + 1, float(f"{rate * schedule.factor(step):.6g}")) for step in sorted(steps)]
