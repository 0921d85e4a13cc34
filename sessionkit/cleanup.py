"""The cleanup task: one daemon thread that calls one function at regular intervals and cannot die of it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakMethod

from .stats import CleanupStats

log = logging.getLogger("sessionkit")

THREAD_NAME = "sessionkit-cleanup"

JOIN_SECONDS = 5.0
"""How long `stop` waits for a run to end. Bounded, because the run may itself be waiting for whoever called `stop`."""


class CleanupRun(NamedTuple):
    """What one run did: when it began, on the coordinator's clock, and how many sessions it removed."""

    at: float
    removed: int


def call_weakly(run: Callable[[], CleanupRun | None]) -> Callable[[], CleanupRun | None]:
    """Make of a bound method a function that does not keep its object alive, and gives None once that is gone."""
    method = WeakMethod(run)

    def run_if_alive() -> CleanupRun | None:
        bound = method()
        if bound is None:
            return None
        done = bound()
        # That may have been the last reference to the object; then the thread ends now, not an interval later.
        del bound
        return done if method() is not None else None

    return run_if_alive


class CleanupTimer(threading.Timer):
    """A daemon `threading.Timer` that fires again and again, until it is cancelled or its function returns False.

    One thread however long it runs. It keeps to deadlines, so that it does not drift; runs that could not keep up are
    left out, not made up for.
    """

    def __init__(self, interval: float, function: Callable[[], bool]) -> None:
        super().__init__(interval, function)
        self.daemon = True
        self.name = THREAD_NAME

    def run(self) -> None:
        deadline = time.monotonic() + self.interval
        # The clamp is for a monotonic clock that a test has replaced: never sleep past one interval.
        while not self.finished.wait(min(max(deadline - time.monotonic(), 0.0), self.interval, threading.TIMEOUT_MAX)):
            if not self.function():
                break
            missed = max(time.monotonic() - deadline, 0.0) // self.interval
            deadline += self.interval * (missed + 1)


class CleanupTask:
    """Calls `run` every `interval` seconds of real time in a thread of its own, whatever `run` raises.

    `run` returns what it did, or None when there is nothing to clean up any more, which ends the thread. Starting it
    twice, and stopping it twice, does nothing. Thread-safe.
    """

    def __init__(self, interval: float, run: Callable[[], CleanupRun | None]) -> None:
        self._interval = interval
        self._run = run
        self._lock = threading.Lock()
        self._timer: CleanupTimer | None = None
        self._runs = self._failures = self._removed = 0
        self._last: CleanupRun | None = None
        self._last_duration: float | None = None

    def start(self) -> bool:
        """Start the thread unless it runs; False if the system has no thread to give, which is logged and counted."""
        with self._lock:
            if self._timer is not None and self._timer.is_alive():
                return True
            timer = CleanupTimer(self._interval, self._fire)
            try:
                timer.start()
            except (RuntimeError, MemoryError) as error:
                self._failures += 1
                log.warning("the cleanup thread could not be started, later calls will clean up instead: %s", error)
                return False
            self._timer = timer
            return True

    def cancel(self) -> None:
        """Let the thread end, without waiting for it. Takes no lock: for the garbage collector."""
        timer = self._timer
        # In the thread itself, `cancel` could meet the lock that its own wait is holding; it ends of its own accord.
        if timer is not None and timer is not threading.current_thread():
            timer.cancel()

    def stop(self) -> None:
        """End the thread, waiting for a run that is under way (for 5 seconds at most).

        Called by the run itself, it does not wait: the thread ends when the run does.
        """
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            if timer is not threading.current_thread():
                timer.join(JOIN_SECONDS)

    def stats(self) -> CleanupStats:
        """The figures so far."""
        timer, last = self._timer, self._last
        return CleanupStats(
            alive=timer is not None and timer.is_alive(),
            runs=self._runs,
            failures=self._failures,
            removed=self._removed,
            last_removed=last.removed if last else 0,
            last_run_at=last.at if last else None,
            last_duration=self._last_duration,
        )

    def _fire(self) -> bool:
        began = time.perf_counter()
        self._runs += 1
        try:
            last = self._run()
        except BaseException:  # noqa: BLE001  a close callback that raises SystemExit must not end the cleanup either
            self._failures += 1
            self._report_failure()
            return True
        if last is None:
            return False
        self._last = last
        self._last_duration = time.perf_counter() - began
        self._removed += last.removed
        return True

    def _report_failure(self) -> None:
        # A log handler that raises must not end the cleanup.
        with contextlib.suppress(BaseException):
            log.exception("a cleanup run failed; the next one will come")
