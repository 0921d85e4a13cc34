"""A response's body that has a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any


class Body:
    """The parts of an application's body, and what is to be done when no more of them are wanted.

    That is done when the body is closed, whatever closing it does. `finish` may be called several times.
    """

    def __init__(self, given: Iterable[Any], finish: Callable[[], object]) -> None:
        self._given = given
        self._finish = finish
        self._parts: Iterator[Any] | None = None

    def begin(self) -> None:
        """Have the first part made, if it was not."""
        if self._parts is None:
            parts = iter(self._given)
            self._parts = chain(list(islice(parts, 1)), parts)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.begin()
        return next(self._parts or iter(()))

    def close(self) -> None:
        """Called by the server at the end, whatever happened, in whatever thread."""
        try:
            close = getattr(self._given, "close", None)
            if close is not None:
                close()
        finally:
            self._finish()
