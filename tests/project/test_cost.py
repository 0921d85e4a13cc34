"""What calls cost, in bytecode instructions: the same on every machine, so that a limit can be trusted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.core.pulse import HAS_STEPS
from sessionkit.testing import ManualClock

from ..helpers.support import system_time


def instructions(call: Callable[[], object]) -> int:
    """How many bytecode instructions a call runs, in all Python functions that it calls; nothing of what is in C."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def counted_again(call: Callable[[], object]) -> int:
    """The count of a second run: CPython 3.12 and later do not count the first one of a function from its beginning."""
    instructions(call)
    return instructions(call)


def test_instructions_are_counted() -> None:
    """The count grows with the work: one that never grew would guard nothing."""

    def work(number: int) -> None:
        for each in range(number):
            str(each)

    few, many = (counted_again(lambda number=number: work(number)) for number in (1, 101))
    assert many - few >= 100 * 3


LIMITS = {
    "get_session": 32,
    "touch_session": 50,
    "checkout and give back": 240,
    "create and close": 650,
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
        limit = LIMITS[what] if HAS_STEPS else 2 * LIMITS[what] + 600
        assert 10 < counted_again(calls[what]) <= limit


def coordinator_of(number: int, due: int) -> tuple[SessionCoordinator[Any], ManualClock]:
    """A coordinator with so many sessions, of which so many are due."""
    clock = ManualClock()
    coordinator: SessionCoordinator[Any] = SessionCoordinator(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=None), clock=clock
    )
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
    """Removing 40 sessions runs as many instructions among 5,000 as among 50."""
    cleanup_of(5, 3)
    assert cleanup_of(50, 40) == cleanup_of(5_000, 40)


def test_rule_6_touches_without_the_lock_are_paid_once() -> None:
    """Whoever was touched without the lock is looked at once by a cleanup, and no more until a timeout has passed."""
    with system_time(clock := ManualClock()):
        with SessionCoordinator(
            CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=None)
        ) as coordinator:
            ids = [coordinator.create_session().id for _ in range(50)]
            clock.advance(40)
            for session_id in ids:
                coordinator.touch_session(session_id)
            clock.advance(25)
            first, second = (instructions(coordinator.cleanup_inactive_sessions) for _ in range(2))
            assert len(coordinator) == 50
    assert second < 500
    assert first < second + 50 * 250
