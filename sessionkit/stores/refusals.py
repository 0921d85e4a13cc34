"""What a store refuses, in words: the same for every store."""

from __future__ import annotations

from ..errors import SessionBusyError, SessionConflictError, SessionExistsError
from .base import SessionRecord


def busy(session_id: str) -> SessionBusyError:
    """Another living instance has a lease that excludes this one."""
    return SessionBusyError(f"session {session_id!r} is checked out in another process; try again")


def conflict(session_id: str, found: int, version: int) -> SessionConflictError:
    """The record has another version than the one that was changed."""
    return SessionConflictError(
        f"session {session_id!r} was saved by somebody else: it has version {found}, and this change was made to "
        f"version {version}; check it out again, and make the change anew"
    )


def taken(record: SessionRecord, taken_by: str) -> SessionExistsError:
    """The id or the name of a new record belongs to another one."""
    what = f"id {record.id!r}" if taken_by == record.id else f"name {record.name!r}"
    return SessionExistsError(f"a stored session has the {what} already; choose another", taken_by)


def taken_id(session_id: str) -> SessionExistsError:
    """The id that a record is to get belongs to another one."""
    return SessionExistsError(f"a stored session has the id {session_id!r} already; choose another", session_id)
