"""The records of one coordinator's sessions: what has been written of each, what has not, and how it gets there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from ..config import CoordinatorConfig
from ..core.session import ManagedSession
from ..core.stats import StoreStats
from ..errors import (
    InvalidSessionError,
    RemovalCause,
    SessionBusyError,
    SessionConflictError,
    SessionNotFoundError,
    StoreError,
)
from ..stores.base import Changes, Found, SessionRecord, Store, Touch
from ..util.clock import Clock
from ..util.log import report_failure
from .codec import text_of
from .deletions import Deletions
from .ownership import BATCH
from .written import Written

Session = ManagedSession[Any]

LAG_SHARE = 0.25
"""How often activity is written at least, as a part of the session timeout; cleanup may be to run less often."""

KEPT = {RemovalCause.SHUTDOWN, RemovalCause.PASSIVATED}
"""The causes for which a session leaves memory and its record stays."""


class Records(Deletions):
    """Writes the records of one coordinator's sessions, and remembers what could not be written.

    Called with the coordinator's lock free. Raises `StoreError` when the store fails, unless it says otherwise.
    """

    def __init__(self, store: Store, clock: Clock, config: CoordinatorConfig) -> None:
        super().__init__(store, clock, config.instance_name)
        self._max_bytes = config.max_data_bytes
        self._max_lifetime = config.max_lifetime
        self._written: dict[Session, Written] = {}
        self.dirty: set[Session] = set()
        """Who was active since that was written last. Guarded by the coordinator's lock, whose holder adds to it."""
        # Who may be on lease though nobody here has it checked out; and checkouts that went without.
        self._unreleased: set[Session] = set()
        self._unleased: set[object] = set()
        # Of whom we may be noted to have it in memory, though it is not; and of these, whose lease we have until it is
        # back there.
        self.undetached: set[str] = set()
        self._kept: set[str] = set()
        # What the finalizer has settled with the store already, should it be interrupted and come again.
        self._settled: set[Session] = set()
        self.restored = 0
        """How many sessions were brought back."""
        self._gave_up: StoreError | None = None
        self.lost = 0
        """Of how many sessions the last changes could not be written when they left memory."""

    def _wall_time(self, instant: float) -> float:
        reading, wall = self.now()
        return wall - max(reading - instant, 0.0)

    # ---- One session

    def text_of(self, session: Session) -> str:
        """Its data as JSON text. Raises `InvalidSessionError` if it cannot be stored."""
        return text_of(session.data, self._max_bytes, session.id)

    def create(self, session: Session) -> None:
        """Insert the record of a new session; its time begins now. Raises `SessionExistsError` as the store does."""
        text = self.text_of(session)
        wall = self._wall()
        record = SessionRecord(
            session.id, session.name, text, session.state.value, wall, wall, 0, session._timeout, self._max_lifetime
        )
        instance = self.instance
        # Should an earlier one with this id wait to be deleted, that is over; whoever is deleting it comes first.
        with self._retrying if session.id in self.pending_deletes else contextlib.nullcontext(), self._counted():
            try:
                self.store.create(record, instance)
            except StoreError:
                # Should it be there all the same, nobody knows of it: it expires once we are not attached to it.
                self.undetached.add(session.id)
                raise
            self.pending_deletes.pop(session.id, None)
        self._written[session] = Written(record)

    def note_restored(self, session: Session, record: SessionRecord) -> None:
        """The session was made of this record, and we are attached to it."""
        written = self._written[session] = Written(record)
        if session.id in self._kept:
            written.leased = True
            # Unless somebody here takes it.
            self._unreleased.add(session)
            self._kept.discard(session.id)

    def discard(self, session: Session) -> None:
        """Delete the record of a session that could not be made after all; raises nothing."""
        self._delete({session.id: None})
        self.forget(session)

    def forget(self, session: Session) -> None:
        """The session has left memory: nothing more of it is written."""
        self._settled.discard(session)
        self.dirty.discard(session)
        written = self._written.get(session)
        if written is not None:
            # What is under way for it may be meant for its id, which another one may have next.
            with written.lock:
                self._written.pop(session, None)

    def written(self, session: Session) -> Written | None:
        """What has been written of a session; None once it has left memory."""
        return self._written.get(session)

    def lease(
        self, session: Session, holder: object, exclusive: bool, catch_up: Callable[[SessionRecord], None]
    ) -> bool:
        """Try to take the lease for a checkout; the first one here catches up with the record.

        False if the session is stale: it is to leave memory, and when it is back there, we have its lease. Raises
        `SessionBusyError` while others have it, and `SessionNotFoundError` if the record is gone.
        """
        written = self._written[session]
        with written.lock:
            if not self.is_current(session):
                return False
            try:
                with self._counted():
                    found = self.store.attach(session.id, self.instance, "exclusive" if exclusive else "shared")
            except SessionBusyError:
                raise
            except BaseException:
                # It may be ours all the same: the next run gives it back.
                self._unreleased.add(session)
                raise
            if found is None:
                raise SessionNotFoundError(session.id)
            if not written.users:
                catch_up(found.record)
            self.note_stale(session, found)
            if not self.is_current(session):
                # Were it given back, whoever takes it next would make this one stale again: of several who each
                # make a resource, none would get to use it.
                self.undetached.add(session.id)
                self._kept.add(session.id)
                return False
            written.leased = True
            written.users.add(holder)
            return True

    def go_without_lease(self, session: Session, holder: object) -> bool:
        """Note a checkout, though the store cannot say whether others have the session; False if it is stale."""
        written = self._written[session]
        with written.lock:
            if not self.is_current(session):
                return False
            written.users.add(holder)
            self._unleased.add(holder)
            return True

    def is_current(self, session: Session) -> bool:
        """Whether a session in memory may be used: not if somebody else has had it since its resource was made here.

        While somebody here works with it, it may be used all the same.
        """
        written = self._written.get(session)
        return written is not None and (not written.stale or bool(written.users))

    def leases_of(self, session: Session) -> int:
        """How many leases on a session have ended here, for `note_stale`."""
        written = self._written.get(session)
        return 0 if written is None else written.leases

    def note_stale(self, session: Session, found: Found, leases: int | None = None) -> None:
        """Note whether somebody else has had a session, whose record was found so when that many leases had ended here.

        With each of them the store forgets who had it before; and until then, it says what it said when we took it.
        One that has no resource has nothing that its data do not say.
        """
        written = self._written.get(session)
        if written is None or not found.stale or session.resource is None:
            return
        with written.lock:
            if not written.leased and leases in (None, written.leases):
                written.stale = True

    def is_leased(self, holder: object) -> bool:
        """Whether the store knows of a checkout, and so nobody else has the session against it."""
        return holder not in self._unleased

    def give_back(self, session: Session, holder: object) -> None:
        """Undo one `lease`. After the last one, what changed is saved, and the lease given back.

        Raises as `write` does, once the rest is done. Doing it again does nothing, unless it was interrupted.
        """
        written = self._written.get(session)
        if written is None or holder not in written.users:
            return
        with written.lock:
            try:
                if len(written.users) == 1:
                    self._save_and_release(session, written, certain=holder not in self._unleased)
            except Exception:
                written.users.discard(holder)
                self._unleased.discard(holder)
                raise
            written.users.discard(holder)
            self._unleased.discard(holder)

    def _save_and_release(self, session: Session, written: Written, certain: bool) -> None:
        ending = session._ending
        # Until it is released, for whoever comes to try it again.
        self._unreleased.add(session)
        try:
            if ending is None or ending[0] in KEPT:
                self._put(session, self._give_back_with if written.leased else self._write_with)
        finally:
            if session in self._unreleased:
                with contextlib.nullcontext() if certain else contextlib.suppress(StoreError):
                    self._release(session, written)

    def _give_back_with(self, session: Session, version: int, data: str | None, touch: Touch) -> int:
        written = self._written[session]
        try:
            given = self.store.release(session.id, self.instance, Changes(version, data, touch))
            version = version if given is None else given
        except (SessionNotFoundError, SessionConflictError):
            self._note_released(session, written)
            raise
        self._note_released(session, written)
        return version

    def _release(self, session: Session, written: Written) -> None:
        with self._counted():
            if not written.leased:
                # It may be ours all the same; with it would go what the store knows of those who had it before.
                found = self.store.load(session.id, self.instance)
                if found is not None:
                    self.note_stale(session, found)
            self.store.release(session.id, self.instance)
        self._note_released(session, written)

    def _note_released(self, session: Session, written: Written) -> None:
        written.leased = False
        written.leases += 1
        self._unreleased.discard(session)

    def rename(self, session: Session, new_id: str, rename_here: Callable[[], object]) -> None:
        """Give the record of a session that is checked out another id, and then the session. All or nothing.

        Raises `SessionNotFoundError` if the record is gone, and `SessionExistsError` if the id is taken.
        """
        old_id, written = session.id, self._written[session]
        # Whoever misses the record by its old id asks here whether it has another one now.
        with written.lock:
            with self._counted():
                if not self.store.rename(old_id, new_id, self.instance):
                    raise SessionNotFoundError(old_id)
            try:
                rename_here()
            except BaseException:
                self._rename_back(session, new_id)
                raise
            written.id = new_id

    def _rename_back(self, session: Session, new_id: str) -> None:
        """The session could not be renamed: it has ended meanwhile, or the id is taken here."""
        if session._ending is not None and session._ending[0] not in KEPT:
            # Its record has been looked for by the old id already.
            self._delete({new_id: None})
            return
        with self._counted():
            self.store.rename(new_id, session.id, self.instance)

    def was_renamed(self, session: Session, old_id: str) -> bool:
        """Whether a session has another id by now; waits while it is being given one."""
        written = self._written.get(session)
        if written is None:
            return False
        with written.lock:
            return written.id != old_id

    def write(self, session: Session) -> None:
        """Save the session if its data changed, else write its messages and its state if those did, else nothing.

        Raises `SessionNotFoundError` if the record is gone, `SessionConflictError` if somebody else saved it, and
        `InvalidSessionError` if the data cannot be stored.
        """
        self._put(session, self._write_with)

    def _write_with(self, session: Session, version: int, data: str | None, touch: Touch) -> int:
        if data is not None:
            return self.store.save(session.id, Changes(version, data, touch))
        if self.store.touch({session.id: touch}):
            raise SessionNotFoundError(session.id)
        return version

    def _put(self, session: Session, put: Callable[[Session, int, str | None, Touch], int]) -> None:
        """Have written what changed of a session, its data or only a touch, if there is something."""
        written = self._written.get(session)
        if written is None:
            return
        with written.lock, self._counted():
            text = self.text_of(session)
            touch = self._take_touch(session, written)
            if text == written.text and not touch.messages and touch.state is None:
                return
            try:
                written.version = put(session, written.version, None if text == written.text else text, touch)
                written.text = text
            except BaseException:
                written.take_back(touch)
                raise

    def _take_touch(self, session: Session, written: Written) -> Touch:
        """What is to be written of it, which counts as written from now on."""
        with written.lock:
            state = written.last_state or session.state.value
            touch = Touch(
                max(self._wall_time(session._last_active), written.last_active),
                session._message_count - written.messages,
                None if state == written.state else state,
            )
            written.last_active = touch.last_active
            written.messages += touch.messages
            written.state = state
            return touch

    def _taken(self, session: Session, written: Written) -> tuple[Session, str, Written, Touch]:
        with written.lock:
            return session, written.id, written, self._take_touch(session, written)

    # ---- Many sessions

    def write_touches(self, sessions: Iterable[Session]) -> list[Session]:
        """Write the activity of these sessions, in batches; gives those whose record is gone."""
        gone: list[Session] = []
        rest = iter(sessions)
        while batch := list(islice(rest, BATCH)):
            taken = [self._taken(session, written) for session, written in self._with_records(batch)]
            try:
                with self._counted():
                    absent = self.store.touch({session_id: touch for _, session_id, _, touch in taken})
            except BaseException:
                for _, _, written, touch in taken:
                    written.take_back(touch)
                raise
            for session, session_id, written, touch in taken:
                if session_id in absent and not self.was_renamed(session, session_id):
                    gone.append(session)
                elif session_id in absent:
                    # Whoever renamed it has it checked out, and so it is touched again.
                    written.take_back(touch)
        return gone

    def _with_records(self, sessions: Iterable[Session]) -> Iterator[tuple[Session, Written]]:
        """Those that have not left memory meanwhile, and what has been written of them."""
        for session in sessions:
            written = self._written.get(session)
            if written is not None:
                yield session, written

    def retry(self) -> None:
        """Try again what could not be deleted, or given back."""
        for session in list(self._unreleased):
            for _, written in self._with_records([session]):
                with written.lock:
                    if session in self._written and not written.users:
                        self._release(session, written)
            if session not in self._written:
                self._unreleased.discard(session)
        self._retry_deletions()

    # ---- For the finalizer

    def part_with(self, sessions: Iterable[Session]) -> list[Session]:
        """Delete the records of sessions that have ended for good; gives those that live on, or ended, elsewhere.

        Raises nothing: what the store fails to do is done later, and until then the id is not loaded.
        """
        known: dict[str, float | None] = {}
        ended: list[Session] = []
        for session in sessions:
            if session._ending is not None and session._ending[0] in KEPT:
                for _, written in self._with_records([session]):
                    written.last_state = written.last_state or session.state.value
            elif session not in self._settled:
                ended.append(session)
        # What others go by, should one of these live on.
        with contextlib.suppress(StoreError):
            self.write_touches(session for session in ended if session in self.dirty)
        for session, written in self._with_records(ended):
            closed = session._ending is not None and session._ending[0] is RemovalCause.CLOSED
            known[session.id] = None if closed else written.last_active
        deleted = self._delete(known) if known else set()
        live_on = [s for s in ended if deleted is not None and known.get(s.id) is not None and s.id not in deleted]
        # Those who have left meanwhile, given back by another thread, are forgotten already.
        self._settled.update(s for s in ended if s not in live_on and s in self._written)
        return live_on

    def put_away(self, session: Session) -> None:
        """The session leaves memory: save what its close callback changed, if its record stays. Raises nothing."""
        cause = None if session._ending is None else session._ending[0]
        try:
            if cause in KEPT:
                self._write_last(session, cause)
        except SessionNotFoundError:
            pass
        except (StoreError, SessionConflictError, InvalidSessionError) as error:
            self.lost += isinstance(error, StoreError) and cause is RemovalCause.SHUTDOWN
            report_failure("the last changes of session %r are not in the store", session.id)
        finally:
            self.forget(session)

    def _write_last(self, session: Session, cause: RemovalCause | None) -> None:
        if self._gave_up is not None:
            if session in self.dirty or self.text_of(session) != self._written[session].text:
                raise StoreError(f"the store failed before: {self._gave_up}")
            return
        try:
            try:
                self.write(session)
                if session in self.dirty:
                    self.write_touches([session])
            finally:
                if cause is RemovalCause.PASSIVATED and session.id not in self._kept:
                    self.undetached.add(session.id)
                    self.detach(session.id)
                    self.undetached.discard(session.id)
        except StoreError as error:
            if cause is RemovalCause.SHUTDOWN:
                # However many sessions there are, nobody should wait for each of them in turn.
                self._gave_up = error
            raise

    def detach(self, session_id: str) -> None:
        """We do not have it in memory any more, nor its lease."""
        self._kept.discard(session_id)
        super().detach(session_id)

    # ---- Figures

    def stats(self) -> StoreStats:
        """The figures so far."""
        return StoreStats(self.restored, self._failures, self._conflicts, len(self.dirty), len(self.pending_deletes))
