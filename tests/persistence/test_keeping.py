"""Life with a store: what is written when, what comes back, and what a restart changes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from freezegun import freeze_time

from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    EventKind,
    InvalidSessionError,
    ManagedSession,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
    SessionState,
    StoreError,
)
from sessionkit.stores import SessionRecord, SQLiteStore, Store
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, Closings, WatchedStore, all_at_once, in_child, in_thread, lock_is_free

CONFIG = CoordinatorConfig(session_timeout=60, cleanup_interval=10)

Restart = Callable[..., SessionCoordinator[Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[WatchedStore]:
    store = WatchedStore(SQLiteStore(path))
    yield store
    # The coordinator may need it still: its fixture ends later.
    store.store._database.rest()  # type: ignore[attr-defined]  # it is a SQLiteStore


@pytest.fixture
def restart(session_coordinator: CoordinatorFactory, path: Path) -> Restart:
    """Close the last coordinator made by this, and make another one on the same file, as the next process would."""
    last: list[SessionCoordinator[Any]] = []

    def make(config: CoordinatorConfig = CONFIG, **options: Any) -> SessionCoordinator[Any]:
        if last:
            last.pop().close()
        last.append(session_coordinator(config, **{"store": SQLiteStore(path), **options}))
        return last[0]

    return make


def record_of(store: Any, session: ManagedSession[Any]) -> SessionRecord:
    found = store.load(session.id)
    assert found is not None
    record: SessionRecord = found.record
    return record


# ---- What is written when


def test_a_created_session_is_saved(restart: Restart, store: WatchedStore, session_clock: ManualClock) -> None:
    """When create_session returns, the record has all of the session."""
    session_clock.advance(100)
    coordinator = restart(CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_lifetime=500), store=store)
    session = coordinator.create_session("support", data={"lang": "en"}, session_timeout=timedelta(minutes=2))

    now = session_clock.wall()
    assert record_of(store, session) == SessionRecord(
        session.id, "support", '{"lang":"en"}', "active", now, now, 0, 120.0, 500.0, 1
    )


def test_a_checkout_saves_what_changed_and_nothing_else(restart: Restart, store: WatchedStore) -> None:
    """Nothing is written to the record when nothing changed; deep changes are noticed, messages and states too."""
    coordinator = restart(store=store)
    session = coordinator.create_session(data={"cart": {"items": [1]}})

    store.calls.clear()
    with coordinator.checkout(session.id):
        pass
    assert not store.calls.keys() & {"save", "give_back", "touch", "create"}

    with coordinator.checkout(session.id) as held:
        held.data["cart"]["items"].append(2)
    assert store.calls["give_back"] == 1
    assert record_of(store, session).data == '{"cart":{"items":[1,2]}}'

    with coordinator.checkout(session.id) as held:
        held.record_message()
        held.set_state(SessionState.PROCESSING)
    assert not store.calls["save"]
    record = record_of(store, session)
    assert (record.message_count, record.state, record.version) == (1, "processing", 2)


def test_a_checkout_saves_although_its_block_raises(restart: Restart, store: WatchedStore) -> None:
    """Memory and store say the same, and the block's exception is what the caller gets."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    with pytest.raises(ZeroDivisionError), coordinator.checkout(session.id) as held:
        _change_and_raise(held)
    assert record_of(store, session).data == '{"step":1}'


def _change_and_raise(session: ManagedSession[Any]) -> None:
    session.data["step"] = 1
    raise ZeroDivisionError


def test_inner_and_shared_checkouts_are_saved_when_the_last_is_given_back(
    restart: Restart, store: WatchedStore
) -> None:
    """While others in this process have the session, it is not saved and its lease not given back."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    store.calls.clear()
    with coordinator.checkout(session.id, exclusive=False) as held:
        with coordinator.checkout(session.id, exclusive=False):
            held.data["step"] = 1
        assert not store.calls.keys() & {"save", "give_back", "release"}
    assert (store.calls["save"], store.calls["give_back"], store.calls["release"]) == (0, 1, 0)


def test_touches_are_written_in_one_batch_per_cleanup_run_and_at_close(
    restart: Restart, store: WatchedStore, session_clock: ManualClock
) -> None:
    """A touch does no I/O at all, however it is made; the run writes all there were since the last one at once."""
    coordinator = restart(store=store)
    first, second = coordinator.create_session(), coordinator.create_session()
    session_clock.advance(5)
    store.calls.clear()
    coordinator.touch_session(first.id)
    first.touch()
    first.record_message()
    second.record_tool_execution()
    assert not store.calls
    assert coordinator.stats().store.dirty == 2  # type: ignore[union-attr]  # there is a store

    coordinator.cleanup_inactive_sessions()
    assert store.calls["touch"] == 1
    assert coordinator.stats().store.dirty == 0  # type: ignore[union-attr]  # there is a store
    assert {record_of(store, session).last_active for session in (first, second)} == {session_clock.wall()}
    assert record_of(store, first).message_count == 1
    coordinator.cleanup_inactive_sessions()
    assert store.calls["touch"] == 1

    session_clock.advance(5)
    second.touch()
    coordinator.close()
    assert record_of(store.store, second).last_active == session_clock.wall()


def test_many_touches_are_written_in_bounded_steps(restart: Restart, store: WatchedStore) -> None:
    """No step writes more than a hundred records, so that other processes are let in between."""
    coordinator = restart(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=None), store=store
    )
    for number in range(250):
        coordinator.create_session(session_id=f"s-{number}")
        coordinator.touch_session(f"s-{number}")
    store.calls.clear()
    coordinator.cleanup_inactive_sessions()
    assert store.calls["touch"] == 3


def test_a_session_timeout_of_seconds_makes_runs_more_frequent(restart: Restart, store: WatchedStore) -> None:
    """With a store, the cleanup task runs at least four times per session timeout, and promises to be half as quick."""
    with pytest.warns(UserWarning, match="cleanup_interval"):
        config = CoordinatorConfig(session_timeout=8, cleanup_interval=300)
    coordinator = restart(config, store=store)
    assert coordinator._cleanup_task._interval == 2.0
    with coordinator:
        session = coordinator.create_session()
        assert store.store.load(session.id).lag == 4.0  # type: ignore[union-attr]  # it was created
        coordinator.stop_cleanup_task()
        assert store.store.load(session.id).lag == float("inf")  # type: ignore[union-attr]  # it was created


def test_expiry_and_close_delete_the_record(restart: Restart, store: WatchedStore, session_clock: ManualClock) -> None:
    """Expired, too old, evicted or closed: its record is gone, and the name is free in the store too."""
    config = CoordinatorConfig(
        session_timeout=60, cleanup_interval=10, max_active_sessions=2, max_lifetime=100, on_full="evict"
    )
    coordinator = restart(config, store=store)
    closed = coordinator.create_session("name")
    coordinator.close_session(closed.id)
    evicted = coordinator.create_session("name")
    coordinator.create_session()
    session_clock.advance(1)
    coordinator.create_session(session_timeout=500)
    session_clock.advance(61)
    coordinator.cleanup_inactive_sessions()
    assert coordinator.stats().removed[RemovalCause.IDLE] == 1
    assert evicted.state is SessionState.CLOSED
    session_clock.advance(40)
    coordinator.cleanup_inactive_sessions()
    assert coordinator.stats().removed == {
        RemovalCause.IDLE: 1,
        RemovalCause.LIFETIME: 1,
        RemovalCause.CAPACITY: 1,
        RemovalCause.CLOSED: 1,
        RemovalCause.SHUTDOWN: 0,
        RemovalCause.PASSIVATED: 0,
    }
    assert store.page(None, 10) == []


def test_a_failed_creation_leaves_no_record(restart: Restart, store: WatchedStore) -> None:
    """When the factory raises, id and name are free, here and in the store."""

    def factory(session: ManagedSession[Any]) -> str:
        session.record_message()
        if session.data:
            raise OSError("no agent today")
        return "agent"

    coordinator = restart(store=store, resource_factory=factory)
    with pytest.raises(OSError, match="no agent"):
        coordinator.create_session("support", session_id="s-1", data={"fail": True})
    assert store.page(None, 10) == []
    session = coordinator.create_session("support", session_id="s-1")
    coordinator.cleanup_inactive_sessions()
    assert record_of(store, session).message_count == 1


def test_the_coordinator_closed_during_a_creation_leaves_no_record(restart: Restart, store: WatchedStore) -> None:
    """Nobody was given the session, so the next start has not got it either."""
    coordinator = restart(store=store, resource_factory=lambda _: coordinator.close())
    with pytest.raises(CoordinatorClosedError):
        coordinator.create_session("support")
    assert store.page(None, 10) == []


def test_the_store_is_called_with_the_lock_free(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """Every call of the store, through all of a session's life."""
    held: list[str] = []
    watched: list[SessionCoordinator[Any]] = []

    class Watching:
        def __getattr__(self, name: str) -> Any:
            if any(not lock_is_free(coordinator) for coordinator in watched):
                held.append(name)
            return getattr(store, name)

    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    coordinator = session_coordinator(config, store=Watching())
    watched.append(coordinator)
    first = coordinator.create_session("first")
    coordinator.create_session("second")
    with coordinator.checkout(first.id) as session:
        session.data["a"] = 1
    coordinator.switch_session("second")
    coordinator.touch_session(first.id)
    coordinator.cleanup_inactive_sessions()
    coordinator.close_session(first.id)
    coordinator.close()
    assert held == []
    assert len(store.calls) > 10


# ---- What comes back


def test_close_keeps_the_records_and_the_next_start_has_the_sessions(
    restart: Restart, session_clock: ManualClock
) -> None:
    """Data, name, state, counts and ages are as they were; the resource is made anew."""
    closings = Closings()
    options: dict[str, Any] = {
        "resource_factory": lambda session: f"agent for {session.data['lang']}",
        "on_close": closings,
    }
    coordinator = restart(**options)
    made = coordinator.create_session("support", data={"lang": "en"}, session_timeout=1000)
    session_clock.advance(3)
    with coordinator.checkout(made.id) as session:
        session.data["steps"] = [1, {"two": None}]
        session.record_message()
        session.set_state(SessionState.WAITING_FOR_INPUT)
    session_clock.advance(4)

    coordinator = restart(**options)
    assert closings == [("support", RemovalCause.SHUTDOWN)]
    assert len(coordinator) == 0
    session = coordinator.get_session(made.id)
    assert session is not made
    assert (session.name, session.data, session.resource) == (
        "support",
        {"lang": "en", "steps": [1, {"two": None}]},
        "agent for en",
    )
    assert session.state is SessionState.WAITING_FOR_INPUT
    assert session.metadata == pytest.approx((0.0, 3.0, 1), abs=1e-5)
    assert coordinator.get_session(made.id) is session
    assert coordinator.stats().store.restored == 1  # type: ignore[union-attr]  # there is a store
    assert coordinator.stats().created == 0
    session_clock.advance(996)
    assert made.id in coordinator
    session_clock.advance(1)
    assert made.id not in coordinator


@pytest.mark.parametrize("way", ["get_session", "checkout", "touch_session", "switch_session", "by name"])
def test_a_session_that_is_not_in_memory_is_restored(restart: Restart, session_clock: ManualClock, way: str) -> None:
    """Whichever way it is asked for, and an event tells of it."""
    made = restart().create_session("support")
    coordinator = restart()
    session_clock.advance(50)
    with coordinator.subscribe() as channel:
        assert made.id in coordinator
        assert len(coordinator) == 0
        match way:
            case "checkout":
                with coordinator.checkout(made.id) as session:
                    assert session.id == made.id
            case "by name":
                assert coordinator.switch_session("support").id == made.id
            case _:
                getattr(coordinator, way)(made.id)
        assert [session.id for session in coordinator.list_sessions()] == [made.id]
        event = channel.get(0)
        assert event is not None
        assert (event.kind, event.session_id) == (EventKind.RESTORED, made.id)
    session_clock.advance(11)
    assert (made.id in coordinator) is (way != "get_session")


def test_restore_sessions_brings_all_live_ones_back(restart: Restart, session_clock: ManualClock) -> None:
    """And says how many; expired ones do not come, nor does one that is here already count again."""
    coordinator = restart(CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=None))
    for number in range(230):
        coordinator.create_session(session_id=f"s-{number}", session_timeout=100 if number % 10 else 1)
    session_clock.advance(2)
    coordinator = restart()
    coordinator.get_session("s-1")
    assert coordinator.restore_sessions() == 206
    assert len(coordinator) == 207
    assert coordinator.restore_sessions() == 0


def test_restore_sessions_stops_when_there_is_no_room(restart: Restart) -> None:
    """Those that found no room come back when they are asked for."""
    coordinator = restart()
    for number in range(5):
        coordinator.create_session(session_id=f"s-{number}")
    coordinator = restart(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=3, on_full="passivate")
    )
    assert coordinator.restore_sessions() == 3
    assert {coordinator.get_session(f"s-{number}").id for number in range(5)} == {f"s-{n}" for n in range(5)}
    coordinator = restart(CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=3))
    assert coordinator.restore_sessions() == 3
    with pytest.raises(SessionLimitError):
        [coordinator.get_session(f"s-{number}") for number in range(5)]


def test_restore_sessions_passes_over_what_its_factory_refuses(
    restart: Restart, caplog: pytest.LogCaptureFixture
) -> None:
    """One broken session is logged and stays in the store; asked for, it raises what the factory raised."""
    coordinator = restart()
    for number in range(3):
        coordinator.create_session(session_id=f"s-{number}")

    def factory(session: ManagedSession[Any]) -> str:
        if session.id == "s-1":
            raise OSError("no agent today")
        return "agent"

    coordinator = restart(resource_factory=factory)
    assert coordinator.restore_sessions() == 2
    assert "session 's-1' could not be restored" in caplog.text
    with pytest.raises(OSError, match="no agent today"):
        coordinator.get_session("s-1")
    assert len(coordinator) == 2
    coordinator = restart()
    assert coordinator.get_session("s-1").id == "s-1"


def test_without_a_store_nothing_is_restored(session_coordinator: CoordinatorFactory) -> None:
    """restore_sessions() is 0, and raises after close() as everything does."""
    coordinator = session_coordinator()
    assert coordinator.restore_sessions() == 0
    assert coordinator.stats().store is None
    coordinator.close()
    with pytest.raises(CoordinatorClosedError):
        coordinator.restore_sessions()


def test_opening_costs_nothing_per_stored_session(restart: Restart, store: WatchedStore) -> None:
    """Making a coordinator, and starting it, asks the store for nothing."""
    restart().create_session()
    with restart(store=store) as coordinator:
        assert len(coordinator) == 0
        assert not store.calls


def test_what_is_not_there_is_not_made_up(restart: Restart) -> None:
    """Whatever is asked of a session that never was raises; names and ids out of form raise as without a store."""
    coordinator = restart()
    for call in (
        coordinator.get_session,
        coordinator.touch_session,
        coordinator.switch_session,
        coordinator.close_session,
        lambda session_id: coordinator.checkout(session_id).__enter__(),
    ):
        with pytest.raises(SessionNotFoundError):
            call("nobody")
        with pytest.raises(InvalidSessionError):
            call("no/body")
    assert "nobody" not in coordinator
    assert 5 not in coordinator
    assert len(coordinator) == 0


def test_a_closed_coordinator_restores_nothing(restart: Restart) -> None:
    """After close(), whatever is in the store, CoordinatorClosedError."""
    coordinator = restart()
    session = coordinator.create_session("support")
    coordinator.close()
    for call in (coordinator.get_session, coordinator.touch_session, coordinator.close_session):
        with pytest.raises(CoordinatorClosedError):
            call(session.id)
    with pytest.raises(CoordinatorClosedError):
        coordinator.switch_session("support")
    assert session.id not in coordinator


def test_a_stored_session_is_closed_without_being_restored(restart: Restart) -> None:
    """Nothing is made for it; its record goes, its name is free, and it is told and remembered."""
    made = restart().create_session("support")
    closings = Closings()
    coordinator = restart(resource_factory=lambda _: pytest.fail("nobody needs it"), on_close=closings)
    with coordinator.subscribe() as channel:
        coordinator.close_session(made.id)
        event = channel.get(0)
        assert event is not None
        assert (event.kind, event.session_id, event.cause) == (EventKind.REMOVED, made.id, RemovalCause.CLOSED)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.close_session(made.id)
    assert caught.value.cause is RemovalCause.CLOSED
    assert closings == []
    assert coordinator.stats().removed[RemovalCause.CLOSED] == 1
    with pytest.raises(SessionExpiredError):
        coordinator.switch_session("support")


def test_names_and_ids_are_unique_in_the_store(restart: Restart, session_clock: ManualClock) -> None:
    """A stored session that is not in memory has its name and its id; once expired, it makes way, and is counted."""
    restart().create_session("support", session_id="s-1")
    coordinator = restart()
    with pytest.raises(SessionExistsError, match="name 'support'") as caught:
        coordinator.create_session("support")
    assert caught.value.session_id == "s-1"
    with pytest.raises(SessionExistsError, match="id 's-1'"):
        coordinator.create_session(session_id="s-1")
    assert len(coordinator) == 0
    session_clock.advance(61)
    assert coordinator.create_session("support").name == "support"
    assert coordinator.create_session(session_id="s-1").id == "s-1"
    assert coordinator.stats().removed[RemovalCause.IDLE] == 1


def test_a_record_that_expired_in_the_store_is_removed_by_cleanup(restart: Restart, session_clock: ManualClock) -> None:
    """Nothing has to be in memory for that: it is counted, told to channels and remembered; a dry run only counts."""
    first = restart().create_session("first", session_timeout=50)
    restart(CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_lifetime=55)).create_session(
        "second", session_timeout=1000
    )
    coordinator = restart()
    session_clock.advance(56)
    with coordinator.subscribe() as channel:
        with pytest.raises(SessionExpiredError) as caught:
            coordinator.get_session(first.id)
        assert (caught.value.cause, caught.value.limit) == (RemovalCause.IDLE, 50)
        assert caught.value.ended_at == pytest.approx(50)
        with pytest.raises(SessionExpiredError):
            coordinator.close_session(first.id)
        assert first.id not in coordinator
        assert coordinator.cleanup_inactive_sessions(dry_run=True) == 2
        assert coordinator.cleanup_inactive_sessions() == 2
        events = [channel.get(0), channel.get(0)]
        assert {event.cause for event in events if event} == {RemovalCause.IDLE, RemovalCause.LIFETIME}
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.get_session(first.id)
    assert coordinator.cleanup_inactive_sessions() == 0


def test_cleanup_by_age_reaches_into_the_store(restart: Restart, session_clock: ManualClock) -> None:
    """What has been idle for more than max_age is removed there too."""
    restart().create_session("stored")
    session_clock.advance(5)
    coordinator = restart()
    coordinator.create_session("here")
    session_clock.advance(5)
    assert coordinator.cleanup_inactive_sessions(max_age=7, dry_run=True) == 1
    assert coordinator.cleanup_inactive_sessions(max_age=7) == 1
    assert coordinator.cleanup_inactive_sessions(max_age=3) == 1


def test_a_session_timed_out_while_no_process_ran(restart: Restart, session_clock: ManualClock) -> None:
    """Idle time goes on across a restart in wall time."""
    made = restart().create_session()
    coordinator = restart()
    session_clock.advance(60)
    assert coordinator.get_session(made.id).metadata.last_active == pytest.approx(0.0, abs=1e-5)
    made = coordinator.create_session()
    coordinator = restart()
    session_clock.advance(60.01)
    with pytest.raises(SessionExpiredError):
        coordinator.get_session(made.id)


def test_lifetime_goes_on_across_a_restart(restart: Restart, session_clock: ManualClock) -> None:
    """Those who were restored stand in their place in the order of creation, whoever was created since."""
    config = CoordinatorConfig(session_timeout=1000, cleanup_interval=10, max_lifetime=100)
    coordinator = restart(config)
    old = [coordinator.create_session() for _ in range(2)]
    session_clock.advance(50)
    coordinator = restart(config)
    young = coordinator.create_session()
    for session in old:
        coordinator.touch_session(session.id)
    coordinator.close_session(old[0].id)
    session_clock.advance(50.5)
    assert coordinator.cleanup_inactive_sessions() == 1
    assert coordinator.list_sessions() == [young]
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.get_session(old[1].id)
    assert caught.value.cause is RemovalCause.LIFETIME
    session_clock.advance(50)
    assert coordinator.cleanup_inactive_sessions() == 1


def test_a_clock_set_back_between_restarts_ages_nobody(path: Path) -> None:
    """The session that seems to come from the future has its full timeout, and its last activity never moves back."""
    late = ManualClock(wall_start=2_000_000.0)
    with SessionCoordinator[Any](CONFIG, clock=late, store=SQLiteStore(path)) as coordinator:
        session = coordinator.create_session()
    early = ManualClock(start=5.0, wall_start=1_000_000.0)
    store = SQLiteStore(path)
    with SessionCoordinator[Any](CONFIG, clock=early, store=store) as coordinator:
        assert coordinator.get_session(session.id).metadata == (5.0, 5.0, 0)
        early.advance(60)
        coordinator.touch_session(session.id)
        coordinator.cleanup_inactive_sessions()
        assert record_of(store, session).last_active == 2_000_000.0
        early.advance(60.1)
        assert session.id not in coordinator


def test_a_clock_set_forward_between_restarts_ages_by_as_much(path: Path) -> None:
    """Wall time is all that a record can go by."""
    early = ManualClock(wall_start=1_000_000.0)
    with SessionCoordinator[Any](CONFIG, clock=early, store=SQLiteStore(path)) as coordinator:
        session = coordinator.create_session()
    late = ManualClock(wall_start=1_000_000.0 + 61)
    with SessionCoordinator[Any](CONFIG, clock=late, store=SQLiteStore(path)) as coordinator:
        assert session.id not in coordinator


def test_the_wall_clock_stepping_does_nothing_to_who_is_in_memory(path: Path) -> None:
    """In one process, time is monotonic, whatever happens to the wall clock."""
    clock, wall = ManualClock(), [1_000_000.0]
    clock.wall = lambda: wall[0]  # type: ignore[method-assign]  # a clock of its own
    with SessionCoordinator[Any](CONFIG, clock=clock, store=SQLiteStore(path)) as coordinator:
        session = coordinator.create_session()
        for step in (10_000.0, -20_000.0):
            wall[0] += step
            clock.advance(50)
            assert coordinator.cleanup_inactive_sessions() == 0
            coordinator.touch_session(session.id)
            coordinator.cleanup_inactive_sessions()
        clock.advance(61)
        assert coordinator.cleanup_inactive_sessions() == 1


def test_freezegun_sets_the_wall_clock_too(path: Path) -> None:
    """With frozen time, idle time goes on across a restart as it does in earnest."""
    with freeze_time("2026-01-01") as frozen:
        with SessionCoordinator[Any](store=SQLiteStore(path)) as coordinator:
            session = coordinator.create_session()
        frozen.tick(3600)
        with SessionCoordinator[Any](store=SQLiteStore(path)) as coordinator:
            assert session.id in coordinator
            frozen.tick(0.001)
            assert session.id not in coordinator


def test_one_restoration_for_all_who_ask_at_once(restart: Restart) -> None:
    """However many threads ask, the factory runs once, and all get the same session."""
    made = restart().create_session()
    calls: list[str] = []

    def factory(session: ManagedSession[Any]) -> str:
        calls.append(session.id)
        return "agent"

    coordinator = restart(resource_factory=factory)
    found = all_at_once(*[lambda: coordinator.get_session(made.id)] * 8)
    assert len(set(found)) == 1
    assert calls == [made.id]


def test_a_factory_that_asks_for_its_own_session(restart: Restart) -> None:
    """It is not there yet, and nobody waits for ever."""
    made = restart().create_session()

    def factory(session: ManagedSession[Any]) -> str:
        with pytest.raises(SessionNotFoundError):
            coordinator.get_session(session.id)
        assert session.id not in coordinator
        return "agent"

    coordinator = restart(resource_factory=factory)
    assert coordinator.get_session(made.id).resource == "agent"
    assert coordinator.create_session().resource == "agent"


def test_a_close_callback_that_asks_for_its_own_session(restart: Restart, session_clock: ManualClock) -> None:
    """It is gone, whatever the cause, and nobody waits for ever."""
    seen: list[RemovalCause] = []

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        seen.append(cause)
        with pytest.raises(SessionNotFoundError):
            coordinator.get_session(session.id)

    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    coordinator = restart(config, on_close=on_close)
    coordinator.close_session(coordinator.create_session().id)
    first = coordinator.create_session()
    coordinator.create_session()
    session_clock.advance(61)
    with pytest.raises(SessionExpiredError):
        coordinator.get_session(first.id)
    assert coordinator.cleanup_inactive_sessions() == 2
    assert seen == [RemovalCause.CLOSED, RemovalCause.PASSIVATED, RemovalCause.IDLE]


# ---- Passivation


def test_passivation_bounds_memory_and_not_sessions(restart: Restart, session_clock: ManualClock) -> None:
    """The least recently active session moves out, its resource closed and its record kept, and comes back."""
    closings = Closings()
    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=2, on_full="passivate")
    coordinator = restart(config, on_close=closings, resource_factory=lambda session: f"agent of {session.name}")
    ids = {}
    for name in "abcd":
        session_clock.advance(1)
        session = coordinator.create_session(name)
        ids[name] = session.id
        with coordinator.checkout(session.id) as held:
            held.data["name"] = name
    assert closings == [("a", RemovalCause.PASSIVATED), ("b", RemovalCause.PASSIVATED)]
    assert len(coordinator) == 2
    assert all(session_id in coordinator for session_id in ids.values())
    session = coordinator.get_session(ids["a"])
    assert (session.data, session.resource) == ({"name": "a"}, "agent of a")
    assert session.metadata.last_active == pytest.approx(1.0, abs=1e-5)
    assert closings[2:] == [("c", RemovalCause.PASSIVATED)]
    assert coordinator.stats().removed[RemovalCause.PASSIVATED] == 3
    assert coordinator.stats().removed[RemovalCause.CAPACITY] == 0


def test_what_a_close_callback_writes_is_passivated_too(restart: Restart) -> None:
    """The callback may put the resource's state into the data; the last state set is kept as well."""

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        session.data["history"] = session.resource

    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    coordinator = restart(config, on_close=on_close, resource_factory=lambda _: ["hello"])
    first = coordinator.create_session("first")
    first.set_state(SessionState.PROCESSING)
    coordinator.create_session("second")
    session = coordinator.get_session(first.id)
    assert session.data == {"history": ["hello"]}
    assert session.state is SessionState.PROCESSING
    session.set_state(SessionState.WAITING_FOR_INPUT)
    coordinator = restart(config)
    session = coordinator.get_session(first.id)
    assert session.state is SessionState.WAITING_FOR_INPUT
    assert coordinator.switch_session("second").data == {"history": ["hello"]}


def test_a_checked_out_session_is_never_passivated(restart: Restart) -> None:
    """With all of them checked out there is no room, and the error says so."""
    coordinator = restart(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    )
    first = coordinator.create_session()
    stored = restart(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    )
    second = stored.create_session()
    with stored.checkout(second.id):
        for call in (lambda: stored.get_session(first.id), stored.create_session):
            with pytest.raises(SessionLimitError, match="all are checked out"):
                call()
    assert stored.get_session(first.id).id == first.id


def test_a_session_used_while_it_is_passivated_stays(restart: Restart, store: WatchedStore) -> None:
    """Whoever touches it between the choice and its end keeps it in memory; another one goes."""
    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=2, on_full="passivate")
    coordinator = restart(config, store=store)
    first, second = coordinator.create_session("first"), coordinator.create_session("second")
    first.touch()
    second.touch()
    original = store.store.touch

    def touch_late(touches: Any) -> set[str]:
        store.store.touch = original  # type: ignore[method-assign]  # once only
        with in_thread(coordinator.switch_session, "first") as future:
            future.result(WAIT)
        return original(touches)

    store.store.touch = touch_late  # type: ignore[method-assign]  # comes in between
    clock = coordinator._clock.read
    clock.advance(1)  # type: ignore[attr-defined]  # a manual clock
    coordinator.create_session("third")
    assert {session.name for session in coordinator.list_sessions()} == {"first", "third"}
    assert second.id in coordinator
    assert first.id in coordinator


def test_passivation_needs_a_store() -> None:
    """Without one, the coordinator is refused, and told what to do."""
    with pytest.raises(ValueError, match="pass store="):
        SessionCoordinator(CoordinatorConfig(on_full="passivate"))
    with pytest.raises(TypeError, match=r"SQLiteStore\('sessions.db'\)"):
        SessionCoordinator(store="sessions.db")  # type: ignore[arg-type]  # what people try


def test_a_refused_creation_passivates_nobody(restart: Restart) -> None:
    """A name that is taken is found out before anybody has to move."""
    coordinator = restart(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    )
    first = coordinator.create_session("first")
    with pytest.raises(SessionExistsError):
        coordinator.create_session("first")
    assert coordinator.list_sessions() == [first]


def test_the_active_session_may_be_passivated(restart: Restart, session_clock: ManualClock) -> None:
    """Its place is taken as when it ends; switching to it again restores it."""
    coordinator = restart(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=2, on_full="passivate")
    )
    coordinator.create_session("first")
    coordinator.switch_session("first")
    session_clock.advance(1)
    second = coordinator.create_session("second")
    session_clock.advance(1)
    coordinator.create_session("third")
    assert coordinator.active_session is second
    assert coordinator.switch_session("first").name == "first"
    assert coordinator.active_session is not None
    assert coordinator.active_session.name == "first"


# ---- Data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"b": [1, {2: 3}]}}, r"data\['a'\]\['b'\]\[1\] .* the key 2 is of type int"),
        ({"a": [1.0, float("nan")]}, r"data\['a'\]\[1\] .* nan is a number that JSON does not have"),
        ({"when": timedelta(1)}, r"data\['when'\] .* is of type timedelta, and JSON has only dict"),
        ({"text": "\ud800"}, r"data\['text'\] .* half of a surrogate pair"),
        ({"\ud800": 1}, "the key .* half of a surrogate pair"),
        ({"large": "x" * 90, "small": 1}, r"takes 112 bytes .* max_data_bytes is 100 .*part is data\['large'\]"),
        ({"euros": "\u20ac" * 40}, "takes 132 bytes"),
    ],
)
def test_data_that_cannot_be_stored_is_refused(restart: Restart, data: dict[str, Any], message: str) -> None:
    """At creation, and when a checkout is given back; the error names the path, and the session stays usable."""
    coordinator = restart(CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_data_bytes=100))
    with pytest.raises(InvalidSessionError, match=message):
        coordinator.create_session("support", data=data)
    session = coordinator.create_session("support")
    with pytest.raises(InvalidSessionError, match=message), coordinator.checkout(session.id) as held:
        held.data.update(data)
    with coordinator.checkout(session.id) as held:
        assert held.data == data or data != data
        held.data.clear()
        held.data["fine"] = True
    assert restart().get_session(session.id).data == {"fine": True}


def test_data_that_contains_itself_is_refused(restart: Restart) -> None:
    """Also what is nested too deep for Python's own recursion."""
    coordinator = restart()
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(InvalidSessionError, match=r"data\['a'\]\[0\].* contains itself, or is nested too deep"):
            coordinator.create_session(data={"a": value})
    with pytest.raises(InvalidSessionError, match="limit"):
        coordinator.create_session(data={"a": 10**5000})


def test_a_tuple_comes_back_as_a_list(restart: Restart) -> None:
    """JSON has no tuples; what else JSON can say comes back as it was."""
    data = {"tuple": (1, (2,)), "text": "\u20ac\n\x00", "number": 1e300, "big": 10**100, "none": None, "": {}}
    made = restart().create_session(data=data)
    assert restart().get_session(made.id).data == {**data, "tuple": [1, [2]]}


def test_data_that_was_refused_does_not_keep_its_session_in_memory(
    restart: Restart, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever gave it back was told; when the session leaves memory, the last good data is what is kept."""
    coordinator = restart(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    )
    first = coordinator.create_session(data={"good": 1})
    with pytest.raises(InvalidSessionError), coordinator.checkout(first.id) as held:
        held.data["bad"] = {1}
    coordinator.create_session()
    assert f"the last changes of session {first.id!r} are not in the store" in caplog.text
    assert coordinator.get_session(first.id).data == {"good": 1}


# ---- Forks


def test_a_forked_child_restores_from_the_same_store(restart: Restart) -> None:
    """It begins with no sessions in memory, and finds and changes its parent's; nothing of the parent's is closed."""
    closings = Closings()
    coordinator = restart(on_close=closings)
    session = coordinator.create_session()

    def child() -> Any:
        assert len(coordinator) == 0
        with coordinator.checkout(session.id) as held:
            held.data["by"] = "child"
        coordinator.close()
        return closings

    with coordinator.checkout(session.id):
        pass
    assert in_child(child) == [(session.id, RemovalCause.SHUTDOWN)]
    assert closings == []
    with coordinator.checkout(session.id) as held:
        assert held is session
        assert held.data == {"by": "child"}


def test_a_fork_in_a_factory_leaves_the_record_to_the_parent(restart: Restart) -> None:
    """In the child nothing is created, and nothing is deleted."""
    outcome: list[Any] = []

    def factory(session: ManagedSession[Any]) -> str:
        def child() -> Any:
            coordinator.close()
            return "left alone"

        outcome.append(in_child(child))
        return "agent"

    coordinator = restart(resource_factory=factory)
    session = coordinator.create_session("support")
    assert outcome == ["left alone"]
    coordinator = restart()
    assert coordinator.get_session(session.id).name == "support"
    assert isinstance(coordinator, SessionCoordinator)


def _typed(store: SQLiteStore) -> Store:
    # What mypy checks here: the embedded store is a store.
    return store


def test_a_damaged_record_is_no_session(restart: Restart, path: Path) -> None:
    """Its data or its state cannot be read: StoreError names it, and it is left as it is."""
    store = SQLiteStore(path)
    instance = _typed(store).join(1.0, "other")
    good = SessionRecord("no-json", None, "{", "active", 0.0, 0.0, 0, 1e12, None)
    store.create(good, instance)
    store.create(good._replace(id="no-object", data="[]"), instance)
    store.create(good._replace(id="no-state", data="{}", state="asleep"), instance)
    store.leave(instance)
    coordinator = restart()
    for session_id in ("no-json", "no-object", "no-state"):
        with pytest.raises(StoreError, match=f"{session_id}.* is damaged"):
            coordinator.get_session(session_id)
    assert len(store.page(None, 10)) == 3
    store.close()


# ---- What comes in between


def test_who_asks_while_another_thread_restores_waits_for_it(restart: Restart) -> None:
    """And gets the session that the other one made; a factory that takes too long is told of."""
    made = restart().create_session()
    started, go_on = threading.Event(), threading.Event()

    def factory(session: ManagedSession[Any]) -> str:
        started.set()
        assert go_on.wait(WAIT)
        return "agent"

    coordinator = restart(resource_factory=factory)
    with in_thread(coordinator.get_session, made.id) as first:
        assert started.wait(WAIT)
        with patch("sessionkit.persistence.archive.MOVE_SECONDS", 0.01):
            with pytest.raises(SessionBusyError, match=r"on its way in or out of memory for 0\.01 seconds"):
                coordinator.get_session(made.id)
        with in_thread(coordinator.get_session, made.id) as second:
            go_on.set()
            assert second.result(WAIT) is first.result(WAIT)


def test_who_asks_while_another_thread_lets_a_session_go_waits_for_it(
    restart: Restart, session_clock: ManualClock
) -> None:
    """It is restored once it has left; whether it is passivated, or was due and is live elsewhere."""
    started, go_on = threading.Event(), threading.Event()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        started.set()
        assert go_on.wait(WAIT)

    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=2, on_full="passivate")
    coordinator = restart(config, on_close=on_close)
    first = coordinator.create_session("first")
    session_clock.advance(1)
    coordinator.create_session("other")
    with in_thread(coordinator.create_session, "second") as creating:
        assert started.wait(WAIT)
        with in_thread(lambda: first.id in coordinator) as looking:
            assert looking.result(WAIT) is True
        with in_thread(coordinator.get_session, first.id) as asking:
            go_on.set()
            assert asking.result(WAIT).name == "first"
            assert creating.result(WAIT).name == "second"


@pytest.mark.parametrize("way", ["touch_session", "checkout"])
def test_a_session_passivated_between_the_look_and_the_use_is_restored_again(restart: Restart, way: str) -> None:
    """Whoever was given it from memory, and is too late, gets it from the store."""
    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    coordinator = restart(config)
    session = coordinator.create_session("first")
    archive = coordinator._archive
    assert archive is not None
    bring = archive.bring

    def bring_and_lose(session_id: str) -> ManagedSession[Any]:
        archive.bring = bring  # type: ignore[method-assign]  # once only
        found = bring(session_id)
        coordinator.create_session("second")
        return found

    archive.bring = bring_and_lose  # type: ignore[method-assign]  # comes in between
    if way == "checkout":
        with coordinator.checkout(session.id) as held:
            assert held.name == "first"
    else:
        coordinator.touch_session(session.id)
    assert [live.name for live in coordinator.list_sessions()] == ["first"]


def test_a_session_that_is_too_old_and_checked_out(restart: Restart, session_clock: ManualClock) -> None:
    """It is gone for everybody else, its name is free, and it ends once when it is given back."""
    closings = Closings()
    config = CoordinatorConfig(session_timeout=1000, cleanup_interval=10, max_lifetime=100)
    coordinator = restart(config, on_close=closings)
    session = coordinator.create_session("support")
    with coordinator.checkout(session.id):
        session_clock.advance(101)
        assert session.id not in coordinator
        with in_thread(coordinator.get_session, session.id) as asking:
            assert isinstance(asking.exception(WAIT), SessionExpiredError)
        other = coordinator.create_session("support")
        assert other.id in coordinator
        with pytest.raises(SessionExistsError):
            coordinator.create_session(session_id=session.id)
    assert closings == [("support", RemovalCause.LIFETIME)]
    assert coordinator.stats().removed[RemovalCause.LIFETIME] == 1


def test_a_session_closed_while_it_is_checked_out_does_not_come_back(restart: Restart, path: Path) -> None:
    """Its record is gone when close_session returns, though somebody holds it still, and may die doing so."""
    coordinator = restart()
    session = coordinator.create_session()
    store = SQLiteStore(path)
    with coordinator.checkout(session.id) as held:
        coordinator.close_session(session.id)
        assert store.load(session.id) is None
        held.data["late"] = True
    assert store.page(None, 10) == []
    assert coordinator.stats().removed[RemovalCause.CLOSED] == 1
    store.close()


def test_a_checkout_that_is_collected_in_the_middle_of_a_decision(restart: Restart, path: Path) -> None:
    """A generator that holds it, for instance: it is saved and given back in a thread of its own."""
    coordinator = restart()
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["step"] = 1
    with coordinator._lock:
        checkout.__exit__()
    for thread in threading.enumerate():
        if thread.name == "sessionkit-deferred":
            thread.join(WAIT)
    assert restart().get_session(session.id).data == {"step": 1}


def test_a_forked_child_gives_nothing_back_of_its_parents(restart: Restart, path: Path) -> None:
    """Leaving the parent's with block there saves nothing, and ends no lease."""
    coordinator = restart()
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    held = checkout.__enter__()
    session.touch()

    def child() -> bool:
        held.data["by"] = "child"
        checkout.__exit__()
        store = SQLiteStore(path)
        try:
            found = store.load(session.id)
            return found is not None and found.lag == float("inf") and found.record.data == "{}"
        finally:
            store.close()

    assert in_child(child)
    held.data["by"] = "parent"
    checkout.__exit__()
    assert restart().get_session(session.id).data == {"by": "parent"}


def test_what_is_done_for_a_session_that_has_left_meanwhile(restart: Restart, store: WatchedStore) -> None:
    """Its last activity, or a newer version, may come up when it is gone: nothing is written, nothing fails."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    records, archive = coordinator._records, coordinator._archive
    assert records is not None
    assert archive is not None
    record = record_of(store, session)
    coordinator.close_session(session.id)
    store.calls.clear()
    records.write(session)
    assert records.write_touches([session]) == []
    archive.standing.catch_up(session, record)
    archive.standing.end_here(session)
    assert store.calls == {"touch": 1}
    assert records.part_with([session]) == []


def test_restore_sessions_with_sessions_that_end_meanwhile(restart: Restart, store: WatchedStore) -> None:
    """They are not counted; a store that fails is told of."""
    coordinator = restart()
    for number in range(3):
        coordinator.create_session(session_id=f"s-{number}")
    coordinator = restart(store=store)
    page = store.store.page

    def page_and_lose(*arguments: Any) -> Any:
        records = page(*arguments)
        store.delete({"s-1": None})
        return records

    store.store.page = page_and_lose  # type: ignore[method-assign]  # comes in between
    assert coordinator.restore_sessions() == 2
    coordinator = restart(store=store)
    store.failing = {"attach"}
    with pytest.raises(StoreError):
        coordinator.restore_sessions()
    store.failing.clear()


def test_a_delete_that_failed_and_was_done_by_another_process(restart: Restart, store: WatchedStore) -> None:
    """There is nothing left to do, and nothing to complain of."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    store.failing = {"delete"}
    coordinator.close_session(session.id)
    store.store.delete({session.id: None})
    store.failing.clear()
    assert coordinator.cleanup_inactive_sessions() == 0
    assert coordinator.stats().store.pending_deletes == 0  # type: ignore[union-attr]  # there is a store


def test_a_coordinator_with_a_store_that_is_dropped_is_collected(path: Path) -> None:
    """At once, without the garbage collector's help, and with the same warning as without a store."""
    store = SQLiteStore(path)
    coordinator: SessionCoordinator[Any] | None = SessionCoordinator(CONFIG, store=store)
    assert coordinator is not None
    coordinator.create_session()
    dropped = weakref.ref(coordinator)
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del coordinator
    assert dropped() is None
    store.close()


def test_saving_in_the_middle_of_a_checkout(session_coordinator: CoordinatorFactory, tmp_path: Path) -> None:
    """What changed so far is in the store when `save_session` returns; without a change nothing is written."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10), store=store)
    session = coordinator.create_session(data={"step": 0})
    with coordinator.checkout(session.id) as held:
        held.data["step"] = 1
        coordinator.save_session(session.id)
        found = store.store.load(session.id)
        assert found is not None
        assert (found.record.data, found.record.version) == ('{"step":1}', 2)
        coordinator.save_session(session.id)
    assert store.calls["save"] == 1
    store.store.delete({session.id: None})
    checkout = coordinator.checkout(coordinator.create_session().id)
    held = checkout.__enter__()
    store.store.delete({held.id: None})
    held.data["lost"] = True
    for call in (lambda: coordinator.save_session(held.id), checkout.__exit__):
        with pytest.raises(SessionNotFoundError):
            call()


def test_a_session_that_is_closed_while_somebody_looks_for_its_record(
    session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """It has ended for whoever looks, and is finalized once."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    closings = Closings()
    coordinator = session_coordinator(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10), store=store, on_close=closings
    )
    session = coordinator.create_session()
    load = store.store.load

    def load_late(*arguments: Any) -> Any:
        with in_thread(coordinator.close_session, session.id) as future:
            assert future.exception(WAIT) is None
        return load(*arguments)

    with patch.object(store.store, "load", load_late), pytest.raises(SessionNotFoundError):
        coordinator.get_session(session.id)
    assert closings == [(session.id, RemovalCause.CLOSED)]


def test_saving_without_a_store_only_looks(session_coordinator: CoordinatorFactory) -> None:
    """There is nothing to write; a session that is not there is not found."""
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10))
    assert coordinator.store is None
    coordinator.save_session(coordinator.create_session().id)
    with pytest.raises(SessionNotFoundError):
        coordinator.save_session("nobody")


def test_nothing_is_written_of_a_session_that_has_left(session_coordinator: CoordinatorFactory, tmp_path: Path) -> None:
    """Whoever was about to write it came too late: its record is gone, or somebody else's."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10), store=store)
    session = coordinator.create_session()
    coordinator.close_session(session.id)
    session.data["late"] = True
    assert coordinator._records is not None
    coordinator._records.write(session)
    assert not {"save", "touch"} & set(store.calls)


def test_messages_of_a_session_that_ended_elsewhere_have_nowhere_to_go(
    session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """Whoever recorded them and gives it back is told, though its data did not change."""
    store = SQLiteStore(tmp_path / "sessions.db")
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10), store=store)
    checkout = coordinator.checkout(coordinator.create_session().id)
    held = checkout.__enter__()
    held.record_message()
    store.delete({held.id: None})
    with pytest.raises(SessionNotFoundError):
        checkout.__exit__()
    assert len(coordinator) == 0
