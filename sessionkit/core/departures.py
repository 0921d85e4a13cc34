"""Departures: how sessions end, and who has to."""

from __future__ import annotations

from itertools import islice
from typing import Any

from ..config import CoordinatorConfig
from ..errors import Ending, RemovalCause
from .active import ActiveMark
from .directory import Directory
from .finalizer import Finalizer
from .session import ManagedSession

Session = ManagedSession[Any]

# One object, whatever reads it: an attribute of an enum takes longer to look up.
_PASSIVATED = RemovalCause.PASSIVATED


class Departures(Directory):
    """Lets members leave: whoever has ended goes to the finalizer."""

    def __init__(self, config: CoordinatorConfig, finalizer: Finalizer) -> None:
        super().__init__(config, finalizer)
        self.active = ActiveMark(self._table)
        """The mark of the active session."""

    def settle(self, now: float, limit: int) -> bool:
        """Set aside sessions whose time ran out, looking at up to `limit`; True if there may be more."""
        return self._table.settle(now, limit)

    def end(self, session: Session, ending: Ending, now: float) -> bool:
        """The session has ended: nobody finds it any more, its name is free, and the finalizer has it.

        Whether it can be claimed there: not while it is checked out, nor if there was nothing to close.
        """
        if self.at_hand.get(session._id) is session:
            del self._table[session._id]
        session._ending = ending
        if session._name is not None:
            del self._names[session._name]
        if ending[0] is not _PASSIVATED:
            self.remember(session._id, session._name, ending, now)
        if self.active.session is not None:
            self.active.leave(session, now)
        if session._hold is not None:
            session._hold.dismiss()
        return self._finalizer.admit(session, ending)

    def move_out(self, session: Session, now: float) -> None:
        """End a session here whose record is in the store, or was ended elsewhere, and claim it if it is at rest."""
        self.end(session, (_PASSIVATED, now, None), now)
        self._finalizer.claim(session)

    def remember(self, session_id: str, name: str | None, ending: Ending, now: float) -> None:
        """From now on, who asks for this session is told how it ended."""
        self._ended.note(session_id, name, ending, now)

    def forget_end(self, session_id: str) -> None:
        """The session lives on elsewhere, after all."""
        self._ended.forget(session_id)

    def shut_down(self, sessions: list[Session], now: float) -> None:
        """End those that have not ended yet, and claim those of them that nobody has checked out."""
        for session in sessions:
            if self.at_hand.get(session._id) is session:
                self.end(session, self.ending_of(session, now) or (RemovalCause.SHUTDOWN, now, None), now)
                self._finalizer.claim(session)

    def end_due(self, now: float, age: float | None, limit: int) -> bool:
        """End sessions that are due, or at rest and idle for more than `age`, looking at up to `limit`.

        True if there may be more.
        """
        if self.active.session is not None:
            self.active.current(now)
        looks = 0
        while looks < limit and (overdue := self._table.next_overdue()) is not None:
            looks += 1
            self.end_if_over(overdue, now)
        for found in islice(self._table.due(now), limit - looks):
            looks += 1
            if found is not None:
                self.end(*found, now)
        for session in islice(self._table.idle(age, now) if age is not None else (), limit - looks):
            looks += 1
            if session is not None:
                self.end(session, (RemovalCause.IDLE, now, age), now)
        return looks == limit

    def end_if_over(self, session: Session, now: float) -> bool:
        """End a session whose time ran out; whether that was so."""
        # A session that is still being made has a name, but no place in the table yet: it cannot be over.
        ending = self.ending_of(session, now) if session._id in self.at_hand else None
        if ending is None:
            return False
        self.end(session, ending, now)
        return True
