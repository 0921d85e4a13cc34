"""The state of one coordinator: its lock, its time, and the parts that they guard."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from math import inf

from ..config import CoordinatorConfig
from ..util.clock import Clock
from ..util.log import report_failure
from .events import EventBus
from .fast import fast_path
from .finalizer import CloseCallback, Finalizer
from .registry import Registry


class Moves:
    """Wakes the threads that wait for a session to come or to leave. Guarded by the coordinator's lock."""

    def __init__(self, lock: threading.RLock) -> None:
        self._moved = threading.Condition(lock)
        self._waiting = 0

    def wait(self, seconds: float | None) -> bool:
        """Wait, with the lock free, until a session has come or left, for so many seconds at most; whether one did."""
        self._waiting += 1
        try:
            return self._moved.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        finally:
            self._waiting -= 1

    def tell(self) -> None:
        """A session has come or left."""
        if self._waiting:
            self._moved.notify_all()


class State:
    """The lock, the time and the parts of one coordinator; a forked child makes a new one.

    A decision is made with the lock held, and runs no I/O and no user code; the work that follows from it is done
    once the lock is free.
    """

    def __init__(self, config: CoordinatorConfig, clock: Clock, on_close: CloseCallback | None) -> None:
        self.lock = threading.RLock()
        self.read = clock
        """The coordinator's clock; called with the lock free."""
        self.latest = -inf
        """The latest time so far."""
        self.events = EventBus()
        self.moves = Moves(self.lock)
        self.finalizer = Finalizer(self.lock, self.events, self.moves.tell, on_close, config.close_workers)
        self.registry = Registry(config, self.finalizer)
        self.fast = fast_path(self.registry.live, clock)
        """Looks and touches without the lock; None if every call must take the lock."""
        self._deferred: deque[Callable[[], object]] = deque()
        # threading.Condition asks the lock the same way.
        self.is_interrupted: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]  # not in typeshed
        """Whether this call interrupts a decision of its own thread: it comes from a signal handler or a finalizer.

        No user code runs with the lock held, so a thread that has it and calls was interrupted.
        """

    @property
    def has_deferred(self) -> bool:
        """Whether the next public call makes calls that were deferred, which may run callbacks and I/O."""
        return bool(self._deferred)

    def begin(self) -> float:
        """Begin a public call, with the lock free: make the calls that were deferred, and give the clock's reading.

        Raises `RuntimeError` if the call interrupts a decision of this very thread.
        """
        if self.is_interrupted():
            raise RuntimeError(
                "a signal handler or finalizer that interrupts the coordinator in the middle of a decision may only "
                "call close() and close_session(), and give back a checkout; do the rest in another thread"
            )
        if self._deferred:
            self.run_deferred()
        return self.read()

    def advance(self, reading: float) -> float:
        """The time now: `reading`, or the latest one so far where that was later. Called with the lock held.

        Infinity and NaN move nothing; as the very first reading they raise `ValueError`. What is no number raises
        `TypeError`.
        """
        try:
            if self.latest < reading < inf:
                self.latest = reading
            elif self.latest == -inf:
                raise ValueError(f"the clock reads {reading!r}; it must give finite seconds")
        except TypeError:
            raise TypeError(f"the clock reads {reading!r}; it must give seconds as a number") from None
        return self.latest

    def defer(self, call: Callable[[], object]) -> None:
        """Have a call made when the lock is free: the next public call, or the next cleanup, makes it."""
        self._deferred.append(call)

    def run_deferred(self) -> None:
        """Make the calls that were deferred; with the lock free.

        What one raises is logged: the caller who makes it for another has nothing to do with it.
        """
        while True:
            with self.lock:
                if not self._deferred:
                    return
                call = self._deferred.popleft()
            try:
                call()
            except Exception:  # noqa: BLE001  it is logged, whatever it is
                report_failure("a call that was deferred failed: %r", call)
