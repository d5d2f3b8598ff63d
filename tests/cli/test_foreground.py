"""What the console tells of a run that goes on, and `runs` of those that were."""

from __future__ import annotations

import json

import pytest

from lora_trainer.cli.console import Console
from lora_trainer.cli.foreground import ProgressPrinter, format_duration, format_speed
from lora_trainer.cli.main import main
from lora_trainer.events import Phase, Saved, Started, Stepped, Stopped, Validated
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.logs.events_log import EventRecord
from lora_trainer.jobs.sinks import standard_sinks


@pytest.mark.parametrize(("seconds", "words"), [(0.1, "10.00 it/s"), (1.0, "1.00 it/s"), (2.5, "2.50 s/it"), (0.0, "0.00 s/it")])
def test_pace_is_steps_a_second_or_seconds_a_step(seconds: float, words: str):
    assert format_speed(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (7445, "2:04:05")])
def test_time_left_has_hours_only_where_there_are_some(seconds: float, words: str):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(("language", "expected"), [("en", "2.00 it/s, 0:49 left"), ("zh_CN", "2.00 it/s，剩余 0:49")])
def test_progress_says_step_epoch_loss_pace_and_time_left(capsys, language: str, expected: str):
    console = ProgressPrinter(Console(language))
    events = [Started({"total_steps": 100, "epochs": 5}), Phase("training", 100), Stepped(2, 1, 0.2, 0.15, 1e-4, 1.0, 0.5, 0.0)]
    for number, event in enumerate(events):
        console(EventRecord(number + 1, 100.0 + number, event))
    line = capsys.readouterr().err.splitlines()[-1]
    assert expected in line and all(word in line for word in ("2", "100", "5", "0.1500"))


def test_runs_as_json_say_where_each_is_and_what_it_wrote(tmp_path, capsys):
    folder = RunFolder.create(tmp_path, "moon")
    sinks = standard_sinks(folder)
    events = [Started({"total_steps": 4, "epochs": 2}), Stepped(2, 1, 0.2, 0.15, 1e-4, 1.0, 0.5, 0.0), Validated(2, 1, 0.3)]
    events += [Saved(2, 1, "/out/m-000001.safetensors", "ab12", 10, loss_average=0.15), Stopped(2)]
    for number, event in enumerate(events):
        for sink in sinks:
            sink(EventRecord(number + 1, 100.0 + number, event))
    assert main(["runs", "--dir", str(tmp_path), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["id"], one["state"], one["step"], one["total_steps"], one["epochs"]) == ("moon", "stopped", 2, 4, 2)
    assert one["path"] == str(folder.path) and (one["started"], one["ended"], one["seconds"]) == (100.0, 104.0, 4.0)
    assert (one["loss"], one["validation"], one["best"]["epoch"], one["step_seconds"]) == (0.15, 0.3, 1, 0.5)
    assert [(file["path"], file["sha256"], file["validation"]) for file in one["weights"]] == [("/out/m-000001.safetensors", "ab12", 0.3)]
