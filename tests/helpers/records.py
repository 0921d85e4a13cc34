"""Records for the tests of stores' commands: a store with one session that is live and two that have expired."""

from __future__ import annotations

from contextlib import closing

from sessionkit.stores import SessionRecord, Store

NOW = 1_768_348_800.0
"""The 14th of January 2026, 00:00 UTC: what the clock shows in these tests."""

SUPPORT = SessionRecord("s-1", "support", '{"lang":"en"}', "active", NOW - 3600, NOW - 600, 3, 1800.0, None, 2)
IDLE = SessionRecord("s-2", "left", "{}", "waiting_for_input", NOW - 7200, NOW - 3600, 0, 1800.0, None)
OLD = SessionRecord("s-3", None, "{}", "active", NOW - 90000, NOW - 60, 1200, 1800.0, 86400.0)
RECORDS = (SUPPORT, IDLE, OLD)


def put(store: Store, *records: SessionRecord) -> None:
    """Insert records that no instance has in memory, and close the store."""
    with closing(store):
        instance = store.join(0.0, "other")
        for record in records:
            store.create(record, instance)


def ids_in(store: Store) -> list[str]:
    """The ids of the records in a store, which is closed."""
    with closing(store):
        return [record.id for record in store.page(None, 1000)]
