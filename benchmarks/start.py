"""What a run costs besides its steps: from the start to the first step, saving, and the change from one epoch to the next.

    python benchmarks/start.py                        the small shape, about a minute
    python benchmarks/start.py --shapes sd15-bf16     Stable Diffusion 1.5 in bfloat16

The process holds the model already, as a WebUI does. A start is cold where the pictures are still to be encoded, warm where an
earlier run has left them on disk. Each row stands beside what it may cost at most.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step import SHAPES, HoldingHost, Shape, held_model, machine, table
from lora_trainer.config.build import build
from lora_trainer.events import Phase, Saved, Stepped
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.logs.events_log import EventRecord
from lora_trainer.models.source import LiveSource
from lora_trainer.train.loop import run

PICTURES, STEPS = 8, 6
WIDE = 256
"""Rank of the network whose saving is measured: as many numbers as rank 16 has on Stable Diffusion 1.5."""
START_STEPS, START_SECONDS, SAVE_SECONDS, BOUNDARY = 1.2, 0.3, 0.010, 1.05


@attrs.define(eq=False)
class Watch:
    """A sink that notes when steps are done: CPU seconds of the process, and seconds of the wall between two steps.

    `rests` are the seconds between the end of a step and the begin of the next, by the last step before; `saved` the steps after
    which a file was written.
    """

    begin: float = attrs.field(factory=time.process_time)
    marks: list[float] = attrs.field(factory=list)
    walls: list[float] = attrs.field(factory=list)
    seconds: list[float] = attrs.field(factory=list)
    epochs: list[int] = attrs.field(factory=list)
    saved: set[int] = attrs.field(factory=set)

    def __call__(self, record: EventRecord) -> None:
        if isinstance(record.event, Stepped):
            self.marks.append(time.process_time() - self.begin)
            self.walls.append(time.perf_counter())
            self.seconds.append(record.event.seconds)
            self.epochs.append(record.event.epoch)
        elif isinstance(record.event, (Saved, Phase)) and (isinstance(record.event, Saved) or record.event.name == "saving"):
            self.saved.add(len(self.marks))

    @property
    def first(self) -> float:
        """CPU seconds from the start to the end of the first step."""
        return self.marks[0]

    @property
    def step(self) -> float:
        """CPU seconds of a later step."""
        return median(later - earlier for earlier, later in zip(self.marks[1:], self.marks[2:], strict=False))

    def rest(self, number: int) -> float:
        """Wall seconds between step `number` (1 is the first) and the next one's begin."""
        return self.walls[number] - self.walls[number - 1] - self.seconds[number]


class Bench:
    """Runs on one held model, in folders of their own; all share one folder of encoded pictures until it is emptied."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape, self.folder, self.source = shape, folder, held_model(shape)
        self.count = 0

    def train(self, *, cache: Path, pictures: int = PICTURES, steps: int = STEPS, rank: int = 16, **save: Any) -> Watch:
        """A run of `steps` on `pictures` grey pictures. Raises RuntimeError when it fails."""
        self.count += 1
        folder = self.folder / str(self.count)
        config = build(
            {
                "data": {"train_data_dir": str(self._pictures(pictures)), "trigger_word": "sks", "resolution": self.shape.side},
                "network": {"dim": rank, "alpha": float(rank)},
                "optimizer": {"text_encoder_lr": 0.0},
                "steps": {"max_train_steps": steps},
                "save": {"output_dir": str(folder / "output"), "every_n_epochs": 0, "state": False, **save},
            }
        )
        host, runs = CachingHost(folder, self.source, cache), RunFolder.create(folder, "run")
        watch = Watch()
        job = Job(lambda control: run(config, host, control, runs.path), runs, [watch])
        if job.run().outcome != "finished":
            raise RuntimeError(f"{self.shape.name}: {job.status.to_json()['error']}") from job.error
        return watch

    def _pictures(self, count: int) -> Path:
        folder = self.folder / f"pictures {count}"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            for number in range(count):
                side = self.shape.side
                Image.new("RGB", (side, side), (number * 200 // count, 128, 128)).save(folder / f"{number}.png")
        return folder


class CachingHost(HoldingHost):
    """Keeps encoded pictures in a folder of the measurement, not in the user's."""

    def __init__(self, root: Path, held: LiveSource, cache: Path) -> None:
        super().__init__(root, held)
        self.cache = cache

    def paths(self) -> Any:
        """As a headless host's, with the other cache."""
        return attrs.evolve(super().paths(), cache_dir=self.cache)


def start_rows(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    """From the start to the first step, in CPU seconds, warm beside 1.2 steps and 0.3 s."""
    cold, warm, steps = [], [], []
    bench.train(cache=bench.folder / "first", steps=2)  # what is imported is imported
    for number in range(rounds):
        cache = bench.folder / f"cache {number}"
        cold.append(bench.train(cache=cache).first)
        watch = bench.train(cache=cache)
        warm.append(watch.first)
        steps.append(watch.step)
    most = START_STEPS * median(steps) + START_SECONDS
    name = bench.shape.name
    return [
        row(f"{name}: start to step 1, warm (at most 1.2 steps + 0.3 s)", median(warm), most),
        row(f"{name}: start to step 1, cold, {PICTURES} pictures", median(cold), most),
        row(f"{name}: a step", median(steps), median(steps)),
    ]


def beside_rows(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    """How long a save keeps the training thread, and a step at the change of epochs beside one within."""
    cache, name = bench.folder / "first", bench.shape.name
    saves, boundaries = [], []
    for _ in range(rounds):
        watch = bench.train(cache=cache, steps=24, rank=WIDE, every_n_steps=4)
        ordinary = [watch.rest(number) for number in range(3, 23) if number not in watch.saved]
        saves.append(median(watch.rest(number) for number in sorted(watch.saved) if 3 <= number < 24) - median(ordinary))
        long = bench.train(cache=cache, pictures=40, steps=240)
        times = [later - earlier for earlier, later in zip(long.marks, long.marks[1:], strict=False)]
        new = [later != earlier for earlier, later in zip(long.epochs, long.epochs[1:], strict=False)]
        at, within = ([seconds for seconds, is_new in zip(times, new, strict=True) if is_new is wanted] for wanted in (True, False))
        boundaries.append((median(at), median(within)))
    at, within = (median(pair[place] for pair in boundaries) for place in (0, 1))
    return [
        row(f"{name}: a save keeps the training (27 MB, at most 10 ms)", median(saves), SAVE_SECONDS),
        row(f"{name}: a step at the change of epochs (at most 1.05 of one within)", at, within),
    ]


def row(name: str, ours: float, other: float) -> dict[str, Any]:
    """Milliseconds below a second."""
    scale, unit = (1.0, "s") if max(ours, other) >= 1.0 else (1000.0, "ms")
    return {
        "name": name,
        "ours": round(ours * scale, 3),
        "reference": round(other * scale, 3),
        "ratio": round(ours / other, 4),
        "unit": unit,
    }


def missed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the rows that are over their limit."""
    limits = {"warm": 1.0, "a save": 1.0, "change of epochs": BOUNDARY}
    return [one["name"] for one in rows for word, limit in limits.items() if word in one["name"] and one["ratio"] > limit]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the shapes that were asked for and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("LORA_TRAINER_CACHE", tempfile.mkdtemp(prefix="lora-trainer-bench-"))
    found: list[dict[str, Any]] = []
    for name in chosen.shapes:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(SHAPES[name], Path(folder))
            found += start_rows(bench, chosen.rounds)
            found += beside_rows(bench, chosen.rounds) if name.startswith("tiny") else []
    if chosen.json:
        print(json.dumps({"machine": machine(), "rows": found}))
        return
    print(table(machine(), found))
    for name in missed(found):
        print(f"over its limit: {name}")


if __name__ == "__main__":
    main()
