"""What the web's tests stand on: a coordinator, and a store whose calls are counted and fail on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sessionkit import SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WatchedStore
from ..helpers.web import CONFIG


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory) -> SessionCoordinator[Any]:
    return session_coordinator(CONFIG)


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    return WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
