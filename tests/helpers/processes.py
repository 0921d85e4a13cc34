"""Coordinators that stand for processes, with live resources on one store; what is asked of them; real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

from sessionkit import CoordinatorConfig, ManagedSession, RemovalCause, SessionCoordinator
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from .support import WAIT, WatchedStore

CONFIG = CoordinatorConfig(session_timeout=60, cleanup_interval=10)
"""What most tests with a store go by."""


def config(**options: Any) -> CoordinatorConfig:
    """The same with other settings besides."""
    return CoordinatorConfig(session_timeout=60, cleanup_interval=10, **options)


OpenStore = Callable[..., WatchedStore]
Restart = Callable[..., SessionCoordinator[Any]]
Pair = tuple[SessionCoordinator[Any], SessionCoordinator[Any]]


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
    """A coordinator that stands for a process: it has a store of its own on the common file, and live resources."""

    def __init__(
        self, make: CoordinatorFactory, store: WatchedStore, name: str | None, *, resources: bool = True, **options: Any
    ) -> None:
        self.made: list[Agent] = []
        self.closed: list[Closing] = []
        self.while_letting_go: Callable[[ManagedSession[Any]], object] = lambda session: None
        self.while_making: Callable[[ManagedSession[Any]], object] = lambda session: None
        self.store = store
        self.sessions: SessionCoordinator[Any] = make(
            config(instance_name=name, **options),
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
        """The names of the other instances that have the session in memory, as this one sees it."""
        found = self.store.store.load(session_id, self.store.instance)
        assert found is not None
        return found.elsewhere


Maker = Callable[..., Process]
Processes = tuple[Process, Process]
Call = Callable[[SessionCoordinator[Any], str], Any]


def checked_out(**options: Any) -> Call:
    """Check the session out and give it back."""

    def call(sessions: SessionCoordinator[Any], session_id: str) -> Any:
        with sessions.checkout(session_id, **options) as session:
            return session

    return call


LOOKS: dict[str, Call] = {
    "get_session": lambda sessions, session_id: sessions.get_session(session_id),
    "checkout": checked_out(),
    "timeout": checked_out(timeout=0),
    "switch_session": lambda sessions, session_id: sessions.switch_session(session_id),
    "by name": lambda sessions, _: sessions.switch_session("support"),
    "rotate_session": lambda sessions, session_id: sessions.rotate_session(session_id, "another-id", timeout=0),
}
"""The calls that compare the session with its record."""

TOUCHES: dict[str, Call] = {
    "touch_session": lambda sessions, session_id: sessions.touch_session(session_id),
    "save_session": lambda sessions, session_id: sessions.save_session(session_id),
}
"""The calls that do not."""


# ---- Real processes


@contextmanager
def processes(number: int, target: Callable[..., Any], *arguments: Any) -> Iterator[list[Any]]:
    """Run a function in several new processes, started at once, and give their results."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(number)
    with ExitStack() as stack:
        pipes = []
        for index in range(number):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_report, args=(sender, barrier, target, index, *arguments))
            process.start()
            stack.callback(process.join, WAIT)
            sender.close()
            pipes.append(receiver)
        yield [receiver.recv() for receiver in pipes]


def _report(sender: Any, barrier: Barrier, target: Callable[..., Any], *arguments: Any) -> None:
    sender.send(target(barrier, *arguments))


@contextmanager
def killed_when_ready(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run work in a child until it says that it is ready, then the block, and then kill the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        work(*arguments, writer)
    os.close(writer)
    assert os.read(reader, 1) == b"!"
    yield
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
