"""For tests: a clock that is set by hand, and the store contract as tests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..util.validation import Duration, checked_shift

if TYPE_CHECKING:
    from .store_contract import StoreContract

__all__ = ["ManualClock", "StoreContract"]


def __getattr__(name: str) -> object:
    # Imported when it is asked for: pytest can rewrite its assertions only if it was told of it before.
    if name == "StoreContract":
        from .store_contract import StoreContract

        return StoreContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ManualClock:
    """A clock that stands still until it is told to move: `SessionCoordinator(clock=ManualClock())`.

    Calling it gives its reading in seconds, which begins at `start`. `wall()` gives the wall-clock time that goes with
    it, in UTC seconds since 1970, which begins at `wall_start` (default: 2026-01-01) and moves on with it: a
    coordinator with a store keeps that in its records. Thread-safe.

    >>> clock = ManualClock()
    >>> clock.advance(90)
    >>> clock()
    90.0
    """

    def __init__(self, start: float = 0.0, wall_start: float = 1_767_225_600.0) -> None:
        self._lock = threading.Lock()
        self._reading = float(start)
        self._wall_offset = wall_start - self._reading

    def __call__(self) -> float:
        """The reading, in seconds."""
        return self._reading

    def wall(self) -> float:
        """The wall-clock time, in UTC seconds since 1970."""
        return self._reading + self._wall_offset

    def advance(self, duration: Duration) -> None:
        """Move on by a number of seconds, or a `datetime.timedelta`; less than 0 moves back, as a broken clock does."""
        seconds = checked_shift("duration", duration)
        with self._lock:
            self._reading += seconds

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self()!r})"
