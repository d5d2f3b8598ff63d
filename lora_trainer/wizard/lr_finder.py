"""The learning rate of a config's own pictures and model, found by a short run with Prodigy, which looks for it by itself."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.config import effective
from lora_trainer.config.schema import OptimizerConfig, SampleConfig, SaveConfig, ScheduleConfig, TrainConfig, ValidateConfig
from lora_trainer.control import Control

if TYPE_CHECKING:
    from lora_trainer.events import Event
    from lora_trainer.host.base import Host

STEPS = 100
REST = 0.2
"""The estimate rests where it has not grown by more than GROWN over this share of the steps."""
GROWN = 1.05
TEXT_SHARE = 0.5
"""Of the U-Net's rate, as the wizard has it."""


@attrs.frozen
class FoundRate:
    """`rate` is for Adam-like optimizers; `rests`: the estimate had stopped growing. `curve`: (step, estimate)."""

    rate: float
    rests: bool
    curve: tuple[tuple[int, float], ...]

    def to_json(self, config: TrainConfig) -> dict[str, Any]:
        """{"unet_lr", "text_encoder_lr", "curve", "sure"}; 0 for a part that the config does not train."""
        rate = float(f"{self.rate:.2g}")
        return {
            "unet_lr": rate if effective.trains_unet(config) else 0.0,
            "text_encoder_lr": float(f"{rate * TEXT_SHARE:.2g}") if effective.trains_text_encoder(config) else 0.0,
            "curve": [list(point) for point in self.curve],
            "sure": self.rests,
        }


def find_rate(config: TrainConfig, host: Host, control: Control, steps: int = STEPS) -> FoundRate:
    """Trains `steps` steps and throws them away; the first rest of the estimate is the rate. Raises TrainerError."""
    from lora_trainer.events import Stepped

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.closing(search(config, host, control, Path(folder), steps)) as work,
    ):
        return at_rest([(event.step, event.lr) for event in work if isinstance(event, Stepped)])


def search(config: TrainConfig, host: Host, control: Control, folder: Path, steps: int = STEPS) -> Iterator[Event]:
    """The events of that short run, whose folder is `folder`; what it trained is gone at its end. Raises TrainerError."""
    from lora_trainer.train.loop import run

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out:
        yield from run(looking(config, Path(out), steps), host, control, folder)


def looking(config: TrainConfig, folder: Path, steps: int) -> TrainConfig:
    """The config with Prodigy at a rate of 1, so long, and nothing kept."""
    optimizer = OptimizerConfig(
        type="Prodigy",
        learning_rate=1.0,
        unet_lr=None if effective.trains_unet(config) else 0.0,
        text_encoder_lr=None if effective.trains_text_encoder(config) else 0.0,
        args="use_bias_correction=True",
    )
    return attrs.evolve(
        config,
        optimizer=optimizer,
        schedule=ScheduleConfig(type="constant"),
        steps=attrs.evolve(config.steps, max_train_steps=steps, max_train_epochs=0),
        sample=SampleConfig(),
        validate=ValidateConfig(every_n_epochs=0),
        save=SaveConfig(output_dir=str(folder), output_name="look", every_n_epochs=0, state=False),
    )


def at_rest(curve: Sequence[tuple[int, float]]) -> FoundRate:
    """The first place where the estimate, once it has begun to grow, does not for a while; else where it ended."""
    rates = [rate for _, rate in curve]
    if not rates:
        return FoundRate(0.0, False, ())
    span = max(1, int(len(rates) * REST))
    begin = rates[0] * 10  # it starts at a millionth and first has to leave that
    for number in range(len(rates) - span):
        if rates[number] > begin and rates[number + span] <= GROWN * rates[number]:
            return FoundRate(rates[number], True, tuple(curve))
    return FoundRate(rates[-1], False, tuple(curve))
