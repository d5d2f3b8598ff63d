"""Our own worker threads and the progress of their jobs: the host's thread pool may be full of requests that wait for the run to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import attrs

Result = TypeVar("Result")


class Workers:
    """Runs blocking functions off the event loop: four threads for requests, one for background work."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="lora-trainer-route")
        self._background = ThreadPoolExecutor(1, thread_name_prefix="lora-trainer-quiet")

    async def in_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        """Awaits the function in a request thread; its exceptions are raised here."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def in_background(self, function: Callable[[], Any]) -> Future[Any]:
        """Queues the function for the background thread."""
        return self._background.submit(function)


@attrs.define(eq=False)
class ToolJob:
    """A running network tool: its progress and, in `future`, its result."""

    done: int = 0
    total: int = 0
    future: Future[Any] | None = None

    def report(self, done: int, total: int) -> None:
        """Progress callback."""
        self.done, self.total = done, total
