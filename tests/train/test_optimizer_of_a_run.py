"""What a run does with its optimizer: a stand-in that is told, an average that is saved, rates that are refused in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.errors import TrainerError
from lora_trainer.events import Saved, Stepped, Validated, Warned
from lora_trainer.optim.optimizers import CannotStep
from lora_trainer.train import setup
from tests.train.runs import assets, events_of, small_config, tensors_of


def test_an_optimizer_that_cannot_step_on_the_device_has_a_stand_in_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = setup.probe

    def lacking(name: str, options: Any, device: str = "cpu") -> None:
        if name == "AdamW8bit":
            raise CannotStep(
                "{name} does not work on this machine ({device}): {reason}.", name=name, device=device, reason="no kernel image"
            )
        real(name, options, device)

    monkeypatch.setattr(setup, "probe", lacking)
    events = events_of(small_config(tmp_path, optimizer__type="AdamW8bit", steps__max_train_steps=1), tmp_path)
    (told,) = [event for event in events if isinstance(event, Warned) and event.path == "optimizer.type"]
    assert "no kernel image" in told.message.text("en") and "AdamW is used instead" in told.message.text("en")
    assert [event.step for event in events if isinstance(event, Stepped)] == [1]


def test_a_schedule_free_run_validates_and_saves_its_average_and_trains_on_the_same(tmp_path: Path):
    def losses(folder: Path, every: int) -> tuple[list[float], dict[str, Any], float]:
        config = small_config(
            folder,
            optimizer__type="AdamWScheduleFree",
            optimizer__learning_rate=1e-2,
            schedule__type="constant",
            steps__max_train_steps=4,
            save__every_n_steps=every,
            save__every_n_epochs=0,
            validate__data_dir=str(assets.toy_pictures() / "crescent" / "val"),
            validate__every_n_steps=every,
        )
        events = events_of(config, folder)
        last = next(event for event in events if isinstance(event, Saved) and event.final)
        looked = [event.loss for event in events if isinstance(event, Validated)]
        return [event.loss for event in events if isinstance(event, Stepped)], tensors_of(Path(last.path)), looked[-1]

    often, saved, loss = losses(tmp_path / "often", 2)
    seldom, other, same = losses(tmp_path / "seldom", 0)
    assert often == seldom and loss == same
    assert all(torch.equal(saved[name], other[name]) for name in saved)


def test_different_rates_stop_a_prodigy_run_before_anything_is_loaded(tmp_path: Path):
    config = small_config(tmp_path, optimizer__type="Prodigy", optimizer__learning_rate=1.0, optimizer__text_encoder_lr=0.5)
    with pytest.raises(TrainerError, match="cannot use different rates"):
        events_of(config, tmp_path)
