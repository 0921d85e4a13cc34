"""What comes back: after a restart, when a session is asked for, and after it was passivated."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from freezegun import freeze_time

from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    EventKind,
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
from sessionkit.stores import SessionRecord, SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import interruptions, until_it_waits
from ..helpers.processes import (
    CONFIG,
    OpenStore,
    Restart,
    config,
)
from ..helpers.support import (
    ATTACH,
    CREATE,
    LOAD,
    PAGE,
    TOUCH,
    WAIT,
    Closings,
    HookedClock,
    WatchedStore,
    all_at_once,
    delete_record,
    in_child,
    in_thread,
    record_of,
)


def interrupt() -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt


# ---- Restarts


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
    coordinator = restart(config(max_active_sessions=None))
    for number in range(120):
        coordinator.create_session(session_id=f"s-{number}", session_timeout=100 if number % 10 else 1)
    session_clock.advance(2)
    coordinator = restart()
    coordinator.get_session("s-1")
    assert coordinator.restore_sessions() == 107
    assert len(coordinator) == 108
    assert coordinator.restore_sessions() == 0


def test_restore_sessions_stops_when_there_is_no_room(restart: Restart) -> None:
    """Those that found no room come back when they are asked for."""
    coordinator = restart()
    for number in range(5):
        coordinator.create_session(session_id=f"s-{number}")
    coordinator = restart(config(max_active_sessions=3, on_full="passivate"))
    assert coordinator.restore_sessions() == 3
    assert {coordinator.get_session(f"s-{number}").id for number in range(5)} == {f"s-{n}" for n in range(5)}
    coordinator = restart(config(max_active_sessions=3))
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


def test_restore_sessions_with_sessions_that_end_meanwhile(restart: Restart, store: WatchedStore) -> None:
    """They are not counted; a store that fails is told of."""
    coordinator = restart()
    for number in range(3):
        coordinator.create_session(session_id=f"s-{number}")
    coordinator = restart(store=store)
    store.after(PAGE, lambda: delete_record(store.store, "s-1"))
    assert coordinator.restore_sessions() == 2
    coordinator = restart(store=store)
    store.failing = {ATTACH}
    with pytest.raises(StoreError):
        coordinator.restore_sessions()
    store.failing.clear()


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


def test_a_coordinator_with_a_store_that_is_dropped_is_collected(store: WatchedStore) -> None:
    """At once, without the garbage collector's help, and with the same warning as without a store."""
    coordinator: SessionCoordinator[Any] | None = SessionCoordinator(CONFIG, store=store)
    assert coordinator is not None
    coordinator.create_session()
    dropped = weakref.ref(coordinator)
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del coordinator
    assert dropped() is None


# ---- What is in the store and not in memory


def test_what_is_not_there_is_not_made_up(restart: Restart) -> None:
    """Whatever is asked of a session that never was raises; names and ids out of form are not looked for."""
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
        with pytest.raises(SessionNotFoundError):
            call("no/body")
    assert "nobody" not in coordinator
    assert 5 not in coordinator
    assert len(coordinator) == 0


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
    restart(config(max_lifetime=55)).create_session("second", session_timeout=1000)
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


def test_a_damaged_record_is_no_session(restart: Restart, store: WatchedStore) -> None:
    """Its data or its state cannot be read: StoreError names it, and it is left as it is."""
    instance = store.join(1.0, "other")
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


# ---- Time


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
    """Restored sessions have their place in the order of creation, before those that were created since."""
    settings = CoordinatorConfig(session_timeout=1000, cleanup_interval=10, max_lifetime=100)
    coordinator = restart(settings)
    old = [coordinator.create_session() for _ in range(2)]
    session_clock.advance(50)
    coordinator = restart(settings)
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


def test_a_clock_set_back_between_restarts_ages_no_session(path: Path) -> None:
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


def test_the_wall_clock_stepping_does_nothing_to_sessions_in_memory(path: Path) -> None:
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


def test_a_session_that_is_too_old_and_checked_out(restart: Restart, session_clock: ManualClock) -> None:
    """It is gone for every other caller, its name is free, and it ends once when it is given back."""
    closings = Closings()
    settings = CoordinatorConfig(session_timeout=1000, cleanup_interval=10, max_lifetime=100)
    coordinator = restart(settings, on_close=closings)
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


# ---- Factories and close callbacks


def test_one_restoration_for_all_threads_that_ask_at_once(restart: Restart) -> None:
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
    """It is not there yet, and no call waits for ever."""
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
    """It is gone, whatever the cause, and no call waits for ever."""
    seen: list[RemovalCause] = []

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        seen.append(cause)
        with pytest.raises(SessionNotFoundError):
            coordinator.get_session(session.id)

    settings = config(max_active_sessions=1, on_full="passivate")
    coordinator = restart(settings, on_close=on_close)
    coordinator.close_session(coordinator.create_session().id)
    first = coordinator.create_session()
    coordinator.create_session()
    session_clock.advance(61)
    with pytest.raises(SessionExpiredError):
        coordinator.get_session(first.id)
    assert coordinator.cleanup_inactive_sessions() == 2
    assert seen == [RemovalCause.CLOSED, RemovalCause.PASSIVATED, RemovalCause.IDLE]


def test_what_a_factory_does_with_a_restored_session_is_activity(restart: Restart, session_clock: ManualClock) -> None:
    """A message that it records buys a full timeout."""
    session = restart().create_session()
    here = restart(resource_factory=lambda restored: restored.record_message())
    session_clock.advance(50)
    assert here.get_session(session.id).metadata.last_active == 50
    session_clock.advance(50)
    assert session.id in here


def test_an_interrupted_restoration_leaves_no_trace(restart: Restart, store: WatchedStore) -> None:
    """Ctrl-C just after this instance was noted to have the session in memory: it has not, and the session expires."""
    session = restart().create_session()
    here = restart(store=store)
    store.after(ATTACH, interrupt)
    with pytest.raises(KeyboardInterrupt):
        here.get_session(session.id)
    found = store.store.load(session.id)
    assert found is not None
    assert found.lag == 0
    assert here.get_session(session.id).id == session.id


def test_a_restoration_interrupted_when_it_was_done(
    restart: Restart, session_coordinator: CoordinatorFactory, open_store: OpenStore, session_clock: HookedClock
) -> None:
    """Ctrl-C after the factory has run: the session is in memory, and no other process may remove it."""
    session = restart().create_session()
    here = restart(resource_factory=lambda _: session_clock.at_reading(1, interrupt))
    # Unless the clock is not read any more.
    with suppress(KeyboardInterrupt):
        here.get_session(session.id)
    assert len(here) == 1
    again = session_coordinator(CONFIG, store=open_store())
    session_clock.advance(1000)
    assert again.cleanup_inactive_sessions() == 0


# ---- Passivation


def test_passivation_bounds_memory_and_not_sessions(restart: Restart, session_clock: ManualClock) -> None:
    """The least recently active session moves out, its resource closed and its record kept, and comes back."""
    closings = Closings()
    settings = config(max_active_sessions=2, on_full="passivate")
    coordinator = restart(settings, on_close=closings, resource_factory=lambda session: f"agent of {session.name}")
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

    settings = config(max_active_sessions=1, on_full="passivate")
    coordinator = restart(settings, on_close=on_close, resource_factory=lambda _: ["hello"])
    first = coordinator.create_session("first")
    first.set_state(SessionState.PROCESSING)
    coordinator.create_session("second")
    session = coordinator.get_session(first.id)
    assert session.data == {"history": ["hello"]}
    assert session.state is SessionState.PROCESSING
    session.set_state(SessionState.WAITING_FOR_INPUT)
    coordinator = restart(settings)
    session = coordinator.get_session(first.id)
    assert session.state is SessionState.WAITING_FOR_INPUT
    assert coordinator.switch_session("second").data == {"history": ["hello"]}


def test_a_checked_out_session_is_never_passivated(restart: Restart) -> None:
    """With all of them checked out there is no room, and the error says so."""
    coordinator = restart(config(max_active_sessions=1, on_full="passivate"))
    first = coordinator.create_session()
    stored = restart(config(max_active_sessions=1, on_full="passivate"))
    second = stored.create_session()
    with stored.checkout(second.id):
        for call in (lambda: stored.get_session(first.id), stored.create_session):
            with pytest.raises(SessionLimitError, match="all are checked out"):
                call()
    assert stored.get_session(first.id).id == first.id


def test_a_session_used_while_it_is_passivated_stays(
    restart: Restart, store: WatchedStore, session_clock: ManualClock
) -> None:
    """A thread that touches it between the choice and its end keeps it in memory; another one goes."""
    coordinator = restart(config(max_active_sessions=2, on_full="passivate"), store=store)
    first, second = coordinator.create_session("first"), coordinator.create_session("second")
    first.touch()
    second.touch()

    def use() -> None:
        with in_thread(coordinator.switch_session, "first") as switching:
            switching.result(WAIT)

    store.before(TOUCH, use)
    session_clock.advance(1)
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


def test_a_refused_creation_passivates_no_session(restart: Restart) -> None:
    """That a name is taken is found out before a session has to move."""
    coordinator = restart(config(max_active_sessions=1, on_full="passivate"))
    first = coordinator.create_session("first")
    with pytest.raises(SessionExistsError):
        coordinator.create_session("first")
    assert coordinator.list_sessions() == [first]


def test_the_active_session_may_be_passivated(restart: Restart, session_clock: ManualClock) -> None:
    """Then none is active; switching to it again restores it."""
    coordinator = restart(config(max_active_sessions=2, on_full="passivate"))
    coordinator.create_session("first")
    coordinator.switch_session("first")
    session_clock.advance(1)
    coordinator.create_session("second")
    session_clock.advance(1)
    coordinator.create_session("third")
    assert coordinator.active_session is None
    assert coordinator.switch_session("first").name == "first"
    assert coordinator.active_session is not None
    assert coordinator.active_session.name == "first"


# ---- What comes in between


def test_a_caller_waits_for_another_thread_that_restores(restart: Restart) -> None:
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
        # As if it had waited for all of the time that it may.
        with patch.object(threading.Condition, "wait", lambda *_: False):
            with pytest.raises(SessionBusyError, match=r"on its way in or out of memory for \d+\.\d+ seconds"):
                coordinator.get_session(made.id)
        with in_thread(coordinator.get_session, made.id) as second:
            go_on.set()
            assert second.result(WAIT) is first.result(WAIT)


def test_a_caller_waits_for_another_thread_that_lets_a_session_go(restart: Restart, session_clock: ManualClock) -> None:
    """It is restored once it has left; whether it is passivated, or was due and is live elsewhere."""
    started, go_on = threading.Event(), threading.Event()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        started.set()
        assert go_on.wait(WAIT)

    settings = config(max_active_sessions=2, on_full="passivate")
    coordinator = restart(settings, on_close=on_close)
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


class Crossing:
    """A call in another thread that is begun in the middle of a call of this one, and waits for what comes of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.pool = ThreadPoolExecutor(1)

    def begin(self) -> None:
        ident = self.pool.submit(threading.get_ident).result(WAIT)
        self.future = self.pool.submit(self.call)
        until_it_waits(ident, self.future.done)

    def result(self) -> Any:
        with self.pool:
            return self.future.result(WAIT)


TAKEN: list[dict[str, str]] = [{"session_id": "it"}, {"name": "support", "session_id": "other"}]
"""What a session has that is like `it`, which is in the store as "support"."""


def data_in_a_checkout(coordinator: SessionCoordinator[Any]) -> dict[str, Any]:
    with coordinator.checkout("it") as session:
        return session.data


@pytest.mark.parametrize("taken", TAKEN, ids=["id", "name"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda coordinator: coordinator.get_session("it").data,
        lambda coordinator: coordinator.switch_session("it").data,
        data_in_a_checkout,
        lambda coordinator: coordinator.touch_session("it") or coordinator.get_session("it").data,
    ],
    ids=["get", "switch", "checkout", "touch"],
)
def test_a_creation_that_the_store_refuses_hides_no_session(
    ask: Any, taken: dict[str, str], restart: Restart, store: WatchedStore
) -> None:
    """A session in the store is found also while another thread tries to create one with its id, or its name."""
    restart().create_session("support", session_id="it", data={"lang": "en"})
    coordinator = restart(store=store)
    asking = Crossing(lambda: ask(coordinator))
    store.before(CREATE, asking.begin)
    with pytest.raises(SessionExistsError, match="a stored session has the"):
        coordinator.create_session(**taken)
    assert asking.result() == {"lang": "en"}
    assert [session.id for session in coordinator.list_sessions()] == ["it"]


@pytest.mark.parametrize("taken", TAKEN, ids=["id", "name"])
def test_a_creation_that_comes_while_a_session_is_loaded_is_refused(
    taken: dict[str, str], restart: Restart, store: WatchedStore
) -> None:
    """And the load goes on."""
    restart().create_session("support", session_id="it", data={"lang": "en"})
    coordinator = restart(store=store)
    creating = Crossing(lambda: coordinator.create_session(**taken))
    store.after(ATTACH, creating.begin)
    assert coordinator.get_session("it").data == {"lang": "en"}
    with pytest.raises(SessionExistsError):
        creating.result()
    assert [session.id for session in coordinator.list_sessions()] == ["it"]


def test_a_caller_that_comes_while_a_record_is_created_does_not_wait_for_the_resource(
    restart: Restart, store: WatchedStore
) -> None:
    """Once the record is made, the session is new, and not there before its resource is ready."""

    def factory(session: ManagedSession[Any]) -> str:
        with pytest.raises(SessionNotFoundError):
            asking.result()
        return "agent"

    coordinator = restart(store=store, resource_factory=factory)
    asking = Crossing(lambda: coordinator.get_session("it"))
    store.before(CREATE, asking.begin)
    assert coordinator.create_session(session_id="it").resource == "agent"


def test_a_factory_that_creates_its_own_session(restart: Restart) -> None:
    """The id is taken, by the session that is being loaded, and the load goes on."""
    restart().create_session(session_id="it", data={"lang": "en"})

    def factory(session: ManagedSession[Any]) -> str:
        with pytest.raises(SessionExistsError):
            coordinator.create_session(session_id="it")
        return "agent"

    coordinator = restart(resource_factory=factory)
    assert coordinator.get_session("it").data == {"lang": "en"}
    assert coordinator.get_session("it").resource == "agent"


@pytest.mark.parametrize("reading", [1, 2, 3])
@pytest.mark.parametrize("way", ["touch_session", "checkout"])
def test_a_session_passivated_before_it_is_used_is_restored_again(
    restart: Restart, session_clock: HookedClock, way: str, reading: int
) -> None:
    """At whichever reading of the clock it is passivated: the caller is too late, and gets it from the store."""
    coordinator = restart(config(max_active_sessions=1, on_full="passivate"))
    session = coordinator.create_session("first")
    came: list[int] = []

    def lose() -> None:
        came.append(reading)
        with suppress(SessionLimitError):
            # It has no room once the other one is checked out.
            coordinator.create_session("second")

    session_clock.at_reading(reading, lose)
    if way == "checkout":
        with coordinator.checkout(session.id) as held:
            assert held.name == "first"
    else:
        coordinator.touch_session(session.id)
    assert came or reading > 1
    session_clock.at_reading(0, lose)
    assert "first" in [live.name for live in coordinator.list_sessions()]


CALLS: dict[str, Callable[[SessionCoordinator[Any]], Any]] = {
    "get_session": lambda coordinator: coordinator.get_session("it"),
    "save_session": lambda coordinator: coordinator.save_session("it"),
    "switch_session": lambda coordinator: coordinator.switch_session("it"),
    "touch_session": lambda coordinator: coordinator.touch_session("it"),
    "in": lambda coordinator: "it" in coordinator,
}


@pytest.mark.parametrize("way", CALLS)
def test_a_session_passivated_at_whichever_moment_of_a_call(
    session_coordinator: CoordinatorFactory, store: WatchedStore, way: str
) -> None:
    """The call finds the session all the same, in memory or in the store."""
    coordinator = session_coordinator(config(max_active_sessions=1, on_full="passivate"), store=store)
    coordinator.create_session(session_id="it", data={"a": 1})

    def passivate() -> None:
        coordinator.create_session(session_id="other")
        coordinator.close_session("other")

    for once in interruptions():
        with once.between_calls(coordinator, passivate):
            result = CALLS[way](coordinator)
        assert result in (None, True) or (result.id, result.data) == ("it", {"a": 1})
        assert coordinator.get_session("it").data == {"a": 1}
    assert coordinator.stats().removed[RemovalCause.PASSIVATED] > 1


# Ctrl-C may come when a call has a connection in hand: it is dropped, Python closes it, and says so from 3.13 on.
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_what_a_close_callback_changes_is_saved_although_ctrl_c_came(
    restart: Restart, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At whichever moment of a passivation: each change is in the store once the coordinator is closed."""
    # What is logged would keep such a connection until another test.
    caplog.set_level("CRITICAL", logger="sessionkit")
    closings: list[RemovalCause] = []

    def close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        if session.id == "it":
            session.data["closings"] = len(closings) + 1
            closings.append(cause)

    restart().create_session(session_id="it")
    for once in interruptions():
        coordinator = restart(config(max_active_sessions=1, on_full="passivate"), on_close=close)
        coordinator.get_session("it")
        with suppress(KeyboardInterrupt), once.between_calls(coordinator, interrupt):
            coordinator.create_session()
        coordinator.close()
        with closing(SQLiteStore(path)) as store:
            found = store.load("it")
        assert found is not None
        assert json.loads(found.record.data) == {"closings": len(closings)}
    assert {RemovalCause.SHUTDOWN, RemovalCause.PASSIVATED} == set(closings)
    gc.collect()


def test_a_session_that_times_out_while_it_is_loaded_is_not_switched_to(
    restart: Restart, session_clock: ManualClock
) -> None:
    """Its factory took longer than that."""
    restart().create_session("support", session_id="it")
    coordinator = restart(resource_factory=lambda _: session_clock.advance(61))
    with pytest.raises(SessionExpiredError):
        coordinator.switch_session("it")
    assert coordinator.active_session is None


def test_a_session_that_is_closed_while_a_look_reads_its_record(restart: Restart, store: WatchedStore) -> None:
    """It has ended for the thread that looks, and is finalized once."""
    closings = Closings()
    coordinator = restart(store=store, on_close=closings)
    session = coordinator.create_session()

    def close() -> None:
        with in_thread(coordinator.close_session, session.id) as closing:
            closing.result(WAIT)

    store.before(LOAD, close)
    with pytest.raises(SessionNotFoundError):
        coordinator.get_session(session.id)
    assert closings == [(session.id, RemovalCause.CLOSED)]


@pytest.mark.parametrize("reading", [1, 2, 3])
def test_a_session_passivated_while_it_is_closed_is_closed(
    restart: Restart, session_clock: HookedClock, reading: int
) -> None:
    """It was in memory when the call began, and in the store only a moment later, at whichever reading of the clock."""
    here = restart(config(max_active_sessions=1, on_full="passivate"))
    session = here.create_session()
    session_clock.at_reading(reading, here.create_session)
    here.close_session(session.id)
    session_clock.at_reading(0, here.create_session)
    with pytest.raises(SessionExpiredError):
        here.get_session(session.id)


def test_a_look_that_was_late_turns_nothing_back(restart: Restart, store: WatchedStore) -> None:
    """A record that was read before another thread here saved a newer version is not taken over."""
    here = restart(store=store)
    session = here.create_session()

    def save() -> None:
        with here.checkout(session.id) as held:
            held.data["step"] = 1

    store.after(LOAD, save)
    assert here.get_session(session.id).data == {"step": 1}


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
