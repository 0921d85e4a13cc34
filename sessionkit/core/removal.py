"""Removal of many sessions: in batches, with the lock let go in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import RemovalCause
from ..util.clock import is_past
from .session import ManagedSession

if TYPE_CHECKING:
    from .state import State

Session = ManagedSession[Any]
T = TypeVar("T")

BATCH = 200
"""How many sessions are decided on before the lock is let go."""

LET_IN_SECONDS = 50e-6
"""How long the lock is left alone between batches: a thread that takes it back at once would keep everyone out."""


class Removal:
    """Removes, counts and ends sessions of one coordinator, however many they are. Called with the lock free."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._registry = state.registry
        self._finalizer = state.finalizer

    def when_expired(self, reading: float, answer: Callable[[float], T]) -> T:
        """Give the answer, called with the lock held, once no expired session is among the live ones."""
        while True:
            with self._state.lock:
                now = self._state.advance(reading)
                if not self._registry.expire_due(now, BATCH):
                    return answer(now)
            time.sleep(LET_IN_SECONDS)

    def remove_due(self, reading: float, age: float | None = None) -> int:
        """Remove the sessions that are due, or idle for more than `age`; how many were removed."""
        removed = 0
        while True:
            with self._state.lock:
                before = sum(self._finalizer.removed.values())
                more = self._registry.remove_due(self._state.advance(reading), age, BATCH)
                # Those that had nothing to close.
                removed += sum(self._finalizer.removed.values()) - before
                batch = self._finalizer.waiting(BATCH)
            removed += self._finalizer.run(batch)
            if not more and len(batch) < BATCH:
                return removed
            time.sleep(LET_IN_SECONDS)

    def count_due(self, reading: float, age: float | None = None) -> int:
        """How many sessions `remove_due` would remove."""

        def count(_: float) -> int:
            idle = [] if age is None else list(self._registry.live.values())
            # The sum is made without the lock.
            resting.extend(session for session in idle if session._lock is None)
            return len(self._finalizer.ready)

        resting: list[Session] = []
        due = self.when_expired(reading, count)
        now = self._state.latest
        return due + sum(is_past(session._active_at + age, now) for session in resting if age is not None)

    def shut_down(self) -> None:
        """End all sessions of a registry that is closed, and finalize those that are not checked out."""
        with self._state.lock:
            now = self._state.latest
            sessions = list(self._registry.live.values())
        for start in range(0, len(sessions), BATCH):
            batch = sessions[start : start + BATCH]
            with self._state.lock:
                for session in batch:
                    self._registry.end_live(session, (RemovalCause.SHUTDOWN, now, None), now)
            self._finalizer.run([session for session in batch if self._finalizer.is_waiting(session)])
            time.sleep(LET_IN_SECONDS)
        # What an interrupted call left, and what had expired.
        while batch := self._finalizer.waiting(BATCH):
            self._finalizer.run(batch)
