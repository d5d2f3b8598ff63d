"""Runs blocks one after the other within a time, writes a JSON line for each at once, and a table at the end."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from benchmarks.card.block import Block, BlockFailed, BlockLeftOut, Card, Figures
from lora_trainer.host.memory import device_memory

PASSED, NEEDS_CUDA, NO_TIME = "passed", "needs CUDA", "left out for time"


@attrs.frozen
class Result:
    """How a block ended, after how many seconds, with its figures."""

    block: str
    title: str
    outcome: str
    seconds: float
    figures: Figures

    @property
    def is_failed(self) -> bool:
        """Whether something was not as it must be."""
        return self.outcome.startswith("failed")


def run_blocks(blocks: Sequence[Block], card: Card, seconds: float, write: Callable[[str], object]) -> list[Result]:
    """The results of all blocks; each is written as a JSON line as soon as it is there. No block begins that would not end in time."""
    end, results = time.monotonic() + seconds, []
    for block in blocks:
        results.append(run_block(block, card, end - time.monotonic()))
        write(json.dumps(attrs.asdict(results[-1]), ensure_ascii=False, default=str))
    return results


def run_block(block: Block, card: Card, seconds_left: float) -> Result:
    """The result of one block; whatever it raises is its outcome, and the device is clean afterwards."""
    estimate, begin, figures = block.estimate(card), time.perf_counter(), {}
    if estimate is None:
        return Result(block.name, block.title, NEEDS_CUDA, 0.0, {})
    if estimate > seconds_left:
        return Result(block.name, block.title, NO_TIME, 0.0, {"estimate_s": estimate})
    try:
        figures = block.work(card)
        card.synchronize()
        outcome = PASSED
    except BlockLeftOut as reason:
        outcome = f"left out: {reason}"
    except BlockFailed as reason:
        outcome = f"failed: {reason}"
    except Exception as error:  # noqa: BLE001 - a block that breaks must not hide the ones after it
        outcome = f"failed: {type(error).__name__}: {_first_lines(error)} ({_place(error)})"
    seconds = round(time.perf_counter() - begin, 2)
    try:
        card.clean()
    except RuntimeError as error:  # after an error that CUDA does not recover from, every block fails
        outcome = outcome if outcome.startswith("failed") else f"failed: {_first_lines(error)}"
    return Result(block.name, block.title, outcome, seconds, figures)


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _place(error: BaseException) -> str:
    """File and line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def machine(card: Card) -> dict[str, Any]:
    """The device and the versions, as the first line and the table's heading."""
    from diffusers import __version__ as diffusers
    from transformers import __version__ as transformers

    memory = device_memory(card.device)
    facts: dict[str, Any] = {"device": memory["device"], "total_mb": memory["total_mb"], "free_mb": memory["free_mb"]}
    if card.is_cuda:
        major, minor = torch.cuda.get_device_capability(card.device)
        cudnn = torch.backends.cudnn.version()
        facts |= {"capability": f"{major}.{minor}", "cuda": torch.version.cuda or torch.version.hip, "cudnn": cudnn}
        facts["precision"] = memory["precision"]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers, "transformers": transformers}
    return {**facts, "system": f"{platform.system()} {platform.machine()}", **versions}


def file_name(facts: Mapping[str, Any]) -> str:
    """card-NAME.md of the device."""
    return f"card-{re.sub(r'[^a-z0-9]+', '-', str(facts['device']).lower()).strip('-')}.md"


def table(facts: Mapping[str, Any], results: Sequence[Result], seconds: float) -> str:
    """Everything as Markdown: one row a block, then the tables of those that have rows."""
    failed = sum(result.is_failed for result in results)
    lines = [
        f"# Card: {facts['device']}",
        "",
        f"`python benchmarks/on_card.py`, {seconds:.0f} s, {len(results)} blocks, {failed} failed.",
        "",
        ", ".join(f"{name} {value}" for name, value in facts.items() if name != "device"),
        "",
        "| block | outcome | s | figures |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {result.block} | {_cell(result.outcome)} | {result.seconds:.1f} | {_cell(_inline(result.figures))} |" for result in results
    ]
    for result in results:
        if rows := result.figures.get("rows"):
            lines += ["", f"## {result.block}: {result.title}", "", *_rows(rows)]
    return "\n".join(lines) + "\n"


def _inline(figures: Figures) -> str:
    return "; ".join(f"{name} {_text(value)}" for name, value in figures.items() if name != "rows")


def _rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield f"| {' | '.join(_cell(_text(row.get(name, ''))) for name in names)} |"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
