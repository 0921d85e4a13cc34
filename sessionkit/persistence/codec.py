"""What a record says of a session: its data as the text of a JSON object, its state, and whether it is live."""

from __future__ import annotations

from json import loads
from typing import Any

from ..core.session import SessionState
from ..errors import Ending, RemovalCause, StoreError
from ..stores.base import Found, SessionRecord
from ..util.clock import is_past
from ..util.log import short_repr


def data_of(text: str, session_id: str) -> dict[str, Any]:
    """The data that a record has as text. Raises `StoreError` if it is not a JSON object."""
    try:
        data = loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"the record of session {session_id!r} is damaged: its data is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise StoreError(
            f"the record of session {session_id!r} is damaged: its data is {short_repr(data)}, not an object"
        )
    return data


STARTING = "starting"
"""The state of a record whose session has no resource yet: its instance is making it."""


def state_of(record: SessionRecord) -> SessionState:
    """The state that a record has. Raises `StoreError` if there is no such state."""
    if record.state == STARTING:
        return SessionState.ACTIVE
    try:
        return SessionState(record.state)
    except ValueError as error:
        raise StoreError(f"the record of session {record.id!r} is damaged: its state is {record.state!r}") from error


def ending_of(found: Found, reading: float, wall: float) -> Ending | None:
    """How the time of a session that is not in memory ran out, on our clock; None if it has time left.

    `reading` and `wall`: the coordinator's clock and the store's time, read together.
    """
    record = found.record
    idle_end = record.idle_end + found.lag
    if not is_past(min(idle_end, record.life_end), wall):
        return None
    if idle_end <= record.life_end:
        return (RemovalCause.IDLE, reading - (wall - record.idle_end), record.session_timeout)
    return (RemovalCause.LIFETIME, reading - (wall - record.life_end), record.max_lifetime)
