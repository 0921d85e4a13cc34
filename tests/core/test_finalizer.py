"""How sessions are closed: the callback, once, whatever the cause, and what interrupts it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    EventKind,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionExpiredError,
    SessionState,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import interruptions
from ..helpers.support import WAIT, Closings, in_thread, lock_is_free, one_minute


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


def test_an_on_close_that_returns_a_coroutine_has_failed(
    session_coordinator: CoordinatorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it has run: that is counted, and the log says what to do. Python warns of nothing."""
    ran: list[str] = []

    async def stop(name: str | None) -> None:
        ran.append(str(name))

    coordinator = session_coordinator(on_close=lambda session, _: stop(session.name))
    with coordinator.subscribe() as channel:
        for name in ("a", "b"):
            coordinator.close_session(coordinator.create_session(name, resource="an agent").id)
            gc.collect()
        kinds = [event.kind for event in iter(lambda: channel.get(timeout=0), None)]
    assert kinds == [EventKind.CREATED, EventKind.REMOVED] * 2
    assert (coordinator.stats().close_failures, coordinator.stats().removed[RemovalCause.CLOSED]) == (2, 2)
    assert ran == []
    assert len(caplog.records) == 2
    assert "on_close must be a plain function, and returned <coroutine object " in caplog.text
    assert "pass sessionkit.aio.on_loop(function, loop), which runs it on an event loop" in caplog.text


def test_an_on_close_may_hand_its_coroutine_to_an_event_loop(session_coordinator: CoordinatorFactory) -> None:
    """As the log advises: what that returns is a future, and no failure. So is a task, which runs by itself."""
    ran: list[tuple[str, RemovalCause]] = []

    async def stop(name: str, cause: RemovalCause) -> None:
        ran.append((name, cause))

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        for way, hand_over in (
            ("future", lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop)),
            ("task", loop.create_task),
        ):
            coordinator = session_coordinator(
                on_close=lambda session, cause, hand_over=hand_over: hand_over(stop(session.name, cause))
            )
            coordinator.create_session(way)
            coordinator.close()
            assert coordinator.stats().close_failures == 0
        while len(ran) < 2:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(serve(), WAIT))
    assert sorted(ran) == [("future", RemovalCause.SHUTDOWN), ("task", RemovalCause.SHUTDOWN)]


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


def test_a_session_that_is_given_back_again_is_closed_once(session_coordinator: CoordinatorFactory) -> None:
    """It ended while it was checked out: leaving the block a second time has nothing to do."""
    closings = Closings()
    coordinator = session_coordinator(on_close=closings)
    session = coordinator.create_session("support")
    checkout = coordinator.checkout(session.id)
    checkout.__enter__()
    coordinator.close_session(session.id)
    assert not closings
    for _ in range(3):
        checkout.__exit__()
        assert closings == [("support", RemovalCause.CLOSED)]
    assert coordinator.stats().removed[RemovalCause.CLOSED] == 1


def test_the_context_manager_closes_everything(session_clock: ManualClock) -> None:
    """Leaving the block ends all sessions with SHUTDOWN, least recently active first, and the cleanup thread."""
    closings = Closings()
    with SessionCoordinator(clock=session_clock, on_close=closings) as coordinator:
        coordinator.create_session("a")
        coordinator.create_session("b")
        assert coordinator.stats().cleanup.alive
    assert closings == [("a", RemovalCause.SHUTDOWN), ("b", RemovalCause.SHUTDOWN)]
    assert not coordinator.stats().cleanup.alive
    assert len(coordinator) == 0


def test_after_close_every_call_says_so(session_coordinator: CoordinatorFactory) -> None:
    """A closed coordinator raises CoordinatorClosedError; looking at it still works, and closing again does nothing."""
    coordinator = session_coordinator()
    session = coordinator.create_session()
    coordinator.switch_session(session.id)
    coordinator.close()

    for call in (
        lambda: coordinator.create_session(),
        lambda: coordinator.get_session(session.id),
        lambda: coordinator.touch_session(session.id),
        lambda: coordinator.switch_session(session.id),
        lambda: coordinator.close_session(session.id),
        lambda: coordinator.checkout(session.id).__enter__(),
        lambda: coordinator.cleanup_inactive_sessions(),
        lambda: coordinator.subscribe(),
        lambda: coordinator.start_cleanup_task(),
        lambda: coordinator.__enter__(),
    ):
        with pytest.raises(CoordinatorClosedError, match="closed"):
            call()
    with pytest.raises(SessionExpiredError) as caught:
        session.touch()
    assert caught.value.cause is RemovalCause.SHUTDOWN
    assert (len(coordinator), coordinator.list_sessions(), coordinator.active_session) == (0, [], None)
    assert session.id not in coordinator
    coordinator.close()
    coordinator.stop_cleanup_task()
    assert coordinator.stats().removed[RemovalCause.SHUTDOWN] == 1


def test_closing_expired_sessions_says_that_they_were_idle(session_clock: ManualClock) -> None:
    """close() gives a session that had expired before its true cause."""
    closings = Closings()
    coordinator = SessionCoordinator(one_minute(), clock=session_clock, on_close=closings)
    coordinator.create_session("a")
    session_clock.advance(30)
    coordinator.create_session("b")
    session_clock.advance(31)
    coordinator.close()

    assert closings == [("a", RemovalCause.IDLE), ("b", RemovalCause.SHUTDOWN)]


def test_closing_many_takes_more_than_one_batch(session_clock: ManualClock) -> None:
    """close() ends every session once, also where they are many, and a callback closes others meanwhile."""
    closings = Closings()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        coordinator.close()

    coordinator = SessionCoordinator(clock=session_clock, on_close=on_close)
    ids = {coordinator.create_session().id for _ in range(350)}
    coordinator.close()

    assert {session_id for session_id, _ in closings} == ids
    assert len(closings) == 350


@pytest.mark.parametrize("block", ["outside_decisions", "between_calls"])
def test_a_session_that_a_cleanup_takes_from_a_close_is_closed_once(block: str) -> None:
    """Wherever another thread's cleanup, or a part of it, comes into a `close_session`, the callback runs once."""

    def clean_up(coordinator: SessionCoordinator[Any]) -> None:
        with in_thread(coordinator.cleanup_inactive_sessions) as cleaning:
            cleaning.result(WAIT)

    for once in interruptions():
        closings = Closings()
        with SessionCoordinator[Any](one_minute(), on_close=closings) as coordinator:
            coordinator.create_session("support", session_id="it")
            with getattr(once, block)(coordinator, lambda c=coordinator: clean_up(c)):
                coordinator.close_session("it")
            assert closings == [("support", RemovalCause.CLOSED)]
            assert coordinator.stats().removed[RemovalCause.CLOSED] == 1
            assert coordinator.create_session(session_id="it").id == "it"


def test_a_session_that_another_thread_is_closing_is_left_to_it() -> None:
    """A cleanup that has found a session to close does not wait for another thread that has begun to."""
    begun, go_on = threading.Event(), threading.Event()

    def on_close(session: ManagedSession[Any], _: RemovalCause) -> None:
        if session.id == "slow":
            begun.set()
            assert go_on.wait(WAIT)
        closed.append(session.id)

    closed: list[str] = []
    with SessionCoordinator[Any](one_minute(), on_close=on_close) as coordinator:
        for session_id in ("slow", "quick"):
            coordinator.create_session(session_id=session_id)
        with in_thread(coordinator.close_session, "slow") as closing:
            assert begun.wait(WAIT)
            coordinator.cleanup_inactive_sessions()
            coordinator.close_session("quick")
            assert closed == ["quick"]
            go_on.set()
            closing.result(WAIT)
        assert closed == ["quick", "slow"]
