"""Which session is the active one, and who takes its place."""

from __future__ import annotations

from typing import Any

from .session import ManagedSession
from .table import SessionTable

Session = ManagedSession[Any]


class ActiveMark:
    """The active session of one coordinator; guarded by its lock.

    When the active session ends, the one that was most recently active at that moment takes its place; if there is
    none, none is active until the next switch. `current` is called before any activity is noted, so that it makes no
    difference when an end is noticed.
    """

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self.session: Session | None = None
        """The active session when somebody last looked."""

    def put_on(self, session: Session) -> None:
        """Make the session the active one."""
        self.session = session

    def current(self, now: float) -> Session | None:
        """The active session; if its time ran out, its place has been taken."""
        if self.session is not None and self._table.over(self.session, now) is not None:
            self.session = self._table.most_recent(now, but=self.session)
        return self.session

    def leave(self, session: Session, now: float) -> None:
        """The session has ended; if it was the active one, its place is taken."""
        if self.session is session:
            self.session = self._table.most_recent(now, but=session)
