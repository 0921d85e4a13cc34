"""What is remembered of sessions that have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cachetools

from .ending import Ending
from .session import ManagedSession

LIMIT = 1024
"""How many ended sessions are remembered."""

SECONDS = 3600.0
"""How long each of them is remembered, in seconds of the coordinator's clock."""


class Tombstones:
    """The endings of the sessions that ended last, by id and by name. Guarded by the coordinator's lock."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._by_id: cachetools.TTLCache[str, Ending] = cachetools.TTLCache(LIMIT, SECONDS, timer)
        self._id_by_name: cachetools.TTLCache[str, str] = cachetools.TTLCache(LIMIT, SECONDS, timer)

    def add(self, session: ManagedSession[Any], ending: Ending) -> None:
        """Remember how a session ended."""
        self._by_id[session.id] = ending
        if session.name is not None:
            self._id_by_name[session.name] = session.id

    def ending_of(self, session_id: str) -> Ending | None:
        """How the session with this id ended, if that is remembered."""
        return self._by_id.get(session_id)

    def id_of(self, name: str) -> str | None:
        """The id of the last session of this name that ended, if that is remembered."""
        return self._id_by_name.get(name)
