import threading
import time

import pytest

from lora_trainer.host.a1111.queue import Turn
from tests.host.contract import wait_for
from tests.host.fifo_lock import FIFOLock


@pytest.fixture
def queue():
    return FIFOLock()


def test_oldest_waiting_job_runs_and_the_turn_comes_back_before_the_next(queue):
    turn, order = Turn(queue), []
    turn.acquire()
    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=work, args=(queue, order, number)))
        threads[-1].start()
        wait_for(lambda number=number: turn.waiting() == number + 1)
    assert turn.let_one_through()
    assert order == [0]
    assert turn.let_one_through()
    assert order == [0, 1]
    turn.release()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4]


def test_with_nobody_waiting_nothing_is_waited_for_and_the_turn_stays(queue, monkeypatch):
    turn = Turn(queue)
    turn.acquire()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits where nobody comes"))
    assert not turn.let_one_through()
    monkeypatch.undo()
    assert not queue.acquire(blocking=False)


def test_nobody_starves_while_newcomers_keep_coming(queue):
    """Others come at any moment of a run that goes on: each of them is served during the run, not after it."""
    turn, order, coming = Turn(queue), [], True
    turn.acquire()
    threads = []

    def come():
        while coming:
            threads.append(threading.Thread(target=work, args=(queue, order, len(threads), 0.001)))
            threads[-1].start()
            time.sleep(0.004)

    crowd = threading.Thread(target=come)
    crowd.start()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        turn.let_one_through()
        time.sleep(0.0005)
    coming = False
    crowd.join(10)
    end = time.monotonic() + 20
    while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
        turn.let_one_through()
    alive = sum(thread.is_alive() for thread in threads)
    turn.release()
    assert alive == 0, f"{alive} of {len(threads)} were never let through"
    assert len(order) == len(threads) > 20


def work(queue, order, number, seconds=0.01):
    with queue:
        time.sleep(seconds)
        order.append(number)
