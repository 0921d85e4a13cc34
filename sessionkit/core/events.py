"""What happened to which session, and the bounded channels that tell it."""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple, Self
from weakref import ref

from ..errors import CoordinatorClosedError, RemovalCause
from ..util.validation import Duration, checked_count, checked_wait


class EventKind(enum.Enum):
    """What happened. Plain touches are not events: there would be too many."""

    CREATED = "created"
    RESTORED = "restored"
    """It came back from the store."""
    SWITCHED = "switched"
    """It was made the active session by `switch_session`."""
    MESSAGE = "message"
    TOOL_EXECUTION = "tool_execution"
    STATE_CHANGE = "state_change"
    ROTATED = "rotated"
    """It was given another id by `rotate_session`; `former_id` says which it had."""
    REMOVED = "removed"
    """It left; `cause` says why. Told after its close callback has run."""


class SessionEvent(NamedTuple):
    """One thing that happened to one session."""

    kind: EventKind
    session_id: str
    at: float
    """When: a reading of the coordinator's clock, in seconds. For `REMOVED`, the instant the session ended."""
    cause: RemovalCause | None = None
    """Why it left; None for every kind but `REMOVED`."""
    former_id: str | None = None
    """The id it had before; None for every kind but `ROTATED`."""


class EventChannel:
    """A bounded queue of session events; made by `SessionCoordinator.subscribe`.

    When it is full, the oldest event is dropped and counted: a slow reader never slows a writer. All methods may be
    called from any thread. Iterating waits for the next event and ends when the channel is closed and read out.
    Use it as a context manager, or `close()` it; a channel that is simply dropped costs nothing either.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = checked_count("capacity", capacity)
        """How many unread events it keeps."""
        self._events: deque[SessionEvent] = deque()
        # A token for each event, and one for the end. Unlike a condition, a SimpleQueue may be put to by a signal
        # handler that interrupts a reader just before it waits.
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.RLock()
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many events were dropped because the channel was full."""
        return self._dropped

    @property
    def closed(self) -> bool:
        """Whether no more events will come; those that have come can still be read."""
        return self._closed

    def get(self, timeout: Duration | None = None) -> SessionEvent | None:
        """The next event, waiting up to `timeout` seconds of real time (None: as long as it takes; 0: not at all).

        None if there was none in that time, or if the channel is closed and read out.
        """
        seconds = checked_wait("timeout", timeout)
        try:
            self._tokens.get(timeout=None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            return None
        with self._lock:
            if self._events:
                return self._events.popleft()
        # The token of the end, which is for everybody.
        self._tokens.put(None)
        return None

    def close(self) -> None:
        """Take no more events and end all waiting. Closing again does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._tokens.put(None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SessionEvent:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def put(self, event: SessionEvent) -> bool:
        """Add an event, and say whether none had to be dropped for it. For the coordinator."""
        with self._lock:
            if self._closed:
                return True
            fits = len(self._events) < self.capacity
            if not fits:
                # Its token serves the new event.
                self._events.popleft()
                self._dropped += 1
            self._events.append(event)
            if fits:
                self._tokens.put(None)
            return fits

    def abandon(self) -> None:
        """Close the copy that a forked child has; the parent's threads, and their lock, are not here any more."""
        self._lock = threading.RLock()
        self._tokens = SimpleQueue()
        for _ in self._events:
            self._tokens.put(None)
        self._closed = False
        self.close()


TURN = 100
"""How many events one thread delivers for all before another one may take over."""

Channels = tuple[ref[EventChannel], ...]


class EventBus:
    """Takes events in the order in which they were decided, and brings them to every channel in that order.

    `post` only notes an event for the channels there are then, so that it may be called under the coordinator's lock;
    `deliver` fills the channels and is called without it. One thread delivers at a time, for all that have posted; the
    others do not wait for it. So nobody who holds a channel's lock, or is interrupted by a finalizer while it does, can
    be in another one's way.
    """

    def __init__(self) -> None:
        self.posted: deque[tuple[SessionEvent | None, Channels]] = deque()
        """What waits for delivery."""
        # Replaced as a whole, so that it can be read without a lock.
        self.channels: Channels = ()
        """Who listens."""
        self._changing = threading.RLock()
        self._delivering = threading.RLock()
        # threading.Condition asks the lock the same way.
        self._is_delivering: Callable[[], bool] = self._delivering._is_owned  # type: ignore[attr-defined]  # typeshed does not know it
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many events were dropped by full channels, over all channels there ever were."""
        return self._dropped

    def subscribe(self, capacity: int) -> EventChannel:
        """A new channel; it gets what is posted from now on. It is not kept alive for that."""
        channel = EventChannel(capacity)
        reference = ref(channel)
        with self._changing:
            self.channels = (*filter(_takes_more, self.channels), reference)
            # After the fact, because a signal handler may have closed the bus in between.
            if self._closed:
                self.channels = ()
                raise CoordinatorClosedError("this coordinator is closed and has no more events; make a new one")
        return channel

    def post(
        self,
        kind: EventKind,
        session_id: str,
        at: float,
        cause: RemovalCause | None = None,
        former_id: str | None = None,
    ) -> None:
        """Note an event for delivery."""
        if self.channels:
            self.posted.append((SessionEvent(kind, session_id, at, cause, former_id), self.channels))

    def deliver(self) -> None:
        """Bring what was posted to the channels, unless another thread is at it: that one brings it too."""
        if self._is_delivering():
            # This is a finalizer or a signal handler, which interrupts this very thread.
            return
        try:
            while self.posted and self._delivering.acquire(blocking=False):
                for _ in range(min(len(self.posted), TURN)):
                    self._bring(*self.posted.popleft())
                self._delivering.release()
                if self.posted:
                    # Others post as fast as this thread delivers: let one of them have its turn.
                    time.sleep(0)
        except BaseException:
            # An interruption strikes one event; the others, and the end, are brought all the same.
            if self._is_delivering():
                self._delivering.release()
            self.deliver()
            raise

    def close(self) -> None:
        """Close every channel once what was posted before is delivered."""
        with self._changing:
            channels, self.channels = self.channels, ()
            self._closed = True
        self.posted.append((None, channels))
        self.deliver()

    def abandon(self) -> None:
        """Close the channels' copies in a forked child."""
        for channel in filter(None, [reference() for reference in self.channels]):
            channel.abandon()

    def _bring(self, event: SessionEvent | None, channels: Channels) -> None:
        stale = False
        for reference in channels:
            channel = reference()
            if channel is None or channel.closed:
                stale = True
            elif event is None:
                channel.close()
            elif not channel.put(event):
                self._dropped += 1
        if stale:
            with self._changing:
                if self.channels is channels:
                    self.channels = tuple(filter(_takes_more, channels))


def _takes_more(reference: ref[EventChannel]) -> bool:
    channel = reference()
    return channel is not None and not channel.closed
