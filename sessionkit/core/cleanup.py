"""The cleanup task: one daemon thread that calls one function at regular intervals and cannot die of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakMethod

from ..util.log import report_failure, report_problem

THREAD_NAME = "sessionkit-cleanup"

JOIN_SECONDS = 5.0
"""How long `stop` waits for a run to end. Bounded, because the run may itself be waiting for whoever called `stop`."""


class CleanupStats(NamedTuple):
    """The cleanup task. Counts run on when it is stopped and started again."""

    alive: bool
    """Whether its thread runs."""
    runs: int
    """How often it ran, failures included."""
    failures: int
    """How often a run failed, or its thread could not be started."""
    removed: int
    """How many sessions its runs removed."""
    last_removed: int
    """How many sessions the last run removed."""
    last_run_at: float | None
    """When the last run began: a reading of the coordinator's clock, in seconds; None before the first."""
    last_duration: float | None
    """How long the last run took, in seconds of `time.perf_counter`; None before the first."""


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

    `run` returns what it did, or None when there is nothing to clean up any more, which ends the thread. Where the
    system has no thread to give, `falls_to_caller` says when somebody else is to clean up. Thread-safe.
    """

    def __init__(self, interval: float, run: Callable[[], CleanupRun | None]) -> None:
        self._interval = interval
        self._run = run
        # Reentrant, because a signal handler may stop the task while it is being started.
        self._lock = threading.RLock()
        self._timer: CleanupTimer | None = None
        self._caller_cleans_at: float | None = None
        self._closed = False
        self.needs_start = False
        self.wanted = False
        """Whether it was started, and neither stopped nor closed since."""
        self._runs = self._failures = self._removed = 0
        self._last: CleanupRun | None = None
        self._last_duration: float | None = None

    def start(self) -> None:
        """Start the thread; does nothing while it runs, and after `close`. A failure to start is logged and counted."""
        with self._lock:
            if self._closed:
                return
            self.wanted = True
            problem = self._start_thread()
            self.needs_start = problem is not None
        if problem is not None:
            report_problem("the cleanup thread could not be started, callers will clean up instead: %r", problem)

    def retry_start(self) -> None:
        self.needs_start = False
        self.start()

    @property
    def wants_callers(self) -> bool:
        """Whether callers are to clean up now and then, for want of a thread."""
        return self._caller_cleans_at is not None

    def falls_to_caller(self, reading: float) -> bool:
        """Whether the caller is to clean up, for want of a thread: True once an interval of the coordinator's clock.

        Each time, it tries to start the thread first; once that succeeds, this was the last one.
        """
        due = self._caller_cleans_at
        if due is None or reading < due:
            return False
        with self._lock:
            if self._caller_cleans_at != due:
                return False  # another caller does it
            self._caller_cleans_at = None if self._start_thread() is None else reading + self._interval
            return True

    def stop(self) -> None:
        """End the thread, waiting for a run that is under way (for 5 seconds at most); stopping again does nothing.

        Called by the run itself, it does not wait: the thread ends when the run does.
        """
        with self._lock:
            self.wanted, self._caller_cleans_at = False, None
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            if timer is not threading.current_thread():
                timer.join(JOIN_SECONDS)

    def close(self) -> None:
        """Stop for good."""
        self._closed = True
        self.stop()

    def cancel(self, current_thread: Callable[[], threading.Thread] = threading.current_thread) -> None:
        """Let the thread end, without waiting for it; for the garbage collector.

        In the thread itself it does nothing: it might interrupt the very wait whose lock it needs, and the thread ends
        of its own accord. `current_thread` is bound early, because modules may be gone when the interpreter exits.
        """
        timer = self._timer
        if timer is not None and timer is not current_thread():
            timer.cancel()

    def abandon(self) -> None:
        """In a forked child: this is its parent's task; should a run of it have forked, that is the last one here."""
        self._closed = True

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

    def _start_thread(self) -> Exception | None:
        if self._timer is not None and self._timer.is_alive():
            return None
        timer = CleanupTimer(self._interval, self._fire)
        try:
            timer.start()
        except (RuntimeError, MemoryError) as error:
            self._failures += 1
            return error
        if self.wanted:
            self._timer = timer
        else:
            # A signal handler stopped the task just now.
            timer.cancel()
        return None

    def _fire(self) -> bool:
        began = time.perf_counter()
        self._runs += 1
        try:
            last = self._run()
        except BaseException:  # noqa: BLE001  a close callback that raises SystemExit must not end the cleanup either
            self._failures += 1
            report_failure("a cleanup run failed; the next one will come")
            return not self._closed
        if last is None:
            return False
        self._last = last
        self._last_duration = time.perf_counter() - began
        self._removed += last.removed
        return not self._closed
