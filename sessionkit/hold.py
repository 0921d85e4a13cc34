"""Who has a session checked out, and who waits for it."""

from __future__ import annotations

import threading
from collections import deque


class ThisThread(threading.local):
    """`this_thread.token` stands for the calling thread.

    Unlike a thread's ident, it is never given to another thread later on, so that a checkout may outlive its thread.
    """

    def __init__(self) -> None:
        self.token = object()


this_thread = ThisThread()


class Waiter:
    """One thread's place in the queue for one session."""

    __slots__ = ("_wake", "exclusive", "granted", "hold", "holder")

    def __init__(self, hold: Hold, holder: object, exclusive: bool) -> None:
        self.hold = hold
        self.holder = holder
        self.exclusive = exclusive
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
    """The checkouts of one session: one thread exclusively, or several sharing; the rest wait, first come first served.

    A thread may take again what it has. Has no lock of its own: the coordinator's lock guards it. Exists only while
    somebody has the session, so that a session at rest pays nothing for it.
    """

    __slots__ = ("_exclusive", "_holders", "_waiters")

    def __init__(self) -> None:
        # How often each thread has it; and how often of these exclusively, which only a sole holder can.
        self._holders: dict[object, int] = {}
        self._exclusive = 0
        self._waiters: deque[Waiter] = deque()

    @property
    def free(self) -> bool:
        """Whether nobody has the session."""
        return not self._holders

    def take(self, holder: object, exclusive: bool) -> bool:
        """Take the session for a thread if that can be done at once."""
        if holder in self._holders:
            if self.would_deadlock(holder, exclusive):
                return False
        elif self._waiters or not self._admits(exclusive):
            return False
        self._add(holder, exclusive)
        return True

    def would_deadlock(self, holder: object, exclusive: bool) -> bool:
        """Whether a wait could never end: threads that share a session and each wait for the others to leave it."""
        return exclusive and holder in self._holders and len(self._holders) > 1

    def queue(self, holder: object, exclusive: bool) -> Waiter:
        """A place at the end of the queue."""
        waiter = Waiter(self, holder, exclusive)
        self._waiters.append(waiter)
        return waiter

    def give_back(self, holder: object, exclusive: bool) -> None:
        """Undo one `take` (or one granted wait), and let in whoever can be let in."""
        times = self._holders[holder]
        if times > 1:
            self._holders[holder] = times - 1
        else:
            del self._holders[holder]
        self._exclusive -= exclusive
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
        while self._waiters and self._admits(self._waiters[0].exclusive):
            waiter = self._waiters.popleft()
            self._add(waiter.holder, waiter.exclusive)
            waiter.granted = True
            waiter.wake()

    def _admits(self, exclusive: bool) -> bool:
        return not self._holders or not (exclusive or self._exclusive)

    def _add(self, holder: object, exclusive: bool) -> None:
        self._holders[holder] = self._holders.get(holder, 0) + 1
        self._exclusive += exclusive
