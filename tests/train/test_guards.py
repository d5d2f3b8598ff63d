"""What is watched while a run goes on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.control import Control
from lora_trainer.errors import TrainingError
from lora_trainer.events import Finished
from lora_trainer.messages import say
from lora_trainer.train import guards, loop
from lora_trainer.train.guards import BAD_STEPS, HALVINGS, WINDOW, DivergenceGuard, FiniteGuard, SlowStepGuard, missing_mb
from lora_trainer.train.keep_awake import keep_awake
from lora_trainer.train.outputs.background_writer import BackgroundWriter
from lora_trainer.train.step.accumulate import OptimizerStep
from tests.train.runs import events_of, small_config

CAUSE = say("Use a lower learning rate.")


def test_losses_that_are_no_numbers_end_the_run_after_ten_in_a_row_with_the_likely_cause():
    numbers = FiniteGuard(lambda: CAUSE, scaled=False)
    assert [numbers.is_finite(math.nan, math.nan) for _ in range(BAD_STEPS - 1)] == [False] * (BAD_STEPS - 1)
    assert numbers.is_finite(0.1, 0.1)  # one good step begins the count anew
    for _ in range(BAD_STEPS - 1):
        numbers.is_finite(math.inf, math.nan)
    with pytest.raises(TrainingError, match="not been finite for 10 steps") as ended:
        numbers.is_finite(math.nan, math.nan)
    assert ended.value.problems[0].fix.text("en") == CAUSE.text("en")


def test_a_grad_scaler_that_still_looks_for_its_factor_is_given_time():
    numbers = FiniteGuard(lambda: CAUSE, scaled=True)
    for _ in range(BAD_STEPS + HALVINGS - 1):
        assert not numbers.is_finite(0.1, math.inf)
    with pytest.raises(TrainingError, match="gradient"):
        numbers.is_finite(0.1, math.inf)


def test_a_loss_that_runs_away_is_told_once_and_an_ordinary_one_never():
    calm, wild = DivergenceGuard(), DivergenceGuard()
    assert not any(calm.check(step, 0.1 + 0.05 * (step % 7)) for step in range(10 * WINDOW))
    told = [wild.check(step, 0.1 if step < 3 * WINDOW else 0.9) for step in range(8 * WINDOW)]
    assert len([message for message in told if message is not None]) == 1


def test_steps_that_become_slow_are_told_only_where_the_memory_is_full():
    def warned(free: float) -> int:
        pace = SlowStepGuard()
        return sum(pace.check(0.1 if step < 40 else 0.5, lambda: free) is not None for step in range(80))

    assert (warned(0.01), warned(0.5)) == (1, 0)


def test_steps_that_are_slow_from_the_first_on_are_told_by_what_the_plan_expects():
    """A memory that the driver swaps from the start leaves no fast steps to compare with."""

    def warned(expected: float, free: float, seconds: float = 3.0) -> list[str]:
        pace = SlowStepGuard(expected)
        return [str(message) for _ in range(80) if (message := pace.check(seconds, lambda: free)) is not None]

    assert len(warned(0.3, 0.01)) == 1 and "10.0 times as long as the plan expects" in warned(0.3, 0.01)[0]
    assert warned(0.3, 0.5) == warned(0.3, 0.01, seconds=1.0) == warned(0.0, 0.01) == []


def test_a_disk_lacks_what_a_file_needs_and_a_little_more(tmp_path: Path):
    assert missing_mb(tmp_path / "not" / "there" / "yet", 1.0) == 0
    assert missing_mb(tmp_path, 1e12) > 1e11


def test_what_a_writer_is_given_is_told_in_order_and_nothing_follows_a_failure():
    writer, done = BackgroundWriter(), []
    for number in range(6):
        writer.submit(lambda number=number: done.append(number))
    assert list(writer.finish()) == [] and done == [0, 1, 2, 3, 4, 5]

    def fail():
        raise OSError(28, "No space left on device")

    writer.submit(fail)
    writer.submit(lambda: done.append(6))
    with pytest.raises(OSError, match="space"):
        list(writer.finish())
    writer.close()
    assert done == [0, 1, 2, 3, 4, 5]


def test_a_rest_ends_by_itself_or_when_somebody_wants_to_go_on():
    control = Control()
    assert not control.rest(0.05)
    control.command("stop")
    assert control.rest(86_400.0)  # not waited for: a test is stopped after ten minutes


def test_a_letter_that_comes_while_another_is_read_is_not_lost(tmp_path: Path):
    inbox = tmp_path / "control"
    control = Control(inbox)
    inbox.write_text('change optimizer.learning_rate=1e-5\nchange {"save.every_n_steps": 3}\nchange nothing\nsave\n', encoding="utf-8")
    assert control.take_changes() == [{"optimizer.learning_rate": "1e-5"}, {"save.every_n_steps": 3}]
    assert control.take("save") and [path.name for path in tmp_path.iterdir()] == [".control.lock"]  # what writers wait for


@pytest.mark.skipif(sys.platform == "win32", reason="programs that hold sleep off")
def test_the_computer_is_kept_awake_by_a_program_that_ends_with_the_run(tmp_path: Path, monkeypatch):
    from lora_trainer.train import keep_awake as module

    monkeypatch.setattr(module, "_inhibitor_command", lambda platform: [sys.executable, "-c", "import time; time.sleep(600)"])
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", lambda *words, **more: started.append(popen(*words, **more)) or started[-1])
    with keep_awake():
        os.kill(started[0].pid, 0)
    assert started[0].poll() is not None
    with keep_awake(enabled=False):
        assert len(started) == 1


def test_steps_that_a_grad_scaler_skips_at_the_start_do_not_count_as_steps_that_moved_nothing(tmp_path: Path, monkeypatch):
    """Up to sixteen gradients overflow while the scale is looked for: the layers are checked ten steps that were taken later."""
    clip, left, checked = OptimizerStep._clip_gradient, [12], []

    def overflows(step, max_grad_norm, loss):
        norm, value = clip(step, max_grad_norm, loss)
        left[0] -= 1
        return (math.inf if left[0] >= 0 else norm), value

    monkeypatch.setattr(guards, "BAD_STEPS", BAD_STEPS + HALVINGS)  # as with a scaler, which the CPU has only from torch 2.3
    monkeypatch.setattr(OptimizerStep, "_clip_gradient", overflows)
    check = loop.check_layers_trained
    monkeypatch.setattr(loop, "check_layers_trained", lambda trainer: checked.append(left[0]) or check(trainer))
    events = events_of(small_config(tmp_path, steps__max_train_steps=24), tmp_path)
    assert isinstance(events[-1], Finished)
    assert checked == [-BAD_STEPS]
