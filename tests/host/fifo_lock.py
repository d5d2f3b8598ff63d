"""A1111's queue as far as others can see it."""

import collections
import threading


class FIFOLock:
    """The host's queue: whoever asks in the moment of a release overtakes those who wait."""

    def __init__(self):
        self._lock, self._inner_lock, self._pending_threads = threading.Lock(), threading.Lock(), collections.deque()

    def acquire(self, blocking=True):
        with self._inner_lock:
            if (free := self._lock.acquire(blocking=False)) or not blocking:
                return free
            mine = threading.Event()
            self._pending_threads.append(mine)
        mine.wait()
        return self._lock.acquire()

    def release(self, *_):
        with self._inner_lock:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()

    __enter__, __exit__ = acquire, release
