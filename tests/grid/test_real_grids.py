"""What a grid says of whole runs on the small model: learned, not learned, learned too hard."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LAST = 8
pytestmark = pytest.mark.slow


def demo(folder: Path, *sets: str) -> dict[str, Any]:
    """grid.json of a demo run with changed settings."""
    words = [word for change in sets for word in ("--set", change)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-m", "lora_trainer", "demo", "--out", str(folder), *words], cwd=ROOT, env=environment, check=True)
    return json.loads((folder / "grid.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return demo(tmp_path_factory.mktemp("normal"))


def scores(grid: dict[str, Any], epoch: int, weight: float) -> dict[str, Any]:
    return next(cell["scores"] for cell in grid["cells"] if (cell["epoch"], cell["weight"]) == (epoch, weight))


def test_the_crescent_shows_at_weight_one_by_more_than_three_standard_errors(normal):
    found = scores(normal, LAST, 1.0)
    assert found["likeness"] > 3 * found["likeness_error"]
    assert normal["best"] is not None


def test_a_run_that_learned_nothing_has_no_best_cell(tmp_path: Path):
    found = demo(tmp_path, "optimizer.learning_rate=0")
    assert found["best"] is None and "No cell shows the concept" in found["sentence"]


def test_five_times_the_learning_rate_keeps_the_base_worse_and_is_best_earlier_or_lower(normal, tmp_path: Path):
    found = demo(tmp_path, "optimizer.learning_rate=1e-2")
    hard, usual = scores(found, LAST, 1.0), scores(normal, LAST, 1.0)
    error = math.hypot(hard["keeping_error"], usual["keeping_error"])
    assert usual["keeping"] - hard["keeping"] > 2 * error
    assert found["best"] is not None
    assert found["best"]["epoch"] < normal["best"]["epoch"] or found["best"]["weight"] < normal["best"]["weight"]
