"""A whole collection, also while another thread is in one."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from lora_trainer.gc_pause import collect_garbage


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def other_thread():
    """Another thread is in the middle of a collection until `set` is called."""
    inside, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=gc.collect)

    def wait(phase: str, facts: object) -> None:
        if phase == "start" and threading.current_thread() is thread:
            inside.set()
            end.wait(60)

    gc.callbacks.append(wait)
    thread.start()
    assert inside.wait(60)
    yield end
    end.set()
    thread.join()
    gc.callbacks.remove(wait)


def test_what_only_a_collection_frees_is_freed_once_the_other_thread_has_ended_its_own(other_thread: threading.Event):
    alive = weakref.ref(Cycle())
    gc.collect()
    assert alive() is not None  # nothing was done
    threading.Timer(0.1, other_thread.set).start()
    collect_garbage()
    assert alive() is None


def test_without_another_thread_it_is_freed_at_once():
    alive = weakref.ref(Cycle())
    collect_garbage()
    assert alive() is None
