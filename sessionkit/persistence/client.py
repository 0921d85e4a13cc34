"""The store as one instance calls it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import TypeVar

from ..errors import InvalidSessionError, SessionConflictError, StoreError
from ..stores.base import Changes, Found, Lease, SessionRecord, Store, Touch
from ..util.clock import Clock, wall_clock_of

T = TypeVar("T")

BATCH = 100
"""How many records are written in one step of the store: others that write wait for no more than that."""


def default_name() -> str:
    """What others call an instance that was given no name: its host and its process."""
    return f"{os.uname().nodename}:{os.getpid()}"


class StoreClient:
    """One coordinator as an instance at a store, which it joins when it first needs to.

    All of it is I/O and is called with the coordinator's lock free. Every failure of the store is counted, and raised.
    Thread-safe.
    """

    def __init__(self, store: Store, clock: Clock, name: str | None) -> None:
        self._store = store
        self._read_clock = clock
        self._read_wall_clock = wall_clock_of(clock)
        self._name = name
        self._instance: str | None = None
        self._joining = threading.RLock()
        self._write_interval = inf
        self.failures = 0
        """How often the store failed, or data could not be stored."""
        self.conflicts = 0
        """How often a save was refused, because another instance had saved the session."""

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what fails in the block."""
        try:
            yield
        except (StoreError, InvalidSessionError):
            self.failures += 1
            raise
        except SessionConflictError:
            self.conflicts += 1
            raise

    # ---- The instance

    @property
    def instance(self) -> str:
        """Our id in the store."""
        with self._joining:
            if self._instance is None:
                with self.counted():
                    self._instance = self._store.join(self._write_interval, self._name or default_name())
            return self._instance

    def set_write_interval(self, seconds: float) -> None:
        """From now on, touches are written within so many seconds."""
        with self._joining:
            if self._instance is not None:
                with self.counted():
                    self._store.set_write_interval(self._instance, seconds)
            self._write_interval = seconds

    def leave(self) -> None:
        """We have no session in memory any more. Leaving again does nothing."""
        with self._joining:
            if self._instance is not None:
                instance, self._instance = self._instance, None
                with self.counted():
                    self._store.leave(instance)

    def now(self) -> tuple[float, float]:
        """The coordinator's clock and the store's time, read together."""
        return self._read_clock(), self.wall_time()

    def wall_time(self) -> float:
        """The store's time, in UTC seconds since 1970."""
        return self._read_wall_clock() + self._store.clock_offset()

    # ---- One record

    def create(self, record: SessionRecord) -> None:
        """Insert a record; we have the session in memory."""
        instance = self.instance
        with self.counted():
            self._store.create(record, instance)

    def load(self, session_id: str) -> Found | None:
        """The record as it stands, and its lag because of others."""
        instance = self.instance
        with self.counted():
            return self._store.load(session_id, instance)

    def find(self, name: str) -> str | None:
        """The id of the record with this name."""
        return self._with_store(lambda store: store.find(name))

    def attach(self, session_id: str, lease: Lease | None = None) -> Found | None:
        """The record as it stands; from now on we have the session in memory, and a lease if one is asked for."""
        instance = self.instance
        with self.counted():
            return self._store.attach(session_id, instance, lease)

    def detach(self, session_id: str) -> None:
        """We do not have the session in memory any more, nor its lease."""
        instance = self.instance
        with self.counted():
            self._store.detach([session_id], instance)

    def release(self, session_id: str, changes: Changes | None = None) -> int | None:
        """Our lease on the session ends, in one step with what is to be saved."""
        return self._store.release(session_id, self.instance, changes)

    def save(self, session_id: str, changes: Changes) -> int:
        """Save what changed."""
        return self._store.save(session_id, changes)

    def rename(self, session_id: str, new_id: str) -> bool:
        """Give the record of a session whose lease we have another id; whether it was there."""
        with self.counted():
            return self._store.rename(session_id, new_id, self.instance)

    # ---- Many records

    def touch(self, touches: Mapping[str, Touch]) -> set[str]:
        """Note what happened to many sessions; gives the ids of those whose record is absent."""
        return self._with_store(lambda store: store.touch(touches))

    def delete(self, known: Mapping[str, float | None]) -> set[str]:
        """Delete records: those with an instant only if nobody else has used them since; gives the deleted."""
        instance = self.instance
        with self.counted():
            return self._store.delete(known, instance, self.wall_time())

    def delete_expired(self, max_age: float | None) -> list[SessionRecord]:
        """Delete records that have expired, and are in nobody's memory; an empty list says that there are no more."""
        return self._with_store(lambda store: store.delete_expired(self.wall_time(), BATCH, max_age))

    def count_expired(self, max_age: float | None) -> int:
        """How many records `delete_expired` would delete."""
        return self._with_store(lambda store: store.count_expired(self.wall_time(), max_age))

    def page(self, after: str | None) -> list[SessionRecord]:
        """The records after this id, in the order of ids; an empty list says that there are no more."""
        return self._with_store(lambda store: store.page(after, BATCH))

    def _with_store(self, call: Callable[[Store], T]) -> T:
        # Also what needs no instance joins first: a store closes its files when its last instance leaves.
        _ = self.instance
        with self.counted():
            return call(self._store)
