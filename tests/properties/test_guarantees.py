"""The rules that always hold, on the interleavings that would break them; each test is named after its rule."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    EventKind,
    ManagedSession,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import Interruption, interruptions, telling_decisions
from ..helpers.support import LOCK_PROBE, WAIT, Closings, HeldUpClock, all_at_once, in_thread, lock_is_free, one_minute

CONFIG = one_minute()


# ---- Rule 1: expiry is a fact about time, not about when cleanup ran


@pytest.mark.parametrize("cleanup", [False, True], ids=["cleanup has not run", "cleanup has run"])
def test_rule_1_a_session_past_its_time_is_gone_for_every_caller(
    cleanup: bool, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A session past its time is gone for every caller at once, whether or not cleanup has run."""
    coordinator = session_coordinator(CONFIG)
    session = coordinator.create_session("support")
    coordinator.switch_session("support")
    session_clock.advance(60.001)
    if cleanup:
        coordinator.cleanup_inactive_sessions()

    assert session.id not in coordinator
    assert len(coordinator) == 0
    assert coordinator.list_sessions() == []
    assert coordinator.active_session is None
    assert coordinator.stats().live == 0
    for call in (
        lambda: coordinator.get_session(session.id),
        lambda: coordinator.touch_session(session.id),
        lambda: coordinator.switch_session("support"),
        lambda: coordinator.close_session(session.id),
        lambda: coordinator.checkout(session.id).__enter__(),
        session.touch,
        session.record_message,
    ):
        with pytest.raises(SessionExpiredError) as caught:
            call()
        assert (caught.value.cause, caught.value.ended_at) == (RemovalCause.IDLE, 60)
    assert coordinator.create_session("support").id in coordinator


@pytest.mark.parametrize("cleanup", [False, True], ids=["cleanup has not run", "cleanup has run"])
def test_rule_1_an_expired_id_does_not_hide_a_live_name(
    cleanup: bool, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Where an expired session had as its id what is now a live session's name, switch_session finds the live one."""
    coordinator = session_coordinator(CONFIG)
    coordinator.create_session(session_id="twin")
    session_clock.advance(61)
    live = coordinator.create_session("twin")
    if cleanup:
        coordinator.cleanup_inactive_sessions()

    assert coordinator.switch_session("twin") is live


def test_rule_1_closing_ends_also_what_was_found_expired_before(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A session that len() found expired, and no cleanup removed, is finalized by close()."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)
    coordinator.create_session("support")
    session_clock.advance(61)
    assert len(coordinator) == 0
    coordinator.close()
    assert closings == [("support", RemovalCause.IDLE)]


# ---- Rule 2: a touch that returned normally buys a full timeout


def test_rule_1_closing_ends_also_what_is_found_expired_meanwhile() -> None:
    """It makes no difference at which line of close() another thread finds that the session has expired."""
    clock = ManualClock()
    for once in interruptions():
        closings = Closings()
        coordinator = SessionCoordinator[Any](CONFIG, clock=clock, on_close=closings)
        coordinator.create_session("support")
        clock.advance(61)

        def count(coordinator: SessionCoordinator[Any] = coordinator) -> None:
            with in_thread(coordinator.__len__) as counted:
                assert counted.result(WAIT) == 0

        with once.outside_decisions(coordinator, count):
            coordinator.close()
        assert closings == [("support", RemovalCause.IDLE)]


def test_rule_2_a_touch_overtaken_by_a_cleanup_does_not_return_normally() -> None:
    """A touch that read the clock in time, but comes after the removal, raises; it never pretends."""
    clock = HeldUpClock()
    with SessionCoordinator(CONFIG, clock=clock) as coordinator:
        session = coordinator.create_session()

        def touch_late() -> None:
            clock.hold_up_this_thread()
            coordinator.touch_session(session.id)

        with in_thread(touch_late) as touched:
            assert clock.held_up.wait(WAIT)
            clock.advance(61)
            assert coordinator.cleanup_inactive_sessions() == 1
            clock.go_on.set()
            with pytest.raises(SessionExpiredError):
                touched.result(WAIT)


@pytest.mark.parametrize("late_call", ["touch", "checkout", "message"])
def test_rule_2_a_touch_that_was_held_up_counts_from_the_latest_reading(late_call: str) -> None:
    """A touch with an old reading that is decided after newer readings buys its timeout from the newest of them."""
    clock = HeldUpClock()
    with SessionCoordinator(CONFIG, clock=clock) as coordinator:
        session = coordinator.create_session()
        other = coordinator.create_session()

        def act_late() -> None:
            clock.hold_up_this_thread()
            if late_call == "touch":
                coordinator.touch_session(session.id)
            elif late_call == "message":
                session.record_message()
            else:
                with coordinator.checkout(session.id):
                    pass

        with in_thread(act_late) as acted:
            assert clock.held_up.wait(WAIT)
            clock.advance(59)
            coordinator.touch_session(other.id)
            clock.go_on.set()
            acted.result(WAIT)
        clock.advance(60)
        assert coordinator.cleanup_inactive_sessions() == 0
        assert session.id in coordinator
        clock.advance(0.001)
        assert coordinator.cleanup_inactive_sessions() == 2


def test_rule_2_holds_beside_cleanups_of_other_threads(session_coordinator: CoordinatorFactory) -> None:
    """A touch that returned normally buys a full timeout.

    While cleanups race with touches, a session that is touched every 40 of its 60 seconds is never removed.
    """
    clock = ManualClock()
    closings = Closings()
    coordinator = session_coordinator(CONFIG, clock=clock, on_close=closings)
    ids = [coordinator.create_session().id for _ in range(30)]
    rounds = threading.Barrier(4, action=lambda: clock.advance(40))

    def touch(mine: list[str]) -> None:
        for _ in range(50):
            for session_id in mine:
                coordinator.touch_session(session_id)
            rounds.wait(WAIT)

    def churn() -> None:
        for _ in range(50):
            for _ in range(10):
                coordinator.create_session()
                coordinator.cleanup_inactive_sessions()
            rounds.wait(WAIT)

    parts = [lambda start=start: touch(ids[start : start + 10]) for start in (0, 10, 20)]
    assert all_at_once(*parts, churn) == [None] * 4
    assert not {name for name, _ in closings} & set(ids)
    assert len(closings) > 400


# ---- Rule 3: a checked-out session is never expired or evicted


def test_rule_3_a_checked_out_session_is_never_expired(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A session that is checked out is never expired for idleness or evicted.

    However long it is held, and however often cleanup runs, it is there; then it has a full timeout.
    """
    coordinator = session_coordinator(one_minute(max_active_sessions=1, on_full="evict"))
    session = coordinator.create_session()
    with coordinator.checkout(session.id):
        session_clock.advance(1e6)
        assert coordinator.cleanup_inactive_sessions() == 0
        assert coordinator.cleanup_inactive_sessions(max_age=1) == 0
        assert coordinator.get_session(session.id) is session
        assert coordinator.list_sessions() == [session]
        with pytest.raises(SessionLimitError, match="all are checked out"):
            coordinator.create_session()
    session_clock.advance(60)
    assert session.id in coordinator


@pytest.mark.parametrize("cause", [RemovalCause.CLOSED, RemovalCause.LIFETIME])
def test_rule_3_what_ends_a_checked_out_session(
    cause: RemovalCause, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """An explicit close, or the maximum lifetime, ends a checked-out session when it is given back."""
    closings = Closings()
    coordinator = session_coordinator(one_minute(max_lifetime=100), on_close=closings)
    session = coordinator.create_session("support")
    with coordinator.checkout(session.id):
        if cause is RemovalCause.CLOSED:
            coordinator.close_session(session.id)
        else:
            session_clock.advance(101)
        coordinator.cleanup_inactive_sessions()
        assert session.id not in coordinator
        assert closings == []
    assert closings == [("support", cause)]


def test_rule_3_a_checkout_that_was_held_up_before_its_decision_gets_a_live_session_or_none() -> None:
    """Cleanup before the decision: SessionExpiredError. Decision before the cleanup: the session stays."""
    clock = HeldUpClock()
    with SessionCoordinator(CONFIG, clock=clock) as coordinator:
        session = coordinator.create_session()

        def check_out_late() -> None:
            clock.hold_up_this_thread()
            with coordinator.checkout(session.id):
                pytest.fail("it was expired")

        with in_thread(check_out_late) as late:
            assert clock.held_up.wait(WAIT)
            clock.advance(61)
            coordinator.cleanup_inactive_sessions()
            clock.go_on.set()
            with pytest.raises(SessionExpiredError):
                late.result(WAIT)


def test_rule_3_a_session_that_goes_from_holder_to_waiter_is_never_at_rest_in_between(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Between a give-back and the waiter's first step, the session cannot be evicted or expired."""
    coordinator = session_coordinator(one_minute(max_active_sessions=1, on_full="evict"))
    session = coordinator.create_session()
    waiting, go_on = threading.Event(), threading.Event()

    def dawdle() -> None:
        waiting.set()
        assert go_on.wait(WAIT)

    def check_out() -> bool:
        checkout = coordinator.checkout(session.id)
        with telling_decisions(coordinator, dawdle):
            checkout.__enter__()
        is_there = session.id in coordinator
        checkout.__exit__()
        return is_there

    with ThreadPoolExecutor(1) as pool:
        with coordinator.checkout(session.id):
            future = pool.submit(check_out)
            assert waiting.wait(WAIT)
        session_clock.advance(1000)
        assert coordinator.cleanup_inactive_sessions() == 0
        with pytest.raises(SessionLimitError):
            coordinator.create_session()
        go_on.set()
        assert future.result(WAIT) is True


# ---- Rule 4: one door out


def test_rule_4_of_many_that_close_one_session_one_succeeds(session_coordinator: CoordinatorFactory) -> None:
    """Threads closing the same session at once: one returns, the others are told it is closed, on_close runs once."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)
    for _ in range(50):
        session = coordinator.create_session()
        outcomes = all_at_once(*[lambda session=session: coordinator.close_session(session.id)] * 4)
        assert outcomes.count(None) == 1
        assert [type(outcome) for outcome in outcomes].count(SessionExpiredError) == 3
        assert len([name for name, _ in closings if name == session.id]) == 1


def test_rule_4_every_session_leaves_once_whatever_races(session_coordinator: CoordinatorFactory) -> None:
    """Every session leaves exactly once, whatever the cause and whatever races.

    Creations, closes, checkouts, cleanups, evictions, lifetimes and a shutdown at once.
    """
    clock = ManualClock()
    left: list[str] = []
    coordinator = session_coordinator(
        one_minute(max_active_sessions=20, max_lifetime=200, on_full="evict"),
        clock=clock,
        on_close=lambda session, cause: left.append(session.id),
    )
    channel = coordinator.subscribe(100_000)
    made: list[str] = []

    def live(number: int) -> None:
        for step in range(100):
            try:
                made.append(coordinator.create_session().id)
                mine = made[-1 - (step * number) % 10 :][0]
                with coordinator.checkout(mine, timeout=0):
                    if step % 3 == 0:
                        coordinator.close_session(mine)
                coordinator.close_session(made[-1])
            except (SessionNotFoundError, SessionBusyError, SessionLimitError):
                continue

    def clean() -> None:
        for step in range(200):
            clock.advance(7)
            coordinator.cleanup_inactive_sessions(max_age=30 if step % 5 == 0 else None)

    outcomes = all_at_once(*[lambda number=number: live(number) for number in range(4)], clean)
    coordinator.close()

    assert outcomes == [None] * 5
    assert sorted(left) == sorted(made)
    stats = coordinator.stats()
    assert stats.created == sum(stats.removed.values()) == len(made)
    assert stats.checked_out == 0
    removed = [event.session_id for event in channel if event.kind is EventKind.REMOVED]
    assert sorted(removed) == sorted(made)


def test_rule_4_a_session_leaves_everything_behind(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """After the end: no resource, no name, no active mark, no place in any order, one event and one count."""
    coordinator = session_coordinator(
        one_minute(max_lifetime=1000),
        resource_factory=lambda _: object(),
    )
    session = coordinator.create_session("support", session_timeout=30)
    coordinator.switch_session("support")
    with coordinator.subscribe() as channel:
        session_clock.advance(31)
        coordinator.cleanup_inactive_sessions()
        assert [(event.kind, event.cause) for event in [channel.get(timeout=0)] if event] == [
            (EventKind.REMOVED, RemovalCause.IDLE)
        ]
    assert session.resource is None
    assert coordinator.active_session is None
    assert "0 sessions in memory" in repr(coordinator)
    assert coordinator.stats().removed[RemovalCause.IDLE] == 1
    assert coordinator.create_session("support", session_id=session.id).name == "support"


# ---- Rule 5: no user code and no I/O under the lock


def test_rule_5_the_lock_is_free_inside_everything_that_users_pass_in(
    session_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clock, factory, close callback and log handlers all run while the lock is free."""
    free: dict[str, list[bool]] = {"clock": [], "factory": [], "on_close": [], "log": []}
    coordinator: SessionCoordinator[Any]

    def clock() -> float:
        if threading.current_thread().name != LOCK_PROBE:
            free["clock"].append(lock_is_free(coordinator))
        return session_clock()

    def factory(_: ManagedSession[Any]) -> None:
        free["factory"].append(lock_is_free(coordinator))

    def on_close(_: ManagedSession[Any], __: RemovalCause) -> None:
        free["on_close"].append(lock_is_free(coordinator))
        raise OSError("so that it is logged")

    class Handler(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            free["log"].append(lock_is_free(coordinator))

    monkeypatch.setattr(logging.getLogger("sessionkit"), "handlers", [Handler()])
    config = one_minute(max_active_sessions=2, max_lifetime=100, on_full="evict")
    coordinator = SessionCoordinator(config, clock=clock, resource_factory=factory, on_close=on_close)
    with coordinator, coordinator.subscribe():
        first, second = coordinator.create_session(), coordinator.create_session()
        coordinator.create_session()
        with coordinator.checkout(second.id) as held:
            held.record_message()
            coordinator.close_session(second.id)
        coordinator.switch_session(coordinator.create_session("support").id)
        session_clock.advance(101)
        coordinator.cleanup_inactive_sessions(max_age=5)
        coordinator.stats()
        coordinator.create_session()
    assert first.id not in coordinator
    assert {what for what, answers in free.items() if answers and all(answers)} == set(free)


def collect_a_checkout(once: Interruption) -> None:
    closed: list[bool] = []
    done = threading.Event()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closed.append(lock_is_free(coordinator))
        done.set()

    def respond() -> Iterator[str]:
        with coordinator.checkout("it") as session:
            yield session.id

    def collect() -> None:
        response.close()
        assert closed == []

    with SessionCoordinator[Any](CONFIG, clock=ManualClock(), on_close=on_close) as coordinator:
        coordinator.create_session(session_id="it")
        response = respond()
        next(response)
        coordinator.close_session("it")
        with once.within_decisions(coordinator, collect):
            coordinator.create_session()
        assert len(coordinator) == 1
        if once.came:
            assert done.wait(WAIT)
            assert closed == [True]
            assert coordinator.stats().checked_out == 0
        response.close()


def test_rule_5_a_checkout_that_is_collected_in_the_middle_of_a_decision() -> None:
    """A generator that holds a session, collected while its thread decides, gives it back, and only after that."""
    for once in interruptions():
        collect_a_checkout(once)


def test_rule_5_what_is_no_id_is_not_hashed_under_the_lock(session_coordinator: CoordinatorFactory) -> None:
    """The methods of an object that somebody passes for an id do not run under the lock."""
    coordinator = session_coordinator(CONFIG)
    free: list[bool] = []

    class NoId:
        def __hash__(self) -> int:
            free.append(lock_is_free(coordinator))
            return 1

        def __repr__(self) -> str:
            free.append(lock_is_free(coordinator))
            return "NoId()"

    for call in (
        coordinator.get_session,
        coordinator.touch_session,
        coordinator.close_session,
        coordinator.switch_session,
        coordinator.checkout,
    ):
        with pytest.raises(TypeError, match=r"NoId\(\)"):
            call(NoId())  # type: ignore[operator]  # the mistake under test
    assert NoId() not in coordinator
    assert free == [True] * 5


def close_and_be_refused(once: Interruption) -> None:
    closings = Closings()
    free: list[bool] = []

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        free.append(lock_is_free(coordinator))
        closings(session, cause)

    def interrupt() -> None:
        for call in (
            lambda: coordinator.create_session(),
            lambda: coordinator.checkout(first.id).__enter__(),
            lambda: coordinator.cleanup_inactive_sessions(),
            lambda: coordinator.list_sessions(),
            lambda: len(coordinator),
            first.record_message,
        ):
            with pytest.raises(RuntimeError, match="in the middle of a decision"):
                call()
        coordinator.close_session(first.id)
        assert closings == []

    with SessionCoordinator[Any](CONFIG, clock=ManualClock(), on_close=on_close) as coordinator:
        first, second = coordinator.create_session("first"), coordinator.create_session("second")
        channel = coordinator.subscribe()
        with once.within_decisions(coordinator, interrupt):
            coordinator.switch_session(second.id)
        coordinator.list_sessions()
        if not once.came:
            return
        events = [channel.get(timeout=WAIT) for _ in range(2)]
        assert {event.kind for event in events if event} == {EventKind.SWITCHED, EventKind.REMOVED}
        assert (first.id in coordinator, second.id in coordinator) == (False, True)
    assert [event.session_id for event in channel] == [second.id]
    assert free == [True, True]
    assert closings == [("first", RemovalCause.CLOSED), ("second", RemovalCause.SHUTDOWN)]


def test_rule_5_what_interrupts_a_decision_does_not_decide() -> None:
    """A signal handler or finalizer in the middle of a decision: closing is done later, all else is refused."""
    for once in interruptions():
        close_and_be_refused(once)


def test_rule_5_a_close_that_interrupts_a_decision_comes_after_it() -> None:
    """A signal handler that closes the coordinator in the middle of a decision: all is closed, and said to be."""
    for once in interruptions():
        closings = Closings()
        coordinator = SessionCoordinator[Any](CONFIG, clock=ManualClock(), on_close=closings)
        session = coordinator.create_session("it")
        channel = coordinator.subscribe()
        with once.within_decisions(coordinator, coordinator.close):
            coordinator.switch_session(session.id)
        coordinator.list_sessions()
        if once.came:
            kinds = [event.kind for event in channel]
            assert kinds == [EventKind.SWITCHED, EventKind.REMOVED]
            assert closings == [("it", RemovalCause.SHUTDOWN)]
        coordinator.close()


def interrupt_a_decision(once: Interruption, way: str) -> None:
    closed_in: list[str] = []

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        assert lock_is_free(coordinator)
        closed_in.append(threading.current_thread().name)

    def respond() -> Iterator[str]:
        with coordinator.checkout("it") as session:
            yield session.id

    def start_no_thread(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    started: list[str] = []
    start = threading.Thread.start
    coordinator = SessionCoordinator[Any](CONFIG, clock=ManualClock(), on_close=on_close)
    coordinator.create_session(session_id="it")
    response = respond()
    if way == "give back":
        next(response)
        coordinator.close_session("it")
    deferred = {
        "close": coordinator.close,
        "close_session": lambda: coordinator.close_session("it"),
        "give back": response.close,
    }[way]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_no_thread)
        with once.within_decisions(coordinator, lambda: (deferred(), closed_in.append("deferred"))):
            coordinator.subscribe().close()
            with suppress(SessionNotFoundError, CoordinatorClosedError):
                coordinator.switch_session("it")
        # By the next call at the latest.
        coordinator.list_sessions()
        assert len(coordinator) == 0 or not once.came
        assert coordinator.stats().checked_out == 0 or not once.came
        assert [name for name in started if name != LOCK_PROBE] == []
    if once.came:
        assert closed_in == ["deferred", threading.current_thread().name]
    response.close()
    coordinator.close()


@pytest.mark.parametrize("way", ["close", "close_session", "give back"])
def test_rule_5_what_is_closed_in_the_middle_of_a_decision_is_closed_after_it_by_the_same_thread(way: str) -> None:
    """A finalizer or signal handler that closes, or gives back, in the middle of a decision: that is done when the lock
    is next free, in the thread that was interrupted or by the next call, and no thread is started for it.
    """
    for once in interruptions():
        interrupt_a_decision(once, way)


# ---- Rule 6, cleanup costs what it removes, has its tests in tests/project/test_cost.py


# ---- Rule 10: monotonic time inside; its other tests are in test_clock.py


def test_rule_10_last_active_never_moves_back_between_threads() -> None:
    """Two touches whose readings are decided in the opposite order leave the later one standing."""
    clock = HeldUpClock()
    with SessionCoordinator(CONFIG, clock=clock) as coordinator:
        session = coordinator.create_session()

        def touch_late() -> None:
            clock.hold_up_this_thread()
            session.touch()

        with in_thread(touch_late) as touched:
            assert clock.held_up.wait(WAIT)
            clock.advance(30)
            session.touch()
            clock.go_on.set()
            touched.result(WAIT)
        assert session.metadata.last_active == 30


# ---- Rules 7 and 11 have their tests in test_cleanup.py and test_fork.py


def test_limits_hold_on_every_interleaving_of_two_creations() -> None:
    """Two creations for one place: whichever decides first gets it, also while its factory is still at work."""
    inside, go_on = threading.Event(), threading.Event()

    def factory(session: ManagedSession[Any]) -> None:
        if session.name == "slow":
            inside.set()
            assert go_on.wait(WAIT)

    config = CoordinatorConfig(max_active_sessions=1)
    with SessionCoordinator(config, resource_factory=factory) as coordinator:
        with in_thread(coordinator.create_session, "slow") as slow:
            assert inside.wait(WAIT)
            with pytest.raises(SessionLimitError):
                coordinator.create_session("quick")
            go_on.set()
            assert slow.result(WAIT).name == "slow"
        assert len(coordinator) == 1


def test_stress_sessions_leave_in_the_order_of_their_last_activity(session_coordinator: CoordinatorFactory) -> None:
    """After many threads at work, a cleanup by age removes those that have been idle for more, and no others."""
    clock = ManualClock()
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=1e6, cleanup_interval=10), clock=clock)
    ids = [coordinator.create_session(session_timeout=1e6 + number % 3).id for number in range(30)]

    def work(offset: int) -> None:
        for step, session_id in zip(range(600), itertools.cycle(ids[offset:] + ids[:offset]), strict=False):
            clock.advance(0.5)
            if step % 3:
                coordinator.touch_session(session_id)
            else:
                with coordinator.checkout(session_id, exclusive=step % 2 == 0):
                    pass

    assert all_at_once(*[lambda offset=offset: work(offset) for offset in range(0, 30, 8)]) == [None] * 4
    listed = coordinator.list_sessions()
    activity = [session.metadata.last_active for session in listed]
    assert sorted(session.id for session in listed) == sorted(ids)
    assert activity == sorted(activity)
    clock.advance(1)
    for instant in sorted(set(activity)):
        coordinator.cleanup_inactive_sessions(max_age=clock() - instant - 0.25)
        assert coordinator.list_sessions() == [s for s in listed if s.metadata.last_active > instant]
