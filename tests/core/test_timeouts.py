"""The life of one session: another session timeout at any time, and when its time runs out."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from freezegun import freeze_time

from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionCoordinator,
    SessionExpiredError,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import Closings, in_thread, one_minute, system_time


@pytest.fixture
def closings() -> Closings:
    return Closings()


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory, closings: Closings) -> SessionCoordinator[Any]:
    return session_coordinator(one_minute(), on_close=closings)


def assert_it_ends_at(instant: float, coordinator: SessionCoordinator[Any], clock: ManualClock) -> None:
    """Whether it is looked for or cleaned up, the one session in memory ends after this instant, and not before."""
    (session,) = coordinator.list_sessions()
    clock.advance(instant - clock())
    assert coordinator.cleanup_inactive_sessions() == 0
    assert coordinator.get_session(session.id) is session
    clock.advance(0.001)
    assert coordinator.cleanup_inactive_sessions(dry_run=True) == 1
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.get_session(session.id)
    assert (caught.value.cause, caught.value.limit) == (RemovalCause.IDLE, session.session_timeout)
    assert caught.value.ended_at == pytest.approx(instant)
    assert coordinator.cleanup_inactive_sessions() == 1


@pytest.mark.parametrize("timeout", [5, 60, 1000, timedelta(minutes=2)])
def test_a_timeout_counts_from_the_last_activity(
    timeout: Any, coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """A session may be given another timeout at any time: it counts from the last activity, and is no activity."""
    session = coordinator.create_session()
    session_clock.advance(10)
    session.touch()
    session_clock.advance(4)
    with coordinator.subscribe() as channel:
        session.set_timeout(timeout)
        assert channel.get(0) is None
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    assert (session.session_timeout, session.metadata.last_active) == (seconds, 10)
    assert_it_ends_at(10 + seconds, coordinator, session_clock)


def test_a_timeout_that_has_passed_already_ends_the_session_at_once(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock, closings: Closings
) -> None:
    """It is gone for every caller; the next cleanup gives its memory back."""
    session = coordinator.create_session("support")
    session_clock.advance(30)
    session.set_timeout(20)
    assert session.id not in coordinator
    assert len(coordinator) == 0
    for call in (session.touch, lambda: session.set_timeout(1000)):
        with pytest.raises(SessionExpiredError) as caught:
            call()
        assert (caught.value.cause, caught.value.ended_at, caught.value.limit) == (RemovalCause.IDLE, 20, 20)
    assert closings == []
    assert coordinator.cleanup_inactive_sessions() == 1
    assert closings == [("support", RemovalCause.IDLE)]


def test_a_timeout_that_is_none(coordinator: SessionCoordinator[Any]) -> None:
    """As where a session is created: seconds above 0 and finite, or a timedelta; nothing has changed."""
    session = coordinator.create_session()
    for wrong in (0, -1, float("inf"), float("nan"), timedelta(0)):
        with pytest.raises(ValueError, match="session_timeout"):
            session.set_timeout(wrong)
    for wrong in ("5", None, True):
        with pytest.raises(TypeError, match="session_timeout"):
            session.set_timeout(wrong)  # type: ignore[arg-type]  # the mistake under test
    assert session.session_timeout == 60


@pytest.mark.parametrize("cleans", [False, True])
def test_a_timeout_set_during_a_checkout(
    cleans: bool, coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """The session is as live as any that is checked out, however long; from when it is given back, the timeout counts.

    Also where a cleanup has met it checked out, before or after.
    """
    session = coordinator.create_session()
    for timeout in (5, 600, 20):
        with coordinator.checkout(session.id) as held:
            for seconds in (100, 1000):
                session_clock.advance(seconds)
                if cleans:
                    assert coordinator.cleanup_inactive_sessions() == 0
                held.set_timeout(timeout)
            assert coordinator.get_session(session.id) is session
    assert_it_ends_at(session_clock() + 20, coordinator, session_clock)


def test_a_timeout_set_from_another_thread_and_after_the_end(
    coordinator: SessionCoordinator[Any], closings: Closings
) -> None:
    """While it is checked out, a session that was closed can be given one to no effect; once given back, it raises."""
    session = coordinator.create_session()
    with coordinator.checkout(session.id) as held:
        with in_thread(session.set_timeout, 5) as done:
            pass
        assert (done.result(), held.session_timeout) == (None, 5)
        coordinator.close_session(session.id)
        held.set_timeout(7)
    assert closings == [(session.id, RemovalCause.CLOSED)]
    with pytest.raises(SessionExpiredError):
        session.set_timeout(5)


def test_a_timeout_that_the_factory_sets(session_coordinator: CoordinatorFactory, session_clock: ManualClock) -> None:
    """While the session is being made: it has it from the beginning."""
    coordinator = session_coordinator(one_minute(), resource_factory=lambda session: session.set_timeout(7))
    assert coordinator.create_session().session_timeout == 7
    assert_it_ends_at(7, coordinator, session_clock)


@pytest.mark.parametrize("touch", ["session.touch", "touch_session", "checkout"])
def test_timeouts_and_touches_without_the_lock(touch: str) -> None:
    """A touch after that buys a full timeout, which is the new one; before it, a look finds what the timeout says."""
    clock = ManualClock()
    with system_time(clock), SessionCoordinator[Any](one_minute()) as coordinator:
        session = coordinator.create_session()

        def use() -> None:
            if touch == "checkout":
                with coordinator.checkout(session.id):
                    pass
            elif touch == "touch_session":
                coordinator.touch_session(session.id)
            else:
                session.touch()

        for timeout in (5, 100, 7):
            session.set_timeout(timeout)
            clock.advance(5)
            use()
            clock.advance(timeout)
            assert coordinator.get_session(session.id) is session
            use()
        assert_it_ends_at(clock() + 7, coordinator, clock)


def test_a_lifetime_ends_it_whatever_its_timeout(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """`expires_at` is the earlier of both ends; the cause is the one that comes first."""
    coordinator = session_coordinator(one_minute(max_lifetime=100))
    session = coordinator.create_session()
    born = datetime.fromtimestamp(session_clock.wall(), UTC)
    assert session.expires_at == born + timedelta(seconds=60)
    session_clock.advance(30)
    session.set_timeout(1000)
    assert session.expires_at == born + timedelta(seconds=100)
    session.set_timeout(35)
    assert session.expires_at == born + timedelta(seconds=35)
    session.touch()
    assert session.expires_at == born + timedelta(seconds=65)
    session.set_timeout(500)
    session_clock.advance(71)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.get_session(session.id)
    assert caught.value.cause is RemovalCause.LIFETIME


def test_the_end_on_the_wall_clock() -> None:
    """In UTC, by the system's clocks; a timeout of more years than there are ends with them."""
    with freeze_time("2026-01-01 12:00:00") as frozen, SessionCoordinator[Any]() as coordinator:
        session = coordinator.create_session()
        assert session.expires_at == datetime(2026, 1, 1, 13, tzinfo=UTC)
        frozen.tick(600)
        assert session.expires_at == datetime(2026, 1, 1, 13, tzinfo=UTC)
        session.touch()
        assert session.expires_at == datetime(2026, 1, 1, 13, 10, tzinfo=UTC)
        session.set_timeout(1e15)
        assert session.expires_at == datetime.max.replace(tzinfo=UTC)


def test_without_a_coordinator_there_is_no_end() -> None:
    """If it was dropped, both say so."""
    coordinator: SessionCoordinator[Any] = SessionCoordinator()
    session = coordinator.create_session()
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        del coordinator
    with pytest.raises(CoordinatorClosedError, match="dropped"):
        session.set_timeout(5)
    with pytest.raises(CoordinatorClosedError, match="dropped"):
        _ = session.expires_at


def test_room_is_made_in_the_order_of_activity_whatever_the_timeouts_are_set_to(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, closings: Closings
) -> None:
    """Another timeout is no activity there, either."""
    coordinator = session_coordinator(one_minute(max_active_sessions=3, on_full="evict"), on_close=closings)
    sessions = []
    for name in "abc":
        sessions.append(coordinator.create_session(name))
        session_clock.advance(1)
    sessions[0].set_timeout(1000)
    sessions[1].set_timeout(50)
    sessions[0].set_timeout(60)
    assert [session.name for session in coordinator.list_sessions()] == ["a", "b", "c"]
    for name in "def":
        coordinator.create_session(name)
    assert [name for name, _ in closings] == ["a", "b", "c"]


def test_timeouts_that_change_for_ever_take_no_memory(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """However often one session is given another one, while others stand in the same order."""
    sessions = [coordinator.create_session(session_timeout=timeout) for timeout in (60, 600)]
    for session in sessions:
        session_clock.advance(1)
        session.set_timeout(session.session_timeout + 1)

    def change_often() -> None:
        for _ in range(5_000):
            session.set_timeout(61)
            session.set_timeout(601)

    session = coordinator.create_session()
    change_often()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        change_often()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
    session_clock.advance(60)
    assert coordinator.cleanup_inactive_sessions() == 1
    session_clock.advance(542)
    assert coordinator.cleanup_inactive_sessions() == 2
