"""A run that was cut short goes on as if nothing had been: every tensor bit for bit, every setting, every file."""

from __future__ import annotations

import contextlib
import logging
import weakref
from pathlib import Path

import pytest
from torch.multiprocessing.reductions import StorageWeakRef

from lora_trainer.control import Control
from lora_trainer.errors import ConfigError, ModelError, TrainerError
from lora_trainer.events import Changed, Finished, Paused, Resumed, Saved, Stepped, Stopped, Warned
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.jobs import resume_point
from lora_trainer.train import loop, pausing
from lora_trainer.train.loop import run
from tests.train.resume_runs import OPTIMIZERS, VARIED, Killed, folder_of, resume, same, small_config, train
from tests.train.runs import events_of, tensors_of

PLAIN = {"steps__max_train_steps": 6, "save__state_every_n_steps": 1}


def killed_at(step):
    def watch(job, event):
        if isinstance(event, Stepped) and event.step == step:
            raise Killed

    return watch


def told(at, act):
    def watch(job, event):
        if isinstance(event, Stepped) and event.step == at:
            act(job)

    return watch


def final(root: Path) -> Path:
    return root / "loras" / "small.safetensors"


@pytest.mark.parametrize(("optimizer", "rate"), OPTIMIZERS)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, optimizer, rate):
    changes = {**VARIED, "optimizer__type": optimizer, "optimizer__learning_rate": rate, "steps__max_train_steps": 7}
    one, other = (small_config(tmp_path / name, **changes) for name in ("whole", "cut"))
    whole = train(one, folder_of(one))
    folder = folder_of(other)
    train(other, folder, watch=killed_at(5))
    rest = resume(folder)
    assert [event.step for event in rest if isinstance(event, Resumed)] == [4]
    assert [event.loss for event in rest if isinstance(event, Stepped)] == [event.loss for event in whole if isinstance(event, Stepped)][4:]
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))


def test_a_stopped_run_goes_on_and_its_log_tells_it_as_one(tmp_path: Path):
    config = small_config(tmp_path / "whole", **PLAIN)
    train(config, folder_of(config))
    config = small_config(tmp_path / "cut", **PLAIN)
    folder = folder_of(config)
    assert isinstance(train(config, folder, watch=told(3, lambda job: job.command("stop")))[-1], Stopped)
    assert folder.summary()["state_step"] == 3
    assert isinstance(resume(folder)[-1], Finished)
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    lines = folder.events()
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["step"] for line in lines if line["event"] == "stepped"] == [1, 2, 3, 4, 5, 6]
    assert (folder.outcome(), folder.summary()["step"], folder.manifest()["outcome"]) == ("finished", 6, "finished")
    assert [Path(file["path"]).name for file in folder.manifest()["files"]] == [
        "small-step00000003.safetensors",
        "small-000001.safetensors",
        "small.safetensors",
    ]


def test_what_a_killed_run_did_after_its_last_state_counts_no_more(tmp_path: Path):
    config = small_config(tmp_path, **{**PLAIN, "save__state_every_n_steps": 2, "save__every_n_steps": 3, "steps__max_train_steps": 8})
    folder = folder_of(config)
    train(config, folder, watch=killed_at(6))
    assert resume_point.newest_state(folder.path).step == 4
    with folder.events_file.open("ab") as file:
        file.write(b'{"n": 99, "half a li')
    resume(folder)
    assert folder.summary()["step"] == 8
    assert [file["step"] for file in folder.manifest()["files"]] == [3, 6, 8]
    assert len({file["path"] for file in folder.manifest()["files"]}) == 3


def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path: Path):
    config = small_config(tmp_path, **PLAIN)
    folder = folder_of(config)
    train(config, folder, watch=killed_at(5))
    newest, before = resume_point.list_states(folder.path)
    content = bytearray((newest.path / resume_point.TENSORS_FILE).read_bytes())
    content[-1] ^= 1
    (newest.path / resume_point.TENSORS_FILE).write_bytes(content)
    assert resume_point.newest_state(folder.path).step == before.step
    assert [event.step for event in resume(folder) if isinstance(event, Resumed)] == [before.step]


def test_a_finished_run_is_given_more_epochs_and_ends_as_a_longer_one(tmp_path: Path):
    changes = {"steps__max_train_steps": 0, "data__batch_size": 60, "schedule__type": "constant"}
    long = small_config(tmp_path / "long", steps__max_train_epochs=3, **changes)
    events_of(long, tmp_path / "long")
    short = small_config(tmp_path / "short", steps__max_train_epochs=2, **changes)
    folder = folder_of(short)
    train(short, folder)
    with pytest.raises(ConfigError, match="has done all its 4 steps"):
        resume(folder)
    seen = resume(folder, steps__max_train_epochs=3)
    assert [(event.path, event.old, event.new, event.step) for event in seen if isinstance(event, Changed)] == [
        ("steps.max_train_epochs", 2, 3, 4)
    ]
    assert same(final(tmp_path / "long"), final(tmp_path / "short"))
    assert [file["final"] for file in folder.manifest()["files"]] == [False, False, False, True]


@pytest.mark.parametrize(("kind", "rises"), [("cosine", True), ("linear", True), ("constant", False)])
def test_a_rate_that_rises_because_the_run_is_longer_now_is_told_with_its_numbers(tmp_path: Path, kind: str, rises: bool):
    config = small_config(tmp_path, steps__max_train_steps=6, schedule__type=kind, schedule__warmup_steps=0)
    folder = folder_of(config)
    first = [event.lr for event in train(config, folder) if isinstance(event, Stepped)]
    seen = resume(folder, steps__max_train_steps=12)
    rates = [event.lr for event in seen if isinstance(event, Stepped)]
    told = [event.message for event in seen if isinstance(event, Warned) and event.path == "schedule.type"]
    assert (rates[0] > 2 * first[-1]) is rises and len(told) == rises
    for message in told:
        assert f"from {first[-1]:.2g} to {rates[0]:.2g} at step 6" in message.text() and kind in message.text("zh_CN")


def test_a_rate_that_the_user_changed_is_not_told_to_rise(tmp_path: Path):
    config = small_config(tmp_path, steps__max_train_steps=6, schedule__type="cosine", schedule__warmup_steps=0)
    folder = folder_of(config)
    train(config, folder)
    seen = resume(folder, steps__max_train_steps=12, optimizer__learning_rate=1e-3)
    assert [event.path for event in seen if isinstance(event, Warned) and event.path == "schedule.type"] == []


def test_changes_hold_from_the_next_step_on_and_a_resumed_run_makes_them_again(tmp_path: Path):
    def change(job):
        job.change({"optimizer.learning_rate": 1e-4, "schedule.type": "linear"})

    config = small_config(tmp_path / "whole", **PLAIN)
    whole = train(config, folder_of(config), watch=told(3, change))
    assert [(event.path, event.step) for event in whole if isinstance(event, Changed)] == [
        ("optimizer.learning_rate", 3),
        ("schedule.type", 3),
    ]
    rates = [event.lr for event in whole if isinstance(event, Stepped)]
    assert rates[2] > 1e-3 and rates[3:] == pytest.approx([1e-4 * (1 - step / 6) for step in (3, 4, 5)])
    config = small_config(tmp_path / "cut", **{**PLAIN, "save__state_every_n_steps": 2})
    folder = folder_of(config)

    def watch(job, event):
        told(3, change)(job, event)
        killed_at(4)(job, event)

    train(config, folder, watch=watch)
    assert resume_point.newest_state(folder.path).step == 2
    rest = resume(folder)
    assert [event.lr for event in rest if isinstance(event, Stepped)] == rates[2:]
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))


def test_what_may_not_be_changed_is_told_and_changes_nothing(tmp_path: Path):
    config = small_config(tmp_path, **PLAIN)
    seen = train(config, folder_of(config), watch=told(2, lambda job: job.change({"network.dim": 8, "optimizer.learning_rate": 1.0})))
    assert [event.message.text("en") for event in seen if isinstance(event, Warned) and event.path == "network.dim"]
    assert not [event for event in seen if isinstance(event, Changed)] and isinstance(seen[-1], Finished)


def test_a_pause_leaves_nothing_of_network_and_optimizer_where_it_was(tmp_path: Path, monkeypatch, request):
    kept, alive = [], []
    of = loop.RunLoop.of

    def remember(trainer, *rest):
        kept.append(trainer)
        return of(trainer, *rest)

    monkeypatch.setattr(loop.RunLoop, "of", remember)
    logging.disable(logging.CRITICAL)  # pytest keeps records: exceptions in them, and so whole frames
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    config = small_config(tmp_path / "cut", **{**PLAIN, "save__ema_decay": 0.9})
    control, before = Control(), set()
    with contextlib.closing(run(config, StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            if isinstance(event, Stepped) and event.step == 3:
                trainer = kept[0]
                tensors = [group.buffer for group in trainer.optimizer.groups] + trainer.ema.shadow
                tensors += [value for state in trainer.optimizer.inner.state.values() for value in state.values() if value.dim()]
                before = {tensor.untyped_storage().data_ptr() for tensor in tensors}
                models = [weakref.ref(trainer.bundle.unet), weakref.ref(trainer.bundle.text_encoder)]
                held = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
                del tensors, trainer
                control.command("pause")
            elif isinstance(event, Paused):
                alive = [found for found in held if not found.expired()] + [found() for found in models if found() is not None]
                assert kept[0].bundle is None
                control.command("resume")
    assert len(before) >= 6 and alive == []
    whole = small_config(tmp_path / "whole", **{**PLAIN, "save__ema_decay": 0.9})
    events_of(whole, tmp_path / "whole")
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))


def test_a_rest_after_epochs_gives_the_device_back_and_changes_nothing(tmp_path: Path):
    changes = {"steps__max_train_steps": 0, "steps__max_train_epochs": 2, "data__batch_size": 60}
    seen = events_of(small_config(tmp_path / "rest", steps__pause_after_n_epochs=1, steps__pause_seconds=0.2, **changes), tmp_path / "rest")
    assert [(event.step, event.reason) for event in seen if isinstance(event, Paused)] == [(2, "rest")]
    events_of(small_config(tmp_path / "plain", **changes), tmp_path / "plain")
    assert same(final(tmp_path / "rest"), final(tmp_path / "plain"))


def test_a_full_disk_makes_the_run_wait_and_loses_nothing(tmp_path: Path, monkeypatch):
    missing = iter([120.0, 0.0])
    monkeypatch.setattr(pausing, "missing_mb", lambda folder, megabytes: next(missing, 0.0))
    seen = events_of(small_config(tmp_path, steps__max_train_steps=2), tmp_path)
    assert [event.reason for event in seen if isinstance(event, Paused)] == ["disk"]
    assert isinstance(seen[-1], Finished) and final(tmp_path).is_file()


def test_the_average_of_the_weights_is_what_is_saved_and_the_header_says_so(tmp_path: Path):
    from safetensors import safe_open

    plain, averaged = (small_config(tmp_path / name, **PLAIN, save__ema_decay=decay) for name, decay in (("plain", 0.0), ("ema", 0.9)))
    first = [event.loss for event in events_of(plain, tmp_path / "plain") if isinstance(event, Stepped)]
    second = [event.loss for event in events_of(averaged, tmp_path / "ema") if isinstance(event, Stepped)]
    assert first == second and not same(final(tmp_path / "plain"), final(tmp_path / "ema"))
    with safe_open(final(tmp_path / "ema"), framework="pt") as file:
        assert file.metadata()["ss_weights"] == "average, decay 0.9"


def test_a_run_begins_with_the_weights_of_a_file_and_takes_its_rank(tmp_path: Path):
    events_of(small_config(tmp_path / "first", **PLAIN), tmp_path / "first")
    start = str(final(tmp_path / "first"))
    changes = {"steps__max_train_steps": 1, "schedule__warmup_steps": 1, "network__network_weights": start}  # the first step has rate 0
    second = small_config(tmp_path / "second", **changes, network__dim=16, network__alpha=8, network__dim_from_weights=True)
    events_of(second, tmp_path / "second")
    assert same(final(tmp_path / "first"), final(tmp_path / "second"))
    with pytest.raises(ModelError, match="does not fit"):
        events_of(small_config(tmp_path / "third", **changes, network__dim=16), tmp_path / "third")


def test_a_run_without_a_state_says_what_can_be_done(tmp_path: Path):
    config = small_config(tmp_path, steps__max_train_steps=2, save__state=False)
    folder = folder_of(config)
    train(config, folder, watch=killed_at(2))
    with pytest.raises(TrainerError, match="kept no state") as refused:
        resume(folder)
    assert "network.network_weights" in refused.value.problems[0].fix.text("en")


def test_files_are_told_once_they_are_whole(tmp_path: Path):
    seen = events_of(small_config(tmp_path, steps__max_train_steps=4, save__every_n_steps=1), tmp_path)
    saved = [event for event in seen if isinstance(event, Saved)]
    assert [event.step for event in saved] == [1, 2, 3, 4] and all(tensors_of(Path(event.path)) for event in saved)
    averages = {event.step: event.loss_average for event in seen if isinstance(event, Stepped)}
    assert [event.loss_average for event in saved] == [averages[step] for step in (1, 2, 3, 4)]
