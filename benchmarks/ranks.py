"""Pictures a second of two processes beside one: each of one thread, on the small model that ships.

    python benchmarks/ranks.py                 three rounds, about two minutes; wants as many free cores as processes
    python benchmarks/ranks.py --batch 16 --processes 4

One process takes all pictures of a step, the others share them. Wall seconds tell what a user sees and count other programs too;
CPU seconds of the busiest process tell what would remain if nobody else was there, without the waiting for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WARM_UP = 3


def measured(processes: int, batch: int, steps: int) -> dict[str, float]:
    """Seconds of a step: {"wall", "cpu"}. Raises CalledProcessError when the run fails."""
    with tempfile.TemporaryDirectory() as folder:
        own = [str(Path(__file__).resolve()), "--worker", folder, "--batch", str(batch // processes), "--steps", str(steps)]
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run([sys.executable, *start, *own], check=True, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("rank*.json")]
    return {name: max(one[name] for one in told) for name in ("wall", "cpu")}


def work(folder: Path, batch: int, steps: int) -> None:
    """One process of a run; writes what its steps took."""
    import torch

    from lora_trainer import assets
    from lora_trainer.config.build import build
    from lora_trainer.control import Control
    from lora_trainer.events import Stepped
    from lora_trainer.host.standalone import StandaloneHost
    from lora_trainer.jobs.process_rank import process_rank
    from lora_trainer.train.loop import run

    torch.set_num_threads(1)
    place = process_rank()
    config = build(
        {
            "model": {"pretrained_model_name_or_path": str(assets.toy_checkpoint())},
            "data": {"train_data_dir": str(assets.toy_pictures() / "crescent" / "train"), "resolution": 64, "batch_size": batch},
            "optimizer": {"text_encoder_lr": 0.0},
            "steps": {"max_train_steps": WARM_UP + steps},
            "save": {"output_dir": str(folder / "output"), "every_n_epochs": 0, "state": False},
        }
    )
    marks = []
    with closing(run(config, StandaloneHost(folder), Control(), folder / "run", place)) as events:
        for event in events:
            if isinstance(event, Stepped):
                marks.append((time.perf_counter(), time.process_time()))
    pairs = list(zip(marks[WARM_UP:], marks[WARM_UP + 1 :], strict=False))
    wall, cpu = (median(later[kind] - earlier[kind] for earlier, later in pairs) for kind in (0, 1))
    (folder / f"rank{place.rank}.json").write_text(json.dumps({"wall": wall, "cpu": cpu}), encoding="utf-8")


def rows(processes: int, batch: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Pictures a second, several processes beside one: one that takes all of a step's pictures, and one that takes as many as each."""
    whole, share, together = [], [], []
    for _ in range(rounds):
        whole.append(measured(1, batch, steps))
        share.append(measured(1, batch // processes, steps))
        together.append(measured(processes, batch, steps))
    found = []
    for kind in ("wall", "cpu"):
        for beside, times in ((batch, whole), (batch // processes, share)):
            ours, other = batch / median(one[kind] for one in together), beside / median(one[kind] for one in times)
            name = f"{processes} processes of {batch // processes} pictures beside one of {beside}, {kind} time"
            found.append(
                {"name": name, "ours": round(ours, 1), "reference": round(other, 1), "ratio": round(ours / other, 3), "unit": "/s"}
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="pictures of a step, over all processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        work(chosen.worker, chosen.batch, chosen.steps)
        return
    from benchmarks.step import machine, table

    found = rows(chosen.processes, chosen.batch, chosen.rounds, chosen.steps)
    print(json.dumps({"machine": machine(), "rows": found}) if chosen.json else table(machine(), found))


if __name__ == "__main__":
    main()
