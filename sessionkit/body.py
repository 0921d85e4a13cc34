"""A response's body that has a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Body:
    """The parts of an application's body, and what is to be done when no more of them are wanted.

    That is done when the body is closed, whatever closing it does; should a server forget that, when it is dropped.
    `finish` may be called several times, and raises nothing.
    """

    def __init__(self, given: Iterable[Any], finish: Callable[[], object]) -> None:
        self._given = given
        self._finish = finish
        self._parts: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._parts is None:
            self._parts = self.begin(self._given)
        return next(self._parts)

    def begin(self, given: Iterable[Any]) -> Iterator[Any]:
        """The parts, when the first of them is wanted."""
        return iter(given)

    def close(self) -> None:
        """Called by the server at the end, whatever happened, in whatever thread."""
        try:
            close = getattr(self._given, "close", None)
            if close is not None:
                close()
        finally:
            self._finish()

    def __del__(self) -> None:
        self._finish()
