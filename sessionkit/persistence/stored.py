"""What a record says of its session: whether it is live, and what it was doing."""

from __future__ import annotations

from ..core.session import SessionState
from ..errors import Ending, RemovalCause, StoreError
from ..stores.base import Found, SessionRecord
from ..util.clock import is_past


def ending_of(found: Found, reading: float, wall: float) -> Ending | None:
    """How a session's time ran out that is not in memory, on our clock; None if it has time left."""
    record = found.record
    idle_end = record.idle_end + found.lag
    if not is_past(min(idle_end, record.life_end), wall):
        return None
    if idle_end <= record.life_end:
        return (RemovalCause.IDLE, reading - (wall - record.idle_end), record.session_timeout)
    return (RemovalCause.LIFETIME, reading - (wall - record.life_end), record.max_lifetime)


def state_of(record: SessionRecord) -> SessionState:
    try:
        return SessionState(record.state)
    except ValueError as error:
        raise StoreError(f"the record of session {record.id!r} is damaged: its state is {record.state!r}") from error
