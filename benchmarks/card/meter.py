"""Memory of the device: how much a run holds at most in each of its phases, and a device that is made small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import attrs
import torch

from benchmarks.card.block import Card
from benchmarks.memory import Allocations
from lora_trainer.events import Event, Phase
from lora_trainer.train.memory import placement
from lora_trainer.train.planning.memory_plan import CAPTIONS, LOAD, PICTURES, PREVIEW, SAVE, STEP
from lora_trainer.train.trainer import Trainer

MEGABYTE = 2**20
PHASE_OF_KIND = {
    placement.CAPTIONS: CAPTIONS,
    placement.PICTURES: PICTURES,
    placement.STEP: STEP,
    placement.EVALUATING: SAVE,
}


@attrs.define
class Peak:
    """The most of a phase in MB: handed out by torch's allocator, taken by it from the driver, and in use on the whole device then."""

    allocated: float = 0.0
    reserved: float = 0.0
    device: float = 0.0

    def include(self, allocated: float, reserved: float, device: float) -> None:
        """Raises each to the larger value."""
        self.allocated, self.reserved = max(self.allocated, allocated), max(self.reserved, reserved)
        self.device = max(self.device, device)


class PhaseMeter:
    """Notes the peak of each phase of a run. `around` is entered whenever the run works, `watch` called with each of its events.

    The trainer says which kind of work begins (`Trainer.make_ready`); drawing a preview consists of several kinds. On CUDA the figures
    are the allocator's and the driver's, less `ballast` bytes that fill the card; elsewhere every allocation is counted.
    """

    def __init__(self, card: Card, ballast: int = 0) -> None:
        self.card, self.ballast = card, ballast
        self.peaks: dict[str, Peak] = {}
        self.counter: Allocations | None = None if card.is_cuda else Allocations()
        self._phase, self._is_drawing = LOAD, False

    @contextmanager
    def listening(self) -> Iterator[PhaseMeter]:
        """Inside, the work of every trainer is followed."""
        make_ready = Trainer.make_ready

        def make_ready_and_note(trainer: Trainer, kind: str) -> None:
            self._begin(kind)
            make_ready(trainer, kind)

        self._reset()
        with patch.object(Trainer, "make_ready", make_ready_and_note):
            yield self
        self._note()

    def around(self) -> AbstractContextManager[Any]:
        """The counter where allocations are counted."""
        return self.counter if self.counter is not None else nullcontext()

    def watch(self, event: Event) -> None:
        """Drawing begins with its phase and ends with the next step."""
        if isinstance(event, Phase):
            self._is_drawing = event.name == "sampling"

    def _begin(self, kind: str) -> None:
        self._note()
        self._is_drawing = self._is_drawing and kind != placement.STEP
        self._phase = PREVIEW if self._is_drawing else PHASE_OF_KIND[kind]
        self._reset()

    def _note(self) -> None:
        self.peaks.setdefault(self._phase, Peak()).include(*(size / MEGABYTE for size in self._read()))

    def _read(self) -> tuple[float, float, float]:
        device = self.card.device
        if self.counter is not None:
            return self.counter.peak, self.counter.peak, self.counter.peak
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return allocated - self.ballast, reserved - self.ballast, total - free - self.ballast

    def _reset(self) -> None:
        if self.counter is not None:
            self.counter.peak = self.counter.alive
        else:
            torch.cuda.reset_peak_memory_stats(self.card.device)


@contextmanager
def only_free(card: Card, free_bytes: float) -> Iterator[int]:
    """Inside, so much of the card is free as the driver sees it: the rest is taken by one tensor, whose bytes are yielded. CUDA only."""
    card.clean()
    torch.cuda.reset_peak_memory_stats(card.device)
    size = int(torch.cuda.mem_get_info(card.device)[0] - free_bytes) // MEGABYTE * MEGABYTE
    ballast = torch.empty(max(0, size), dtype=torch.uint8, device=card.device)
    try:
        yield ballast.numel()
    finally:
        del ballast
        card.clean()


class Room:
    """A limit of what torch may take, set and lifted while a run goes on: a share of the card, or of what is counted on a CPU.

    `around` is entered whenever the run works.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.counter: Allocations | None = None if card.is_cuda else Allocations()

    def around(self) -> AbstractContextManager[Any]:
        """The counter where allocations are counted."""
        return self.counter if self.counter is not None else nullcontext()

    @property
    def held(self) -> int:
        """Bytes that are handed out now."""
        return self.counter.alive if self.counter is not None else torch.cuda.memory_allocated(self.card.device)

    @property
    def peak(self) -> float:
        """The most bytes that were handed out since `begin_peak`."""
        return self.counter.peak if self.counter is not None else torch.cuda.max_memory_allocated(self.card.device)

    def begin_peak(self) -> int:
        """Begins the peak anew; the bytes that are handed out now."""
        if self.counter is not None:
            self.counter.peak = self.counter.alive
        else:
            torch.cuda.reset_peak_memory_stats(self.card.device)
        return self.held

    def leave(self, more_bytes: float) -> None:
        """From now on only so many bytes more than are handed out now."""
        if self.counter is not None:
            self.counter.room = self.counter.alive + more_bytes
            return
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info(self.card.device)[1]
        share = (torch.cuda.memory_reserved(self.card.device) + more_bytes) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), self.card.index)

    def lift(self) -> None:
        """No limit any more."""
        if self.counter is not None:
            self.counter.room = float("inf")
        else:
            torch.cuda.set_per_process_memory_fraction(1.0, self.card.index)
