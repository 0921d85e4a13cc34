"""The shipped contract suite finds a store that does not do what it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sessionkit import SessionBusyError
from sessionkit.stores import Changes, Found, SQLiteStore, Touch
from sessionkit.testing import StoreContract


class Contract(StoreContract):
    """The contract's tests, to be called one by one."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def new_store(self) -> Any:
        return self.make()


class SavesAnyVersion(SQLiteStore):
    """Overwrites what others saved."""

    def save(self, session_id: str, changes: Changes) -> int:
        found = self.load(session_id)
        return super().save(session_id, changes._replace(version=found.record.version) if found else changes)


class Revives(SQLiteStore):
    """Finds what is gone."""

    def load(self, session_id: str, instance: str | None = None) -> Found | None:
        found = super().load(session_id, instance)
        self.last = found or getattr(self, "last", None)
        return self.last


class Forgets(SQLiteStore):
    """Notes no touch."""

    def touch(self, touches: Mapping[str, Touch]) -> set[str]:
        return super().touch({session_id: Touch(0.0) for session_id in touches})


class LeasesToAll(SQLiteStore):
    """Excludes nobody."""

    def attach(self, session_id: str, instance: str, *, lease: bool = False) -> Found | None:
        with suppress(SessionBusyError):
            return super().attach(session_id, instance, lease=lease)
        return super().attach(session_id, instance)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (SavesAnyVersion, "test_saving_compares_the_version"),
        (Revives, "test_absent_is_none"),
        (Forgets, "test_touching_many"),
        (LeasesToAll, "test_a_lease_excludes"),
    ],
)
def test_a_store_that_breaks_its_promise_fails(broken: type[SQLiteStore], test: str, tmp_path: Path) -> None:
    """The test of that promise fails with it, and passes with a store that keeps it."""
    getattr(Contract(lambda: SQLiteStore(tmp_path / "good.db")), test)()
    with pytest.raises(AssertionError):
        getattr(Contract(lambda: broken(tmp_path / "broken.db")), test)()
