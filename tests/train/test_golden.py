"""The numbers of golden.json, which a plain loop without the trainer's arithmetic has given (plain_loop.py), come out of a run."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path

import pytest

from lora_trainer.control import Control
from lora_trainer.events import Stepped, Validated
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.train.loop import run
from tests.train.plain_loop import CASES, STEPS, golden_config
from tests.train.runs import events_of

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
OPTIMIZERS = {"flat": "AdamW", "per tensor": "torch.optim.AdamW"}


@pytest.mark.parametrize("way", OPTIMIZERS)
def test_a_run_begins_and_ends_like_the_plain_loop(tmp_path: Path, way: str):
    events = events_of(golden_config(tmp_path, 1, "plain", optimizer__type=OPTIMIZERS[way]), tmp_path)
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    first, *_, last = [event.loss for event in events if isinstance(event, Validated)]
    assert losses[:3] == pytest.approx(GOLDEN["first losses"]["plain"], abs=1e-6) and len(losses) == STEPS
    ends = GOLDEN["validation at the end"].values()
    assert abs(last - GOLDEN["validation at the end"]["1"]) < max(ends) - min(ends)
    assert last < first * 0.8


@pytest.mark.parametrize("case", [case for case in CASES if case != "plain"])
def test_a_run_with_options_begins_like_the_plain_loop(tmp_path: Path, case: str):
    work = run(golden_config(tmp_path, 1, case), StandaloneHost(tmp_path), Control(), tmp_path / "run")
    with contextlib.closing(work):
        losses = [event.loss for event in itertools.islice((event for event in work if isinstance(event, Stepped)), 3)]
    assert losses == pytest.approx(GOLDEN["first losses"][case], abs=1e-6)
