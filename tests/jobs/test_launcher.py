"""A run in a process of its own is seen as one that goes on here."""

from __future__ import annotations

import json

import attrs
import pytest

from lora_trainer import events
from lora_trainer.events import Event, to_json
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.launcher import SubprocessRun, event_from_json, subprocess_environment
from lora_trainer.messages import say

VALUES = {"str": "text", "int": 3, "float": 0.5, "bool": True, "Message": say("The learning rate is 0: nothing will be learned.")}


def made(kind: type) -> Event:
    """An event with a value in each field."""
    attrs.resolve_types(kind)
    values = {
        field.name: VALUES.get(getattr(field.type, "__name__", ""), [] if "Sequence" in str(field.type) else {"a": 1})
        for field in attrs.fields(kind)
    }
    return kind(**values)


@pytest.mark.parametrize("kind", Event.__args__, ids=lambda kind: kind.__name__)
def test_a_line_of_the_events_tells_the_event_again(kind: type):
    event = made(kind)
    line = json.loads(json.dumps({"n": 1, "time": 2.0, **to_json(event)}))
    again = event_from_json(line)
    assert type(again) is kind
    assert to_json(again) == to_json(event)


def test_a_line_of_a_later_version_is_passed_over():
    assert event_from_json({"event": "levitated", "step": 3}) is None
    assert event_from_json({"event": "stepped"}) is None
    assert event_from_json({**to_json(events.Resumed(7)), "mood": "good"}).step == 7


def test_a_process_that_says_nothing_is_told_by_what_it_printed(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    ended = []
    run = SubprocessRun(folder, ("levitate",), cache_dir=tmp_path / "cache", on_end=lambda: ended.append(True))
    run.start()
    assert run.snapshot()["own_process"]
    assert run.join(60)
    problem = run.status.to_json()["problems"][0]
    assert run.status.outcome == "failed"
    assert "status 2" in problem["message"]
    assert "levitate" in problem["fix"]
    assert ended == [True]


def test_the_new_process_trains_alone_and_shares_the_kept_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = subprocess_environment(tmp_path)
    assert given["LORA_TRAINER_CACHE"] == str(tmp_path)
    assert not {"RANK", "WORLD_SIZE"} & set(given)
