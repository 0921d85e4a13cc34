"""Stores: where session records are kept.

`base` has the contract, `sqlite` the embedded store, and `redis` the one for many machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Changes, Found, Known, SessionRecord, Store, Touch

if TYPE_CHECKING:
    from .redis.store import RedisStore
    from .sqlite.store import SQLiteStore

__all__ = ["Changes", "Found", "Known", "RedisStore", "SQLiteStore", "SessionRecord", "Store", "Touch"]


def __getattr__(name: str) -> object:
    # A program that uses one of them should not wait for the import of the other.
    if name == "SQLiteStore":
        from .sqlite.store import SQLiteStore

        return SQLiteStore
    if name == "RedisStore":
        try:
            from .redis.store import RedisStore
        except ModuleNotFoundError as error:
            raise ImportError("RedisStore needs redis-py: pip install 'sessionkit[redis]'") from error

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
