"""The rates of a run as they are planned now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.build import build
from lora_trainer.config.files import write_config
from lora_trainer.jobs.folder import RunFolder
from tests.api.conftest import Server

CONFIG = {
    "optimizer": {"unet_lr": 1e-4, "text_encoder_lr": 0.0},
    "schedule": {"type": "linear", "warmup_steps": 10},
    "steps": {"max_train_epochs": 10},
}


def run_with(runs: Path, *events: dict[str, Any]) -> RunFolder:
    """A run of ten steps an epoch whose log holds the events."""
    folder = RunFolder.create(runs, "moon")
    write_config(build(CONFIG), folder.config_file)
    folder.plan_file.write_text(json.dumps({"steps_per_epoch": 10, "rate_scale": 2.0}), encoding="utf-8")
    lines = [json.dumps({"n": n, "time": 0.0, **event}) + "\n" for n, event in enumerate(events, 1)]
    folder.events_file.write_text("".join(lines), encoding="utf-8")
    return folder


def test_rates_rise_fall_and_are_scaled_as_the_plan_was(server: Server):
    run_with(server.host.paths().runs_dir)
    told = server.get("runs/moon/schedule").json()
    assert (told["epochs"], told["total_steps"], list(told["schedule"])) == (10, 100, ["unet"])
    rates = dict(map(tuple, told["schedule"]["unet"]))
    assert rates[1] == 0.0
    assert rates[11] == pytest.approx(2e-4)
    assert rates[56] == pytest.approx(1e-4)


def test_changes_move_what_is_planned_but_not_those_that_a_resume_took_back(server: Server):
    changed = [
        {"event": "changed", "path": "optimizer.unet_lr", "old": 1e-4, "new": 5e-5, "step": 20},
        {"event": "changed", "path": "memory.gradient_checkpointing", "old": False, "new": True, "step": 25},
        {"event": "changed", "path": "steps.max_train_epochs", "old": 10, "new": 20, "step": 50},
    ]
    folder = run_with(server.host.paths().runs_dir, *changed)
    told = server.get("runs/moon/schedule").json()
    assert told["total_steps"] == 200
    assert max(rate for _, rate in told["schedule"]["unet"]) == pytest.approx(1e-4)
    resumed = {"event": "resumed", "step": 40, "reason": "state"}
    folder.remove()
    run_with(server.host.paths().runs_dir, *changed, resumed)
    assert server.get("runs/moon/schedule").json()["total_steps"] == 100


def test_a_run_that_was_never_planned_has_no_rates(server: Server):
    folder = run_with(server.host.paths().runs_dir)
    folder.plan_file.unlink()
    assert server.get("runs/moon/schedule").json()["schedule"] == {}
