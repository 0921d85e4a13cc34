"""What happened to which session, and the bounded channels that tell it."""

from __future__ import annotations

import enum
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple, Self
from weakref import ref

from ..errors import CoordinatorClosedError, RemovalCause
from ..util.copies import refuse_copies
from ..util.validation import Duration, checked_count, checked_wait


class EventKind(enum.StrEnum):
    """What happened; each is a str too. Plain touches are not events: there would be too many."""

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
        # Ends with None once the channel is closed. A SimpleQueue blocks no writer, and each of its calls is one step
        # that no finalizer or signal handler of the same thread can split.
        self._events: SimpleQueue[SessionEvent | None] = SimpleQueue()
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
        if self._closed:
            # Nothing more will come.
            seconds = 0.0
        try:
            event = self._events.get(timeout=None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            return None
        if event is None:
            # Other readers wait for the end too.
            self._events.put(None)
        return event

    def close(self) -> None:
        """Take no more events and end all waiting. Closing again does nothing."""
        if not self._closed:
            self._closed = True
            self._events.put(None)

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

    __reduce_ex__ = refuse_copies("call subscribe() for each reader that is to get every event")

    def put(self, event: SessionEvent) -> bool:
        """Add an event, and return whether none was dropped for it. For the coordinator, which puts one at a time."""
        fits = True
        if self._events.qsize() >= self.capacity:
            # If a reader takes the oldest event at this moment, the next one is dropped in its place, if there is one.
            with suppress(Empty):
                fits = self._events.get_nowait() is None
                self._dropped += not fits
        self._events.put(event)
        if self._closed:
            # A reader closed the channel just now: the end may have been taken out, or stand before the event.
            self._events.put(None)
        return fits

    def abandon(self) -> None:
        """Close the copy that a forked child has: the threads that read the parent's channel are not here."""
        inherited, self._events = self._events, SimpleQueue()
        for _ in range(inherited.qsize()):
            self._events.put(inherited.get_nowait())
        self._closed = True
        self._events.put(None)


class EventBus:
    """Brings the events of one coordinator to every channel, in the order in which they were decided.

    `post` is called under the coordinator's lock, which gives the order. It waits for no reader and takes no lock of
    its own, so that a reader which is interrupted at any point, or a lost thread in a forked child, stops no writer.
    The other methods may be called from anywhere.
    """

    def __init__(self) -> None:
        self.channels: list[ref[EventChannel]] = []
        """The channels that get events, and some that are gone; empty if there are none. Read without a lock."""
        # Each use of the list is one call of a method of its own, and so one step, whatever comes in between.
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many events were dropped by full channels, over all channels there ever were."""
        return self._dropped

    def subscribe(self, capacity: int) -> EventChannel:
        """A new channel; it gets what is posted from now on. It is not kept alive for that.

        Raises `CoordinatorClosedError` after `close`.
        """
        channel = EventChannel(capacity)
        self._open_channels()
        self.channels.append(ref(channel))
        # Asked last, so that a `close` in between leaves no open channel behind.
        if self._closed:
            self.channels.clear()
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
        """Put an event into every channel."""
        if self.channels:
            event = SessionEvent(kind, session_id, at, cause, former_id)
            for channel in self._open_channels():
                self._dropped += not channel.put(event)

    def close(self) -> None:
        """Close every channel. Closing again does nothing."""
        self._closed = True
        for channel in self._open_channels():
            channel.close()
        self.channels.clear()

    def abandon(self) -> None:
        """Close the channels' copies in a forked child."""
        for channel in self._open_channels():
            channel.abandon()

    def _open_channels(self) -> list[EventChannel]:
        """The channels that take events; those that do not are removed from the list."""
        open_channels = []
        for reference in self.channels.copy():
            channel = reference()
            if channel is not None and not channel.closed:
                open_channels.append(channel)
            else:
                # Another thread may have removed it.
                with suppress(ValueError):
                    self.channels.remove(reference)
        return open_channels
