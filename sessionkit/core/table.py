"""The session table: all live sessions by id, and the order in which they are due.

Sessions with the same timeout stand in one line, least recently active first as far as the table knows. Whoever is due
stands at the head of one, so that finding the due costs what is due, one look at each line, and one more for each
session that had moved on since it was filed, or is checked out: those are put right when they are met. Where there is a
maximum lifetime, all sessions stand in order of creation as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import islice, takewhile
from math import inf
from typing import Any

import cachetools

from ..errors import Ending, RemovalCause
from ..util.clock import is_past
from .line import Line
from .session import ManagedSession

Session = ManagedSession[Any]

# One object, whatever reads it: an attribute of an enum takes longer to look up.
_IDLE = RemovalCause.IDLE
_LIFETIME = RemovalCause.LIFETIME


class SessionTable(cachetools.Cache[str, Session]):
    """Sessions by id; `popitem` takes the least recently active one at rest.

    No lock, no clock and no I/O: the coordinator's lock guards it, and instants are passed in. They must never go back.
    A session is put in by `enter`. Whoever does that has made room: the table does not do it, past the one door out.
    """

    def __init__(self, maxsize: int | None, max_lifetime: float | None) -> None:
        super().__init__(inf if maxsize is None else maxsize)
        self._max_lifetime = max_lifetime
        self.at_hand: dict[str, Session] = {}
        """Where the sessions are: a dict, because that can be read without the lock while it is changed."""
        self.in_order_since: float | None = None
        """Since when every touch has been noted in the lines; None while some are not."""
        self._lines: dict[float, Line] = {}
        # Checked out when they were met: they stand in no line until they are given back.
        self._parked: dict[str, Session] = {}
        self._births: OrderedDict[str, Session] = OrderedDict()
        # Those who were created before they came here; entries whose session has left are skipped when they come up.
        self._former_births: list[tuple[float, str]] = []
        # Their time ran out, as `_ending` says.
        self._overdue: OrderedDict[str, Session] = OrderedDict()
        self._overdue_out: set[str] = set()

    @property
    def overdue(self) -> int:
        """How many sessions have been found past their end and nobody has taken out yet."""
        return len(self._overdue)

    @property
    def removable(self) -> int:
        """How many of the overdue are not checked out."""
        return self.overdue - len(self._overdue_out)

    def __getitem__(self, session_id: str) -> Session:
        return self.at_hand[session_id]

    def __setitem__(self, session_id: str, session: Session) -> None:
        raise TypeError("a session is put in with enter(), which is told the time")

    def __delitem__(self, session_id: str) -> None:
        session = self.at_hand.pop(session_id)
        session._until = -inf
        if session._ending is not None:
            del self._overdue[session_id]
            self._overdue_out.discard(session_id)
            return
        line = self._lines.get(session._timeout)
        if line is not None and line.ordered.pop(session_id, None) is not None and line.ordered and not self._births:
            return
        self._leave_order(session)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self.at_hand

    def __iter__(self) -> Iterator[str]:
        return iter(self.at_hand)

    def __len__(self) -> int:
        return len(self.at_hand)

    @property
    def currsize(self) -> int:
        """How many sessions there are; each has the size 1."""
        return len(self.at_hand)

    def popitem(self) -> tuple[str, Session]:
        """Take out the session at rest that was active least recently. Raises `KeyError` if all are checked out."""
        session = self.least_recent()
        if session is None:
            raise KeyError("no session is at rest")
        del self[session._id]
        return session._id, session

    def least_recent(self) -> Session | None:
        """The session at rest that was active least recently; it cannot be used without the lock any more."""
        while (session := self._head()) is not None:
            if self._claim(session):
                return session
        return None

    def put_head_right(self, limit: int) -> bool:
        """Look for the least recently active session at rest, at up to `limit`; whether that was enough."""
        for _ in range(limit):
            head = self._head()
            if head is None:
                return True
            until = head._until
            if self._claim(head):
                head._until = until
                return True
        return False

    def enter(self, session: Session, now: float) -> None:
        """Put in a new session, which is at rest and active now."""
        self.at_hand[session._id] = session
        line = self._lines.get(session._timeout)
        if line is not None and self._max_lifetime is None:
            line.add(session, now)
            return
        if self._max_lifetime is not None:
            self._births[session._id] = session
        self.file(session, now)

    def re_enter(self, session: Session, now: float) -> None:
        """Put in a session that is at rest, and was created and active last some time ago."""
        self.at_hand[session._id] = session
        if self._max_lifetime is not None:
            heappush(self._former_births, (session._created_at, session._id))
        line = self._lines.get(session._timeout)
        if line is None:
            line = self._lines[session._timeout] = Line(session._timeout)
        line.file_back(session, self._life_end(session))
        if self.in_order_since is not None:
            self.in_order_since = now

    def file(self, session: Session, now: float) -> None:
        """The session is at rest, and active now: it stands at the end of its line."""
        line = self._lines.get(session._timeout)
        if line is None:
            line = self._lines[session._timeout] = Line(session._timeout)
        line.add(session, now, self._life_end(session))

    def touched(self, session: Session, now: float) -> None:
        """The session is active now: it goes to the end of its line."""
        session._last_active = now if now > session._last_active else session._last_active  # one step
        line = self._lines.get(session._timeout)
        if line is not None:
            line.renew(session, now, inf if self._max_lifetime is None else self._life_end(session))

    def rested(self, session: Session, now: float) -> None:
        """Nobody has the session any more, and it was active just now."""
        if self._parked.pop(session._id, None) is not None:
            self.file(session, now)
        else:
            self.touched(session, now)

    def rename(self, session: Session, new_id: str) -> None:
        """Give a session that is checked out another id; as for any that was met so, it stands in no line meanwhile."""
        session._until = -inf
        self._leave_order(session)
        del self.at_hand[session._id]
        session._id = new_id
        self.at_hand[new_id] = self._parked[new_id] = session
        if self._max_lifetime is not None:
            heappush(self._former_births, (session._created_at, new_id))

    def over(self, session: Session, now: float) -> Ending | None:
        """How and when the session's time ran out, or None while it has time left; once over, it stays so.

        A session that is checked out has no idle time. Whichever limit was reached first is the cause.
        """
        if now < session._until:
            return None
        if session._ending is None:
            ending = self._final_ending(session, now)
            if ending is not None:
                self._set_aside(session, ending)
        return session._ending

    def settle(self, now: float, limit: int) -> bool:
        """Set aside sessions whose time ran out, looking at up to `limit`; True if there may be more."""
        looks = 0
        for found in islice(self.due(now), limit):
            looks += 1
            if found is not None:
                self._set_aside(*found)
        return looks == limit

    def due(self, now: float) -> Iterator[tuple[Session, Ending] | None]:
        """Those whose time ran out and who were not set aside, one a look; None for a look at one that was put right.

        Whoever asks for the next one has taken the one before out, or set it aside.
        """
        while (oldest := self._oldest()) is not None:
            ending = self._final_ending(oldest, now)
            if ending is None:
                break
            yield oldest, ending
        for line in list(self._lines.values()):
            while (head := line.head()) is not None and is_past(head._filed + line.timeout, now):
                ending = self._ending_at(head, now) if self._claim(head) else None
                yield None if ending is None else (head, ending)

    def idle(self, age: float, now: float) -> Iterator[Session | None]:
        """Those at rest that were last active more than `age` seconds ago, as `due` gives those whose time ran out."""
        for line in list(self._lines.values()):
            while (head := line.head()) is not None and is_past(head._filed + age, now):
                yield head if self._claim(head) else None

    def next_overdue(self) -> Session | None:
        """The session that was set aside first; it stays in the table."""
        return next(iter(self._overdue.values()), None)

    def most_recent(self, now: float, but: Session) -> Session | None:
        """The live session that was active most recently, other than `but`."""
        last = [self._last_live(reversed(line), now, but) for line in self._lines.values()]
        # These stand in no order, and are no more than are checked out.
        last += [session for session in self._parked.values() if self._is_live(session, now, but)]
        found = max((session for session in last if session is not None), key=_last_active, default=None)
        since = inf if self.in_order_since is None else self.in_order_since
        if since == -inf or (found is not None and found._last_active >= since):
            return found
        live = (session for session in self.snapshot() if self._is_live(session, now, but))
        return max(live, key=_last_active, default=None)

    def snapshot(self) -> list[Session]:
        """All sessions that were not set aside, in no particular order."""
        # One list() a line, and no generator: the caller holds the lock.
        sessions: list[Session] = []
        for line in self._lines.values():
            sessions += line
        return sessions + list(self._parked.values())

    def _life_end(self, session: Session) -> float:
        return inf if self._max_lifetime is None else session._created_at + self._max_lifetime

    def _oldest(self) -> Session | None:
        first = next(iter(self._births.values()), None)
        while self._former_births:
            created_at, session_id = self._former_births[0]
            session = self.at_hand.get(session_id)
            if session is not None and session._created_at == created_at and session._ending is None:
                return session if first is None or created_at < first._created_at else first
            heappop(self._former_births)
        return first

    def _head(self) -> Session | None:
        heads = [line.head() for line in self._lines.values()]
        return min((head for head in heads if head is not None), key=_filed, default=None)

    def _claim(self, session: Session) -> bool:
        """Keep the head of a line from being used without the lock, for the caller to take out.

        False if it was used since it was filed: then it is put right instead.
        """
        until, session._until = session._until, -inf
        if session.checked_out:
            # What is given back without the lock is not filed: `_until` stays as it is.
            self._leave_line(session)
            self._parked[session._id] = session
            return False
        if session._last_active > session._filed:
            self._lines[session._timeout].move_on(session)
            session._until = until
            return False
        return True

    def _final_ending(self, session: Session, now: float) -> Ending | None:
        if self._ending_at(session, now) is None:
            return None
        until, session._until = session._until, -inf
        # Only now can nobody use it without the lock.
        ending = self._ending_at(session, now)
        if ending is None:
            session._until = until
        return ending

    def _ending_at(self, session: Session, now: float) -> Ending | None:
        idle_end = inf if session.checked_out else session._last_active + session._timeout
        life_end = self._life_end(session)
        if not is_past(min(idle_end, life_end), now):
            return None
        if idle_end <= life_end:
            return (_IDLE, idle_end, session._timeout)
        return (_LIFETIME, life_end, self._max_lifetime)

    def _set_aside(self, session: Session, ending: Ending) -> None:
        session._ending = ending
        self._leave_order(session)
        self._overdue[session._id] = session
        if session.checked_out:
            self._overdue_out.add(session._id)

    def _is_live(self, session: Session, now: float, but: Session) -> bool:
        return session is not but and self._ending_at(session, now) is None

    def _last_live(self, latest_first: Iterable[Session], now: float, but: Session) -> Session | None:
        # Once one has been idle for too long, all before it in the line have been for longer still.
        in_time = takewhile(lambda s: not idle_for_more(s, s._timeout, now), latest_first)
        return next((session for session in in_time if self._is_live(session, now, but)), None)

    def _leave_order(self, session: Session) -> None:
        if self._max_lifetime is not None:
            self._births.pop(session._id, None)
        if not self._parked or self._parked.pop(session._id, None) is None:
            self._leave_line(session)

    def _leave_line(self, session: Session) -> None:
        line = self._lines[session._timeout]
        line.discard(session)
        if not line.ordered and not line.moved:
            # A line nobody stands in would be looked at for ever.
            del self._lines[session._timeout]


def idle_for_more(session: Session, age: float, now: float) -> bool:
    """Whether a session is at rest and was last active more than `age` seconds ago."""
    return not session.checked_out and is_past(session._last_active + age, now)


def _last_active(session: Session) -> float:
    return session._last_active


def _filed(session: Session) -> float:
    return session._filed
