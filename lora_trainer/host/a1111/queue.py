"""The host's queue lock, held for hours without shutting anybody out.

The lock is A1111's FIFOLock: `_lock` is the lock itself, `_pending_threads` the events of those who wait, oldest first, both
changed only under `_inner_lock`. A release wakes the oldest, but whoever asks at that moment overtakes it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

AFTER_RELEASE = 0.02
HAND_OVER = 2.0


class Turn:
    """Our place in the host's queue."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._overtaken = False
        self.held = False

    def take(self) -> None:
        """Waits for our turn behind everybody who came before."""
        self._lock.acquire()
        self.held = True

    def give(self) -> None:
        """Gives the turn away; sleeps long enough that the next one really has it."""
        self.held = False
        self._lock.release()
        time.sleep(AFTER_RELEASE)

    def waiting(self) -> int:
        """How many wait, where the host's lock tells."""
        return len(getattr(self._lock, "_pending_threads", ()))

    def let_one_through(self) -> bool:
        """Lets exactly the oldest waiting job run and takes the turn back before the others. False when nobody waits.

        Without this, taking the lock again would mean waiting until everybody in the queue was served.
        """
        if self._overtaken:
            return self._let_hidden_through()
        lock, mine = self._lock, threading.Event()
        with lock._inner_lock:
            if not lock._pending_threads:
                return False
            lock._pending_threads.popleft().set()
            lock._pending_threads.appendleft(mine)
            lock._lock.release()
            end = time.monotonic() + HAND_OVER
            while not lock._lock.locked() and time.monotonic() < end:  # newcomers wait at _inner_lock meanwhile
                time.sleep(0.0005)
        mine.wait()
        if not lock._lock.acquire(blocking=False):
            self._overtaken = True  # somebody stands before the bare lock now, where no queue shows him
            lock._lock.acquire()
        return True

    def _let_hidden_through(self) -> bool:
        self._overtaken = False
        self._lock.release()
        time.sleep(AFTER_RELEASE)
        self._lock.acquire()
        return True
