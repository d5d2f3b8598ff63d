"""Every optimizer and every schedule trains the small bundled model: its curve and its validation loss, as in docs/optimizers.md.

    python benchmarks/optimizers.py                          all, about ten minutes; what is not installed is left out and named
    python benchmarks/optimizers.py --only Prodigy,cosine    some
    python benchmarks/optimizers.py --write                  and puts the tables into docs/optimizers.md and its translation

A run is 80 steps of four pictures of the crescent (rank 8, seed 1) on one thread. The rate is the family's hint times 20: the small
model takes higher rates than Stable Diffusion. Those that find the size of their steps keep 1, two of them 0.3.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_trainer import assets
from lora_trainer.config import effective
from lora_trainer.config.build import build
from lora_trainer.config.choices.optimizers import ADAPTIVE, OPTIMIZER_CHOICES, SCHEDULE_CHOICES, optimizer_spec
from lora_trainer.control import Control
from lora_trainer.errors import MissingPackage
from lora_trainer.events import Started, Stepped, Validated
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.optim.builders import optimizer_choice
from lora_trainer.optim.schedules import make_schedule
from lora_trainer.train.loop import run

STEPS = 80
SMALL = 20.0
"""How much higher the small model's rates are."""
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "AdaFactor, fixed rate": ("AdaFactor", {"args": "relative_step=False scale_parameter=False warmup_init=False", "max_grad_norm": 0.0}),
    "torch.optim.RMSprop": ("torch.optim.RMSprop", {}),
    "AdamW, LoRA+ 16": ("AdamW", {"loraplus_lr_ratio": 16.0, "learning_rate": 5e-4}),
}
"""Rows beside the plain names: (optimizer, its options)."""
RATES = {"CAME": 1e-3, "torch.optim.RMSprop": 5e-4, "DAdaptation": 0.3, "DAdaptAdam": 0.3}
"""Where the hint is not what a row takes: at a rate of 1 the two D-Adaptations with Adam step too far on this model."""
OPTIONS: dict[str, dict[str, Any]] = {"DAdaptAdaGrad": {"args": "d0=1e-3"}}
"""From 1e-6, where it starts by itself, it does not get anywhere in so few steps."""
SHAPES: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 3.0},
    "cosine_annealing": {"num_cycles": 3.0},
    "polynomial": {"power": 2.0},
    "inverse_sqrt": {"timescale": 20},
    "piecewise_constant": {"args": "step_rules=1:60,0.3:90,0.1"},
}
CLASS = ("torch.optim.lr_scheduler.OneCycleLR", {"args": f"max_lr=1.0 total_steps={STEPS + 1}"})
OPTIMIZER_WORDS = ("optimizer", "rate", "highest in effect", "bytes of state per parameter", "validation loss", "lower by")
SHARES = ("0 %", "10 %", "25 %", "50 %", "75 %", "100 %")
DOCS = Path(__file__).resolve().parents[1] / "docs"


@attrs.frozen
class Row:
    """A run: `rate` as written, `found` the highest rate that took effect, losses of the held pictures.
    `state`: bytes that the optimizer keeps for each number."""

    name: str
    rate: float
    found: float
    before: float
    after: float
    state: float
    shares: tuple[float, ...] = ()

    @property
    def lower(self) -> float:
        """By which share the validation loss fell."""
        return 1.0 - self.after / self.before


def config_of(folder: Path, optimizer: Mapping[str, Any], schedule: Mapping[str, Any], steps: int) -> Any:
    """A run on the crescent."""
    pictures = assets.toy_pictures() / "crescent"
    return build(
        {
            "model": {"pretrained_model_name_or_path": str(assets.toy_checkpoint())},
            "data": {"train_data_dir": str(pictures / "train"), "resolution": 64, "batch_size": 4, "trigger_word": "sks"},
            "network": {"dim": 8, "alpha": 8},
            "optimizer": dict(optimizer),
            "schedule": dict(schedule),
            "steps": {"max_train_steps": steps},
            "validate": {"data_dir": str(pictures / "val"), "every_n_epochs": 0},
            "save": {"output_dir": str(folder / "loras"), "output_name": "row", "every_n_epochs": 0},
        }
    )


def measured(name: str, optimizer: Mapping[str, Any], schedule: Mapping[str, Any], steps: int = STEPS) -> Row:
    """One run from the untouched model. Raises MissingPackage."""
    optimizer_choice(str(optimizer["type"]))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        config = config_of(folder, optimizer, schedule, steps)
        with contextlib.closing(run(config, StandaloneHost(folder), Control(), folder / "run")) as work:
            events = list(work)
    total = next(event for event in events if isinstance(event, Started)).plan["total_steps"]
    stepped = [event for event in events if isinstance(event, Stepped)]
    losses = [event.loss for event in events if isinstance(event, Validated)]
    course = make_schedule(config.schedule, total, effective.warmup_steps(config, total), effective.decay_steps(config, total))
    return Row(
        name,
        float(optimizer["learning_rate"]),
        max(event.lr for event in stepped),
        losses[0],
        losses[-1],
        optimizer_spec(str(optimizer["type"])).state_bytes,
        tuple(round(course.factor(round(share * (total - 1))), 3) for share in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)),
    )


def optimizer_rows(steps: int = STEPS) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, optimizer, schedule) of each optimizer: constant where it finds its own way, else a warm-up and a cosine to a tenth."""
    plain = {name: (name, OPTIONS.get(name, {})) for name in OPTIMIZER_CHOICES}
    for name, (kind, options) in (plain | MORE).items():
        known = optimizer_spec(kind)
        rate = RATES.get(kind, 1.0 if known.rate_range is ADAPTIVE else known.rate_range.hint * SMALL)
        alone = known.schedule_free or known.adaptive
        schedule = {"type": "constant"} if alone else {"type": "cosine", "warmup_steps": steps // 20, "min_lr_ratio": 0.1}
        yield name, {"type": kind, "learning_rate": rate, **options}, schedule


def schedule_rows(steps: int = STEPS) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, optimizer, schedule) of each schedule, with AdamW."""
    for name in SCHEDULE_CHOICES:
        kind = {"type": "AdaFactor", "learning_rate": 0.0} if name == "adafactor" else {"type": "AdamW", "learning_rate": 2e-3}
        yield name, kind, {"type": name, "warmup_steps": 0 if name == "adafactor" else steps // 20, **SHAPES.get(name, {})}
    yield CLASS[0], {"type": "AdamW", "learning_rate": 2e-3}, {"type": CLASS[0], **CLASS[1]}


def tables(optimizers: Sequence[Row], schedules: Sequence[Row], chinese: bool = False) -> tuple[str, str]:
    """The two tables of the page."""
    words = ("优化器", "学习率", "实际最高", "每个数的状态字节", "验证损失", "降低") if chinese else OPTIMIZER_WORDS
    first = [_line(words), _line(["---"] * len(words))]
    for row in sorted(optimizers, key=lambda row: row.after):
        losses = f"{row.before:.4f} → {row.after:.4f}"
        first.append(_line([row.name, f"{row.rate:g}", f"{row.found:.2g}", f"{row.state:g}", losses, f"{row.lower:.0%}"]))
    words = ("调度", *SHARES, "验证损失", "降低") if chinese else ("schedule", *SHARES, "validation loss", "lower by")
    second = [_line(words), _line(["---"] * len(words))]
    for row in schedules:
        shares = [f"{share:g}" for share in row.shares]
        second.append(_line([row.name, *shares, f"{row.before:.4f} → {row.after:.4f}", f"{row.lower:.0%}"]))
    return "\n".join(first), "\n".join(second)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def put_into(page: Path, name: str, table: str) -> None:
    """Replaces what stands between the page's marks of that name."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(begin, 1)
    page.write_text(before + begin + table + end + rest.split(end, 1)[1], encoding="utf-8")


def main() -> int:
    """Runs what is asked for and prints each row as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, with commas between")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--write", action="store_true", help="puts the tables into the pages of docs/")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    only = {name.strip() for name in asked.only.split(",") if name.strip()}
    found: dict[str, list[Row]] = {"optimizers": [], "schedules": []}
    for kind, wanted in (("optimizers", optimizer_rows(asked.steps)), ("schedules", schedule_rows(asked.steps))):
        for name, optimizer, schedule in wanted:
            if only and name not in only:
                continue
            try:
                row = measured(name, optimizer, schedule, asked.steps)
            except MissingPackage as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
                continue
            found[kind].append(row)
            losses = f"{row.before:.4f} -> {row.after:.4f}"
            print(f"{name:40} {row.rate:<8g} {row.found:<10.3g} {losses} {row.lower:6.1%}", file=sys.stderr, flush=True)
    for chinese, page in ((False, DOCS / "optimizers.md"), (True, DOCS / "optimizers.zh-CN.md")):
        if asked.write:
            for name, table in zip(found, tables(found["optimizers"], found["schedules"], chinese), strict=True):
                put_into(page, name, table)
    if asked.json:
        print(json.dumps({kind: [{**attrs.asdict(row), "lower": row.lower} for row in rows] for kind, rows in found.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
