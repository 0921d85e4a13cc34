"""What channels tell, in which order, and what they drop."""

from __future__ import annotations

import gc
import threading
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
    SessionState,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, all_at_once, in_thread, lock_is_free


def drain(channel: EventChannel) -> list[SessionEvent]:
    return list(iter(lambda: channel.get(timeout=0), None))


def hold_up_delivery(channel: EventChannel, patch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold up whoever delivers to the channel: the first event is set when it is there, the second lets it go on."""
    inside, go_on = threading.Event(), threading.Event()
    put = channel.put

    def put_late(event: SessionEvent) -> bool:
        inside.set()
        assert go_on.wait(WAIT)
        return put(event)

    patch.setattr(channel, "put", put_late)
    return inside, go_on


def test_a_channel_tells_the_life_of_a_session(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Creation, switch, message, tool execution, state change and removal are events; touches are not."""
    coordinator = session_coordinator(CoordinatorConfig(60, 10))
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


def test_a_removal_is_told_before_its_id_is_used_again(
    session_coordinator: CoordinatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal is posted in the same decision that frees the id, so no creation can come before it."""
    coordinator = session_coordinator()
    channel = coordinator.subscribe()
    post = coordinator._bus.post
    free: list[bool] = []

    def post_and_look(*event: Any) -> None:
        free.append(lock_is_free(coordinator))
        post(*event)

    monkeypatch.setattr(coordinator._bus, "post", post_and_look)
    for _ in range(2):
        coordinator.close_session(coordinator.create_session(session_id="s-1").id)
    assert free == [False] * 4
    assert [event.kind for event in drain(channel)] == [EventKind.CREATED, EventKind.REMOVED] * 2


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
    """Readers that wait are let go when their channel is closed, also by a handler just before they wait."""
    channel = session_coordinator().subscribe()
    about_to_wait = threading.Semaphore(0)
    closed_by_handler = False
    tokens = channel._tokens

    class Interrupted:
        """A queue whose reader is interrupted just before it waits."""

        def get(self, timeout: float | None) -> None:
            nonlocal closed_by_handler
            about_to_wait.release()
            if threading.current_thread() is threading.main_thread():
                channel.close()
                closed_by_handler = True
            tokens.get(timeout=timeout)

        def put(self, token: None) -> None:
            tokens.put(token)

    channel._tokens = Interrupted()  # type: ignore[assignment]  # it is a queue in all that matters
    with in_thread(channel.get) as first, in_thread(channel.get) as second:
        for _ in range(2):
            assert about_to_wait.acquire(timeout=WAIT)
        assert channel.get() is None
        assert (first.result(WAIT), second.result(WAIT)) == (None, None)
    assert closed_by_handler


def test_channels_that_come_and_go_cost_no_writer(session_coordinator: CoordinatorFactory) -> None:
    """However many channels were closed or dropped, the next subscription and the next event forget them all."""
    coordinator = session_coordinator()
    kept = coordinator.subscribe()
    for _ in range(100):
        coordinator.subscribe().close()
    assert len(coordinator._bus.channels) <= 2
    closed = [coordinator.subscribe() for _ in range(100)]
    for channel in closed:
        channel.close()
    for _ in range(2):
        coordinator.create_session()
    assert len(coordinator._bus.channels) == 1
    assert len(drain(kept)) == 2


def test_an_interrupted_delivery_brings_the_rest(
    session_coordinator: CoordinatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that a signal handler raises in the middle of a delivery loses neither later events nor the end."""
    bus = session_coordinator()._bus
    channel = bus.subscribe(10)
    put = channel.put

    def put_or_exit(event: SessionEvent) -> bool:
        if event.session_id == "struck":
            bus.close()
            raise SystemExit
        return put(event)

    monkeypatch.setattr(channel, "put", put_or_exit)
    for session_id in ("struck", "later"):
        bus.post(EventKind.CREATED, session_id, 0.0)
    with pytest.raises(SystemExit):
        bus.deliver()
    assert [event.session_id for event in channel] == ["later"]
    assert channel.closed


def test_a_handler_that_closes_during_subscribe(
    session_coordinator: CoordinatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() in the middle of subscribe(): no channel is left that nobody closes."""
    bus = session_coordinator()._bus
    bus.subscribe(1)

    def close_and_filter(function: Any, channels: Any) -> Any:
        bus.close()
        return filter(function, channels)

    monkeypatch.setattr("sessionkit.core.events.filter", close_and_filter, raising=False)
    with pytest.raises(CoordinatorClosedError):
        bus.subscribe(1)
    assert bus.channels == ()


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
    assert channel.put(SessionEvent(EventKind.CREATED, "late", 0))
    assert drain(channel) == []


def test_a_dropped_channel_costs_nothing(session_coordinator: CoordinatorFactory) -> None:
    """The coordinator does not keep a channel that its reader dropped, nor events for it."""
    coordinator = session_coordinator()
    channel: EventChannel | None = coordinator.subscribe()
    coordinator.create_session()
    assert channel is not None
    del channel
    gc.collect()
    coordinator.create_session()

    assert len(coordinator._bus.channels) == 0
    assert len(coordinator._bus.posted) == 0


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


def test_a_held_up_delivery_is_neither_overtaken_nor_waited_for(
    session_coordinator: CoordinatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread brings an event to a channel, another one's event is noted, and brought after it."""
    coordinator = session_coordinator()
    channel = coordinator.subscribe()
    inside, go_on = hold_up_delivery(channel, monkeypatch)
    with in_thread(lambda: coordinator.create_session(session_id="first")):
        assert inside.wait(WAIT)
        coordinator.create_session(session_id="second")
        assert drain(channel) == []
        go_on.set()
    assert [event.session_id for event in drain(channel)] == ["first", "second"]


def test_what_is_posted_at_the_end_of_a_delivery_is_delivered(session_coordinator: CoordinatorFactory) -> None:
    """An event that another thread posts while a delivery is ending, and cannot deliver itself, is not forgotten."""
    bus = session_coordinator()._bus
    channel = bus.subscribe(10)

    class EndingLock:
        """At the end of the first delivery, another thread posts an event, and finds the lock taken."""

        def __init__(self) -> None:
            self.late: list[str] = ["late"]

        def acquire(self, *, blocking: bool) -> bool:
            return not blocking

        def release(self) -> None:
            if self.late:
                bus.post(EventKind.CREATED, self.late.pop(), 0.0)

    bus._delivering = EndingLock()  # type: ignore[assignment]  # it is a lock in all that matters
    bus.post(EventKind.CREATED, "early", 0.0)
    bus.deliver()
    assert [event.session_id for event in drain(channel)] == ["early", "late"]


def test_a_channel_gets_only_what_is_decided_after_it_was_made(session_coordinator: CoordinatorFactory) -> None:
    """An event that was noted for a channel that is gone is not brought to one that came later."""
    coordinator = session_coordinator()
    first = coordinator.subscribe()
    coordinator._bus.post(EventKind.CREATED, "early", 0.0)
    second = coordinator.subscribe()
    del first
    session = coordinator.create_session()

    assert [event.session_id for event in drain(second)] == [session.id]


def test_closing_while_an_event_is_brought_closes_after_it(
    session_coordinator: CoordinatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel is closed after the last event was brought, also where another thread is at that."""
    coordinator = session_coordinator()
    channel = coordinator.subscribe()
    inside, go_on = hold_up_delivery(channel, monkeypatch)
    with in_thread(lambda: coordinator.create_session(session_id="s-1")):
        assert inside.wait(WAIT)
        coordinator.close()
        assert not channel.closed
        go_on.set()
    assert channel.closed
    assert [event.kind for event in channel] == [EventKind.CREATED, EventKind.REMOVED]


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
