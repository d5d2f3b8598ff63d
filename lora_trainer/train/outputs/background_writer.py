"""Files written in the background, in the order in which they were handed over, and copies of tensors for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lora_trainer.events import Event

Work = Callable[[], Event | None]
WAITING = 4
"""Files that may wait; who hands over one more waits instead. Each holds a copy of the network."""


class BackgroundWriter:
    """One thread that does one piece of work after the other.

    What a work returns is told in the run's own thread, by `told`; so is what it raises, and nothing more is written after that.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lora-trainer files")
        self._handed: deque[Future[Event | None]] = deque()
        self._failed = False

    def put(self, work: Work) -> None:
        """Takes a piece of work that holds all that it needs: the run goes on changing everything else."""
        waiting = [future for future in self._handed if not future.done()]
        if len(waiting) >= WAITING:
            waiting[0].exception()
        self._handed.append(self._pool.submit(self._do, work))

    def notes(self) -> Iterator[Event]:
        """What was written since the last time; raises what went wrong."""
        while self._handed and self._handed[0].done():
            if (event := self._handed.popleft().result()) is not None:
                yield event

    def finish(self) -> Iterator[Event]:
        """Waits until everything is written; as `told`."""
        while self._handed:
            self._handed[0].exception()
            yield from self.notes()

    def close(self) -> None:
        """Writes what was handed over, then ends the thread. What went wrong and was not told stays untold."""
        self._pool.shutdown(wait=True)

    def _do(self, work: Work) -> Event | None:
        if self._failed:
            return None
        try:
            return work()
        except BaseException:
            self._failed = True
            raise


@torch.no_grad()
def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values on the CPU, in memory that nobody else changes; views of one storage stay views of one copy."""
    copies: dict[tuple[int, torch.dtype], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.dtype)
        if place not in copies:
            copies[place] = _whole(tensor).to("cpu", copy=True)
        found[name] = copies[place].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).contiguous()
    return found


def _whole(tensor: Tensor) -> Tensor:
    """All numbers of the storage in which a tensor lies."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)
