"""The coordinator: every public call."""

from __future__ import annotations

import secrets
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Self

from .config import CoordinatorConfig
from .core.checkout import Checkout
from .core.cleanup import CleanupRun, CleanupStats, CleanupTask
from .core.engine import InMemorySessions
from .core.events import EventChannel
from .core.holding import CheckoutInfo
from .core.session import ManagedSession, R, SessionSnapshot, copied_data
from .errors import RemovalCause
from .persistence.records import StoreStats
from .persistence.sessions import PersistentSessions
from .stores.base import Store
from .util.clock import Clock, system_clock, unsuspended_clock
from .util.copies import refuse_copies
from .util.fork import start_clean_after_fork, start_clean_if_forked
from .util.log import short_repr
from .util.validation import (
    Duration,
    checked_flag,
    checked_function,
    checked_id,
    checked_name,
    checked_seconds,
    checked_store,
    checked_str,
    checked_wait,
)


class _Figures(NamedTuple):
    live: int
    """Sessions whose time has not run out, whether or not cleanup has run."""
    checked_out: int
    """Sessions that are checked out, those included that will end when they are given back."""
    leaving: int
    """Sessions that have ended, and have not left: they are checked out still, or their close callback is to run."""
    created: int
    removed: Mapping[RemovalCause, int]
    """Sessions removed, by cause. Expired ones count once they are removed."""
    close_failures: int
    """Close callbacks that raised."""
    close_interruptions: int
    """Close callbacks that were interrupted (`KeyboardInterrupt`, `SystemExit`); they are not repeated."""
    events_dropped: int
    """Events that channels dropped because they were full."""
    cleanup: CleanupStats
    store: StoreStats | None = None
    """Its dealings with the store; None if there is none."""


# A class of its own, because a NamedTuple may not have its own `_asdict`.
class CoordinatorStats(_Figures):
    """A coordinator at one moment. Counts run from its creation (after a fork: from the fork)."""

    __slots__ = ()

    def _asdict(self) -> dict[str, Any]:
        """A dict of dicts, with str keys: `json.dumps(coordinator.stats()._asdict())`."""
        return super()._asdict() | {
            "removed": {cause.value: number for cause, number in self.removed.items()},
            "cleanup": self.cleanup._asdict(),
            "store": None if self.store is None else self.store._asdict(),
        }


class SessionCoordinator(Generic[R]):
    """Keeps live sessions until they are idle for too long, too old, evicted or closed, and in a store for longer.

    `config` sets the limits (default: `CoordinatorConfig()`). `clock` is any callable like `time.monotonic` (default:
    `time.monotonic`, looked up at each call; with a store, it also counts the time that the host is suspended, from the
    import on); it is read once a call, and should it go back, time stands still until it has caught up.
    `resource_factory(session)` makes the live object of each session that is created or restored. `on_close(session,
    cause)` is called once for each that leaves memory, whatever the cause. Both run with the lock free, in a thread
    that calls the coordinator or in the cleanup task's, and may call it, `close()` included. Neither may be
    asynchronous, because nothing would await what it returns: an `async def` raises `TypeError` here; so does a
    creation whose factory returns a coroutine; a close callback that returns one has failed.

    `store` (default: none) keeps the sessions' records, such as `SQLiteStore("sessions.db")`. It is the caller's, may
    serve several coordinators, and need not be closed. A session that is there and not in memory is found, and restored
    when it is asked for; a call that needs the store raises `StoreError` if it fails. Records go by the store's time:
    the server's, or for `SQLiteStore` the wall clock (`time.time`, or `clock.wall()` where the clock has that) as it
    was when the first process came. Give a clock of your own only if it counts suspension too: else a process says of
    what it has in memory what its clock says, and others what the store's time says.

    Use it as a context manager: entering starts the cleanup task, leaving closes everything. Without it, call
    `start_cleanup_task` and `close`. Expiry does not depend on the cleanup task: a session past its time is gone for
    every caller at once, and cleanup only gives its memory back and calls `on_close`.

    All methods may be called from any thread. If a signal handler or a finalizer (`__del__`) interrupts the coordinator
    in the middle of a decision, `close`, `close_session` and giving back a checkout are deferred until the lock is free
    (the next call, or the next cleanup, does them, and logs what they raise); every other call that needs the lock
    raises `RuntimeError`.

    After `os.fork`, the child's coordinator starts with no sessions, and a cleanup task of its own if the parent had
    one. After a fork in C, of which Python is not told (uWSGI), it does so at its next web request, or when
    `create_session`, `start_cleanup_task`, `cleanup_inactive_sessions`, `stats` or `close` is called. A coordinator
    that is dropped without `close()` warns with `ResourceWarning`, ends its thread, and leaves its sessions' resources
    to the garbage collector.
    """

    def __init__(
        self,
        config: CoordinatorConfig | None = None,
        *,
        clock: Clock | None = None,
        store: Store | None = None,
        resource_factory: Callable[[ManagedSession[R]], R] | None = None,
        on_close: Callable[[ManagedSession[R], RemovalCause], object] | None = None,
    ) -> None:
        if config is not None and not isinstance(config, CoordinatorConfig):
            raise TypeError(f"config must be a CoordinatorConfig, not {short_repr(config)}")
        for what, function in (("clock", clock), ("resource_factory", resource_factory), ("on_close", on_close)):
            if function is not None:
                checked_function(what, function)
        if store is not None:
            checked_store(store)
        elif config is not None and config.on_full == "passivate":
            raise ValueError("on_full='passivate' moves sessions out to a store, and there is none; pass store=")
        self.config = CoordinatorConfig() if config is None else config
        """The settings it was made with."""
        self._store = store
        # Without a store, no other process has to agree.
        default = system_clock if store is None else unsuspended_clock
        read = default if clock is None else clock
        self._sessions: InMemorySessions | PersistentSessions
        if store is None:
            self._sessions = InMemorySessions(self.config, read, resource_factory, on_close)
        else:
            self._sessions = PersistentSessions(self.config, read, resource_factory, on_close, store)
        self._cleanup_task = self._make_cleanup_task()
        self._choose_path()
        start_clean_after_fork(self)

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
        `data`: a dict that JSON can say; copied, however deep. `resource`: the live object; default what
        `resource_factory` makes.
        `session_timeout`: seconds or a timedelta; default the config's. Keep to a handful of different ones: a cleanup
        looks at one session for each.

        Raises `SessionExistsError` for a name or id that is taken, `SessionLimitError` when there is no room,
        `InvalidSessionError`, `ValueError` or `TypeError` for bad input, `CoordinatorClosedError` after `close()`,
        `StoreError` if there is a store and it fails, and whatever the factory raises. When it raises, nothing stays
        behind, and a `resource` passed in is the caller's; a session that was evicted or passivated to make room is
        gone all the same.
        """
        session_id = secrets.token_urlsafe(32) if session_id is None else checked_id(session_id)
        timeout, own_data = self._begin_creation(name, data, session_timeout)
        return self._sessions.create(session_id, name, timeout, own_data, resource)

    def get_or_create_session(
        self,
        session_id: str,
        name: str | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        session_timeout: Duration | None = None,
        timeout: Duration | None = None,
    ) -> ManagedSession[R]:
        """The live session with this id, or else a new one, made as `create_session` does.

        Of several callers at once, one makes it, and the others wait for its `resource_factory` and get the same
        session; if it fails, the next one tries itself. So do callers in other processes, with a store, if they call
        this too. A former session with this id that is closing is waited for. Looks only, as `get_session`, if the
        session is there: `name`, `data` and `session_timeout` are for a new one.

        Waits up to `timeout` seconds of real time (None: as long as it takes; 0: not at all), and then raises
        `SessionBusyError`; at once if it would wait for the caller itself, such as in a `resource_factory`. Raises as
        `create_session` does, and as `get_session` does but for a session that is not there.
        """
        checked_id(session_id)
        wait = None if timeout is None else checked_wait("timeout", timeout)
        own_timeout, own_data = self._begin_creation(name, data, session_timeout)
        return self._sessions.get_or_create(session_id, name, own_timeout, own_data, wait)

    def _begin_creation(
        self, name: str | None, data: Mapping[str, Any] | None, session_timeout: Duration | None
    ) -> tuple[float, dict[str, Any] | None]:
        """Check what a new session is to be, and see to it that somebody cleans up; gives its timeout and its data."""
        if name is not None:
            checked_name(name)
        timeout = self.config.session_timeout
        if session_timeout is not None:
            timeout = checked_seconds("session_timeout", session_timeout)
        if data is not None and not isinstance(data, Mapping):
            raise TypeError(f"data must be a dict or another mapping, not {short_repr(data)}")
        start_clean_if_forked()
        if self._cleanup_task.needs_start:
            self._cleanup_task.retry_start()
            self._note_cleaning()
        return timeout, copied_data(dict(data)) if data else None

    def close_session(self, session_id: str, *, force: bool = False) -> None:
        """End a session: cause `CLOSED`. If it is not checked out, `on_close` has run when this returns.

        With a store, its record is gone too, or will be once the store can delete it; a session that is not in memory
        is not restored for that, and has nothing to close.

        If it is checked out, it is gone for every caller at once, and `on_close` runs when it is given back; with
        `force=True` it runs now, also for a session that ended before and is still checked out here. The holder goes
        on, finds `session.ended`, and gets `SessionExpiredError` when it saves or gives back: its changes are lost.
        Raises `SessionNotFoundError`, or `SessionExpiredError` if it ended before (closing it again included).
        """
        if not isinstance(session_id, str):
            checked_str("session id", session_id)
        if force is not False and checked_flag("force", force):
            self._sessions.force_close(session_id)
        else:
            self._sessions.close(session_id)

    def close(self, *, timeout: Duration | None = 0, force: bool = False) -> list[CheckoutInfo]:
        """Stop the cleanup task, end all sessions (cause `SHUTDOWN`), and close all channels.

        A session that is checked out is gone for every caller too, and is finalized when it is given back. `close`
        waits up to `timeout` seconds for that (default 0: not at all; None: as long as it takes); then, with
        `force=True`, it finalizes the rest as `close_session` does. Returns what is checked out still. Channels do not
        tell of that, nor of those that another thread is finalizing at the moment.
        `close` waits for a cleanup run that is under way, for 5 seconds at most. Closing again does nothing, unless a
        close callback was interrupted: then it goes on where that one stopped.

        With a store, the records stay, and what the store lacks is written. If that fails, `StoreError` is raised once
        all the rest is done.
        """
        start_clean_if_forked()
        state = self._sessions.state
        if state.is_interrupted():
            state.defer(self.close)
            return []
        wait, insists = checked_wait("timeout", timeout), checked_flag("force", force)
        self._sessions.stop()
        self._choose_path()
        self._cleanup_task.close()
        try:
            self._sessions.shut_down()
            if wait != 0:
                self._sessions.wait_until_returned(wait)
            for session_id in {left.session_id for left in self._sessions.checkouts_left()} if insists else ():
                self._sessions.take_away(session_id)
            return self._sessions.checkouts_left()
        finally:
            state.events.close()

    # ---- Using

    def get_session(self, session_id: str) -> ManagedSession[R]:
        """The live session with this id. Looks only: does not touch.

        Raises `SessionExpiredError` if it ended recently, and `SessionNotFoundError` if nothing is known of it, as of
        an id that no session may have. With a store, a session that is not in memory is restored, and one that is gets
        what others saved. If another process has had it checked out and there is a resource, it leaves memory, and is
        restored with a new one. With `affinity=True`, raises `SessionElsewhereError` if another process has it in
        memory.
        """
        find = self._find_fast
        if find is not None and (found := find(session_id)) is not None:
            return found
        if not isinstance(session_id, str):
            checked_str("session id", session_id)
        return self._sessions.get(session_id)

    def read_session(self, session_id: str) -> SessionSnapshot:
        """A snapshot of the live session with this id: for a look that waits for nothing.

        It is no activity, and works at once while the session is checked out, here or in another process. Without a
        store, it has a copy of the data as they are at this moment, also while the holder of a checkout changes them.

        With a store, it has what is stored: what the last checkout that was given back has saved, and `last_active` as
        far as it is known here. That is one read of the store, however often the session is read. The session is not
        brought into memory: no factory is called, no limit is in the way, and `affinity=True` does not matter.

        Raises as `get_session` does if the session is not there, has expired, or the coordinator is closed, and
        `StoreError` if the store cannot be read.
        """
        return self._sessions.read(checked_str("session id", session_id))

    def touch_session(self, session_id: str) -> None:
        """Note activity: idle time starts again. Raises as `get_session` does.

        With a store, a session in memory is touched there; the next cleanup run writes it.
        """
        touch = self._touch_fast
        if touch is None or not touch(session_id):
            if not isinstance(session_id, str):
                checked_str("session id", session_id)
            self._sessions.touch(session_id)

    def checkout(
        self,
        session_id: str,
        *,
        exclusive: bool = True,
        timeout: Duration | None = None,
        holder: object | None = None,
    ) -> Checkout[R]:
        """A context manager that holds the session: `with coordinator.checkout(session.id) as session: ...`.

        A session that is checked out is never expired for idleness or evicted, and is touched when taken and when
        given back. An explicit close, or `max_lifetime`, ends it when it is given back.

        Exclusive between holders; the same one may take it again. `holder`: an object that stands for a holder, such as
        a request, or several threads that work on the session together; default the thread that enters. Without a
        store, `exclusive=False` shares the session with others that do so; with a store, it raises `ValueError`.

        Entering waits up to `timeout` seconds of real time (None: as long as it takes; 0: not at all), first come first
        served, and then raises `SessionBusyError`; it raises as `get_session` does if the session is not there, or ends
        while it waits. A thread that shares a session with others and asks to have it exclusively gets
        `SessionBusyError` at once, because that wait could never end.

        With a store, exclusive between processes too (there, the process that asks at the right moment is served
        first), with the newest version. When the last checkout in this process is given back, what changed is saved.
        If that raises (`StoreError`, `InvalidSessionError` for data that JSON cannot say, or would give back as
        something else: what counts is the exact type), the change is in memory, and the next one tries again; after
        `SessionConflictError` it is not, and after `SessionNotFoundError` the session is gone.
        """
        if not isinstance(session_id, str):
            checked_str("session id", session_id)
        if exclusive is not True and not checked_flag("exclusive", exclusive):
            self._sessions.check_sharing(session_id)
        wait = None if timeout is None else checked_wait("timeout", timeout)
        return Checkout(self._sessions, session_id, exclusive, wait, holder)

    def checkouts(self) -> list[CheckoutInfo]:
        """What is checked out in this process, the longest first: by which thread or holder, for how long, who waits.

        Works after `close()` too.
        """
        return self._sessions.checkouts()

    def save_session(self, session_id: str) -> None:
        """Write to the store now what changed in a session, and not only when its last checkout is given back.

        For a caller that has the session checked out for long, and tells others what was done. If nothing changed, or
        there is no store, nothing is written. Raises as a checkout does that is given back, and as `get_session` does.
        """
        self._sessions.save(checked_str("session id", session_id))

    def rotate_session(
        self, session_id: str, new_id: str | None = None, *, timeout: Duration | None = None
    ) -> ManagedSession[R]:
        """Give a session another id and return it; it is not found by the old one any more.

        For ids that stand for a secret: after a login, the old secret is worth nothing. The session stays the same
        object, with its name, data, resource, age and checkouts. A thread that waits to check it out by the old id gets
        `SessionNotFoundError`. `new_id`: default `secrets.token_urlsafe(32)`.

        Checks the session out exclusively, waits up to `timeout` seconds for that, and raises as `checkout` does; where
        this thread has it so already, there is nothing to wait for. Raises `SessionExistsError` if the new id is taken,
        and `StoreError` if there is a store and it fails: then the session has its old id still.
        """
        new_id = secrets.token_urlsafe(32) if new_id is None else checked_id(new_id)
        checkout = self.checkout(session_id, timeout=timeout)
        with checkout as session:
            checkout.rotate(new_id)
        return session

    def switch_session(self, name_or_id: str) -> ManagedSession[R]:
        """Make the session with this id, or else this name, the active one, touch it and return it.

        Raises as `get_session` does.
        """
        return self._sessions.switch(checked_str("session name or id", name_or_id))

    @property
    def active_session(self) -> ManagedSession[R] | None:
        """The session switched to last; None before the first switch, and once that session has ended.

        To choose another one then: `list_sessions` comes in the order of activity.
        """
        return self._sessions.active()

    def restore_sessions(self) -> int:
        """Bring back the live sessions that are in the store only, while there is room, and return how many that were.

        Nothing depends on it: each comes back when it is asked for. One whose `resource_factory` raises is logged and
        stays in the store; with `affinity=True`, so does one that another process has in memory. Raises `StoreError`,
        and `CoordinatorClosedError` after `close()`.
        """
        self._sessions.state.registry.check_open()
        return self._sessions.restore_all()

    # ---- Looking

    @property
    def store(self) -> Store | None:
        """The store that it was made with, if any."""
        return self._store

    def list_sessions(self) -> list[ManagedSession[R]]:
        """All live sessions in memory, least recently active first."""
        return self._sessions.sorted_by_activity()

    def __len__(self) -> int:
        """How many sessions are live in memory: expired ones never count, whether or not cleanup has run."""
        return self._sessions.count()

    def __bool__(self) -> bool:
        """A coordinator is true, also while it keeps no sessions."""
        return True

    def __contains__(self, session_id: object) -> bool:
        """Whether a live session has this id, in memory or in the store; False for what cannot be an id."""
        return self._sessions.contains(session_id)

    def subscribe(self, capacity: int | None = None) -> EventChannel:
        """A channel that gets every event from now on, until it or the coordinator is closed.

        `capacity`: how many unread events it keeps; default `event_capacity` of the config.
        """
        return self._sessions.subscribe(self.config.event_capacity if capacity is None else capacity)

    def stats(self) -> CoordinatorStats:
        """The figures at this moment. Works after `close()` too."""
        start_clean_if_forked()
        figures = self._sessions.stats()
        return CoordinatorStats(
            live=figures.live,
            checked_out=figures.checked_out,
            leaving=figures.leaving,
            created=figures.created,
            removed=figures.removed,
            close_failures=figures.close_failures,
            close_interruptions=figures.close_interruptions,
            events_dropped=figures.events_dropped,
            cleanup=self._cleanup_task.stats(),
            store=self._sessions.store_stats(),
        )

    # ---- Cleaning up

    def cleanup_inactive_sessions(self, max_age: Duration | None = None, *, dry_run: bool = False) -> int:
        """Remove every session whose time has run out, and return how many were removed.

        `max_age`, in seconds: remove those as well that have been idle for more than that (cause `IDLE`). A session
        that is checked out is never removed. `dry_run=True` only counts. Raises `CoordinatorClosedError` after
        `close()`.

        With a store, removes what expired there and is in memory of no living process, and writes what the store lacks.
        Raises `StoreError` if the store fails, once it has removed what it could.
        """
        age = None if max_age is None else checked_seconds("max_age", max_age)
        count_only = checked_flag("dry_run", dry_run)
        start_clean_if_forked()
        self._sessions.state.registry.check_open()
        if count_only:
            return self._sessions.count_due(age)
        return self._sessions.clean_up(self._sessions.state.begin(), age)

    def start_cleanup_task(self) -> None:
        """Start the daemon thread that cleans up every `cleanup_interval` seconds of real time.

        If the system has no thread to give, that is logged and counted, sessions expire all the same, and the next
        session that is created tries again. Starting again does nothing. Raises `CoordinatorClosedError` after
        `close()`. With a store, it runs at least four times per session timeout.
        """
        start_clean_if_forked()
        self._sessions.state.registry.check_open()
        self._start_cleaning()

    def stop_cleanup_task(self) -> None:
        """Stop the cleanup thread; sessions still expire. Stopping again does nothing.

        Raises `StoreError`, and goes on, if a store cannot be told that activity will be written later from now on.
        """
        self._sessions.cleanup_stopped()
        self._cleanup_task.stop()

    def _choose_path(self) -> None:
        # Looks and touches without the lock, while there is such a path.
        fast = self._sessions.state.fast
        self._find_fast = None if fast is None else fast.find
        self._touch_fast = None if fast is None else fast.touch

    def _make_cleanup_task(self) -> CleanupTask:
        return CleanupTask(self._sessions.cleanup_interval, self._run_cleanup)

    def _start_cleaning(self) -> None:
        self._cleanup_task.start()
        self._note_cleaning()

    def _note_cleaning(self) -> None:
        if not self._cleanup_task.needs_start:
            self._sessions.cleanup_started()

    def _run_cleanup(self) -> CleanupRun | None:
        state = self._sessions.state
        if state.registry.closed:
            return None
        reading = state.begin()
        return CleanupRun(reading, self._sessions.clean_up(reading))

    # ---- Context manager, copies, collection, fork

    __reduce_ex__ = refuse_copies(
        "use this one throughout its process, and make another with the same config in each other process; to share "
        "sessions, give each of them a store"
    )

    def __enter__(self) -> Self:
        self.start_cleanup_task()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._sessions.state.registry.closed else "open"
        return f"<{type(self).__name__} {state}, {self._sessions.in_memory} sessions in memory>"

    def __del__(
        self,
        warn: Callable[..., None] = warnings.warn,
        is_finalizing: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        # Both are bound early: modules may be gone when the interpreter exits. If __init__ raised, not all is there.
        if not hasattr(self, "_cleanup_task") or self._sessions.state.registry.closed:
            return
        if not is_finalizing():
            self._cleanup_task.cancel()
            self._sessions.state.events.close()
        warn(
            f"{self!r} was dropped without close(): the resources of its sessions are not closed. "
            "Use it as a context manager, or call close()",
            ResourceWarning,
            source=self,
        )

    def after_fork_in_child(self) -> None:
        """Start clean in a forked child: with no sessions, and a cleanup task of its own if the parent had one."""
        # Another thread of the parent may have held any lock here, and no other thread lives on: nothing is kept.
        former, task = self._sessions.state, self._cleanup_task
        task.abandon()
        former.events.abandon()
        self._sessions.start_clean()
        self._choose_path()
        self._cleanup_task = self._make_cleanup_task()
        if former.registry.closed:
            self._sessions.stop()
            self._sessions.state.events.close()
        elif task.wanted:
            self._start_cleaning()
