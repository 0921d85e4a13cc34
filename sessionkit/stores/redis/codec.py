"""How a Redis store writes a record: its data, and all else in one line that `redis.lua` reads too."""

from __future__ import annotations

from ...errors import StoreError
from ..base import Found, Known, SessionRecord, Touch


def line_of(record: SessionRecord) -> str:
    """All of a record but its id and its data."""
    fields = (
        record.name or "",
        record.state,
        repr(record.created_at),
        repr(record.last_active),
        str(record.message_count),
        repr(record.session_timeout),
        "" if record.max_lifetime is None else repr(record.max_lifetime),
        str(record.version),
        "",
    )
    return "|".join(fields)


def record_of(session_id: str, line: bytes, data: bytes) -> SessionRecord:
    """The record again, to the last bit."""
    try:
        name, state, created, last, count, timeout, lifetime, version, _ = line.decode().split("|")
        return SessionRecord(
            session_id,
            name or None,
            data.decode(),
            state,
            float(created),
            float(last),
            int(count),
            float(timeout),
            float(lifetime) if lifetime else None,
            int(version),
        )
    except (ValueError, AttributeError) as error:
        raise StoreError(f"the record of session {session_id!r} is damaged: {error}") from error


def records_of(reply: list[bytes]) -> list[SessionRecord]:
    """Records as the server lists them: three for each, id, line and data."""
    return [
        record_of(session_id.decode(), line, data)
        for session_id, line, data in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    ]


def found_of(session_id: str, reply: list[bytes]) -> Found:
    """What the server reports of a session: line, data, lag, whether the copy is stale, and where else it is."""
    line, data, lag, stale, *elsewhere = reply
    names = tuple(name.decode() for name in elsewhere)
    return Found(record_of(session_id, line, data), float(lag), names, bool(stale))


def parts_of(touch: Touch) -> tuple[str, str, str, str]:
    """A touch as the script takes it."""
    timeout = "" if touch.session_timeout is None else repr(touch.session_timeout)
    return repr(touch.last_active), str(touch.messages), touch.state or "", timeout


def parts_of_known(known: Known | None) -> tuple[str, str]:
    """What an instance knows of a session that has to go, as the script takes it."""
    if known is None:
        return "", ""
    return repr(known.last_active), "" if known.session_timeout is None else repr(known.session_timeout)
