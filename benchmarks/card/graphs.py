"""Block 5: replayed CUDA graphs train what eager steps train: two sizes of pictures, accumulation, a pause; and host syncs of a step."""

from __future__ import annotations

import contextlib
import warnings as python_warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.card.block import Block, Card, Figures, require
from benchmarks.card.runs import crescent, events_of, losses, seen_trainers, warnings
from lora_trainer import assets
from lora_trainer.control import Control
from lora_trainer.events import Event, Paused, Stepped

STEPS = 24
OFF = 1e-2
"""Relative difference of a loss: a graph chooses its kernels anew, and kernels of the backward pass add up in no fixed order."""
MOST_SYNCS = 24
"""Of one eager step: inputs that are copied, and one reading of loss and norm. One for each layer would be over a hundred."""
PLAIN: dict[str, Any] = {"memory__mixed_precision": "no", "loss__min_snr_gamma": 5.0, "data__shuffle_caption": True}


def two_sizes(folder: Path) -> Path:
    """The crescent's pictures, every second one cut to half of its height, so that batches have two shapes."""
    source = next((assets.toy_pictures() / "crescent" / "train").iterdir())
    target = folder / source.name
    target.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(source.glob("*.png"))):
        with Image.open(path) as picture:
            cut = picture.crop((0, picture.height // 4, picture.width, picture.height * 3 // 4)) if number % 2 else picture.copy()
        cut.save(target / path.name)
        caption = path.with_suffix(".txt")
        if caption.exists():
            (target / caption.name).write_text(caption.read_text(encoding="utf-8"), encoding="utf-8")
    return target.parent


def graphs_against_eager(card: Card) -> Figures:
    """Losses of the same run eager and with graphs: plain, accumulated over two sizes, and with a pause in the middle."""
    pictures = two_sizes(card.new_folder())
    buckets = {
        "data__train_data_dir": str(pictures),
        "data__enable_bucket": True,
        "data__min_bucket_reso": 32,
        "data__bucket_reso_steps": 8,
    }
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "two sizes, accumulated": {**buckets, "steps__gradient_accumulation_steps": 2, "data__batch_size": 3},
    }
    rows = [_compared(card, name, changes, pauses=False) for name, changes in cases.items()]
    return {"rows": [*rows, _compared(card, "with a pause", {}, pauses=True)]}


def _compared(card: Card, name: str, changes: dict[str, Any], *, pauses: bool) -> dict[str, Any]:
    eager = _steps(card, {**PLAIN, **changes}, pauses=pauses)[0]
    replayed, replays, messages = _steps(card, {**PLAIN, **changes, "memory__cuda_graphs": True}, pauses=pauses)
    require(not messages, f"{name}: {messages[:1]}")
    require(replays >= len(eager) // 2, f"{name}: only {replays} replays in {len(eager)} steps")
    pairs = list(zip(eager, replayed, strict=True))
    off = max(abs(other / one - 1) for one, other in pairs)
    require(off <= OFF, f"{name}: a loss is {off:.2g} off the eager run's")
    return {"run": name, "steps": len(eager), "replays": replays, "losses off": off}


def _steps(card: Card, changes: dict[str, Any], *, pauses: bool) -> tuple[list[float], int, list[str]]:
    """Losses, replays, and what was said of CUDA graphs."""
    folder, control = card.new_folder(), Control()

    def watch(event: Event) -> None:
        if pauses and isinstance(event, Stepped) and event.step == STEPS // 2:
            control.command("pause")
        elif isinstance(event, Paused):
            control.command("resume")

    with seen_trainers() as trainers:
        events = events_of(card, crescent(folder, steps__max_train_steps=STEPS, **changes), folder, control=control, watch=watch)
    graphs = trainers[0].cuda_graphs
    return losses(events), 0 if graphs is None else graphs.replay_count, warnings(events, "CUDA graphs")


def host_syncs(card: Card) -> Figures:
    """How often the host waits for the device in a step, eager and with graphs."""
    figures: Figures = {}
    for name, changes in (("eager", {}), ("graphs", {"memory__cuda_graphs": True})) if card.is_cuda else (("eager", {}),):
        folder, counts = card.new_folder(), []
        counter = _CudaSyncs() if card.is_cuda else _Reads()

        def watch(event: Event, counter: Any = counter, counts: list[int] = counts) -> None:
            if isinstance(event, Stepped):
                counts.append(counter.take())

        config = crescent(folder, **PLAIN, steps__max_train_steps=10, **changes)
        events_of(card, config, folder, watch=watch, around=counter.around)
        figures[f"{name}, a step"] = median(counts[3:])
    most = max(figures.values())
    require(most <= MOST_SYNCS, f"the host waits {most} times in a step")
    return figures


class _CudaSyncs:
    """Counts what torch warns of in its debug mode for synchronising operations (torch.cuda.set_sync_debug_mode)."""

    def __init__(self) -> None:
        self.count = 0

    def take(self) -> int:
        """The count since the last call."""
        count, self.count = self.count, 0
        return count

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Inside, they are counted."""
        with python_warnings.catch_warnings(record=True) as caught:
            python_warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        self.count += sum("synchroniz" in str(warning.message) for warning in caught)


class _Reads(TorchDispatchMode):
    """Without CUDA: counts values that Python reads from tensors, each of which would be a sync there."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operation.overloadpacket.__name__ in ("_local_scalar_dense", "equal", "is_nonzero")
        return operation(*args, **(kwargs or {}))

    def take(self) -> int:
        """The count since the last call."""
        count, self.count = self.count, 0
        return count

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, they are counted."""
        return self


BLOCKS = (
    Block("graphs", "CUDA graphs against eager steps: two sizes, accumulation, after a pause", graphs_against_eager, 35.0),
    Block("host-syncs", "how often the host waits for the device in a step", host_syncs, 10.0, 4.0),
)
