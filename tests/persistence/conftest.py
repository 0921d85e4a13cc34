"""What the tests of coordinators with a store need: stores on one file, and coordinators on these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.processes import CONFIG, Maker, OpenStore, Pair, Process, Restart
from ..helpers.support import Closings, HookedClock, WatchedStore


@pytest.fixture
def session_clock() -> HookedClock:
    """In place of sessionkit's own: one in which something may happen at a reading."""
    return HookedClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file that all stores of a test are on."""
    return tmp_path / "sessions.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[OpenStore]:
    """Opens stores, each as a process of its own would, and closes them when the test's coordinators are closed."""
    opened: list[WatchedStore] = []

    def open_one(**options: Any) -> WatchedStore:
        opened.append(WatchedStore(SQLiteStore(path, **options)))
        return opened[-1]

    yield open_one
    for store in opened:
        store.store.close()


@pytest.fixture
def session_coordinator(open_store: OpenStore, session_coordinator: CoordinatorFactory) -> CoordinatorFactory:
    """sessionkit's own, which closes its coordinators before their stores are closed."""
    return session_coordinator


@pytest.fixture
def store(open_store: OpenStore) -> WatchedStore:
    """A store for the one coordinator that a test watches."""
    return open_store()


@pytest.fixture
def restart(session_coordinator: CoordinatorFactory, open_store: OpenStore) -> Restart:
    """Close the last coordinator made by this, and make another one on the same file, as the next process would."""
    last: list[SessionCoordinator[Any]] = []

    def make(config: CoordinatorConfig = CONFIG, **options: Any) -> SessionCoordinator[Any]:
        if last:
            last.pop().close()
        last.append(session_coordinator(config, **{"store": options.pop("store", None) or open_store(), **options}))
        return last[0]

    return make


@pytest.fixture
def closings() -> tuple[Closings, Closings]:
    """What the close callbacks of the pair were called for."""
    return Closings(), Closings()


@pytest.fixture
def stores(open_store: OpenStore) -> tuple[WatchedStore, WatchedStore]:
    """The stores of the pair."""
    return open_store(), open_store()


@pytest.fixture
def pair(
    session_coordinator: CoordinatorFactory,
    stores: tuple[WatchedStore, WatchedStore],
    closings: tuple[Closings, Closings],
) -> Pair:
    """Two coordinators, here and there, each with a store of its own on the same file."""
    here, there = (
        session_coordinator(CONFIG, store=store, on_close=closing)
        for store, closing in zip(stores, closings, strict=True)
    )
    return here, there


@pytest.fixture
def process(session_coordinator: CoordinatorFactory, open_store: OpenStore) -> Maker:
    """Makes coordinators that stand for processes, of a name and of options."""
    return lambda name, **options: Process(session_coordinator, open_store(), name, **options)
