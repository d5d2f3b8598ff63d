"""Writes files in a background thread, in order, from copies of the tensors that training goes on changing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from lora_trainer.errors import DiskFull
from lora_trainer.events import Event

WriteJob = Callable[[], Event | None]
MAX_PENDING = 4
"""Jobs that may wait; `submit` blocks while there are more. Each holds a copy of the network."""
POLL_SECONDS = 0.1
RETRY_SECONDS = 2.0
"""Between two attempts to write a file for which the disk has no room."""


class BackgroundWriter:
    """A thread that runs one job after the other.

    The event that a job returns is yielded in the run's own thread, by `poll`. `poll` also raises a job's error; jobs after that one are
    skipped. A job for which the disk has no room is tried again until it has, or until `stopping` returns True or `close` is called;
    meanwhile `blocked` is its error, and nothing waits for it.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: True) -> None:
        self.blocked: DiskFull | None = None
        self._stopping = stopping
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lora-trainer files")
        self._pending: deque[Future[Event | None]] = deque()
        self._failed = False
        self._closing = threading.Event()

    def submit(self, job: WriteJob) -> None:
        """Queues a job. It must hold copies of everything that it writes."""
        waiting = [future for future in self._pending if not future.done()]
        if len(waiting) >= MAX_PENDING:
            self._wait_for(waiting[0])
        self._pending.append(self._pool.submit(self._run, job))

    def poll(self) -> Iterator[Event]:
        """The events of the jobs completed since the last call. Raises the error of a failed job."""
        while self._pending and self._pending[0].done():
            if (event := self._pending.popleft().result()) is not None:
                yield event

    def finish(self) -> Iterator[Event]:
        """Waits for all jobs and yields their events, as `poll`; ends early while one is blocked."""
        while self._pending:
            self._wait_for(self._pending[0])
            if not self._pending[0].done():
                return
            yield from self.poll()

    def close(self) -> None:
        """Runs the queued jobs, then ends the thread. Errors that `poll` has not raised are dropped."""
        self._closing.set()
        self._pool.shutdown(wait=True)

    def _wait_for(self, future: Future[Event | None]) -> None:
        while not future.done() and (self.blocked is None or self._stopping()):
            wait([future], POLL_SECONDS)

    def _run(self, job: WriteJob) -> Event | None:
        if self._failed:
            return None
        try:
            return self._run_until_there_is_room(job)
        except BaseException:
            self._failed = True
            raise
        finally:
            self.blocked = None

    def _run_until_there_is_room(self, job: WriteJob) -> Event | None:
        while True:
            try:
                return job()
            except DiskFull as error:
                if self._stopping() or self._closing.is_set():
                    raise
                self.blocked = error
            self._closing.wait(RETRY_SECONDS)


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
