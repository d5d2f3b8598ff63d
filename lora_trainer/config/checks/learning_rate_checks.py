"""Whether learning rate, schedule and clipping fit the optimizer: what users of each family stumble over (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lora_trainer.config import effective
from lora_trainer.config.choices.optimizers import OptimizerName, optimizer_named
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import TrainerError
from lora_trainer.messages import Message, say

RESTARTS = ("cosine_with_restarts", "cosine_annealing")
PATHS = {"unet": "optimizer.unet_lr", "text_encoder": "optimizer.text_encoder_lr"}


def refuse_different_rates(config: TrainConfig, given: Iterable[float] = ()) -> None:
    """Raises TrainerError where the optimizer takes one rate and parts have several; `given` are the groups' where they are known."""
    known = optimizer_named(config.optimizer.type)
    rates = sorted({rate for rate in (*effective.rates(config).values(), *given) if rate})
    if known.one_rate and len(rates) > 1:
        raise TrainerError(
            "{name} finds one step size for everything that it trains and takes no different rates ({rates}).",
            path="optimizer.type",
            name=known.name,
            rates=", ".join(f"{rate:g}" for rate in rates),
            fix="Give all parts the same rate, usually 1, and no LoRA+ ratio; or set text_encoder_lr = 0.",
        )


def rate_notes(config: TrainConfig, pictures: int) -> Iterator[tuple[str, Message]]:
    """(option, what is doubtful about it) for a run whose steps have so many pictures."""
    known, args = optimizer_named(config.optimizer.type), effective.optimizer_args(config)
    if known.name == "AdaFactor" and (args.get("relative_step", True) or args.get("warmup_init")):
        yield from _of_own_rates(config)
    else:
        yield from _of_rates(config, known, effective.batch_factor(config, pictures))
    if known.name == "AdaFactor" and args.get("relative_step") is False and args.get("scale_parameter", True):
        yield (
            "optimizer.args",
            say("AdaFactor multiplies the rate by the size of the weights, and a LoRA starts at 0: add scale_parameter=False."),
        )
    if known.finds or known.free:
        yield from _of_schedule(config, known, bool(args.get("safeguard_warmup")))
    if config.schedule.type == "adafactor" and known.name != "AdaFactor":
        yield "schedule.type", say("AdaFactor's own schedule is constant with {name}.", name=known.name)


def _of_rates(config: TrainConfig, known: OptimizerName, scale: float) -> Iterator[tuple[str, Message]]:
    family = known.family
    told = set()
    for group, written in effective.rates(config).items():
        part, rate = group.partition(" ")[0], written * scale
        path = PATHS[part] if getattr(config.optimizer, f"{part}_lr") is not None else "optimizer.learning_rate"
        values = {"name": known.name, "rate": f"{rate:g}", "hint": f"{family.hint:g}"}
        if not rate or (path, rate) in told:
            continue
        told.add((path, rate))
        if known.finds and rate < family.low:
            yield path, say("{name} finds the size of its steps by itself and {rate} is a share of it: write {hint}.", **values)
        elif known.finds and rate > family.high:
            yield path, say("{name} finds the size of its steps by itself and {rate} is a multiple of it: write {hint}.", **values)
        elif rate > family.high:
            yield path, say("{rate} is far too high for {name}: it usually takes about {hint}, and the run may break.", **values)
        elif rate < family.low:
            yield path, say("{rate} is so low for {name} that next to nothing is learned: it usually takes about {hint}.", **values)


def _of_own_rates(config: TrainConfig) -> Iterator[tuple[str, Message]]:
    yield (
        "optimizer.args",
        say("AdaFactor makes its own rates (relative_step=True): learning rates, schedule and warm-up are not used."),
    )
    if config.optimizer.max_grad_norm:
        yield "optimizer.max_grad_norm", say("AdaFactor limits its steps by itself: a gradient limit of 0 is usual with it.")


def _of_schedule(config: TrainConfig, known: OptimizerName, guarded: bool) -> Iterator[tuple[str, Message]]:
    schedule = config.schedule
    if known.free and schedule.type != "constant":
        yield "schedule.type", say("{name} needs no schedule, it averages what it has learned: take constant.", name=known.name)
    elif schedule.type in RESTARTS:
        yield (
            "schedule.type",
            say("{name} keeps the largest step that it found: a rate that rises anew may break the run.", name=known.name),
        )
    elif known.package == "dadaptation" and schedule.type != "constant":
        yield "schedule.type", say("{name} is meant for a constant schedule: take constant.", name=known.name)
    if known.name == "Prodigy" and schedule.warmup_steps not in (0, "0%") and not guarded:
        yield "optimizer.args", say("With a warm-up Prodigy estimates its steps too large: add safeguard_warmup=True.")
    if known.name == "ProdigyPlus" and config.optimizer.max_grad_norm:
        yield "optimizer.max_grad_norm", say("{name} limits its steps by itself: a gradient limit of 0 is usual with it.", name=known.name)
