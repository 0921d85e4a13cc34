"""Rotation: a session that gets another id, in memory and in a store."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    EventKind,
    InvalidSessionError,
    RemovalCause,
    SessionBusyError,
    SessionExistsError,
    SessionExpiredError,
    SessionNotFoundError,
    StoreError,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.processes import (
    CONFIG,
    Pair,
    Restart,
    config,
)
from ..helpers.support import (
    DELETE,
    LOAD,
    RENAME,
    TOUCH,
    WAIT,
    Closings,
    HookedClock,
    WatchedStore,
    delete_record,
    in_thread,
    record_of,
    records_in,
)

# ---- In memory


def test_a_rotated_session_is_the_same_under_another_id(session_coordinator: CoordinatorFactory) -> None:
    """Name, data, resource, age and messages stay; the old id is dead at once, and nothing is closed."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)
    session = coordinator.create_session("chat", session_id="old", data={"a": 1}, resource="live")
    session.record_message()
    created_at = session.metadata.created_at
    channel = coordinator.subscribe()

    assert coordinator.rotate_session("old", "new") is session

    assert (session.id, session.name, session.data, session.resource) == ("new", "chat", {"a": 1}, "live")
    assert (session.metadata.created_at, session.metadata.message_count) == (created_at, 1)
    assert coordinator.get_session("new") is session
    assert "old" not in coordinator
    with pytest.raises(SessionNotFoundError) as caught:
        coordinator.get_session("old")
    assert not isinstance(caught.value, SessionExpiredError)
    assert coordinator.switch_session("chat") is session
    assert coordinator.list_sessions() == [session]
    assert not closings
    event = channel.get(timeout=0)
    assert event is not None
    assert (event.kind, event.session_id, event.former_id, event.cause) == (EventKind.ROTATED, "new", "old", None)
    coordinator.create_session(session_id="old")
    coordinator.close_session("new")
    assert closings == [("chat", RemovalCause.CLOSED)]


def test_a_new_id_is_made_unless_given(session_coordinator: CoordinatorFactory) -> None:
    """As for a new session: long, and another one each time."""
    coordinator = session_coordinator(CONFIG)
    ids = {coordinator.create_session().id for _ in range(2)}
    ids |= {coordinator.rotate_session(session_id).id for session_id in sorted(ids)}
    assert {len(session_id) for session_id in ids} == {43}
    assert len(ids) == 4


def test_rotation_touches_and_keeps_the_limits(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Its idle time starts again; its maximum lifetime, and its turn among the others, do not."""
    coordinator = session_coordinator(config(max_lifetime=100))
    sessions = [coordinator.create_session(session_id=name) for name in "abc"]
    session_clock.advance(50)
    for name in "bc":
        coordinator.touch_session(name)
    coordinator.rotate_session("a", "new")
    session_clock.advance(49)
    assert coordinator.list_sessions() == [sessions[1], sessions[2], sessions[0]]
    session_clock.advance(1)
    assert len(coordinator) == 3
    session_clock.advance(0.001)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.get_session("new")
    assert caught.value.cause is RemovalCause.LIFETIME
    assert coordinator.cleanup_inactive_sessions() == 3


def test_an_id_that_is_taken_or_not_allowed_is_refused(session_coordinator: CoordinatorFactory) -> None:
    """Also its own, one that is being made, and one whose session is closing still; the session stays as it was."""
    others: list[SessionExistsError] = []

    def rotate_meanwhile(session: Any, *_: Any) -> None:
        if session.id == "busy":
            with pytest.raises(SessionExistsError) as caught:
                coordinator.rotate_session("old", "busy")
            others.append(caught.value)

    coordinator = session_coordinator(CONFIG, resource_factory=rotate_meanwhile, on_close=rotate_meanwhile)
    session = coordinator.create_session(session_id="old", resource="given")
    coordinator.create_session(session_id="other", resource="given")
    for taken in ("other", "old"):
        with pytest.raises(SessionExistsError, match=f"id '{taken}' already") as caught:
            coordinator.rotate_session("old", taken)
        assert caught.value.session_id == taken
    with pytest.raises(InvalidSessionError, match="'no slash/'"):
        coordinator.rotate_session("old", "no slash/")
    coordinator.create_session(session_id="busy")
    coordinator.close_session("busy")
    assert len(others) == 2
    assert coordinator.get_session("old") is session


def test_what_is_gone_cannot_be_rotated(session_coordinator: CoordinatorFactory, session_clock: ManualClock) -> None:
    """Raises as a look does; a session that is closed while it is checked out has ended for a rotation too."""
    coordinator = session_coordinator(CONFIG)
    with pytest.raises(SessionNotFoundError):
        coordinator.rotate_session("nobody")
    coordinator.create_session(session_id="idle")
    session_clock.advance(61)
    with pytest.raises(SessionExpiredError):
        coordinator.rotate_session("idle")
    coordinator.create_session(session_id="closed")
    with coordinator.checkout("closed"):
        coordinator.close_session("closed")
        with pytest.raises(SessionExpiredError):
            coordinator.rotate_session("closed")
    assert len(coordinator) == 0


def test_rotation_under_a_checkout_of_this_thread(session_coordinator: CoordinatorFactory) -> None:
    """The thread goes on with the session, and can give it back; alone, or shared if no other thread has it."""
    coordinator = session_coordinator(CONFIG)
    coordinator.create_session(session_id="s-0")
    for number, exclusive in enumerate([True, False]):
        with coordinator.checkout(f"s-{number}", exclusive=exclusive) as held:
            coordinator.rotate_session(held.id, f"s-{number + 1}")
            held.touch()
            held.record_message()
        assert coordinator.stats().checked_out == 0
    assert coordinator.get_session("s-2").metadata.message_count == 2


def test_rotation_waits_while_the_session_is_checked_out(session_coordinator: CoordinatorFactory) -> None:
    """For as long as it is told to; then it raises, and nothing has changed."""
    coordinator = session_coordinator(CONFIG)
    session = coordinator.create_session(session_id="old")
    with coordinator.checkout("old"):
        with in_thread(lambda: coordinator.rotate_session("old", "new", timeout=0)) as future:
            assert isinstance(future.exception(WAIT), SessionBusyError)
        assert session.id == "old"


def test_a_thread_that_waits_by_the_old_id_is_sent_away(
    session_coordinator: CoordinatorFactory, session_clock: HookedClock
) -> None:
    """A request that came before the login, and waited, does not get what came after it."""
    coordinator = session_coordinator(CONFIG)
    session = coordinator.create_session(session_id="old")
    got = []
    begun = threading.Event()

    def ask() -> None:
        session_clock.at_reading(1, begun.set)
        with coordinator.checkout("old", timeout=WAIT) as held:
            got.append(held)

    with coordinator.checkout("old"), in_thread(ask) as future:
        assert begun.wait(WAIT)
        with suppress(TimeoutError):
            # It queues now, if it has not yet.
            future.exception(0.01)
        coordinator.rotate_session("old", "new")
        assert isinstance(future.exception(WAIT), SessionNotFoundError)
    assert not got
    with coordinator.checkout("new", timeout=0) as held:
        assert held is session


def test_a_checkout_by_the_old_id_that_began_a_moment_ago_does_not_get_it(
    session_coordinator: CoordinatorFactory, session_clock: HookedClock
) -> None:
    """The session is rotated between the reading of the clock and the taking."""
    coordinator = session_coordinator(CONFIG)
    coordinator.create_session(session_id="old")
    session_clock.at_reading(1, lambda: coordinator.rotate_session("old", "new"))
    with pytest.raises(SessionNotFoundError):
        coordinator.checkout("old", timeout=0).__enter__()
    assert coordinator.stats().checked_out == 0


# ---- In a store


def test_a_rotated_session_comes_back_by_its_new_id(restart: Restart) -> None:
    """After a restart too, with what was written before and after; the old id is unknown there."""
    coordinator = restart()
    coordinator.create_session("chat", session_id="old", data={"before": 1})
    with coordinator.checkout("old") as held:
        coordinator.rotate_session("old", "new")
        held.data["after"] = 2
        held.record_message()
    coordinator = restart()
    with pytest.raises(SessionNotFoundError):
        coordinator.get_session("old")
    session = coordinator.switch_session("chat")
    assert (session.id, session.data, session.metadata.message_count) == ("new", {"before": 1, "after": 2}, 1)


def test_another_process_that_has_it_lets_go_of_it(pair: Pair, closings: tuple[Closings, Closings]) -> None:
    """There it is unknown by the old id, and found by the new one."""
    here, there = pair
    here.create_session(session_id="old", data={"a": 1})
    assert there.get_session("old").data == {"a": 1}
    here.rotate_session("old", "new")
    with pytest.raises(SessionNotFoundError):
        there.get_session("old")
    assert closings[1] == [("old", RemovalCause.PASSIVATED)]
    assert there.get_session("new").data == {"a": 1}
    with there.checkout("new"), pytest.raises(SessionBusyError):
        here.rotate_session("new", timeout=0)


def test_an_id_that_is_taken_in_the_store_is_refused(restart: Restart, store: WatchedStore) -> None:
    """By a session that is in memory here, or nowhere, or that ended and is not gone yet."""
    restart().create_session(session_id="stored")
    coordinator = restart(store=store)
    for session_id in ("old", "here", "ended"):
        coordinator.create_session(session_id=session_id)
    store.failing.add(DELETE)
    coordinator.close_session("ended")
    for taken in ("stored", "here", "ended", "old"):
        with pytest.raises(SessionExistsError) as caught:
            coordinator.rotate_session("old", taken)
        assert caught.value.session_id == taken
    assert coordinator.get_session("old").id == "old"
    store.failing.clear()


def test_a_rotation_that_fails_changes_nothing(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """The store says no: the session has its old id, and no other, here and there."""
    coordinator = session_coordinator(CONFIG, store=store)
    session = coordinator.create_session(session_id="old")
    store.failing.add(RENAME)
    with pytest.raises(StoreError):
        coordinator.rotate_session("old", "new")
    store.failing.clear()
    assert coordinator.get_session("old") is session
    with pytest.raises(SessionNotFoundError):
        coordinator.get_session("new")


def test_a_session_ended_elsewhere_cannot_be_rotated(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """Its record is gone while it is checked out here."""
    coordinator = session_coordinator(CONFIG, store=store)
    coordinator.create_session(session_id="old")
    with coordinator.checkout("old"):
        delete_record(store.store, "old")
        with pytest.raises(SessionNotFoundError):
            coordinator.rotate_session("old", "new")
    assert len(coordinator) == 0


def test_a_session_ended_elsewhere_at_the_last_moment(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """Its record goes when the rotation has checked it out already."""
    coordinator = session_coordinator(CONFIG, store=store)
    coordinator.create_session(session_id="old")
    store.before(RENAME, lambda: delete_record(store.store, "old"))
    with pytest.raises(SessionNotFoundError):
        coordinator.rotate_session("old", "new")
    assert "old" not in coordinator
    assert len(coordinator) == 0


def test_a_session_closed_while_it_is_rotated_stays_closed(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """Its record has the new id already, and it the old one: nothing of it is left in the store, by either id."""
    coordinator = session_coordinator(CONFIG, store=store)
    coordinator.create_session(session_id="old")
    store.after(RENAME, lambda: coordinator.close_session("old"))
    with pytest.raises(SessionExpiredError):
        coordinator.rotate_session("old", "new")
    assert store.store.page(None, 10) == []


def test_a_session_rotated_while_the_coordinator_closes_keeps_its_record(
    session_coordinator: CoordinatorFactory, store: WatchedStore, path: Path
) -> None:
    """By the old id, which is the one that its user has."""
    coordinator = session_coordinator(CONFIG, store=store)
    coordinator.create_session(session_id="old", data={"a": 1})
    store.after(RENAME, coordinator.close)
    with pytest.raises(CoordinatorClosedError):
        coordinator.rotate_session("old", "new")
    assert list(records_in(path)) == ["old"]


def test_a_caller_that_misses_the_record_while_it_is_renamed_waits(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """A look, and a restoration of all: neither takes the session for gone, or for another one."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, store=store, on_close=closings)
    session = coordinator.create_session(session_id="old")
    missed = threading.Event()

    with ThreadPoolExecutor(2) as pool:
        futures: list[Future[Any]] = []

        def ask_meanwhile() -> None:
            store.after(LOAD, missed.set)
            futures.append(pool.submit(coordinator.get_session, "old"))
            assert missed.wait(WAIT)
            futures.append(pool.submit(coordinator.restore_sessions))

        store.after(RENAME, ask_meanwhile)
        coordinator.rotate_session("old", "new")
        assert [future.result(WAIT) for future in futures] == [session, 0]
    assert coordinator.list_sessions() == [session]
    assert not closings


def test_activity_that_is_written_while_the_record_is_renamed_is_written_later(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """The batch had its old id: no message is lost, and the session is not taken for gone."""
    coordinator = session_coordinator(CONFIG, store=store)
    session = coordinator.create_session(session_id="old")
    session.record_message()

    def rotate() -> None:
        with in_thread(coordinator.rotate_session, "old", "new") as rotating:
            assert rotating.result(WAIT) is session

    store.before(TOUCH, rotate)
    coordinator.cleanup_inactive_sessions()
    assert coordinator.get_session("new") is session
    coordinator.cleanup_inactive_sessions()
    assert record_of(store, session).message_count == 1
