"""Checks of what callers pass in: each gives the value back in the form the package uses, or raises at once.

Wrong types raise `TypeError`; names and ids out of form raise `InvalidSessionError`; numbers out of range raise
`ValueError`. Every message has the value's `repr` (shortened when long) and the limit.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import TypeVar

from ..errors import InvalidSessionError
from .log import short_repr

T = TypeVar("T")

Duration = float | timedelta
"""Seconds as a number, or a `datetime.timedelta`."""

_NAME = re.compile(r"[A-Za-z0-9 ._-]{1,64}")
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def checked_name(value: object) -> str:
    """A session's name: 1 to 64 of ASCII letters, digits, space, `.`, `_` and `-`."""
    return _matching(_NAME, value, "session name", "1 to 64 of ASCII letters, digits, space, '.', '_' and '-'")


def checked_id(value: object) -> str:
    """A session's id: 1 to 128 of ASCII letters, digits, `.`, `_` and `-`."""
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    return _matching(_ID, value, "session id", "1 to 128 of ASCII letters, digits, '.', '_' and '-'")


def is_name(value: str) -> bool:
    """Whether a session may have this name; none is looked for by any other."""
    return _NAME.fullmatch(value) is not None


def is_id(value: str) -> bool:
    """Whether a session may have this id; none is looked for by any other."""
    return _ID.fullmatch(value) is not None


def checked_instance_name(value: object) -> str:
    """What other processes call this one: 1 to 255 printable characters, such as those of a URL."""
    if isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable():
        return value
    if not isinstance(value, str):
        raise TypeError(f"instance_name must be a str, such as 'http://10.0.0.7:8000', not {short_repr(value)}")
    raise ValueError(
        f"instance_name {short_repr(value)} ({len(value)} characters) is not allowed; use 1 to 255 printable ones"
    )


def checked_str(what: str, value: object) -> str:
    """A str in whatever form: no session is found by one that none may have."""
    if not isinstance(value, str):
        raise TypeError(f"a {what} must be a str, such as session.id, not {short_repr(value)} ({type(value).__name__})")
    return value


def _matching(pattern: re.Pattern[str], value: object, what: str, rule: str) -> str:
    text = checked_str(what, value)
    if not pattern.fullmatch(text):
        raise InvalidSessionError(f"{what} {short_repr(text)} ({len(text)} characters) is not allowed; use {rule}")
    return text


def checked_seconds(what: str, value: object) -> float:
    """A duration in seconds: finite and above 0."""
    seconds = _seconds(what, value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{what} must be above 0 seconds and finite, not {short_repr(value)}")
    return seconds


def checked_shift(what: str, value: object) -> float:
    """A step in time, in seconds: finite, forward or back."""
    seconds = _seconds(what, value)
    if not math.isfinite(seconds):
        raise ValueError(f"{what} must be finite seconds, not {short_repr(value)}")
    return seconds


def checked_wait(what: str, value: object) -> float | None:
    """How long to wait, in seconds: 0 or more, or None for as long as it takes."""
    if value is None:
        return None
    seconds = _seconds(what, value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{what} must be 0 or more seconds and finite, or None to wait on, not {short_repr(value)}")
    return seconds


def _seconds(what: str, value: object) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be seconds as a number, or a timedelta, not {short_repr(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{what} must be a number of seconds that fits a float, not {short_repr(value)}") from None


def checked_store(value: object) -> object:
    """Something that looks like a store; a path is what people pass instead."""
    if not hasattr(value, "delete_expired"):
        raise TypeError(f"store must be a session store, such as SQLiteStore('sessions.db'), not {short_repr(value)}")
    return value


def checked_flag(what: str, value: object) -> bool:
    """True or False, and nothing that is merely true or false enough."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {short_repr(value)}")
    return value


def checked_count(what: str, value: object) -> int:
    """A number of things: a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number, not {short_repr(value)}")
    if value < 1:
        raise ValueError(f"{what} must be at least 1, not {short_repr(value)}")
    return value


def checked_function(what: str, value: object) -> object:
    """Something to call, and not an asynchronous function, whose calls would do nothing."""
    if not callable(value):
        raise TypeError(f"{what} must be callable, not {short_repr(value)}")
    if _is_asynchronous(value):
        raise TypeError(
            f"{what} must be a plain function, not the asynchronous {short_repr(value)}: {_INSTEAD_OF_ASYNC}"
        )
    return value


def checked_result(what: str, result: T) -> T:
    """What a plain function has returned: no coroutine, of which nothing has run yet.

    A future may be: it runs by itself. This finds the asynchronous functions that `checked_function` cannot tell.
    """
    # Most close callbacks return None, for which asking takes as long as all the rest.
    if result is not None and isinstance(result, Coroutine):
        # Else Python warns that it was never awaited.
        result.close()
        raise TypeError(
            f"{what} must be a plain function, and returned {short_repr(result)}, which was not run: "
            f"{_INSTEAD_OF_ASYNC}"
        )
    return result


_INSTEAD_OF_ASYNC = (
    "nothing here awaits it; pass sessionkit.aio.on_loop(function, loop), which runs it on an event loop"
)


def _is_asynchronous(function: Callable[..., object]) -> bool:
    """Whether that can be told before the function is called: a lambda that calls one looks like any other."""
    while isinstance(function, partial):
        function = function.func
    is_async = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return any(check(each) for check in is_async for each in (function, type(function).__call__))
