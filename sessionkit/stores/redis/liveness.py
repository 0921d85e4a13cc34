"""Terms: how the processes of many machines see which of them are alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from typing import NamedTuple
from weakref import WeakMethod

from ...util.clock import stopwatch
from ...util.fork import start_clean_after_fork
from ...util.log import report_problem
from ...util.timer import PeriodicThread

THREAD_NAME = "sessionkit-terms"

JOIN_SECONDS = 5.0
"""How long the end of the last term waits for a renewal under way. Bounded: that may wait for the server."""


class Signature(NamedTuple):
    """What a server says to a renewal."""

    server_time: float
    """When it was, in seconds since 1970, by its clock."""
    was_alive: bool
    """Whether the term before had not run out."""


class Terms:
    """The instances of this process, each of which lives for a term and has it renewed in time, three times a term.

    It is the server that measures terms: no two hosts' clocks have to agree. One daemon thread renews, while there is
    an instance; and so does whoever calls the store when that is overdue, should no thread be had. Thread-safe.

    `renew` signs one instance on at the server. `attach` says again what the instance has in memory: when its term
    had run out, because others may have taken it for dead, and four times in `keep` seconds, after which it would be
    forgotten.
    """

    def __init__(
        self,
        term: float,
        keep: float,
        renew: Callable[[str], Signature],
        attach: Callable[[str], None],
    ) -> None:
        self.term = term
        self._keep = keep
        # Weakly, because the store has this.
        self._renew, self._attach = WeakMethod(renew), WeakMethod(attach)
        # When each of them said last what it has in memory.
        self._instances: dict[str, float] = {}
        self._timer: PeriodicThread | None = None
        self._overdue = inf
        self._fails = False
        self._lock = threading.RLock()
        start_clean_after_fork(self)

    def begin(self, instance: str) -> None:
        """The instance has been signed on just now: keep it alive from now on."""
        with self._lock:
            self._instances[instance] = stopwatch()
            self._overdue = min(self._overdue, stopwatch() + self.term / 2)
            if self._timer is None or not self._timer.is_alive():
                self._start()

    def end(self, instance: str) -> bool:
        """Let the instance's term run out; whether it was the last one here. Ending again does nothing."""
        with self._lock:
            if self._instances.pop(instance, None) is None or self._instances:
                return False
            timer, self._timer, self._overdue = self._timer, None, inf
        if timer is not None:
            timer.cancel()
            if timer is not threading.current_thread():
                timer.join(JOIN_SECONDS)
        return True

    def end_all(self) -> None:
        """End all terms that began here."""
        for instance in list(self._instances):
            self.end(instance)

    @property
    def is_empty(self) -> bool:
        """Whether there is no instance."""
        return not self._instances

    def catch_up(self) -> None:
        """Renew now if that is overdue, before anything else is asked of the server. Raises as `renew` does."""
        if stopwatch() > self._overdue:
            self.renew_all()

    def _start(self) -> None:
        timer = PeriodicThread(self.term / 3, self._fire, THREAD_NAME)
        try:
            timer.start()
        except (RuntimeError, MemoryError) as error:
            report_problem(
                "the thread %s could not be started, callers will renew terms instead: %r", THREAD_NAME, error
            )
        else:
            self._timer = timer

    def _fire(self) -> bool:
        if self._instances:
            try:
                self.renew_all()
                self._fails = False
            except Exception as error:  # noqa: BLE001  the next renewal must come, whatever this one met
                if not self._fails:
                    # Once for each time that the server is away.
                    report_problem("terms could not be renewed, which is tried again and again: %s", error)
                self._fails = True
        return bool(self._instances)

    def renew_all(self) -> None:
        """Renew now. Raises as `renew` does."""
        self._overdue = inf
        now = stopwatch()
        try:
            for instance in list(self._instances):
                self._renew_one(instance)
        finally:
            self._overdue = now + self.term / 2 if self._instances else inf

    def _renew_one(self, instance: str) -> None:
        renew, attach = self._renew(), self._attach()
        if renew is None or attach is None:
            return
        now = stopwatch()
        if not renew(instance).was_alive:
            # Until that is done, whatever comes in between.
            self._attached(instance, -inf)
        if now - self._instances.get(instance, now) > self._keep / 4:
            attach(instance)
            self._attached(instance, now)

    def _attached(self, instance: str, instant: float) -> None:
        with self._lock:
            # It may have left meanwhile.
            if instance in self._instances:
                self._instances[instance] = instant

    def after_fork_in_child(self) -> None:
        # The instances are its parent's, and the lock may be another thread's there.
        self._lock = threading.RLock()
        self._instances, self._timer, self._overdue = {}, None, inf

    def __del__(self, current_thread: Callable[[], threading.Thread] = threading.current_thread) -> None:
        # In the thread itself, this may interrupt the very wait whose lock it needs; and that ends of its own accord.
        if self._timer is not None and self._timer is not current_thread():
            self._timer.cancel()
