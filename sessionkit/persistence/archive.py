"""The archive: the sessions that are in the store, and how they come back from there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from threading import get_ident
from typing import Any, Protocol
from weakref import ref

from ..config import CoordinatorConfig
from ..core.creation import Creation, Maker, Restoration
from ..core.session import ManagedSession
from ..errors import (
    RemovalCause,
    SessionBusyError,
    SessionElsewhereError,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from ..stores.base import Found
from ..util.log import report_failure
from ..util.validation import checked_id
from .codec import data_of
from .leases import Leases
from .records import Records
from .standing import Standing
from .stored import ending_of, state_of
from .upkeep import Upkeep

Session = ManagedSession[Any]

_MAY_LIVE_ON = {RemovalCause.IDLE, RemovalCause.PASSIVATED}

MOVE_SECONDS = 30.0
"""How long to wait for a session that another thread is moving in or out of the store."""


class Restorer(Maker, Protocol):
    """What an archive needs of its coordinator."""

    config: CoordinatorConfig

    def _begin_call(self) -> float: ...

    def _make_session(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, resource: Any
    ) -> ManagedSession[Any]: ...


class Archive:
    """The sessions of one coordinator that are in its store.

    All of it is called with the lock free. What is not in memory, and cannot be loaded, raises `StoreError`.
    """

    def __init__(self, coordinator: Restorer, records: Records) -> None:
        # Weakly, because the coordinator has this.
        self._maker: ref[Restorer] = ref(coordinator)
        self._lock = coordinator._lock
        self._clock = coordinator._clock
        self._roster = coordinator._roster
        self._finalizer = coordinator._finalizer
        self._sweep = coordinator._sweep
        self._affinity = coordinator.config.affinity
        self.records = records
        self.standing = Standing(coordinator, records)
        """Whether sessions in memory stand as the store has them."""
        self.leases = Leases(coordinator, records, self.standing)
        """Checkouts, as other processes see them."""
        self.upkeep = Upkeep(coordinator, records, self.standing)
        """What is done in the background, and at the end."""
        # Who is being restored, and by which thread.
        self._coming: dict[str, int] = {}
        self._roster.dirty = records.dirty
        self._finalizer.on_moved_out = self._roster.forget_end

    def create(self, session: Session, reading: float) -> None:
        """Bring in a new session as `Creation` does; who has its id or name, and turns out to be gone, makes way."""
        self.records.text_of(session)
        try:
            Creation(self._coordinator, session).run(reading)
        except SessionExistsError as error:
            if error.session_id is None or not self.standing.is_gone(error.session_id):
                raise
            Creation(self._coordinator, session).run(self._clock.read())
        finally:
            # Should the coordinator have been closed meanwhile.
            self.upkeep.leave_if_done()

    def get(self, session_id: str) -> Session:
        """The live session with this id, as the store has it now."""
        while True:
            session, restored = self._find(session_id)
            if restored or self.standing.look(session):
                return session

    def bring(self, session_id: str) -> Session:
        """The live session with this id: from memory as it is there, or else restored."""
        return self._find(session_id)[0]

    def use(self, session_id: str, act: Callable[[Session, float], object]) -> Session:
        """Do something with the live session with this id and the time, with the lock held."""
        while True:
            session = self.bring(session_id)
            with self._lock:
                now = self._clock.latest
                # It may have been passivated just now.
                if self._roster.at_hand.get(session_id) is session and self._roster.ending_of(session, now) is None:
                    act(session, now)
                    return session

    def save(self, session_id: str) -> None:
        """Write what changed of the live session with this id."""
        self.leases.save(self.bring(session_id))

    def rotate(self, session: Session, new_id: str, rename_here: Callable[[], object]) -> None:
        """Give a session that is checked out here, and nowhere else, another id, in the store and then here."""
        try:
            taken = self._settle(new_id) is not None
        except SessionNotFoundError:
            # It has ended, and is not gone yet.
            taken = True
        if taken:
            raise SessionExistsError(f"a session has the id {new_id!r} already; choose another id", new_id)
        try:
            self.records.rename(session, new_id, rename_here)
        finally:
            self._has_come(new_id)

    def id_of(self, name_or_id: str) -> str:
        """The id of the live session with this id, or else with this name, in memory or in the store."""
        reading = self._coordinator._begin_call()
        with self._lock:
            now = self._clock.advance(reading)
            self._roster.check_open()
            named, absent = self._named(name_or_id, now)
        try:
            if named is not None:
                self.standing.look(named)
                return named.id
        except SessionNotFoundError:
            # Here it has the name still; in the store another may have it.
            pass
        for session_id in (name_or_id, self.records.find(name_or_id)):
            if session_id is not None and self.is_live(session_id):
                return session_id
        raise absent or SessionNotFoundError(name_or_id)

    def _named(self, name_or_id: str, now: float) -> tuple[Session | None, SessionNotFoundError | None]:
        try:
            return self._roster.find_named(name_or_id, now), None
        except SessionNotFoundError as error:
            return None, error

    def close_session(self, session_id: str) -> bool:
        """End a session that is in the store only; False if it is in memory, and to be ended there."""
        if self._settle(session_id) is not None:
            return False
        try:
            self._close_stored(session_id)
        finally:
            self._has_come(session_id)
        return True

    def _find(self, session_id: str) -> tuple[Session, bool]:
        """The live session with this id, and whether it was restored just now."""
        session = self._settle(session_id)
        if session is not None:
            return session, False
        try:
            return self._restore(session_id), True
        finally:
            self._has_come(session_id)

    def _settle(self, session_id: str) -> Session | None:
        """The live session with this id, if it is in memory.

        None once it is not there, nor on its way in or out. Then it is this thread that may bring it in, or end it in
        the store, before it says `_has_come`.
        """
        while True:
            reading = self._coordinator._begin_call()
            with self._lock:
                session = self._in_memory(session_id, self._clock.advance(reading))
                if session is None and not self._is_moving(session_id):
                    self._coming[session_id] = get_ident()
                    return None
            self._sweep.finish()
            if session is not None:
                return session

    def _has_come(self, session_id: str) -> None:
        with self._lock:
            del self._coming[session_id]
            self._finalizer.moved.notify_all()
        self.upkeep.leave_if_done()

    def restore_all(self) -> int:
        """Restore what is in the store and live, while there is room; how many that were."""
        restored = 0
        last: str | None = None
        while page := self.records.page(last):
            last = page[-1].id
            for record in page:
                if self._roster.is_full:
                    return restored
                if record.id not in self._roster.at_hand and self._could_restore(record.id):
                    restored += 1
        return restored

    def _could_restore(self, session_id: str) -> bool:
        try:
            return self._find(session_id)[1]
        except (SessionNotFoundError, SessionLimitError, SessionElsewhereError):
            return False
        except StoreError:
            raise
        except Exception:  # noqa: BLE001  it is logged, whatever a factory raises
            report_failure("session %r could not be restored; it stays in the store", session_id)
            return False

    def _in_memory(self, session_id: str, now: float) -> Session | None:
        """The live session with this id; one whose time ran out leaves memory, and may come back."""
        self._roster.check_open()
        session = self._roster.at_hand.get(session_id)
        if session is None or self._roster.ending_of(session, now) is None:
            if session is None and not self._may_come(session_id):
                raise self._roster.absent(session_id, now)
            return session
        if session.checked_out:
            raise self._roster.absent(session_id, now)
        self._roster.end_if_over(session, now)
        self._finalizer.claim(session)
        return None

    def _may_come(self, session_id: str) -> bool:
        """Whether a session that is not in memory may be in the store; unless it is this thread that moves it."""
        leaving = self._finalizer.leaving.get(session_id)
        if leaving is not None:
            lives_on = leaving._ending is not None and leaving._ending[0] in _MAY_LIVE_ON
            # Whoever has a stale one checked out is about to give it back.
            is_held = leaving.checked_out and self.records.is_current(leaving)
            return lives_on and not is_held and not self._finalizer.is_mine(session_id)
        if self.records.is_ending(session_id):
            return False
        coming = self._coming.get(session_id)
        return coming != get_ident() if coming is not None else not self._roster.is_opening(session_id)

    def _is_moving(self, session_id: str) -> bool:
        """Whether another thread is restoring it, or letting it leave; waits for a step of that."""
        if session_id not in self._coming and session_id not in self._finalizer.leaving:
            return False
        leaving = self._finalizer.leaving.get(session_id)
        if leaving is not None and (self._finalizer.claim(leaving) or self._finalizer.has_claimed(leaving)):
            # This thread is about to finalize it.
            return True
        if not self._finalizer.moved.wait(MOVE_SECONDS):
            raise SessionBusyError(
                f"session {session_id!r} has been on its way in or out of memory for {MOVE_SECONDS} seconds: its "
                "resource_factory or on_close callback takes long, or waits for this very call"
            )
        return True

    def _restore(self, session_id: str) -> Session:
        checked_id(session_id)
        session: Session | None = None
        attached = session_id in self.records.undetached
        try:
            if self._affinity:
                # Before anything is written: those that are elsewhere are asked for here again and again.
                self._check_affinity(self.records.load(session_id))
            attached = True
            found = self.records.attach(session_id)
            self._check_affinity(found)
            if found is not None:
                session, created_at, last_active = self._session_of(found)
                self._bring_in(session, found, created_at, last_active)
        except BaseException:
            if attached:
                self._detach_unless_here(session_id, session)
            raise
        with self._lock:
            if session is None:
                raise self._roster.absent(session_id, self._clock.latest)
            self.records.restored += 1
            self._roster.forget_end(session_id)
        return session

    def _check_affinity(self, found: Found | None) -> None:
        """With affinity, raise `SessionElsewhereError` if it lives in another process."""
        if not self._affinity or found is None or not found.elsewhere:
            return
        if ending_of(found, *self.records.now()) is None:
            raise SessionElsewhereError(found.record.id, found.elsewhere[0])

    def _bring_in(self, session: Session, found: Found, created_at: float, last_active: float) -> None:
        restoration = Restoration(self._coordinator, session, self.records, found.record, created_at, last_active)
        try:
            restoration.run(self._clock.read())
        except SessionExistsError as error:
            # Here somebody has its name who is gone elsewhere.
            if error.session_id is None or not self.standing.is_gone(error.session_id):
                raise
            restoration.run(self._clock.read())

    def _detach_unless_here(self, session_id: str, session: Session | None) -> None:
        if session is None or self._roster.at_hand.get(session_id) is not session:
            self.records.undetached.add(session_id)
            with contextlib.suppress(StoreError):
                self.records.detach(session_id)
                self.records.undetached.discard(session_id)

    def tidy(self, max_age: float | None = None) -> int:
        """Do what is due in the store; how many sessions were removed there, which were in nobody's memory."""
        removed = self.upkeep.tidy(max_age)
        for session_id in list(self.records.undetached):
            with self._lock:
                here = session_id in self._roster.at_hand or session_id in self._finalizer.leaving
                if here or session_id in self._coming or self._roster.is_opening(session_id):
                    continue
                # Nobody restores it meanwhile.
                self._coming[session_id] = get_ident()
            try:
                self.records.detach(session_id)
                self.records.undetached.discard(session_id)
            finally:
                self._has_come(session_id)
        return removed

    def _session_of(self, found: Found) -> tuple[Session, float, float]:
        """A session as its record has it, and on our clock when it was created and last active."""
        record = found.record
        reading, wall = self.records.now()
        ending = ending_of(found, reading, wall)
        if ending is not None:
            raise SessionExpiredError(record.id, *ending)
        session = self._coordinator._make_session(
            record.id, record.name, record.session_timeout, data_of(record.data, record.id), None
        )
        session._state = state_of(record)
        session._message_count = record.message_count
        # Somebody else may have touched it since, and not written that yet.
        last_active = min(record.last_active + found.lag, wall)
        return session, reading - max(wall - record.created_at, 0.0), reading - (wall - last_active)

    def _close_stored(self, session_id: str) -> None:
        found = self.records.load(checked_id(session_id))
        reading, wall = self.records.now()
        ending = None if found is None else ending_of(found, reading, wall)
        if ending is not None:
            raise SessionExpiredError(session_id, *ending)
        if found is None or not self.records.delete(session_id):
            with self._lock:
                raise self._roster.absent(session_id, self._clock.latest)
        self.standing.note_end(found.record, (RemovalCause.CLOSED, reading, None))

    def is_live(self, session_id: object) -> bool:
        """Whether a live session has this id, in memory or in the store."""
        if not isinstance(session_id, str):
            return False
        reading = self._coordinator._begin_call()
        with self._lock:
            now = self._clock.advance(reading)
            session = self._roster.at_hand.get(session_id)
            over = session is not None and self._roster.ending_of(session, now) is not None
            if self._roster.closed or (session is None and not self._may_come(session_id)):
                return False
        if session is not None and over:
            return self.standing.lives_elsewhere(session)
        if session is not None:
            try:
                self.standing.look(session)
            except SessionNotFoundError:
                return False
            return True
        found = self.records.load(session_id)
        return found is not None and ending_of(found, *self.records.now()) is None

    @property
    def _coordinator(self) -> Restorer:
        coordinator = self._maker()
        assert coordinator is not None, "it is the one that calls"  # noqa: S101  tells mypy
        return coordinator
