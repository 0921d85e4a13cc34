"""Several callers that ask for one session at once, of which the first makes it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from sessionkit import (
    ManagedSession,
    SessionBusyError,
    SessionCoordinator,
    SessionExistsError,
    SessionLimitError,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, in_thread, one_minute, wait_until


class Factory:
    """A resource factory that a test lets go on, and have fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)
        self.failing = False

    def __call__(self, _session: ManagedSession[Any]) -> str:
        self.calls += 1
        number, fails = self.calls, self.failing
        self.entered.release()
        assert self.may_go_on.acquire(timeout=WAIT)
        if fails:
            raise ValueError("no kernel today")
        return f"kernel {number}"


@pytest.fixture
def factory() -> Factory:
    return Factory()


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory, factory: Factory) -> SessionCoordinator[Any]:
    return session_coordinator(one_minute(), resource_factory=factory)


def waiting(coordinator: SessionCoordinator[Any], pool: ThreadPoolExecutor) -> Future[Any]:
    """A second caller, which waits."""
    entered = threading.Event()

    def ask() -> Any:
        entered.set()
        return coordinator.get_or_create_session("u1", timeout=WAIT)

    future = pool.submit(ask)
    assert entered.wait(WAIT)
    return future


def test_get_or_create_session_gives_all_callers_the_same_session(
    coordinator: SessionCoordinator[Any], factory: Factory, session_clock: ManualClock
) -> None:
    """The second one waits for the first one's factory; later ones find it, and do not touch it."""
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(coordinator.get_or_create_session, "u1", "nb", data={"n": 1}, session_timeout=5)
        assert factory.entered.acquire(timeout=WAIT)
        others = [waiting(coordinator, pool) for _ in range(2)]
        assert not any(other.done() for other in others)
        factory.may_go_on.release()
        session = first.result(WAIT)
        assert [other.result(WAIT) for other in others] == [session, session]
    session_clock.advance(3)
    assert coordinator.get_or_create_session("u1", "another", data={"n": 2}) is session
    assert (session.name, session.data, session.session_timeout) == ("nb", {"n": 1}, 5)
    assert session.resource == "kernel 1"
    assert session.metadata.last_active == 0
    assert factory.calls == 1


def test_if_the_first_caller_fails_the_second_tries_itself(
    coordinator: SessionCoordinator[Any], factory: Factory
) -> None:
    """Of several callers that get or create a session at once, one makes it, and all get the same; if it fails, the
    next one tries.

    The error is the first one's; the second one gets a session of its own making.
    """
    factory.failing = True
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(coordinator.get_or_create_session, "u1")
        assert factory.entered.acquire(timeout=WAIT)
        factory.failing = False
        second = waiting(coordinator, pool)
        factory.may_go_on.release(2)
        with pytest.raises(ValueError, match="no kernel today"):
            first.result(WAIT)
        assert second.result(WAIT).resource == "kernel 2"


def test_a_wait_that_takes_too_long(coordinator: SessionCoordinator[Any], factory: Factory) -> None:
    """It raises SessionBusyError after its timeout, and what is being made goes on; in an event loop, at once."""

    async def in_a_loop() -> None:
        with pytest.raises(SessionBusyError, match=r"cannot be had at once.*event loop.*asyncio\.to_thread"):
            coordinator.get_or_create_session("u1")

    with in_thread(lambda: coordinator.create_session(session_id="u1")) as first:
        assert factory.entered.acquire(timeout=WAIT)
        for timeout in (0, 0.001):
            with pytest.raises(SessionBusyError, match="'u1' is being made, or is to leave"):
                coordinator.get_or_create_session("u1", timeout=timeout)
        asyncio.run(in_a_loop())
        factory.may_go_on.release()
        assert coordinator.get_or_create_session("u1", timeout=WAIT) is first.result(WAIT)


def test_a_session_that_is_closing_is_waited_for(session_coordinator: CoordinatorFactory) -> None:
    """Its id is free when its close callback has run, or when it is given back."""
    entered, leave = threading.Event(), threading.Event()

    def close(session: ManagedSession[Any], _cause: object) -> None:
        entered.set()
        assert leave.wait(WAIT)

    coordinator: SessionCoordinator[Any] = session_coordinator(one_minute(), on_close=close)
    former = coordinator.create_session(session_id="u1")
    with ThreadPoolExecutor(2) as pool:
        closing = pool.submit(coordinator.close_session, "u1")
        assert entered.wait(WAIT)
        second = waiting(coordinator, pool)
        assert not second.done()
        leave.set()
        session = second.result(WAIT)
        closing.result(WAIT)
        assert session is not former
        assert session.ended is None
        checkout = coordinator.checkout("u1")
        checkout.__enter__()
        coordinator.close_session("u1")
        third = waiting(coordinator, pool)
        assert not third.done()
        checkout.__exit__()
        assert third.result(WAIT) not in (former, session)


def test_a_caller_does_not_wait_for_itself(session_coordinator: CoordinatorFactory) -> None:
    """In the factory, in the close callback and within a checkout of a session that was closed, it is told."""
    refused: list[str] = []

    def ask(where: str) -> None:
        with pytest.raises(SessionBusyError, match="this call, which waits for that, is part of it"):
            coordinator.get_or_create_session("u1")
        refused.append(where)

    coordinator: SessionCoordinator[Any] = session_coordinator(
        one_minute(), resource_factory=lambda session: ask("factory"), on_close=lambda session, cause: ask("callback")
    )
    coordinator.get_or_create_session("u1")
    with coordinator.checkout("u1"):
        coordinator.close_session("u1")
        ask("checkout")
    assert refused == ["factory", "checkout", "callback"]


def test_what_else_is_in_the_way_is_said(session_coordinator: CoordinatorFactory) -> None:
    """A name that another session has, a limit, and wrong arguments."""
    coordinator: SessionCoordinator[Any] = session_coordinator(one_minute(max_active_sessions=2))
    coordinator.create_session("nb")
    with pytest.raises(SessionExistsError, match="name 'nb'"):
        coordinator.get_or_create_session("u1", "nb")
    coordinator.get_or_create_session("u1")
    with pytest.raises(SessionLimitError):
        coordinator.get_or_create_session("u2")
    with pytest.raises(TypeError, match="timeout"):
        coordinator.get_or_create_session("u1", timeout="soon")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="session id"):
        coordinator.get_or_create_session("no id!")


def test_an_expired_session_is_made_anew(
    coordinator: SessionCoordinator[Any], factory: Factory, session_clock: ManualClock
) -> None:
    """Expiry is a fact about time: nobody has to clean up first."""
    factory.may_go_on.release(2)
    first = coordinator.get_or_create_session("u1")
    session_clock.advance(61)
    assert coordinator.get_or_create_session("u1") is not first
    wait_until(lambda: factory.calls == 2)
