"""What a step must not do: read numbers back one by one, search for garbage, start processes."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_trainer.control import Control
from lora_trainer.events import Stepped
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.train.loop import run
from tests.train.runs import small_config

WARM, PICTURES = 3, 30


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names[operation.overloadpacket.__name__] += 1
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def watched(tmp_path: Path, monkeypatch):
    """Operations, searches for garbage and other processes of five steps over the end of an epoch."""
    collected = []
    monkeypatch.setattr(gc, "collect", lambda *generation: collected.append(generation) or 0)
    config = small_config(tmp_path, optimizer__text_encoder_lr=0.0, data__batch_size=PICTURES, save__every_n_epochs=0, save__state=False)
    operations, children = Operations(), set()
    with contextlib.closing(run(config, StandaloneHost(tmp_path), Control(), tmp_path / "run")) as events:
        seen = 0
        while seen < WARM:
            seen += isinstance(next(events), Stepped)
        collected.clear()
        before = set(psutil.Process().children(recursive=True))  # of tests before this one
        while seen < WARM + 5:
            with operations:
                event = next(events)
            if isinstance(event, Stepped):
                seen += 1
                children |= set(psutil.Process().children(recursive=True)) - before
    return operations.names, collected, children, event


def test_a_step_reads_its_numbers_at_once_collects_nothing_and_starts_no_process(watched):
    names, collected, children, last = watched
    assert last.epoch > 1
    # what float(tensor) does, and would wait for the GPU: only the step of noise is drawn so, of each picture and on the CPU;
    # torch 2.1's AdamW, which is not fused on the CPU, reads its count of steps
    assert names["_local_scalar_dense"] == 5 * (PICTURES + (not hasattr(torch.amp, "GradScaler")))
    assert names["convolution"] > 5 * 50
    assert collected == []
    assert children == set()
