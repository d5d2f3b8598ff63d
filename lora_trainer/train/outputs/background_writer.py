"""Writes files in a background thread, in order, from copies of the tensors that training goes on changing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lora_trainer.events import Event

WriteJob = Callable[[], Event | None]
MAX_PENDING = 4
"""Jobs that may wait; `submit` blocks while there are more. Each holds a copy of the network."""


class BackgroundWriter:
    """A thread that runs one job after the other.

    The event that a job returns is yielded in the run's own thread, by `poll`. `poll` also raises a job's error; jobs after that one are
    skipped.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lora-trainer files")
        self._pending: deque[Future[Event | None]] = deque()
        self._failed = False

    def submit(self, job: WriteJob) -> None:
        """Queues a job. It must hold copies of everything that it writes."""
        waiting = [future for future in self._pending if not future.done()]
        if len(waiting) >= MAX_PENDING:
            waiting[0].exception()
        self._pending.append(self._pool.submit(self._run, job))

    def poll(self) -> Iterator[Event]:
        """The events of the jobs completed since the last call. Raises the error of a failed job."""
        while self._pending and self._pending[0].done():
            if (event := self._pending.popleft().result()) is not None:
                yield event

    def finish(self) -> Iterator[Event]:
        """Waits for all jobs and yields their events, as `poll`."""
        while self._pending:
            self._pending[0].exception()
            yield from self.poll()

    def close(self) -> None:
        """Runs the queued jobs, then ends the thread. Errors that `poll` has not raised are dropped."""
        self._pool.shutdown(wait=True)

    def _run(self, job: WriteJob) -> Event | None:
        if self._failed:
            return None
        try:
            return job()
        except BaseException:
            self._failed = True
            raise


@torch.no_grad()
def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU; each storage is copied once, whatever number of tensors are views of it."""
    storages: dict[tuple[int, torch.dtype], Tensor] = {}
    copies = {}
    for name, tensor in tensors.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.dtype)
        if key not in storages:
            storages[key] = _whole_storage(tensor).to("cpu", copy=True)
        copies[name] = storages[key].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).contiguous()
    return copies


def _whole_storage(tensor: Tensor) -> Tensor:
    """A flat view of the whole storage that a tensor is a view of."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)
