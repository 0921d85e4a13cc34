"""The cleanup task: one daemon thread that calls one method at regular intervals and cannot die of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ..util.log import report_failure, report_problem
from ..util.timer import PeriodicThread, call_weakly

THREAD_NAME = "sessionkit-cleanup"

JOIN_SECONDS = 5.0
"""How long `stop` waits for a run to end. Bounded, because the run may itself be waiting for the thread that stops."""


class CleanupRun(NamedTuple):
    """What one run did: when it began, on the coordinator's clock, and how many sessions it removed."""

    at: float
    removed: int


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


class CleanupTask:
    """Calls the bound method `run` every `interval` seconds of real time in a thread of its own, whatever it raises.

    `run` returns what it did, or None if there is nothing to clean up any more, which ends the thread. Its object is
    not kept alive. Thread-safe.
    """

    def __init__(self, interval: float, run: Callable[[], CleanupRun | None]) -> None:
        self._interval = interval
        self._run = call_weakly(run)
        # Reentrant, because a signal handler may stop the task while it is being started.
        self._lock = threading.RLock()
        self._thread: PeriodicThread | None = None
        self._closed = False
        self.wanted = False
        """Whether it was started, and neither stopped nor closed since."""
        self.needs_start = False
        """Whether it is wanted, and the system had no thread to give: then call `retry_start`. Read without a lock."""
        self._runs = self._failures = self._removed = 0
        self._last: CleanupRun | None = None
        self._last_duration: float | None = None

    def start(self) -> None:
        """Start the thread; does nothing while it runs, after `close`, and once the interpreter is finalizing.

        If the system has no thread to give, that is logged and counted, and `needs_start` is True.
        """
        with self._lock:
            if self._closed:
                return
            self.wanted = True
            problem = self._start_thread()
        if problem is not None:
            report_problem(
                "the cleanup thread could not be started: sessions expire all the same, and starting it is tried again "
                "when the next session is created: %r",
                problem,
            )

    def retry_start(self) -> None:
        """Start the thread if it is wanted and could not be started before. Another failure is only counted."""
        with self._lock:
            if self.needs_start:
                self._start_thread()

    def stop(self) -> None:
        """End the thread, waiting for a run that is under way (for 5 seconds at most); stopping again does nothing.

        Called by the run itself, it does not wait: the thread ends when the run does.
        """
        with self._lock:
            self.wanted = self.needs_start = False
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.cancel()
            if thread is not threading.current_thread():
                thread.join(JOIN_SECONDS)

    def close(self) -> None:
        """Stop for good."""
        self._closed = True
        self.stop()

    def cancel(self, current_thread: Callable[[], threading.Thread] = threading.current_thread) -> None:
        """Let the thread end, without waiting for it; for the garbage collector.

        In the thread itself it does nothing: it might interrupt the very wait whose lock it needs, and the thread ends
        of its own accord. `current_thread` is bound early, because modules may be gone when the interpreter exits.
        """
        thread = self._thread
        if thread is not None and thread is not current_thread():
            thread.cancel()

    def abandon(self) -> None:
        """In a forked child: this is its parent's task; should a run of it have forked, that is the last one here."""
        self._closed = True

    def stats(self) -> CleanupStats:
        """The figures so far."""
        thread, last = self._thread, self._last
        return CleanupStats(
            alive=thread is not None and thread.is_alive(),
            runs=self._runs,
            failures=self._failures,
            removed=self._removed,
            last_removed=last.removed if last else 0,
            last_run_at=last.at if last else None,
            last_duration=self._last_duration,
        )

    def _start_thread(self) -> Exception | None:
        if self._thread is not None and self._thread.is_alive():
            return None
        thread = PeriodicThread(self._interval, self._fire, THREAD_NAME)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            self._failures += 1
            self.needs_start = self.wanted
            return error
        self.needs_start = False
        if not self.wanted:
            # A signal handler stopped the task just now.
            thread.cancel()
        elif thread.is_alive():
            self._thread = thread
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
