"""Which instances are alive, for the processes of many machines: heartbeats, and the server's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf
from types import BuiltinFunctionType
from weakref import WeakMethod

from ...util.clock import AGREE_SECONDS, steady_clock, system_wall_clock
from ...util.fork import start_clean_after_fork
from ...util.log import report_problem
from ...util.timer import PeriodicThread

THREAD_NAME = "sessionkit-heartbeats"

JOIN_SECONDS = 5.0
"""How long the last instance that leaves waits for a heartbeat under way. Bounded: that may wait for the server."""


class Heartbeats:
    """Keeps the instances of this process alive: each lives for a term, and a heartbeat begins the next one.

    It is the server that measures terms: no two hosts' clocks have to agree. While there is an instance, one daemon
    thread sends the heartbeats of all, three times a term; if the system has no thread to give, calls of the store send
    those that are overdue. Thread-safe.

    `send` sends the heartbeat of one instance, and gives whether its last term had not run out. `attach_again` tells
    the server again what the instance has in memory: after a term that had run out, because others may have taken the
    instance for dead, and four times in `keep` seconds, after which the server would forget it.
    """

    def __init__(
        self, term: float, keep: float, send: Callable[[str], bool], attach_again: Callable[[str], None]
    ) -> None:
        self.term = term
        """In seconds."""
        self._keep = keep
        # Weakly, because the store has this.
        self._send, self._attach_again = WeakMethod(send), WeakMethod(attach_again)
        # When each instance told the server last what it has in memory.
        self._instances: dict[str, float] = {}
        self._thread: PeriodicThread | None = None
        self._overdue_at = inf
        self._fails = False
        self._lock = threading.RLock()
        start_clean_after_fork(self)

    def begin(self, instance: str) -> None:
        """Keep an instance alive from now on, whose first term has just begun."""
        with self._lock:
            self._instances[instance] = steady_clock()
            self._overdue_at = min(self._overdue_at, steady_clock() + self.term / 2)
            if self._thread is None or not self._thread.is_alive():
                self._start_thread()

    def end(self, instance: str) -> bool:
        """Send no more heartbeats of this instance; gives whether it was the last one. Ending again does nothing."""
        with self._lock:
            if self._instances.pop(instance, None) is None or self._instances:
                return False
            thread, self._thread, self._overdue_at = self._thread, None, inf
        if thread is not None:
            thread.cancel()
            if thread is not threading.current_thread():
                thread.join(JOIN_SECONDS)
        return True

    def end_all(self) -> None:
        """End all instances that began here."""
        for instance in list(self._instances):
            self.end(instance)

    @property
    def is_empty(self) -> bool:
        """Whether there is no instance."""
        return not self._instances

    def send_overdue(self) -> None:
        """Send all heartbeats if they are overdue. Raises as `send` does."""
        if steady_clock() > self._overdue_at:
            self.send_all()

    def send_all(self) -> None:
        """Send the heartbeats of all instances now. Raises as `send` does."""
        self._overdue_at = inf
        now = steady_clock()
        try:
            for instance in list(self._instances):
                self._send_one(instance)
        finally:
            self._overdue_at = now + self.term / 2 if self._instances else inf

    def _start_thread(self) -> None:
        thread = PeriodicThread(self.term / 3, self._fire, THREAD_NAME)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            report_problem(
                "the thread %s could not be started, callers will send heartbeats instead: %r", THREAD_NAME, error
            )
        else:
            self._thread = thread

    def _fire(self) -> bool:
        """What the thread does each time; whether it is to go on."""
        if self._instances:
            try:
                self.send_all()
                self._fails = False
            except Exception as error:  # noqa: BLE001  the next heartbeat must come, whatever happened to this one
                if not self._fails:
                    # Once for each time that the server is away.
                    report_problem("heartbeats could not be sent, which is tried again and again: %s", error)
                self._fails = True
        return bool(self._instances)

    def _send_one(self, instance: str) -> None:
        send, attach_again = self._send(), self._attach_again()
        if send is None or attach_again is None:
            return
        now = steady_clock()
        if not send(instance):
            # If what follows fails, the next heartbeat has to do it.
            self._note_attached(instance, -inf)
        if now - self._instances.get(instance, now) > self._keep / 4:
            attach_again(instance)
            self._note_attached(instance, now)

    def _note_attached(self, instance: str, instant: float) -> None:
        with self._lock:
            # It may have left meanwhile.
            if instance in self._instances:
                self._instances[instance] = instant

    def after_fork_in_child(self) -> None:
        # The instances are the parent's, and the lock may be held by a thread that the child does not have.
        self._lock = threading.RLock()
        self._instances, self._thread, self._overdue_at = {}, None, inf

    def __del__(self, current_thread: Callable[[], threading.Thread] = threading.current_thread) -> None:
        # In the thread itself, canceling could interrupt the very wait whose lock it needs; it ends of its own accord.
        if self._thread is not None and self._thread is not current_thread():
            self._thread.cancel()


class ServerClock:
    """The server's clock, as far as this process can tell without asking: by what it read last, and how long ago.

    Thread-safe.
    """

    def __init__(self) -> None:
        self.host_clock = system_wall_clock
        """The wall clock that `offset` is against."""
        # The server's clock minus steady_clock() is between these.
        self._least, self._most = -inf, inf

    def note(self, server_time: float, asked_at: float) -> None:
        """Note what time it was at the server, when it was asked at this reading of `steady_clock`."""
        least, most = server_time - steady_clock(), server_time - asked_at
        if least > self._most or most < self._least:
            # Either clock has been set.
            self._least, self._most = least, most
        else:
            self._least, self._most = max(least, self._least), min(most, self._most)

    @property
    def is_known(self) -> bool:
        """Whether the server has said what time it is."""
        return self._least > -inf

    def offset(self) -> float:
        """How far the server's clock is ahead of this host's, in seconds: 0 if they agree.

        Also 0 while a test has replaced `time.time`, and before the server has said what time it is.
        """
        if not self.is_known or type(time.time) is not BuiltinFunctionType:
            return 0.0
        ours = self.host_clock() - steady_clock()
        if self._least - AGREE_SECONDS <= ours <= self._most + AGREE_SECONDS:
            return 0.0
        return (self._least + self._most) / 2 - ours
