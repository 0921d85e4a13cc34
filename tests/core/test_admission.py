"""How sessions are created: how many may live at once, which one makes room, and how their resources are made."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    EventKind,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from sessionkit.config import OnFull
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, Closings, all_at_once, in_thread, one_minute, system_time


def test_reject_refuses_the_session_that_is_too_many(session_coordinator: CoordinatorFactory) -> None:
    """At the limit create_session raises SessionLimitError with the limit, and nothing has changed."""
    coordinator = session_coordinator(CoordinatorConfig(max_active_sessions=2))
    first = coordinator.create_session("first")
    coordinator.create_session("second")

    with pytest.raises(SessionLimitError, match="max_active_sessions=2"):
        coordinator.create_session("third")
    assert len(coordinator) == 2
    coordinator.close_session(first.id)
    assert coordinator.create_session("third").name == "third"


def test_expired_sessions_never_count(session_coordinator: CoordinatorFactory, session_clock: ManualClock) -> None:
    """A session past its time makes room at once, cleanup or not, and is finalized on the way."""
    closings = Closings()
    coordinator = session_coordinator(one_minute(max_active_sessions=2), on_close=closings)
    coordinator.create_session("first")
    session_clock.advance(30)
    coordinator.create_session("second")
    session_clock.advance(31)

    coordinator.create_session("third")

    assert closings == [("first", RemovalCause.IDLE)]
    with pytest.raises(SessionLimitError):
        coordinator.create_session("fourth")


@pytest.mark.parametrize("on_full", ["reject", "evict"])
def test_an_expired_session_makes_room_wherever_it_stands(on_full: OnFull) -> None:
    """It need not be the one that the order of sessions has first: those before it may have moved on unnoticed."""
    clock, closings, limit = ManualClock(), Closings(), 250
    config = one_minute(max_active_sessions=limit, on_full=on_full)
    with system_time(clock), closing(SessionCoordinator[Any](config, on_close=closings)) as coordinator:
        sessions = [coordinator.create_session(f"{number}") for number in range(limit)]
        clock.advance(30)
        for session in sessions[:-1]:
            session.touch()
        clock.advance(31)

        coordinator.create_session("new")

        assert closings == [(sessions[-1].name, RemovalCause.IDLE)]
        assert len(coordinator) == limit


def test_memory_is_bounded_by_the_limit_without_any_cleanup(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """With expired sessions that nobody cleans up, no more of them are in memory than the limit."""

    class Agent:
        """What a session owns."""

    agents: weakref.WeakSet[Agent] = weakref.WeakSet()

    def factory(_: ManagedSession[Any]) -> Agent:
        agents.add(agent := Agent())
        return agent

    coordinator = session_coordinator(one_minute(max_active_sessions=5), resource_factory=factory)
    for _ in range(20):
        coordinator.create_session()
        session_clock.advance(25)
        assert len(coordinator) <= 3
        assert len(agents) <= 5
    assert coordinator.stats().created == 20


def test_evict_removes_the_least_recently_active(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """With on_full="evict" the session that was active least recently goes, whatever its own timeout."""
    closings = Closings()
    coordinator = session_coordinator(
        one_minute(max_active_sessions=3, on_full="evict"),
        on_close=closings,
    )
    sessions = {}
    for name, timeout in (("a", 60), ("b", 600), ("c", 60)):
        sessions[name] = coordinator.create_session(name, session_timeout=timeout)
        session_clock.advance(1)
    coordinator.touch_session(sessions["a"].id)

    coordinator.create_session("d")
    coordinator.create_session("e")

    assert closings == [("b", RemovalCause.CAPACITY), ("c", RemovalCause.CAPACITY)]
    with pytest.raises(SessionExpiredError, match="evicted to make room, because 3 sessions may live at once"):
        coordinator.get_session(sessions["b"].id)


def test_evict_leaves_checked_out_sessions_alone(session_coordinator: CoordinatorFactory) -> None:
    """A checked-out session is never evicted; if all are checked out, SessionLimitError says so."""
    coordinator = session_coordinator(CoordinatorConfig(max_active_sessions=2, on_full="evict"))
    held = coordinator.create_session()
    resting = coordinator.create_session()
    with coordinator.checkout(held.id):
        third = coordinator.create_session()
        assert set(coordinator.list_sessions()) == {held, third}
        assert resting.id not in coordinator
        with (
            coordinator.checkout(third.id),
            pytest.raises(SessionLimitError, match="all are checked out, or still being made; wait until"),
        ):
            coordinator.create_session()


@pytest.mark.parametrize("on_full", ["reject", "evict"])
def test_no_number_of_threads_creating_at_once_exceeds_the_limit(
    on_full: Any, session_coordinator: CoordinatorFactory
) -> None:
    """No number of threads creating at once exceeds the limit.

    The check and the insertion are one decision, also while factories of several threads run side by side.
    """
    seen: list[int] = []
    at_work: set[str] = set()

    def factory(session: ManagedSession[Any]) -> None:
        at_work.add(session.id)
        seen.append(len(coordinator) + len(at_work))
        at_work.remove(session.id)

    coordinator = session_coordinator(
        CoordinatorConfig(max_active_sessions=3, on_full=on_full), resource_factory=factory
    )

    def create_ten() -> int:
        made = 0
        for _ in range(10):
            try:
                coordinator.create_session()
            except SessionLimitError:
                continue
            made += 1
        return made

    made = sum(all_at_once(*itertools.repeat(create_ten, 8)))

    assert max(seen) <= 3
    assert len(coordinator) == 3
    removed = coordinator.stats().removed[RemovalCause.CAPACITY]
    assert made == coordinator.stats().created == 3 + removed


def test_none_means_no_limit(session_coordinator: CoordinatorFactory) -> None:
    """With max_active_sessions=None any number of sessions may live."""
    coordinator = session_coordinator(CoordinatorConfig(max_active_sessions=None))
    for _ in range(1001):
        coordinator.create_session()
    assert len(coordinator) == 1001


def test_the_factory_makes_the_resource_of_each_session(session_coordinator: CoordinatorFactory) -> None:
    """The factory is called with the new session, which has its id, name and data; a given resource needs none."""
    coordinator = session_coordinator(resource_factory=lambda session: ("agent", session.name, session.data["lang"]))
    made = coordinator.create_session("support", data={"lang": "en"})
    given = coordinator.create_session(resource="mine")

    assert made.resource == ("agent", "support", "en")
    assert given.resource == "mine"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_factory_that_raises_leaves_nothing_behind(
    error: type[BaseException], session_coordinator: CoordinatorFactory
) -> None:
    """After the factory raised, the name, the id and the place are free, and nobody was told of a session."""

    def factory(_: ManagedSession[Any]) -> None:
        raise error("no agent today")

    closings = Closings()
    coordinator = session_coordinator(
        CoordinatorConfig(max_active_sessions=1), resource_factory=factory, on_close=closings
    )
    with coordinator.subscribe() as channel:
        for name in ("support", None):
            with pytest.raises(error, match="no agent today"):
                coordinator.create_session(name, session_id="s-1")
        assert channel.get(timeout=0) is None
    assert (len(coordinator), coordinator.stats().created, closings) == (0, 0, [])
    with pytest.raises(SessionNotFoundError):
        coordinator.get_session("s-1")
    assert coordinator.create_session("support", session_id="s-1", resource="given").resource == "given"


def test_a_factory_that_returns_a_coroutine_leaves_nothing_behind(session_coordinator: CoordinatorFactory) -> None:
    """It was not run, and is no resource: the creation says what to do. Python warns of nothing."""
    closings = Closings()

    async def make(session: ManagedSession[Any]) -> str:
        return f"agent of {session.name}"

    coordinator = session_coordinator(
        CoordinatorConfig(max_active_sessions=1), resource_factory=lambda session: make(session), on_close=closings
    )
    for _ in range(2):
        with pytest.raises(
            TypeError, match="resource_factory must be a plain function, and returned <coroutine object "
        ):
            coordinator.create_session("support", session_id="s-1")
        gc.collect()
    assert (len(coordinator), coordinator.stats().created, closings) == (0, 0, [])
    assert coordinator.create_session("support", session_id="s-1", resource="made by hand").name == "support"


def test_a_resource_may_be_something_to_await(session_coordinator: CoordinatorFactory) -> None:
    """Some clients can be awaited, and live otherwise: only a coroutine is known to do nothing by itself."""

    class Client:
        def __await__(self) -> Iterator[Any]:
            raise NotImplementedError

    assert isinstance(session_coordinator(resource_factory=lambda _: Client()).create_session().resource, Client)


def test_a_refused_creation_finalizes_what_it_found_expired(session_clock: ManualClock) -> None:
    """The session that lost the name by expiring leaves, and channels are told, though another session has the id."""
    closings = Closings()
    config = one_minute()
    with SessionCoordinator[Any](config, clock=session_clock, on_close=closings) as coordinator:
        coordinator.create_session("support")
        coordinator.create_session(session_id="taken", session_timeout=1000)
        channel = coordinator.subscribe()
        session_clock.advance(61)
        with pytest.raises(SessionExistsError, match="id 'taken'"):
            coordinator.create_session("support", session_id="taken")
        assert closings == [("support", RemovalCause.IDLE)]
        event = channel.get(0)
        assert event is not None
        assert event.kind is EventKind.REMOVED


def test_a_session_is_not_visible_before_its_resource_is_ready(session_coordinator: CoordinatorFactory) -> None:
    """While the factory runs, the session has its place, name and id, and nobody finds it."""
    found: list[object] = []

    def factory(session: ManagedSession[Any]) -> str:
        found.extend([session.id in coordinator, len(coordinator), coordinator.list_sessions()])
        with pytest.raises(SessionNotFoundError):
            coordinator.get_session(session.id)
        with pytest.raises(SessionNotFoundError):
            coordinator.switch_session("support")
        with pytest.raises(SessionExistsError, match="name"):
            coordinator.create_session("support", resource="other")
        with pytest.raises(SessionExistsError, match="id"):
            coordinator.create_session(session_id=session.id, resource="other")
        with pytest.raises(SessionLimitError):
            coordinator.create_session(resource="other")
        session.record_message()
        return "agent"

    coordinator = session_coordinator(CoordinatorConfig(max_active_sessions=1), resource_factory=factory)
    session = coordinator.create_session("support")

    assert found == [False, 0, []]
    assert coordinator.get_session(session.id).metadata.message_count == 1


def test_a_slow_factory_takes_nothing_from_the_session(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """The session's time begins when its resource is ready, however long that took."""
    coordinator = session_coordinator(
        one_minute(max_lifetime=100),
        resource_factory=lambda _: session_clock.advance(500),
    )
    session = coordinator.create_session()

    assert (session.metadata.created_at, session.metadata.last_active) == (500, 500)
    session_clock.advance(60)
    assert session.id in coordinator


def test_a_name_is_kept_for_a_session_that_is_made_for_longer_than_the_lifetime(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """While a factory outlasts every time limit, nobody else gets the name, and the session then lives once."""
    refused: list[type[Exception]] = []

    def factory(session: ManagedSession[Any]) -> None:
        if session.name == "slow":
            session_clock.advance(1000)
            with pytest.raises(SessionExistsError):
                coordinator.create_session("slow")
            refused.append(SessionExistsError)
            coordinator.cleanup_inactive_sessions()

    closings = Closings()
    coordinator = session_coordinator(
        one_minute(max_lifetime=100),
        resource_factory=factory,
        on_close=closings,
    )
    coordinator.create_session("slow")
    assert refused == [SessionExistsError]
    assert len(coordinator) == 1
    session_clock.advance(61)
    assert coordinator.cleanup_inactive_sessions() == 1
    assert closings == [("slow", RemovalCause.IDLE)]


def test_a_slow_close_of_the_evicted_takes_nothing_from_the_new_session(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """The close callback of the session that made room may take long; the new session has its full timeout after it."""
    coordinator = session_coordinator(
        one_minute(max_active_sessions=1, on_full="evict"),
        on_close=lambda session, cause: session_clock.advance(1000),
    )
    coordinator.create_session()
    session = coordinator.create_session()
    assert session.id in coordinator
    assert session.metadata.created_at == 1000


def test_a_clock_that_fails_after_the_factory_loses_no_resource(session_coordinator: CoordinatorFactory) -> None:
    """Once a resource was made, the session comes to be, and closes it in its turn."""
    fails = False

    def clock() -> float:
        if fails:
            raise OSError("no time")
        return 5.0

    def factory(_: ManagedSession[Any]) -> str:
        nonlocal fails
        fails = True
        return "agent"

    closings = Closings()
    coordinator = session_coordinator(clock=clock, resource_factory=factory, on_close=closings)
    session = coordinator.create_session("support")
    fails = False
    assert coordinator.get_session(session.id).resource == "agent"
    coordinator.close()
    assert closings == [("support", RemovalCause.SHUTDOWN)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_an_interrupt_after_the_factory_loses_no_resource(
    error: type[BaseException] | None, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Ctrl-C right after the factory, or a clock gone wrong: the session is there, and is closed in its turn."""
    made = False

    def clock() -> Any:
        if made and error is not None:
            raise error
        return "noon" if made else session_clock()

    def factory(_: ManagedSession[Any]) -> str:
        nonlocal made
        made = True
        return "agent"

    closings = Closings()
    coordinator = session_coordinator(clock=clock, resource_factory=factory, on_close=closings)
    with pytest.raises(error) if error else nullcontext():
        coordinator.create_session("support")
    made = False
    assert [session.resource for session in coordinator.list_sessions()] == ["agent"]
    coordinator.close()
    assert closings == [("support", RemovalCause.SHUTDOWN)]


def test_messages_recorded_by_the_factory_are_counted_and_not_told(session_coordinator: CoordinatorFactory) -> None:
    """No event of a session comes before its creation."""
    coordinator = session_coordinator(resource_factory=lambda session: session.record_message())
    channel = coordinator.subscribe()
    session = coordinator.create_session()
    session.record_message()

    kinds = [event.kind for event in iter(lambda: channel.get(timeout=0), None)]
    assert kinds == [EventKind.CREATED, EventKind.MESSAGE]
    assert session.metadata.message_count == 2


def test_lifetimes_end_in_order_of_readiness(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A session whose factory took long does not hide the end of one that was created meanwhile."""
    started, go_on = threading.Event(), threading.Event()

    def factory(session: ManagedSession[Any]) -> None:
        if session.name == "slow":
            started.set()
            assert go_on.wait(WAIT)

    coordinator = session_coordinator(one_minute(max_lifetime=100), resource_factory=factory)
    with in_thread(coordinator.create_session, "slow"):
        assert started.wait(WAIT)
        session_clock.advance(10)
        coordinator.create_session("fast", session_timeout=1000)
        session_clock.advance(20)
        go_on.set()
    session_clock.advance(81)

    assert coordinator.cleanup_inactive_sessions() == 2
    assert coordinator.stats().removed == dict.fromkeys(RemovalCause, 0) | {
        RemovalCause.LIFETIME: 1,
        RemovalCause.IDLE: 1,
    }


def test_an_interrupt_while_room_is_made_leaves_nothing_behind(session_coordinator: CoordinatorFactory) -> None:
    """Ctrl-C in the callback of an evicted session: the new session is not created, and its name is free."""

    def on_close(*_: Any) -> None:
        raise KeyboardInterrupt

    coordinator = session_coordinator(CoordinatorConfig(max_active_sessions=1, on_full="evict"), on_close=on_close)
    coordinator.create_session("old")
    with pytest.raises(KeyboardInterrupt):
        coordinator.create_session("new")
    assert len(coordinator) == 0
    session = coordinator.create_session("new")
    assert coordinator.list_sessions() == [session]
    with pytest.raises(KeyboardInterrupt):
        coordinator.close()


def test_a_resource_that_was_passed_in_stays_the_callers_if_there_is_no_session(
    session_coordinator: CoordinatorFactory,
) -> None:
    """close() in the middle of a creation: a resource of the caller's is not closed for him."""
    closings = Closings()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        coordinator.close()

    coordinator = session_coordinator(CoordinatorConfig(max_active_sessions=1, on_full="evict"), on_close=on_close)
    coordinator.create_session("old", resource="old agent")
    with pytest.raises(CoordinatorClosedError):
        coordinator.create_session("new", resource="my agent")
    assert closings == [("old", RemovalCause.CAPACITY)]
    assert coordinator.stats().created == 1


def test_a_session_whose_coordinator_closes_during_its_factory_is_closed_too(
    session_coordinator: CoordinatorFactory,
) -> None:
    """close() in the middle of a creation: the resource is closed, and the creator gets CoordinatorClosedError."""
    closings = Closings()

    def factory(_: ManagedSession[Any]) -> str:
        coordinator.close()
        return "agent"

    coordinator = session_coordinator(resource_factory=factory, on_close=closings)
    with pytest.raises(CoordinatorClosedError, match="while session"):
        coordinator.create_session("support")

    assert closings == [("support", RemovalCause.SHUTDOWN)]
    assert coordinator.stats().created == 1
    assert coordinator.stats().removed[RemovalCause.SHUTDOWN] == 1
