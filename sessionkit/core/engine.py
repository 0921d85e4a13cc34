"""The engine of a coordinator: its parts, which way calls go, and what runs without being called."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from math import inf
from typing import Any, Generic

from ..config import CoordinatorConfig
from ..errors import RemovalCause, StoreError
from ..persistence.archive import Archive
from ..persistence.records import LAG_SHARE, Records
from ..stores.base import Store
from ..util.clock import BUILTIN_CLOCKS, Clock, SteadyClock, system_clock
from ..util.fork import start_clean_after_fork
from .cleanup import CleanupRun, CleanupTask, call_weakly
from .events import EventBus, EventKind
from .finalizer import Finalizer
from .pulse import clock_without_lock
from .roster import Roster
from .session import Activity, Keeper, ManagedSession, R, SessionState
from .sweep import Sweep

# One object, whatever reads it: an attribute of an enum takes longer to look up.
_TOUCH = Activity.TOUCH
_MESSAGE = Activity.MESSAGE

_EVENT_OF = {
    Activity.MESSAGE: EventKind.MESSAGE,
    Activity.TOOL_EXECUTION: EventKind.TOOL_EXECUTION,
    Activity.STATE_CHANGE: EventKind.STATE_CHANGE,
}


class Engine(Generic[R]):
    """The parts of one coordinator: the lock, the clock, and all that they guard.

    A forked child makes all of them anew.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        clock: Clock,
        store: Store | None,
        resource_factory: Callable[[ManagedSession[R]], R] | None,
        on_close: Callable[[ManagedSession[R], RemovalCause], object] | None,
    ) -> None:
        self.config = config
        """The settings it was made with."""
        self._clock = SteadyClock(clock)
        self._store = store
        self._resource_factory = resource_factory
        self._on_close = on_close
        self._self: weakref.ref[Keeper] = weakref.ref(self)
        # The system's clock while calls may go without the lock, and what they read then.
        self._goes_without_lock: Clock | None = None
        self._quick_clock: Clock = time.monotonic
        self._make_parts()
        start_clean_after_fork(self)

    def _make_parts(self) -> None:
        self._lock = threading.RLock()
        # threading.Condition asks the lock the same way.
        self._lock_is_owned: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]  # typeshed does not know it
        self._bus = EventBus()
        self._records = None if self._store is None else Records(self._store, self._clock.read, self.config)
        self._finalizer = Finalizer(self._lock, self._bus, self._on_close, self._records)
        self._roster = Roster(self.config, self._finalizer)
        self._at_hand = self._roster.at_hand
        if clock_without_lock(self._clock.read) is None:
            self._roster.keep_order(-inf)
        self._sweep = Sweep(self._lock, self._clock, self._roster, self._finalizer)
        self._archive = None if self._records is None else Archive(self, self._records)
        self._interval = self.config.cleanup_interval
        if self._archive is not None:
            self._interval = min(self._interval, self.config.session_timeout * LAG_SHARE)
        self._cleanup_task = CleanupTask(self._interval, call_weakly(self._run_cleanup))
        self._choose_path()

    def _after_fork_in_child(self) -> None:
        # Another thread of the parent may have held any lock here, and no other thread lives on: nothing is kept.
        self._finalizer.abandon()
        self._cleanup_task.abandon()
        self._bus.abandon()
        closed, wanted = self._roster.closed, self._cleanup_task.wanted
        self._make_parts()
        self._roster.closed = closed
        if closed:
            self._bus.close()
        if wanted:
            self._start_cleaning()

    def _start_cleaning(self) -> None:
        self._cleanup_task.start()
        self._choose_path()
        if self._records is not None:
            # Twice the interval, because a run may be late. Should the store fail now, it goes by what it knows.
            with contextlib.suppress(StoreError):
                self._records.set_write_interval(2 * self._interval)

    # ---- The lock, the clock, and the work outside the lock

    def _begin_call(self) -> float:
        """Read the clock for a public call; first, do the cleanup that no thread could be started for."""
        if self._lock_is_owned():
            raise RuntimeError(
                "a signal handler or finalizer that interrupts the coordinator in the middle of a decision may only "
                "call close() and close_session(); do the rest in another thread"
            )
        if time.monotonic is self._goes_without_lock:
            return self._quick_clock()
        return self._read_clock()

    def _read_clock(self) -> float:
        if time.monotonic is self._goes_without_lock:
            return self._quick_clock()
        reading = self._clock.read()
        if self._cleanup_task.wants_callers and self._cleanup_task.falls_to_caller(reading):
            self._choose_path()
            with contextlib.suppress(StoreError):
                self._clean_up(reading)
            # That may have taken long.
            reading = self._clock.read()
        return reading

    def _choose_path(self) -> None:
        """Use the paths without the lock if nothing speaks against it."""
        with self._lock:
            takes_lock = (
                self._roster.closed
                or self._roster.keeps_order
                or self._cleanup_task.wants_callers
                or self._archive is not None
            )
            quick_clock = None if takes_lock else clock_without_lock(self._clock.read)
            if quick_clock is not None:
                self._quick_clock = quick_clock
            self._goes_without_lock = BUILTIN_CLOCKS[system_clock] if quick_clock is not None else None

    def _advance(self, reading: float) -> None:
        with self._lock:
            self._clock.advance(reading)

    def _interrupted(self) -> bool:
        # The thread that calls has the lock already: no user code runs under it, so this is a signal handler or a
        # finalizer which Python runs between two steps of a decision.
        return self._lock_is_owned()

    def _call_elsewhere(self, call: Callable[[], None]) -> None:
        # No daemon: the interpreter must not exit before it is done.
        threading.Thread(target=call, name="sessionkit-deferred").start()

    def _run_cleanup(self) -> CleanupRun | None:
        if self._roster.closed:
            return None
        reading = self._clock.read()
        return CleanupRun(reading, self._clean_up(reading))

    def _clean_up(self, reading: float, age: float | None = None) -> int:
        if self._archive is None:
            return self._sweep.remove(reading, age)
        # First: close callbacks may take longer than others wait for what is unwritten. What fails is tried once more.
        with contextlib.suppress(StoreError):
            self._archive.upkeep.flush()
        return self._sweep.remove(reading, age) + self._archive.tidy(age)

    def _make_session(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, resource: R | None
    ) -> ManagedSession[R]:
        return ManagedSession(self._self, session_id, name, timeout, data, resource)

    # ---- What sessions ask for

    def _touch_without_lock(self, session: ManagedSession[Any]) -> bool:
        # In a forked child, a session may be the parent's.
        if time.monotonic is self._goes_without_lock and self._at_hand.get(session._id) is session:
            now = self._quick_clock()
            if now < session._until:
                session._last_active = now if now > session._last_active else session._last_active  # one step
                return now < session._until
        return False

    def _count_without_lock(self, session: ManagedSession[Any]) -> bool:
        # A touch, whose steps stand here again: a call would be a third of it.
        if (
            time.monotonic is self._goes_without_lock
            and not self._bus.channels
            and self._at_hand.get(session._id) is session
        ):
            now = self._quick_clock()
            if now < session._until:
                session._last_active = now if now > session._last_active else session._last_active  # one step
                if now < session._until:
                    session._message_count += 1  # one step
                    return True
        return False

    def _note_activity(
        self, session: ManagedSession[Any], activity: Activity, state: SessionState | None = None
    ) -> None:
        reading = self._begin_call()
        with self._lock:
            now = self._clock.advance(reading)
            self._roster.require(session, now)
            self._roster.touch(session, now)
            if activity is _TOUCH or state is session._state:
                return
            if activity is _MESSAGE:
                session._message_count += 1  # one step
            if state is not None:
                session._state = state
            if self._bus.channels and not self._roster.is_opening(session._id):
                self._bus.post(_EVENT_OF[activity], session.id, now)
