"""Sessions in memory and in a store: each call of a coordinator that has a store."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..config import CoordinatorConfig
from ..core.admission import Arrival
from ..core.checkout import Checkout
from ..core.cleanup import JOIN_SECONDS
from ..core.engine import InMemorySessions, MemoryStats, ResourceFactory
from ..core.events import EventChannel, EventKind
from ..core.finalizer import CloseCallback
from ..core.holding import CheckoutInfo
from ..core.locks import check_may_wait, check_time_left
from ..core.session import (
    ManagedSession,
    SessionMetadata,
    SessionSnapshot,
    SessionState,
    ending_of,
    is_checked_out,
    restore_counters,
    restore_times,
)
from ..core.state import State
from ..errors import (
    InvalidSessionError,
    RemovalCause,
    SessionBusyError,
    SessionConflictError,
    SessionElsewhereError,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from ..stores.base import Found, SessionRecord, Store
from ..util.clock import Clock, utc_of
from ..util.log import report_failure
from ..util.timer import PeriodicThread
from ..util.validation import is_id, is_name
from . import codec
from .client import StoreClient
from .codec import STARTING, data_of, state_of
from .coordination import Coordination
from .records import Records, StoredSession, StoreStats

Session = ManagedSession[Any]

WRITE_SHARE = 0.25
"""How often activity is written at least, as a part of the session timeout; cleanup may be to run less often."""

FIRST_LOOK_SECONDS = 0.001
LAST_LOOK_SECONDS = 0.05
"""How often to ask for a lease that another process has, in seconds: each time after twice as long, from and up to."""

_CLOSED = RemovalCause.CLOSED
_MAY_LIVE_ON = {RemovalCause.IDLE, RemovalCause.PASSIVATED}


class NewRecord(Arrival):
    """A new session, whose record is created, with this state, before its resource is made."""

    def __init__(self, session: Session, records: Records, state: str) -> None:
        super().__init__(session)
        self._records = records
        self._state = state
        self._created = False

    def take_turn(self) -> None:
        # The store may have a session with this id: another thread that asks for it waits until that is known.
        self._records.begin_create(self.session.id)

    def keep_record(self) -> None:
        self._records.create(self.session, self._state)
        self._created = True

    def give_up_record(self) -> None:
        if self._created:
            self._records.discard(self.session)

    def enter(self, state: State, now: float) -> None:
        super().enter(state, now)
        self._records.settle(self.session)


class LoadedRecord(Arrival):
    """A session that is brought back from its record, to which we are attached."""

    def __init__(
        self,
        session: Session,
        records: Records,
        entry: StoredSession,
        record: SessionRecord,
        times: tuple[float, float],
    ) -> None:
        super().__init__(session)
        self._records = records
        self._entry = entry
        self._record = record
        self._times = times

    def take_turn(self) -> None:
        self._records.await_name(self.session.name)

    def keep_record(self) -> None:
        # Its factory may use it.
        restore_times(self.session, *self._times)
        self._records.note_loaded(self._entry, self.session, self._record)

    def give_up_record(self) -> None:
        self._records.forget(self.session)

    def enter(self, state: State, now: float) -> None:
        state.registry.add_loaded(self.session)
        state.events.post(EventKind.RESTORED, self.session.id, now)
        self._records.settle(self.session)


class Writer:
    """Writes activity at intervals while the close callbacks of a cleanup run, which may take long: `with writer: ...`.

    Several threads may clean up at once. The thread that writes is there from the first callback, which says `start`,
    until the last cleanup has ended.
    """

    def __init__(self, interval: float, flush: Callable[[], object]) -> None:
        self._interval = interval
        self._flush = flush
        # Reentrant, because a signal handler may clean up.
        self._lock = threading.RLock()
        self._cleanups = 0
        self._thread: PeriodicThread | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._cleanups += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._cleanups -= 1
            thread = None
            if not self._cleanups:
                thread, self._thread = self._thread, None
        if thread is not None:
            thread.cancel()
            thread.join(JOIN_SECONDS)

    def start(self) -> None:
        """Write from now on, if a cleanup is under way."""
        with self._lock:
            if self._cleanups and self._thread is None:
                thread = PeriodicThread(self._interval, self._write, "sessionkit-writer")
                # Without a thread, activity is written after the callbacks.
                with contextlib.suppress(RuntimeError, MemoryError):
                    thread.start()
                    self._thread = thread

    def _write(self) -> bool:
        # What fails is tried again.
        with contextlib.suppress(StoreError):
            self._flush()
        return True


class PersistentSessions:
    """The sessions of one coordinator, in memory and in a store; each call as `InMemorySessions` has it.

    A call for a session that is not in memory, while the store fails, raises `StoreError`.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        clock: Clock,
        factory: ResourceFactory | None,
        on_close: CloseCallback | None,
        store: Store,
    ) -> None:
        self._config = config
        self._clock = clock
        self._store = store
        self._memory = InMemorySessions(
            config, clock, factory, None if on_close is None else self._while_writing(on_close)
        )
        self._join()

    def _join(self) -> None:
        self.state = self._memory.state
        # A look goes to the store, and a touch is to be written.
        self.state.fast = None
        self._client = StoreClient(self._store, self._clock, self._config.instance_name)
        self._records = Records(self.state, self._client, self._config)
        self._coordination = Coordination(self.state, self._client, self._records)
        self.state.finalizer.recorder = self._records
        self._memory.admission.passivate = self._passivate
        self._writer = Writer(self.cleanup_interval, self._flush)

    def start_clean(self) -> None:
        """Begin with no sessions in memory; in a forked child, those it has are its parent's."""
        self._memory.start_clean()
        self._join()

    # ---- Creating and closing

    def create(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, resource: Any
    ) -> Session:
        """Create a session; another one that has its id or name makes way for it, if it turns out to have ended."""
        return self._create(session_id, name, timeout, data, resource, SessionState.ACTIVE.value)

    def _create(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, resource: Any, state: str
    ) -> Session:
        session = self._memory.make_session(session_id, name, timeout, data, resource)
        reading = self.state.begin()
        self._records.text_of(session)
        # A resource factory may try to create the very session that is being loaded.
        is_within_load = self._records.is_loading_here(session_id)
        try:
            self._bring_in(NewRecord(session, self._records, state), reading)
        finally:
            if not is_within_load and self._records.is_loading_here(session_id):
                # It was refused; the store may have a session with this id.
                self._end_load(session_id)
            # If the coordinator was closed meanwhile.
            self._leave_if_done()
        return session

    def get_or_create(
        self, session_id: str, name: str | None, timeout: float, data: dict[str, Any] | None, wait: float | None
    ) -> Session:
        """The live session with this id, or else a new one; waits for another thread or instance that is making it."""
        deadline, pause = None if wait is None else time.monotonic() + wait, FIRST_LOOK_SECONDS
        while True:
            if self._is_starting_elsewhere(session_id):
                left = check_time_left(session_id, deadline)
                check_may_wait(session_id)
                time.sleep(pause if left is None else min(pause, left))
                pause = min(2 * pause, LAST_LOOK_SECONDS)
                continue
            with contextlib.suppress(SessionNotFoundError):
                return self.get(session_id)
            try:
                session = self._create(session_id, name, timeout, data, None, STARTING)
            except SessionExistsError as error:
                if error.session_id != session_id:
                    raise
                self._memory.await_move(session_id, deadline)
            else:
                # Others wait for that. If it fails, they learn of it by the next write.
                with contextlib.suppress(StoreError):
                    self._records.write_touches([session])
                return session

    def _is_starting_elsewhere(self, session_id: str) -> bool:
        if session_id in self.state.registry.live or session_id in self.state.registry.opening:
            return False
        found = self._client.load(session_id)
        # If its instance is gone, this one may make the resource.
        return found is not None and found.record.state == STARTING and bool(found.elsewhere)

    def _bring_in(self, arrival: Arrival, reading: float) -> None:
        try:
            self._memory.admission.bring_in(arrival, reading)
        except SessionExistsError as error:
            if error.session_id is None or not self._coordination.confirm_ended(error.session_id):
                raise
            self._memory.admission.bring_in(arrival, self.state.read())

    def _passivate(self, victim: Session) -> None:
        """Bring the victim's record up to date, and let it leave memory if it was not used meanwhile.

        Raises `StoreError` if it cannot be written; then it stays.
        """
        last_active = victim.metadata.last_active
        # What has been refused before is refused again, and logged, when it leaves.
        with contextlib.suppress(SessionConflictError, InvalidSessionError, SessionNotFoundError):
            self._records.write(victim)
        if victim in self._records.dirty:
            self._records.write_touches([victim])
        registry = self.state.registry
        with self.state.lock:
            now = self.state.latest
            rests = registry.live.get(victim.id) is victim and not is_checked_out(victim)
            must_run = (
                rests
                and victim.metadata.last_active == last_active
                and registry.end(victim, (RemovalCause.PASSIVATED, now, None), now)
            )
        if must_run:
            self.state.finalizer.run([victim])

    def close(self, session_id: str) -> None:
        """End a session; one that is in the store only is ended there."""
        if self.state.is_interrupted():
            self.state.defer(partial(self.close, session_id))
            return
        while True:
            session = self._begin_load(session_id)
            if session is None:
                try:
                    self._close_stored(session_id)
                finally:
                    self._end_load(session_id)
                return
            if self._close_here(session):
                return

    def _close_here(self, session: Session) -> bool:
        """End this very session, if it is live in memory; whether that was so."""
        reading = self.state.begin()
        with self.state.lock:
            now = self.state.advance(reading)
            was_live = self.state.registry.live.get(session.id) is session
            must_run = self.state.registry.end_live(session, (_CLOSED, now, None), now)
        if must_run:
            self.state.finalizer.run([session])
        elif was_live:
            # It is checked out: if this process dies before it is given back, it must not come back.
            self._records.delete_records([session])
        return was_live

    def _close_stored(self, session_id: str) -> None:
        found = self._client.load(session_id)
        reading, wall = self._client.now()
        ending = None if found is None else codec.ending_of(found, reading, wall)
        if ending is not None:
            raise SessionExpiredError(session_id, *ending)
        if found is None or not self._client.delete({session_id: None}):
            with self.state.lock:
                raise self.state.registry.absent(session_id, self.state.latest)
        self._coordination.note_end(found.record, (_CLOSED, reading, None))

    def force_close(self, session_id: str) -> None:
        """As `close`; a session that is checked out here, even if it has ended, is finalized now."""
        if self.state.is_interrupted():
            self.state.defer(partial(self.force_close, session_id))
        else:
            try:
                is_done = self._memory.take_away_now(session_id)
            finally:
                self._leave_if_done()
            if not is_done:
                self.close(session_id)

    def take_away(self, session_id: str) -> bool:
        """End a session that is checked out here, and finalize it now; False if it is not checked out."""
        try:
            return self._memory.take_away(session_id)
        finally:
            self._leave_if_done()

    def checkouts(self) -> list[CheckoutInfo]:
        """Who has which session here and now, the longest first."""
        return self._memory.checkouts()

    def checkouts_left(self) -> list[CheckoutInfo]:
        """As `checkouts`, at the latest time that is known."""
        return self._memory.checkouts_left()

    def wait_until_returned(self, seconds: float | None) -> None:
        """Once the coordinator is closed: wait until no session is checked out here, for that long at most."""
        self._memory.wait_until_returned(seconds)

    def stop(self) -> None:
        """From now on, every call raises `CoordinatorClosedError`; those that are under way go on."""
        self._memory.stop()

    def shut_down(self) -> None:
        """Write what the store lacks, let all sessions leave memory, and leave the store once none is left in memory.

        Raises `StoreError` if something could not be written, when all the rest is done.
        """
        # All at once; what fails is tried once more.
        with contextlib.suppress(StoreError):
            self._flush()
        self._memory.shut_down()
        problem: StoreError | None = None
        for step in (self._flush, self._coordination.release_unsure, self._records.retry_deletes, self._leave_if_done):
            try:
                step()
            except StoreError as error:
                problem = problem or error
        lost = self._records.take_lost()
        if lost:
            raise StoreError(
                f"the coordinator is closed, but the last changes of {lost} sessions could not be written to the "
                "store; the log says which and why"
            ) from problem
        if problem is not None:
            raise problem

    def _leave_if_done(self) -> None:
        """Leave the store if the coordinator is closed and all its sessions have left."""
        registry = self.state.registry
        if registry.closed:
            with self.state.lock:
                done = not (registry.live or registry.opening or self.state.finalizer.leaving)
            if done:
                self._client.leave()

    # ---- Using

    def get(self, session_id: str) -> Session:
        """The live session with this id, as the store has it now."""
        while True:
            session, loaded = self._find(session_id)
            if loaded or self._coordination.refresh(session):
                return session

    def read(self, session_id: str) -> SessionSnapshot:
        """What the store has of the live session with this id, by one read; nothing is brought into memory."""
        reading = self.state.begin()
        with self.state.lock:
            now = self.state.advance(reading)
            self.state.registry.check_open()
            session = self._at_hand(session_id, now)
            if session is None and not self._may_be_stored(session_id):
                raise self.state.registry.absent(session_id, now)
        found = self._client.load(session_id)
        if found is not None and session is not None:
            found = self._coordination.as_known_here(session, found)
        if found is None:
            with self.state.lock:
                raise self.state.registry.absent(session_id, self.state.latest)
        ending = codec.ending_of(found, *self._client.now())
        if ending is not None:
            raise SessionExpiredError(session_id, *ending)
        return self._snapshot_of(found.record)

    def _snapshot_of(self, record: SessionRecord) -> SessionSnapshot:
        reading, wall = self._client.now()
        return SessionSnapshot(
            record.id,
            record.name,
            state_of(record),
            data_of(record.data, record.id),
            SessionMetadata(
                reading - (wall - record.created_at), reading - (wall - record.last_active), record.message_count
            ),
            record.session_timeout,
            utc_of(min(record.idle_end, record.life_end) - self._store.clock_offset()),
        )

    def touch(self, session_id: str) -> None:
        """Note activity of the live session with this id."""
        while True:
            try:
                self._memory.touch(session_id)
                return
            except SessionNotFoundError:
                # It is to be loaded, unless that raises this too.
                self._find(session_id)

    def switch(self, name_or_id: str) -> Session:
        """Make the live session with this id, or else this name, the active one, and touch it."""
        session_id = self._id_of(name_or_id)
        while True:
            session, _ = self._find(session_id)
            with self.state.lock:
                # It may have left memory just now.
                if self.state.registry.is_live(session_id, self.state.latest):
                    self._memory.make_active(session, self.state.latest)
                    return session

    def _id_of(self, name_or_id: str) -> str:
        """The id of the live session with this id, or else with this name, in memory or in the store."""
        named, absent = self._named(name_or_id)
        try:
            if named is not None:
                self._coordination.refresh(named)
                return named.id
        except SessionNotFoundError:
            # Here it has the name still; in the store another may have it.
            pass
        for session_id in (name_or_id, self._client.find(name_or_id) if is_name(name_or_id) else None):
            if session_id is not None and self.contains(session_id):
                return session_id
        raise absent or SessionNotFoundError(name_or_id)

    def _named(self, name_or_id: str) -> tuple[Session | None, SessionNotFoundError | None]:
        reading = self.state.begin()
        with self.state.lock:
            try:
                return self.state.registry.find_named(name_or_id, self.state.advance(reading)), None
            except SessionNotFoundError as error:
                return None, error

    # ---- Checking out

    def check_sharing(self, session_id: str) -> None:
        """Raise `ValueError`: with a store, no checkout is shared."""
        # Each process would keep a copy of its own: it would miss what others save, and lose what they change.
        raise ValueError(
            f"session {session_id!r} cannot be checked out with exclusive=False: its coordinator has a store. Check it "
            "out exclusively, with one holder= for all threads that work on it together, or read_session() to look only"
        )

    is_quick = False
    """With a store, nearly every call does I/O."""

    def recognize(self, checkout: Checkout[Any]) -> None:
        """Note if the calling code runs within a block that has the session."""
        self._memory.recognize(checkout)

    def ask(self, checkout: Checkout[Any]) -> Session | None:
        """Take a session for a checkout, with its lease, and the newest version; None if it is to ask again.

        That is when it is woken, or, if another instance has the lease, after `pause` seconds.
        """
        while True:
            session = self._ask_here(checkout) if checkout.pause is None else checkout.session
            if session is None:
                return None
            try:
                taken = self._coordination.take_lease(session, checkout)
            except SessionBusyError:
                checkout.pause = (
                    FIRST_LOOK_SECONDS if checkout.pause is None else min(2 * checkout.pause, LAST_LOOK_SECONDS)
                )
                return None
            checkout.pause = None
            if taken:
                return session
            # Its copy was stale: it leaves memory now, and comes back with another resource.
            self._memory.give_back(checkout)
            checkout.taken_away = False

    def _ask_here(self, checkout: Checkout[Any]) -> Session | None:
        """Take a session for a checkout, in this instance, loading it if need be; None if it has to wait."""
        while True:
            try:
                return self._memory.ask(checkout)
            except SessionNotFoundError:
                self._memory.give_back(checkout)
                # It is to be loaded, unless that raises this too.
                self._find(checkout.session_id)

    def give_back(self, checkout: Checkout[Any]) -> None:
        """Give a session back; if it was the last checkout here, what changed is saved and the lease released."""
        state, session = self.state, checkout.session
        if session is None:
            return
        if state.is_interrupted():
            state.defer(partial(self.give_back, checkout))
            return
        try:
            reading = state.read()
            with state.lock:
                now = state.advance(reading)
                if checkout.held:
                    state.registry.touch_held(session, now)
        finally:
            try:
                if checkout.held:
                    self._save_and_release(session, checkout)
            finally:
                self._memory.finish_checkout(session, checkout)
                self._leave_if_done()

    def _save_and_release(self, session: Session, checkout: Checkout[Any]) -> None:
        try:
            self._coordination.give_back(session, checkout)
        except Exception:
            raise
        except BaseException:
            # An interruption: what was done already is not done twice.
            self._coordination.give_back(session, checkout)
            raise

    def begin_to_give_back(self, checkout: Checkout[Any]) -> Callable[[], object] | None:
        """As `give_back`, but for what may take long, which is all of it."""
        return None if checkout.session is None else partial(self.give_back, checkout)

    def give_back_later(self, checkout: Checkout[Any]) -> None:
        """Give a session back at the next call, or cleanup."""
        self.state.defer(partial(self.give_back, checkout))

    def close_held(self, checkout: Checkout[Any]) -> None:
        """End the session that a checkout has, unless it has ended, and give it back."""
        session = checkout.session
        if session is None:
            return
        try:
            self._close_here(session)
        finally:
            with contextlib.suppress(SessionNotFoundError):
                self.give_back(checkout)
        if self._records.is_ending(session.id):
            raise StoreError(f"session {session.id!r} has ended here, but the store could not delete its record yet")

    def save(self, session_id: str) -> None:
        """Write what changed of the live session with this id."""
        self._coordination.save(self._find(session_id)[0])

    def save_held(self, session: Session) -> None:
        """Write what changed of a session that is checked out."""
        self._coordination.save(session)

    def revert(self, session: Session) -> None:
        """Set the data of a session that is checked out back to what the store has, as far as we know."""
        self._coordination.revert(session)

    def rename(self, session: Session, new_id: str) -> None:
        """Give a session that is checked out, alone, another id: in the store, and then here."""
        reading = self.state.begin()

        def rename_here() -> None:
            now, former_id = self.state.advance(reading), session.id
            self.state.registry.rename(session, new_id, now)
            self.state.events.post(EventKind.ROTATED, new_id, now, former_id=former_id)

        try:
            taken = self._begin_load(new_id) is not None
        except SessionNotFoundError:
            # It has ended, and is not gone yet.
            taken = True
        if taken:
            raise SessionExistsError(f"a session has the id {new_id!r} already; choose another id", new_id)
        try:
            self._records.rename(session, new_id, rename_here)
        finally:
            self._end_load(new_id)

    # ---- Looking

    def contains(self, session_id: object) -> bool:
        """Whether a live session has this id, in memory or in the store."""
        if not isinstance(session_id, str):
            return False
        registry = self.state.registry
        reading = self.state.begin()
        with self.state.lock:
            session = self._at_hand(session_id, self.state.advance(reading))
            if registry.closed or (session is None and not self._may_be_stored(session_id)):
                return False
        if session is None:
            found = self._client.load(session_id)
            return found is not None and codec.ending_of(found, *self._client.now()) is None
        if ending_of(session) is not None:
            return self._coordination.lives_elsewhere(session)
        try:
            self._coordination.refresh(session)
        except SessionNotFoundError:
            return False
        # Stale is no reason: it is live elsewhere.
        ending = ending_of(session)
        return ending is None or ending[0] is RemovalCause.PASSIVATED

    def _at_hand(self, session_id: str, now: float) -> Session | None:
        """The session with this id that is live in memory, or whose time has run out here. With the lock held."""
        session = self.state.registry.live.get(session_id)
        if session is not None:
            self.state.registry.expire(session, now)
            return session
        leaving = self.state.finalizer.leaving.get(session_id)
        ending = None if leaving is None else ending_of(leaving)
        return leaving if ending is not None and ending[0] is RemovalCause.IDLE else None

    def active(self) -> Session | None:
        """The session switched to last, if it is live."""
        return self._memory.active()

    def sorted_by_activity(self) -> list[Session]:
        """All live sessions in memory, least recently active first."""
        return self._memory.sorted_by_activity()

    def count(self) -> int:
        """How many sessions are live in memory."""
        return self._memory.count()

    @property
    def in_memory(self) -> int:
        """How many sessions have not left memory."""
        return self._memory.in_memory

    def stats(self) -> MemoryStats:
        """The figures of the sessions in memory."""
        return self._memory.stats()

    def store_stats(self) -> StoreStats:
        """What there was to do with the store."""
        return self._records.stats()

    def subscribe(self, capacity: int) -> EventChannel:
        """A channel that gets every event from now on."""
        return self._memory.subscribe(capacity)

    # ---- Cleaning up

    @property
    def cleanup_interval(self) -> float:
        """How often the cleanup task is to run, in seconds."""
        return min(self._config.cleanup_interval, self._config.session_timeout * WRITE_SHARE)

    def cleanup_started(self) -> None:
        """From now on, the cleanup task runs, and writes touches. Raises nothing."""
        # Twice the interval, because a run may be late. If the store fails now, it goes by what it knows.
        with contextlib.suppress(StoreError):
            self._client.set_write_interval(2 * self.cleanup_interval)

    def cleanup_stopped(self) -> None:
        """From now on, no cleanup task runs: other instances cannot count on when activity is written."""
        self._client.set_write_interval(float("inf"))

    def clean_up(self, reading: float, age: float | None = None) -> int:
        """Remove the sessions that are due, in memory and in the store; how many were removed.

        Raises `StoreError` once it has done what it could.
        """
        # First: close callbacks may take longer than other instances allow for. What fails is tried once more.
        with contextlib.suppress(StoreError):
            self._flush()
        with self._writer:
            removed = self._memory.clean_up(reading, age)
        if self._records.dirty:
            self._flush()
        if self._records.due:
            self._coordination.release_unsure()
            self._records.retry_deletes()
        while records := self._client.delete_expired(age):
            removed += len(records)
            for record in records:
                reading, wall = self._client.now()
                ending = codec.ending_of(Found(record, 0.0), reading, wall)
                self._coordination.note_end(record, ending or (RemovalCause.IDLE, reading, age))
        for entry in self._records.pending_detaches() if self._records.due else ():
            self._detach(entry)
        return removed

    def count_due(self, age: float | None = None) -> int:
        """How many sessions `clean_up` would remove."""
        return self._memory.count_due(age) + self._client.count_expired(age)

    def _while_writing(self, on_close: CloseCallback) -> CloseCallback:
        """The close callback; activity is written while it runs, if a cleanup calls it."""

        def close(session: Session, cause: RemovalCause) -> object:
            self._writer.start()
            return on_close(session, cause)

        return close

    def _flush(self) -> None:
        gone: list[Session] = []
        try:
            self._records.flush(gone)
        finally:
            # Their close callbacks may wait for another thread that flushes.
            for session in gone:
                self._coordination.drop_local_copy(session)

    def _detach(self, entry: StoredSession) -> None:
        with self.state.lock:
            # It may have been asked for meanwhile.
            if not self._may_be_stored(entry.id) or not self._records.begin_detach(entry):
                return
        try:
            self._client.detach(entry.id)
            self._records.note_detached(entry)
        finally:
            self._end_load(entry.id)

    # ---- Loading

    def restore_all(self) -> int:
        """Load what is in the store and live, while there is room; how many that were."""
        restored = 0
        last: str | None = None
        while page := self._client.page(last):
            last = page[-1].id
            for record in page:
                if self._memory.admission.is_full:
                    return restored
                if record.id not in self.state.registry.live and self._could_load(record.id):
                    restored += 1
        return restored

    def _could_load(self, session_id: str) -> bool:
        try:
            return self._find(session_id)[1]
        except (SessionNotFoundError, SessionLimitError, SessionElsewhereError):
            return False
        except StoreError:
            raise
        except Exception:  # noqa: BLE001  it is logged, whatever a factory raises
            report_failure("session %r could not be restored; it stays in the store", session_id)
            return False

    def _find(self, session_id: str) -> tuple[Session, bool]:
        """The live session with this id, and whether it was loaded just now."""
        session = self._begin_load(session_id)
        if session is not None:
            return session, False
        try:
            return self._load(session_id), True
        finally:
            self._end_load(session_id)

    def _begin_load(self, session_id: str) -> Session | None:
        """The live session with this id, if it is in memory.

        None once it is not there, nor on its way in or out. Then this thread is the one loader of this id: it alone may
        bring the session in, or end it in the store, until it says `_end_load`.
        """
        while True:
            reading = self.state.begin()
            leaving: Session | None = None
            with self.state.lock:
                now = self.state.advance(reading)
                self.state.registry.check_open()
                session = self.state.registry.live.get(session_id)
                if session is not None and not self.state.registry.expire(session, now):
                    return session
                if not self._may_be_stored(session_id):
                    raise self.state.registry.absent(session_id, now)
                leaving = self.state.finalizer.leaving.get(session_id)
                if leaving is None and self._records.begin_load(session_id) is not None:
                    return None
                if leaving is None or not self.state.finalizer.is_waiting(leaving):
                    leaving = None
                    self._records.wait_for_move(session_id)
            if leaving is not None:
                self.state.finalizer.run([leaving])

    def _end_load(self, session_id: str) -> None:
        with self.state.lock:
            self._records.end_load(session_id)
        self._leave_if_done()

    def _may_be_stored(self, session_id: str) -> bool:
        """Whether a session that is not live in memory may be in the store, and this thread can wait for it."""
        if not is_id(session_id):
            return False
        leaving = self.state.finalizer.leaving.get(session_id)
        if leaving is not None:
            ending = ending_of(leaving)
            entry = self._records.of(leaving)
            # A holder of a stale copy is about to give it back.
            is_held = is_checked_out(leaving) and entry is not None and entry.usable
            lives_on = ending is not None and ending[0] in _MAY_LIVE_ON
            return lives_on and not is_held and not self.state.finalizer.runs_here(leaving)
        if self._records.is_ending(session_id) or self._records.is_loading_here(session_id):
            return False
        return self._records.is_loading(session_id) or session_id not in self.state.registry.opening

    def _load(self, session_id: str) -> Session:
        session: Session | None = None
        entry = self._records.entries[session_id]
        attached = self._records.is_attached(entry)
        try:
            if self._config.affinity:
                # Before anything is written: those that are elsewhere are asked for here again and again.
                self._check_affinity(self._client.load(session_id))
            attached = True
            found = self._client.attach(session_id)
            self._check_affinity(found)
            if found is not None:
                session, times = self._session_of(found)
                self._bring_in(LoadedRecord(session, self._records, entry, found.record, times), self.state.read())
        except BaseException:
            if attached:
                self._detach_unless_live(session_id, session)
            raise
        with self.state.lock:
            if session is None:
                raise self.state.registry.absent(session_id, self.state.latest)
            self._records.restored += 1
            self.state.registry.forget_end(session_id)
        return session

    def _detach_unless_live(self, session_id: str, session: Session | None) -> None:
        if session is None or self.state.registry.live.get(session_id) is not session:
            self._records.note_detach(session_id)
            with contextlib.suppress(StoreError):
                self._client.detach(session_id)
                self._records.note_detached(self._records.entries[session_id])

    def _check_affinity(self, found: Found | None) -> None:
        """With affinity, raise `SessionElsewhereError` if the session lives in another process."""
        if not self._config.affinity or found is None or not found.elsewhere:
            return
        if codec.ending_of(found, *self._client.now()) is None:
            raise SessionElsewhereError(found.record.id, found.elsewhere[0])

    def _session_of(self, found: Found) -> tuple[Session, tuple[float, float]]:
        """A session as its record has it, and on our clock when it was created and last active."""
        record = found.record
        reading, wall = self._client.now()
        ending = codec.ending_of(found, reading, wall)
        if ending is not None:
            raise SessionExpiredError(record.id, *ending)
        session = self._memory.make_session(
            record.id, record.name, record.session_timeout, data_of(record.data, record.id), None
        )
        restore_counters(session, state_of(record), record.message_count)
        # Another instance may have touched it since, and not written that yet.
        last_active = min(record.last_active + found.lag, wall)
        return session, (reading - max(wall - record.created_at, 0.0), reading - (wall - last_active))
