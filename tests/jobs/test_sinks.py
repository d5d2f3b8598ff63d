"""What a run writes besides its own log, where its config asks for it: a table of steps, and TensorBoard's files."""

from __future__ import annotations

import base64
import csv
import time
from pathlib import Path

import pytest

from lora_trainer.config.build import build
from lora_trainer.config.files import write_config
from lora_trainer.events import Changed, Resumed, Sampled, Stepped, Validated, Warned
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.logs.csv_log import StepsCsv
from lora_trainer.jobs.logs.events_log import EventRecord
from lora_trainer.jobs.logs.tensorboard import crc32c, mask_crc
from lora_trainer.jobs.sinks import log_sinks
from lora_trainer.messages import say

BY_TENSORBOARD = base64.b64decode(
    "GAAAAAAAAACjf0siCQAAIED8VNlBGg1icmFpbi5FdmVudDoyKzUxECMAAAAAAAAAsJ93QwkAACBA/FTZQSoYChYKD2xvc3MvdmFsaWRhdGlvbhUAAIA+TXl6wqcAAAAA"
    "AAAAuIlpKwkAAGBA/FTZQRCsAiqYAQoTCgxsb3NzL2N1cnJlbnQVAAAAPgoTCgxsb3NzL2F2ZXJhZ2UVAAAAPwoUCg1ub3JtL2dyYWRpZW50FQAAgD8KHQoWc3BlZWQv"
    "c2Vjb25kc19wZXJfc3RlcBUK1yM8ChAKCW1lbW9yeS9tYhUAAMhCCg4KB2xyL3VuZXQVF7fROAoVCg5sci90ZXh0ZW5jb2RlchUXt1E4OmmRxUMAAAAAAAAAsYUloAkA"
    "AKBA/FTZQRCsAio1CjMKCnNhbXBsZXMvMDEiJQgCEAMYAyIdiVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAABYXL2vEAAAAAAAAACV+/4YCQAA4ED8VNlBEPsBOgII"
    "AaReQhQ="
)
"""The events of `told` as tensorboard 2.21 writes them (its RecordWriter and its protocol buffers)."""
PNG_HEAD = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000003000000020802000000")


def folder_of(tmp_path: Path, **log) -> RunFolder:
    folder = RunFolder.create(tmp_path / "runs", "moon")
    write_config(build({"data": {"train_data_dir": "x"}, "log": log}), folder.config_file)
    return folder


def step(number: int, loss: float = 0.125, **more) -> Stepped:
    return Stepped(number, 1, loss, 0.5, 1e-4, 1.0, 0.01, 100.0, **more)


def send(sinks, *events, close: bool = True) -> None:
    for number, event in enumerate(events):
        for sink in sinks:
            sink(EventRecord(number + 1, 1700000000.5 + number, event))
    for sink in sinks if close else ():
        sink.close()


def told(tmp_path: Path) -> list:
    picture = tmp_path / "a.png"
    picture.write_bytes(PNG_HEAD)
    rates = {"unet": 1e-4, "text_encoder": 5e-5}
    return [Validated(0, 0, 0.25), step(300, rates=rates), Sampled(300, 1, str(picture), "x", 1, 1), Resumed(250, "state", 1)]


def rows_of(folder: RunFolder) -> list[dict[str, str]]:
    with (folder.path / "steps.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_are_those_of_tensorboard_itself_byte_for_byte(tmp_path: Path):
    folder = folder_of(tmp_path, logging_dir=str(tmp_path / "logs"), csv=False)
    send(log_sinks(folder), *told(tmp_path))
    (file,) = (tmp_path / "logs").rglob("events.out.tfevents.*")
    assert file.read_bytes() == BY_TENSORBOARD


def test_checksums_are_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert mask_crc(0) == 0xA282EAD8


def test_each_run_has_its_place_by_prefix_time_and_name(tmp_path: Path):
    named = folder_of(tmp_path, logging_dir=str(tmp_path / "logs"), log_prefix="my_", log_tracker_name="net")
    send(log_sinks(named), step(1))
    (place,) = (tmp_path / "logs").iterdir()
    assert place.name == "my_" + time.strftime("%Y%m%d%H%M%S", time.localtime(named.info()["created"]))
    send(log_sinks(named), step(2))  # resumed: the same place
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [place.name] and (place / "net").is_dir()
    inside = folder_of(tmp_path, log_with="tensorboard")
    send(log_sinks(inside), step(1))
    assert len(list((inside.path / "logs").rglob("moon-v2/events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(("log", "count"), [({}, 1), ({"csv": False}, 0), ({"logging_dir": "x", "log_with": "none"}, 1)])
def test_nothing_is_written_that_was_not_asked_for(tmp_path: Path, log, count):
    assert len(log_sinks(folder_of(tmp_path, **log))) == count


def test_the_table_has_a_line_a_step_and_one_a_validation(tmp_path: Path):
    folder = folder_of(tmp_path)
    rates = {"unet": 1e-4, "text_encoder": 5e-5}
    events = [Validated(0, 0, 0.25), step(1, rates=rates), step(2, float("nan"), rates=rates), Validated(2, 1, 0.2)]
    send(log_sinks(folder), *events, Warned(say("x")), Changed("a.b", 1, 2, 2))
    rows = rows_of(folder)
    assert [(row["step"], row["loss"], row["validation_loss"]) for row in rows] == [
        ("0", "", "0.25"),
        ("1", "0.125", ""),
        ("2", "", ""),
        ("2", "", "0.2"),
    ]
    assert (rows[1]["lr_unet"], rows[1]["lr_text_encoder"], rows[1]["seconds"]) == ("0.0001", "5e-05", "0.01")


def test_lines_are_there_while_the_run_goes_on(tmp_path: Path):
    folder = folder_of(tmp_path)
    sinks = log_sinks(folder)
    send(sinks, step(1), step(2), close=False)
    assert [row["step"] for row in rows_of(folder)] == ["1", "2"]
    send(sinks)


def test_a_resumed_run_drops_the_lines_of_steps_that_it_does_again(tmp_path: Path):
    folder = folder_of(tmp_path)
    send(log_sinks(folder), *(step(number) for number in range(1, 6)))
    send(log_sinks(folder), Resumed(3, "state", 1), step(4, 9.0), Resumed(4), step(5, 9.0))
    rows = rows_of(folder)
    assert [(row["step"], row["loss"]) for row in rows] == [("1", "0.125"), ("2", "0.125"), ("3", "0.125"), ("4", "9"), ("5", "9")]


def test_a_run_without_a_step_leaves_what_was_validated(tmp_path: Path):
    folder = folder_of(tmp_path)
    send([StepsCsv(folder)], Validated(0, 0, 0.25))
    assert [row["validation_loss"] for row in rows_of(folder)] == ["0.25"]
