"""Sessions in memory: each call of a coordinator that has no store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

from ..config import CoordinatorConfig
from ..errors import RemovalCause, SessionExistsError, SessionNotFoundError
from ..util.clock import Clock, utc_of, wall_clock_of
from .admission import Admission, Arrival
from .checkout import Checkout
from .events import EventChannel, EventKind
from .finalizer import CloseCallback
from .holding import CheckoutInfo, describe, warn_of_long
from .locks import check_may_wait, check_time_left
from .removal import Removal
from .session import (
    HAS_STEPS,
    Activity,
    Keeper,
    ManagedSession,
    SessionSnapshot,
    SessionState,
    copied_data,
    has_containers,
    snapshot_of,
)
from .state import State

Session = ManagedSession[Any]
ResourceFactory = Callable[[Any], Any]

# One object, whatever reads it: an attribute of an enum takes longer to look up.
_TOUCH = Activity.TOUCH
_MESSAGE = Activity.MESSAGE
_CLOSED = RemovalCause.CLOSED

_EVENT_OF = {
    Activity.MESSAGE: EventKind.MESSAGE,
    Activity.TOOL_EXECUTION: EventKind.TOOL_EXECUTION,
    Activity.STATE_CHANGE: EventKind.STATE_CHANGE,
}


class MemoryStats(NamedTuple):
    """The figures of the sessions in memory."""

    live: int
    checked_out: int
    leaving: int
    created: int
    removed: dict[RemovalCause, int]
    close_failures: int
    close_interruptions: int
    events_dropped: int


class InMemorySessions:
    """The sessions of one coordinator, in memory only.

    Each method reads the clock, makes one decision with the lock held, and does what it says after that. All may be
    called from any thread, with the lock free; what they raise is what the coordinator's methods of these names say.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        clock: Clock,
        factory: ResourceFactory | None,
        on_close: CloseCallback | None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._factory = factory
        self._on_close = on_close
        self._keeper: ref[Keeper] = ref(self)
        self.start_clean()

    def start_clean(self) -> None:
        """Begin with no sessions; in a forked child, those it has are its parent's."""
        self.state = State(self._config, self._clock, self._on_close)
        self.admission = Admission(self._config, self.state, self._factory)
        self.removal = Removal(self.state)

    # ---- Creating and closing

    def create(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, resource: Any
    ) -> Session:
        """Create a session."""
        session = self.make_session(session_id, name, timeout, data, resource)
        state = self.state
        reading = state.begin()
        with state.lock:
            now = state.advance(reading)
            if self.admission.try_add(session, now):
                if state.events.channels:
                    state.events.post(EventKind.CREATED, session_id, now)
                return session
        self.admission.bring_in(Arrival(session), reading)
        return session

    def get_or_create(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, wait: float | None
    ) -> Session:
        """The live session with this id, or else a new one; waits for another thread that is making it."""
        deadline = None if wait is None else time.monotonic() + wait
        while True:
            with contextlib.suppress(SessionNotFoundError):
                return self.get(session_id)
            try:
                return self.create(session_id, name, timeout, data, None)
            except SessionExistsError as error:
                if error.session_id != session_id:
                    raise
            self.await_move(session_id, deadline)

    def await_move(self, session_id: str, deadline: float | None) -> None:
        """Wait while a session with this id is being made, or leaves.

        `deadline`: on `time.monotonic`; None for as long as it takes. Raises `SessionBusyError` once it is over.
        """
        with self.state.lock:
            while self.state.registry.is_awaited(session_id):
                left = check_time_left(session_id, deadline)
                check_may_wait(session_id)
                self.state.moves.wait(left)
        check_time_left(session_id, deadline)

    def make_session(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, resource: Any
    ) -> Session:
        """A new session object; it is not in the registry yet."""
        # Most sessions have no data: their dict is made when it is asked for, if that can be one step.
        own_data = data or (None if HAS_STEPS else {})
        return ManagedSession(self._keeper, session_id, name, timeout, own_data, resource)

    def close(self, session_id: str) -> None:
        """End a session; finalize it, unless it is checked out."""
        state = self.state
        if state.is_interrupted():
            state.defer(partial(self.close, session_id))
            return
        reading = state.begin()
        with state.lock:
            now = state.advance(reading)
            session = state.registry.find(session_id, now)
            must_run = state.registry.end(session, (_CLOSED, now, None), now)
        if must_run:
            state.finalizer.run([session])

    def force_close(self, session_id: str) -> None:
        """As `close`; a session that is checked out, even if it has ended, is finalized now."""
        if self.state.is_interrupted():
            self.state.defer(partial(self.force_close, session_id))
        elif not self.take_away_now(session_id):
            self.close(session_id)

    def take_away_now(self, session_id: str) -> bool:
        """As `take_away`, at the time that it is now."""
        with self.state.lock:
            if self.state.registry.find_held(session_id) is None:
                return False
        self._advance()
        return self.take_away(session_id)

    def take_away(self, session_id: str) -> bool:
        """End a session that is checked out, and finalize it now; False if it is not checked out."""
        state, registry = self.state, self.state.registry
        with state.lock:
            now, held = state.latest, registry.find_held(session_id)
            if held is None:
                return False
            session, lock = held
            registry.end_live(session, (_CLOSED, now, None), now)
            registry.take_away(session, lock)
        state.finalizer.run([session])
        return True

    def checkouts(self) -> list[CheckoutInfo]:
        """Who has which session now, the longest first."""
        self._advance()
        return self.checkouts_left()

    def checkouts_left(self) -> list[CheckoutInfo]:
        """As `checkouts`, at the latest time that is known."""
        with self.state.lock:
            now, holdings = self.state.latest, self.state.registry.holdings(self.state.latest)
        return describe(holdings, now)

    def _advance(self) -> None:
        reading = self.state.begin()
        with self.state.lock:
            self.state.advance(reading)

    def wait_until_returned(self, seconds: float | None) -> None:
        """Once the coordinator is closed: wait until no session is checked out, for that long at most."""
        with self.state.lock:
            is_over = not self.state.registry.held
        if not is_over:
            self.state.registry.all_returned.wait(seconds)

    def shut_down(self) -> None:
        """End all sessions, and finalize those that are not checked out. `stop` was called before."""
        state = self.state
        state.run_deferred()
        # A clock that fails must not keep the sessions open.
        with contextlib.suppress(Exception):
            reading = state.read()
            with state.lock:
                state.advance(reading)
        self.removal.shut_down()

    def stop(self) -> None:
        """From now on, every call raises `CoordinatorClosedError`; those that are under way go on."""
        self.state.registry.closed = True
        self.state.fast = None

    # ---- Using

    def get(self, session_id: str) -> Session:
        """The live session with this id."""
        state = self.state
        reading = state.begin()
        with state.lock:
            return state.registry.find(session_id, state.advance(reading))

    def read(self, session_id: str) -> SessionSnapshot:
        """A copy of the live session with this id, as it is now."""
        state = self.state
        reading, wall = state.begin(), wall_clock_of(self._clock)()
        with state.lock:
            now = state.advance(reading)
            session = state.registry.find(session_id, now)
            end = wall + state.registry.index.end_of(session) - now
        return snapshot_of(session, session_id, utc_of(end))

    def touch(self, session_id: str) -> None:
        """Note activity of the live session with this id."""
        state = self.state
        reading = state.begin()
        with state.lock:
            state.registry.touch_live(session_id, state.advance(reading))

    def touch_this(self, session: Session) -> None:
        """Note activity of this very session."""
        touch = self.state.fast.touch if self.state.fast is not None else None
        # In a forked child, the session may be the parent's.
        if touch is None or self.state.registry.live.get(session._id) is not session or not touch(session._id):
            self.note_activity(session, _TOUCH)

    def note_activity(self, session: Session, activity: Activity, new_state: SessionState | None = None) -> None:
        """Note what a session has done, and tell the channels; a plain touch is no event."""
        state = self.state
        reading = state.begin()
        with state.lock:
            now = state.advance(reading)
            state.registry.require(session, now)
            state.registry.touch(session, now)
            if activity is _TOUCH or new_state is session._state:
                return
            if activity is _MESSAGE:
                session._message_count += 1
            if new_state is not None:
                session._state = new_state
            if state.events.channels and session._id not in state.registry.opening:
                state.events.post(_EVENT_OF[activity], session._id, now)

    def set_timeout(self, session: Session, timeout: float) -> None:
        """Give a session another session timeout; if it has been idle for longer, it expires."""
        state = self.state
        reading = state.begin()
        with state.lock:
            now = state.advance(reading)
            state.registry.require(session, now)
            if timeout == session._timeout:
                return
            if state.registry.dirty is not None:
                state.registry.dirty.add(session)
            state.registry.set_timeout(session, timeout, now)

    def expires_at(self, session: Session) -> datetime:
        """When the session's time runs out, by the wall clock, if nothing touches it."""
        reading, wall = self.state.begin(), wall_clock_of(self._clock)()
        with self.state.lock:
            now = self.state.advance(reading)
            return utc_of(wall + self.state.registry.index.end_of(session) - now)

    def switch(self, name_or_id: str) -> Session:
        """Make the live session with this id, or else this name, the active one, and touch it."""
        state = self.state
        reading = state.begin()
        with state.lock:
            now = state.advance(reading)
            session = state.registry.find_named(name_or_id, now)
            self.make_active(session, now)
        return session

    def make_active(self, session: Session, now: float) -> None:
        """Make a live session the active one, and touch it. Called with the lock held."""
        self.state.registry.touch(session, now)
        self.state.registry.active = session
        self.state.events.post(EventKind.SWITCHED, session.id, now)

    # ---- Checking out

    def check_sharing(self, session_id: str) -> None:
        """In memory, a session may be shared."""

    @property
    def is_quick(self) -> bool:
        """Whether a call runs no I/O, no callback and no factory."""
        return not self.state.has_deferred

    def recognize(self, checkout: Checkout[Any]) -> None:
        """Note if the calling code runs within a block that has the session."""
        with self.state.lock:
            self.state.registry.recognize(checkout.session_id, checkout)

    def ask(self, checkout: Checkout[Any]) -> Session | None:
        """Take a session for a checkout; None if it has a place in the queue, and is to ask again when it is woken.

        If that raises, or is not asked again, `give_back` undoes it.
        """
        state = self.state
        reading = state.begin()
        with state.lock:
            now = state.advance(reading)
            session = checkout.session
            if session is not None:
                return session if self._is_granted(session, checkout, now) else None
            session = checkout.session = state.registry.find(checkout.session_id, now)
            return session if state.registry.take(session, checkout, now) else None

    def _is_granted(self, session: Session, checkout: Checkout[Any], now: float) -> bool:
        """Whether a checkout that has waited has the session. Raises as `Registry.find` does. With the lock held."""
        registry = self.state.registry
        if session._id != checkout.session_id or session._ending is not None or registry.expire(session, now):
            registry.check_open()
            raise registry.absent(checkout.session_id, now)
        if checkout.held:
            checkout.since = now
            registry.touch(session, now)
        return checkout.held

    def give_back(self, checkout: Checkout[Any]) -> None:
        """Give a session back, or a place in the queue for it; finalize it if it was to end then."""
        rest = self.begin_to_give_back(checkout)
        if rest is not None:
            rest()

    def begin_to_give_back(self, checkout: Checkout[Any]) -> Callable[[], object] | None:
        """As `give_back`, but for what may take long: a call that is still to be made, or None."""
        state, session = self.state, checkout.session
        if session is None:
            return None
        if state.is_interrupted():
            state.defer(partial(self.give_back, checkout))
            return None
        try:
            if session._data and has_containers(session._data):
                self._detach(session, checkout)
            reading = state.read()
            with state.lock:
                must_run = state.registry.give_back(session, checkout, state.advance(reading))
        except BaseException:
            # Even a clock that fails must not keep the session checked out for ever.
            self.finish_checkout(session, checkout)
            raise
        checkout.session = None
        return partial(state.finalizer.run, [session]) if must_run else None

    def _detach(self, session: Session, checkout: Checkout[Any]) -> None:
        """Before the last checkout is given back: have nothing that its holder keeps be part of the data any more."""
        data = session.data
        copies: dict[str, Any] = {}
        takes: int | None = None
        while True:
            with self.state.lock:
                lock, former = session._lock, takes
                takes = None if lock is None else lock.takes_of_last(checkout)
                if takes is not None and takes == former:
                    # No other has had the session since they were copied.
                    data.update(copies)
                    return
            if takes is None:
                return
            copies = copied_data(data, itself=data)

    def finish_checkout(self, session: Session, checkout: Checkout[Any]) -> None:
        """Give a session back, at the latest time that is known; doing it again does nothing."""
        with self.state.lock:
            must_run = self.state.registry.give_back(session, checkout, self.state.latest)
        checkout.session = None
        if must_run:
            self.state.finalizer.run([session])

    def give_back_later(self, checkout: Checkout[Any]) -> None:
        """Give a session back at the next call, or cleanup."""
        self.state.defer(partial(self.give_back, checkout))

    def close_held(self, checkout: Checkout[Any]) -> None:
        """End the session that a checkout has, unless it has ended, and give it back."""
        try:
            self.close_this(checkout.session)
        finally:
            self.give_back(checkout)

    def close_this(self, session: Session | None) -> None:
        """End this very session, unless it has ended."""
        state = self.state
        reading = state.begin()
        with state.lock:
            now = state.advance(reading)
            must_run = session is not None and state.registry.end_live(session, (_CLOSED, now, None), now)
        if must_run and session is not None:
            state.finalizer.run([session])

    def save(self, session_id: str) -> None:
        """Without a store there is nothing to write; the session has to be live."""
        self.get(session_id)

    def save_held(self, session: Session) -> None:
        """Without a store there is nothing to write."""

    def revert(self, session: Session) -> None:
        """Without a store there is nothing to go back to."""

    def rename(self, session: Session, new_id: str) -> None:
        """Give a session that is checked out another id."""
        state = self.state
        reading = state.begin()
        with state.lock:
            now, former_id = state.advance(reading), session._id
            state.registry.rename(session, new_id, now)
            state.events.post(EventKind.ROTATED, new_id, now, former_id=former_id)

    # ---- Looking

    def contains(self, session_id: object) -> bool:
        """Whether a live session has this id."""
        reading = self.state.begin()
        with self.state.lock:
            return not self.state.registry.closed and self.state.registry.is_live(
                session_id, self.state.advance(reading)
            )

    def active(self) -> Session | None:
        """The session switched to last, if it is live."""
        reading = self.state.begin()
        with self.state.lock:
            return self.state.registry.current(self.state.advance(reading))

    def sorted_by_activity(self) -> list[Session]:
        """All live sessions, least recently active first."""
        sessions = self.removal.when_expired(self.state.begin(), lambda _: list(self.state.registry.live.values()))
        return sorted(sessions, key=lambda session: session._active_at)

    def count(self) -> int:
        """How many sessions are live."""
        return self.removal.when_expired(self.state.begin(), lambda _: len(self.state.registry.live))

    @property
    def in_memory(self) -> int:
        """How many sessions have not left memory."""
        return len(self.state.registry.live) + len(self.state.finalizer.leaving)

    def stats(self) -> MemoryStats:
        """The figures at this moment."""
        registry, finalizer, events = self.state.registry, self.state.finalizer, self.state.events
        return self.removal.when_expired(
            self.state.begin(),
            lambda _: MemoryStats(
                len(registry.live),
                len(registry.held),
                len(finalizer.leaving),
                registry.created,
                dict(finalizer.removed),
                finalizer.failures,
                finalizer.interruptions,
                events.dropped,
            ),
        )

    def subscribe(self, capacity: int) -> EventChannel:
        """A channel that gets every event from now on."""
        return self.state.events.subscribe(capacity)

    # ---- Cleaning up

    def clean_up(self, reading: float, age: float | None = None) -> int:
        """Remove the sessions that are due, or idle for more than `age` seconds; how many were removed."""
        limit = self._config.checkout_warning
        if limit is not None:
            with self.state.lock:
                now, holdings = self.state.advance(reading), self.state.registry.holdings(self.state.latest)
            warn_of_long(holdings, now, limit)
        return self.removal.remove_due(reading, age)

    def count_due(self, age: float | None = None) -> int:
        """How many sessions `clean_up` would remove."""
        return self.removal.count_due(self.state.begin(), age)

    def restore_all(self) -> int:
        """Without a store there is nothing to bring back."""
        return 0

    # ---- What only a store makes a difference to

    @property
    def cleanup_interval(self) -> float:
        """How often the cleanup task is to run, in seconds."""
        return self._config.cleanup_interval

    def cleanup_started(self) -> None:
        """From now on, the cleanup task runs."""

    def cleanup_stopped(self) -> None:
        """From now on, no cleanup task runs."""

    def store_stats(self) -> None:
        """Without a store there are no figures of it."""
