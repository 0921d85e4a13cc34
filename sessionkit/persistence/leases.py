"""Leases: a checkout as other processes see it."""

from __future__ import annotations

import time
from math import inf
from typing import Any

from ..core.parts import Parts
from ..core.session import ManagedSession
from ..errors import SessionBusyError, SessionNotFoundError, StoreError
from ..util.log import report_problem
from .codec import data_of
from .records import Records
from .standing import Standing

Session = ManagedSession[Any]

FIRST_LOOK_SECONDS = 0.001
LAST_LOOK_SECONDS = 0.05
"""How often to ask for a lease that another process has: each time after twice as long, from and up to."""


class Leases:
    """Takes the lease on sessions that are checked out here, and gives it back. Called with the lock free."""

    def __init__(self, parts: Parts, records: Records, standing: Standing) -> None:
        self._lock = parts._lock
        self._clock = parts._clock
        self._roster = parts._roster
        self._records = records
        self._standing = standing

    def check_out(self, session: Session, holder: object, exclusive: bool, timeout: float | None) -> bool:
        """Take the lease on a session that is checked out here, and the newest version.

        False if another process has had it, and its resource here is out of use: once nobody here has it checked out,
        it leaves memory, to come back with another one. Waits up to `timeout` seconds for other processes; raises
        `SessionBusyError` then, and `SessionNotFoundError` if it was ended elsewhere.
        """
        try:
            taken = self._wait_for(session, holder, exclusive, timeout)
        except StoreError as error:
            report_problem("session %r is checked out in this process only: %s", session.id, error)
            return self._records.go_without_lease(session, holder)
        except SessionNotFoundError:
            self._standing.end_here(session)
            raise
        if not taken:
            self._standing.end_here(session)
        return taken

    def give_back(self, session: Session, holder: object) -> None:
        """Undo one `check_out`: save what changed, if it was the last one here, which is active until now."""
        try:
            reading = self._clock.read()
            with self._lock:
                self._roster.touch_held(session, self._clock.advance(reading))
        finally:
            self._give_back(session, holder)

    def save(self, session: Session) -> None:
        """Write what changed. Raises as `Records.write` does."""
        try:
            self._records.write(session)
        except SessionNotFoundError:
            self._standing.end_here(session)
            raise

    def revert(self, session: Session) -> None:
        """Set the data of a session that is checked out here back to what the store has of it, as far as we know."""
        written = self._records.written(session)
        assert written is not None, "it has not left memory"  # noqa: S101  tells mypy
        with written.lock:
            session.data.clear()
            session.data.update(data_of(written.text, session.id))

    def _wait_for(self, session: Session, holder: object, exclusive: bool, timeout: float | None) -> bool:
        deadline = inf if timeout is None else time.monotonic() + timeout
        pause = FIRST_LOOK_SECONDS
        while True:
            try:
                return self._records.lease(
                    session, holder, exclusive, lambda record: self._standing.catch_up(session, record)
                )
            except SessionBusyError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SessionBusyError(
                        f"session {session.id!r} is checked out in another process, and was for all of "
                        f"timeout={timeout!r} seconds; wait longer, or share it with exclusive=False on both sides"
                    ) from None
                time.sleep(min(pause, left))
                pause = min(2 * pause, LAST_LOOK_SECONDS)

    def _give_back(self, session: Session, holder: object) -> None:
        try:
            self._records.give_back(session, holder)
        except SessionNotFoundError:
            self._standing.end_here(session)
            raise
