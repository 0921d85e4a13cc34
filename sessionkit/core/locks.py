"""The lock of one session: which checkouts have it, and which wait for it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from ..errors import SessionBusyError


class Holder(Protocol):
    """One checkout of a session."""

    token: object | None
    """Stands for who has, or wants, the session; None for the block that was entered."""
    exclusive: bool
    held: bool
    """Whether it has the session. Set by the lock."""
    taken_away: bool
    """Whether the session was taken from it. Set by the lock."""
    since: float
    """When it took the session, on the coordinator's clock. Set by the registry."""
    thread: int
    """The ident of the thread that took the session."""
    holder: object | None
    """What was given as the holder."""
    was_reported: bool
    """Whether the log has been told that it takes long."""
    waiter: Waiter | None
    """What is woken when its turn has come; None for the sleep of a thread, which is made when it is queued."""

    def is_around_caller(self) -> bool:
        """Whether the code that asks runs within the block of this checkout."""
        ...


class Waiter(Protocol):
    """What waits for a checkout."""

    def wake(self) -> None:
        """It is time to ask again: the session is the checkout's, or has ended, or has another id.

        Called with the coordinator's lock held, from any thread, as what it does is what a lock's release does: it
        returns at once, calls no coordinator, and raises nothing.
        """
        ...


class Sleep:
    """The wait of a thread."""

    __slots__ = ("_awake",)

    def __init__(self) -> None:
        # An event takes a lock to wake: a signal handler could find it taken by the thread that it interrupts.
        self._awake = threading.Lock()
        self._awake.acquire()

    def wait(self, seconds: float) -> bool:
        """Sleep until woken, or for that many seconds of real time; whether it was woken."""
        return self._awake.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """End the wait, or the next one."""
        # It may have been woken before, while nothing waited.
        with contextlib.suppress(RuntimeError):
            self._awake.release()


def check_may_wait(session_id: str) -> None:
    """Raise `SessionBusyError` if the calling thread is not to wait, because an asyncio event loop runs in it.

    All tasks of the loop would stand still, among them the one that may have the session.
    """
    # An event loop can only run where asyncio was imported.
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        raise SessionBusyError(
            f"session {session_id!r} cannot be had at once, and to wait for it here would block the event loop that "
            "runs in this thread: use 'async with sessionkit.aio.checkout(...)', make other calls in a thread "
            "(asyncio.to_thread), or try again later"
        )


def check_time_left(session_id: str, deadline: float | None) -> float | None:
    """How many seconds there are until a deadline on `time.monotonic`; None if there is none.

    Raises `SessionBusyError` once it is over.
    """
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
        raise SessionBusyError(
            f"session {session_id!r} is being made, or is to leave, and was for all of the timeout; wait longer, or "
            "see what its resource_factory, its on_close or its checkouts do"
        )
    return left


class SessionLock:
    """One session's lock: one holder exclusively, or several sharing it; the rest wait, first come first served.

    Code within a block that has the session may take it again. Guarded by the coordinator's lock; exists while a
    session is checked out, or is being made.
    """

    __slots__ = ("_takes", "holders", "waiters")

    def __init__(self, holder: Holder | None = None) -> None:
        self.holders: list[Holder] = [] if holder is None else [holder]
        """The checkouts that have the session."""
        self.waiters: deque[Holder] | None = None
        """The checkouts that wait for it, in their order; None if there never was one."""
        self._takes = 0

    def recognize(self, holder: Holder) -> None:
        """Give a checkout the token of one that has the session, if the calling code runs within that one's block."""
        _recognize(holder, self.holders)

    def take(self, holder: Holder) -> bool:
        """Take the session for a checkout if that can be done at once. Called by the code that is to have it."""
        # Also of one that waits: a signal handler may check out what the code that it interrupts waits for.
        _recognize(holder, (*self.holders, *(self.waiters or ())))
        if not self._admits(holder) or (self.waiters and not self._is_nested(holder)):
            return False
        self._add(holder)
        return True

    def takes_of_last(self, holder: Holder) -> int | None:
        """How often the session was taken, if this is the only checkout that has it; None if others have it too.

        If that is the same later on, no other has had the session in between.
        """
        return self._takes if len(self.holders) == 1 and self.holders[0] is holder else None

    def would_deadlock(self, holder: Holder) -> bool:
        """Whether a wait could never end: holders that share a session and each wait for the others to leave it."""
        return self._is_nested(holder) and not self._admits(holder)

    def queue(self, holder: Holder) -> None:
        """Give a checkout a place at the end of the queue."""
        if holder.waiter is None:
            holder.waiter = Sleep()
        if self.waiters is None:
            self.waiters = deque()
        self.waiters.append(holder)

    def give_back(self, holder: Holder) -> bool:
        """Undo one `take` (or one granted wait), and let in the waiters that can be let in; whether it is free then."""
        holder.held = False
        self.holders.remove(holder)
        if self.waiters:
            self._admit(self.waiters)
        return not self.holders

    def take_away(self) -> None:
        """Let none of the holders have the session any more."""
        for holder in self.holders:
            holder.held, holder.taken_away = False, True

    def withdraw(self, holder: Holder) -> None:
        """Leave the queue without having been let in. Withdrawing again, or after `dismiss`, does nothing."""
        if self.waiters and holder in self.waiters:
            self.waiters.remove(holder)
            self._admit(self.waiters)

    def dismiss(self) -> None:
        """Wake all waiters: the session has ended, or has another id."""
        while self.waiters:
            _wake(self.waiters.popleft())

    def _is_nested(self, holder: Holder) -> bool:
        return holder.token is not None and any(other.token == holder.token for other in self.holders)

    def _admits(self, holder: Holder) -> bool:
        """Whether the holders there are let this one have the session too."""
        others = [other for other in self.holders if other.token is None or other.token != holder.token]
        return not others or not (holder.exclusive or any(other.exclusive for other in self.holders))

    def _admit(self, waiters: deque[Holder]) -> None:
        while waiters and (holder := self._next(waiters)) is not None:
            waiters.remove(holder)
            self._add(holder)
            _wake(holder)

    def _next(self, waiters: deque[Holder]) -> Holder | None:
        """The waiter that can be let in now, if there is one."""
        if self._admits(waiters[0]):
            return waiters[0]
        # A checkout must not wait for one that it is nested in.
        tokens = [holder.token for holder in self.holders if holder.token is not None]
        # There may be a thousand waiters, and the coordinator's lock is held.
        nested = (holder for holder in waiters if holder.token in tokens)
        return next((holder for holder in nested if self._admits(holder)), None)

    def _add(self, holder: Holder) -> None:
        self.holders.append(holder)
        self._takes += 1
        holder.held = True


def _wake(holder: Holder) -> None:
    assert holder.waiter is not None, "it was queued with one"  # noqa: S101  tells mypy
    holder.waiter.wake()


def _recognize(holder: Holder, others: Iterable[Holder]) -> None:
    """Give a checkout the token of the one, of these, within whose block the calling code runs."""
    if holder.token is not None:
        return
    for other in others:
        if other.is_around_caller():
            if other.token is None:
                other.token = object()
            holder.token = other.token
            return
