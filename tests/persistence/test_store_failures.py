"""When the store fails: nothing is lost, nothing is revived, and what is in memory stays usable."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from sessionkit import (
    CoordinatorConfig,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExistsError,
    SessionExpiredError,
    SessionNotFoundError,
    SessionState,
    StoreError,
    StoreStats,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.processes import (
    CONFIG,
    OpenStore,
    config,
)
from ..helpers.support import (
    CREATE,
    DELETE,
    DELETE_IF_DUE,
    EVERYTHING,
    GIVE_BACK,
    LEAVE,
    LOAD,
    RELEASE,
    SAVE,
    SET_WRITE_INTERVAL,
    TOUCH,
    Closings,
    WatchedStore,
    delete_record,
    record_of,
    save_record,
    wait_until,
)


@pytest.fixture
def store(open_store: OpenStore) -> WatchedStore:
    """One that does not wait for long where the file is locked."""
    return open_store(timeout=0.01)


@pytest.fixture
def closings() -> Closings:
    return Closings()


@pytest.fixture
def coordinator(
    session_coordinator: CoordinatorFactory, store: WatchedStore, closings: Closings
) -> SessionCoordinator[Any]:
    return session_coordinator(CONFIG, store=store, on_close=closings)


def figures(coordinator: SessionCoordinator[Any]) -> StoreStats:
    stats = coordinator.stats().store
    assert stats is not None
    return stats


def test_a_creation_that_cannot_be_saved_leaves_nothing(
    coordinator: SessionCoordinator[Any], store: WatchedStore
) -> None:
    """It raises with the cause chained; name, id and place are free, and nothing was made for it."""
    store.failing = {CREATE}
    with pytest.raises(StoreError, match=f"no {CREATE} today") as caught:
        coordinator.create_session("support", session_id="s-1")
    assert isinstance(caught.value.__cause__, OSError)
    assert (len(coordinator), figures(coordinator).failures) == (0, 1)
    store.failing.clear()
    assert coordinator.create_session("support", session_id="s-1").id == "s-1"


def test_a_save_that_fails_raises_and_keeps_the_session_in_memory(
    coordinator: SessionCoordinator[Any], store: WatchedStore
) -> None:
    """A creation or a save that fails raises `StoreError`; the change stays in memory, and the next checkout that is
    given back saves it, unless another process has saved the session first. The session is free meanwhile.
    """
    session = coordinator.create_session()
    store.failing = {GIVE_BACK, CREATE}
    with pytest.raises(StoreError):
        coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["step"] = 1
    with pytest.raises(StoreError, match=f"no {GIVE_BACK} today"):
        checkout.__exit__()
    assert coordinator.get_session(session.id).data == {"step": 1}
    assert (coordinator.stats().checked_out, record_of(store, session).data) == (0, "{}")
    store.failing.clear()
    with coordinator.checkout(session.id, timeout=0):
        pass
    assert record_of(store, session).data == '{"step":1}'

    store.failing = {GIVE_BACK}
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["step"] = 2
    with pytest.raises(StoreError):
        checkout.__exit__()
    store.failing.clear()
    save_record(store.store, session.id, 2, '{"by":"another process"}')
    with coordinator.checkout(session.id) as held:
        assert held.data == {"by": "another process"}


def test_messages_that_could_not_be_written_are_counted_once(
    coordinator: SessionCoordinator[Any], store: WatchedStore
) -> None:
    """Whatever failed in between, by whichever way, the count and the state are right in the end."""
    session = coordinator.create_session()
    store.failing = {TOUCH, GIVE_BACK}
    session.record_message()
    session.set_state(SessionState.PROCESSING)
    with pytest.raises(StoreError):
        coordinator.cleanup_inactive_sessions()
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().record_message()
    with pytest.raises(StoreError):
        checkout.__exit__()
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["step"] = 1
    with pytest.raises(StoreError):
        checkout.__exit__()
    assert figures(coordinator).dirty == 1
    store.failing.clear()
    coordinator.cleanup_inactive_sessions()
    coordinator.cleanup_inactive_sessions()
    found = store.load(session.id)
    assert (found.record.message_count, found.record.state) == (2, "processing")


def test_a_session_in_memory_stays_usable(
    coordinator: SessionCoordinator[Any], store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store fails, sessions in memory can be looked at, touched and checked out, within their process."""
    session = coordinator.create_session("support")
    store.failing = {EVERYTHING}
    assert coordinator.get_session(session.id) is session
    coordinator.touch_session(session.id)
    assert coordinator.switch_session("support") is session
    assert session.id in coordinator
    with coordinator.checkout(session.id) as held:
        assert held is session
    assert "is used as it is in memory" in caplog.text
    assert "is checked out in this process only" in caplog.text
    assert figures(coordinator).failures > 3
    store.failing.clear()
    with coordinator.checkout(session.id, timeout=0):
        pass


def test_a_lease_that_cannot_be_given_back_is_told(
    session_coordinator: CoordinatorFactory,
    coordinator: SessionCoordinator[Any],
    store: WatchedStore,
    open_store: OpenStore,
) -> None:
    """The session is free in this process, and in the others after the next checkout, which saves what was changed;
    what was saved before stays saved.
    """
    session = coordinator.create_session()
    there = session_coordinator(CONFIG, store=open_store())
    store.failing = {GIVE_BACK, RELEASE}
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["step"] = 1
    coordinator.save_session(session.id)
    with pytest.raises(StoreError, match=f"no {RELEASE} today"):
        checkout.__exit__()
    assert record_of(store, session).data == '{"step":1}'
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["step"] = 2
    with pytest.raises(StoreError, match=f"no ({RELEASE}|{GIVE_BACK}) today"):
        checkout.__exit__()
    with pytest.raises(SessionBusyError):
        there.checkout(session.id, timeout=0).__enter__()
    store.failing.clear()
    with coordinator.checkout(session.id, timeout=0):
        pass
    with there.checkout(session.id, timeout=0) as held:
        assert held.data == {"step": 2}


def test_a_failed_load_raises(
    session_coordinator: CoordinatorFactory, open_store: OpenStore, store: WatchedStore
) -> None:
    """A failed load raises: never a new empty session, and never "it is not there". Nor does anything else succeed."""
    with closing(session_coordinator(CONFIG, store=open_store())) as former:
        session = former.create_session("support", data={"lang": "en"})
    coordinator = session_coordinator(CONFIG, store=store)
    store.failing = {EVERYTHING}
    calls: list[Callable[[], Any]] = [
        lambda: coordinator.get_session(session.id),
        lambda: coordinator.touch_session(session.id),
        lambda: coordinator.checkout(session.id).__enter__(),
        lambda: coordinator.switch_session("support"),
        lambda: coordinator.close_session(session.id),
        lambda: session.id in coordinator,
        coordinator.restore_sessions,
        lambda: coordinator.create_session("support"),
    ]
    for call in calls:
        with pytest.raises(StoreError):
            call()
    assert len(coordinator) == 0
    store.failing = {DELETE}
    with pytest.raises(StoreError):
        coordinator.close_session(session.id)
    store.failing.clear()
    assert coordinator.get_session(session.id).data == {"lang": "en"}


def test_a_restoration_that_fails_half_way_leaves_the_session_in_the_store(
    session_coordinator: CoordinatorFactory, open_store: OpenStore, store: WatchedStore
) -> None:
    """The factory raises, and then the store too: the error is the factory's, and nothing is in memory."""
    with closing(session_coordinator(CONFIG, store=open_store())) as former:
        session = former.create_session()

    def factory(_: Any) -> str:
        store.failing = {EVERYTHING}
        raise OSError("no agent today")

    coordinator = session_coordinator(CONFIG, store=store, resource_factory=factory)
    with pytest.raises(OSError, match="no agent today"):
        coordinator.get_session(session.id)
    store.failing.clear()
    assert len(coordinator) == 0
    assert session.id in coordinator


@pytest.mark.parametrize("cause", [RemovalCause.CLOSED, RemovalCause.IDLE, RemovalCause.CAPACITY])
def test_a_failed_delete_is_retried_and_its_id_refuses_to_load_meanwhile(
    session_coordinator: CoordinatorFactory,
    store: WatchedStore,
    session_clock: ManualClock,
    closings: Closings,
    cause: RemovalCause,
) -> None:
    """A failed delete is retried, and its id refuses to load meanwhile. What ended stays ended, for every caller."""
    settings = config(max_active_sessions=1, on_full="evict")
    coordinator = session_coordinator(settings, store=store, on_close=closings)
    session = coordinator.create_session("support")
    store.failing = {DELETE, DELETE_IF_DUE}
    match cause:
        case RemovalCause.CLOSED:
            coordinator.close_session(session.id)
        case RemovalCause.IDLE:
            session_clock.advance(61)
            with pytest.raises(StoreError, match="1 ended sessions could not be deleted"):
                coordinator.cleanup_inactive_sessions()
        case _:
            coordinator.create_session()
    assert closings == [("support", cause)]
    assert figures(coordinator).pending_deletes == 1
    assert store.load(session.id) is not None
    for call in (coordinator.get_session, coordinator.touch_session, coordinator.close_session):
        with pytest.raises(SessionExpiredError) as caught:
            call(session.id)
        assert caught.value.cause is cause
    assert session.id not in coordinator
    with pytest.raises(StoreError):
        coordinator.cleanup_inactive_sessions()
    store.failing.clear()
    coordinator.cleanup_inactive_sessions()
    assert store.load(session.id) is None
    assert figures(coordinator).pending_deletes == 0
    with pytest.raises(SessionExpiredError):
        coordinator.get_session(session.id)
    assert coordinator.stats().removed[cause] == 1


def test_a_creation_of_the_same_name_or_id_retries_the_delete(
    coordinator: SessionCoordinator[Any], store: WatchedStore
) -> None:
    """The record in the way is one that has ended: it is deleted now, or the creation raises what the store did."""
    for options in ({"name": "support"}, {"session_id": "s-1"}):
        session = coordinator.create_session(**options)  # type: ignore[arg-type]  # one or the other
        store.failing = {DELETE}
        coordinator.close_session(session.id)
        with pytest.raises(StoreError):
            coordinator.create_session(**options)  # type: ignore[arg-type]  # one or the other
        store.failing.clear()
        again = coordinator.create_session(**options)  # type: ignore[arg-type]  # one or the other
        assert (again.name, len(coordinator)) == (session.name, 1)
        coordinator.close_session(again.id)


@pytest.mark.parametrize("options", [{"name": "support"}, {"session_id": "s-1"}])
def test_a_creation_finalizes_the_expired_session_that_has_its_name_or_id(
    session_coordinator: CoordinatorFactory,
    store: WatchedStore,
    closings: Closings,
    session_clock: ManualClock,
    options: dict[str, str],
) -> None:
    """Also if a look found out before that it had expired: it does not wait for the next cleanup."""
    coordinator = session_coordinator(config(), store=store, on_close=closings)
    former = coordinator.create_session(**options)  # type: ignore[arg-type]  # one or the other
    session_clock.advance(61)
    assert former.id not in coordinator
    coordinator.create_session(**options)  # type: ignore[arg-type]  # one or the other
    assert closings == [(former.name or former.id, RemovalCause.IDLE)]
    assert coordinator.cleanup_inactive_sessions() == 0


def test_a_failed_passivation_keeps_the_session_in_memory(
    session_coordinator: CoordinatorFactory, store: WatchedStore, closings: Closings, session_clock: ManualClock
) -> None:
    """The creation that wanted its place raises; nothing is closed, and no session was touched by it."""
    settings = config(max_active_sessions=1, on_full="passivate")
    coordinator = session_coordinator(settings, store=store, on_close=closings)
    session = coordinator.create_session("first")
    session_clock.advance(5)
    session.touch()
    session_clock.advance(5)
    store.failing = {TOUCH}
    with pytest.raises(StoreError, match=f"no {TOUCH} today"):
        coordinator.create_session("second")
    assert closings == []
    assert coordinator.get_session(session.id) is session
    assert session.metadata.last_active == 5
    store.failing.clear()
    coordinator.create_session("second")
    assert closings == [("first", RemovalCause.PASSIVATED)]


def test_what_a_passivated_session_could_not_write_last_is_logged(
    session_coordinator: CoordinatorFactory, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """What its close callback puts into the data comes after the save that let it go."""

    def on_close(session: Any, cause: RemovalCause) -> None:
        if cause is RemovalCause.PASSIVATED:
            session.data["last"] = "words"
            store.failing = {SAVE}

    settings = config(max_active_sessions=1, on_full="passivate")
    coordinator = session_coordinator(settings, store=store, on_close=on_close)
    first = coordinator.create_session("first", data={"kept": True})
    coordinator.create_session("second")
    assert f"the last changes of session {first.id!r} are not in the store" in caplog.text
    assert coordinator.get_session(first.id).data == {"kept": True}


def test_touches_that_cannot_be_written_are_written_later(
    coordinator: SessionCoordinator[Any], store: WatchedStore, session_clock: ManualClock
) -> None:
    """A run that fails is counted and keeps what it could not write; a session that has left meanwhile is forgotten."""
    session, other = coordinator.create_session(), coordinator.create_session()
    session_clock.advance(5)
    session.touch()
    other.touch()
    store.failing = {TOUCH}
    for _ in range(2):
        with pytest.raises(StoreError):
            coordinator.cleanup_inactive_sessions()
    assert figures(coordinator).dirty == 2
    coordinator.close_session(other.id)
    assert figures(coordinator).dirty == 1
    store.failing.clear()
    coordinator.cleanup_inactive_sessions()
    assert figures(coordinator).dirty == 0
    assert store.load(session.id).record.last_active == session_clock.wall()


def test_expiry_goes_on_while_the_store_fails(
    coordinator: SessionCoordinator[Any], store: WatchedStore, session_clock: ManualClock, closings: Closings
) -> None:
    """Sessions expire for every caller, and their resources are closed, whatever the store does; once each."""
    sessions = [coordinator.create_session() for _ in range(3)]
    store.failing = {EVERYTHING}
    session_clock.advance(61)
    for session in sessions:
        with pytest.raises(StoreError):
            coordinator.cleanup_inactive_sessions()
        with pytest.raises(SessionExpiredError):
            coordinator.get_session(session.id)
    store.failing.clear()
    coordinator.cleanup_inactive_sessions()
    assert [cause for _, cause in closings] == [RemovalCause.IDLE] * 3
    assert store.page(None, 10) == []


def test_the_cleanup_task_goes_on_and_retries(
    session_coordinator: CoordinatorFactory, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed run is logged and counted, and the next one comes."""
    settings = CoordinatorConfig(session_timeout=60, cleanup_interval=0.01)
    with session_coordinator(settings, store=store) as coordinator:
        session = coordinator.create_session()
        store.failing = {EVERYTHING}
        session.touch()
        wait_until(lambda: coordinator.stats().cleanup.failures)
        store.failing.clear()
        wait_until(lambda: figures(coordinator).dirty == 0)
        cleanup = coordinator.stats().cleanup
        wait_until(lambda: coordinator.stats().cleanup.runs > cleanup.runs + 1)
        assert coordinator.stats().cleanup.failures == cleanup.failures
    assert "a cleanup run failed; the next one will come" in caplog.text


def test_close_ends_everything_and_then_says_what_was_not_written(
    session_coordinator: CoordinatorFactory, store: WatchedStore, closings: Closings, caplog: pytest.LogCaptureFixture
) -> None:
    """All resources are closed and channels too; the store is not asked again for each session once it has failed."""
    coordinator = session_coordinator(CONFIG, store=store, on_close=closings)
    sessions = [coordinator.create_session() for _ in range(5)]
    channel = coordinator.subscribe()
    for session in sessions[:3]:
        session.data["unsaved"] = True
    sessions[3].touch()
    store.calls.clear()
    store.failing = {EVERYTHING}
    with pytest.raises(StoreError, match="the last changes of 4 sessions could not be written") as caught:
        coordinator.close()
    assert isinstance(caught.value.__cause__, StoreError)
    assert len(closings) == 5
    assert channel.closed
    assert caplog.text.count("the last changes of session") == 4
    assert store.calls[SAVE] == 1
    assert figures(coordinator).failures > 0
    store.failing.clear()
    coordinator.close()


def test_close_says_that_it_could_not_leave_the_store(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """With nothing lost, the store's own error; closing again does nothing."""
    coordinator = session_coordinator(CONFIG, store=store)
    coordinator.create_session()
    store.failing = {LEAVE}
    with pytest.raises(StoreError, match=f"no {LEAVE} today"):
        coordinator.close()
    coordinator.close()


def test_close_names_how_many_were_lost(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """With only saves failing, it leaves the store all the same."""
    coordinator = session_coordinator(CONFIG, store=store)
    coordinator.create_session().data["unsaved"] = True
    store.failing = {SAVE}
    with pytest.raises(StoreError, match="the last changes of 1 sessions"):
        coordinator.close()
    assert store.calls[LEAVE] == 1


def test_the_cleanup_task_starts_and_stops_while_the_store_fails(
    coordinator: SessionCoordinator[Any], store: WatchedStore
) -> None:
    """It starts all the same; it stops only once others can be told that touches are not written any more."""
    coordinator.create_session()
    store.failing = {SET_WRITE_INTERVAL}
    coordinator.start_cleanup_task()
    with pytest.raises(StoreError, match=f"no {SET_WRITE_INTERVAL} today"):
        coordinator.stop_cleanup_task()
    assert coordinator.stats().cleanup.alive
    store.failing.clear()
    coordinator.stop_cleanup_task()
    assert not coordinator.stats().cleanup.alive


def test_sessions_expire_without_a_thread_and_with_a_failing_store(
    coordinator: SessionCoordinator[Any],
    store: WatchedStore,
    session_clock: ManualClock,
    closings: Closings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where no thread can be started, that is logged; no call but a cleanup fails because the store does."""
    session = coordinator.create_session("support")
    with patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
        coordinator.start_cleanup_task()
        assert not coordinator.stats().cleanup.alive
        assert "the cleanup thread could not be started" in caplog.text
        session_clock.advance(61)
        store.failing = {EVERYTHING}
        assert len(coordinator) == 0
        assert coordinator.list_sessions() == []
        with suppress(StoreError):
            coordinator.cleanup_inactive_sessions()
        assert closings == [("support", RemovalCause.IDLE)]
    store.failing.clear()
    coordinator.stop_cleanup_task()
    with pytest.raises(SessionExpiredError):
        coordinator.get_session(session.id)


def test_without_a_thread_expiry_holds_and_the_next_creation_tries_again(
    session_coordinator: CoordinatorFactory, store: WatchedStore, session_clock: ManualClock, closings: Closings
) -> None:
    """No caller cleans up meanwhile; when the next session is created, the cleanup task is started."""
    with session_coordinator(CONFIG, store=store, on_close=closings) as coordinator:
        coordinator.stop_cleanup_task()
        session = coordinator.create_session("support")
        with patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            coordinator.start_cleanup_task()
            session_clock.advance(61)
            for _ in range(2):
                assert len(coordinator) == 0
                assert session.name not in [live.name for live in coordinator.list_sessions()]
                session_clock.advance(11)
            assert closings == []
        assert not coordinator.stats().cleanup.alive
        coordinator.create_session("other")
        assert coordinator.stats().cleanup.alive


def test_locked_past_the_timeout(coordinator: SessionCoordinator[Any], store: WatchedStore, path: Path) -> None:
    """A real lock: what writes raises, what is in memory goes on, and nothing is lost once it is free."""
    session = coordinator.create_session(data={"step": 0})
    checkout = coordinator.checkout(session.id)
    held = checkout.__enter__()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            coordinator.create_session()
        held.data["step"] = 1
        with pytest.raises(StoreError, match="locked"):
            checkout.__exit__()
        assert coordinator.get_session(session.id).data == {"step": 1}
        with pytest.raises(StoreError, match="locked"):
            coordinator.cleanup_inactive_sessions()
    with coordinator.checkout(session.id):
        pass
    assert record_of(store, session).data == '{"step":1}'


def test_a_file_that_was_moved_and_brought_back(
    session_coordinator: CoordinatorFactory, coordinator: SessionCoordinator[Any], open_store: OpenStore, path: Path
) -> None:
    """Creations and saves raise; brought back, the file has all that was acknowledged, and takes what was not."""
    session = coordinator.create_session()
    away = path.with_name("away.db")
    path.rename(away)
    with pytest.raises(StoreError, match="deleted or moved"):
        coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["step"] = 1
    with pytest.raises(StoreError, match="deleted or moved"):
        checkout.__exit__()
    away.rename(path)
    with coordinator.checkout(session.id):
        pass
    coordinator.close()
    again = session_coordinator(CONFIG, store=open_store())
    assert again.get_session(session.id).data == {"step": 1}


def test_a_session_in_the_way_that_the_store_cannot_tell_of(
    session_coordinator: CoordinatorFactory, coordinator: SessionCoordinator[Any], store: WatchedStore
) -> None:
    """The session that has the name keeps it, also where the store cannot say whether it has ended."""
    coordinator.create_session("support")
    store.failing = {LOAD}
    with pytest.raises(SessionExistsError):
        coordinator.create_session("support")
    store.failing.clear()
    with pytest.raises(SessionExistsError):
        coordinator.create_session("support")


def test_an_expired_record_that_is_used_elsewhere_at_that_moment(
    session_coordinator: CoordinatorFactory, open_store: OpenStore, store: WatchedStore, session_clock: ManualClock
) -> None:
    """A creation that wants its name, and finds it expired, may lose the race: the name stays taken, or is free."""
    with closing(session_coordinator(CONFIG, store=open_store())) as former:
        former.create_session("support", session_id="s-1")
    # For which it has not expired yet.
    behind = session_coordinator(CONFIG, clock=ManualClock(wall_start=session_clock.wall()), store=open_store())
    session_clock.advance(61)
    coordinator = session_coordinator(CONFIG, store=store)
    store.before(DELETE_IF_DUE, lambda: behind.get_session("s-1"))
    with pytest.raises(SessionExistsError):
        coordinator.create_session("support")
    behind.close()
    store.before(LOAD, lambda: delete_record(store.store, "s-1"))
    assert coordinator.create_session("support").name == "support"


def test_a_session_deleted_elsewhere_just_before_it_is_closed_here(
    session_coordinator: CoordinatorFactory, open_store: OpenStore, store: WatchedStore
) -> None:
    """Closing what is in the store only tells that it was gone."""
    with closing(session_coordinator(CONFIG, store=open_store())) as former:
        session = former.create_session()
    coordinator = session_coordinator(CONFIG, store=store)
    store.before(DELETE, lambda: delete_record(store.store, session.id))
    with pytest.raises(SessionNotFoundError):
        coordinator.close_session(session.id)
