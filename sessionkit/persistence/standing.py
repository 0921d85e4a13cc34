"""Standing: whether a session in memory still stands as the store has it."""

from __future__ import annotations

from typing import Any

from ..core.events import EventKind
from ..core.parts import Parts
from ..core.session import ManagedSession
from ..errors import Ending, SessionNotFoundError, StoreError
from ..stores.base import SessionRecord
from ..util.log import report_problem
from .codec import data_of
from .records import Records
from .stored import ending_of, state_of

Session = ManagedSession[Any]


class Standing:
    """Compares sessions in memory with their records, which other processes may have changed or deleted.

    All of it is called with the lock free. What the store fails to confirm is used as it is in memory.
    """

    def __init__(self, parts: Parts, records: Records) -> None:
        self._lock = parts._lock
        self._clock = parts._clock
        self._roster = parts._roster
        self._finalizer = parts._finalizer
        self._sweep = parts._sweep
        self._bus = parts._bus
        self._records = records

    def look(self, session: Session) -> bool:
        """See what the store has of a session in memory: it may have been ended elsewhere, or saved.

        False if it is not in memory any more: another process has had it, and its resource here was out of use. Raises
        `SessionNotFoundError` if it was ended.
        """
        session_id = session.id
        leases = self._records.leases_of(session)
        try:
            found = self._records.load(session_id)
        except StoreError as error:
            report_problem("session %r is used as it is in memory: %s", session_id, error)
            return True
        if found is not None:
            self.catch_up(session, found.record)
            self._records.note_stale(session, found, leases)
            if self._records.is_current(session):
                return True
            self.end_here(session)
            return False
        if not self._records.was_renamed(session, session_id):
            self.end_here(session)
            raise SessionNotFoundError(session_id)
        return True

    def end_here(self, session: Session) -> None:
        """It was ended elsewhere, or lives there now: it leaves memory, once nobody has it checked out."""
        with self._lock:
            if self._roster.at_hand.get(session.id) is session:
                self._roster.move_out(session, self._clock.latest)
        self._sweep.finish()

    def catch_up(self, session: Session, record: SessionRecord) -> None:
        """Take over what others saved, unless a checkout here may be changing it."""
        written = self._records.written(session)
        if written is None:
            return
        with written.lock:
            # An older one was read before we wrote.
            if written.users or record.version < written.version:
                return
            newer = data_of(record.data, record.id) if record.version != written.version else None
            state = state_of(record)
            with self._lock:
                session._message_count += record.message_count - written.messages
                if session._state.value == written.state:
                    session._state = state
            if newer is not None:
                session.data.clear()
                session.data.update(newer)
            written.note(record)

    def lives_elsewhere(self, session: Session) -> bool:
        """Whether somebody else has used a session whose time ran out here."""
        if session.checked_out:
            return False
        known = self._records.written(session)
        found = self._records.load(session.id)
        if found is None or (found.lag == 0 and known is not None and found.record.last_active <= known.last_active):
            return False
        return ending_of(found, *self._records.now()) is None

    def is_gone(self, session_id: str) -> bool:
        """Whether somebody who is in the way turns out to have ended; then nothing of it is in the way any more."""
        if self._records.is_ending(session_id):
            self._records.retry()
            return True
        session = self._roster.at_hand.get(session_id)
        if session is not None:
            try:
                self.look(session)
            except SessionNotFoundError:
                return True
            return False
        leaving = self._finalizer.leaving.get(session_id)
        if leaving is not None:
            # It has ended, and somebody here has it checked out still: its name is free all the same.
            return not self._records.part_with([leaving])
        found = self._records.load(session_id)
        if found is None:
            return True
        reading, wall = self._records.now()
        ending = ending_of(found, reading, wall)
        if ending is None or not self._records.delete_idle(found.record):
            return False
        self.note_end(found.record, ending)
        return True

    def note_end(self, record: SessionRecord, ending: Ending) -> None:
        """A session that was not in memory has ended: count it, remember it, and tell the channels."""
        with self._lock:
            self._roster.remember(record.id, record.name, ending, self._clock.latest)
            self._finalizer.removed[ending[0]] += 1
            self._bus.post(EventKind.REMOVED, record.id, ending[1], ending[0])
