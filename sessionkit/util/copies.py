"""Live objects, of which there can be no copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, SupportsIndex

from .log import short_repr


def refuse_copies(advice: str) -> Callable[[Any, SupportsIndex], NoReturn]:
    """A `__reduce_ex__` for a class, which `copy` and `pickle` call: it raises `TypeError` with what to do instead."""

    def refuse(self: object, _protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"{short_repr(self)} can be neither copied nor pickled: {advice}")

    return refuse
