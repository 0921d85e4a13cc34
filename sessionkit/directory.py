"""The directory: who is live, under which id and name, and how the others ended. It only looks, and changes nothing."""

from __future__ import annotations

from typing import Any

from .checks import checked_id, checked_name_or_id
from .clock import SteadyClock
from .config import CoordinatorConfig
from .ending import Ending
from .errors import CoordinatorClosedError, SessionExpiredError, SessionNotFoundError
from .finaliser import Finaliser
from .session import ManagedSession
from .table import SessionTable
from .tombstones import Tombstones

Session = ManagedSession[Any]


class Directory:
    """Finds sessions by id and by name.

    The coordinator calls all of it with its lock held and passes the instant in; instants never go back.
    """

    def __init__(self, config: CoordinatorConfig, clock: SteadyClock, finaliser: Finaliser) -> None:
        self._finaliser = finaliser
        self._table = SessionTable(config.max_active_sessions, config.max_lifetime)
        # Those that are still being made have their id, name and place, and nobody finds them.
        self._opening: dict[str, Session] = {}
        self._names: dict[str, Session] = {}
        self._tombstones = Tombstones(lambda: clock.latest)
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
    def in_memory(self) -> int:
        """How many sessions are here, those included whose time has run out."""
        return len(self._table)

    def snapshot(self) -> list[Session]:
        """All live sessions, in no particular order, once nobody is left to be set aside."""
        return self._table.snapshot()

    def everyone(self) -> list[Session]:
        """All sessions that have not ended, also those whose time has run out."""
        return self._table.everyone()

    def removable(self) -> int:
        """How many sessions a cleanup would remove, once nobody is left to be set aside."""
        return self._table.removable + self._finaliser.ready

    def is_live(self, session_id: object, now: float) -> bool:
        """Whether a live session has this id."""
        session = self._table.get(session_id) if isinstance(session_id, str) else None
        return session is not None and self._table.ending_of(session, now) is None

    def find(self, session_id: str, now: float) -> Session:
        """The live session with this id. Raises `SessionNotFoundError`, or its child if the session has ended."""
        self.check_open()
        session = self._table.get(session_id)
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
