"""A long run costs no more at its end than at its beginning: neither memory nor time."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import pytest

from lora_trainer.api.runs import start_run
from lora_trainer.events import Stepped
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.jobs.job import Job
from tests.train.resume_runs import folder_of, small_config

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def course_of(tmp_path: Path, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, and the memory after it in MB."""
    config = small_config(
        tmp_path,
        data__batch_size=1,
        data__num_repeats=50,
        steps__max_train_steps=steps,
        save__every_n_steps=steps // 5,
        save__state_every_n_steps=max(20, steps // 50),
    )
    seconds: list[float] = []
    memory: list[float] = []

    def watch(record):
        if isinstance(record.event, Stepped):
            seconds.append(record.event.seconds)
            memory.append(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20)

    folder = folder_of(config)
    job = Job(start_run.training_work(config, StandaloneHost(tmp_path), folder), folder, [watch])  # events are looked at, not kept
    assert job.run().outcome == "finished"
    assert len(seconds) == steps
    return seconds, memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(tmp_path: Path):
    _, memory = course_of(tmp_path, 240)
    assert max(memory[-40:]) - max(memory[100:140]) < 5


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_ten_thousand_steps_cost_the_same_at_the_end_as_at_the_beginning(tmp_path: Path):
    seconds, memory = course_of(tmp_path, 10_000)
    assert median(memory[-500:]) - median(memory[500:1000]) < 5
    assert median(seconds[-1000:]) <= 1.02 * median(seconds[:1000])
