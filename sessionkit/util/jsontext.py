"""Data as JSON text: what JSON gives back as it was, and what is wrong with the rest.

What counts is the exact type: a subclass, such as an `OrderedDict` or an `IntEnum`, comes back as its parent.
"""

from __future__ import annotations

import marshal
from collections.abc import Container, Iterator
from json import JSONEncoder, loads
from typing import Any

from ..errors import InvalidSessionError
from .log import short_repr

encode = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""The JSON text of a value, the same for the same value. Raises as `json.dumps` does."""

_DEEPEST = 100  # where the search for what is wrong ends
_KNOWN = "dict, list, str, int, float, bool and None"


def encode_checked(data: dict[str, Any], session_id: str) -> tuple[str, dict[str, Any]]:
    """A session's data as JSON text, and what that gives back: the same data, of which nothing is the caller's.

    Raises `InvalidSessionError`, which names the path, for what JSON cannot say or would give back as something else
    (a tuple; a subclass; a key that is no str; NaN), and for what is nested too deep for Python's `json`.
    """
    try:
        text = encode(data)
        text.encode()
        copy: dict[str, Any] = loads(text)
        # Of marshal only this is of use: it refuses subclasses, whose instances may equal what comes back.
        marshal.dumps(data)
        faithful = copy == data
    except (TypeError, ValueError, RecursionError) as error:
        complaint = complaint_about(data, session_id)
        raise InvalidSessionError(complaint or f"data of session {session_id!r}: {error}") from error
    if not faithful:
        # If nothing is found, another thread has changed the data meanwhile: what they were is told by the text.
        complaint = complaint_about(data, session_id)
        if complaint is not None:
            raise InvalidSessionError(complaint)
    return text, copy


def complaint_about(data: dict[str, Any], session_id: str, further: Container[type] = ()) -> str | None:
    """What is wrong with data, with its path; None if that is not found.

    `further`: types that are fine as well as those of JSON; of these, what is in a tuple is searched too.
    """
    found = next(_faults(data, "data", 0, further), None)
    return None if found is None else f"{found[0]} of session {session_id!r} cannot be stored: {found[1]}"


def _faults(value: object, path: str, depth: int, further: Container[type]) -> Iterator[tuple[str, str]]:
    """The paths of what JSON would not give back as it was, and why."""
    kind = type(value)
    if depth > _DEEPEST:
        yield f"{path[:80]}...", "it contains itself, or is nested too deep"
    elif type(value) is dict:
        # A copy: where sessions are shared, another thread may be at it.
        for key, inner in value.copy().items():
            if type(key) is not str:
                yield (
                    path,
                    f"the key {short_repr(key)} is of type {type(key).__name__}; JSON has only str keys: use str(key)",
                )
            elif not _is_text(key):
                yield path, f"the key {short_repr(key)} has half of a surrogate pair, which UTF-8 cannot encode"
            yield from _faults(inner, f"{path}[{short_repr(key)}]", depth + 1, further)
    elif isinstance(value, list | tuple) and (kind is list or kind in further):
        for index, inner in enumerate(list(value)):
            yield from _faults(inner, f"{path}[{index}]", depth + 1, further)
    elif isinstance(value, str) and (kind is str or kind in further):
        if not _is_text(value):
            yield path, f"{short_repr(value)} has half of a surrogate pair, which UTF-8 cannot encode"
    elif type(value) is float:
        if value - value != 0:
            yield path, f"{value!r} is a number that JSON does not have; use None, or a str"
    elif kind not in (int, bool, type(None)) and kind not in further:
        shown = f"{short_repr(value)} is of type {kind.__name__}"
        yield path, f"{shown}, and JSON has only {_KNOWN}, no subclasses; convert it, or keep it in the resource"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
