"""A learning rate for a config's own pictures and model, from a short run with Prodigy, which estimates it."""

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
PLATEAU_SHARE = 0.2
"""The estimate is on a plateau where it grows by no more than PLATEAU_GROWTH over this share of the steps."""
PLATEAU_GROWTH = 1.05
TEXT_SHARE = 0.5
"""Share of the U-Net's rate, as in the wizard."""


@attrs.frozen
class LrEstimate:
    """`rate` is for Adam-like optimizers; `has_plateau`: the estimate stopped growing. `curve`: (step, estimate)."""

    rate: float
    has_plateau: bool
    curve: tuple[tuple[int, float], ...]

    def to_json(self, config: TrainConfig) -> dict[str, Any]:
        """{"unet_lr", "text_encoder_lr", "curve", "sure"}; 0 for a part that the config does not train."""
        rate = float(f"{self.rate:.2g}")
        return {
            "unet_lr": rate if effective.trains_unet(config) else 0.0,
            "text_encoder_lr": float(f"{rate * TEXT_SHARE:.2g}") if effective.trains_text_encoder(config) else 0.0,
            "curve": [list(point) for point in self.curve],
            "sure": self.has_plateau,
        }


def find_rate(config: TrainConfig, host: Host, control: Control, steps: int = STEPS) -> LrEstimate:
    """Trains `steps` steps and discards them; the rate is the estimate's first plateau. Raises TrainerError."""
    from lora_trainer.events import Stepped

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.closing(run_search(config, host, control, Path(folder), steps)) as events,
    ):
        return find_plateau([(event.step, event.lr) for event in events if isinstance(event, Stepped)])


def run_search(config: TrainConfig, host: Host, control: Control, folder: Path, steps: int = STEPS) -> Iterator[Event]:
    """The events of the short run in `folder`; its weights are deleted at the end. Raises TrainerError."""
    from lora_trainer.train.loop import run

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out:
        yield from run(search_config(config, Path(out), steps), host, control, folder)


def search_config(config: TrainConfig, folder: Path, steps: int) -> TrainConfig:
    """The config with Prodigy at a rate of 1 for `steps` steps, without saves, previews or validation."""
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


def find_plateau(curve: Sequence[tuple[int, float]]) -> LrEstimate:
    """The first plateau of the estimate after it has begun to grow; otherwise its last value."""
    rates = [rate for _, rate in curve]
    if not rates:
        return LrEstimate(0.0, False, ())
    window = max(1, int(len(rates) * PLATEAU_SHARE))
    threshold = rates[0] * 10  # Prodigy starts at d0 = 1e-6 and stays there for some steps
    for number in range(len(rates) - window):
        if rates[number] > threshold and rates[number + window] <= PLATEAU_GROWTH * rates[number]:
            return LrEstimate(rates[number], True, tuple(curve))
    return LrEstimate(rates[-1], False, tuple(curve))
