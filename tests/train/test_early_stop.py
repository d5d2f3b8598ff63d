"""The best moment of a run, and its early end, from validation losses alone."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

from lora_trainer.train.early_stop import EarlyStop
from lora_trainer.train.progress import TrainingProgress


def told(early: EarlyStop, *losses: float) -> list[bool]:
    """Validations at steps 10, 20 ... of epochs 1, 2 ...; whether each was the lowest."""
    begin = early.best_step // 10 + early.wait_count
    return [early.update((begin + number) * 10, begin + number, loss) for number, loss in enumerate(losses, start=1)]


def begun(first: float = 1.0, **options) -> EarlyStop:
    early = EarlyStop(**options)
    assert early.update(0, 0, first) is False
    return early


def test_the_lowest_loss_and_its_epoch_are_kept():
    early = begun()
    assert told(early, 0.8, 0.9, 0.5, 0.5, 0.7) == [True, False, True, False, False]
    assert (early.best_loss, early.best_step, early.best_epoch) == (0.5, 30, 3) and not early.never_improved and not early.should_stop


def test_a_run_ends_after_as_many_validations_without_a_lower_loss_as_its_patience():
    early = begun(patience=2)
    told(early, 0.8, 0.9)
    assert not early.should_stop
    told(early, 0.81)
    assert early.should_stop and early.best_epoch == 1
    assert not any(told(begun(), *[0.9] * 50)[1:]) and not begun().should_stop


def test_a_lower_loss_begins_the_waiting_anew():
    early = begun(patience=2)
    told(early, 0.8, 0.9, 0.7, 0.75)
    assert not early.should_stop and early.wait_count == 1


def test_a_fall_that_is_too_small_is_waited_through_but_may_be_the_best():
    early = begun(patience=2, min_delta=0.1)
    assert told(early, 0.8, 0.75, 0.71) == [True, True, True]
    assert early.should_stop and early.best_loss == 0.71


def test_the_loss_before_training_is_what_must_be_beaten():
    early = begun(0.5, patience=2)
    told(early, 0.6, 0.55)
    assert early.should_stop and early.never_improved and (early.best_loss, early.best_epoch) == (0.55, 2)


def test_a_loss_that_is_no_number_is_no_better_one():
    early = begun(patience=3)
    assert told(early, math.nan, math.inf) == [False, False]
    assert early.wait_count == 2 and early.best_loss is None
    json.dumps(early.to_plain(), allow_nan=False)


def test_it_goes_on_from_what_was_written_down():
    early = begun(patience=3, min_delta=0.01)
    told(early, 0.8, 0.7, 0.72, 0.71)
    again = EarlyStop(patience=3, min_delta=0.01)
    again.restore(json.loads(json.dumps(early.to_plain())))
    assert again == early
    again.update(50, 5, 0.9)
    assert again.should_stop


def course(total: int, early: EarlyStop) -> TrainingProgress:
    return TrainingProgress(SimpleNamespace(steps_per_epoch=10, total_steps=total), step=50, epoch=5, early_stop=early)


def test_a_run_that_ended_early_stays_ended_and_one_that_is_prolonged_goes_on():
    early = begun(patience=1)
    told(early, 0.8, 0.9)
    plain = json.loads(json.dumps(course(100, early).to_plain()))
    same, longer = course(100, EarlyStop(patience=1)), course(200, EarlyStop(patience=1))
    for one in (same, longer):
        one.restore(plain)
    assert same.stopped_early and same.is_done
    assert not longer.is_done and (longer.early_stop.wait_count, longer.early_stop.best_loss) == (0, 0.8)
