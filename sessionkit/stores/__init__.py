"""Stores: where session records are kept. `base` has the contract, and `sqlite` the embedded store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Found, SessionRecord, Store, Touch

if TYPE_CHECKING:
    from .sqlite import SQLiteStore

__all__ = ["Found", "SQLiteStore", "SessionRecord", "Store", "Touch"]


def __getattr__(name: str) -> object:
    # Whoever uses no SQLite should not wait for its import.
    if name == "SQLiteStore":
        from .sqlite import SQLiteStore

        return SQLiteStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
