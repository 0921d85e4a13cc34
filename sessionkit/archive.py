"""The archive: how sessions come back from the store, are kept in step with it, and move out to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from math import inf
from threading import get_ident
from typing import Any, Protocol
from weakref import ref

from .checks import checked_id
from .clock import SteadyClock
from .creation import Creation, Restoration
from .data import data_of
from .ending import Ending, RemovalCause
from .errors import (
    SessionBusyError,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from .events import EventBus, EventKind
from .finaliser import Finaliser
from .log import report_failure, report_problem
from .records import Records
from .roster import Roster
from .session import ManagedSession, SessionState
from .stores.base import Found, SessionRecord
from .sweep import Sweep
from .table import is_past

Session = ManagedSession[Any]

_MAY_LIVE_ON = {RemovalCause.IDLE, RemovalCause.PASSIVATED}

MOVE_SECONDS = 30.0
"""How long to wait for a session that another thread is moving in or out of the store."""

FIRST_LOOK_SECONDS = 0.001
LAST_LOOK_SECONDS = 0.05
"""How often to ask for a lease that another process has: each time after twice as long, from and up to."""


class Restorer(Protocol):
    """What an archive needs of its coordinator."""

    _lock: threading.RLock
    _clock: SteadyClock
    _roster: Roster
    _finaliser: Finaliser
    _sweep: Sweep
    _bus: EventBus
    _resource_factory: Callable[[ManagedSession[Any]], Any] | None

    _records: Records | None

    def _begin_call(self) -> float: ...

    def _make_session(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, resource: Any
    ) -> ManagedSession[Any]: ...


class Archive:
    """The sessions of one coordinator that are in its store.

    All of it is called with the lock free. What it finds in memory, and the store fails to confirm, is used as it is
    in memory; what is not in memory, and cannot be loaded, raises `StoreError`.
    """

    def __init__(self, coordinator: Restorer, records: Records) -> None:
        # Weakly, because the coordinator has this.
        self._maker: ref[Restorer] = ref(coordinator)
        self._lock = coordinator._lock
        self._clock = coordinator._clock
        self._roster = coordinator._roster
        self._finaliser = coordinator._finaliser
        self._sweep = coordinator._sweep
        self._bus = coordinator._bus
        self.records = records
        # Who is being restored, and by which thread.
        self._coming: dict[str, int] = {}
        self._roster.unwritten = records.unwritten
        self._finaliser.on_moved_out = self._roster.forget_end

    # ---- Bringing sessions in

    def create(self, session: Session, reading: float) -> None:
        """Bring in a new session as `Creation` does; who has its id or name, and turns out to be gone, makes way."""
        self.records.text_of(session)
        try:
            Creation(self._coordinator, session).run(reading)
        except SessionExistsError as error:
            if error.session_id is None or not self._is_gone(error.session_id):
                raise
            Creation(self._coordinator, session).run(self._clock.read())

    def get(self, session_id: str) -> Session:
        """The live session with this id, as the store has it now."""
        session, restored = self._find(session_id)
        if not restored:
            self.look(session)
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

    def id_of(self, name_or_id: str) -> str:
        """The id of the live session with this id, or else with this name, in memory or in the store."""
        reading = self._coordinator._begin_call()
        with self._lock:
            now = self._clock.advance(reading)
            self._roster.check_open()
            named, absent = self._named(name_or_id, now)
        try:
            if named is not None:
                self.look(named)
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
            self._finaliser.moved.notify_all()

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
        except (SessionNotFoundError, SessionLimitError):
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
        self._finaliser.claim(session)
        # Anything but IDLE is a fact about the session, wherever it is used.
        return None

    def _may_come(self, session_id: str) -> bool:
        if session_id in self.records.undeleted or self._finaliser.is_mine(session_id):
            return False
        coming = self._coming.get(session_id)
        if coming is None and self._roster.is_opening(session_id):
            return False
        leaving = self._finaliser.leaving.get(session_id)
        ended_for_good = leaving is not None and (
            leaving.checked_out or leaving._ending is None or leaving._ending[0] not in _MAY_LIVE_ON
        )
        return coming != get_ident() and not ended_for_good

    def _is_moving(self, session_id: str) -> bool:
        """Whether another thread is restoring it, or letting it leave; waits for a step of that."""
        if session_id not in self._coming and session_id not in self._finaliser.leaving:
            return False
        leaving = self._finaliser.leaving.get(session_id)
        if leaving is not None and (self._finaliser.claim(leaving) or self._finaliser.has_claimed(leaving)):
            # This thread is about to finalise it.
            return True
        if not self._finaliser.moved.wait(MOVE_SECONDS):
            raise SessionBusyError(
                f"session {session_id!r} has been on its way in or out of memory for {MOVE_SECONDS} seconds: its "
                "resource_factory or on_close callback takes long, or waits for this very call"
            )
        return True

    def _restore(self, session_id: str) -> Session:
        found = self.records.attach(checked_id(session_id))
        if found is None:
            with self._lock:
                raise self._roster.absent(session_id, self._clock.latest)
        try:
            session, created_at, last_active = self._session_of(found)
            restoration = Restoration(self._coordinator, session, self.records, found.record, created_at, last_active)
            try:
                restoration.run(self._clock.read())
            except SessionExistsError as error:
                # Here somebody has its name who is gone elsewhere.
                if error.session_id is None or not self._is_gone(error.session_id):
                    raise
                restoration.run(self._clock.read())
        except BaseException:
            with contextlib.suppress(StoreError):
                self.records.detach(session_id)
            raise
        with self._lock:
            self.records.restored += 1
            self._roster.forget_end(session_id)
        return session

    def _session_of(self, found: Found) -> tuple[Session, float, float]:
        """A session as its record has it, and on our clock when it was created and last active."""
        record = found.record
        reading, wall = self.records.now()
        ending = _ending_of(found, reading, wall)
        if ending is not None:
            raise SessionExpiredError(record.id, *ending)
        session = self._coordinator._make_session(
            record.id, record.name, record.session_timeout, data_of(record.data, record.id), None
        )
        session._state = _state_of(record)
        session._message_count = record.message_count
        # Somebody else may have touched it since, and not written that yet.
        last_active = min(record.last_active + found.lag, wall)
        return session, reading - max(wall - record.created_at, 0.0), reading - (wall - last_active)

    # ---- In step with the store

    def look(self, session: Session) -> None:
        """See what the store has of a session in memory: it may have been ended elsewhere, or saved.

        Raises `SessionNotFoundError` if it was ended.
        """
        try:
            found = self.records.load(session.id)
        except StoreError as error:
            report_problem("session %r is used as it is in memory: %s", session.id, error)
            return
        if found is None:
            self.end_here(session)
            raise SessionNotFoundError(session.id)
        self._catch_up(session, found.record, users=0)

    def check_out(self, session: Session, exclusive: bool, timeout: float | None) -> None:
        """Take the lease on a session that is checked out here, and the newest version.

        Waits up to `timeout` seconds for other processes; raises `SessionBusyError` then, and `SessionNotFoundError` if
        it was ended elsewhere.
        """
        try:
            found = self._lease(session, exclusive, timeout)
        except StoreError as error:
            report_problem("session %r is checked out in this process only: %s", session.id, error)
            self.records.go_without_lease(session)
            return
        try:
            if found is None:
                self.end_here(session)
                raise SessionNotFoundError(session.id)
            self._catch_up(session, found.record, users=1)
        except BaseException:
            self.records.give_back(session)
            raise

    def _lease(self, session: Session, exclusive: bool, timeout: float | None) -> Found | None:
        deadline = inf if timeout is None else time.monotonic() + timeout
        pause = FIRST_LOOK_SECONDS
        while True:
            try:
                return self.records.lease(session, exclusive)
            except SessionBusyError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SessionBusyError(
                        f"session {session.id!r} is checked out in another process, and was for all of "
                        f"timeout={timeout!r} seconds; wait longer, or share it with exclusive=False on both sides"
                    ) from None
                time.sleep(min(pause, left))
                pause = min(2 * pause, LAST_LOOK_SECONDS)

    def give_back(self, session: Session) -> None:
        """Undo one `check_out`: save what changed, if it was the last one here, which is active until now."""
        try:
            reading = self._clock.read()
            with self._lock:
                self._roster.touch_held(session, self._clock.advance(reading))
        finally:
            self._give_back(session)

    def _give_back(self, session: Session) -> None:
        try:
            self.records.give_back(session)
        except SessionNotFoundError:
            self.end_here(session)
            raise

    def end_here(self, session: Session) -> None:
        """It was ended elsewhere: it leaves memory, once nobody has it checked out."""
        with self._lock:
            if self._roster.at_hand.get(session.id) is session:
                self._roster.move_out(session, self._clock.latest)
        self._sweep.finish()

    def _close_stored(self, session_id: str) -> None:
        found = self.records.load(checked_id(session_id))
        reading, wall = self.records.now()
        ending = None if found is None else _ending_of(found, reading, wall)
        if ending is not None:
            raise SessionExpiredError(session_id, *ending)
        if found is None or not self.records.delete(session_id):
            with self._lock:
                raise self._roster.absent(session_id, self._clock.latest)
        self._note_end(found.record, (RemovalCause.CLOSED, reading, None))

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
            return self._lives_elsewhere(session)
        if session is not None:
            try:
                self.look(session)
            except SessionNotFoundError:
                return False
            return True
        found = self.records.load(session_id)
        return found is not None and _ending_of(found, *self.records.now()) is None

    def _lives_elsewhere(self, session: Session) -> bool:
        """Whether somebody else has used a session whose time ran out here."""
        if session.checked_out:
            return False
        known = self.records.written(session)
        found = self.records.load(session.id)
        if found is None or (found.lag == 0 and known is not None and found.record.last_active <= known.last_active):
            return False
        return _ending_of(found, *self.records.now()) is None

    def _is_gone(self, session_id: str) -> bool:
        """Whether somebody who is in the way turns out to have ended; then nothing of it is in the way any more."""
        if session_id in self.records.undeleted:
            self.records.retry()
            return True
        session = self._roster.at_hand.get(session_id)
        if session is not None:
            try:
                self.look(session)
            except SessionNotFoundError:
                return True
            return False
        leaving = self._finaliser.leaving.get(session_id)
        if leaving is not None:
            # It has ended, and somebody here has it checked out still: its name is free all the same.
            return not self.records.part_with([leaving])
        found = self.records.load(session_id)
        if found is None:
            return True
        reading, wall = self.records.now()
        ending = _ending_of(found, reading, wall)
        if ending is None or session_id in self._coming or not self.records.delete_idle(found.record):
            return False
        self._note_end(found.record, ending)
        return True

    def _catch_up(self, session: Session, record: SessionRecord, users: int) -> None:
        """Take over what others saved, unless more than so many checkouts here may be changing it."""
        written = self.records.written(session)
        if written is None:
            return
        with written.lock:
            if written.users > users:
                return
            newer = data_of(record.data, record.id) if record.version != written.version else None
            state = _state_of(record)
            with self._lock:
                session._message_count += record.message_count - written.messages
                if session._state.value == written.state:
                    session._state = state
            if newer is not None:
                session.data.clear()
                session.data.update(newer)
            written.note(record)

    # ---- In the background, and at the end

    def tidy(self, max_age: float | None = None) -> int:
        """Write what is unwritten, retry what failed, and delete what expired elsewhere; how many that were."""
        self.flush()
        self.records.retry()
        removed = 0
        while records := self.records.delete_expired(max_age):
            removed += len(records)
            for record in records:
                reading, wall = self.records.now()
                ending = _ending_of(Found(record, 0.0), reading, wall)
                self._note_end(record, ending or (RemovalCause.IDLE, reading, max_age))
        return removed

    def flush(self) -> None:
        """Write all activity that is unwritten."""
        with self._lock:
            sessions = list(self.records.unwritten)
            self.records.unwritten.clear()
        try:
            gone = self.records.write_touches(sessions)
        except BaseException:
            with self._lock:
                self.records.unwritten.update(s for s in sessions if self._roster.at_hand.get(s.id) is s)
            raise
        for session in gone:
            self.end_here(session)

    def close(self) -> None:
        """Write what is left, and leave the store once nobody has a session checked out any more.

        Raises `StoreError` if something could not be written.
        """
        problem: StoreError | None = None
        for step in (self.flush, self.records.retry, self.leave_if_done):
            try:
                step()
            except StoreError as error:
                problem = problem or error
        lost, self.records.lost = self.records.lost, 0
        if lost:
            raise StoreError(
                f"the coordinator is closed, but the last changes of {lost} sessions could not be written to the "
                "store; the log says which and why"
            ) from problem
        if problem is not None:
            raise problem

    def leave_if_done(self) -> None:
        """Leave the store if the coordinator is closed and all its sessions have left."""
        if self._roster.closed and not self._finaliser.leaving:
            self.records.leave()

    def _note_end(self, record: SessionRecord, ending: Ending) -> None:
        """A session that was not in memory has ended: count it, remember it, and tell the channels."""
        with self._lock:
            self._roster.remember(record.id, record.name, ending, self._clock.latest)
            self._finaliser.removed[ending[0]] += 1
            self._bus.post(EventKind.REMOVED, record.id, ending[1], ending[0])
        self._bus.deliver()

    @property
    def _coordinator(self) -> Restorer:
        coordinator = self._maker()
        assert coordinator is not None, "it is the one that calls"  # noqa: S101  tells mypy
        return coordinator


def _ending_of(found: Found, reading: float, wall: float) -> Ending | None:
    """How a session's time ran out that is not in memory, on our clock; None if it has time left."""
    record = found.record
    idle_end = record.idle_end + found.lag
    if not is_past(min(idle_end, record.life_end), wall):
        return None
    if idle_end <= record.life_end:
        return (RemovalCause.IDLE, reading - (wall - record.idle_end), record.session_timeout)
    return (RemovalCause.LIFETIME, reading - (wall - record.life_end), record.max_lifetime)


def _state_of(record: SessionRecord) -> SessionState:
    try:
        return SessionState(record.state)
    except ValueError as error:
        raise StoreError(f"the record of session {record.id!r} is damaged: its state is {record.state!r}") from error
