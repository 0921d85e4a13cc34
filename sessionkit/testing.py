"""For tests: a clock that is set by hand."""

from __future__ import annotations

import threading

from .checks import Duration, checked_shift


class ManualClock:
    """A clock that stands still until it is told to move: `SessionCoordinator(clock=ManualClock())`.

    Calling it gives its reading in seconds, which begins at `start`. Thread-safe.

    >>> clock = ManualClock()
    >>> clock.advance(90)
    >>> clock()
    90.0
    """

    def __init__(self, start: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._reading = float(start)

    def __call__(self) -> float:
        """The reading, in seconds."""
        return self._reading

    def advance(self, duration: Duration) -> None:
        """Move on by a number of seconds, or a `datetime.timedelta`; less than 0 moves back, as a broken clock does."""
        seconds = checked_shift("duration", duration)
        with self._lock:
            self._reading += seconds

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self()!r})"
