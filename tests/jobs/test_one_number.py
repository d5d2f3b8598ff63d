"""One number for one thing: time left, speed and measured time mean the same wherever they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.api.runs.step_time import extras_key, measured_seconds, work_key
from lora_trainer.cli.check import length_messages
from lora_trainer.config.build import build
from lora_trainer.events import Finished, Paused, Phase, Progress, Rendered, Resumed, Started
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.logs.events_log import EventRecord
from lora_trainer.jobs.sinks import ManifestFile
from lora_trainer.jobs.status import RunStatus
from lora_trainer.messages import duration
from tests.jobs.works import PLAN, stepped


def after(status: RunStatus, *events: tuple[object, float]) -> RunStatus:
    for event, time in events:
        status = status.after(event, time)
    return status


def test_a_grid_says_how_long_each_phase_lasts_and_never_zero_before_its_end():
    status = after(RunStatus("g", "g", kind="grid"), (Started({}), 0.0), (Phase("rendering", 2), 0.0), (Rendered(1, 0.5, "a.png"), 10.0))
    assert status.seconds_left == pytest.approx(10.0)
    status = after(status, (Rendered(1, 1.0, "b.png"), 20.0))
    assert status.seconds_left is None and (status.done, status.total) == (2, 2)
    status = after(status, (Phase("ranking", 4), 20.0))
    assert status.seconds_left is None
    assert after(status, (Progress(1), 23.0)).seconds_left == pytest.approx(9.0)
    assert after(status, (Finished(0), 30.0)).seconds_left == 0.0


def test_the_speed_of_an_ended_run_is_that_of_all_its_steps_as_in_the_manifest(tmp_path: Path):
    folder = RunFolder.create(tmp_path, "moon")
    manifest, status = ManifestFile(folder), RunStatus("moon", "moon")
    events = [Started(PLAN), *(stepped(n, seconds=1.0 if n < 50 else 3.0) for n in range(1, 101)), Finished(100)]
    for n, event in enumerate(events):
        status = status.after(event, float(n))
        manifest(EventRecord(n, float(n), event))
    assert status.speed == pytest.approx(2.02) and folder.manifest()["step_seconds"] == pytest.approx(2.02)


def config_of(**changes: object):
    mapping: dict[str, dict[str, object]] = {"data": {"train_data_dir": "x"}}
    for name, value in changes.items():
        section, _, option = name.partition("__")
        mapping.setdefault(section, {})[option] = value
    return build(mapping)


def test_a_measured_time_holds_what_came_besides_the_steps_and_no_pause(tmp_path: Path):
    config = config_of()
    folder = RunFolder.create(tmp_path, "moon")
    folder.update_info(work=work_key(config), extras=extras_key(config))
    manifest = ManifestFile(folder)
    events = [(Started(PLAN), 0.0), (Phase("caching", 1), 0.0), (stepped(1, seconds=1.0), 41.0), (Paused(1), 41.0)]
    events += [(Resumed(1), 9000.0), (stepped(2, seconds=1.0), 9001.0), (Finished(2), 9018.0)]
    for n, (event, time) in enumerate(events):
        manifest(EventRecord(n, time, event))
    assert folder.manifest()["active_seconds"] == pytest.approx(59.0)
    assert measured_seconds(config, tmp_path, 4) == pytest.approx(118.0)
    assert measured_seconds(config_of(save__output_name="other"), tmp_path, 4) == pytest.approx(118.0)
    assert measured_seconds(config_of(sample__every_n_epochs=5), tmp_path, 4) == pytest.approx(4.0)
    assert measured_seconds(config_of(data__batch_size=7), tmp_path, 4) is None


@pytest.mark.parametrize(
    ("steps", "epochs", "total", "expected"),
    [(30, 1, 12, "12 steps of 30 an epoch: the run ends within epoch 1"), (30, 2, 60, "30 steps an epoch x 2 epochs = 60 steps")],
)
def test_check_multiplies_only_what_gives_the_total(steps: int, epochs: int, total: int, expected: str):
    plan = {"steps_per_epoch": steps, "epochs": epochs, "total_steps": total, "seconds": 60.0}
    assert [message.text() for message in length_messages(plan)] == [expected, "about 60 s (estimate)"]
    assert "measured" in list(length_messages(plan | {"seconds_measured": True}))[1].text()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (41, "41 s"), (89, "89 s"), (90, "2 min"), (150, "3 min"), (5000, "83 min"), (7200, "2 h"), (7300, "2 h 2 min")],
)
def test_a_time_is_written_as_the_tab_writes_it(seconds: float, words: str):
    assert duration(seconds).text() == words
