"""Upkeep of the store: what is done in the background, and at the end."""

from __future__ import annotations

import threading
from typing import Any

from ..core.parts import Parts
from ..core.session import ManagedSession
from ..errors import RemovalCause, StoreError
from ..stores.base import Found
from .ownership import BATCH
from .records import Records
from .standing import Standing
from .stored import ending_of

Session = ManagedSession[Any]


class Upkeep:
    """Writes what is unwritten, and removes what expired in nobody's memory. Called with the lock free."""

    def __init__(self, parts: Parts, records: Records, standing: Standing) -> None:
        self._lock = parts._lock
        self._roster = parts._roster
        self._finalizer = parts._finalizer
        self._records = records
        self._standing = standing
        self._flushing = threading.RLock()

    def tidy(self, max_age: float | None = None) -> int:
        """Write what is unwritten, retry what failed, and delete what expired elsewhere; how many that were."""
        self.flush()
        self._records.retry()
        removed = 0
        while records := self._records.delete_expired(max_age):
            removed += len(records)
            for record in records:
                reading, wall = self._records.now()
                ending = ending_of(Found(record, 0.0), reading, wall)
                self._standing.note_end(record, ending or (RemovalCause.IDLE, reading, max_age))
        return removed

    def flush(self) -> None:
        """Write all activity that is unwritten, in batches; one thread at a time."""
        gone: list[Session] = []
        try:
            with self._flushing:
                with self._lock:
                    rest = list(self._records.dirty)
                for start in range(0, len(rest), BATCH):
                    gone += self._flush(rest[start : start + BATCH])
        finally:
            # Their close callbacks may wait for another thread that flushes.
            for session in gone:
                self._standing.end_here(session)

    def _flush(self, batch: list[Session]) -> list[Session]:
        with self._lock:
            self._records.dirty.difference_update(batch)
        try:
            return self._records.write_touches(batch)
        except BaseException:
            with self._lock:
                self._records.dirty.update(s for s in batch if self._roster.at_hand.get(s.id) is s)
            raise

    def close(self) -> None:
        """Write what is left, and leave the store once nobody has a session checked out any more.

        Raises `StoreError` if something could not be written.
        """
        problem: StoreError | None = None
        for step in (self.flush, self._records.retry, self.leave_if_done):
            try:
                step()
            except StoreError as error:
                problem = problem or error
        lost, self._records.lost = self._records.lost, 0
        if lost:
            raise StoreError(
                f"the coordinator is closed, but the last changes of {lost} sessions could not be written to the "
                "store; the log says which and why"
            ) from problem
        if problem is not None:
            raise problem

    def leave_if_done(self) -> None:
        """Leave the store if the coordinator is closed and all its sessions have left."""
        with self._lock:
            done = self._roster.closed and self._roster.is_empty and not self._finalizer.leaving
        if done:
            self._records.leave()
