"""What goes over many sessions: in batches, with the lock let go in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..util.clock import SteadyClock
from .finalizer import Finalizer
from .roster import Roster
from .session import ManagedSession
from .table import idle_for_more

Session = ManagedSession[Any]
T = TypeVar("T")

BATCH = 100
"""How many sessions are decided on before the lock is let go."""

LET_IN_SECONDS = 50e-6
"""How long the lock is left alone between batches: a thread that takes it back at once would keep everyone out."""


class Sweep:
    """Removes, counts and ends sessions of one coordinator, however many they are. Called with the lock free."""

    def __init__(self, lock: threading.RLock, clock: SteadyClock, roster: Roster, finalizer: Finalizer) -> None:
        self._lock = lock
        self._clock = clock
        self._roster = roster
        self._finalizer = finalizer

    def finish(self) -> int:
        """Finalize what this thread has claimed from the finalizer, and return how many were finalized.

        A thread that claims sessions must call this once the lock is free.
        """
        return self._finalizer.run()

    def when_settled(self, reading: float, answer: Callable[[], T]) -> T:
        """Give the answer, called under the lock, once all expired sessions are set aside."""
        while True:
            with self._lock:
                if not self._roster.settle(self._clock.advance(reading), BATCH):
                    return answer()
            time.sleep(LET_IN_SECONDS)

    def remove(self, reading: float, age: float | None = None) -> int:
        """Remove whoever is due, or idle for more than `age`, and return how many were finalized."""
        removed = 0
        while True:
            with self._lock:
                before = sum(self._finalizer.removed.values())
                more = self._roster.end_due(self._clock.advance(reading), age, BATCH)
                claimed = self._finalizer.claim_batch(BATCH)
                # Those that had nothing to close.
                removed += sum(self._finalizer.removed.values()) - before
            removed += self.finish()
            # Where a close callback forked and this is the child, the lock is the parent's, and may be held for ever.
            if self._finalizer.abandoned or (not more and claimed < BATCH):
                return removed
            time.sleep(LET_IN_SECONDS)

    def count(self, reading: float, age: float | None = None) -> int:
        """How many `remove` would finalize."""
        due, resting = self.when_settled(
            reading, lambda: (self._roster.removable(), [] if age is None else self._roster.snapshot())
        )
        now = self._clock.latest
        return due + sum(idle_for_more(session, age, now) for session in resting if age is not None)

    def shut_down(self) -> None:
        """End all that are in the roster, which is closed, and finalize those that nobody has checked out."""
        with self._lock:
            now = self._clock.latest
            sessions = self._roster.everyone()
        for start in range(0, len(sessions), BATCH):
            with self._lock:
                self._roster.shut_down(sessions[start : start + BATCH], now)
            self.finish()
            if self._finalizer.abandoned:
                return
            time.sleep(LET_IN_SECONDS)
        # What an interrupted call of this thread left.
        self.finish()
        while self._finalizer.ready and not self._finalizer.abandoned:
            with self._lock:
                self._finalizer.claim_batch(BATCH)
            self.finish()
