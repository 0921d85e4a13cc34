"""Data as JSON text: what JSON gives back as it was, and what is wrong with the rest.

What counts is the exact type: a subclass, such as an `OrderedDict` or an `IntEnum`, comes back as its parent.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable, Mapping
from json import JSONEncoder, loads
from typing import Any

from ..errors import InvalidSessionError
from .log import short_repr

encode = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""The JSON text of a value, the same for the same value. Raises as `json.dumps` does."""

_DEEPEST = 100  # where the search for what is wrong ends
_LONGEST_PATH = 80
_KNOWN = "dict, list, str, int, float, bool and None"


def encode_exactly(data: dict[str, Any]) -> tuple[str, dict[str, Any], bool]:
    """Data as JSON text, what that gives back, of which nothing is the caller's, and whether that is the same.

    Raises `TypeError`, `ValueError` or `RecursionError` for what JSON cannot say, and for what is nested too deep for
    Python's `json`.
    """
    text = encode(data)
    text.encode()
    copy: dict[str, Any] = loads(text)
    # Of marshal only this is of use: it refuses subclasses, whose instances may equal what comes back.
    marshal.dumps(data)
    return text, copy, copy == data


def says(text: str, data: dict[str, Any], copy: dict[str, Any]) -> bool:
    """Whether the text gives back these very data, where `copy` is what it gave back before."""
    try:
        return encode(data) == text and data == copy and bool(marshal.dumps(data))
    except (TypeError, ValueError, RecursionError):
        return False


def encode_checked(data: dict[str, Any], session_id: str) -> tuple[str, dict[str, Any]]:
    """As `encode_exactly`, for a session's data.

    Raises `InvalidSessionError`, which names the path, for what JSON cannot say or would give back as something else: a
    tuple; a subclass; a key that is no str; NaN.
    """
    try:
        text, copy, is_same = encode_exactly(data)
    except (TypeError, ValueError, RecursionError) as error:
        complaint = complaint_about(data, session_id)
        raise InvalidSessionError(complaint or f"data of session {session_id!r}: {error}") from error
    # If nothing is found, another thread has changed the data meanwhile: the text has them as they were.
    if not is_same and (complaint := complaint_about(data, session_id)):
        raise InvalidSessionError(complaint)
    return text, copy


def encode_data(data: dict[str, Any], limit: int, session_id: str) -> tuple[str, dict[str, Any]]:
    """The data as JSON text, and what that gives back: the same data, of which nothing is the caller's.

    Raises `InvalidSessionError` as `encode_checked` does, and for text of more than `limit` bytes.
    """
    text, copy = encode_checked(data, session_id)
    size = len(text.encode())
    if size > limit:
        largest = max(copy, key=lambda key: len(encode(copy[key])))
        raise InvalidSessionError(
            f"data of session {session_id!r} takes {size} bytes as JSON, and max_data_bytes is {limit} (the largest "
            f"part is data[{short_repr(largest)}]); keep less in it, or raise the limit"
        )
    return text, copy


Further = Mapping[type, Callable[[Any], str | None]]
"""Types that are fine beside those of JSON, each with a function that says what is wrong with a value of it, if
anything is."""


def complaint_about(data: dict[str, Any], session_id: str, further: Further | None = None) -> str | None:
    """What is wrong with data, with its path; None if that is not found. What is in a tuple is searched too."""
    found = _fault(data, 0, further or {})
    if found is None:
        return None
    path, problem = f"data{found[0]}", found[1]
    path = path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}..."
    return f"{path} of session {session_id!r} cannot be stored: {problem}"


def _fault(value: object, depth: int, further: Further) -> tuple[str, str] | None:
    """The path from here to what JSON would not give back as it was, and why; None if nothing is found."""
    kind = type(value)
    if depth > _DEEPEST:
        return "", "it contains itself, or is nested too deep"
    inner: Iterable[tuple[object, object]] = ()
    if type(value) is dict:
        # Copies: where sessions are shared, another thread may be at it.
        inner = value.copy().items()
        for key, _ in inner:
            if type(key) is not str:
                name = type(key).__name__
                return "", f"the key {short_repr(key)} is of type {name}; JSON has only str keys: use str(key)"
            if not _is_text(key):
                return "", f"the key {short_repr(key)} has half of a surrogate pair, which UTF-8 cannot encode"
    elif isinstance(value, list | tuple) and (kind is list or kind in further):
        inner = enumerate(list(value))
    elif isinstance(value, str) and (kind is str or kind in further):
        if not _is_text(value):
            return "", f"{short_repr(value)} has half of a surrogate pair, which UTF-8 cannot encode"
    elif type(value) is float:
        if value - value != 0:
            return "", f"{value!r} is a number that JSON does not have; use None, or a str"
    elif kind in further:
        problem = further[kind](value)
        return None if problem is None else ("", problem)
    elif kind not in (int, bool, type(None)):
        shown = f"{short_repr(value)} is of type {kind.__name__}"
        known = f"{_KNOWN} (and here, {', '.join(each.__name__ for each in further)})" if further else _KNOWN
        return "", f"{shown}, and JSON has only {known}, no subclasses; convert it, or keep it in the resource"
    for where, each in inner:
        found = _fault(each, depth + 1, further)
        if found is not None:
            return f"[{short_repr(where)}]{found[0]}", found[1]
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
