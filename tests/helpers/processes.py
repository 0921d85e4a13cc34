"""Coordinators that stand for processes, with live resources on one store, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sessionkit import CoordinatorConfig, ManagedSession, RemovalCause, SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from .support import WatchedStore


class Agent:
    """A resource that was made of a session's data, and goes by what it knew then."""

    def __init__(self, session: ManagedSession[Any]) -> None:
        self.knew = dict(session.data)


class Closing(NamedTuple):
    """What a close callback was called with."""

    cause: RemovalCause
    data: dict[str, Any]
    resource: Agent | None


class Process:
    """A coordinator that stands for a process: it has a store of its own on the common file."""

    def __init__(
        self, make: CoordinatorFactory, path: Path, name: str, *, resources: bool = True, **options: Any
    ) -> None:
        self.made: list[Agent] = []
        self.closed: list[Closing] = []
        self.while_letting_go: Callable[[ManagedSession[Any]], object] = lambda session: None
        self.while_making: Callable[[ManagedSession[Any]], object] = lambda session: None
        self.store = WatchedStore(SQLiteStore(path))
        self.sessions: SessionCoordinator[Any] = make(
            CoordinatorConfig(session_timeout=60, cleanup_interval=10, instance_name=name, **options),
            store=self.store,
            resource_factory=self._make if resources else None,
            on_close=self._close,
        )

    def _make(self, session: ManagedSession[Any]) -> Agent:
        self.while_making(session)
        self.made.append(Agent(session))
        return self.made[-1]

    def _close(self, session: ManagedSession[Any], cause: RemovalCause) -> None:
        self.closed.append(Closing(cause, dict(session.data), session.resource))
        if cause is RemovalCause.PASSIVATED:
            self.while_letting_go(session)

    def add(self, session_id: str, value: object, **options: Any) -> Agent | None:
        """Append to a list in the data, in a checkout; gives the resource that it had."""
        with self.sessions.checkout(session_id, **options) as session:
            session.data["said"] = [*session.data.get("said", []), value]
            return session.resource  # type: ignore[no-any-return]  # Any

    def instances(self, session_id: str) -> tuple[str, ...]:
        """Who else has it in memory, as this one sees it."""
        found = self.store.store.load(session_id, self.sessions._records.instance)  # type: ignore[union-attr]  # it has a store
        assert found is not None
        return found.elsewhere


Maker = Callable[..., Process]
Pair = tuple[Process, Process]
Call = Callable[[SessionCoordinator[Any], str], Any]


def checked_out(**options: Any) -> Call:
    """Check it out and give it back."""

    def call(sessions: SessionCoordinator[Any], session_id: str) -> Any:
        with sessions.checkout(session_id, **options) as session:
            return session

    return call


LOOKS: dict[str, Call] = {
    "get_session": lambda sessions, session_id: sessions.get_session(session_id),
    "checkout": checked_out(),
    "shared": checked_out(exclusive=False),
    "timeout": checked_out(timeout=0),
    "switch_session": lambda sessions, session_id: sessions.switch_session(session_id),
    "by name": lambda sessions, _: sessions.switch_session("support"),
    "rotate_session": lambda sessions, session_id: sessions.rotate_session(session_id, "another-id", timeout=0),
}
"""What sees how a session stands in the store."""

TOUCHES: dict[str, Call] = {
    "touch_session": lambda sessions, session_id: sessions.touch_session(session_id),
    "save_session": lambda sessions, session_id: sessions.save_session(session_id),
}
"""What does not."""
