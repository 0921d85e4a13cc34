"""The thread that calls a method at regular intervals: when it calls, and when it ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from sessionkit.util.timer import PeriodicThread, call_weakly

from ..helpers.support import WAIT


class Worker:
    """Counts its calls, and wants as many as it was made for."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.calls = 0
        self.threads: set[threading.Thread] = set()
        self.done = threading.Event()

    def work(self) -> bool:
        self.calls += 1
        self.threads.add(threading.current_thread())
        if self.calls == self.wanted:
            self.done.set()
        return self.calls < self.wanted


def test_one_daemon_thread_calls_until_the_method_returns_false() -> None:
    """All calls come from one thread, which has the given name, and ends by itself."""
    worker = Worker(3)
    thread = PeriodicThread(0.001, worker.work, "worker")
    assert (thread.daemon, thread.name, thread.is_alive()) == (True, "worker", False)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert (worker.calls, worker.threads) == (3, {thread})


def test_cancel_ends_it_at_once() -> None:
    """A thread that sleeps until its next call is woken, and calls no more; canceling again does nothing."""
    worker = Worker(1000)
    thread = PeriodicThread(WAIT * 10, worker.work, "worker")
    thread.start()
    for _ in range(2):
        thread.cancel()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert worker.calls == 0


def test_it_does_not_keep_its_object_alive() -> None:
    """Once the object is gone, the next call is not made, and the thread ends."""
    worker = Worker(1_000_000_000)
    thread = PeriodicThread(0.001, worker.work, "worker")
    thread.start()
    gone = weakref.ref(worker)
    del worker
    thread.join(WAIT)
    gc.collect()
    assert gone() is None
    assert not thread.is_alive()


def test_a_call_that_outlives_its_object_is_the_last() -> None:
    """A weakly called method gives None if its object was dropped meanwhile, and so the thread ends at once."""

    class Dropped:
        def work(self) -> bool:
            workers.clear()
            return True

    workers = [Dropped()]
    call = call_weakly(workers[0].work)
    assert call() is None
    assert call() is None
    workers = [kept := Dropped()]
    assert call_weakly(kept.work)() is True


def test_deadlines_are_kept_and_missed_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread sleeps until the next deadline of its grid: a slow call shortens the next sleep, or skips some."""
    now = 100.0
    durations = iter([1.0, 25.0, 0.0])
    sleeps: list[float] = []

    class Slow:
        def work(self) -> bool:
            nonlocal now
            now += next(durations)
            return len(sleeps) < 3

    slow = Slow()
    thread = PeriodicThread(10.0, slow.work, "worker")

    def wait(seconds: float) -> bool:
        nonlocal now
        sleeps.append(seconds)
        now += seconds
        return False

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(thread.finished, "wait", wait)
    thread.run()

    assert sleeps == [10.0, 9.0, 5.0]


def test_a_monotonic_clock_that_jumps_does_not_silence_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far a test moves time.monotonic, the thread never sleeps for more than one interval."""
    readings = iter([1.7e9, 5.0, 5.0, 5.0])
    sleeps: list[float] = []
    worker = Worker(1)
    thread = PeriodicThread(10.0, worker.work, "worker")

    def wait(seconds: float) -> bool:
        sleeps.append(seconds)
        return False

    monkeypatch.setattr(time, "monotonic", lambda: next(readings))
    monkeypatch.setattr(thread.finished, "wait", wait)
    thread.run()

    assert sleeps == [10.0]
    assert worker.calls == 1


def test_an_interval_that_no_lock_can_wait_for_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval of centuries is legal; the thread sleeps for as long as a lock can."""
    sleeps: list[float] = []
    worker = Worker(1)
    thread = PeriodicThread(1e30, worker.work, "worker")
    monkeypatch.setattr(thread.finished, "wait", lambda seconds: bool(sleeps.append(seconds)))
    thread.run()
    assert sleeps == [threading.TIMEOUT_MAX]


def test_no_thread_is_started_while_the_interpreter_is_finalizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then start() returns quietly; nothing runs."""
    worker = Worker(1)
    thread = PeriodicThread(0.001, worker.work, "worker")
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    thread.start()
    assert not thread.is_alive()
    assert worker.calls == 0


def test_a_program_whose_last_finalizer_starts_a_thread_ends() -> None:
    """A start() in a finalizer that runs as the very last does not hang, and prints nothing."""
    program = """
import sys
from sessionkit.util.timer import PeriodicThread

class Last:
    def work(self):
        return True

    def __del__(self):
        assert sys.is_finalizing()
        PeriodicThread(1.0, self.work, "worker").start()
        print("finalized", flush=True)

last = Last()
last.itself = last
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True)  # noqa: S603  our own program
    assert (ended.stdout, ended.stderr) == ("finalized\n", "")
