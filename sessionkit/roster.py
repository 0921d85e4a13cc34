"""The roster: every decision about membership. Who comes in, who is in use, who has to leave."""

from __future__ import annotations

import contextlib
from typing import Any

from .active import ActiveMark
from .clock import SteadyClock
from .config import CoordinatorConfig, OnFull
from .directory import Directory
from .ending import Ending, RemovalCause
from .errors import SessionExistsError, SessionLimitError
from .finaliser import Finaliser
from .hold import Hold
from .session import ManagedSession

Session = ManagedSession[Any]

_ADVICE: dict[OnFull, str] = {
    "reject": "; close some, raise the limit, or let on_full='evict' make room",
    "evict": ", and all are checked out; wait until one is given back, or raise the limit",
}


class Roster(Directory):
    """The members of one coordinator, which calls all of it with its lock held. Leavers go to the finaliser."""

    def __init__(self, config: CoordinatorConfig, clock: SteadyClock, finaliser: Finaliser) -> None:
        super().__init__(config, clock, finaliser)
        self._config = config
        self.active = ActiveMark(self._table)
        """The mark of the active session."""
        self.created = 0
        self.checked_out = 0

    def settle(self, now: float, limit: int) -> bool:
        """Set aside up to `limit` sessions whose time ran out; True if there may be more."""
        return self._table.settle(now, limit)

    # ---- Coming in

    def reserve(self, session: Session, now: float) -> list[Session]:
        """Decide that there is room, and keep the session's id, name and place until `open` or `unreserve`.

        Those who had to leave for it are claimed from the finaliser and returned.
        """
        self.check_open()
        self.active.current(now)
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
        self.active.current(now)
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
                self.end(evicted, Ending(RemovalCause.CAPACITY, now, self._table.maxsize), now)
                return evicted
        raise SessionLimitError(
            f"max_active_sessions={self._config.max_active_sessions} live sessions exist"
            + _ADVICE[self._config.on_full]
        )

    # ---- Being used

    def touch(self, session: Session, now: float) -> None:
        """The session is active now."""
        self.active.current(now)
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
        self.active.current(now)
        self._table.settle(now, limit)
        ended = 0
        while ended < limit and (session := self._table.next_overdue()) is not None:
            self._end_if_over(session, now)
            ended += 1
        if age is not None:
            for session in self._table.idle_for(age, now, limit - ended):
                self.end(session, Ending(RemovalCause.IDLE, now, age), now)
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
