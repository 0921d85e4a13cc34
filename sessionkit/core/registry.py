"""The registry: which sessions are live, by id and name; how they are used, and how they end."""

from __future__ import annotations

import threading
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ..errors import (
    CoordinatorClosedError,
    Ending,
    RemovalCause,
    SessionBusyError,
    SessionExistsError,
    SessionExpiredError,
    SessionNotFoundError,
)
from .expiry import ExpiryIndex
from .history import EndedSessions
from .holding import Holding
from .locks import Holder, SessionLock
from .session import ManagedSession

if TYPE_CHECKING:
    from ..config import CoordinatorConfig
    from .finalizer import Finalizer

Session = ManagedSession[Any]
# One object, whatever reads it: an attribute of an enum takes longer to look up.
_PASSIVATED = RemovalCause.PASSIVATED


class Registry:
    """The live sessions of one coordinator.

    All of it belongs to decisions: it is called with the coordinator's lock held, and with the time, which never goes
    back. A method that ends a session says whether the caller is to run the finalizer for it once the lock is free.
    """

    def __init__(self, config: CoordinatorConfig, finalizer: Finalizer) -> None:
        self._finalizer = finalizer
        self._history = EndedSessions()
        self.index = ExpiryIndex(config.max_lifetime)
        """The order in which sessions are due."""
        self.live: dict[str, Session] = {}
        """All sessions that have not been found to have ended, by id; also for looks without the lock."""
        self.names: dict[str, Session] = {}
        """The sessions that have a name, by it; also those that are being made."""
        self.opening: dict[str, Session] = {}
        """Those that are being made: they have their id, name and place, and no call finds them."""
        self.makers: dict[str, int] = {}
        """The idents of the threads that make them, by the sessions' ids."""
        self.active: Session | None = None
        """The session switched to last, while it is live."""
        self.closed = False
        """Whether the coordinator is closed."""
        self.held: set[Session] = set()
        """The sessions that are checked out, those included that will end when they are given back."""
        self.all_returned = threading.Event()
        """Set when the last one is given back, once the coordinator is closed."""
        self.created = 0
        self.dirty: set[Session] | None = None
        """Those that were active since their activity was written; None without a store."""

    # ---- Finding

    def check_open(self) -> None:
        """Raise `CoordinatorClosedError` once the coordinator is closed."""
        if self.closed:
            raise CoordinatorClosedError("this coordinator is closed and keeps no sessions; make a new one")

    def find(self, session_id: str, now: float) -> Session:
        """The live session with this id. Raises `SessionExpiredError` if it ended, and else `SessionNotFoundError`."""
        session = self.live.get(session_id)
        if session is None or self.closed or (now >= session._alive_until and self.expire(session, now)):
            self.check_open()
            raise self.absent(session_id, now)
        return session

    def find_named(self, name_or_id: str, now: float) -> Session:
        """The live session with this id, or else with this name. Raises as `find` does."""
        self.check_open()
        named = self.names.get(name_or_id)
        ids = [name_or_id] if named is None else [name_or_id, named._id]
        for session_id in ids:
            if self.is_live(session_id, now):
                return self.live[session_id]
        former_id = self._history.id_of(name_or_id, now)
        for session_id in ids if former_id is None else [*ids, former_id]:
            ending = self._ending_of(session_id, now)
            if ending is not None:
                raise SessionExpiredError(session_id, *ending)
        raise SessionNotFoundError(name_or_id)

    def is_live(self, session_id: object, now: float) -> bool:
        """Whether a live session has this id."""
        session = self.live.get(session_id) if isinstance(session_id, str) else None
        return session is not None and not self.expire(session, now)

    def require(self, session: Session, now: float) -> None:
        """Raise as `find` does unless this very session is live, being made, or checked out."""
        session_id = session._id
        if self.live.get(session_id) is session:
            if now < session._alive_until or not self.expire(session, now):
                return
        elif self.opening.get(session_id) is session:
            return
        if session._lock is None or self._finalizer.leaving.get(session_id) is not session:
            raise self.absent(session_id, now)

    def absent(self, session_id: str, now: float) -> SessionNotFoundError:
        """The error that says what is known of a session that is not here."""
        ending = self._ending_of(session_id, now)
        return SessionNotFoundError(session_id) if ending is None else SessionExpiredError(session_id, *ending)

    def current(self, now: float) -> Session | None:
        """The active session; None once it has ended."""
        if self.active is not None:
            self.expire(self.active, now)
        return self.active

    def _ending_of(self, session_id: str, now: float) -> Ending | None:
        leaving = self._finalizer.leaving.get(session_id)
        return self._history.ending_of(session_id, now) if leaving is None else leaving._ending

    # ---- Using

    def touch_live(self, session_id: str, now: float) -> None:
        """The live session with this id is active now. Raises as `find` does."""
        session = self.live.get(session_id)
        if session is None or self.closed or now >= session._alive_until:
            self.touch(self.find(session_id, now), now)
            return
        if now > session._active_at:
            session._active_at = now
        if self.dirty is not None:
            self.dirty.add(session)

    def touch(self, session: Session, now: float) -> None:
        """The session is active now."""
        if now > session._active_at:
            session._active_at = now
        if now >= session._alive_until and session._id in self.live:
            self.index.renew(session, now)
        if self.dirty is not None:
            self.dirty.add(session)

    def set_timeout(self, session: Session, timeout: float, now: float) -> None:
        """Give the session another timeout, from its last activity on; it expires if that has passed."""
        if self.live.get(session._id) is session:
            self.index.set_timeout(session, timeout)
            self.expire(session, now)
        else:
            # It is being made, or has ended.
            session._timeout = timeout

    def recognize(self, session_id: str, holder: Holder) -> None:
        """Give a checkout, which has no token yet, that of the one whose block the calling code runs in, if it does."""
        session = self.live.get(session_id)
        if session is not None and session._lock is not None:
            session._lock.recognize(holder)

    def take(self, session: Session, holder: Holder, now: float) -> bool:
        """Check the session out, which is a touch; False if the checkout has a place in the queue for it instead.

        Raises `SessionBusyError` if waiting could never end.
        """
        lock = session._lock
        if lock is None:
            # It stays in its line, and is taken out there when it is met.
            session._lock = SessionLock(holder)
            holder.held, holder.since = True, now
            self.held.add(session)
            if now > session._active_at:
                session._active_at = now
            if self.dirty is not None:
                self.dirty.add(session)
            return True
        # If it has to wait, it gets the session at a moment that is not known, no sooner than now.
        holder.since = now
        if lock.take(holder):
            self.touch(session, now)
            return True
        if lock.would_deadlock(holder):
            raise SessionBusyError(
                f"session {session.id!r} is shared by this thread and others, and this thread cannot wait for "
                "them to leave: give the shared checkout back before asking for an exclusive one"
            )
        lock.queue(holder)
        return False

    def give_back(self, session: Session, holder: Holder, now: float) -> bool:
        """Undo one checkout, which is a touch, or its place in the queue; giving back again does nothing.

        When it was the last, the session rests, or ends if that was due.
        """
        lock = session._lock
        if lock is None:
            return False
        is_live = self.live.get(session._id) is session
        if not is_live and self._finalizer.leaving.get(session._id) is not session:
            # In a forked child, the session is the parent's.
            return False
        if not holder.held:
            lock.withdraw(holder)
            return False
        if now > session._active_at:
            session._active_at = now
        if self.dirty is not None:
            self.dirty.add(session)
        if not lock.give_back(holder):
            return False
        self._rest(session)
        if not is_live:
            self._finalizer.release(session)
            return True
        if now < session._alive_until:
            return False
        ending = self.index.ending_of(session, now)
        if ending is None:
            self.index.renew(session, now)
        return ending is not None and self.end(session, ending, now)

    def find_held(self, session_id: str) -> tuple[Session, SessionLock] | None:
        """The session with this id that is checked out, whether or not it has ended, and its lock."""
        session = self.live.get(session_id) or self._finalizer.leaving.get(session_id)
        lock = None if session is None else session._lock
        return None if session is None or lock is None else (session, lock)

    def is_awaited(self, session_id: str) -> bool:
        """Whether a session with this id is being made, or has ended and not left: it is worth waiting for.

        Raises `SessionBusyError` if it is the very caller that makes it, has it checked out or finalizes it.
        """
        leaving = self._finalizer.leaving.get(session_id)
        if session_id not in self.opening and leaving is None:
            return False
        lock = None if leaving is None else leaving._lock
        if (
            self.makers.get(session_id) == get_ident()
            or (leaving is not None and self._finalizer.runs_here(leaving))
            or (lock is not None and any(holder.is_around_caller() for holder in lock.holders))
        ):
            raise SessionBusyError(
                f"session {session_id!r} is being made, or is to leave, and this call, which waits for that, is part "
                "of it: ask for the session outside of its resource_factory, its on_close and its checkouts"
            )
        return True

    def holdings(self, now: float) -> list[Holding]:
        """All that is checked out, and by which checkouts; what is past its maximum lifetime has ended."""
        for session in self.held:
            if self.live.get(session._id) is session:
                self.expire(session, now)
        return [
            Holding(session, list(lock.holders), list(lock.waiters or ()))
            for session in self.held
            if (lock := session._lock) is not None
        ]

    def take_away(self, session: Session, lock: SessionLock) -> None:
        """Let those that have a session, which has ended, have it no longer; the caller is to finalize it."""
        lock.take_away()
        self._rest(session)
        self._finalizer.release(session)

    def _rest(self, session: Session) -> None:
        session._lock = None
        self.held.discard(session)
        if self.closed and not self.held:
            self.all_returned.set()

    def touch_held(self, session: Session, now: float) -> None:
        """The holder of a session is active now; if it is past its maximum lifetime, it ends when it is given back."""
        if self.live.get(session._id) is session and (now < session._alive_until or not self.expire(session, now)):
            self.touch(session, now)

    def rename(self, session: Session, new_id: str, now: float) -> None:
        """Give a session that is checked out another id; those that wait for it by the old one are woken.

        Raises as `find` does, and `SessionExistsError` if the new id is taken.
        """
        self.find(session._id, now)
        if new_id in self.live or new_id in self.opening or new_id in self._finalizer.leaving:
            raise SessionExistsError(f"a session has the id {new_id!r} already; choose another id", new_id)
        del self.live[session._id]
        self.index.rename(session, new_id)
        self.live[new_id] = session
        assert session._lock is not None, "it is checked out"  # noqa: S101  tells mypy
        session._lock.dismiss()

    # ---- Coming

    def add(self, session: Session, now: float) -> None:
        """A new session is ready: its time begins, and it is found."""
        session._created_at = session._active_at = now
        self._enter(session)
        self.index.add(session, now)
        self.created += 1

    def add_loaded(self, session: Session) -> None:
        """A session that was loaded is ready: its time goes on."""
        self._enter(session)
        self.index.add_loaded(session)

    def reserve(self, session: Session, now: float) -> None:
        """Keep the session's id, name and place until it is added, or not made after all."""
        session._created_at = session._active_at = now
        session._lock = SessionLock()
        self.opening[session._id] = session
        self.makers[session._id] = get_ident()
        if session._name is not None:
            self.names[session._name] = session

    def unreserve(self, session: Session) -> None:
        """Forget a session that could not be made. Does nothing if its place was never reserved."""
        if self.opening.get(session._id) is session:
            del self.opening[session._id], self.makers[session._id]
            self._free_name(session)

    def _enter(self, session: Session) -> None:
        session._lock = None
        if session._id in self.opening:
            del self.opening[session._id], self.makers[session._id]
        if session._name is not None:
            self.names[session._name] = session
        self.live[session._id] = session

    # ---- Ending

    def expire(self, session: Session, now: float) -> bool:
        """End a live session whose time ran out, for the next cleanup to finalize; whether that was so."""
        ending = self.index.ending_of(session, now)
        if ending is None:
            return False
        self.index.discard(session)
        self._depart([(session, ending)], now)
        self._finalizer.admit_for_later([session])
        return True

    def expire_due(self, now: float, limit: int) -> bool:
        """End sessions whose time ran out as `expire` does, looking at up to `limit`; whether there may be more."""
        due, more = self.index.find_due(now, limit)
        self._depart(due, now)
        self._finalizer.admit_for_later([session for session, _ in due])
        return more

    def remove_due(self, now: float, age: float | None, limit: int) -> bool:
        """End sessions that are due, or at rest and idle for more than `age`, looking at up to `limit`.

        True if there may be more.
        """
        due, more = self.index.find_due(now, limit)
        if age is not None and not more:
            idle, more = self.index.find_idle(age, now, limit)
            due += [(session, (RemovalCause.IDLE, now, age)) for session in idle]
        self._depart(due, now)
        self._finalizer.admit(due)
        return more

    def end(self, session: Session, ending: Ending, now: float) -> bool:
        """The session has ended: no call finds it any more, its name is free, and the finalizer has it.

        True if the caller is to run the finalizer for it.
        """
        self.index.discard(session)
        ended = [(session, ending)]
        self._depart(ended, now)
        return self._finalizer.admit(ended)

    def end_live(self, session: Session, ending: Ending, now: float) -> bool:
        """End a session if it is live still; if its time ran out before, that is its ending."""
        if self.live.get(session._id) is not session:
            return False
        return self.end(session, self.index.ending_of(session, now) or ending, now)

    def forget_end(self, session_id: str) -> None:
        """The session lives on elsewhere, after all."""
        self._history.forget(session_id)

    def note_end(self, session_id: str, name: str | None, ending: Ending, now: float) -> None:
        """A session that was not in memory has ended."""
        self._history.note((session_id, name, ending, now))

    def _depart(self, ended: list[tuple[Session, Ending]], now: float) -> None:
        live, note = self.live, self._history.note
        for session, ending in ended:
            del live[session._id]
            session._ending = ending
            if session._name is not None:
                self._free_name(session)
            if self.active is session:
                self.active = None
            if session._lock is not None:
                session._lock.dismiss()
            if ending[0] is not _PASSIVATED:
                note((session._id, session._name, ending, now))

    def _free_name(self, session: Session) -> None:
        if session._name is not None and self.names.get(session._name) is session:
            del self.names[session._name]
