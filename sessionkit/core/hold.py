"""Who has a session checked out, and who waits for it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol


class ThisThread(threading.local):
    """`this_thread.token` stands for the calling thread.

    Unlike a thread's ident, it is never given to another thread later on, so that a checkout may outlive its thread.
    """

    def __init__(self) -> None:
        self.token = object()


this_thread = ThisThread()


class Holder(Protocol):
    """A checkout, as the books know it."""

    thread: object
    """The token of the thread that has, or wants, the session; or of somebody who is no thread, such as a request."""
    exclusive: bool
    in_books: bool
    """Whether a hold has it in its books; else it has the session to itself, or not at all."""


class Waiter:
    """One checkout's place in the queue for one session."""

    __slots__ = ("_wake", "granted", "hold", "holder")

    def __init__(self, hold: Hold, holder: Holder) -> None:
        self.hold = hold
        self.holder = holder
        self.granted = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def wait(self, seconds: float | None) -> None:
        """Sleep until woken, or for that many seconds of real time."""
        self._wake.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """End the wait; called once at most."""
        self._wake.release()


class Hold:
    """The books of one session's checkouts: one thread exclusively, or several sharing; the rest wait, first come first
    served.

    A thread may take again what it has. Has no lock of its own: the coordinator's lock guards it. Exists only while
    somebody shares the session, takes it twice or waits for it.
    """

    __slots__ = ("_exclusive", "_threads", "_waiters")

    def __init__(self) -> None:
        # How often each thread has it; and how often of these exclusively, which only a sole holder can.
        self._threads: dict[object, int] = {}
        self._exclusive = 0
        self._waiters: deque[Waiter] = deque()

    @property
    def free(self) -> bool:
        """Whether nobody has the session."""
        return not self._threads

    def take(self, holder: Holder) -> bool:
        """Take the session for a checkout if that can be done at once."""
        if self._has_already(holder) or (
            holder.thread not in self._threads and not self._waiters and self._admits(holder.exclusive)
        ):
            self._add(holder)
            return True
        return False

    def would_deadlock(self, holder: Holder) -> bool:
        """Whether a wait could never end: threads that share a session and each wait for the others to leave it."""
        return holder.exclusive and holder.thread in self._threads and len(self._threads) > 1

    def queue(self, holder: Holder) -> Waiter:
        """A place at the end of the queue."""
        waiter = Waiter(self, holder)
        self._waiters.append(waiter)
        return waiter

    def give_back(self, holder: Holder) -> None:
        """Undo one `take` (or one granted wait), and let in whoever can be let in."""
        times = self._threads[holder.thread]
        if times > 1:
            self._threads[holder.thread] = times - 1
        else:
            del self._threads[holder.thread]
        self._exclusive -= holder.exclusive
        holder.in_books = False
        self._admit()

    def withdraw(self, waiter: Waiter) -> None:
        """Leave the queue without having been let in. Withdrawing again, or after `dismiss`, does nothing."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._admit()

    def dismiss(self) -> None:
        """Send all waiters away: the session has ended."""
        while self._waiters:
            self._waiters.popleft().wake()

    def _admit(self) -> None:
        while (waiter := self._next()) is not None:
            self._waiters.remove(waiter)
            self._add(waiter.holder)
            waiter.granted = True
            waiter.wake()

    def _next(self) -> Waiter | None:
        """Whoever waits can be let in now."""
        if not self._waiters:
            return None
        first = self._waiters[0]
        if self._admits(first.holder.exclusive):
            return first
        # A thread may wait twice, when a signal handler or a finalizer that interrupts its wait checks out too. It must
        # not wait for itself.
        return next((waiter for waiter in self._waiters if self._has_already(waiter.holder)), None)

    def _has_already(self, holder: Holder) -> bool:
        return holder.thread in self._threads and not self.would_deadlock(holder)

    def _admits(self, exclusive: bool) -> bool:
        return not self._threads or not (exclusive or self._exclusive)

    def _add(self, holder: Holder) -> None:
        self._threads[holder.thread] = self._threads.get(holder.thread, 0) + 1
        self._exclusive += holder.exclusive
        holder.in_books = True
