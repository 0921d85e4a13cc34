"""The records of one coordinator's sessions: what this process knows of each, and what is written when."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.session import ManagedSession, ending_of
from ..errors import (
    Ending,
    InvalidSessionError,
    RemovalCause,
    SessionBusyError,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
    StoreError,
)
from ..stores.base import Changes, Known, SessionRecord, Touch
from ..util.jsontext import encode_data
from ..util.log import report_failure
from .client import BATCH

if TYPE_CHECKING:
    from ..config import CoordinatorConfig
    from ..core.state import State
    from .client import StoreClient

Session = ManagedSession[Any]

KEPT = {RemovalCause.SHUTDOWN, RemovalCause.PASSIVATED}
"""The causes for which a session leaves memory and its record stays."""


MOVE_SECONDS = 30.0
"""How long to wait for a session that another thread is moving in or out of the store."""


class StoreStats(NamedTuple):
    """What a coordinator has to do with its store. Counts run from its creation (after a fork: from the fork)."""

    restored: int
    """Sessions that were brought back from the store."""
    failures: int
    """How often the store failed (`StoreError`), or data could not be stored."""
    conflicts: int
    """How often a save was refused, because another instance had saved the session."""
    dirty: int
    """Sessions with activity that is not in the store yet."""
    pending_deletes: int
    """Sessions that have ended, and whose record could not be deleted yet."""


class Whereabouts(enum.Enum):
    """Where a stored session is, as far as this process is concerned. See `StoredSession`."""

    LOADING = "loading"
    CREATING = "creating"
    RESIDENT = "resident"
    LEAVING = "leaving"
    PENDING_DELETE = "pending_delete"
    PENDING_DETACH = "pending_detach"


class Deletion(enum.Enum):
    """Whether the record of a session is to go."""

    NONE = "none"
    PENDING = "pending"
    """It has ended for good, and its record is there, or may be."""
    DONE = "done"


class StoredSession:
    """What this process knows of one stored session.

    LOADING
        One thread loads the session, creates its record, or ends it in the store; other threads that ask for it wait.
        It becomes RESIDENT, CREATING, or PENDING_DETACH if the store failed after we may have attached, or is gone.
    CREATING
        Its record is made, its resource is not yet. It becomes RESIDENT; if that fails it is gone, or PENDING_DELETE.
    RESIDENT
        It is in memory, and we are attached to it. It becomes LEAVING.
    LEAVING
        It ended, or was passivated, here; its finalizer deletes the record or saves it, then detaches. It is gone, or
        PENDING_DELETE or PENDING_DETACH if the store failed.
    PENDING_DELETE
        It is not in memory; the next cleanup deletes its record, and until then its id does not load. Then it is gone.
    PENDING_DETACH
        It is not in memory, and the store may list it as ours; the next cleanup detaches, and it is gone. It becomes
        LOADING if it is asked for before.

    `state`, `thread` and the place among the records are guarded by the coordinator's lock; all else by `io`, which is
    held during the I/O for this session. A thread that has both took `io` first.
    """

    __slots__ = (
        "deletion",
        "final_state",
        "holders",
        "id",
        "io",
        "keeps_lease",
        "known",
        "last_active",
        "leased",
        "messages",
        "releases",
        "session",
        "stale",
        "state",
        "text",
        "thread",
        "timeout",
        "unsure",
        "version",
        "work",
    )

    def __init__(self, session_id: str, state: Whereabouts) -> None:
        self.id = session_id
        self.state = state
        self.io = threading.RLock()
        self.thread = 0
        """The thread that loads it."""
        self.session: Session | None = None
        """The session, while it is in memory."""
        self.holders: set[object] = set()
        """The checkouts that have the session here."""
        self.leased = False
        """Whether the lease is ours, and what was found when it was taken has been taken over."""
        self.unsure = False
        """Whether the lease may be ours though no checkout here has it: a call failed. It is released later."""
        self.keeps_lease = False
        """Whether the lease stays ours while the session is out of memory, because a fresh copy is about to come."""
        self.releases = 0
        """How many leases on it have ended here."""
        self.stale = False
        """Whether another instance had the session since its resource was made here."""
        self.final_state: str | None = None
        """The state it had when it ended here, if its record stays."""
        self.deletion = Deletion.NONE
        self.known: Known | None = None
        """For a deletion that spares a session which others used: what we know of it."""
        self.version = 0
        """The version, and below it the data, the messages, the state and the timeout, that the record has as far as we
        know."""
        self.text = ""
        self.messages = 0
        self.work = ""
        self.timeout: float | None = None
        self.last_active = 0.0
        """The last activity that we have written."""

    @property
    def usable(self) -> bool:
        """Whether the copy in memory may be used: a stale one only as long as a checkout here has it."""
        return not self.stale or bool(self.holders)

    def note(self, record: SessionRecord) -> None:
        """The record is this. Its last activity may be another process's, and is not noted as ours."""
        self.version = record.version
        self.text = record.data
        self.messages = record.message_count
        self.work = record.state
        self.timeout = record.session_timeout

    def has(self, record: SessionRecord) -> bool:
        """Whether all that we know the record to have is what this one has."""
        known = self.version, self.messages, self.work, self.timeout
        return known == (record.version, record.message_count, record.state, record.session_timeout)

    def knows(self, record: SessionRecord) -> bool:
        """Whether this says that no other instance has been active in the session, or given it another timeout."""
        return record.last_active <= self.last_active and self.timeout in (None, record.session_timeout)

    def note_released(self) -> None:
        """The lease has ended."""
        self.leased = self.unsure = False
        self.releases += 1

    def take_back(self, touch: Touch) -> None:
        """A touch that was noted as written could not be. The instant stays: the session was active then."""
        with self.io:
            self.messages -= touch.messages
            if touch.state is not None:
                self.work = ""
            if touch.session_timeout is not None:
                self.timeout = None


class Records:
    """The records of one coordinator's sessions.

    Called with the coordinator's lock free, but for what says otherwise. Raises `StoreError` when the store fails,
    unless it says otherwise.
    """

    def __init__(self, state: State, client: StoreClient, config: CoordinatorConfig) -> None:
        self._lock = state.lock
        self._registry = state.registry
        self._client = client
        self._max_bytes = config.max_data_bytes
        self._max_lifetime = config.max_lifetime
        self.entries: dict[str, StoredSession] = {}
        """What is known of each stored session, by id. Guarded by the coordinator's lock."""
        self.due: set[StoredSession] = set()
        """Those for which a call of the store failed that is to be made again."""
        self._retrying = threading.RLock()
        self._flushing = threading.RLock()
        self.dirty: set[Session] = set()
        """Those that were active since that was written. Guarded by the coordinator's lock."""
        self._registry.dirty = self.dirty
        self._moves = state.moves
        self.restored = 0
        """How many sessions were brought back."""
        self._gave_up: StoreError | None = None
        self._lost = 0

    # ---- One session

    def of(self, session: Session) -> StoredSession | None:
        """What is known of a session; None once it has left memory."""
        # Renaming changes both ids in one decision.
        with self._lock:
            entry = self.entries.get(session.id)
        return entry if entry is not None and entry.session is session else None

    @contextlib.contextmanager
    def in_hand(self, session: Session) -> Iterator[StoredSession | None]:
        """What is known of a session, with its `io` held; None once it has left memory."""
        entry = self.of(session)
        with contextlib.nullcontext() if entry is None else entry.io:
            # It may have left memory while this thread waited, and its id may be another session's by now.
            yield self.of(session)

    def has(self, entry: StoredSession) -> bool:
        """Whether the session of this entry is here."""
        # Renaming changes both ids in one decision.
        with self._lock:
            return self.entries.get(entry.id) is entry

    def text_of(self, session: Session) -> str:
        """Its data as JSON text. Raises `InvalidSessionError` if it cannot be stored."""
        return encode_data(session.data, self._max_bytes, session.id)[0]

    def detach(self, session: Session) -> str:
        """Have nothing of its data be anybody else's: what the text says takes the place of what was put in.

        Gives the text, and raises, as `text_of` does.
        """
        text, copy = encode_data(session.data, self._max_bytes, session.id)
        # One step, so that others who look find each key.
        session.data.update(copy)
        return text

    def create(self, session: Session, state: str) -> None:
        """Insert the record of a new session; its time begins now. Raises `SessionExistsError` as the store does."""
        text = self.detach(session)
        # Before it says what time it is: a store may set its time when its first instance joins.
        self._client.join()
        _, wall = self._client.now()
        record = SessionRecord(
            session.id,
            session.name,
            text,
            state,
            wall,
            wall,
            0,
            session.session_timeout,
            self._max_lifetime,
        )
        # If the record of an earlier session with this id waits to be deleted, the thread that is deleting it comes
        # first.
        with self._retrying if self.is_ending(session.id) else contextlib.nullcontext():
            try:
                self._client.create(record)
            except SessionExistsError:
                raise
            except BaseException:
                # If the record is there all the same, nobody knows of it: it expires once we are not attached to it.
                self.note_detach(session.id)
                raise
            entry = StoredSession(session.id, Whereabouts.CREATING)
            self._put_in(entry, session, record)

    def note_loaded(self, entry: StoredSession, session: Session, record: SessionRecord) -> None:
        """The session was made of this record, and we are attached to it."""
        # A lease that was kept is released later, unless a checkout here takes it.
        entry.leased = entry.unsure = entry.keeps_lease
        entry.keeps_lease = entry.stale = False
        self._put_in(entry, session, record)
        if entry.unsure:
            self.due.add(entry)

    def _put_in(self, entry: StoredSession, session: Session, record: SessionRecord) -> None:
        entry.session = session
        entry.last_active = record.last_active
        entry.note(record)
        with self._lock:
            former = self.entries.get(session.id, entry)
            self.due.discard(former)
            self.entries[session.id] = entry
            self._moves.tell()

    def settle(self, session: Session) -> None:
        """The session is live from now on. Called with the coordinator's lock held."""
        self.entries[session.id].state = Whereabouts.RESIDENT

    def discard(self, session: Session) -> None:
        """Delete the record of a session that could not be made after all; raises nothing."""
        entry = self.of(session)
        if entry is None:
            # It has left memory already: the coordinator was closed meanwhile, which keeps records.
            with self._lock:
                entry = self.entries[session.id] = StoredSession(session.id, Whereabouts.PENDING_DELETE)
        self._delete([entry], {entry.id: None})
        self.forget(session)

    def delete_held(self, entry: StoredSession) -> None:
        """Delete the record of a session that is checked out here, and had expired before. With `io` held.

        Raises nothing: if the store fails, it is deleted later.
        """
        self._delete([entry], {entry.id: None})

    def forget(self, session: Session) -> None:
        """The session has left memory: nothing more of it is written."""
        self.dirty.discard(session)
        # What is under way for it may be meant for its id, which another session may have next.
        with self.in_hand(session) as entry, self._lock:
            if entry is not None:
                entry.session = None
                entry.unsure = False
                if entry.state is Whereabouts.LOADING:
                    return
                if entry.deletion is Deletion.PENDING:
                    entry.state = Whereabouts.PENDING_DELETE
                elif entry.keeps_lease or entry.state is Whereabouts.PENDING_DETACH:
                    entry.state = Whereabouts.PENDING_DETACH
                    self.due.add(entry)
                else:
                    del self.entries[entry.id]
                    self.due.discard(entry)

    def write(self, session: Session) -> None:
        """Save the session if its data changed, else write its messages, state and timeout if those did, else nothing.

        Does nothing once the session has left memory. Raises `SessionNotFoundError` if the record is gone,
        `SessionConflictError` if somebody else saved it, and `InvalidSessionError` if the data cannot be stored.
        """
        with self.in_hand(session) as entry:
            if entry is not None:
                self._put(session, entry, self._noted(self.text_of, session), self._client.save)

    def write_and_give_back(self, session: Session, entry: StoredSession) -> None:
        """As `write`, and the data are detached: the last checkout here is given back. With `io` held.

        If the lease is ours, and there is something to write, it ends in the same step.
        """

        def save_and_release(session_id: str, changes: Changes) -> int:
            try:
                version = self._client.release(session_id, changes)
            except (SessionNotFoundError, SessionConflictError):
                entry.note_released()
                raise
            entry.note_released()
            return changes.version if version is None else version

        text = self._noted(self.detach, session)
        self._put(session, entry, text, save_and_release if entry.leased else self._client.save)

    def _noted(self, encode: Callable[[Session], str], session: Session) -> str:
        try:
            return encode(session)
        except InvalidSessionError as error:
            self._client.note(error)
            raise

    def _put(self, session: Session, entry: StoredSession, text: str, save: Callable[[str, Changes], int]) -> None:
        touch = self._take_touch(session, entry)
        changed = text != entry.text
        if not changed and not touch.messages and touch.state is None and touch.session_timeout is None:
            return
        try:
            entry.version = save(entry.id, Changes(entry.version, text if changed else None, touch))
            entry.text = text
        except BaseException:
            entry.take_back(touch)
            raise

    def _take_touch(self, session: Session, entry: StoredSession) -> Touch:
        """What is to be written of a session, which counts as written from now on. With `io` held."""
        work = entry.final_state or session.state.value
        _, last_active, messages = session.metadata
        reading, wall = self._client.now()
        touch = Touch(
            max(wall - max(reading - last_active, 0.0), entry.last_active),
            messages - entry.messages,
            None if work == entry.work else work,
            None if session.session_timeout == entry.timeout else session.session_timeout,
        )
        entry.last_active = touch.last_active
        entry.messages += touch.messages
        entry.work = work
        entry.timeout = touch.session_timeout or entry.timeout
        return touch

    def rename(self, session: Session, new_id: str, rename_here: Callable[[], object]) -> None:
        """Give the record of a session that is checked out another id, and then the session. All or nothing.

        Raises `SessionNotFoundError` if the record is gone, and `SessionExistsError` if the id is taken.
        """
        old_id, entry = session.id, self.of(session)
        if entry is None:
            raise SessionNotFoundError(old_id)
        # A thread that misses the record by its old id asks here whether it has another one now.
        with entry.io:
            if not self._client.rename(old_id, new_id):
                raise SessionNotFoundError(old_id)
            try:
                with self._lock:
                    rename_here()
                    del self.entries[old_id]
                    # There is nothing to detach by the new id any more.
                    self.due.discard(self.entries[new_id])
                    entry.id = new_id
                    self.entries[new_id] = entry
            except BaseException:
                self._rename_back(session, new_id)
                raise

    def _rename_back(self, session: Session, new_id: str) -> None:
        """The session could not be renamed: it has ended meanwhile, or the id is taken here."""
        ending = ending_of(session)
        if ending is not None and ending[0] not in KEPT:
            # Its record has been looked for by the old id already. No other thread loads the new one meanwhile.
            self._delete([self.entries[new_id]], {new_id: None})
            return
        self._client.rename(new_id, session.id)

    def was_renamed(self, session: Session, old_id: str) -> bool:
        """Whether a session has another id by now; waits while it is being given one."""
        entry = self.of(session)
        if entry is None:
            return False
        with entry.io:
            return entry.id != old_id

    # ---- Many sessions

    def flush(self, gone: list[Session]) -> None:
        """Write the activity of all dirty sessions, in batches; one thread at a time.

        `gone` gets those whose record is gone.
        """
        with self._flushing:
            with self._lock:
                rest = list(self.dirty)
            for start in range(0, len(rest), BATCH):
                batch = rest[start : start + BATCH]
                with self._lock:
                    self.dirty.difference_update(batch)
                try:
                    gone += self.write_touches(batch)
                except BaseException:
                    with self._lock:
                        self.dirty.update(s for s in batch if self._registry.live.get(s.id) is s)
                    raise

    def write_touches(self, sessions: Iterable[Session]) -> list[Session]:
        """Write the activity of these sessions, in batches; gives those whose record is gone."""
        gone: list[Session] = []
        rest = iter(sessions)
        while batch := list(islice(rest, BATCH)):
            taken = [self._taken(session, entry) for session in batch if (entry := self.of(session)) is not None]
            try:
                absent = self._client.touch({session_id: touch for _, session_id, _, touch in taken})
            except BaseException:
                for _, _, entry, touch in taken:
                    entry.take_back(touch)
                raise
            for session, session_id, entry, touch in taken:
                if session_id in absent and not self.was_renamed(session, session_id):
                    gone.append(session)
                elif session_id in absent:
                    # The thread that renamed it has it checked out, and so it is touched again.
                    entry.take_back(touch)
        return gone

    def _taken(self, session: Session, entry: StoredSession) -> tuple[Session, str, StoredSession, Touch]:
        with entry.io:
            return session, entry.id, entry, self._take_touch(session, entry)

    # ---- What failed, and is tried again

    def is_ending(self, session_id: str) -> bool:
        """Whether the session has ended, and its record is there, or may be."""
        entry = self.entries.get(session_id)
        return entry is not None and entry.deletion is Deletion.PENDING

    def note_unsure(self, entry: StoredSession) -> None:
        """The lease may be ours, though no checkout here has the session: release it later."""
        entry.unsure = True
        self.due.add(entry)

    def note_detach(self, session_id: str) -> None:
        """The store may list a session as ours that is not in memory: detach later."""
        with self._lock:
            entry = self.entries.get(session_id)
            if entry is None:
                entry = self.entries[session_id] = StoredSession(session_id, Whereabouts.PENDING_DETACH)
            if entry.deletion is Deletion.PENDING:
                return
            if entry.state is not Whereabouts.LOADING:
                entry.state = Whereabouts.PENDING_DETACH
            self.due.add(entry)

    def note_detached(self, entry: StoredSession) -> None:
        """The store does not list the session as ours any more."""
        with self._lock:
            self.due.discard(entry)
            entry.keeps_lease = False
            if entry.state is Whereabouts.PENDING_DETACH:
                entry.state = Whereabouts.LEAVING
                if entry.session is None and self.entries.get(entry.id) is entry:
                    del self.entries[entry.id]

    def is_attached(self, entry: StoredSession) -> bool:
        """Whether the store may list the session as ours, though it is not in memory."""
        return entry in self.due

    def pending_detaches(self) -> list[StoredSession]:
        """The sessions that are to be detached."""
        return [entry for entry in list(self.due) if entry.state is Whereabouts.PENDING_DETACH]

    def retry_deletes(self) -> None:
        """Try again what could not be deleted. Raises `StoreError` if it cannot be yet."""
        with self._retrying:
            waiting = self._pending_deletes()
            if waiting and self._delete(waiting, {entry.id: entry.known for entry in waiting}) is None:
                raise StoreError(
                    f"the records of {len(waiting)} ended sessions could not be deleted, and are in the store still"
                )

    def unsure(self) -> list[StoredSession]:
        """The sessions whose lease may be ours without need."""
        return [entry for entry in list(self.due) if entry.unsure]

    def note_sure(self, entry: StoredSession) -> None:
        """The lease is not in doubt any more: nothing is to be released."""
        if not entry.unsure and entry.deletion is not Deletion.PENDING:
            self.due.discard(entry)

    def _pending_deletes(self) -> list[StoredSession]:
        return [entry for entry in list(self.due) if entry.deletion is Deletion.PENDING]

    def _delete(self, entries: list[StoredSession], known: dict[str, Known | None]) -> set[str] | None:
        """Delete records; gives those that were there, or None, after noting them for later, if the store failed."""
        for entry in entries:
            entry.deletion = Deletion.PENDING
            entry.known = known[entry.id]
        try:
            deleted = self._client.delete(known)
        except BaseException as error:
            self.due.update(entries)
            if isinstance(error, StoreError):
                return None
            raise
        with self._lock:
            for entry in entries:
                entry.deletion = Deletion.DONE
                self.due.discard(entry)
                if entry.state is Whereabouts.PENDING_DELETE and self.entries.get(entry.id) is entry:
                    del self.entries[entry.id]
        return deleted

    # ---- For the finalizer

    def delete_records(self, sessions: Iterable[Session]) -> list[Session]:
        """Delete the records of sessions that have ended for good; gives those that live on, or ended, elsewhere.

        Raises nothing: what the store fails to do is done later, and until then the id is not loaded.
        """
        ended: list[tuple[Session, StoredSession]] = []
        known_here = [(session, entry) for session in sessions if (entry := self.of(session)) is not None]
        for session, entry in known_here:
            with self._lock:
                entry.state = Whereabouts.LEAVING
            if _cause_of(session) in KEPT:
                entry.final_state = entry.final_state or session.state.value
            elif entry.deletion is not Deletion.DONE:
                ended.append((session, entry))
        # What others go by, if one of these lives on.
        with contextlib.suppress(StoreError):
            self.write_touches(
                [session for session, entry in ended if session in self.dirty and not _goes_in_any_case(session, entry)]
            )
        known = {entry.id: _known_of(session, entry) for session, entry in ended}
        deleted = self._delete([entry for _, entry in ended], known) if known else set()
        if deleted is None:
            return []
        elsewhere = [(s, entry) for s, entry in ended if known[entry.id] is not None and entry.id not in deleted]
        for session, entry in elsewhere:
            entry.deletion = Deletion.NONE
            with self._lock:
                self._registry.forget_end(session.id)
        return [session for session, _ in elsewhere]

    def save_and_forget(self, session: Session) -> None:
        """The session leaves memory: save what its close callback changed, if its record stays.

        Raises nothing; if it is interrupted before the session is forgotten, it is to be called again.
        """
        cause = _cause_of(session)
        try:
            if cause in KEPT:
                self._write_last(session, cause)
        except SessionNotFoundError:
            pass
        except Exception as error:  # noqa: BLE001  it is logged, whatever a store raises
            self._lost += isinstance(error, StoreError) and cause is RemovalCause.SHUTDOWN
            report_failure("the last changes of session %r are not in the store", session.id)
        self.forget(session)

    def _write_last(self, session: Session, cause: RemovalCause | None) -> None:
        entry = self.of(session)
        if entry is None:
            return
        if self._gave_up is not None:
            if session in self.dirty or self.text_of(session) != entry.text:
                raise StoreError(f"the store failed before: {self._gave_up}")
            return
        try:
            try:
                self.write(session)
                if session in self.dirty:
                    self.write_touches([session])
            finally:
                if cause is RemovalCause.PASSIVATED and not entry.keeps_lease:
                    self.note_detach(entry.id)
                    self._client.detach(entry.id)
                    self.note_detached(entry)
        except StoreError as error:
            if cause is RemovalCause.SHUTDOWN:
                # However many sessions there are, the caller should not wait for each of them in turn.
                self._gave_up = error
            raise

    def take_lost(self) -> int:
        """Of how many sessions the last changes could not be written when they left memory, since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    # ---- Figures

    def stats(self) -> StoreStats:
        """The figures so far."""
        return StoreStats(
            self.restored, self._client.failures, self._client.conflicts, len(self.dirty), len(self._pending_deletes())
        )

    # ---- One loader at a time for each id

    def begin_load(self, session_id: str) -> StoredSession | None:
        """Become the one loader of a session that is not in memory; None if another thread is.

        Called with the coordinator's lock held. Until `end_load`, this thread alone loads the session, or ends it in
        the store.
        """
        entry = self.entries.get(session_id)
        if entry is not None and entry.state is Whereabouts.LOADING:
            return None
        if entry is None:
            entry = self.entries[session_id] = StoredSession(session_id, Whereabouts.LOADING)
        entry.state, entry.thread = Whereabouts.LOADING, get_ident()
        return entry

    def begin_create(self, session_id: str) -> None:
        """As `begin_load`, for a session whose record is to be created, unless one with this id is in memory.

        Waits for another thread that loads or detaches it.
        """
        while self._is_loading_elsewhere(session_id):
            self.wait_for_move(session_id)
        entry = self.entries.get(session_id)
        if entry is None or entry.state in (Whereabouts.PENDING_DELETE, Whereabouts.PENDING_DETACH):
            self.begin_load(session_id)

    def await_name(self, name: str | None) -> None:
        """Wait, with the lock held, while another thread creates the record of a session with this name.

        For a session that has the name in the store, which will refuse the other one.
        """
        names = self._registry.names
        while name is not None and name in names and self._is_loading_elsewhere(names[name].id):
            self.wait_for_move(names[name].id)

    def begin_detach(self, entry: StoredSession) -> bool:
        """As `begin_load`, for a session that is to be detached; whether it still is, and is not in memory."""
        if not self.has(entry) or entry.state is not Whereabouts.PENDING_DETACH or entry.session is not None:
            return False
        self.begin_load(entry.id)
        return True

    def is_loading(self, session_id: str) -> bool:
        """Whether a thread is loading this session, creating its record, or ending it in the store."""
        entry = self.entries.get(session_id)
        return entry is not None and entry.state is Whereabouts.LOADING

    def is_loading_here(self, session_id: str) -> bool:
        """Whether it is this very thread that does so, and so cannot wait for that."""
        entry = self.entries.get(session_id)
        return entry is not None and entry.state is Whereabouts.LOADING and entry.thread == get_ident()

    def _is_loading_elsewhere(self, session_id: str) -> bool:
        return self.is_loading(session_id) and not self.is_loading_here(session_id)

    def wait_for_move(self, session_id: str) -> None:
        """Wait, with the lock held, until a session has come or left. Raises `SessionBusyError` if none does for
        long."""
        if not self._moves.wait(MOVE_SECONDS):
            raise SessionBusyError(
                f"session {session_id!r} has been on its way in or out of memory for {MOVE_SECONDS} seconds: its "
                "resource_factory or on_close callback takes long, or waits for this very call"
            )

    def end_load(self, session_id: str) -> None:
        """This thread is not the loader any more; called with the coordinator's lock held."""
        entry = self.entries.get(session_id)
        if entry is not None and entry.state is Whereabouts.LOADING:
            if entry.deletion is Deletion.PENDING:
                entry.state = Whereabouts.PENDING_DELETE
            elif entry in self.due:
                entry.state = Whereabouts.PENDING_DETACH
            else:
                del self.entries[session_id]
        self._moves.tell()


def _known_of(session: Session, entry: StoredSession) -> Known | None:
    """What is known of a session that has ended; None if its record goes in any case."""
    return None if _goes_in_any_case(session, entry) else Known(entry.last_active, entry.timeout)


def _goes_in_any_case(session: Session, entry: StoredSession) -> bool:
    """Whether the record of a session that has ended is deleted also if other instances have used the session."""
    return _cause_of(session) is RemovalCause.CLOSED or (entry.deletion is Deletion.PENDING and entry.known is None)


def _cause_of(session: Session) -> RemovalCause | None:
    ending: Ending | None = ending_of(session)
    return None if ending is None else ending[0]
