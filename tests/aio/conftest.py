"""A coordinator with one session, in memory and with a store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WatchedStore
from ..helpers.tasks import Coordinator


@pytest.fixture
def closed_in() -> list[int]:
    """The idents of the threads in which close callbacks have run."""
    return []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WatchedStore]:
    with closing(SQLiteStore(tmp_path / "sessions.db")) as store:
        yield WatchedStore(store)


@pytest.fixture(params=["in memory", "with a store"])
def coordinator(
    session_coordinator: CoordinatorFactory,
    store: WatchedStore,
    request: pytest.FixtureRequest,
    closed_in: list[int],
) -> Iterator[Coordinator]:
    kept = store if request.param == "with a store" else None
    coordinator = session_coordinator(store=kept, on_close=lambda *_: closed_in.append(threading.get_ident()))
    coordinator.create_session(session_id="it")
    yield coordinator
    # While its store is open.
    coordinator.close()


@pytest.fixture
def stored(session_coordinator: CoordinatorFactory, store: WatchedStore) -> Iterator[Coordinator]:
    coordinator = session_coordinator(store=store)
    coordinator.create_session(session_id="it")
    yield coordinator
    coordinator.close()
