"""What the tests of the operators' commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sessionkit.stores import SQLiteStore

from ..helpers.records import NOW, RECORDS, put


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands' clock shows `NOW`; only theirs, because that of a Redis server cannot be set."""
    monkeypatch.setattr("sessionkit.cli.sessions.time", lambda: NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one session that is live, one that was idle for too long, and one that is too old."""
    path = tmp_path / "sessions.db"
    put(SQLiteStore(path), *RECORDS)
    return path
