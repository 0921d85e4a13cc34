"""A line: sessions with the same timeout, in the order in which they were last known to be active.

Each stands where it was filed, at an instant not later than its last activity. A touch without the lock leaves it
there; whoever meets it at the head of the line files it anew. So a session is filed at most once for each time that
somebody meets it, touches cost the line nothing, and nobody behind the head has been idle for longer than the head's
place says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import chain
from math import inf
from typing import Any

from .session import ManagedSession

Session = ManagedSession[Any]

SHARE = 1 / 16
"""The part of a timeout in which sessions are filed that get the same horizon."""


class Line:
    """Sessions at rest with one timeout. Guarded by the coordinator's lock, which is where instants come from.

    Whoever is filed as active now gets as `_until` the line's *horizon*: an instant that cannot be too late, and is up
    to a sixteenth of the timeout early. It is one object for all that share it; a float for each session would be one
    more place in memory to fetch at each touch.
    """

    __slots__ = ("_heap", "_horizon", "_horizon_holds_until", "moved", "ordered", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.ordered: OrderedDict[str, Session] = OrderedDict()
        """Those that were filed when they were active: each came to the end, so they stand in order."""
        self.moved: dict[str, Session] = {}
        """Those that had moved on when they were met."""
        # Entries whose session has left, or was filed anew, are skipped when they come up. There are never more than
        # sessions that were alive one timeout ago.
        self._heap: list[tuple[float, str]] = []
        self._horizon = self._horizon_holds_until = -inf

    def __iter__(self) -> Iterator[Session]:
        return chain(self.ordered.values(), self.moved.values())

    def __reversed__(self) -> Iterator[Session]:
        """Latest first, as far as sessions were not touched without the lock."""
        return chain(reversed(self.ordered.values()), self.moved.values())

    def add(self, session: Session, now: float, life_end: float = inf) -> None:
        """File a session at rest that is active now, and lives until `life_end` at most: at the end."""
        if now > self._horizon_holds_until:
            self._raise_horizon(now)
        # In one store: a look without the lock may come right after it.
        session._until = self._horizon if self._horizon < life_end else life_end
        session._filed = now
        self.ordered[session._id] = session

    def renew(self, session: Session, now: float, life_end: float = inf) -> bool:
        """A session is active now: if it stands in this line, file it at the end as `add` does, and say so."""
        try:
            self.ordered.move_to_end(session._id)
        except KeyError:
            if not self._leave_moved(session):
                return False
            self.ordered[session._id] = session
        if now > self._horizon_holds_until:
            self._raise_horizon(now)
        if session._hold is None:
            session._until = self._horizon if self._horizon < life_end else life_end
        session._filed = now
        return True

    def move_on(self, session: Session) -> None:
        """File a session that was met where it is no more: at its last activity."""
        session._filed = session._last_active
        if self.ordered.pop(session._id, None) is not None:
            self.moved[session._id] = session
        heappush(self._heap, (session._filed, session._id))

    def file_back(self, session: Session, life_end: float) -> None:
        """File a session that was active last some time ago, and has not been in any line since."""
        session._until = min(session._last_active + self.timeout, life_end)
        session._filed = session._last_active
        self.moved[session._id] = session
        heappush(self._heap, (session._filed, session._id))

    def discard(self, session: Session) -> None:
        """Take a session out of the line, if it stands in it."""
        if self.ordered.pop(session._id, None) is None:
            self._leave_moved(session)

    def head(self) -> Session | None:
        """The session that was filed at the earliest instant."""
        first = next(iter(self.ordered.values()), None)
        while self._heap:
            filed, session_id = self._heap[0]
            moved = self.moved.get(session_id)
            if moved is not None and moved._filed is filed:
                return moved if first is None or filed < first._filed else first
            heappop(self._heap)
        return first

    def _leave_moved(self, session: Session) -> bool:
        if self.moved.pop(session._id, None) is None:
            return False
        if not self.moved:
            self._heap.clear()
        return True

    def _raise_horizon(self, now: float) -> None:
        self._horizon = now + self.timeout
        self._horizon_holds_until = now + self.timeout * SHARE
