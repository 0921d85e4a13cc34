"""The roster: who is live, under which id and name, which one is active, and how the others ended.

Every decision about membership is made here: who comes in, who is found, who has to leave. The coordinator calls all of
it with its lock held and passes the instant in; instants never go back. Whoever leaves goes to the finaliser.
"""

from __future__ import annotations

import contextlib
from typing import Any

from .active import ActiveMark
from .checks import checked_id, checked_name_or_id
from .clock import SteadyClock
from .config import CoordinatorConfig
from .ending import Ending, RemovalCause
from .errors import (
    CoordinatorClosedError,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from .finaliser import Finaliser
from .hold import Hold
from .session import ManagedSession
from .table import SessionTable
from .tombstones import Tombstones

Session = ManagedSession[Any]


class Roster:
    """The members of one coordinator. Has no lock of its own and does no I/O."""

    def __init__(self, config: CoordinatorConfig, clock: SteadyClock, finaliser: Finaliser) -> None:
        self._config = config
        self._finaliser = finaliser
        self._table = SessionTable(config.max_active_sessions, config.max_lifetime)
        self._opening: dict[str, Session] = {}
        self._names: dict[str, Session] = {}
        self._tombstones = Tombstones(lambda: clock.latest)
        self.active = ActiveMark(self._table)
        """The mark of the active session."""
        self.closed = False
        self.created = 0
        self.checked_out = 0

    def check_open(self) -> None:
        """Raise `CoordinatorClosedError` once the coordinator is closed."""
        if self.closed:
            raise CoordinatorClosedError("this coordinator is closed and keeps no sessions; make a new one")

    # ---- Looking

    def __len__(self) -> int:
        """How many sessions are live, once `settle` has nothing left to do."""
        return len(self._table) - self._table.overdue

    def settle(self, now: float, limit: int) -> bool:
        """Set aside up to `limit` sessions whose time ran out; True if there may be more."""
        return self._table.settle(now, limit)

    def snapshot(self) -> list[Session]:
        """All live sessions, in no particular order, once `settle` has nothing left to do."""
        return self._table.snapshot()

    def everyone(self) -> list[Session]:
        """All sessions that have not ended, also those whose time has run out."""
        return self._table.everyone()

    def removable(self) -> int:
        """How many sessions a cleanup would remove, once `settle` has nothing left to do."""
        return self._table.removable + self._finaliser.ready

    def is_live(self, session_id: object, now: float) -> bool:
        """Whether a live session has this id."""
        session = self._table.get(session_id) if isinstance(session_id, str) else None
        return session is not None and self._table.ending_of(session, now) is None

    def find(self, session_id: str, now: float) -> Session:
        """The live session with this id. Raises `SessionNotFoundError`, or its child if the session has ended."""
        self.check_open()
        try:
            session = self._table.get(session_id)
        except TypeError:  # it cannot be hashed, so it is no id either, which the next check tells
            session = None
        if session is None:
            raise self._absent(session_id)
        ending = self._table.ending_of(session, now)
        if ending is not None:
            raise SessionExpiredError(session_id, *ending)
        return session

    def find_named(self, name_or_id: str, now: float) -> Session:
        """The live session with this id, or else with this name. Raises as `find` does."""
        self.check_open()
        checked_name_or_id(name_or_id)
        named = self._names.get(name_or_id)
        ids = [name_or_id] if named is None else [name_or_id, named.id]
        for session_id in ids:
            if self.is_live(session_id, now):
                return self._table[session_id]
        former_id = self._tombstones.id_of(name_or_id)
        for session_id in ids if former_id is None else [*ids, former_id]:
            ending = self._ending_by_id(session_id, now)
            if ending is not None:
                raise SessionExpiredError(session_id, *ending)
        raise SessionNotFoundError(name_or_id)

    def require(self, session: Session, now: float) -> None:
        """Raise as `find` does unless this very session is live, being made, or checked out."""
        if not self._knows(session):
            raise self._absent(session.id)
        ending = session._ending or self.ending_of(session, now)
        if ending is not None and session._hold is None:
            raise SessionExpiredError(session.id, *ending)

    def is_opening(self, session: Session) -> bool:
        """Whether the session is still being made."""
        return session.id in self._opening

    def ending_of(self, session: Session, now: float) -> Ending | None:
        """How and when the session's time ran out, or None while it has time left."""
        return self._table.ending_of(session, now)

    def _knows(self, session: Session) -> bool:
        return session is (
            self._table.get(session.id) or self._opening.get(session.id) or self._finaliser.leaving(session.id)
        )

    def _absent(self, session_id: str) -> SessionNotFoundError:
        ending = self._ending_by_id(checked_id(session_id), None)
        return SessionNotFoundError(session_id) if ending is None else SessionExpiredError(session_id, *ending)

    def _ending_by_id(self, session_id: str, now: float | None) -> Ending | None:
        session = self._table.get(session_id) or self._finaliser.leaving(session_id)
        if session is None:
            return self._tombstones.ending_of(session_id)
        return session._ending or (None if now is None else self.ending_of(session, now))

    # ---- Coming in

    def reserve(self, session: Session, now: float) -> list[Session]:
        """Decide that there is room, and keep the session's id, name and place until `open` or `unreserve`.

        Those who had to leave for it are claimed from the finaliser and returned.
        """
        self.check_open()
        self.active.settle(now)
        leavers = self._end_if_over(self._table.get(session.id), now)
        if session.name is not None:
            leavers += self._end_if_over(self._names.get(session.name), now)
            if session.name in self._names:
                raise SessionExistsError(f"a live session has the name {session.name!r} already; choose another name")
        if session.id in self._table or session.id in self._opening:
            raise SessionExistsError(f"a live session has the id {session.id!r} already; choose another id")
        former = self._finaliser.leaving(session.id)
        if former is not None:
            if not self._finaliser.is_ready(former):
                raise SessionExistsError(f"the former session with the id {session.id!r} is still closing; try again")
            leavers.append(former)
        while len(self._table) + len(self._opening) >= self._table.maxsize:
            leavers.append(self._make_room(now))
        session._created_at = session._last_active = now
        session._hold = Hold()
        self._opening[session.id] = session
        if session.name is not None:
            self._names[session.name] = session
        return [claimed for leaver in leavers for claimed in self._finaliser.claim(leaver)]

    def unreserve(self, session: Session) -> None:
        """Forget a session that could not be made."""
        self._opening.pop(session.id, None)
        if session.name is not None:
            self._names.pop(session.name, None)

    def open(self, session: Session, now: float) -> None:
        """The session is ready: its time begins."""
        self.active.settle(now)
        self._opening.pop(session.id, None)
        session._hold = None
        session._created_at = session._last_active = now
        self._table[session.id] = session
        self._table.rest(session)
        self.created += 1

    def _make_room(self, now: float) -> Session:
        self._table.settle(now, 1)
        overdue = self._table.next_overdue()
        if overdue is not None:
            self._end_if_over(overdue, now)
            return overdue
        if self._config.on_full == "evict":
            with contextlib.suppress(KeyError):
                evicted = self._table.popitem()[1]
                self.end(evicted, Ending(RemovalCause.CAPACITY, now), now)
                return evicted
        raise SessionLimitError(
            f"max_active_sessions={self._config.max_active_sessions} live sessions exist"
            + (" and all are checked out" if self._config.on_full == "evict" else "")
            + "; close some, raise the limit, or make room with on_full='evict'"
        )

    # ---- Being used

    def touch(self, session: Session, now: float) -> None:
        """The session is active now."""
        self.active.settle(now)
        session._last_active = now
        self._table.touched(session)

    def hold(self, session: Session) -> Hold:
        """The session's hold; from now on it is busy."""
        hold = session._hold
        if hold is None:
            hold = session._hold = Hold()
            self._table.occupy(session)
            self.checked_out += 1
        return hold

    def give_back(self, session: Session, holder: object, exclusive: bool, now: float) -> list[Session]:
        """Undo one checkout. When it was the last, the session rests, or ends if that was due and is then claimed.

        Does nothing in a forked child that gives back what its parent had checked out.
        """
        hold = session._hold
        if hold is None or not self._knows(session):
            return []
        hold.give_back(holder, exclusive)
        self.touch(session, now)
        if not hold.free:
            return []
        ending = self.ending_of(session, now)
        session._hold = None
        self.checked_out -= 1
        if session._ending is not None:
            self._finaliser.release(session)
        elif ending is not None:
            self.end(session, ending, now)
        else:
            self._table.rest(session)
        return self._finaliser.claim(session)

    # ---- Leaving

    def end(self, session: Session, ending: Ending, now: float) -> None:
        """The session has ended: nobody finds it any more, its name is free, and the finaliser has it."""
        self._table.pop(session.id, None)
        session._ending = ending
        if session.name is not None:
            del self._names[session.name]
        self._tombstones.add(session, ending)
        self.active.leave(session, now)
        if session._hold is not None:
            session._hold.dismiss()
        self._finaliser.admit(session)

    def shut_down(self, sessions: list[Session], now: float) -> list[Session]:
        """End those that have not ended yet, and claim those of them that nobody has checked out."""
        claimed: list[Session] = []
        for session in sessions:
            if session._ending is None:
                self.end(session, self.ending_of(session, now) or Ending(RemovalCause.SHUTDOWN, now), now)
                claimed += self._finaliser.claim(session)
        return claimed

    def end_due(self, now: float, age: float | None, limit: int) -> int:
        """End up to `limit` sessions that are due, or at rest and idle for more than `age`; how many that were."""
        self.active.settle(now)
        self._table.settle(now, limit)
        ended = 0
        while ended < limit and (session := self._table.next_overdue()) is not None:
            self._end_if_over(session, now)
            ended += 1
        if age is not None:
            for session in self._table.idle_for(age, now, limit - ended):
                self.end(session, Ending(RemovalCause.IDLE, now), now)
                ended += 1
        return ended

    def _end_if_over(self, session: Session | None, now: float) -> list[Session]:
        # A session that is still being made has a name, but no place in the table yet: it cannot be over.
        if session is None or session.id not in self._table:
            return []
        ending = self.ending_of(session, now)
        if ending is None:
            return []
        self.end(session, ending, now)
        return [session]
