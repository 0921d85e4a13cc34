"""Tenure: how a request holds a session, which is more strictly than a thread does."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..coordinator import SessionCoordinator
from ..core.checkout import Checkout
from ..core.session import ManagedSession
from ..errors import InvalidSessionError, SessionNotFoundError, StoreError


class Tenure:
    """A session that is checked out for one request, whatever threads serve that.

    Two requests exclude each other also where one thread, or several greenlets of one, serve both. Where there is a
    store, nothing is held that the store has not confirmed: what is in memory may have been ended elsewhere.
    """

    def __init__(self, coordinator: SessionCoordinator[Any], *, shared: bool, timeout: float) -> None:
        self._coordinator = coordinator
        self._shared = shared
        self._timeout = timeout

    _loan: Checkout[Any] | None = None
    session: ManagedSession[Any] | None = None
    """The session, while it is held."""

    def take(self, session_id: str) -> None:
        """Check the session out. Raises as a checkout does, and `StoreError` if the store does not confirm it."""
        self._take(session_id, exclusive=not self._shared)

    def rotate(self, new_id: str) -> None:
        """Give the session another id, once nobody else has it; where it is shared, it is given back for that.

        Raises as `SessionCoordinator.rotate_session` does.
        """
        session = self._held()
        if not self._shared:
            self._coordinator._rename_held(session, new_id)
            return
        old_id = session.id
        self.give_back()
        self._take(old_id, exclusive=True)
        try:
            self._coordinator._rename_held(self._held(), new_id)
        finally:
            self.give_back()

    def end(self) -> None:
        """End the session, and give it back; somebody else may have ended it.

        Raises `StoreError` if its record is in the store still: it is tried again, but who asks elsewhere has it yet.
        """
        session_id = self._held().id
        try:
            with suppress(SessionNotFoundError):
                self._coordinator.close_session(session_id)
        finally:
            self.give_back()
        records = self._coordinator._records
        if records is not None and records.is_ending(session_id):
            raise StoreError(f"session {session_id!r} has ended here, but the store could not delete its record yet")

    def save(self) -> None:
        """Write to the store what changed so far. Does nothing if somebody has ended the session.

        Raises `StoreError` and `SessionConflictError`, and `InvalidSessionError` for data that cannot be stored: then
        the data are again those that were stored last, or each later request would fail of the same.
        """
        session, archive = self._held(), self._coordinator._archive
        if archive is None:
            return
        try:
            with suppress(SessionNotFoundError):
                archive.leases.save(session)
        except InvalidSessionError:
            archive.leases.revert(session)
            raise

    def give_back(self) -> None:
        """Hold it no more. Giving back again does nothing."""
        loan, self._loan, self.session = self._loan, None, None
        if loan is not None:
            # Somebody may have ended it meanwhile.
            with suppress(SessionNotFoundError):
                loan.__exit__()

    def _take(self, session_id: str, *, exclusive: bool) -> None:
        checkout: Checkout[Any] = Checkout(self._coordinator, session_id, exclusive, self._timeout, self)
        self.session = checkout.__enter__()
        self._loan = checkout
        records = self._coordinator._records
        if records is not None and not records.is_leased(checkout):
            # What changed in it before is not to be blamed on this request.
            with suppress(StoreError):
                self.give_back()
            raise StoreError(f"the store cannot say whether session {session_id!r} is live, or who else has it")

    def _held(self) -> ManagedSession[Any]:
        assert self.session is not None, "it was taken"  # noqa: S101  tells mypy
        return self.session
