"""What is measured around the steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ranks, start


def test_a_row_over_its_limit_is_named():
    rows = [
        start.row("tiny: start to step 1, warm", 0.5, 0.4),
        start.row("tiny: start to step 1, cold", 0.9, 0.4),
        start.row("tiny: a step at the change of epochs", 0.0104, 0.0100),
    ]
    assert start.missed(rows) == ["tiny: start to step 1, warm"]
    assert [row["ratio"] for row in rows] == [1.25, 2.25, 1.04]


@pytest.mark.slow
def test_a_warm_start_is_measured_to_the_end_of_the_first_step(tmp_path: Path):
    bench = start.Bench(start.SHAPES["tiny"], tmp_path)
    cold, warm = (bench.train(cache=tmp_path / "cache", steps=4) for _ in range(2))
    assert 0 < warm.first < cold.first
    assert len(warm.marks) == 4


def test_several_processes_are_compared_by_pictures_a_second(monkeypatch):
    seconds = {(1, 8): 4.0, (1, 4): 2.0, (2, 8): 2.5}
    monkeypatch.setattr(ranks, "measured", lambda processes, batch, steps: dict.fromkeys(("wall", "cpu"), seconds[processes, batch]))
    assert [row["ratio"] for row in ranks.rows(2, 8, 1, 1)] == [1.6, 1.6, 1.6, 1.6]
