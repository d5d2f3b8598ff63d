"""Threads of our own, and how far what they work at is: the host's forty may all be waiting for the run to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import attrs

Result = TypeVar("Result")


class Workers:
    """Runs blocking functions beside the event loop: four threads that a page waits for, one for what nobody waits for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="lora-trainer-route")
        self._quiet = ThreadPoolExecutor(1, thread_name_prefix="lora-trainer-quiet")

    async def in_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        """The function's result; its exceptions are raised here."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def later(self, function: Callable[[], Any]) -> Future[Any]:
        """Runs it when there is time."""
        return self._quiet.submit(function)


@attrs.define(eq=False)
class ToolWork:
    """A tool at work: how far it is, and in the end what came of it."""

    done: int = 0
    total: int = 0
    future: Future[Any] | None = None

    def tell(self, done: int, total: int) -> None:
        """How far it is."""
        self.done, self.total = done, total
