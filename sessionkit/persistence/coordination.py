"""Sessions in memory as other instances see them: leases, stale copies, and what was ended elsewhere."""

from __future__ import annotations

import contextlib
from math import inf
from typing import TYPE_CHECKING, Any

from ..core.checkout import Checkout
from ..core.events import EventKind
from ..core.session import ManagedSession, ending_of, is_checked_out, replace_data, restore_counters
from ..errors import Ending, RemovalCause, SessionBusyError, SessionExpiredError, SessionNotFoundError, StoreError
from ..stores.base import Found, Known, SessionRecord
from ..util.log import report_problem
from . import codec
from .codec import data_of, state_of
from .records import KEPT, Deletion, Records, StoredSession

if TYPE_CHECKING:
    from ..core.state import State
    from .client import StoreClient

Session = ManagedSession[Any]


class Coordination:
    """Keeps the sessions in memory in step with their records, which other instances may change or delete.

    All of it is called with the coordinator's lock free. What the store fails to confirm is used as it is in memory.
    """

    def __init__(self, state: State, client: StoreClient, records: Records) -> None:
        self._state = state
        self._registry = state.registry
        self._client = client
        self._records = records

    # ---- What the store has of a session in memory

    def refresh(self, session: Session) -> bool:
        """Take over what other instances saved of a session in memory.

        False if it is not in memory any more: its copy here was stale, or it has expired. Raises `SessionNotFoundError`
        if it was ended.
        """
        session_id, entry = session.id, self._records.of(session)
        if entry is None:
            return False
        releases = entry.releases
        try:
            found = self._client.load(session_id)
        except StoreError as error:
            report_problem("session %r is used as it is in memory: %s", session_id, error)
            return True
        if found is None:
            if self._records.was_renamed(session, session_id):
                return True
            self.drop_local_copy(session)
            raise SessionNotFoundError(session_id)
        self._apply(session, entry, found.record)
        _note_stale(session, entry, found, releases)
        # It may have left memory meanwhile, or have expired by a timeout that another instance gave it.
        if entry.usable and self._records.of(session) is entry and ending_of(session) is None:
            return True
        self.drop_local_copy(session)
        return False

    def _apply(self, session: Session, entry: StoredSession, record: SessionRecord) -> None:
        """Take over what others saved, unless a checkout here may be changing it."""
        with entry.io:
            # An older one was read before we wrote.
            if entry.holders or record.version < entry.version or entry.has(record):
                return
            newer = data_of(record.data, record.id) if record.version != entry.version else None
            work = state_of(record)
            with self._state.lock:
                messages = session.metadata.message_count + record.message_count - entry.messages
                restore_counters(session, work if session.state.value == entry.work else session.state, messages)
                if session.session_timeout == entry.timeout and entry.timeout != record.session_timeout:
                    self._registry.set_timeout(session, record.session_timeout, self._state.latest)
            if newer is not None:
                replace_data(session, newer)
            entry.note(record)

    def drop_local_copy(self, session: Session) -> None:
        """The session was ended elsewhere, or lives there now: it leaves memory once no checkout here has it."""
        with self._state.lock:
            now = self._state.latest
            must_run = self._registry.live.get(session.id) is session and self._registry.end(
                session, (RemovalCause.PASSIVATED, now, None), now
            )
        if must_run:
            self._state.finalizer.run([session])

    def lives_elsewhere(self, session: Session) -> bool:
        """Whether another instance has used a session whose time ran out here."""
        if is_checked_out(session):
            return False
        found = self._client.load(session.id)
        return (
            found is not None
            and self._is_used_elsewhere(session, found)
            and codec.ending_of(found, *self._client.now()) is None
        )

    def _is_used_elsewhere(self, session: Session, found: Found) -> bool:
        entry = self._records.of(session)
        return found.lag != 0 or entry is None or not entry.knows(found.record)

    def as_known_here(self, session: Session, found: Found) -> Found | None:
        """What was found of a session that is in memory, with what only this instance knows of its life.

        None if its time has run out here, and no other instance has used it.
        """
        if ending_of(session) is not None:
            return found if self._is_used_elsewhere(session, found) else None
        reading, wall = self._client.now()
        entry, record = self._records.of(session), found.record
        if entry is not None and session.session_timeout != entry.timeout:
            record = record._replace(session_timeout=session.session_timeout)
        last_active = wall - max(reading - session.metadata.last_active, 0.0)
        record = record._replace(last_active=max(record.last_active, last_active))
        return found._replace(record=record, lag=inf if is_checked_out(session) else found.lag)

    def confirm_ended(self, session_id: str) -> bool:
        """Whether a session that is in the way turns out to have ended; then nothing of it is in the way any more."""
        if self._records.is_ending(session_id):
            self._records.retry_deletes()
            return True
        session = self._registry.live.get(session_id)
        if session is not None:
            try:
                self.refresh(session)
            except SessionNotFoundError:
                return True
            return False
        leaving = self._state.finalizer.leaving.get(session_id)
        if leaving is not None and is_checked_out(leaving):
            # It has ended, and its name is free all the same.
            return not self._records.delete_records([leaving])
        if leaving is not None:
            # If another thread finalizes it, this does nothing, and its record goes at any moment.
            self._state.finalizer.run([leaving])
            return True
        found = self._client.load(session_id)
        if found is None:
            return True
        ending = codec.ending_of(found, *self._client.now())
        if ending is None or not self._client.delete({session_id: Known(found.record.last_active)}):
            return False
        self.note_end(found.record, ending)
        return True

    def note_end(self, record: SessionRecord, ending: Ending) -> None:
        """A session that was not in memory has ended: count it, remember it, and tell the channels."""
        with self._state.lock:
            self._registry.note_end(record.id, record.name, ending, self._state.latest)
            self._state.finalizer.removed[ending[0]] += 1
            self._state.events.post(EventKind.REMOVED, record.id, ending[1], ending[0])

    # ---- Leases

    def take_lease(self, session: Session, checkout: Checkout[Any]) -> bool:
        """Take the lease on a session that is checked out here, and the newest version.

        False if its copy here is stale: it leaves memory once no checkout here has it, and comes back with another
        resource. Raises `SessionBusyError` if another instance has the lease, and `SessionNotFoundError` if the session
        was ended elsewhere.
        """
        entry = self._records.of(session)
        if entry is None:
            # It was ended by force, and has left memory.
            return False
        try:
            taken = self._try_lease(session, entry, checkout)
        except StoreError as error:
            report_problem("session %r is checked out in this process only: %s", session.id, error)
            return self._go_without_lease(entry, checkout)
        except SessionNotFoundError:
            self.drop_local_copy(session)
            raise
        if not taken:
            self.drop_local_copy(session)
        return taken

    def _try_lease(self, session: Session, entry: StoredSession, checkout: Checkout[Any]) -> bool:
        with entry.io:
            if not entry.usable:
                return False
            try:
                found = self._client.attach(session.id, lease=True)
            except SessionBusyError:
                raise
            except BaseException:
                self._records.note_unsure(entry)
                raise
            if found is None:
                raise SessionNotFoundError(session.id)
            if not entry.holders:
                self._check_timeout(session, entry, found)
                self._apply(session, entry, found.record)
            _note_stale(session, entry, found)
            if not entry.usable:
                # If it were released, the next instance that takes it would make this one stale again: of several that
                # each make a resource, none would get to use it.
                entry.keeps_lease = True
                return False
            entry.leased = True
            entry.holders.add(checkout)
            checkout.record = entry
            return True

    def _check_timeout(self, session: Session, entry: StoredSession, found: Found) -> None:
        """Raise `SessionExpiredError` if the session expired before it was checked out here.

        Only a timeout that another instance gave it can be the reason, of which nothing was known here. The checkout is
        a touch, so that this instance cannot tell by its copy any more; it allows itself what the others allow it.
        """
        if found.record.session_timeout == entry.timeout or session.session_timeout != entry.timeout:
            return
        lag = max(found.lag, self._client.write_interval)
        ending = codec.ending_of(found._replace(lag=lag), *self._client.now())
        if ending is None:
            return
        with self._state.lock:
            self._registry.end_live(session, ending, self._state.latest)
        self._records.delete_held(entry)
        raise SessionExpiredError(session.id, *ending)

    def _go_without_lease(self, entry: StoredSession, checkout: Checkout[Any]) -> bool:
        """Note a checkout, though the store cannot say whether others have the session; False if its copy is stale."""
        with entry.io:
            if not entry.usable:
                return False
            checkout.confirmed = False
            entry.holders.add(checkout)
            checkout.record = entry
            return True

    def give_back(self, session: Session, checkout: Checkout[Any]) -> None:
        """Undo `take_lease`. After the last one here, what changed is saved, and the lease released.

        Raises as `Records.write` does, once the rest is done. Doing it again does nothing, unless it was interrupted.
        """
        entry = checkout.record
        if not isinstance(entry, StoredSession) or checkout not in entry.holders or not self._records.has(entry):
            # In a forked child, the checkout is the parent's.
            return
        with entry.io:
            try:
                if len(entry.holders) == 1:
                    self._save_and_release(session, entry, checkout.confirmed)
            except SessionNotFoundError:
                entry.holders.discard(checkout)
                self.drop_local_copy(session)
                raise
            except Exception:
                entry.holders.discard(checkout)
                raise
            entry.holders.discard(checkout)

    def _save_and_release(self, session: Session, entry: StoredSession, confirmed: bool) -> None:
        if entry.deletion is Deletion.DONE:
            # The lease went with the record.
            entry.note_released()
            return
        ending = ending_of(session)
        # Until it is released, whatever fails.
        self._records.note_unsure(entry)
        try:
            if ending is None or ending[0] in KEPT:
                self._records.write_and_give_back(session, entry)
        finally:
            if entry.unsure:
                with contextlib.nullcontext() if confirmed else contextlib.suppress(StoreError):
                    self._release(session, entry)
            self._records.note_sure(entry)

    def _release(self, session: Session, entry: StoredSession) -> None:
        if not entry.leased:
            # It may be ours all the same; with it would go what the store knows of those that had it before.
            found = self._client.load(session.id)
            if found is not None:
                _note_stale(session, entry, found)
        self._client.release(session.id)
        entry.note_released()

    def release_unsure(self) -> None:
        """Release the leases that no checkout here needs."""
        for entry in self._records.unsure():
            with entry.io:
                if entry.session is not None and entry.unsure and not entry.holders:
                    self._release(entry.session, entry)
                    self._records.note_sure(entry)

    def save(self, session: Session) -> None:
        """Write what changed. Raises as `Records.write` does."""
        try:
            self._records.write(session)
        except SessionNotFoundError:
            self.drop_local_copy(session)
            raise

    def revert(self, session: Session) -> None:
        """Set the data of a session that is checked out here back to what the store has, as far as we know."""
        with self._records.in_hand(session) as entry:
            # In a forked child, the session is the parent's.
            if entry is not None:
                replace_data(session, data_of(entry.text, session.id))


def _note_stale(session: Session, entry: StoredSession, found: Found, releases: int | None = None) -> None:
    """Mark our copy stale if another instance has checked the session out since we loaded it.

    `releases`: how many leases we had released when the record was read; if we released one since, the report is about
    an older lease and is ignored. A session without a resource is never stale: its data is read anew anyway.
    """
    if not found.stale or session.resource is None:
        return
    with entry.io:
        if not entry.leased and releases in (None, entry.releases):
            entry.stale = True
