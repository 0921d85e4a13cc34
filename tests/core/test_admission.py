"""How many sessions may live at once, and who makes room."""

from __future__ import annotations

import itertools
from contextlib import closing
from typing import Any

import pytest
from sessionkit.core.sweep import BATCH

from sessionkit import CoordinatorConfig, RemovalCause, SessionCoordinator, SessionExpiredError, SessionLimitError
from sessionkit.config import OnFull
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import Closings, all_at_once, one_minute, system_time


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
    clock, closings, limit = ManualClock(), Closings(), 2 * BATCH
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
    """With expired sessions that nobody cleans up, the table never holds more than the limit."""
    coordinator = session_coordinator(one_minute(max_active_sessions=5))
    for _ in range(20):
        coordinator.create_session()
        session_clock.advance(25)
        assert len(coordinator) <= 3
        assert len(coordinator._roster._table) <= 5
        assert not coordinator._finalizer.ready


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
    coordinator = session_coordinator(
        CoordinatorConfig(max_active_sessions=3, on_full=on_full),
        resource_factory=lambda _: seen.append(len(coordinator) + len(coordinator._roster._opening)),
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
