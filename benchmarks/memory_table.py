"""The memory table of docs/memory.md: each family by size, pictures a step and recomputing, as planned and as counted.

    python benchmarks/memory_table.py               writes the tables of both languages anew, from the counts that are kept
    python benchmarks/memory_table.py --count       counts anew first (a quarter of an hour; nothing is calculated, no GPU)

Planned: what `check` says for a GPU in half precision, from the shapes of the released models. Counted: every allocation of a real step
on tensors without memory, with CUDA autocast's casts, beside the model's weights and what kernels want for themselves
(benchmarks/memory.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import memory, random_checkpoint
from lora_trainer.config.build import build
from lora_trainer.models.detection.detect import ModelFacts, inspect
from lora_trainer.train.planning.memory_plan import CAPTIONS, LOAD, PICTURES, PREVIEW, SAVE, STEP, Machine
from lora_trainer.train.planning.plan import TrainingPlan, make_plan

ROOT = Path(__file__).resolve().parents[1]
COUNTS = ROOT / "benchmarks" / "results" / "memory-families.json"
BEGIN, END = "<!-- table: python benchmarks/memory_table.py -->", "<!-- end of the table -->"
RANK = 16
KEPT_GB = 1.2
"""What host and desktop keep of a card."""
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 48, 80)
SIZES = {"sd1": ((512, (1, 2, 4, 8)), (768, (1, 2, 4))), "sd2": ((768, (1, 2, 4)),), "sdxl": ((768, (1, 2, 4)), (1024, (1, 2, 4)))}
PHASES = {
    LOAD: ("loading", "加载"),
    CAPTIONS: ("captions", "编码标注"),
    PICTURES: ("pictures", "编码图片"),
    STEP: ("step", "训练步"),
    PREVIEW: ("preview", "预览图"),
    SAVE: ("saving", "保存"),
}
"""In English and Chinese."""
NAMES = {"sd1": "Stable Diffusion 1.5", "sd2": "Stable Diffusion 2.1", "sdxl": "SDXL base"}


@attrs.frozen
class Case:
    """One row's half: a family at a size, pictures a step, with or without recomputing, its U-Net in eight bits or not."""

    family: str
    side: int
    pictures: int
    again: bool
    eight: bool = False
    rank: int = RANK

    @property
    def name(self) -> str:
        """In the file of counts."""
        return f"{self.family} {self.side} x{self.pictures} {'again' if self.again else 'kept'} rank {self.rank}"


def cases() -> Iterator[Case]:
    """All of the table."""
    for family, sizes in SIZES.items():
        for side, batches in sizes:
            for pictures in batches:
                for again in (False, True):
                    yield Case(family, side, pictures, again)


@cache
def facts(family: str) -> ModelFacts:
    """Of the released model's shapes."""
    with tempfile.TemporaryDirectory() as folder:
        return inspect(random_checkpoint.hollow(Path(folder) / "model.safetensors", random_checkpoint.SHAPES[family][0]))


def plan_of(case: Case) -> TrainingPlan:
    """The U-Net alone is trained in half precision, a preview is drawn at the training size, and the model is read from a file."""
    config = build(
        {
            "data": {"train_data_dir": "x", "resolution": case.side, "batch_size": case.pictures, "cache_text_encoder_outputs": True},
            "network": {"dim": case.rank, "alpha": case.rank / 2},
            "optimizer": {"text_encoder_lr": 0},
            "memory": {"mixed_precision": "bf16", "gradient_checkpointing": case.again, "fp8_base_unet": case.eight},
            "sample": {"prompts": ["a house"]},
        }
    )
    return make_plan(config, (), facts(case.family), Machine("cuda", 0.0, 10.0))


def planned(case: Case) -> dict[str, float]:
    """MB of each part in a step."""
    return plan_of(case).step_memory


def count(case: Case) -> float:
    """MB that a step's own allocations and the optimizer's take, besides the model."""
    setting = memory.Setting(case.side, case.pictures, 0.0 if case.again else 1.0, case.rank)
    counted, _ = memory.count(random_checkpoint.SHAPES[case.family][0], setting, torch.bfloat16, cuda=True)
    return (counted.between + counted.within) / 2**20


def both(case: Case, counts: dict[str, float]) -> tuple[float, float | None]:
    """GB of a step planned and counted, the weights and what kernels want for themselves in both."""
    parts = planned(case)
    fixed = parts["model"] + parts["workspace"]
    counted = counts.get(case.name)
    return sum(parts.values()) / 1024, None if counted is None else (fixed + counted) / 1024


def card(gigabytes: float) -> int:
    """The smallest usual card that has room for it."""
    return next(size for size in CARDS if gigabytes <= size - KEPT_GB)


def tables(counts: dict[str, float], chinese: bool) -> str:
    """The Markdown of all families."""
    heads = ("pixels", "pictures a step", "kept: GB (counted), card", "recomputed: GB (counted), card")
    if chinese:
        heads = ("像素", "每步图片数", "保留：GB（计数），显卡", "重新计算：GB（计数），显卡")
    lines: list[str] = []
    for family, sizes in SIZES.items():
        lines += [f"### {NAMES[family]}", "", f"| {' | '.join(heads)} |", "|---|---|---|---|"]
        for side, batches in sizes:
            for pictures in batches:
                cells = [_cell(Case(family, side, pictures, again), counts, chinese) for again in (False, True)]
                lines.append(f"| {side} | {pictures} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *_paths(chinese)])


def _cell(case: Case, counts: dict[str, float], chinese: bool) -> str:
    """A step's GB, the card for the phase that needs most, and that phase where it is not the step."""
    gigabytes, counted = both(case, counts)
    name, needed = binding(case)
    note = "" if name == STEP else f" ({PHASES[name][chinese]} {needed:.1f})"
    return f"{gigabytes:.1f}{'' if counted is None else f' ({counted:.1f})'}, {card(max(gigabytes, needed, counted or 0.0))} GB{note}"


def binding(case: Case) -> tuple[str, float]:
    """The phase that needs most, and its GB."""
    most = max(plan_of(case).memory_phases, key=lambda phase: phase.needed_mb)
    return most.name, most.needed_mb / 1024


def _paths(chinese: bool) -> list[str]:
    """SDXL on small cards: what would have to fit where."""
    wanted = ((Case("sdxl", 1024, 1, True, rank=8), 8), (Case("sdxl", 1024, 1, True, eight=True, rank=8), 6))
    wanted += ((Case("sdxl", 768, 1, True, eight=True, rank=8), 6),)
    title = "### SDXL 在小显卡上（方案，未在显卡上测量）" if chinese else "### SDXL on small cards (paths, not measured on a GPU)"
    lines = [
        title,
        "",
        "| 显卡 | 设置 | 编码标注 | 编码图片 | 训练步 | 预览图 | 最大 | 可用 GB |"
        if chinese
        else "| card | settings | captions | pictures | step | preview | most | free GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, size in wanted:
        words = [f"{case.side}", f"rank {case.rank}", "gradient_checkpointing", "cache_text_encoder_outputs"]
        words += ["fp8_base_unet"] if case.eight else []
        gigabytes = {phase.name: phase.needed_mb / 1024 for phase in plan_of(case).memory_phases}
        cells = [f"{gigabytes[name]:.1f}" for name in (CAPTIONS, PICTURES, STEP, PREVIEW)]
        most, needed = binding(case)
        cells += [f"{PHASES[most][chinese]} {needed:.1f}", f"{size - KEPT_GB:.1f}"]
        lines.append(f"| {size} GB | {', '.join(words)} | {' | '.join(cells)} |")
    return [*lines, ""]


def write(counts: dict[str, float]) -> list[Path]:
    """Both documents with new tables; those that changed."""
    changed = []
    for name, chinese in (("memory.md", False), ("memory.zh-CN.md", True)):
        path = ROOT / "docs" / name
        text = path.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        new = f"{before}{BEGIN}\n\n{tables(counts, chinese)}\n{END}{rest.partition(END)[2]}"
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


def kept_counts() -> dict[str, Any]:
    """What was counted last, by the names of cases."""
    return json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.exists() else {}  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts where that is asked for, and writes the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count anew")
    chosen = parser.parse_args(arguments)
    counts = kept_counts()
    for case in cases() if chosen.count else ():
        counts[case.name] = round(count(case), 1)
        print(case.name, counts[case.name], flush=True)
        COUNTS.write_text(json.dumps(counts, indent=0) + "\n", encoding="utf-8")
    for path in write(counts):
        print(path)


if __name__ == "__main__":
    main()
