"""The host's queue lock, held for hours without starving generations.

The lock is A1111's FIFOLock: `_lock` is the lock itself, `_pending_threads` the events of the waiting threads, oldest first, both
changed only under `_inner_lock`. A release wakes the oldest, but a thread that acquires at that moment overtakes it.
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
        self.is_held = False

    def acquire(self) -> None:
        """Waits for the lock behind everyone who came before."""
        self._lock.acquire()
        self.is_held = True

    def release(self) -> None:
        """Releases the lock; sleeps long enough for the next thread to really get it."""
        self.is_held = False
        self._lock.release()
        time.sleep(AFTER_RELEASE)

    def waiting(self) -> int:
        """The number of waiting threads; 0 where the host's lock does not show it."""
        return len(getattr(self._lock, "_pending_threads", ()))

    def let_one_through(self) -> bool:
        """Lets only the oldest waiting job run and takes the lock back before the others. False when none waits.

        A plain release and acquire would wait until the whole queue was served.
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
            while not lock._lock.locked() and time.monotonic() < end:  # new threads wait at _inner_lock meanwhile
                time.sleep(0.0005)
        mine.wait()
        if not lock._lock.acquire(blocking=False):
            self._overtaken = True  # a thread waits at the bare lock now, where no queue shows it
            lock._lock.acquire()
        return True

    def _let_hidden_through(self) -> bool:
        self._overtaken = False
        self._lock.release()
        time.sleep(AFTER_RELEASE)
        self._lock.acquire()
        return True
