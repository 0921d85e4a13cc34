"""The coordinator: the lock, and every decision about live sessions."""

from __future__ import annotations

import secrets
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from .checkout import Checkout
from .checks import Duration, checked_id, checked_name, checked_seconds, checked_wait, shown
from .cleanup import CleanupRun, CleanupTask, call_weakly
from .clock import Clock, SteadyClock, system_clock
from .config import CoordinatorConfig
from .ending import Ending, RemovalCause
from .errors import CoordinatorClosedError
from .events import EventBus, EventChannel, EventKind
from .finaliser import Finaliser
from .fork import start_clean_after_fork
from .roster import Roster
from .session import Activity, Keeper, ManagedSession, R, SessionState
from .stats import CoordinatorStats
from .table import idle_for_more

T = TypeVar("T")

BATCH = 100
"""How many sessions are decided on before the lock is let go."""

_EVENT_OF = {
    Activity.MESSAGE: EventKind.MESSAGE,
    Activity.TOOL_EXECUTION: EventKind.TOOL_EXECUTION,
    Activity.STATE_CHANGE: EventKind.STATE_CHANGE,
}


class SessionCoordinator(Generic[R]):
    """Keeps live sessions until they are idle for too long, too old, evicted or closed.

    `config` sets the limits (default: `CoordinatorConfig()`). `clock` is any callable like `time.monotonic` (default:
    `time.monotonic`, looked up at each call); it is read once a call, and should it go back, time stands still until it
    has caught up. `resource_factory(session)` makes the live object of each new session. `on_close(session, cause)` is
    called once for each session that leaves, whatever the cause. Both run with the lock free, in whichever thread they
    fall to, and may call the coordinator, `close()` included.

    Use it as a context manager: entering starts the cleanup task, leaving closes everything. Without it, call
    `start_cleanup_task` and `close`. Expiry does not depend on the cleanup task: a session past its time is gone for
    every caller at once, and cleanup only gives its memory back and calls `on_close`.

    All methods may be called from any thread. After `os.fork`, the child's coordinator starts with no sessions and a
    cleanup task of its own if the parent had one. A coordinator that is dropped without `close()` warns with
    `ResourceWarning`, ends its thread, and leaves its sessions' resources to the garbage collector.
    """

    # So that __del__ has nothing to warn of where __init__ raised.
    _closed = True

    def __init__(
        self,
        config: CoordinatorConfig | None = None,
        *,
        clock: Clock | None = None,
        resource_factory: Callable[[ManagedSession[R]], R] | None = None,
        on_close: Callable[[ManagedSession[R], RemovalCause], object] | None = None,
    ) -> None:
        if config is not None and not isinstance(config, CoordinatorConfig):
            raise TypeError(f"config must be a CoordinatorConfig, not {shown(config)}")
        for what, function in (("clock", clock), ("resource_factory", resource_factory), ("on_close", on_close)):
            if function is not None and not callable(function):
                raise TypeError(f"{what} must be callable, not {shown(function)}")
        self.config = CoordinatorConfig() if config is None else config
        """The settings it was made with."""
        self._clock = SteadyClock(system_clock if clock is None else clock)
        self._resource_factory = resource_factory
        self._on_close = on_close
        self._self: weakref.ref[Keeper] = weakref.ref(self)
        self._start_clean()
        self._closed = False
        start_clean_after_fork(self)

    def _start_clean(self) -> None:
        self._lock = threading.RLock()
        self._bus = EventBus()
        self._finaliser = Finaliser(self._lock, self._bus, self._on_close)
        self._roster = Roster(self.config, self._clock, self._finaliser)
        self._cleanup_task = CleanupTask(self.config.cleanup_interval, call_weakly(self._run_cleanup))
        self._cleanup_wanted = False
        # When a caller is to run the next cleanup, because no thread could be started for it.
        self._cleanup_by_caller_at: float | None = None

    # ---- Creating and closing

    def create_session(
        self,
        name: str | None = None,
        *,
        session_id: str | None = None,
        data: Mapping[str, Any] | None = None,
        resource: R | None = None,
        session_timeout: Duration | None = None,
    ) -> ManagedSession[R]:
        """Create a session and return it; it is touched, and visible to others, once its resource is ready.

        `name`: 1 to 64 of ASCII letters, digits, space, `.`, `_`, `-`, unique among live sessions; default none.
        `session_id`: 1 to 128 of the same without the space, unique; default `secrets.token_urlsafe(32)`.
        `data`: copied, one level deep. `resource`: the live object; default what `resource_factory` makes.
        `session_timeout`: seconds or a timedelta; default the config's.

        Raises `SessionExistsError` for a name or id that is taken, `SessionLimitError` when there is no room,
        `InvalidSessionError`, `ValueError` or `TypeError` for bad input, `CoordinatorClosedError` after `close()`, and
        whatever the factory raises. When it raises, nothing stays behind, and a `resource` passed in is the caller's.
        """
        name = None if name is None else checked_name(name)
        session_id = secrets.token_urlsafe(32) if session_id is None else checked_id(session_id)
        timeout = self.config.session_timeout
        if session_timeout is not None:
            timeout = checked_seconds("session_timeout", session_timeout)
        if data is not None and not isinstance(data, Mapping):
            raise TypeError(f"data must be a dict that JSON can say, not {shown(data)}")
        session = ManagedSession(self._self, session_id, name, timeout, None if data is None else dict(data), resource)
        reading = self._read()
        with self._lock:
            displaced = self._roster.reserve(session, self._clock.advance(reading))
        try:
            self._finish(displaced)
            if resource is None and self._resource_factory is not None:
                session._resource = self._resource_factory(session)
                # A factory may take long, and the session's time is to begin when it is ready.
                reading = self._clock.read()
        except BaseException:
            with self._lock:
                self._roster.unreserve(session)
            raise
        self._open(session, reading)
        return session

    def _open(self, session: ManagedSession[R], reading: float) -> None:
        with self._lock:
            now = self._clock.advance(reading)
            self._roster.open(session, now)
            self._bus.post(EventKind.CREATED, session.id, now)
            closed = self._closed
            if closed:
                self._roster.end(session, Ending(RemovalCause.SHUTDOWN, now), now)
            claimed = self._finaliser.claim(session)
        self._finish(claimed)
        if closed:
            raise CoordinatorClosedError(
                f"the coordinator was closed while session {session.id!r} was being created; it is closed too"
            )

    def close_session(self, session_id: str) -> None:
        """End a session: cause `CLOSED`. If nobody has it checked out, `on_close` has run when this returns.

        If somebody has, the session is gone for every caller at once, and `on_close` runs when it is given back.
        Raises `SessionNotFoundError`, or `SessionExpiredError` if it ended before (closing it again included).
        """
        reading = self._read()
        with self._lock:
            now = self._clock.advance(reading)
            session = self._roster.find(session_id, now)
            self._roster.active.settle(now)
            self._roster.end(session, Ending(RemovalCause.CLOSED, now), now)
            claimed = self._finaliser.claim(session)
        self._finish(claimed)

    def close(self) -> None:
        """Stop the cleanup task, end all sessions (cause `SHUTDOWN`), and close all channels.

        A session that is checked out is gone for every caller too, and is finalised when it is given back; `close` does
        not wait for that. It waits for a cleanup run that is under way, for 5 seconds at most. Closing again does
        nothing, unless a close callback was interrupted: then it goes on where that one stopped.
        """
        reading = self._clock.read()
        with self._lock:
            self._closed = self._roster.closed = True
        self.stop_cleanup_task()
        self._sweep(reading, None)
        with self._lock:
            sessions = self._roster.snapshot()
        for start in range(0, len(sessions), BATCH):
            self._shut_down(sessions[start : start + BATCH], reading)
        self._bus.close()

    def _shut_down(self, sessions: list[ManagedSession[R]], reading: float) -> None:
        with self._lock:
            now = self._clock.advance(reading)
            ending = Ending(RemovalCause.SHUTDOWN, now)
            claimed = []
            for session in sessions:
                if session._ending is None:
                    self._roster.end(session, ending, now)
                    claimed += self._finaliser.claim(session)
        self._finish(claimed)

    # ---- Using

    def get_session(self, session_id: str) -> ManagedSession[R]:
        """The live session with this id. Looks only: does not touch.

        Raises `SessionExpiredError` if it ended recently, and `SessionNotFoundError` if nothing is known of it.
        """
        reading = self._read()
        with self._lock:
            return self._roster.find(session_id, self._clock.advance(reading))

    def touch_session(self, session_id: str) -> None:
        """Note activity: idle time starts again. Raises as `get_session` does."""
        reading = self._read()
        with self._lock:
            now = self._clock.advance(reading)
            self._roster.touch(self._roster.find(session_id, now), now)

    def checkout(self, session_id: str, *, exclusive: bool = True, timeout: Duration | None = None) -> Checkout[R]:
        """A context manager that holds the session: `with coordinator.checkout(session.id) as session: ...`.

        A session that is checked out is never expired for idleness or evicted, and is touched when taken and when
        given back. An explicit close, or `max_lifetime`, ends it when it is given back.

        Exclusive between threads (the same thread may take it again), unless `exclusive=False` shares it with others
        that do so. Entering waits up to `timeout` seconds of real time (None: as long as it takes; 0: not at all),
        first come first served, and then raises `SessionBusyError`; it raises as `get_session` does if the session is
        not there, or ends while it waits. A thread that shares a session with others and asks to have it exclusively
        gets `SessionBusyError` at once, because that wait could never end.
        """
        return Checkout(self, session_id, exclusive, checked_wait("timeout", timeout))

    def switch_session(self, name_or_id: str) -> ManagedSession[R]:
        """Make the session with this id, or else this name, the active one, touch it and return it.

        Raises as `get_session` does.
        """
        reading = self._read()
        with self._lock:
            now = self._clock.advance(reading)
            session = self._roster.find_named(name_or_id, now)
            self._roster.touch(session, now)
            self._roster.active.put_on(session)
            self._bus.post(EventKind.SWITCHED, session.id, now)
        self._bus.deliver()
        return session

    @property
    def active_session(self) -> ManagedSession[R] | None:
        """The session switched to last. When it ends, the one that was most recently active then takes its place.

        None before the first switch, and when no session was left to take its place.
        """
        reading = self._read()
        with self._lock:
            return self._roster.active.settle(self._clock.advance(reading))

    # ---- Looking

    def list_sessions(self) -> list[ManagedSession[R]]:
        """All live sessions, least recently active first."""
        sessions = self._when_settled(self._roster.snapshot)
        return sorted(sessions, key=lambda session: session._last_active)

    def __len__(self) -> int:
        """How many sessions are live: expired ones never count, whether or not cleanup has run."""
        return self._when_settled(self._roster.__len__)

    def __contains__(self, session_id: object) -> bool:
        """Whether a live session has this id."""
        reading = self._read()
        with self._lock:
            return self._roster.is_live(session_id, self._clock.advance(reading))

    def subscribe(self, capacity: int | None = None) -> EventChannel:
        """A channel that gets every event from now on, until it or the coordinator is closed.

        `capacity`: how many unread events it keeps; default `event_capacity` of the config.
        """
        return self._bus.subscribe(self.config.event_capacity if capacity is None else capacity)

    def stats(self) -> CoordinatorStats:
        """The figures at this moment. Works after `close()` too."""
        return self._when_settled(
            lambda: CoordinatorStats(
                live=len(self._roster),
                checked_out=self._roster.checked_out,
                created=self._roster.created,
                removed=MappingProxyType(dict(self._finaliser.removed)),
                close_failures=self._finaliser.failures,
                close_interruptions=self._finaliser.interruptions,
                events_dropped=self._bus.dropped,
                cleanup=self._cleanup_task.stats(),
            )
        )

    # ---- Cleaning up

    def cleanup_inactive_sessions(self, max_age: Duration | None = None, *, dry_run: bool = False) -> int:
        """Remove every session whose time has run out, and return how many were removed.

        `max_age`, in seconds: remove those as well that have been idle for more than that (cause `IDLE`). A session
        that is checked out is never removed. `dry_run=True` only counts. Raises `CoordinatorClosedError` after
        `close()`.
        """
        age = None if max_age is None else checked_seconds("max_age", max_age)
        self._roster.check_open()
        return self._count_removable(age) if dry_run else self._sweep(self._clock.read(), age)

    def start_cleanup_task(self) -> None:
        """Start the daemon thread that cleans up every `cleanup_interval` seconds of real time.

        If the system has no thread to give, that is logged and counted, and calls to the coordinator do the cleanup
        when it is due, and try to start the thread again. Starting again does nothing. Raises
        `CoordinatorClosedError` after `close()`.
        """
        self._roster.check_open()
        self._cleanup_wanted = True
        if not self._cleanup_task.start():
            self._cleanup_by_caller_at = float("-inf")

    def stop_cleanup_task(self) -> None:
        """Stop the cleanup thread; sessions still expire. Stopping again does nothing."""
        self._cleanup_wanted, self._cleanup_by_caller_at = False, None
        self._cleanup_task.stop()

    # ---- Context manager, collection, fork

    def __enter__(self) -> SessionCoordinator[R]:
        self.start_cleanup_task()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._closed else 'open'}, {len(self._roster)} sessions>"

    def __del__(self) -> None:
        if not self._closed:
            self._cleanup_task.cancel()
            warnings.warn(  # noqa: B028  it is the collector that calls this; there is no caller to point at
                f"{self!r} was dropped without close(): the resources of its sessions are not closed. "
                "Use it as a context manager, or call close()",
                ResourceWarning,
                source=self,
            )

    def _after_fork_in_child(self) -> None:
        # Another thread of the parent may have held any lock here, and no other thread lives on: nothing is kept.
        self._finaliser.abandon()
        self._bus.abandon()
        wanted = self._cleanup_wanted
        self._start_clean()
        if wanted:
            self.start_cleanup_task()

    # ---- The lock, the clock, and the work outside the lock

    def _read(self) -> float:
        """Read the clock, and do the cleanup that no thread could be started for."""
        reading = self._clock.read()
        if self._cleanup_by_caller_at is not None:
            self._clean_up_as_caller(reading)
        return reading

    def _finish(self, claimed: list[ManagedSession[R]]) -> int:
        try:
            return self._finaliser.run(claimed)
        finally:
            self._bus.deliver()

    def _when_settled(self, answer: Callable[[], T]) -> T:
        """Answer under the lock once all expired sessions are set aside; the lock is let go after each batch."""
        reading = self._read()
        while True:
            with self._lock:
                if not self._roster.settle(self._clock.advance(reading), BATCH):
                    return answer()

    def _sweep(self, reading: float, age: float | None) -> int:
        removed = 0
        while True:
            with self._lock:
                ended = self._roster.end_due(self._clock.advance(reading), age, BATCH)
                claimed = self._finaliser.claim_batch(BATCH)
            if not ended and not claimed:
                return removed
            removed += self._finish(claimed)

    def _count_removable(self, age: float | None) -> int:
        due, resting = self._when_settled(lambda: (self._roster.removable(), self._roster.snapshot() if age else []))
        now = self._clock.latest
        return due + sum(idle_for_more(session, age, now) for session in resting if age is not None)

    def _run_cleanup(self) -> CleanupRun | None:
        if self._closed:
            return None
        reading = self._clock.read()
        return CleanupRun(reading, self._sweep(reading, None))

    def _clean_up_as_caller(self, reading: float) -> None:
        with self._lock:
            due = self._cleanup_by_caller_at
            if due is None or reading < due:
                return
            self._cleanup_by_caller_at = reading + self.config.cleanup_interval
        if self._cleanup_task.start():
            self._cleanup_by_caller_at = None
        self._sweep(reading, None)

    # ---- What sessions ask for

    def _note_activity(
        self, session: ManagedSession[Any], activity: Activity, state: SessionState | None = None
    ) -> None:
        reading = self._read()
        with self._lock:
            now = self._clock.advance(reading)
            self._roster.require(session, now)
            self._roster.touch(session, now)
            if activity is Activity.TOUCH or state is session._state:
                return
            if activity is Activity.MESSAGE:
                session._message_count += 1
            if state is not None:
                session._state = state
            self._bus.post(_EVENT_OF[activity], session.id, now)
        self._bus.deliver()
