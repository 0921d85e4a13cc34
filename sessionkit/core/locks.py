"""The lock of one session: which checkouts have it, and which wait for it."""

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
    """One checkout of a session."""

    token: object
    """Stands for the thread that has, or wants, the session; or for a holder that is no thread, such as a request."""
    exclusive: bool
    held: bool
    """Whether it has the session. Set by the lock."""


class Waiter:
    """One checkout's place in the queue for one session."""

    __slots__ = ("_wake", "holder")

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self._wake = threading.Lock()
        self._wake.acquire()

    def wait(self, seconds: float | None) -> None:
        """Sleep until woken, or for that many seconds of real time."""
        self._wake.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """End the wait; called once at most."""
        self._wake.release()


class SessionLock:
    """One session's lock: one holder exclusively, or several sharing it; the rest wait, first come first served.

    A thread may take again what it has. Guarded by the coordinator's lock; exists while a session is checked out, or
    is being made.
    """

    __slots__ = ("_exclusive", "_sole", "_takes", "_times", "_waiters")

    def __init__(self, holder: Holder | None = None) -> None:
        # The holder, while there has been no other; from the second one on, how often each token has it, and how often
        # of these exclusively, which only a sole token can.
        self._sole = holder
        self._times: dict[object, int] = {}
        self._exclusive = 0
        # How often it was taken since there was a second holder.
        self._takes = 0
        self._waiters: deque[Waiter] | None = None

    def take(self, holder: Holder) -> bool:
        """Take the session for a checkout if that can be done at once."""
        times = self._count()
        if not self._has_already(times, holder) and (
            holder.token in times or self._waiters or not self._admits(times, holder)
        ):
            return False
        self._add(times, holder)
        return True

    def takes_of_last(self, holder: Holder) -> int | None:
        """How often the session was taken, if this is the only checkout that has it; None if others have it too.

        If that is the same later on, no other has had the session in between.
        """
        if self._sole is holder:
            return 0
        return self._takes if holder.held and list(self._times.values()) == [1] else None

    def would_deadlock(self, holder: Holder) -> bool:
        """Whether a wait could never end: threads that share a session and each wait for the others to leave it."""
        times = self._count()
        return holder.exclusive and holder.token in times and len(times) > 1

    def queue(self, holder: Holder) -> Waiter:
        """A place at the end of the queue."""
        waiter = Waiter(holder)
        if self._waiters is None:
            self._waiters = deque()
        self._waiters.append(waiter)
        return waiter

    def give_back(self, holder: Holder) -> bool:
        """Undo one `take` (or one granted wait), and let in the waiters that can be let in; whether it is free then."""
        holder.held = False
        if self._sole is holder:
            self._sole = None
            return True
        times = self._count()
        if times[holder.token] > 1:
            times[holder.token] -= 1
        else:
            del times[holder.token]
        self._exclusive -= holder.exclusive
        self._admit()
        return not times

    def withdraw(self, waiter: Waiter) -> None:
        """Leave the queue without having been let in. Withdrawing again, or after `dismiss`, does nothing."""
        if self._waiters and waiter in self._waiters:
            self._waiters.remove(waiter)
            self._admit()

    def dismiss(self) -> None:
        """Wake all waiters: the session has ended, or has another id."""
        while self._waiters:
            self._waiters.popleft().wake()

    def _count(self) -> dict[object, int]:
        """How often each token has the session; from here on, all are counted."""
        if self._sole is not None:
            self._add(self._times, self._sole)
            self._sole = None
        return self._times

    def _admit(self) -> None:
        times = self._count()
        while self._waiters and (waiter := self._next(times, self._waiters)) is not None:
            self._waiters.remove(waiter)
            self._add(times, waiter.holder)
            waiter.wake()

    def _next(self, times: dict[object, int], waiters: deque[Waiter]) -> Waiter | None:
        """The waiter that can be let in now, if there is one."""
        if self._admits(times, waiters[0].holder):
            return waiters[0]
        # A thread may wait twice, if a signal handler or a finalizer that interrupts its wait checks out too. It must
        # not wait for itself.
        return next((waiter for waiter in waiters if self._has_already(times, waiter.holder)), None)

    def _has_already(self, times: dict[object, int], holder: Holder) -> bool:
        return holder.token in times and not (holder.exclusive and len(times) > 1)

    def _admits(self, times: dict[object, int], holder: Holder) -> bool:
        return not times or not (holder.exclusive or self._exclusive)

    def _add(self, times: dict[object, int], holder: Holder) -> None:
        times[holder.token] = times.get(holder.token, 0) + 1
        self._takes += 1
        self._exclusive += holder.exclusive
        holder.held = True
