"""What calls cost, in bytecode instructions: the same on every machine, so that a limit can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sessionkit import CoordinatorConfig, RemovalCause, SessionCoordinator
from sessionkit.testing import ManualClock

from ..helpers.moments import HAS_GIL, counted_again, instructions
from ..helpers.support import one_minute, system_time


def test_instructions_are_counted() -> None:
    """The count grows with the work: one that never grew would guard nothing."""

    def work(number: int) -> None:
        for each in range(number):
            str(each)

    few, many = (counted_again(lambda number=number: work(number)) for number in (1, 101))
    assert many - few >= 100 * 3


LIMITS = {
    "get_session": 48,
    "touch_session": 61,
    "checkout and give back": 540,
    "create and close": 790,
}
"""About an eighth above the most that CPython 3.11 to 3.13 need. Raise one only with a look at `make bench`."""


@pytest.mark.parametrize("what", LIMITS)
def test_everyday_calls_stay_short(what: str) -> None:
    """None of the calls that servers make all the time runs more instructions than it was measured with."""
    with SessionCoordinator(CoordinatorConfig(max_active_sessions=None)) as coordinator:
        session_id = coordinator.create_session().id
        coordinator.create_session(session_id="other")

        def check_out() -> None:
            with coordinator.checkout(session_id):
                pass

        def create_and_close() -> None:
            coordinator.create_session(session_id="new")
            coordinator.close_session("new")

        calls: dict[str, Callable[[], object]] = {
            "get_session": lambda: coordinator.get_session(session_id),
            "touch_session": lambda: coordinator.touch_session(session_id),
            "checkout and give back": check_out,
            "create and close": create_and_close,
        }
        # Without the GIL, all of them take the lock.
        limit = LIMITS[what] if HAS_GIL else 2 * LIMITS[what] + 600
        assert 10 < counted_again(calls[what]) <= limit


@pytest.mark.parametrize(("on_close", "limit"), [(None, 135), (lambda *_: None, 350)])
def test_a_cleanup_runs_few_instructions_for_each_session(on_close: Callable[..., object] | None, limit: int) -> None:
    """What a hundred more sessions that are due add to a cleanup, without and with a close callback."""

    def cleanup_of_all(number: int) -> int:
        clock = ManualClock()
        config = one_minute(max_active_sessions=None)
        with SessionCoordinator[Any](config, clock=clock, on_close=on_close) as coordinator:
            for _ in range(number):
                coordinator.create_session()
            clock.advance(61)
            count = instructions(coordinator.cleanup_inactive_sessions)
            assert len(coordinator) == 0
        return count

    cleanup_of_all(5)
    assert 10 < (cleanup_of_all(200) - cleanup_of_all(100)) / 100 <= limit


def coordinator_of(number: int, due: int) -> tuple[SessionCoordinator[Any], ManualClock]:
    """A coordinator with so many sessions, of which so many are due."""
    clock = ManualClock()
    coordinator: SessionCoordinator[Any] = SessionCoordinator(one_minute(max_active_sessions=None), clock=clock)
    for index in range(number):
        if index == due:
            clock.advance(30)
        coordinator.create_session(session_id=str(index))
    clock.advance(31 if due else 0)
    return coordinator, clock


def cleanup_of(number: int, due: int) -> int:
    """How many instructions a cleanup runs that removes those that are due of so many sessions."""
    coordinator, _ = coordinator_of(number, due)
    with coordinator:
        removed: list[int] = []
        count = instructions(lambda: removed.append(coordinator.cleanup_inactive_sessions()))
        assert removed == [due]
    return count


def test_rule_6_a_cleanup_with_nothing_due_costs_the_same_however_many_are_alive() -> None:
    """Not an instruction more for 5,000 sessions than for 50."""
    cleanup_of(5, 0)
    assert cleanup_of(50, 0) == cleanup_of(5_000, 0)


def test_rule_6_a_cleanup_costs_what_it_removes() -> None:
    """The number of sessions that a cleanup looks at does not grow with the number alive.

    Removing 40 sessions runs as many instructions among 5,000 as among 50.
    """
    cleanup_of(5, 3)
    assert cleanup_of(50, 40) == cleanup_of(5_000, 40)


@pytest.mark.parametrize("max_lifetime", [None, 1000])
def test_rule_6_nor_with_the_number_alive_that_have_other_limits(max_lifetime: float | None) -> None:
    """With timeouts of two lengths, and a lifetime, a cleanup looks at what is due and at a few more."""

    def cleanup_beside(alive: int) -> int:
        clock = ManualClock()
        config = one_minute(max_active_sessions=None, max_lifetime=max_lifetime)
        with SessionCoordinator[Any](config, clock=clock) as coordinator:
            for _ in range(7):
                coordinator.create_session()
            clock.advance(50)
            for number in range(alive):
                coordinator.create_session(session_timeout=600 if number % 2 else None)
            clock.advance(11)
            removed: list[int] = []
            count = instructions(lambda: removed.append(coordinator.cleanup_inactive_sessions()))
            assert removed == [7]
            return count

    cleanup_beside(10)
    assert cleanup_beside(10) == cleanup_beside(1000)


def test_rule_6_cleanup_does_not_look_at_all_that_are_checked_out() -> None:
    """A session that is checked out costs one cleanup a look, and those after it none until it is given back."""

    def cleanups_beside(busy: int) -> list[int]:
        clock = ManualClock()
        config = one_minute(max_active_sessions=None)
        with SessionCoordinator[Any](config, clock=clock) as coordinator:
            checkouts = [coordinator.checkout(coordinator.create_session().id) for _ in range(busy)]
            coordinator.create_session()
            for checkout in checkouts:
                checkout.__enter__()
            clock.advance(61)
            costs = [instructions(coordinator.cleanup_inactive_sessions)]
            assert coordinator.stats().removed[RemovalCause.IDLE] == 1
            clock.advance(1000)
            costs.append(instructions(coordinator.cleanup_inactive_sessions))
            assert len(coordinator) == busy
            for checkout in checkouts:
                checkout.__exit__()
        return costs

    cleanups_beside(3)
    few, many = cleanups_beside(3), cleanups_beside(300)
    assert many[0] - few[0] < 300 * 250
    assert many[1] == few[1]


def test_sessions_that_moved_on_and_left_leave_nothing_behind() -> None:
    """Sessions that were met in cleanups again and again, each time at another place, cost nothing once they left."""
    with system_time(clock := ManualClock()):
        config = one_minute()
        with SessionCoordinator[Any](config) as coordinator:
            coordinator.create_session(session_id="it")
            before = counted_again(coordinator.cleanup_inactive_sessions)
            for _ in range(50):
                session = coordinator.create_session()
                for _ in range(5):
                    clock.advance(40)
                    session.touch()
                    coordinator.touch_session("it")
                    assert coordinator.cleanup_inactive_sessions() == 0
                coordinator.close_session(session.id)
            clock.advance(59)
            coordinator.cleanup_inactive_sessions()
            assert instructions(coordinator.cleanup_inactive_sessions) <= before


@pytest.mark.parametrize("come_and_go", ["closed", "dropped"])
def test_channels_that_come_and_go_cost_no_writer(come_and_go: str) -> None:
    """However many channels were closed or dropped, the next subscription and the next event forget them all."""
    with SessionCoordinator[Any](clock=ManualClock()) as coordinator:
        kept = coordinator.subscribe()

        def cost_after(number: int) -> list[int]:
            channels = [coordinator.subscribe() for _ in range(number)]
            for channel in channels if come_and_go == "closed" else []:
                channel.close()
            channels.clear()
            for _ in range(2):
                coordinator.create_session()
            own = []
            return [
                instructions(lambda: own.append(coordinator.subscribe())),
                instructions(lambda: (own.clear(), coordinator.create_session())),
                instructions(coordinator.create_session),
            ]

        cost_after(1)
        assert cost_after(2) == cost_after(100)
        assert len([*iter(lambda: kept.get(timeout=0), None)]) == 3 * 4


def test_rule_6_touches_without_the_lock_are_paid_once() -> None:
    """A cleanup looks once at a session that was touched without the lock, and no more until a timeout has passed."""
    with system_time(clock := ManualClock()):
        with SessionCoordinator(one_minute(max_active_sessions=None)) as coordinator:
            ids = [coordinator.create_session().id for _ in range(50)]
            clock.advance(40)
            for session_id in ids:
                coordinator.touch_session(session_id)
            clock.advance(25)
            first, second = (instructions(coordinator.cleanup_inactive_sessions) for _ in range(2))
            assert len(coordinator) == 50
    assert second < 500
    assert first < second + 50 * 250
