"""What channels tell, in which order, and what they drop."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from contextlib import suppress
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    EventChannel,
    EventKind,
    RemovalCause,
    SessionCoordinator,
    SessionEvent,
    SessionExistsError,
    SessionState,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import Interruption, before_each_line, interruptions
from ..helpers.support import WAIT, all_at_once, in_thread, one_minute


def drain(channel: EventChannel) -> list[SessionEvent]:
    return list(iter(lambda: channel.get(timeout=0), None))


def test_a_channel_tells_the_life_of_a_session(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Creation, switch, message, tool execution, state change and removal are events; touches are not."""
    coordinator = session_coordinator(one_minute())
    with coordinator.subscribe() as channel:
        session = coordinator.create_session()
        session_clock.advance(1)
        coordinator.touch_session(session.id)
        coordinator.switch_session(session.id)
        session.record_message()
        session.record_tool_execution()
        session.set_state(SessionState.PROCESSING)
        session.set_state(SessionState.PROCESSING)
        session_clock.advance(100)
        coordinator.cleanup_inactive_sessions()

        assert drain(channel) == [
            SessionEvent(EventKind.CREATED, session.id, 0),
            SessionEvent(EventKind.SWITCHED, session.id, 1),
            SessionEvent(EventKind.MESSAGE, session.id, 1),
            SessionEvent(EventKind.TOOL_EXECUTION, session.id, 1),
            SessionEvent(EventKind.STATE_CHANGE, session.id, 1),
            SessionEvent(EventKind.REMOVED, session.id, 61, RemovalCause.IDLE),
        ]


def test_a_removal_is_told_before_its_id_is_used_again() -> None:
    """Another thread that creates a session with the id as soon as that is free has its creation told after it."""
    for once in interruptions():
        with SessionCoordinator[Any](clock=ManualClock()) as coordinator:
            channel = coordinator.subscribe()
            coordinator.create_session(session_id="s-1")

            def create(coordinator: SessionCoordinator[Any] = coordinator) -> None:
                with suppress(SessionExistsError), in_thread(create_again, coordinator) as created:
                    created.result(WAIT)

            with once.outside_decisions(coordinator, create):
                coordinator.close_session("s-1")
            kinds = [event.kind for event in drain(channel)]
            assert kinds == [EventKind.CREATED, EventKind.REMOVED, EventKind.CREATED][: coordinator.stats().created + 1]


def create_again(coordinator: SessionCoordinator[Any]) -> None:
    coordinator.create_session(session_id="s-1")


def test_a_dropped_coordinator_lets_its_readers_go() -> None:
    """A reader that waits on a channel whose coordinator was dropped gets the end of it."""
    coordinator: SessionCoordinator[Any] = SessionCoordinator()
    channel = coordinator.subscribe()
    with in_thread(channel.get) as reader:
        with pytest.warns(ResourceWarning):
            del coordinator
        assert reader.result(WAIT) is None


def test_a_full_channel_drops_the_oldest_event_and_counts_it(session_coordinator: CoordinatorFactory) -> None:
    """A channel nobody reads keeps its last events and slows nobody; others get everything."""
    coordinator = session_coordinator(CoordinatorConfig(event_capacity=5))
    slow, quick, small = coordinator.subscribe(), coordinator.subscribe(100), coordinator.subscribe(capacity=1)
    ids = [coordinator.create_session().id for _ in range(8)]

    assert [event.session_id for event in drain(slow)] == ids[3:]
    assert [event.session_id for event in drain(quick)] == ids
    assert [event.session_id for event in drain(small)] == ids[7:]
    assert (slow.dropped, quick.dropped, small.dropped) == (3, 0, 7)
    assert coordinator.stats().events_dropped == 10


def test_a_channel_that_was_full_waits_again_once_it_is_read_out(session_coordinator: CoordinatorFactory) -> None:
    """Dropped events leave nothing behind that a later reader could take for an event or for the end."""
    coordinator = session_coordinator()
    channel = coordinator.subscribe(capacity=2)
    for _ in range(5):
        coordinator.create_session()
    assert len(drain(channel)) == 2
    with in_thread(channel.get) as reader:
        session = coordinator.create_session()
        event = reader.result(WAIT)
    assert event is not None
    assert event.session_id == session.id


def test_get_waits_for_the_next_event(session_coordinator: CoordinatorFactory) -> None:
    """A reader that waits is woken by the next event, and one that waits in vain gets None."""
    coordinator = session_coordinator()
    channel = coordinator.subscribe()
    assert channel.get(timeout=0.001) is None
    with in_thread(channel.get) as reader:
        session = coordinator.create_session()
        assert reader.result(WAIT) == SessionEvent(EventKind.CREATED, session.id, 0)


def test_close_lets_all_readers_go(session_coordinator: CoordinatorFactory) -> None:
    """Readers that wait are let go when their channel is closed."""
    channel = session_coordinator().subscribe()
    reading = threading.Barrier(3)

    def read() -> SessionEvent | None:
        reading.wait(WAIT)
        return channel.get()

    with in_thread(read) as first, in_thread(read) as second:
        reading.wait(WAIT)
        channel.close()
        assert (first.result(WAIT), second.result(WAIT)) == (None, None)
        assert channel.get() is None


def lines_before_it_waits(channel: EventChannel) -> int:
    """How many lines a reader runs before it waits: the next one comes when the time is up."""
    instants: list[float] = []
    with before_each_line(lambda: instants.append(time.monotonic())):
        assert channel.get(timeout=0.1) is None
    gaps = [later - instant for instant, later in itertools.pairwise(instants)]
    return gaps.index(max(gaps)) + 1


@pytest.mark.parametrize("closes", ["channel", "coordinator"])
def test_a_handler_that_closes_what_the_interrupted_thread_reads(closes: str) -> None:
    """A reader whose channel is closed by a handler that interrupts it, just before it waits too, is let go."""
    with SessionCoordinator[Any](clock=ManualClock()) as coordinator:
        lines = lines_before_it_waits(coordinator.subscribe())
    for at in range(lines):
        with SessionCoordinator[Any](clock=ManualClock()) as coordinator:
            channel = coordinator.subscribe()
            once = Interruption(at)
            began = time.monotonic()
            with once.outside_decisions(coordinator, channel.close if closes == "channel" else coordinator.close):
                assert channel.get(timeout=WAIT) is None
            assert once.came
            assert time.monotonic() - began < WAIT


def test_closing_the_coordinator_ends_iteration_after_the_last_event(session_coordinator: CoordinatorFactory) -> None:
    """A loop over a channel gets everything up to the shutdown, and then ends."""
    coordinator = session_coordinator()
    channel = coordinator.subscribe()
    with in_thread(lambda: [event.kind for event in channel]) as reader:
        coordinator.create_session()
        coordinator.close()
        assert reader.result(WAIT) == [EventKind.CREATED, EventKind.REMOVED]
    assert channel.closed
    with pytest.raises(CoordinatorClosedError):
        coordinator.subscribe()


def test_a_handler_that_closes_during_subscribe() -> None:
    """close() in the middle of subscribe(): no channel is left that nobody closes."""
    for once in interruptions():
        coordinator = SessionCoordinator[Any](clock=ManualClock())
        first = coordinator.subscribe()
        second = None
        with suppress(CoordinatorClosedError), once.outside_decisions(coordinator, coordinator.close):
            second = coordinator.subscribe()
        assert first.closed is once.came
        assert second is None or second.closed is once.came
        coordinator.close()


def test_a_closed_channel_takes_nothing_more(session_coordinator: CoordinatorFactory) -> None:
    """After its block a channel can be read out, and gets no more events; closing it again does nothing."""
    coordinator = session_coordinator()
    with coordinator.subscribe() as channel, coordinator.subscribe() as other:
        coordinator.create_session()
        channel.close()
        coordinator.create_session()
        assert len(drain(other)) == 2
    channel.close()

    assert [event.kind for event in channel] == [EventKind.CREATED]
    coordinator.create_session()
    assert drain(channel) == []


def test_an_event_that_comes_while_its_channel_is_closed_takes_no_end_away(
    session_coordinator: CoordinatorFactory,
) -> None:
    """Where the coordinator has an event for a full channel that a reader closes just then, all readers are let go."""
    channel = session_coordinator().subscribe(capacity=1)
    event = SessionEvent(EventKind.CREATED, "late", 0)
    reading = threading.Barrier(3)

    def read() -> SessionEvent | None:
        reading.wait(WAIT)
        return channel.get()

    with in_thread(read) as first, in_thread(read) as second:
        reading.wait(WAIT)
        channel.close()
        channel.put(event)
        assert {first.result(WAIT), second.result(WAIT)} <= {None, event}
    assert channel.dropped == 0


def test_a_dropped_channel_costs_nothing(session_coordinator: CoordinatorFactory) -> None:
    """The coordinator does not keep a channel that its reader dropped, nor events for it."""
    coordinator = session_coordinator()
    channel: EventChannel | None = coordinator.subscribe(capacity=1)
    dropped = weakref.ref(channel)
    coordinator.create_session()
    del channel
    gc.collect()
    coordinator.create_session()

    assert dropped() is None
    assert coordinator.stats().events_dropped == 0


def test_every_channel_gets_events_in_the_order_of_the_decisions(session_coordinator: CoordinatorFactory) -> None:
    """With many threads at work, each session is created before it is removed, in the same order on every channel."""
    coordinator = session_coordinator()
    channels = [coordinator.subscribe(10_000) for _ in range(2)]

    def live_and_die() -> None:
        for _ in range(50):
            coordinator.close_session(coordinator.create_session().id)

    assert all_at_once(*[live_and_die] * 4) == [None] * 4
    first, second = (drain(channel) for channel in channels)
    assert first == second
    assert len(first) == 400
    created: set[str] = set()
    for event in first:
        if event.kind is EventKind.CREATED:
            created.add(event.session_id)
        else:
            created.remove(event.session_id)
    assert not created


def test_a_channel_gets_only_what_is_decided_after_it_was_made() -> None:
    """A channel that is made while another thread creates a session is told of it if it was not there before."""
    for once in interruptions():
        with SessionCoordinator[Any](clock=ManualClock()) as coordinator:
            first = coordinator.subscribe()
            late: list[EventChannel] = []
            was_there: list[bool] = []

            def subscribe(
                coordinator: SessionCoordinator[Any] = coordinator,
                late: list[EventChannel] = late,
                was_there: list[bool] = was_there,
            ) -> None:
                was_there.append("early" in coordinator)
                late.append(coordinator.subscribe())

            with once.outside_decisions(coordinator, subscribe):
                coordinator.create_session(session_id="early")
            coordinator.create_session(session_id="later")
            told = ["later"] if was_there == [True] else ["early", "later"]
            assert [event.session_id for event in drain(first)] == ["early", "later"]
            assert [[event.session_id for event in drain(channel)] for channel in late] == [told][: len(late)]


def test_closing_while_an_event_is_brought_closes_after_it() -> None:
    """A channel is closed after the last event, at whatever line of a creation another thread closes."""
    for once in interruptions():
        coordinator = SessionCoordinator[Any](clock=ManualClock())
        channel = coordinator.subscribe()

        def close(coordinator: SessionCoordinator[Any] = coordinator) -> None:
            with in_thread(coordinator.close) as closed:
                assert closed.exception(WAIT) is None

        with suppress(CoordinatorClosedError), once.outside_decisions(coordinator, close):
            coordinator.create_session()
        coordinator.close()
        assert channel.closed
        assert [event.kind for event in channel] == [EventKind.CREATED, EventKind.REMOVED][
            : 2 * coordinator.stats().created
        ]


def test_a_slow_reader_slows_no_writer(session_coordinator: CoordinatorFactory) -> None:
    """However many events nobody reads, calls return, and the newest events are there."""
    coordinator = session_coordinator()
    channel = coordinator.subscribe(capacity=3)
    for number in range(50):
        coordinator.create_session(session_id=str(number))
    assert [event.session_id for event in drain(channel)] == ["47", "48", "49"]
    assert channel.dropped == 47


@pytest.mark.parametrize(
    ("capacity", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError), ("9", TypeError)]
)
def test_a_bad_capacity_is_refused(
    capacity: Any, error: type[Exception], session_coordinator: CoordinatorFactory
) -> None:
    """The capacity of a channel is a whole number of at least 1."""
    with pytest.raises(error, match=f"capacity must be .*{capacity!r}"):
        session_coordinator().subscribe(capacity)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_a_bad_timeout_is_refused(timeout: float, session_coordinator: CoordinatorFactory) -> None:
    """How long to wait is 0 or more seconds and finite, or None."""
    with pytest.raises(ValueError, match="timeout must be 0 or more"):
        session_coordinator().subscribe().get(timeout)
