"""A thread that calls a method at regular intervals."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakMethod

T = TypeVar("T")


class PeriodicThread(threading.Timer):
    """A daemon thread that calls a bound method every `interval` seconds of real time.

    It ends when it is cancelled, when the method returns False, or when the method's object is gone, which it does not
    keep alive. What the method raises ends it too. It keeps to deadlines, so that it does not drift; calls that could
    not keep up are left out, not made up for.
    """

    def __init__(self, interval: float, method: Callable[[], bool], name: str) -> None:
        super().__init__(interval, call_weakly(method))
        self.daemon = True
        self.name = name

    def start(self) -> None:
        """Start the thread. Raises `RuntimeError` or `MemoryError` if the system has none to give.

        Does nothing once the interpreter is finalizing: the thread would never run, and some versions would wait for
        it for ever.
        """
        if not sys.is_finalizing():
            super().start()

    def run(self) -> None:
        """Call the method until that ends; for the thread."""
        deadline = time.monotonic() + self.interval
        # The clamp is for a monotonic clock that a test has replaced: never sleep past one interval.
        while not self.finished.wait(min(max(deadline - time.monotonic(), 0.0), self.interval, threading.TIMEOUT_MAX)):
            if not self.function():
                break
            missed = max(time.monotonic() - deadline, 0.0) // self.interval
            deadline += self.interval * (missed + 1)


def call_weakly(method: Callable[[], T]) -> Callable[[], T | None]:
    """Make of a bound method a function that does not keep its object alive, and returns None once that is gone."""
    weak_method = WeakMethod(method)

    def call_if_alive() -> T | None:
        bound = weak_method()
        if bound is None:
            return None
        result = bound()
        # If that was the last reference to the object, the caller is to know now, and not at the next call.
        del bound
        return result if weak_method() is not None else None

    return call_if_alive
