"""The two coordinators: one keeps who visits, the other one keeps their chats."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from sessionkit import CoordinatorConfig, ManagedSession, SessionCoordinator, stores

from .adventure import Adventure
from .stories import STORIES

TIMEOUT = timedelta(minutes=10)
"""How long a chat lives whose visitor is away, unless told otherwise."""

VISITOR_TIMEOUT = timedelta(days=30)


def visitors_in(place: Path | str, clock: Callable[[], float] | None = None) -> SessionCoordinator:
    """Keeps `flask.session`, which is data alone: which chats a visitor has. For a long time."""
    config = CoordinatorConfig(session_timeout=VISITOR_TIMEOUT, on_full="passivate")
    return SessionCoordinator(config, clock=clock, store=_store(place, "visitors"))


def chats_in(
    place: Path | str, timeout: timedelta = TIMEOUT, clock: Callable[[], float] | None = None
) -> SessionCoordinator[Adventure]:
    """Keeps the chats, each with an adventure that is live. For a short time, if nobody says anything."""
    config = CoordinatorConfig(
        session_timeout=timeout,
        cleanup_interval=min(timeout, timedelta(minutes=1)),
        # So many adventures are in memory at once; more of them wait in the store, for as long as their time runs.
        max_active_sessions=200,
        on_full="passivate",
    )
    store = _store(place, "chats")
    return SessionCoordinator(config, clock=clock, store=store, resource_factory=adventure_of)


def _store(place: Path | str, what: str) -> stores.Store:
    """One of the stores in a directory, or on the Redis server that a URL names."""
    if isinstance(place, Path):
        return stores.SQLiteStore(place / f"{what}.db")
    return stores.RedisStore(place, prefix=f"candlelight-{what}")


def adventure_of(chat: ManagedSession[Adventure]) -> Adventure:
    """The live adventure of a chat that comes back from the store."""
    return Adventure(STORIES[chat.data["story"]], chat.data.get("state"))
