"""The garbage collector: paused while many small objects are created that all stay alive, and asked for a whole collection."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

TRIES = 200
PAUSE_SECONDS = 0.01


class _Cycle:
    """Refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        vars(self)["itself"] = self


@contextmanager
def gc_paused() -> Iterator[None]:
    """Disables garbage collection inside; for seconds of work without waiting."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def collect_garbage() -> None:
    """A whole collection. `gc.collect` alone does nothing while another thread is in one, and a model stays in memory."""
    for _ in range(TRIES):
        probe = weakref.ref(_Cycle())
        gc.collect()
        if probe() is None:
            return
        time.sleep(PAUSE_SECONDS)
