"""What time it is: the default clock under freezegun, the boundaries, and a clock that goes back."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from freezegun import freeze_time
from freezegun.api import FrozenDateTimeFactory

from sessionkit import CoordinatorConfig, RemovalCause, SessionCoordinator, SessionExpiredError, SessionState
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.util.clock import lead_over, steady_clock, system_clock

from ..helpers.support import WAIT, one_minute

ODD_INSTANT = "2026-03-29 01:59:59.123457"


def at_depth(depth: int, function: Callable[[], float]) -> float:
    return function() if depth == 0 else at_depth(depth - 1, function)


def read_in_thread(function: Callable[[], float]) -> float:
    readings: list[float] = []
    thread = threading.Thread(target=lambda: readings.append(function()))
    thread.start()
    thread.join(WAIT)
    return readings[0]


def read_in_timer(function: Callable[[], float]) -> float:
    readings: list[float] = []
    timer = threading.Timer(0, lambda: readings.append(function()))
    timer.start()
    timer.join(WAIT)
    return readings[0]


def read_in_pool(function: Callable[[], float]) -> float:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(WAIT)


def test_the_default_clock_is_time_monotonic() -> None:
    """Outside of freezegun the default clock is time.monotonic."""
    before = time.monotonic()
    reading = system_clock()
    assert before <= reading <= time.monotonic()


@pytest.mark.parametrize("depth", range(7))
@pytest.mark.parametrize("read_in", [lambda f: f(), read_in_thread, read_in_timer, read_in_pool])
def test_freezegun_freezes_the_default_clock_in_every_thread(
    read_in: Callable[[Callable[[], float]], float], depth: int
) -> None:
    """Main thread, Thread, Timer and pool agree under freeze_time, however deep in the call stack they read."""
    with freeze_time(ODD_INSTANT) as frozen:
        reading = read_in(lambda: at_depth(depth, system_clock))
        assert reading == pytest.approx(time.monotonic(), abs=1e-6)
        frozen.tick(90)
        assert read_in(lambda: at_depth(depth, system_clock)) - reading == pytest.approx(90, abs=1e-6)


def test_a_thread_reads_the_frozen_time_as_its_first_function() -> None:
    """Even where the clock itself is what the thread runs, right below the threading module, it is frozen."""
    with freeze_time(ODD_INSTANT), ThreadPoolExecutor(1) as pool:
        assert pool.submit(system_clock).result(WAIT) == system_clock()


def test_every_whole_millisecond_meets_its_boundary_exactly() -> None:
    """Ticked by its timeout a session lives, and one microsecond later it is expired, for 1 to 999 milliseconds."""
    with freeze_time(ODD_INSTANT) as frozen:
        assert isinstance(frozen, FrozenDateTimeFactory)
        for milliseconds in range(1, 1000):
            frozen.move_to(ODD_INSTANT)
            config = CoordinatorConfig(session_timeout=milliseconds / 1000, cleanup_interval=0.001)
            with SessionCoordinator(config) as coordinator:
                coordinator.stop_cleanup_task()
                session = coordinator.create_session()
                frozen.tick(timedelta(milliseconds=milliseconds))
                assert session.id in coordinator, milliseconds
                frozen.tick(timedelta(microseconds=1))
                assert session.id not in coordinator, milliseconds


def test_a_thread_that_is_held_up_still_tells_by_how_much_clocks_differ() -> None:
    """Of several readings, the one that was held up the least counts; the first that was not is enough."""
    ours = iter([100.0, 109.0, 110.0, 110.5, 120.0, 121.0])
    assert lead_over(iter([1105.0, 1110.25, 1120.9]).__next__, ours.__next__) == 1000.25
    assert lead_over(lambda: 1005.0, iter([4.0, 4.001]).__next__) == 1001.0


def test_clocks_that_agree_do_so_while_a_thread_is_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store's time that is the host's is not taken for another one."""
    with closing(SQLiteStore(tmp_path / "sessions.db")) as store:
        store.join(1.0, "first")
        readings = itertools.chain([steady_clock() - 1], iter(steady_clock, None))
        monkeypatch.setattr("sessionkit.stores.sqlite.store.steady_clock", readings.__next__)
        assert store.clock_offset() == 0


def test_a_touch_under_freezegun_starts_idle_time_again() -> None:
    """Expiry and touch can be checked with freeze_time alone, no clock passed in."""
    with freeze_time("2026-01-01") as frozen, SessionCoordinator() as coordinator:
        session = coordinator.create_session()
        frozen.tick(3600)
        coordinator.touch_session(session.id)
        frozen.tick(3600)
        assert session.id in coordinator
        frozen.tick(0.001)
        with pytest.raises(SessionExpiredError):
            coordinator.get_session(session.id)


@pytest.mark.parametrize(
    "call",
    [
        lambda coordinator, session: coordinator.create_session(),
        lambda coordinator, session: coordinator.get_session(session.id),
        lambda coordinator, session: coordinator.touch_session(session.id),
        lambda coordinator, session: coordinator.switch_session(session.id),
        lambda coordinator, session: coordinator.checkout(session.id).__enter__(),
        lambda coordinator, session: coordinator.active_session,
        lambda coordinator, session: coordinator.close_session(session.id),
        lambda coordinator, session: coordinator.list_sessions(),
        lambda coordinator, session: coordinator.cleanup_inactive_sessions(),
        lambda coordinator, session: coordinator.cleanup_inactive_sessions(3600, dry_run=True),
        lambda coordinator, session: coordinator.stats(),
        lambda coordinator, session: len(coordinator),
        lambda coordinator, session: session.id in coordinator,
        lambda coordinator, session: coordinator.close(),
        lambda coordinator, session: coordinator.close(force=True),
        lambda coordinator, session: coordinator.close_session(session.id, force=True),
        lambda coordinator, session: coordinator.checkouts(),
        lambda coordinator, session: coordinator.get_or_create_session(session.id),
        lambda coordinator, session: session.set_timeout(5),
        lambda coordinator, session: session.touch(),
        lambda coordinator, session: session.record_message(),
        lambda coordinator, session: session.set_state(SessionState.PROCESSING),
    ],
)
def test_rule_10_each_public_call_reads_the_clock_once(call: Callable[[Any, Any], object]) -> None:
    """With auto_tick_seconds, which moves the time at each reading, every call moves it once."""
    with freeze_time("2026-01-01", auto_tick_seconds=1) as frozen:
        coordinator: SessionCoordinator[Any] = SessionCoordinator()
        session = coordinator.create_session()
        before = frozen.time_to_freeze
        call(coordinator, session)
        assert frozen.time_to_freeze - before == timedelta(seconds=1)
        coordinator.close()


def test_giving_back_reads_the_clock_once() -> None:
    """Leaving a checkout is a call of its own and reads once."""
    with freeze_time("2026-01-01", auto_tick_seconds=1) as frozen, SessionCoordinator() as coordinator:
        session = coordinator.create_session()
        checkout = coordinator.checkout(session.id)
        checkout.__enter__()
        before = frozen.time_to_freeze
        checkout.__exit__()
        assert frozen.time_to_freeze - before == timedelta(seconds=1)


def test_rule_10_time_moved_back_neither_expires_nor_revives(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A clock that goes back neither expires nor revives anything.

    The expired stay expired, the live stay live, and last_active never moves back.
    """
    coordinator = session_coordinator(one_minute())
    expired = coordinator.create_session()
    session_clock.advance(50)
    live = coordinator.create_session()
    session_clock.advance(11)
    assert expired.id not in coordinator
    session_clock.advance(-1000)

    assert expired.id not in coordinator
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.touch_session(expired.id)
    assert caught.value.ended_at == 60
    coordinator.touch_session(live.id)
    assert live.metadata.last_active == 61
    assert coordinator.create_session().metadata.created_at == 61
    session_clock.advance(1000 + 60)
    assert live.id in coordinator
    session_clock.advance(0.001)
    assert live.id not in coordinator


def test_rule_10_freezegun_moved_back_neither_expires_nor_revives() -> None:
    """The same with freeze_time: move_to an earlier instant changes nothing for anyone."""
    with freeze_time("2026-01-01") as frozen, SessionCoordinator() as coordinator:
        session = coordinator.create_session()
        frozen.move_to("2020-01-01")
        assert session.id in coordinator
        frozen.move_to("2026-01-02")
        assert session.id not in coordinator
        frozen.move_to("2026-01-01")
        assert session.id not in coordinator
        assert coordinator.cleanup_inactive_sessions() == 1


def test_a_lifetime_ends_a_session_however_busy(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """max_lifetime is exact too, and is the cause if it is reached before the timeout."""
    coordinator = session_coordinator(one_minute(max_lifetime=100))
    session = coordinator.create_session()
    for _ in range(2):
        session_clock.advance(50)
        coordinator.touch_session(session.id)
    assert session.id in coordinator
    session_clock.advance(0.001)

    with pytest.raises(SessionExpiredError, match=r"maximum lifetime of 100\.0 seconds") as caught:
        coordinator.touch_session(session.id)
    assert (caught.value.cause, caught.value.ended_at) == (RemovalCause.LIFETIME, 100)
    assert coordinator.cleanup_inactive_sessions() == 1


def test_a_reading_that_is_not_finite_moves_nothing(session_coordinator: CoordinatorFactory) -> None:
    """Infinity and NaN do not poison the time; as the first reading of all they are refused."""
    readings = [math.nan, 5.0, math.inf, math.nan, -math.inf, 6.0]
    coordinator = session_coordinator(clock=lambda: readings.pop(0) if len(readings) > 1 else readings[0])
    with pytest.raises(ValueError, match="the clock reads nan"):
        coordinator.create_session()
    session = coordinator.create_session()
    for _ in range(3):
        coordinator.touch_session(session.id)
        assert session.metadata.last_active == 5
    coordinator.touch_session(session.id)
    assert session.metadata.last_active == 6


def test_a_clock_that_fails_gives_the_session_back_all_the_same(session_coordinator: CoordinatorFactory) -> None:
    """What is no number raises, and the session is not checked out for ever."""
    readings: list[Any] = [0.0]
    coordinator = session_coordinator(clock=lambda: readings[0])
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    checkout.__enter__()
    readings[0] = None
    with pytest.raises(TypeError, match="the clock reads None"):
        checkout.__exit__()
    readings[0] = 1.0
    assert coordinator.stats().checked_out == 0
    assert session.metadata.last_active == 0


def test_any_callable_can_be_a_clock() -> None:
    """One that cannot be hashed too; and one that has every attribute does not promise by that never to go back."""

    @dataclass
    class Unhashable:
        def __call__(self) -> float:
            return 5.0

    with SessionCoordinator[Any](clock=Unhashable()) as coordinator:
        assert coordinator.create_session().metadata.created_at == 5
    clock = Mock(return_value=100.0)
    with SessionCoordinator[Any](one_minute(), clock=clock) as coordinator:
        session = coordinator.create_session()
        clock.return_value = 200.0
        assert "nobody" not in coordinator
        clock.return_value = 100.0
        with pytest.raises(SessionExpiredError):
            coordinator.get_session(session.id)


def test_the_manual_clock_moves_only_by_hand() -> None:
    """ManualClock starts where it is told, advances by seconds or timedeltas, and is safe between threads."""
    clock = ManualClock(100)
    clock.advance(timedelta(minutes=1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: [clock.advance(1) for _ in range(1000)], range(4)))
    assert clock() == 100 + 60 + 4000
    assert repr(clock) == "ManualClock(4160.0)"


def test_rule_10_creating_beside_an_active_session_reads_the_clock_once() -> None:
    """A session for which nobody is called takes one reading, also where others have to be looked at first."""
    readings = itertools.count()
    with SessionCoordinator(clock=lambda: float(next(readings))) as coordinator:
        coordinator.switch_session(coordinator.create_session().id)
        before = next(readings)
        coordinator.create_session()
        assert next(readings) == before + 2
