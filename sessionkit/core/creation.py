"""The way in: a session for which others have to leave, a resource has to be made, or a record has to be kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import (
    CoordinatorClosedError,
    InvalidSessionError,
    RemovalCause,
    SessionConflictError,
    SessionNotFoundError,
)
from ..persistence.records import Records
from ..stores.base import SessionRecord
from .events import EventKind
from .parts import Parts
from .session import ManagedSession
from .sweep import BATCH, LET_IN_SECONDS

Session = ManagedSession[Any]


class Maker(Parts, Protocol):
    """What a creation needs of its coordinator."""

    _records: Records | None
    _resource_factory: Callable[[ManagedSession[Any]], Any] | None


class Creation:
    """Brings one new session into a coordinator, in steps between which the lock is free.

    Its place is reserved, and those who have to leave for it leave; its record is created, where there is a store; its
    resource is made; then it is opened, and visible to others. When a step raises, nothing stays behind; but Ctrl-C
    between two steps may leave a session that nobody was given, until it expires, or a place that stays reserved.
    """

    def __init__(self, maker: Maker, session: Session) -> None:
        self._maker = maker
        self._session = session
        # Any callback may fork, and in the child the coordinator has another one.
        self._roster = maker._roster
        # Whether a factory made the resource, which is then ours to close.
        self._made = False
        # Whether the record was created, which is then ours to delete.
        self._recorded = False

    def run(self, reading: float) -> None:
        """Do all of it; `reading` is what the clock read when the call began."""
        try:
            displaced = self._reserve(reading)
            try:
                self._keep_record()
                self._make_resource()
            except BaseException:
                # Before the id is free again.
                self._give_up_record()
                raise
        except BaseException:
            with self._maker._lock:
                self._roster.unreserve(self._session)
            raise
        try:
            if self._made or displaced or self._maker._records is not None:
                # That may have taken long, and the session's time is to begin now; a clock that fails keeps the time.
                with contextlib.suppress(Exception):
                    now = self._maker._clock.read()
                    with self._maker._lock:
                        self._maker._clock.advance(now)
        finally:
            self._open()

    def _reserve(self, reading: float) -> bool:
        """Reserve the session's place, and finalize those who have to leave for it; whether there were any."""
        displaced = False
        try:
            while True:
                victim: Session | None = None
                with self._maker._lock:
                    now = self._maker._clock.advance(reading)
                    knows_leaver = self._roster.knows_leaver(now, BATCH)
                    if knows_leaver:
                        displaced |= self._roster.free_identity(self._session, now)
                        victim = self._roster.whom_to_passivate()
                        if victim is None:
                            displaced |= self._roster.make_room(now)
                            self._roster.reserve(self._session, now)
                            return displaced
                if victim is not None:
                    self._passivate(victim)
                    displaced = True
                else:
                    time.sleep(LET_IN_SECONDS)
        finally:
            self._maker._sweep.finish()

    def _passivate(self, victim: Session) -> None:
        """Bring the victim's record up to date, and let it leave memory if nobody used it meanwhile.

        Raises `StoreError` if it cannot be written; then it stays.
        """
        records = self._maker._records
        assert records is not None, "only who has a store passivates"  # noqa: S101  tells mypy
        last_active = victim._last_active
        # What has been refused before is refused again, and logged, when it leaves.
        with contextlib.suppress(SessionConflictError, InvalidSessionError, SessionNotFoundError):
            records.write(victim)
        if victim in records.dirty:
            records.write_touches([victim])
        with self._maker._lock:
            now = self._maker._clock.latest
            self._roster.passivate(victim, last_active, now)
        self._maker._sweep.finish()

    def _keep_record(self) -> None:
        if self._maker._records is not None and not self._forked:
            self._maker._records.create(self._session)
            self._recorded = True

    def _give_up_record(self) -> None:
        if self._maker._records is not None and self._recorded and not self._forked:
            self._maker._records.discard(self._session)

    def _make_resource(self) -> None:
        # In a child that one of the callbacks forked, there is nothing to make: `_open` tells the caller.
        if self._forked or self._session._resource is not None or self._maker._resource_factory is None:
            return
        self._session._resource = self._maker._resource_factory(self._session)
        self._made = True

    @property
    def _forked(self) -> bool:
        return self._roster is not self._maker._roster

    def _open(self) -> None:
        session, roster = self._session, self._roster
        with self._maker._lock:
            if self._forked:
                # A callback that forks returns in the child too, where the session and its resource are the parent's.
                raise SessionNotFoundError(session.id)
            now = self._maker._clock.latest
            closed = roster.closed
            if self._made or not closed:
                self._enter(now)
            if closed and self._made:
                roster.end(session, (RemovalCause.SHUTDOWN, now, None), now)
                self._maker._finalizer.claim(session)
            elif closed:
                roster.unreserve(session)
        self._maker._sweep.finish()
        if closed:
            self._give_up_record()
            raise CoordinatorClosedError(
                f"the coordinator was closed while session {session.id!r} was being created, or restored: it is not "
                "here, and the resource that was made for it is gone"
            )

    def _enter(self, now: float) -> None:
        self._roster.open(self._session, now)
        self._maker._bus.post(EventKind.CREATED, self._session.id, now)


class Restoration(Creation):
    """Brings a session back from its record, to which we are attached; else as a creation does."""

    def __init__(
        self,
        maker: Maker,
        session: Session,
        records: Records,
        record: SessionRecord,
        created_at: float,
        last_active: float,
    ) -> None:
        super().__init__(maker, session)
        self._records = records
        self._record = record
        self._created_at = created_at
        self._active_at = last_active

    def _keep_record(self) -> None:
        self._records.note_restored(self._session, self._record)

    def _give_up_record(self) -> None:
        self._records.forget(self._session)

    def _enter(self, now: float) -> None:
        self._roster.reopen(self._session, self._created_at, self._active_at, now)
        self._maker._bus.post(EventKind.RESTORED, self._session.id, now)
