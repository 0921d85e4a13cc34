"""Deletions: records that are to go, and what becomes of those that the store fails to delete."""

from __future__ import annotations

import threading

from ..errors import StoreError
from ..stores.base import Store
from ..util.clock import Clock
from .ownership import Ownership


class Deletions(Ownership):
    """Deletes the records of sessions that have ended, and remembers those that could not be deleted.

    Called with the coordinator's lock free.
    """

    def __init__(self, store: Store, clock: Clock, name: str | None) -> None:
        super().__init__(store, clock, name)
        self.pending_deletes: dict[str, float | None] = {}
        """Whose record could not be deleted: the last activity that is known of it, or None where that makes no
        difference."""
        # Whose records are being deleted at this moment.
        self._deleting: set[str] = set()
        self._retrying = threading.RLock()

    def is_ending(self, session_id: str) -> bool:
        """Whether the session has ended, and its record is there, or may be."""
        return session_id in self.pending_deletes or session_id in self._deleting

    def _delete(self, known: dict[str, float | None]) -> set[str] | None:
        """Delete records; gives those that were there, or None, after noting them for later, if the store failed."""
        self._deleting.update(known)
        try:
            store, instance = self._joined, self.instance
            with self._counted():
                deleted = store.delete(known, instance, self._wall())
        except BaseException as error:
            self.pending_deletes.update(known)
            if isinstance(error, StoreError):
                return None
            raise
        else:
            for session_id in known:
                self.pending_deletes.pop(session_id, None)
        finally:
            self._deleting.difference_update(known)
        return deleted

    def _retry_deletions(self) -> None:
        """Try again what could not be deleted. Raises `StoreError` if it cannot be yet."""
        with self._retrying:
            waiting = dict(self.pending_deletes)
            if waiting and self._delete(waiting) is None:
                raise StoreError(
                    f"the records of {len(waiting)} ended sessions could not be deleted, and are in the store still"
                )
