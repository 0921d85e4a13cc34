"""The expiry index: which session is due, by idleness and by age.

Sessions at rest that have the same timeout stand in one line, least recently active first as far as the index knows. A
session that is due stands at the head of a line, so that finding the due costs what is due, and one look at each line.
A session that is checked out is never due: it leaves its line when it is met there, and comes back when it is given
back.

A touch only stores its instant in the session (see `sessionkit.core.fast`); the line is put right later, when the
session is met at its head. So a session is filed at most once for each time that it is met, and no session behind the
head has been idle for longer than the head's place says.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from itertools import islice, takewhile
from math import inf
from typing import Any

from ..errors import Ending, RemovalCause
from ..util.clock import is_past
from .session import NEVER, ManagedSession

Session = ManagedSession[Any]

HORIZON_SHARE = 1 / 16
"""The part of a timeout in which all sessions that are filed get the same horizon."""

FEW = 64
"""How many entries a line keeps that are skipped when they come up, beside as many as it has sessions."""

# One object, whatever reads it: an attribute of an enum takes longer to look up.
_IDLE = RemovalCause.IDLE
_LIFETIME = RemovalCause.LIFETIME


class Line:
    """Sessions at rest with one timeout, each with the instant of activity at which it was filed.

    A session that is filed as active now may be used without the lock until the line's *horizon*: an instant that is
    never too late, and up to a sixteenth of the timeout early. It is one object for all that share it: a float for each
    session would be one more place in memory to fetch at each touch.
    """

    __slots__ = ("_heap", "horizon", "horizon_holds_until", "moved", "ordered", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.ordered: OrderedDict[Session, float] = OrderedDict()
        """Those that were filed when they were active: each came to the end, so they stand in order."""
        self.moved: dict[str, tuple[float, Session]] = {}
        """Those that were filed later than they were active, by id: put right, or loaded from a store."""
        # Their order. An entry whose session has left, or was filed anew, is skipped when it comes up; so there are
        # few more than there are sessions.
        self._heap: list[tuple[float, str]] = []
        self.horizon = self.horizon_holds_until = NEVER

    def add_moved(self, session: Session, life_end: float) -> None:
        """File a session at its last activity, which is some time ago."""
        active_at = session._active_at
        session._alive_until = min(active_at + self.timeout, life_end)
        self.moved[session._id] = active_at, session
        heappush(self._heap, (active_at, session._id))
        if len(self._heap) > 2 * len(self.moved) + FEW:
            # Most of it is of sessions that were filed anew again and again.
            self._heap = [(filed, session_id) for session_id, (filed, _) in self.moved.items()]
            heapify(self._heap)

    def take(self, age: float, now: float, limit: int) -> list[tuple[Session, float]]:
        """Take out up to `limit` of the sessions that were filed more than `age` seconds ago.

        Gives each with the instant at which it was filed.
        """
        taken = list(islice(self.ordered.items(), limit))
        # They stand in order: if the last one was, all were.
        if taken and not is_past(taken[-1][1] + age, now):
            taken = list(takewhile(lambda head: is_past(head[1] + age, now), taken))
        for session, _ in taken:
            del self.ordered[session]
        while len(taken) < limit and (head := self._moved_head()) is not None and is_past(head[1] + age, now):
            self.discard_moved(head[0])
            taken.append(head)
        return taken

    def discard_moved(self, session: Session) -> None:
        """Take a session out of those that had moved on, if it is one of them."""
        if self.moved.pop(session._id, None) is not None and not self.moved:
            self._heap.clear()

    def head(self) -> tuple[Session, float] | None:
        """The session that was filed at the earliest instant, and that instant."""
        first, moved = next(iter(self.ordered.items()), None), self._moved_head()
        return moved if moved is not None and (first is None or moved[1] < first[1]) else first

    def _moved_head(self) -> tuple[Session, float] | None:
        while self._heap:
            filed, session_id = self._heap[0]
            found = self.moved.get(session_id)
            if found is not None and found[0] is filed:
                return found[1], filed
            heappop(self._heap)
        return None


class ExpiryIndex:
    """Sessions at rest in order of last activity, and all sessions in order of age if there is a maximum lifetime.

    No lock, no clock and no I/O: the coordinator's lock guards it, and instants are passed in; they never go back. The
    index never removes a session on its own: the caller does, so that every removal goes through the finalizer.
    """

    def __init__(self, max_lifetime: float | None) -> None:
        self._max_lifetime = max_lifetime
        self._lines: dict[float, Line] = {}
        # If there is a maximum lifetime: those that were created here, in order; and the others by id, each with the
        # instant at which its age is looked at next, which may be early. It stays when the session leaves, for when it
        # is loaded again.
        self._births: OrderedDict[Session, None] = OrderedDict()
        self._looks: dict[str, tuple[float, Session | None]] = {}
        self._looks_in_order: list[tuple[float, str]] = []

    def add(self, session: Session, now: float) -> None:
        """Take in a new session, which is active now."""
        if self._max_lifetime is not None:
            self._births[session] = None
        self.rest(session, now)

    def add_loaded(self, session: Session) -> None:
        """Take in a session that was created, and active last, some time ago."""
        if self._max_lifetime is not None:
            self._look_at_age_of(session)
        self._line_of(session).add_moved(session, self._life_end(session))

    def rename(self, session: Session, new_id: str) -> None:
        """Give a session that is checked out another id."""
        self.leave_rest(session)
        look_at, named = self._looks.get(session._id, (inf, None))
        if named is session:
            self._looks[session._id] = look_at, None
        session._id = new_id
        if named is session:
            self._look_at_age_of(session)
        # It may stand in its line, which knows it by its id.
        self._line_of(session).add_moved(session, self._life_end(session))

    def set_timeout(self, session: Session, timeout: float) -> None:
        """Give a session another timeout: from now on it stands in that line, by its last activity.

        The order is that of a decision (see `sessionkit.core.fast`): from here on no other thread can touch it without
        the lock, until it is filed.
        """
        session._alive_until = NEVER
        self.leave_rest(session)
        session._timeout = timeout
        # One that is checked out is taken out of its line when it is met there.
        self._line_of(session).add_moved(session, self._life_end(session))

    def rest(self, session: Session, now: float) -> None:
        """The session is at rest, and active now: it stands at the end of its line."""
        line = self._lines.get(session._timeout)
        if line is None:
            line = self._lines[session._timeout] = Line(session._timeout)
        if now > line.horizon_holds_until:
            line.horizon = now + line.timeout
            line.horizon_holds_until = now + line.timeout * HORIZON_SHARE
        life_end = inf if self._max_lifetime is None else session._created_at + self._max_lifetime
        session._alive_until = line.horizon if line.horizon < life_end else life_end
        line.ordered[session] = now

    def leave_rest(self, session: Session) -> None:
        """Take the session out of its line, until it rests again. Doing it again does nothing."""
        line = self._lines.get(session._timeout)
        if line is not None and line.ordered.pop(session, None) is None:
            line.discard_moved(session)

    def discard(self, session: Session) -> None:
        """The session has ended: nothing of it is in the index, and it cannot be used without the lock any more."""
        session._alive_until = NEVER
        line = self._lines.get(session._timeout)
        if line is not None and line.ordered.pop(session, None) is None:
            line.discard_moved(session)
        if self._max_lifetime is not None:
            self._discard_age_of(session)

    def renew(self, session: Session, now: float) -> None:
        """The session is active now, and may be used without the lock for another while."""
        self.leave_rest(session)
        self.rest(session, now)

    def end_of(self, session: Session) -> float:
        """The instant after which the session's time has run out, if it is not active again until then."""
        return min(session._active_at + session._timeout, self._life_end(session))

    def ending_of(self, session: Session, now: float) -> Ending | None:
        """How and when the session's time ran out; None while it has time left.

        A session that is checked out has no idle time. The limit that was reached first is the cause.
        """
        idle_end = session._active_at + session._timeout if session._lock is None else inf
        life_end = self._life_end(session)
        if not is_past(min(idle_end, life_end), now):
            return None
        # Only from here on can no other thread touch it without the lock.
        session._alive_until = NEVER
        idle_end = session._active_at + session._timeout if session._lock is None else inf
        idle, lifetime = (_IDLE, idle_end, session._timeout), (_LIFETIME, life_end, self._max_lifetime)
        ending: Ending = idle if idle_end <= life_end else lifetime
        return ending if is_past(ending[1], now) else None

    def find_due(self, now: float, limit: int) -> tuple[list[tuple[Session, Ending]], bool]:
        """Sessions whose time has run out, looking at up to `limit`; and whether there may be more.

        The caller ends all of them.
        """
        found: list[tuple[Session, Ending]] = []
        looks = 0
        while self._max_lifetime is not None and looks < limit and (oldest := self._oldest()) is not None:
            ending = self.ending_of(oldest, now)
            if ending is None:
                break
            looks += 1
            found.append((oldest, ending))
            self.discard(oldest)
        # No session left here is past its maximum lifetime, so that idleness is the cause of all that follow.
        for line in list(self._lines.values()):
            timeout = line.timeout
            while looks < limit and (taken := line.take(timeout, now, limit - looks)):
                looks += len(taken)
                for session, filed in taken:
                    if session._lock is not None:
                        continue
                    # From here on the session cannot be touched without the lock, unless it is filed again.
                    session._alive_until = NEVER
                    active_at = session._active_at
                    if active_at > filed and not is_past(active_at + timeout, now):
                        line.add_moved(session, self._life_end(session))
                        continue
                    found.append((session, (_IDLE, active_at + timeout, timeout)))
                    if self._max_lifetime is not None:
                        self._discard_age_of(session)
            if not line.ordered and not line.moved:
                # A line without sessions would be looked at for ever.
                del self._lines[line.timeout]
        return found, looks == limit

    def find_idle(self, age: float, now: float, limit: int) -> tuple[list[Session], bool]:
        """Sessions at rest that were active last more than `age` seconds ago, as `find_due` finds the due."""
        found: list[Session] = []
        looks = 0
        for line in list(self._lines.values()):
            while looks < limit and (taken := line.take(age, now, limit - looks)):
                looks += len(taken)
                for session, filed in taken:
                    if self._is_right(line, session, filed):
                        found.append(session)
                        self.discard(session)
        return found, looks == limit

    def find_least_recent(self, limit: int) -> tuple[Session | None, bool]:
        """The session at rest that was active least recently, and whether up to `limit` looks were enough to tell.

        The caller ends it, or leaves it where it is.
        """
        for _ in range(limit):
            heads = [(head[1], line, head[0]) for line in self._lines.values() if (head := line.head()) is not None]
            if not heads:
                return None, True
            filed, line, session = min(heads, key=lambda head: head[0])
            if self._is_right(line, session, filed):
                return session, True
        return None, False

    def _is_right(self, line: Line, session: Session, filed: float) -> bool:
        """Whether the head of a line was not active since it was filed; else it is put right.

        From here on the session cannot be touched without the lock, unless it is put right.
        """
        session._alive_until = NEVER
        if session._active_at > filed or session._lock is not None:
            self._put_right(line, session)
            return False
        return True

    def _put_right(self, line: Line, session: Session) -> None:
        self.leave_rest(session)
        if session._lock is None:
            line.add_moved(session, self._life_end(session))

    def _line_of(self, session: Session) -> Line:
        line = self._lines.get(session._timeout)
        if line is None:
            line = self._lines[session._timeout] = Line(session._timeout)
        return line

    def _life_end(self, session: Session) -> float:
        return inf if self._max_lifetime is None else session._created_at + self._max_lifetime

    def _look_at_age_of(self, session: Session) -> None:
        life_end = self._life_end(session)
        look_at, _ = self._looks.get(session._id, (inf, None))
        if life_end < look_at:
            look_at = life_end
            heappush(self._looks_in_order, (look_at, session._id))
        self._looks[session._id] = look_at, session

    def _discard_age_of(self, session: Session) -> None:
        look_at, named = self._looks.get(session._id, (inf, None))
        if named is session:
            self._looks[session._id] = look_at, None
        else:
            self._births.pop(session, None)

    def _oldest(self) -> Session | None:
        """The session that was created first."""
        first = next(iter(self._births), None)
        while self._looks_in_order:
            noted_at, session_id = self._looks_in_order[0]
            look_at, session = self._looks.get(session_id, (inf, None))
            if session is not None and look_at is noted_at and self._life_end(session) <= look_at:
                return session if first is None or session._created_at < first._created_at else first
            heappop(self._looks_in_order)
            if look_at is noted_at:
                del self._looks[session_id]
                if session is not None:
                    self._look_at_age_of(session)
        return first
