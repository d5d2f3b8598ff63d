"""Whether learning rate, schedule and clipping suit the optimizer: common mistakes with each family (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lora_trainer.config import effective
from lora_trainer.config.choices.optimizers import OptimizerSpec, optimizer_spec
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import TrainerError
from lora_trainer.messages import Message, say

RESTARTS = ("cosine_with_restarts", "cosine_annealing")
PATHS = {"unet": "optimizer.unet_lr", "text_encoder": "optimizer.text_encoder_lr"}


def require_single_rate(config: TrainConfig, group_rates: Iterable[float] = ()) -> None:
    """Raises TrainerError if the optimizer takes a single rate and the parts, or the parameter groups (`group_rates`), have several."""
    optimizer = optimizer_spec(config.optimizer.type)
    rates = sorted({rate for rate in (*effective.learning_rates(config).values(), *group_rates) if rate})
    if optimizer.single_rate and len(rates) > 1:
        raise TrainerError(
            "{name} finds one step size for everything that it trains and cannot use different rates ({rates}).",
            path="optimizer.type",
            name=optimizer.name,
            rates=", ".join(f"{rate:g}" for rate in rates),
            fix="Give all parts the same rate, usually 1, and no LoRA+ ratio; or set text_encoder_lr = 0.",
        )


def learning_rate_warnings(config: TrainConfig, batch_size: int) -> Iterator[tuple[str, Message]]:
    """(option, warning) for a run with `batch_size` pictures per step."""
    optimizer, args = optimizer_spec(config.optimizer.type), effective.optimizer_args(config)
    if optimizer.name == "AdaFactor" and (args.get("relative_step", True) or args.get("warmup_init")):
        yield from _relative_step_warnings(config)
    else:
        yield from _rate_warnings(config, optimizer, effective.lr_batch_scale(config, batch_size))
    if optimizer.name == "AdaFactor" and args.get("relative_step") is False and args.get("scale_parameter", True):
        yield (
            "optimizer.args",
            say("AdaFactor multiplies the rate by the size of the weights, and a LoRA starts at 0: add scale_parameter=False."),
        )
    if optimizer.adaptive or optimizer.schedule_free:
        yield from _schedule_warnings(config, optimizer, bool(args.get("safeguard_warmup")))
    if config.schedule.type == "adafactor" and optimizer.name != "AdaFactor":
        yield "schedule.type", say("AdaFactor's own schedule is constant with {name}.", name=optimizer.name)


def _rate_warnings(config: TrainConfig, optimizer: OptimizerSpec, scale: float) -> Iterator[tuple[str, Message]]:
    rate_range = optimizer.rate_range
    reported = set()
    for group, base_rate in effective.learning_rates(config).items():
        part, rate = group.partition(" ")[0], base_rate * scale
        path = PATHS[part] if getattr(config.optimizer, f"{part}_lr") is not None else "optimizer.learning_rate"
        values = {"name": optimizer.name, "rate": f"{rate:g}", "hint": f"{rate_range.hint:g}"}
        if not rate or (path, rate) in reported:
            continue
        reported.add((path, rate))
        if optimizer.adaptive and rate < rate_range.low:
            yield path, say("{name} finds the size of its steps by itself and {rate} is a share of it: write {hint}.", **values)
        elif optimizer.adaptive and rate > rate_range.high:
            yield path, say("{name} finds the size of its steps by itself and {rate} is a multiple of it: write {hint}.", **values)
        elif rate > rate_range.high:
            yield path, say("{rate} is far too high for {name}: it usually takes about {hint}, and the run may diverge.", **values)
        elif rate < rate_range.low:
            yield path, say("{rate} is so low for {name} that next to nothing is learned: it usually takes about {hint}.", **values)


def _relative_step_warnings(config: TrainConfig) -> Iterator[tuple[str, Message]]:
    yield (
        "optimizer.args",
        say("AdaFactor sets its own rates (relative_step=True): learning rates, schedule and warm-up are not used."),
    )
    if config.optimizer.max_grad_norm:
        yield "optimizer.max_grad_norm", say("AdaFactor limits its steps by itself: a gradient limit of 0 is usual with it.")


def _schedule_warnings(config: TrainConfig, optimizer: OptimizerSpec, safeguarded: bool) -> Iterator[tuple[str, Message]]:
    schedule = config.schedule
    if optimizer.schedule_free and schedule.type != "constant":
        yield "schedule.type", say("{name} needs no schedule, it averages what it has learned: take constant.", name=optimizer.name)
    elif schedule.type in RESTARTS:
        yield (
            "schedule.type",
            say("{name} keeps the largest step that it found: a rate that rises again may make the run diverge.", name=optimizer.name),
        )
    elif optimizer.package == "dadaptation" and schedule.type != "constant":
        yield "schedule.type", say("{name} is meant for a constant schedule: take constant.", name=optimizer.name)
    if optimizer.name == "Prodigy" and schedule.warmup_steps not in (0, "0%") and not safeguarded:
        yield "optimizer.args", say("With a warm-up Prodigy estimates its steps too large: add safeguard_warmup=True.")
    if optimizer.name == "ProdigyPlus" and config.optimizer.max_grad_norm:
        yield (
            "optimizer.max_grad_norm",
            say("{name} limits its steps by itself: a gradient limit of 0 is usual with it.", name=optimizer.name),
        )
