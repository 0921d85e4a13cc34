"""What is remembered of sessions that have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from cachetools import Cache, TLRUCache

from ..errors import Ending

LIMIT = 1024
"""How many ended sessions are remembered."""

SECONDS = 3600.0
"""How long each of them is remembered, in seconds of the coordinator's clock."""

T = TypeVar("T")


class EndedSessions:
    """How the sessions that ended last did so, by id and by name: what `SessionExpiredError` tells.

    Guarded by the coordinator's lock. The instants that are passed in never go back.
    """

    def __init__(self) -> None:
        # An end costs one step, however many there are: it is filed at the next question.
        self._noted: deque[tuple[str, str | None, Ending, float]] = deque(maxlen=LIMIT)
        self.note: Callable[[tuple[str, str | None, Ending, float]], None] = self._noted.append
        """Remember how a session ended: given its id, its name, the ending, and the time now."""
        # The instant that the caches go by, in a list because a timer that held this object would keep it alive.
        self._instant = instant = [0.0]
        self._endings: TLRUCache[str, Ending] = TLRUCache(LIMIT, _an_hour_on, lambda: instant[0])
        self._ids: TLRUCache[str, str] = TLRUCache(LIMIT, _an_hour_on, lambda: instant[0])

    def forget(self, session_id: str) -> None:
        """Remember nothing of the session with this id: it lives on elsewhere."""
        self._file()
        self._endings.pop(session_id, None)

    def ending_of(self, session_id: str, now: float) -> Ending | None:
        """How the session with this id ended, if that is remembered."""
        self._file()
        self._instant[0] = now
        return _look_up(self._endings, session_id)

    def id_of(self, name: str, now: float) -> str | None:
        """The id of the last session of this name that ended, if that is remembered."""
        self._file()
        self._instant[0] = now
        return _look_up(self._ids, name)

    def _file(self) -> None:
        while self._noted:
            session_id, name, ending, noted_at = self._noted.popleft()
            self._instant[0] = noted_at
            self._endings[session_id] = ending
            if name is not None:
                self._ids[name] = session_id


def _an_hour_on(_key: str, _value: object, noted_at: float) -> float:
    return noted_at + SECONDS


def _look_up(cache: TLRUCache[str, T], key: str) -> T | None:
    # Past the cache's own `__getitem__`: the first to be forgotten is the one that ended first, whatever was asked for.
    return Cache.__getitem__(cache, key) if key in cache else None
