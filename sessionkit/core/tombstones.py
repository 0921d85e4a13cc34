"""What is remembered of sessions that have ended."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

from ..errors import Ending

LIMIT = 1024
"""How many ended sessions are remembered."""

SECONDS = 3600.0
"""How long each of them is remembered, in seconds of the coordinator's clock."""

T = TypeVar("T")


class Tombstones:
    """The endings of the sessions that ended last, by id and by name. Guarded by the coordinator's lock.

    Not a `cachetools.TTLCache`, which looks for what has expired at every entry and would take most of the time of a
    `close_session`: these are bounded in number, and their age is looked at when somebody asks.
    """

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, tuple[float, Ending]] = OrderedDict()
        self._id_by_name: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def add(self, session_id: str, name: str | None, ending: Ending, now: float) -> None:
        """Remember how a session ended."""
        _enter(self._by_id, session_id, (now, ending))
        if name is not None:
            _enter(self._id_by_name, name, (now, session_id))

    def drop(self, session_id: str) -> None:
        """Remember nothing of the session any more."""
        self._by_id.pop(session_id, None)

    def ending_of(self, session_id: str, now: float) -> Ending | None:
        """How the session with this id ended, if that is remembered."""
        return _recall(self._by_id, session_id, now)

    def id_of(self, name: str, now: float) -> str | None:
        """The id of the last session of this name that ended, if that is remembered."""
        return _recall(self._id_by_name, name, now)


def _enter(entries: OrderedDict[str, tuple[float, T]], key: str, entry: tuple[float, T]) -> None:
    if key in entries:
        entries.move_to_end(key)
    entries[key] = entry
    if len(entries) > LIMIT:
        entries.popitem(last=False)


def _recall(entries: OrderedDict[str, tuple[float, T]], key: str, now: float) -> T | None:
    noted_at, what = entries.get(key, (None, None))
    return what if noted_at is not None and now - noted_at < SECONDS else None
