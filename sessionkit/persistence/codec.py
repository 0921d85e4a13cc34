"""What a record says of a session: its data as the text of a JSON object, its state, and whether it is live."""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONEncoder, loads
from typing import Any

from ..core.session import SessionState
from ..errors import Ending, InvalidSessionError, RemovalCause, StoreError
from ..stores.base import Found, SessionRecord
from ..util.clock import is_past
from ..util.log import short_repr

_encode = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_DEEPEST = 100  # where the search for what is wrong ends


def text_of(data: dict[str, Any], limit: int, session_id: str) -> str:
    """The data as JSON text, the same for the same data.

    Raises `InvalidSessionError`, which names the path, for what JSON cannot say or would give back as something else
    (a key that is no str; NaN), for what is nested too deep for Python's `json`, and for text of more than `limit`
    bytes. A tuple is stored as a list.
    """
    try:
        text = _encode(data)
        size = len(text.encode())
        faithful = loads(text) == data
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSessionError(_complaint(data, session_id) or f"data of session {session_id!r}: {error}") from error
    if not faithful and (complaint := _complaint(data, session_id)):
        raise InvalidSessionError(complaint)
    if size > limit:
        largest = max(data, key=lambda key: len(_encode(data[key])))
        raise InvalidSessionError(
            f"data of session {session_id!r} takes {size} bytes as JSON, and max_data_bytes is {limit} (the largest "
            f"part is data[{short_repr(largest)}]); keep less in it, or raise the limit"
        )
    return text


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


def state_of(record: SessionRecord) -> SessionState:
    """The state that a record has. Raises `StoreError` if there is no such state."""
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


def _complaint(data: dict[str, Any], session_id: str) -> str | None:
    found = next(_faults(data, "data", 0), None)
    return None if found is None else f"{found[0]} of session {session_id!r} cannot be stored: {found[1]}"


def _faults(value: object, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """The paths of what JSON cannot say, and why."""
    if depth > _DEEPEST:
        yield f"{path[:80]}...", "it contains itself, or is nested too deep"
    elif isinstance(value, dict):
        # A copy: where sessions are shared, another thread may be at it.
        for key, inner in list(value.items()):
            if not isinstance(key, str):
                yield (
                    path,
                    f"the key {short_repr(key)} is of type {type(key).__name__}; JSON has only str keys: use str(key)",
                )
            elif not _is_text(key):
                yield path, f"the key {short_repr(key)} has half of a surrogate pair, which UTF-8 cannot encode"
            yield from _faults(inner, f"{path}[{short_repr(key)}]", depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(list(value)):
            yield from _faults(inner, f"{path}[{index}]", depth + 1)
    elif isinstance(value, str):
        if not _is_text(value):
            yield path, f"{short_repr(value)} has half of a surrogate pair, which UTF-8 cannot encode"
    elif isinstance(value, float):
        if value - value != 0:
            yield path, f"{value!r} is a number that JSON does not have; use None, or a str"
    elif not isinstance(value, int | None):
        kind = type(value).__name__
        known = "dict, list, str, int, float, bool and None"
        yield (
            path,
            f"{short_repr(value)} is of type {kind}, and JSON has only {known}; convert it, or keep it in the resource",
        )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
