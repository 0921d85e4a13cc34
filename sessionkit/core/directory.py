"""The directory: who is live, under which id and name, and how the others ended."""

from __future__ import annotations

from typing import Any

from ..config import CoordinatorConfig
from ..errors import CoordinatorClosedError, Ending, SessionExpiredError, SessionNotFoundError
from ..util.validation import checked_id, checked_name_or_id
from .finalizer import Finalizer
from .history import EndedSessions
from .session import ManagedSession
from .table import SessionTable

Session = ManagedSession[Any]


class Directory:
    """Finds sessions by id and by name.

    The coordinator calls all of it with its lock held and passes the instant in; instants never go back. Looking
    changes nothing, but that a session whose time is found to have run out is set aside.
    """

    def __init__(self, config: CoordinatorConfig, finalizer: Finalizer) -> None:
        self._finalizer = finalizer
        self._table = SessionTable(config.max_active_sessions, config.max_lifetime)
        self.at_hand = self._table.at_hand
        """All sessions that have not ended by id, also those whose time has run out; for looks without the lock."""
        # Those that are still being made have their id, name and place, and nobody finds them.
        self._opening: dict[str, Session] = {}
        self._names: dict[str, Session] = {}
        self._ended = EndedSessions()
        self.closed = False
        """Whether the coordinator is closed."""

    def check_open(self) -> None:
        """Raise `CoordinatorClosedError` once the coordinator is closed."""
        if self.closed:
            raise CoordinatorClosedError("this coordinator is closed and keeps no sessions; make a new one")

    def __len__(self) -> int:
        """How many sessions are live, once nobody is left to be set aside."""
        return len(self._table) - self._table.overdue

    @property
    def is_empty(self) -> bool:
        """Whether nobody is here, nor being made."""
        return not self.at_hand and not self._opening

    @property
    def in_memory(self) -> int:
        """How many sessions are here, those included whose time has run out."""
        return len(self._table)

    def snapshot(self) -> list[Session]:
        """All live sessions, in no particular order, once nobody is left to be set aside."""
        return self._table.snapshot()

    def everyone(self) -> list[Session]:
        """All sessions that have not ended, also those whose time has run out."""
        return list(self.at_hand.values())

    def removable(self) -> int:
        """How many sessions a cleanup would remove, once nobody is left to be set aside."""
        return self._table.removable + self._finalizer.ready

    def is_live(self, session_id: object, now: float) -> bool:
        """Whether a live session has this id."""
        session = self.at_hand.get(session_id) if isinstance(session_id, str) else None
        return session is not None and self._table.over(session, now) is None

    def find(self, session_id: str, now: float) -> Session:
        """The live session with this id. Raises `SessionNotFoundError`, or its child if the session has ended."""
        session = self.at_hand.get(session_id)
        if session is not None and now < session._until and not self.closed:
            return session
        self.check_open()
        if session is None:
            raise self.absent(session_id, now)
        ending = self._table.over(session, now)
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
                return self.at_hand[session_id]
        former_id = self._ended.id_of(name_or_id, now)
        for session_id in ids if former_id is None else [*ids, former_id]:
            ending = self._ending_by_id(session_id, now)
            if ending is not None:
                raise SessionExpiredError(session_id, *ending)
        raise SessionNotFoundError(name_or_id)

    def require(self, session: Session, now: float) -> None:
        """Raise as `find` does unless this very session is live, being made, or checked out."""
        if now < session._until and self.at_hand.get(session._id) is session:
            return
        if not self._knows(session):
            raise self.absent(session._id, now)
        ending = self.ending_of(session, now)
        if ending is not None and not session.checked_out:
            raise SessionExpiredError(session._id, *ending)

    def is_opening(self, session_id: str) -> bool:
        """Whether a session with this id is still being made."""
        return session_id in self._opening

    def ending_of(self, session: Session, now: float) -> Ending | None:
        """How and when the session ended, or its time ran out; None while it has time left."""
        return session._ending if self._opening.get(session._id) is session else self._table.over(session, now)

    def _knows(self, session: Session) -> bool:
        return session is (
            self.at_hand.get(session._id) or self._opening.get(session._id) or self._finalizer.leaving.get(session._id)
        )

    def absent(self, session_id: str, now: float) -> SessionNotFoundError:
        """The error that says what is known of a session that is not here."""
        ending = self._ending_by_id(checked_id(session_id), now)
        return SessionNotFoundError(session_id) if ending is None else SessionExpiredError(session_id, *ending)

    def _ending_by_id(self, session_id: str, now: float) -> Ending | None:
        session = self.at_hand.get(session_id)
        if session is not None:
            return self._table.over(session, now)
        leaving = self._finalizer.leaving.get(session_id)
        return self._ended.ending_of(session_id, now) if leaving is None else leaving._ending
