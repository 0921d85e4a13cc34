"""The live object that a session owns: made by a factory, closed by a callback."""

from __future__ import annotations

import logging
import threading
from contextlib import nullcontext
from pathlib import Path
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
    SessionLimitError,
    SessionNotFoundError,
    SessionState,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, Closings, in_thread, lock_is_free, one_minute


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


def test_a_refused_creation_finalizes_whom_it_found_expired(session_clock: ManualClock) -> None:
    """Who has the name no more leaves, and channels are told, though another session has the id still."""
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
    """The close callback of whoever made room may take long; the new session has its full timeout after it."""
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


@pytest.mark.parametrize("cause", list(RemovalCause))
def test_on_close_is_called_once_with_the_cause_outside_the_lock(
    cause: RemovalCause, session_coordinator: CoordinatorFactory, session_clock: ManualClock, tmp_path: Path
) -> None:
    """Whatever the cause, on_close gets the session with its resource once, while the lock is free."""
    calls: list[Any] = []

    def on_close(session: ManagedSession[Any], why: RemovalCause) -> None:
        calls.append((session.name, session.resource, session.state, why, lock_is_free(coordinator)))

    passivates = cause is RemovalCause.PASSIVATED
    coordinator = session_coordinator(
        one_minute(
            max_active_sessions=1,
            max_lifetime=100,
            on_full="passivate" if passivates else "evict",
        ),
        store=SQLiteStore(tmp_path / "sessions.db") if passivates else None,
        resource_factory=lambda session: lock_is_free(coordinator) and f"agent of {session.name}",
        on_close=on_close,
    )
    session = coordinator.create_session("support")
    if cause is RemovalCause.IDLE:
        session_clock.advance(61)
        coordinator.cleanup_inactive_sessions()
    elif cause is RemovalCause.LIFETIME:
        with coordinator.checkout(session.id):
            session_clock.advance(101)
    elif cause in (RemovalCause.CAPACITY, RemovalCause.PASSIVATED):
        coordinator.create_session("other")
    elif cause is RemovalCause.CLOSED:
        coordinator.close_session(session.id)
    coordinator.close()

    assert calls[0] == ("support", "agent of support", SessionState.CLOSED, cause, True)
    assert [name for name, *_ in calls].count("support") == 1
    assert session.resource is None
    assert coordinator.stats().removed[cause] >= 1


def test_an_on_close_that_raises_is_logged_and_counted_and_the_rest_goes_on(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing callback stops neither the removal of its session nor that of the others."""
    asked: list[str | None] = []

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        asked.append(session.name)
        if session.name == "b":
            raise OSError("the agent hangs")

    coordinator = session_coordinator(one_minute(), on_close=on_close)
    names = ["a", "b", "c"]
    failing_id = [coordinator.create_session(name).id for name in names][1]
    session_clock.advance(61)
    with coordinator.subscribe() as channel:
        assert coordinator.cleanup_inactive_sessions() == 3
        assert [event.kind for event in iter(lambda: channel.get(timeout=0), None)] == [EventKind.REMOVED] * 3
    assert asked == names
    assert coordinator.stats().close_failures == 1
    assert coordinator.stats().removed[RemovalCause.IDLE] == 3
    [record] = caplog.records
    assert failing_id in record.getMessage()
    assert record.name == "sessionkit"
    assert record.exc_info is not None


def test_an_interrupted_on_close_is_counted_and_not_repeated(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Ctrl-C in a callback reaches the caller; that session is done with, and the next cleanup removes the others."""
    closings = Closings()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        if session.name == "b":
            raise KeyboardInterrupt

    coordinator = session_coordinator(one_minute(), on_close=on_close)
    for name in ("a", "b", "c", "d"):
        coordinator.create_session(name)
    session_clock.advance(61)

    with pytest.raises(KeyboardInterrupt):
        coordinator.cleanup_inactive_sessions()
    assert [name for name, _ in closings] == ["a", "b"]
    assert (len(coordinator), coordinator.stats().close_interruptions) == (0, 1)
    assert coordinator.cleanup_inactive_sessions(dry_run=True) == 2
    assert coordinator.cleanup_inactive_sessions() == 2
    assert [name for name, _ in closings] == ["a", "b", "c", "d"]
    assert coordinator.stats().removed[RemovalCause.IDLE] == 4


def test_an_id_that_waits_for_its_cleanup_can_be_used_again(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A session that an interruption left to the next cleanup is finalized first when its id is created again."""
    closings = Closings()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        if session.id == "first":
            raise KeyboardInterrupt

    coordinator = session_coordinator(one_minute(), on_close=on_close)
    for session_id in ("first", "second"):
        coordinator.create_session(session_id=session_id)
    session_clock.advance(61)
    with pytest.raises(KeyboardInterrupt):
        coordinator.cleanup_inactive_sessions()
    coordinator.create_session(session_id="second")
    assert closings == [("first", RemovalCause.IDLE), ("second", RemovalCause.IDLE)]
    assert coordinator.cleanup_inactive_sessions(dry_run=True) == 0


def test_an_interrupted_close_is_finished_by_the_next(session_coordinator: CoordinatorFactory) -> None:
    """Ctrl-C in a callback during close() leaves the rest for another close(), which calls nobody twice."""
    closings = Closings()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        if session.name == "a":
            raise KeyboardInterrupt

    coordinator = session_coordinator(on_close=on_close)
    coordinator.create_session("a")
    coordinator.create_session("b")
    channel = coordinator.subscribe()
    with pytest.raises(KeyboardInterrupt):
        coordinator.close()
    coordinator.close()

    assert closings == [("a", RemovalCause.SHUTDOWN), ("b", RemovalCause.SHUTDOWN)]
    assert channel.closed


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


def test_callbacks_may_call_the_coordinator(session_coordinator: CoordinatorFactory) -> None:
    """A callback may create, close, look and even close the coordinator, from within its own removal."""
    closings = Closings()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        if session.name == "first":
            coordinator.create_session("made in the callback")
            coordinator.close_session(other.id)
        elif session.name == "last":
            coordinator.close()

    coordinator = session_coordinator(on_close=on_close)
    first, other, last = (coordinator.create_session(name) for name in ("first", "other", "last"))
    coordinator.close_session(first.id)
    assert closings == [("first", RemovalCause.CLOSED), ("other", RemovalCause.CLOSED)]
    coordinator.close_session(last.id)

    assert closings[2:] == [("last", RemovalCause.CLOSED), ("made in the callback", RemovalCause.SHUTDOWN)]
    with pytest.raises(CoordinatorClosedError):
        coordinator.create_session()


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


def test_a_log_handler_that_raises_stops_no_removal(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the callback fails, and logging that fails too, all others are closed all the same."""

    class Raising(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            raise OSError("no disk")

    closings = Closings()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        raise OSError("the agent hangs")

    monkeypatch.setattr(logging.getLogger("sessionkit"), "handlers", [Raising()])
    coordinator = session_coordinator(on_close=on_close)
    for name in ("a", "b", "c"):
        coordinator.create_session(name)
    coordinator.close()
    assert [name for name, _ in closings] == ["a", "b", "c"]
    assert coordinator.stats().close_failures == 3


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


def test_a_session_that_is_given_back_again_is_closed_once(session_coordinator: CoordinatorFactory) -> None:
    """As after an interruption: it ended while it was checked out, and whoever comes second has nothing to do."""
    closings = Closings()
    coordinator = session_coordinator(on_close=closings)
    session = coordinator.create_session("support")
    checkout = coordinator.checkout(session.id)
    checkout.__enter__()
    coordinator.close_session(session.id)
    with coordinator._lock:
        for _ in range(2):
            coordinator._roster.give_back(session, checkout, coordinator._clock.latest)
    assert not closings
    checkout.__exit__()
    assert closings == [("support", RemovalCause.CLOSED)]
