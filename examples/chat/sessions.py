"""The two coordinators: one keeps who visits, the other one keeps their chats."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from sessionkit import CoordinatorConfig, ManagedSession, SessionCoordinator
from sessionkit.stores import SQLiteStore

from .adventure import Adventure
from .stories import STORIES

VISITOR_TIMEOUT = timedelta(days=30)


def visitors_in(directory: Path, clock: Callable[[], float] | None = None) -> SessionCoordinator:
    """Keeps `flask.session`, which is data alone: which chats a visitor has. For a long time."""
    config = CoordinatorConfig(session_timeout=VISITOR_TIMEOUT, on_full="passivate")
    return SessionCoordinator(config, clock=clock, store=SQLiteStore(directory / "visitors.db"))


def chats_in(
    directory: Path, timeout: timedelta, clock: Callable[[], float] | None = None
) -> SessionCoordinator[Adventure]:
    """Keeps the chats, each with an adventure that is live. For a short time, if nobody says anything."""
    config = CoordinatorConfig(
        session_timeout=timeout,
        cleanup_interval=min(timeout, timedelta(minutes=1)),
        # So many adventures are in memory at once; more of them wait in the store, for as long as their time runs.
        max_active_sessions=200,
        on_full="passivate",
    )
    store = SQLiteStore(directory / "chats.db")
    return SessionCoordinator(config, clock=clock, store=store, resource_factory=adventure_of)


def adventure_of(chat: ManagedSession[Adventure]) -> Adventure:
    """The live adventure of a chat that comes back from the store."""
    return Adventure(STORIES[chat.data["story"]], chat.data.get("state"))
