"""The store as one instance calls it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from math import inf
from typing import ParamSpec, TypeVar

from ..errors import InvalidSessionError, SessionConflictError, StoreError
from ..stores.base import Changes, Found, Known, SessionRecord, Store, Touch
from ..util.clock import Clock, wall_clock_of

P = ParamSpec("P")
T = TypeVar("T")

BATCH = 100
"""How many records are written in one step of the store: others that write wait for no more than that."""


def default_name() -> str:
    """What others call an instance that was given no name: its host and its process."""
    import socket  # only now: importing it takes longer than opening a store

    return f"{socket.gethostname()}:{os.getpid()}"


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
        self.write_interval = inf
        """Touches are written within so many seconds; infinity if nothing sees to that."""
        self.failures = 0
        """How often the store failed, or data could not be stored."""
        self.conflicts = 0
        """How often a save was refused, because another instance had saved the session."""

    def note(self, error: BaseException) -> None:
        """Count a failure, or a refused save."""
        if isinstance(error, StoreError | InvalidSessionError):
            self.failures += 1
        elif isinstance(error, SessionConflictError):
            self.conflicts += 1

    # ---- The instance

    def join(self) -> str:
        """Our id in the store, which we join if we have not yet."""
        with self._joining:
            if self._instance is None:
                self._instance = self._call(self._store.join, self.write_interval, self._name or default_name())
            return self._instance

    def set_write_interval(self, seconds: float) -> None:
        """From now on, touches are written within so many seconds."""
        with self._joining:
            if self._instance is not None:
                self._call(self._store.set_write_interval, self._instance, seconds)
            self.write_interval = seconds

    def leave(self) -> None:
        """Leave the store: we have no session in memory any more. Leaving again does nothing."""
        with self._joining:
            if self._instance is not None:
                instance, self._instance = self._instance, None
                self._call(self._store.leave, instance)

    def now(self) -> tuple[float, float]:
        """The coordinator's clock and the store's time, in UTC seconds since 1970, read together."""
        return self._read_clock(), self._read_wall_clock() + self._store.clock_offset()

    def _call(self, method: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        try:
            return method(*arguments, **options)
        except BaseException as error:
            self.note(error)
            raise

    # ---- One record. What needs no instance joins first all the same: a store closes its files when its last instance
    # leaves.

    def create(self, record: SessionRecord) -> None:
        """Insert a record; we have the session in memory."""
        self._call(self._store.create, record, self._instance or self.join())

    def load(self, session_id: str) -> Found | None:
        """The record as it is now, and its lag because of other instances."""
        return self._call(self._store.load, session_id, self._instance or self.join())

    def find(self, name: str) -> str | None:
        """The id of the record with this name."""
        self.join()
        return self._call(self._store.find, name)

    def attach(self, session_id: str, *, lease: bool = False) -> Found | None:
        """The record as it is now; from now on we have the session in memory, and the lease if that is asked for."""
        return self._call(self._store.attach, session_id, self._instance or self.join(), lease=lease)

    def detach(self, session_id: str) -> None:
        """We do not have the session in memory any more, nor its lease."""
        self._call(self._store.detach, [session_id], self._instance or self.join())

    def release(self, session_id: str, changes: Changes | None = None) -> int | None:
        """Our lease on the session ends, in one step with what is to be saved; gives the version then."""
        return self._call(self._store.release, session_id, self._instance or self.join(), changes)

    def save(self, session_id: str, changes: Changes) -> int:
        """Save what changed; gives the version."""
        return self._call(self._store.save, session_id, changes)

    def rename(self, session_id: str, new_id: str) -> bool:
        """Give the record of a session whose lease we have another id; whether it was there."""
        return self._call(self._store.rename, session_id, new_id, self._instance or self.join())

    # ---- Many records

    def touch(self, touches: Mapping[str, Touch]) -> set[str]:
        """Note what happened to many sessions; gives the ids of those whose record is absent."""
        self.join()
        return self._call(self._store.touch, touches)

    def delete(self, known: Mapping[str, Known | None]) -> set[str]:
        """Delete records: those of which something is known only if that is so still; gives the deleted."""
        return self._call(self._store.delete, known, self._instance or self.join(), self.now()[1])

    def delete_expired(self, max_age: float | None) -> list[SessionRecord]:
        """Delete records that have expired and are in no instance's memory; an empty list: there are no more."""
        _ = self._instance or self.join()
        return self._call(self._store.delete_expired, self.now()[1], BATCH, max_age)

    def count_expired(self, max_age: float | None) -> int:
        """How many records `delete_expired` would delete."""
        self.join()
        return self._call(self._store.count_expired, self.now()[1], max_age)

    def page(self, after: str | None) -> list[SessionRecord]:
        """The records after this id, in the order of ids; an empty list says that there are no more."""
        self.join()
        return self._call(self._store.page, after, BATCH)
