"""Which sessions are due, in which order they leave, and what is known of them afterwards."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sessionkit import (
    CoordinatorConfig,
    RemovalCause,
    SessionCoordinator,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import Closings, one_minute, system_time


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory) -> SessionCoordinator[Any]:
    return session_coordinator(one_minute())


@pytest.mark.parametrize("cleanup", [True, False], ids=["after cleanup", "before cleanup"])
def test_expired_sessions_tell_when_their_time_ran_out(
    cleanup: bool, coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """SessionExpiredError has the instant at which the time ran out, whether or not cleanup has run."""
    session = coordinator.create_session("support")
    session_clock.advance(100)
    if cleanup:
        coordinator.cleanup_inactive_sessions()

    for name_or_id in (session.id, "support"):
        with pytest.raises(SessionExpiredError, match=r"idle for more than 60\.0 seconds") as caught:
            coordinator.switch_session(name_or_id)
        assert (caught.value.session_id, caught.value.cause, caught.value.ended_at) == (
            session.id,
            RemovalCause.IDLE,
            60,
        )


def test_what_is_remembered_is_bounded_in_number_and_age(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """The last 1024 endings are known for an hour of the coordinator's clock."""
    ids = [coordinator.create_session().id for _ in range(1000)]
    for session_id in ids:
        coordinator.close_session(session_id)
    late = [coordinator.create_session().id for _ in range(100)]
    for session_id in late:
        coordinator.close_session(session_id)

    def error(session_id: str) -> type[Exception]:
        with pytest.raises(SessionNotFoundError) as caught:
            coordinator.get_session(session_id)
        return caught.type

    assert error(ids[75]) is SessionNotFoundError
    assert error(ids[76]) is SessionExpiredError
    assert error(late[-1]) is SessionExpiredError
    session_clock.advance(3601)
    assert error(late[-1]) is SessionNotFoundError


def test_an_id_and_a_name_that_end_again_are_remembered_anew(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """Of sessions that had the same id or name one after the other, the last ending is known, and known longest."""
    for _ in range(2):
        coordinator.create_session("again", session_id="again")
        coordinator.close_session("again")
        session_clock.advance(10)
        for _ in range(1000):
            session = coordinator.create_session("filler")
            coordinator.close_session(session.id)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.switch_session("again")
    assert caught.value.ended_at == 10


def sessions_of(coordinator: SessionCoordinator[Any], clock: ManualClock, *timeouts: float) -> list[str]:
    """Sessions named 0, 1, 2, ..., last active at their number, with these timeouts."""
    ids = []
    for number, timeout in enumerate(timeouts):
        ids.append(coordinator.create_session(str(number), session_timeout=timeout).id)
        clock.advance(1)
    return ids


def names(coordinator: SessionCoordinator[Any]) -> list[str | None]:
    return [session.name for session in coordinator.list_sessions()]


def test_only_those_expire_whose_own_timeout_has_passed(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """Each session has its own end, whatever the timeouts of those before and after it."""
    sessions_of(coordinator, session_clock, 10, 100, 10, 10)
    session_clock.advance(8.5)

    assert names(coordinator) == ["1", "3"]
    assert coordinator.cleanup_inactive_sessions(dry_run=True) == 2
    assert coordinator.cleanup_inactive_sessions() == 2
    assert names(coordinator) == ["1", "3"]


@pytest.mark.parametrize("cleans", [False, True], ids=["nobody cleans up", "with cleanups"])
def test_sessions_that_were_touched_expire_a_timeout_after_that(cleans: bool) -> None:
    """Whether or not a cleanup has met them since, touched sessions end at their own time, in the order of touches."""
    clock, closings = ManualClock(), Closings()
    with system_time(clock), SessionCoordinator[Any](one_minute(), on_close=closings) as coordinator:
        ids = sessions_of(coordinator, clock, 60, 60, 60)
        for number, instant in ((1, 30), (0, 50)):
            clock.advance(instant - clock())
            coordinator.touch_session(ids[number])
        for instant, left in ((62, ["1", "0"]), (62.5, ["1", "0"]), (90, ["1", "0"]), (90.5, ["0"]), (110, ["0"])):
            clock.advance(instant - clock())
            if instant == 62:
                assert names(coordinator) == ["2", *left]
                continue
            if cleans:
                coordinator.cleanup_inactive_sessions()
            assert names(coordinator) == left
        clock.advance(0.5)
        assert names(coordinator) == []
        coordinator.cleanup_inactive_sessions()
        assert [name for name, _ in closings] == ["2", "1", "0"]


@settings(max_examples=50)
@given(st.floats(0, 2e9), st.floats(0.001, 1e5), st.floats(0, 2e-6))
@example(1063535.5932222926, 85.049, 0.0)
def test_a_session_that_is_due_has_an_ending(active: float, timeout: float, later: float) -> None:
    """Every call rounds the same way: a session is live for all of them, or for none."""
    clock = ManualClock(active)
    with SessionCoordinator[Any](clock=clock) as coordinator:
        session = coordinator.create_session(session_timeout=timeout)
        clock.advance(active + timeout + later - clock())
        due = coordinator.cleanup_inactive_sessions(dry_run=True)
        assert (session.id in coordinator) is (due == 0)
        assert len(coordinator) == len(coordinator.list_sessions()) == 1 - due
        if due:
            with pytest.raises(SessionExpiredError):
                coordinator.get_session(session.id)
        assert coordinator.cleanup_inactive_sessions() == due


def test_sessions_that_leave_after_their_time_ran_out_leave_nothing_behind(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """Sessions that were found expired are replaced or removed one by one, and each is counted once."""
    for number in range(3):
        coordinator.create_session(session_id=str(number))
    session_clock.advance(61)
    assert len(coordinator) == 0
    for session_id, left in (("1", 2), ("0", 1)):
        coordinator.create_session(session_id=session_id)
        assert coordinator.cleanup_inactive_sessions(dry_run=True) == left
    assert coordinator.cleanup_inactive_sessions() == 1
    assert "2 sessions in memory" in repr(coordinator)
    assert coordinator.stats().removed[RemovalCause.IDLE] == 3


def test_a_session_that_was_put_right_and_rotated_ends_once(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Another id leaves nothing of the session in the order under the old one."""
    closings = Closings()
    coordinator = session_coordinator(one_minute(), on_close=closings)
    coordinator.create_session(session_id="old")
    session_clock.advance(50)
    coordinator.touch_session("old")
    session_clock.advance(15)
    assert coordinator.cleanup_inactive_sessions() == 0
    coordinator.rotate_session("old", "new")
    session_clock.advance(60)
    assert coordinator.cleanup_inactive_sessions() == 0
    session_clock.advance(1)
    assert coordinator.cleanup_inactive_sessions() == 1
    assert closings == [("new", RemovalCause.IDLE)]
    coordinator.create_session(session_id="old")
    session_clock.advance(59)
    assert coordinator.cleanup_inactive_sessions() == 0


def test_max_age_leaves_a_session_that_was_touched() -> None:
    """A session that was touched without the lock is not idle, whatever its place in the order says."""
    clock = ManualClock()
    with system_time(clock), SessionCoordinator[Any](one_minute()) as coordinator:
        ids = sessions_of(coordinator, clock, 60, 60, 60, 60)
        clock.advance(3)
        coordinator.touch_session(ids[0])
        clock.advance(1)
        assert coordinator.cleanup_inactive_sessions(max_age=4.5) == 3
        assert names(coordinator) == ["0"]


def test_room_is_made_in_the_order_of_activity_over_all_timeouts() -> None:
    """The least recently active session at rest is evicted first; if all are checked out, none is."""
    clock, closings = ManualClock(), Closings()
    config = one_minute(max_active_sessions=4, on_full="evict")
    with system_time(clock), SessionCoordinator[Any](config, on_close=closings) as coordinator:
        ids = sessions_of(coordinator, clock, 60, 70, 60, 70)
        with ExitStack() as stack:
            stack.enter_context(coordinator.checkout(ids[0]))
            clock.advance(5)
            coordinator.touch_session(ids[1])
            for _ in range(3):
                stack.enter_context(coordinator.checkout(coordinator.create_session().id))
            assert [name for name, _ in closings] == ["2", "3", "1"]
            with pytest.raises(SessionLimitError, match="all are checked out"):
                coordinator.create_session()


def test_looking_for_room_ends_nothing_that_is_in_use() -> None:
    """The sessions that a creation has met, and not evicted, can be used as before."""
    clock = ManualClock()
    config = one_minute(max_active_sessions=3, on_full="evict")
    with system_time(clock), SessionCoordinator[Any](config) as coordinator:
        ids = sessions_of(coordinator, clock, 60, 60, 60)
        coordinator.touch_session(ids[0])
        coordinator.create_session("new")
        for session_id in (ids[0], ids[2]):
            assert coordinator.get_session(session_id).id == session_id
            coordinator.touch_session(session_id)
        assert set(names(coordinator)) == {"new", "0", "2"}


def test_a_session_that_a_cleanup_met_checked_out_comes_back_into_the_order(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """A session that is checked out when it is met has its place in the order again when it is given back."""
    ids = sessions_of(coordinator, session_clock, 10, 10)
    with coordinator.checkout(ids[0]):
        session_clock.advance(8.5)
        assert coordinator.cleanup_inactive_sessions() == 0
    assert names(coordinator) == ["1", "0"]
    session_clock.advance(1)
    assert coordinator.cleanup_inactive_sessions() == 1
    assert names(coordinator) == ["0"]
    session_clock.advance(9.5)
    assert coordinator.cleanup_inactive_sessions() == 1


@pytest.fixture
def pair(
    session_coordinator: CoordinatorFactory, tmp_path: Path
) -> tuple[SessionCoordinator[Any], SessionCoordinator[Any]]:
    """Two processes, here and there, with sessions in one store that may live for 100 seconds."""
    config = CoordinatorConfig(session_timeout=1000, cleanup_interval=10, max_lifetime=100)
    here, there = (session_coordinator(config, store=SQLiteStore(tmp_path / "sessions.db")) for _ in range(2))
    return here, there


def assert_it_is_too_old_after(coordinator: SessionCoordinator[Any], clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds - clock())
    assert coordinator.cleanup_inactive_sessions() == 0
    clock.advance(1)
    assert coordinator.cleanup_inactive_sessions() == 1
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.get_session("it")
    assert (caught.value.cause, caught.value.ended_at) == (RemovalCause.LIFETIME, seconds)


def test_a_session_that_was_loaded_and_rotated_keeps_its_age(
    pair: tuple[SessionCoordinator[Any], SessionCoordinator[Any]], session_clock: ManualClock
) -> None:
    """Neither where it is, nor by which id, makes a session any younger."""
    here, there = pair
    there.create_session(session_id="old")
    session_clock.advance(50)
    here.rotate_session("old", "it")
    assert_it_is_too_old_after(here, session_clock, 100)


@pytest.mark.parametrize("younger", [True, False])
def test_an_id_that_comes_back_goes_by_the_age_of_its_new_session(
    younger: bool, pair: tuple[SessionCoordinator[Any], SessionCoordinator[Any]], session_clock: ManualClock
) -> None:
    """Of sessions that are loaded under one id, one after the other, each ends at its own time."""
    here, there = pair
    there.create_session(session_id="other")
    if younger:
        there.rotate_session("other", "it")
    session_clock.advance(50)
    if not younger:
        there.create_session(session_id="it")
    here.get_session("it")
    there.close_session("it")
    assert "it" not in here
    if younger:
        there.create_session(session_id="it")
    else:
        there.rotate_session("other", "it")
    here.get_session("it")
    there.close()
    assert_it_is_too_old_after(here, session_clock, 150 if younger else 100)
    session_clock.advance(1000)
    assert here.cleanup_inactive_sessions() == 0
