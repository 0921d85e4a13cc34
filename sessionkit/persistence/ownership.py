"""Ownership: the store as one coordinator calls it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from ..errors import InvalidSessionError, SessionConflictError, StoreError
from ..stores.base import Found, SessionRecord, Store
from ..util.clock import Clock, wall_clock_of

BATCH = 100
"""How many records are written in one step of the store: others that write wait for no more than that."""


def default_name() -> str:
    """What others call an instance that was given no name: its host and its process."""
    return f"{os.uname().nodename}:{os.getpid()}"


class Ownership:
    """One coordinator as an instance in a store, which it joins when it first needs to.

    All of it is I/O and is called with the coordinator's lock free. Every failure of the store is counted, and raised.
    """

    def __init__(self, store: Store, clock: Clock, name: str | None) -> None:
        self.store = store
        self._read_clock = clock
        self._read_wall_clock = wall_clock_of(clock)
        self._name = name
        self._instance: str | None = None
        self._joining = threading.RLock()
        self._lag = inf
        self._failures = self._conflicts = 0

    @property
    def instance(self) -> str:
        """Our name in the store, which we join when we first need it."""
        with self._joining:
            if self._instance is None:
                with self._counted():
                    self._instance = self.store.join(self._lag, self._name or default_name())
            return self._instance

    @property
    def _joined(self) -> Store:
        # Also for what needs no instance: a store closes its files when its last instance leaves.
        _ = self.instance
        return self.store

    def set_write_interval(self, lag: float) -> None:
        """From now on, touches are written within `lag` seconds."""
        with self._joining:
            if self._instance is not None:
                with self._counted():
                    self.store.set_write_interval(self._instance, lag)
            self._lag = lag

    def leave(self) -> None:
        """We have no session in memory any more. Leaving again does nothing."""
        with self._joining:
            if self._instance is not None:
                instance, self._instance = self._instance, None
                with self._counted():
                    self.store.leave(instance)

    def now(self) -> tuple[float, float]:
        """The coordinator's clock and the store's time, read together."""
        return self._read_clock(), self._wall()

    def _wall(self) -> float:
        return self._read_wall_clock() + self.store.clock_offset()

    def delete(self, session_id: str) -> bool:
        """Delete the record of a session that is not in memory; whether it was there."""
        store = self._joined
        with self._counted():
            return bool(store.delete({session_id: None}))

    def delete_idle(self, record: SessionRecord) -> bool:
        """Delete a record that has expired, and is not in memory; whether it was as it is given still."""
        with self._counted():
            return bool(self.store.delete({record.id: record.last_active}, self.instance, self._wall()))

    def delete_expired(self, max_age: float | None) -> list[SessionRecord]:
        """Delete records that have expired, and are in nobody's memory; an empty list says that there are no more."""
        store = self._joined
        with self._counted():
            return store.delete_expired(self._wall(), BATCH, max_age)

    def count_expired(self, max_age: float | None) -> int:
        """How many records `delete_expired` would delete."""
        store = self._joined
        with self._counted():
            return store.count_expired(self._wall(), max_age)

    def page(self, after: str | None) -> list[SessionRecord]:
        """The records after this id, in the order of ids; an empty list says that there are no more."""
        store = self._joined
        with self._counted():
            return store.page(after, BATCH)

    def find(self, name: str) -> str | None:
        """The id of the record with this name."""
        store = self._joined
        with self._counted():
            return store.find(name)

    def load(self, session_id: str) -> Found | None:
        """The record as it stands, and its lag because of others."""
        instance = self.instance
        with self._counted():
            return self.store.load(session_id, instance)

    def attach(self, session_id: str) -> Found | None:
        """The record as it stands, from now on also in our memory."""
        instance = self.instance
        with self._counted():
            return self.store.attach(session_id, instance)

    def detach(self, session_id: str) -> None:
        """We do not have it in memory any more."""
        with self._counted():
            self.store.detach([session_id], self.instance)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, InvalidSessionError):
            self._failures += 1
            raise
        except SessionConflictError:
            self._conflicts += 1
            raise
