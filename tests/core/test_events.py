"""What channels tell, in which order, and what they drop."""

from __future__ import annotations

import gc
import sys
import threading
from queue import SimpleQueue
from types import FrameType
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
from sessionkit.core import events
from sessionkit.core.events import EventBus
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, all_at_once, in_thread, lock_is_free

Events = SimpleQueue[SessionEvent | None]


def created(number: int) -> SessionEvent:
    return SessionEvent(EventKind.CREATED, str(number), float(number))


def drain(channel: EventChannel) -> list[SessionEvent]:
    return list(iter(lambda: channel.get(timeout=0), None))


def test_a_channel_tells_the_life_of_a_session(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Creation, switch, message, tool execution, state change and removal are events; touches are not."""
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10))
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

    class Interrupted(Events):
        """A queue whose reader is interrupted just before it waits."""

        def get(self, block: bool = True, timeout: float | None = None) -> SessionEvent | None:
            nonlocal closed_by_handler
            about_to_wait.release()
            if threading.current_thread() is threading.main_thread():
                channel.close()
                closed_by_handler = True
            return super().get(block, timeout)

    channel._events = Interrupted()  # the moment under test is inside
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


def test_an_interrupted_post_loses_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that a signal handler raises in the middle of a post loses neither later events nor the end."""
    bus = EventBus()
    channel = bus.subscribe(10)
    put = channel.put

    def put_or_exit(event: SessionEvent) -> bool:
        if event.session_id == "struck":
            raise SystemExit
        return put(event)

    monkeypatch.setattr(channel, "put", put_or_exit)
    with pytest.raises(SystemExit):
        bus.post(EventKind.CREATED, "struck", 0.0)
    bus.post(EventKind.CREATED, "later", 0.0)
    bus.close()
    assert [event.session_id for event in channel] == ["later"]
    assert channel.closed


def test_ctrl_c_in_the_middle_of_a_post_loses_one_event() -> None:
    """Wherever it strikes, at most one event is lost, those after it come, and the end comes after them."""

    def strike(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines_to_go
        if frame.f_code.co_filename != events.__file__:
            return None
        lines_to_go -= event == "line"
        if lines_to_go < 0:
            lines_to_go = sys.maxsize
            raise KeyboardInterrupt
        return strike

    strikes = 0
    while strikes < 1000:
        bus = EventBus()
        gone, full, roomy = bus.subscribe(1), bus.subscribe(1), bus.subscribe(10)
        bus.post(EventKind.CREATED, "early", 0.0)
        gone.close()
        lines_to_go = strikes
        before = sys.gettrace()
        sys.settrace(strike)
        try:
            bus.post(EventKind.CREATED, "struck", 1.0)
            break
        except KeyboardInterrupt:
            strikes += 1
        finally:
            sys.settrace(before)
        bus.post(EventKind.CREATED, "later", 2.0)
        bus.close()
        assert [event.session_id for event in full] == ["later"], strikes
        assert [event.session_id for event in roomy if event.session_id != "struck"] == ["early", "later"], strikes
    assert strikes > 10


def test_a_handler_that_closes_during_subscribe(monkeypatch: pytest.MonkeyPatch) -> None:
    """close() in the middle of subscribe(): no channel is left that nobody closes."""
    bus = EventBus()
    first = bus.subscribe(1)

    def close_and_make(capacity: int) -> EventChannel:
        bus.close()
        return EventChannel(capacity)

    monkeypatch.setattr("sessionkit.core.events.EventChannel", close_and_make)
    with pytest.raises(CoordinatorClosedError):
        bus.subscribe(1)
    assert first.closed
    assert not bus.channels


def test_channels_that_two_threads_forget_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A post and a subscription that both find a channel closed remove it once, and agree on the others."""
    bus = EventBus()
    closed, kept = bus.subscribe(1), bus.subscribe(1)
    closed.close()

    class Overtaken(list[Any]):
        """The channels, which another thread goes over before the copy is used."""

        def copy(self) -> list[Any]:
            copied = super().copy()
            monkeypatch.setattr(bus, "channels", list(self))
            bus.post(EventKind.CREATED, "s-1", 0.0)
            return copied

    bus.channels = Overtaken(bus.channels)
    new = bus.subscribe(1)
    assert [reference() for reference in bus.channels] == [kept, new]
    assert [event.session_id for event in drain(kept)] == ["s-1"]


def test_a_reader_may_come_in_the_middle_of_a_post() -> None:
    """A reader that takes the oldest event just when it is to be dropped: one event is dropped for a new one, or none.

    The count agrees with what is missing.
    """

    class Overtaken(Events):
        """A queue that is read between the question how full it is and what follows from that."""

        def qsize(self) -> int:
            number = super().qsize()
            if number == channel.capacity and not read:
                read.append(channel.get())
            return number

    for capacity, expected in ((1, [0, 1]), (2, [0, 2])):
        read: list[SessionEvent | None] = []
        channel = EventChannel(capacity)
        channel._events = Overtaken()  # the moment under test is inside
        fits = [channel.put(created(number)) for number in range(capacity + 1)]
        assert [event.at for event in [*read, *drain(channel)] if event] == expected
        assert fits.count(False) == channel.dropped == capacity + 1 - len(expected)


def test_a_channel_that_is_closed_in_the_middle_of_a_post_ends() -> None:
    """close() just when the oldest event, or even the mark of the end, is dropped: readers get the end all the same."""

    class Closed(Events):
        """A queue whose channel is closed between the question how full it is and what follows from that."""

        def qsize(self) -> int:
            channel.close()
            return 1

    channel = EventChannel(1)
    channel._events = Closed()  # the moment under test is inside
    channel.put(created(1))
    assert [event.at for event in channel] == [1.0]
    assert channel.get() is None


def test_a_reader_that_cannot_keep_up_misses_what_was_dropped_and_nothing_else() -> None:
    """However reader and writer meet, events come in order, once each, and the others are counted as dropped."""
    bus = EventBus()
    channel = bus.subscribe(3)

    def write() -> None:
        for number in range(5000):
            bus.post(EventKind.MESSAGE, "s-1", float(number))
        bus.close()

    with in_thread(lambda: [event.at for event in channel]) as first, in_thread(write) as writer:
        second = [event.at for event in channel]
        assert writer.result(WAIT) is None
        both = [first.result(WAIT), second]
    assert both == [sorted(set(times)) for times in both]
    assert len({*both[0], *both[1]}) == len(both[0]) + len(both[1]) == 5000 - bus.dropped
    assert channel.dropped == bus.dropped


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


def test_a_channel_gets_only_what_is_decided_after_it_was_made(session_coordinator: CoordinatorFactory) -> None:
    """An event that was posted before does not come to a channel that was made later."""
    coordinator = session_coordinator()
    first = coordinator.subscribe()
    coordinator._bus.post(EventKind.CREATED, "early", 0.0)
    second = coordinator.subscribe()
    del first
    session = coordinator.create_session()

    assert [event.session_id for event in drain(second)] == [session.id]


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
