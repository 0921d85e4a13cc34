"""Checkouts that take long: who has what, how it is found out, and how it is ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import interruptions, telling_decisions
from ..helpers.support import WAIT, Closings, HookedClock, in_thread, one_minute, wait_until

Coordinator = SessionCoordinator[Any]


@pytest.fixture
def closings() -> Closings:
    return Closings()


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory, closings: Closings) -> Coordinator:
    return session_coordinator(one_minute(max_lifetime=1000), on_close=closings)


@contextmanager
def held_elsewhere(coordinator: Coordinator, session_id: str) -> Iterator[threading.Event]:
    """Another thread, called "holder", has the session until the event is set, or the block ends."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with suppress(SessionExpiredError), coordinator.checkout(session_id):
            inside.set()
            leave.wait(WAIT)

    thread = threading.Thread(target=hold, name="holder")
    thread.start()
    try:
        assert inside.wait(WAIT)
        yield leave
    finally:
        leave.set()
        thread.join(WAIT)


# ---- Who has what


def test_checkouts_says_who_has_which_session_for_how_long_and_who_waits(
    coordinator: Coordinator, session_clock: ManualClock
) -> None:
    """The longest first; a session that has ended and is held still is among them."""
    first, second = coordinator.create_session("first"), coordinator.create_session()
    assert coordinator.checkouts() == []
    queued = threading.Event()

    def wait() -> None:
        checkout = coordinator.checkout(second.id)
        with telling_decisions(coordinator, queued.set):
            checkout.__enter__()
        checkout.__exit__()

    with held_elsewhere(coordinator, first.id):
        session_clock.advance(5)
        with coordinator.checkout(second.id, exclusive=False, holder="request 7"):
            session_clock.advance(2)
            waiter = threading.Thread(target=wait, name="waiter")
            waiter.start()
            assert queued.wait(WAIT)
            coordinator.close_session(first.id)
            longest, other = coordinator.checkouts()
        waiter.join(WAIT)
    assert longest._asdict() == {
        "session_id": first.id,
        "name": "first",
        "ended": True,
        "exclusive": True,
        "thread": "holder",
        "holder": None,
        "held_for": 7,
        "waiting": [],
    }
    assert (other.session_id, other.ended, other.exclusive) == (second.id, False, False)
    assert (other.thread, other.holder, other.held_for) == (threading.current_thread().name, "'request 7'", 2)
    assert other.waiting == ["waiter"]
    assert coordinator.checkouts() == []


def test_a_checkout_whose_thread_has_ended(coordinator: Coordinator) -> None:
    """A block that a thread has left behind is shown, and can be ended."""
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    with in_thread(checkout.__enter__) as entered:
        entered.result(WAIT)
    assert [found.thread for found in coordinator.checkouts()] == ["gone"]
    coordinator.close_session(session.id, force=True)
    assert coordinator.checkouts() == []


def test_each_session_that_is_checked_out_for_too_long_is_logged_once(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With `checkout_warning`, by the cleanup, with the stack of the thread that has it."""
    coordinator = session_coordinator(one_minute(checkout_warning=60))
    session = coordinator.create_session("kernel")
    with held_elsewhere(coordinator, session.id) as leave:
        session_clock.advance(60)
        coordinator.cleanup_inactive_sessions()
        assert caplog.records == []
        session_clock.advance(1)
        for _ in range(2):
            coordinator.cleanup_inactive_sessions()
        (record,) = caplog.records
        message = record.getMessage()
        assert "session 'kernel' has been checked out for 61 seconds (checkout_warning=60)" in message
        assert f"close_session({session.id!r}, force=True) ends it" in message
        assert "'holder', is here" in message
        assert "leave.wait(WAIT)" in message
        assert record.levelno == logging.WARNING
        leave.set()
    with held_elsewhere(coordinator, session.id):
        session_clock.advance(61)
        coordinator.cleanup_inactive_sessions()
    assert len(caplog.records) == 2


def test_without_checkout_warning_nothing_is_logged(
    coordinator: Coordinator, session_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """That is the default."""
    session = coordinator.create_session()
    with coordinator.checkout(session.id):
        session_clock.advance(999)
        coordinator.cleanup_inactive_sessions()
    assert caplog.records == []


# ---- Ending it by force


def test_a_close_by_force_runs_the_close_callback_now(coordinator: Coordinator, closings: Closings) -> None:
    """A close by force runs the close callback at once, although the session is checked out, and what its holder saves
    is refused.

    The holder goes on, and finds out: `session.ended`, and an error when it saves or gives back.
    """
    session = coordinator.create_session("kernel", session_id="s-1", resource=object())
    checkout = coordinator.checkout("s-1")
    held = checkout.__enter__()
    coordinator.close_session("s-1", force=True)
    assert closings == [("kernel", RemovalCause.CLOSED)]
    assert held.ended is RemovalCause.CLOSED
    assert held.resource is None
    for call in (held.touch, held.record_message, checkout.save, checkout.revert, lambda: checkout.rotate("s-2")):
        with pytest.raises(SessionExpiredError):
            call()
    # Its id is free.
    successor = coordinator.create_session("kernel", session_id="s-1")
    with pytest.raises(SessionExpiredError) as caught:
        checkout.__exit__()
    assert caught.value.cause is RemovalCause.CLOSED
    assert coordinator.list_sessions() == [successor]
    assert successor.ended is None
    assert closings == [("kernel", RemovalCause.CLOSED)]
    stats = coordinator.stats()
    assert (stats.checked_out, stats.leaving, stats.removed[RemovalCause.CLOSED]) == (0, 0, 1)
    assert session.ended is RemovalCause.CLOSED


def test_what_the_block_raises_is_not_hidden_by_the_force(coordinator: Coordinator) -> None:
    """The holder's own error, which the loss of the resource may well have caused, goes on."""
    session = coordinator.create_session()

    def lose_it() -> None:
        with coordinator.checkout(session.id):
            coordinator.close_session(session.id, force=True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lose_it()


def test_every_holder_and_every_waiter_is_told(coordinator: Coordinator, closings: Closings) -> None:
    """Of a shared session all holders lose it at once, and those that wait for it are sent away."""
    session = coordinator.create_session("kernel")
    queued = threading.Event()

    def wait() -> None:
        checkout = coordinator.checkout(session.id)
        with telling_decisions(coordinator, queued.set):
            checkout.__enter__()

    one, two = (coordinator.checkout(session.id, exclusive=False, holder=name) for name in ("one", "two"))
    one.__enter__()
    two.__enter__()
    with in_thread(wait) as waiting:
        assert queued.wait(WAIT)
        coordinator.close_session(session.id, force=True)
        assert isinstance(waiting.exception(WAIT), SessionExpiredError)
    for checkout in (one, two):
        with pytest.raises(SessionExpiredError):
            checkout.__exit__()
        checkout.__exit__()
    assert closings == [("kernel", RemovalCause.CLOSED)]


def test_force_without_need(coordinator: Coordinator, closings: Closings, session_clock: ManualClock) -> None:
    """For a session that is not checked out, or not there, it is an ordinary close."""
    coordinator.create_session("kernel", session_id="s-1")
    coordinator.close_session("s-1", force=True)
    assert closings == [("kernel", RemovalCause.CLOSED)]
    with pytest.raises(SessionExpiredError):
        coordinator.close_session("s-1", force=True)
    with pytest.raises(SessionNotFoundError):
        coordinator.close_session("never", force=True)
    with pytest.raises(TypeError, match="force"):
        coordinator.close_session("s-1", force="yes")  # type: ignore[arg-type]  # on purpose
    coordinator.create_session(session_id="s-2")
    session_clock.advance(61)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.close_session("s-2", force=True)
    assert caught.value.cause is RemovalCause.IDLE


@pytest.mark.parametrize("found", ["by a call", "by a cleanup", "by the force itself"])
def test_a_session_past_its_lifetime_that_is_held_can_be_found_and_forced(
    coordinator: Coordinator, closings: Closings, session_clock: ManualClock, found: str
) -> None:
    """Its cause stays LIFETIME, however it was found out."""
    session = coordinator.create_session("kernel")
    with held_elsewhere(coordinator, session.id):
        session_clock.advance(1001)
        if found == "by a call":
            assert session.id not in coordinator
        elif found == "by a cleanup":
            assert coordinator.cleanup_inactive_sessions() == 0
        (checkout,) = coordinator.checkouts()
        assert (checkout.session_id, checkout.ended) == (session.id, True)
        coordinator.close_session(session.id, force=True)
        assert closings == [("kernel", RemovalCause.LIFETIME)]
        assert coordinator.checkouts() == []


def test_a_close_by_force_in_a_signal_handler_is_made_later(coordinator: Coordinator, closings: Closings) -> None:
    """As any other close that comes in the middle of a decision; whatever it interrupts, it is done in the end."""
    for once in interruptions():
        session = coordinator.create_session("kernel")
        with held_elsewhere(coordinator, session.id):
            with once.within_decisions(coordinator, lambda: coordinator.close_session(session.id, force=True)):  # noqa: B023  called at once
                coordinator.stats()
            coordinator.stats()
            if session.ended is None:
                # There was no such moment any more.
                coordinator.close_session(session.id, force=True)
            assert coordinator.checkouts() == []
        assert closings == [("kernel", RemovalCause.CLOSED)]
        closings.clear()


def test_a_session_that_is_given_back_just_before_the_force_is_closed(closings: Closings) -> None:
    """As any other: its holder is not told of anything."""
    clock = HookedClock()
    with SessionCoordinator(one_minute(), clock=clock, on_close=closings) as coordinator:
        session = coordinator.create_session("kernel")
        checkout = coordinator.checkout(session.id)
        checkout.__enter__()
        clock.at_reading(1, checkout.__exit__)
        coordinator.close_session(session.id, force=True)
    assert closings == [("kernel", RemovalCause.CLOSED)]


# ---- Closing the coordinator


def test_close_waits_for_checkouts_to_end(coordinator: Coordinator, closings: Closings) -> None:
    """Up to its timeout; it returns what is checked out still, which is nothing then."""
    session = coordinator.create_session("kernel")
    with (
        held_elsewhere(coordinator, session.id) as leave,
        in_thread(lambda: coordinator.close(timeout=WAIT)) as closing,
    ):
        wait_until(lambda: session.ended is not None)
        assert closings == []
        with pytest.raises(CoordinatorClosedError):
            coordinator.get_session(session.id)
        leave.set()
        assert closing.result(WAIT) == []
    assert closings == [("kernel", RemovalCause.SHUTDOWN)]


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_close_forces_the_rest(coordinator: Coordinator, closings: Closings, timeout: float) -> None:
    """With `force=True`, once its timeout is over; without, it says what is held still."""
    session = coordinator.create_session("kernel")
    with held_elsewhere(coordinator, session.id), coordinator.subscribe() as channel:
        (left,) = coordinator.close(timeout=timeout)
        assert (left.session_id, left.ended, left.thread) == (session.id, True, "holder")
        assert closings == []
        assert coordinator.close(timeout=timeout, force=True) == []
        assert closings == [("kernel", RemovalCause.SHUTDOWN)]
        assert channel.closed
    assert coordinator.close() == []
    assert closings == [("kernel", RemovalCause.SHUTDOWN)]


def test_close_by_force_tells_the_channels(coordinator: Coordinator) -> None:
    """They are closed when all is done."""
    session = coordinator.create_session("kernel")
    with held_elsewhere(coordinator, session.id), coordinator.subscribe() as channel:
        coordinator.close(force=True)
        assert [(event.session_id, event.cause) for event in channel] == [(session.id, RemovalCause.SHUTDOWN)]


def test_wrong_ways_to_close(coordinator: Coordinator) -> None:
    """They say so, and close nothing."""
    with pytest.raises(ValueError, match="timeout"):
        coordinator.close(timeout=-1)
    with pytest.raises(TypeError, match="force"):
        coordinator.close(force=1)  # type: ignore[arg-type]  # on purpose
    coordinator.create_session()


# ---- Memory is bounded by what is alive


@pytest.mark.parametrize("on_full", ["reject", "evict"])
def test_rule_14_a_session_that_has_ended_and_is_held_takes_its_place(
    session_coordinator: CoordinatorFactory, on_full: Any
) -> None:
    """A session that has ended and is checked out still takes its place in `max_active_sessions` until it is given
    back.

    The error says so.
    """
    coordinator = session_coordinator(one_minute(max_active_sessions=1, on_full=on_full))
    session = coordinator.create_session("kernel")
    with held_elsewhere(coordinator, session.id) as leave:
        coordinator.close_session(session.id)
        stats = coordinator.stats()
        assert (stats.live, stats.checked_out, stats.leaving) == (0, 1, 1)
        with pytest.raises(SessionLimitError, match=r"1 of them have ended, and are checked out still: checkouts\(\)"):
            coordinator.create_session("another")
        leave.set()
    assert coordinator.create_session("another").ended is None
    assert coordinator.stats().leaving == 0


def test_rule_14_room_is_made_by_force(session_coordinator: CoordinatorFactory, closings: Closings) -> None:
    """A user who asks for a new kernel while the old one hangs gets it, and the old one is gone."""
    coordinator = session_coordinator(one_minute(max_active_sessions=1), on_close=closings)
    session = coordinator.create_session("kernel", resource=object())
    with held_elsewhere(coordinator, session.id):
        with pytest.raises(SessionLimitError):
            coordinator.create_session("another")
        coordinator.close_session(session.id, force=True)
        coordinator.create_session("another", resource=object())
    assert closings == [("kernel", RemovalCause.CLOSED)]


def test_a_name_is_free_and_an_id_is_not_while_it_is_held(coordinator: Coordinator) -> None:
    """As without force, until it is forced."""
    session = coordinator.create_session("kernel", session_id="s-1")
    with held_elsewhere(coordinator, session.id):
        coordinator.close_session("s-1")
        with pytest.raises(SessionExistsError, match="still closing"):
            coordinator.create_session(session_id="s-1")
        with pytest.raises(SessionExpiredError):
            coordinator.checkout("s-1", timeout=0).__enter__()
        coordinator.close_session("s-1", force=True)
        with coordinator.checkout(coordinator.create_session(session_id="s-1").id, timeout=0):
            with held_elsewhere_fails(coordinator, "s-1"):
                pass


@contextmanager
def held_elsewhere_fails(coordinator: Coordinator, session_id: str) -> Iterator[None]:
    """Another thread cannot have the session."""
    with in_thread(lambda: coordinator.checkout(session_id, timeout=0).__enter__()) as other:
        assert isinstance(other.exception(WAIT), SessionBusyError)
        yield
