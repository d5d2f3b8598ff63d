"""What other packages call deprecated is not called: the next version of theirs takes it away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def calls(folder: Path, *words: str) -> dict[str, str]:
    """What was said -> where it was called, in a process of its own: much is said once only."""
    command = [sys.executable, "-m", "tests.train.deprecated_calls", str(folder), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNDEFAULTENCODING": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads((folder / "calls.json").read_text(encoding="utf-8"))
    return found


def test_a_run_calls_nothing_that_is_deprecated(tmp_path: Path) -> None:
    """Training, validation, previews of every sampler, saving and resuming; two calls are planted, to see that they would be found."""
    found = calls(tmp_path, "--plant")
    planted = [said for said in found if "planted" in said]
    assert [said.partition(":")[0] for said in planted] == ["FutureWarning", "transformers.planted"]
    assert {said: place for said, place in found.items() if said not in planted} == {}
