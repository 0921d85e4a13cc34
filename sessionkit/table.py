"""The session table: all live sessions by id, and the order in which they are due.

Sessions with the same timeout stand in one line, least recently active first. A touch moves a session to the end of
its line, so whoever is due stands at the head of one, and finding the due costs what is due and one look at each line:
as many looks as there are different timeouts, however many sessions. A session that is checked out stands in no line
at all: it can be neither expired for idleness nor evicted. Where there is a maximum lifetime, all sessions stand in
order of creation as well.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain, islice, takewhile
from math import inf
from typing import Any

import cachetools

from .clock import SLACK
from .ending import Ending, RemovalCause
from .session import ManagedSession

Session = ManagedSession[Any]
Line = OrderedDict[str, Session]


class SessionTable(cachetools.Cache[str, Session]):
    """Sessions by id; `popitem` takes the least recently active one at rest.

    No lock, no clock and no I/O: the coordinator's lock guards it, and instants are passed in. They must never go back.
    A session is put in by `table[session.id] = session` and is busy until `rest` is called. There must be room:
    the table would make it with `popitem`, past the one door out.
    """

    def __init__(self, maxsize: int | None, max_lifetime: float | None) -> None:
        super().__init__(inf if maxsize is None else maxsize)
        self._max_lifetime = max_lifetime
        self._lines: dict[float, Line] = {}
        self._busy: Line = OrderedDict()
        self._births: Line = OrderedDict()
        self._overdue: Line = OrderedDict()

    @property
    def overdue(self) -> int:
        """How many sessions `settle` has found past their end and nobody has taken out yet."""
        return len(self._overdue)

    @property
    def removable(self) -> int:
        """How many of the overdue are not checked out."""
        return len(self._overdue) - sum(session_id in self._overdue for session_id in self._busy)

    def __setitem__(self, session_id: str, session: Session) -> None:
        super().__setitem__(session_id, session)
        self._busy[session_id] = session
        if self._max_lifetime is not None:
            self._births[session_id] = session

    def __delitem__(self, session_id: str) -> None:
        session = self[session_id]
        super().__delitem__(session_id)
        self._leave_line(session)
        self._births.pop(session_id, None)
        self._busy.pop(session_id, None)
        self._overdue.pop(session_id, None)

    def popitem(self) -> tuple[str, Session]:
        """Take out the session at rest that was active least recently. Raises `KeyError` if all are busy."""
        session = min(map(_first, self._lines.values()), key=_last_active, default=None)
        if session is None:
            raise KeyError("no session is at rest")
        del self[session.id]
        return session.id, session

    def touched(self, session: Session) -> None:
        """The session was active just now: it goes to the end of its line, or of those who are busy."""
        line = self._busy if session.id in self._busy else self._lines.get(session._timeout)
        if line is not None and session.id in line:
            line.move_to_end(session.id)

    def occupy(self, session: Session) -> None:
        """The session is busy now: it stands in no line."""
        self._leave_line(session)
        self._busy[session.id] = session

    def rest(self, session: Session) -> None:
        """The session was active just now and is no longer busy: it goes to the end of its line."""
        del self._busy[session.id]
        line = self._lines.get(session._timeout)
        if line is None:
            line = self._lines[session._timeout] = OrderedDict()
        line[session.id] = session

    def ending_of(self, session: Session, now: float) -> Ending | None:
        """How and when the session's time ran out, or None while it has time left.

        A session that is checked out has no idle time. Whichever limit was reached first is the cause.
        """
        idle_end = session._last_active + session._timeout if session._hold is None else inf
        life_end = inf if self._max_lifetime is None else session._created_at + self._max_lifetime
        if now - min(idle_end, life_end) <= SLACK:
            return None
        if idle_end <= life_end:
            return Ending(RemovalCause.IDLE, idle_end, session._timeout)
        return Ending(RemovalCause.LIFETIME, life_end, self._max_lifetime)

    def settle(self, now: float, limit: int) -> bool:
        """Set aside up to `limit` sessions whose time ran out; True if there may be more."""
        found = 0
        for line in (self._births, *self._lines.values()):
            while found < limit and line and self.ending_of(head := _first(line), now) is not None:
                self._leave_line(head)
                self._births.pop(head.id, None)
                self._overdue[head.id] = head
                found += 1
        return found == limit

    def next_overdue(self) -> Session | None:
        """The session that was set aside first; it stays in the table."""
        return _first(self._overdue) if self._overdue else None

    def idle_for(self, age: float, now: float, limit: int) -> list[Session]:
        """Up to `limit` sessions at rest that were last active more than `age` seconds ago; they stay in the table."""
        old = (takewhile(lambda head: idle_for_more(head, age, now), line.values()) for line in self._lines.values())
        return list(islice(chain.from_iterable(old), limit))

    def most_recent(self, now: float, but: Session) -> Session | None:
        """The live session that was active most recently, other than `but`."""
        last = [self._last_live(line, now, but) for line in (self._busy, *self._lines.values())]
        return max((session for session in last if session is not None), key=_last_active, default=None)

    def everyone(self) -> list[Session]:
        """All sessions, those set aside included: first those, then those at rest, then the busy."""
        return [*self._overdue.values(), *self.snapshot()]

    def snapshot(self) -> list[Session]:
        """All sessions that were not set aside, in no particular order."""
        # One list() a line, and no generator: the caller holds the lock.
        sessions: list[Session] = []
        for line in self._lines.values():
            sessions += line.values()
        return sessions + [session for session in self._busy.values() if session.id not in self._overdue]

    def _is_live(self, session: Session, now: float, but: Session) -> bool:
        return session is not but and self.ending_of(session, now) is None

    def _last_live(self, line: Line, now: float, but: Session) -> Session | None:
        # Once one has been idle for too long, all before it in the line have been for longer still.
        in_time = takewhile(lambda s: not idle_for_more(s, s._timeout, now), reversed(line.values()))
        return next((session for session in in_time if self._is_live(session, now, but)), None)

    def _leave_line(self, session: Session) -> None:
        line = self._lines.get(session._timeout)
        if line is not None and line.pop(session.id, None) is not None and not line:
            # A line nobody stands in would be looked at for ever.
            del self._lines[session._timeout]


def idle_for_more(session: Session, age: float, now: float) -> bool:
    """Whether a session is at rest and was last active more than `age` seconds ago."""
    return session._hold is None and now - session._last_active - age > SLACK


def _first(line: Line) -> Session:
    return next(iter(line.values()))


def _last_active(session: Session) -> float:
    return session._last_active
