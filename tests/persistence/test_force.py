"""Sessions that are ended by force while they are checked out, with a store."""

from __future__ import annotations

from typing import Any

import pytest

from sessionkit import RemovalCause, SessionCoordinator, SessionExpiredError, SessionNotFoundError
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import SAVE, Closings, WatchedStore

Coordinator = SessionCoordinator[Any]


@pytest.fixture
def closings() -> Closings:
    return Closings()


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory, store: WatchedStore, closings: Closings) -> Coordinator:
    return session_coordinator(store=store, on_close=closings)


def test_a_close_by_force_deletes_the_record_and_refuses_what_the_holder_saves(
    coordinator: Coordinator, store: WatchedStore, closings: Closings
) -> None:
    """At once, and nothing of it comes back."""
    session = coordinator.create_session("kernel", data={"n": 1})
    checkout = coordinator.checkout(session.id)
    held = checkout.__enter__()
    held.data["n"] = 2
    coordinator.close_session(session.id, force=True)
    assert closings == [("kernel", RemovalCause.CLOSED)]
    assert store.load(session.id) is None
    writes = store.calls[SAVE]
    for call in (checkout.save, checkout.__exit__):
        with pytest.raises(SessionExpiredError):
            call()
    assert store.calls[SAVE] == writes
    assert store.load(session.id) is None
    successor = coordinator.create_session("kernel", session_id=session.id)
    with coordinator.checkout(successor.id, timeout=0):
        assert successor.data == {}


def test_close_by_force_saves_what_the_holder_had_done(
    session_coordinator: CoordinatorFactory, coordinator: Coordinator, store: WatchedStore, closings: Closings
) -> None:
    """A coordinator that is closed keeps the records: the session comes back as it was at that moment."""
    session = coordinator.create_session("kernel", data={"n": 1})
    checkout = coordinator.checkout(session.id)
    held = checkout.__enter__()
    held.data["n"] = 2
    assert coordinator.close(force=True) == []
    assert closings == [("kernel", RemovalCause.SHUTDOWN)]
    held.data["n"] = 3
    with pytest.raises(SessionExpiredError):
        checkout.__exit__()
    with session_coordinator(store=store).checkout(session.id, timeout=0) as again:
        assert again.data == {"n": 2}


def test_close_waits_for_the_last_save(coordinator: Coordinator, store: WatchedStore) -> None:
    """Nothing is held any more: `close` returns at once, and the record has what was saved."""
    session = coordinator.create_session()
    with coordinator.checkout(session.id) as held:
        held.data["n"] = 1
    assert coordinator.close(timeout=None) == []
    found = store.load(session.id)
    assert found is not None
    assert found.record.data == '{"n":1}'


def test_force_for_a_session_that_is_in_the_store_only(
    session_coordinator: CoordinatorFactory, coordinator: Coordinator, store: WatchedStore
) -> None:
    """It is an ordinary close."""
    session = coordinator.create_session()
    coordinator.close()
    again = session_coordinator(store=store)
    again.close_session(session.id, force=True)
    assert store.load(session.id) is None
    with pytest.raises(SessionNotFoundError):
        again.close_session(session.id, force=True)
    assert again.checkouts() == []
