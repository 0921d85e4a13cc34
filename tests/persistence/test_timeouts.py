"""The life of one session in a store: what is written of another timeout, and what other instances go by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sessionkit import RemovalCause, SessionCoordinator, SessionExpiredError, StoreError
from sessionkit.testing import ManualClock

from ..helpers.processes import Maker, Pair, Restart
from ..helpers.support import (
    ATTACH,
    DELETE,
    GIVE_BACK,
    LEASE,
    RELEASE,
    SAVE,
    TOUCH,
    Closings,
    WatchedStore,
    record_of,
)

Write = Callable[[SessionCoordinator[Any], str], object]


def give_back(coordinator: SessionCoordinator[Any], session_id: str, timeout: float) -> None:
    """Set a timeout in a checkout."""
    with coordinator.checkout(session_id) as session:
        session.set_timeout(timeout)


# ---- What is written


def test_a_timeout_travels_with_what_is_written_anyway(restart: Restart, store: WatchedStore) -> None:
    """With the batch of touches, with a save, and when a checkout is given back: one call, as ever; then no more."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    writes: list[tuple[Callable[[], object], str]] = [
        (coordinator.cleanup_inactive_sessions, TOUCH),
        (lambda: coordinator.save_session(session.id), SAVE),
    ]
    for seconds, (write, operation) in enumerate(writes, 100):
        session.set_timeout(seconds)
        store.calls.clear()
        write()
        assert store.calls[operation] == 1
        assert record_of(store, session).session_timeout == seconds
        store.calls.clear()
        write()
        assert store.calls[operation] == 0
    store.calls.clear()
    with coordinator.checkout(session.id) as held:
        held.set_timeout(200)
    assert store.calls == {LEASE: 1, GIVE_BACK: 1}
    assert record_of(store, session).session_timeout == 200
    store.calls.clear()
    with coordinator.checkout(session.id) as held:
        held.set_timeout(200)
    assert store.calls == {LEASE: 1, RELEASE: 1}
    assert coordinator.stats().store.dirty == 1  # type: ignore[union-attr]  # there is a store


@pytest.mark.parametrize("timeout", [5, 1000])
def test_a_timeout_outlives_the_process(restart: Restart, session_clock: ManualClock, timeout: int) -> None:
    """Written when the coordinator closes, or when the session is passivated; the next process goes by it."""
    made = restart().create_session()
    made.set_timeout(timeout)
    coordinator = restart()
    session_clock.advance(timeout)
    assert coordinator.get_session(made.id).session_timeout == timeout
    session_clock.advance(0.001)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.get_session(made.id)
    assert (caught.value.cause, caught.value.limit) == (RemovalCause.IDLE, timeout)


def test_a_timeout_that_could_not_be_written_is_written_later(restart: Restart, store: WatchedStore) -> None:
    """A store failure loses nothing: the session goes by it, and the next write has it."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    for operation, write in (
        (TOUCH, coordinator.cleanup_inactive_sessions),
        (GIVE_BACK, lambda: give_back(coordinator, session.id, 200)),
    ):
        session.set_timeout(100)
        store.failing = {operation}
        with pytest.raises(StoreError):
            write()
        store.failing.clear()
        assert record_of(store, session).session_timeout == 60
    coordinator.cleanup_inactive_sessions()
    assert (session.session_timeout, record_of(store, session).session_timeout) == (200, 200)


def test_a_timeout_that_has_passed_ends_the_record_too(
    restart: Restart, store: WatchedStore, session_clock: ManualClock
) -> None:
    """At once for every caller, and the next cleanup deletes it, also if the timeout could not be written."""
    coordinator = restart(store=store)
    sessions = [coordinator.create_session() for _ in range(2)]
    session_clock.advance(30)
    for session in sessions:
        store.failing = {TOUCH} if session is sessions[1] else set()
        session.set_timeout(20)
        assert session.id not in coordinator
        with pytest.raises(SessionExpiredError):
            coordinator.get_session(session.id)
        assert store.load(session.id) is None
    store.failing.clear()
    assert coordinator.cleanup_inactive_sessions() == 0


@pytest.mark.parametrize("loads", [False, True])
def test_a_timeout_that_the_factory_sets(process: Maker, session_clock: ManualClock, loads: bool) -> None:
    """Of a session that is created, or loaded, which is no activity: it is written with the next batch."""
    here, there = process("here"), process("there")
    maker = there if loads else here
    maker.while_making = lambda session: session.set_timeout(100)
    session_id = here.sessions.create_session().id
    if loads:
        here.sessions.close()
    session_clock.advance(30)
    session = maker.sessions.get_session(session_id)
    assert (session.session_timeout, session.metadata.last_active) == (100, pytest.approx(0))
    maker.sessions.cleanup_inactive_sessions()
    record = record_of(there.store, session)
    assert (record.session_timeout, record.last_active) == (100, record.created_at)


def test_a_factory_sees_the_times_of_a_session_that_is_loaded(process: Maker, session_clock: ManualClock) -> None:
    """When it was created and active last, and when it ends; what the factory touches is active then."""
    here, there = process("here"), process("there")
    session = here.sessions.create_session()
    ends = session.expires_at
    here.sessions.close()
    session_clock.advance(30)
    seen = []

    def look(made: Any) -> None:
        seen.append((made.metadata.created_at, made.metadata.last_active, made.expires_at))
        made.touch()

    there.while_making = look
    assert there.sessions.get_session(session.id).metadata.last_active == 30
    assert seen == [(pytest.approx(0), pytest.approx(0), ends)]


# ---- What other instances go by


def test_another_process_goes_by_a_timeout_when_it_looks(pair: Pair, session_clock: ManualClock) -> None:
    """In memory there too, at rest: it gets the timeout with the record, longer or shorter, and cleans up by it."""
    here, there = pair
    session = here.create_session()
    copy = there.get_session(session.id)
    for timeout in (1000, 5, 100):
        give_back(here, session.id, timeout)
        assert there.get_session(session.id) is copy
        assert copy.session_timeout == timeout
    here.close()
    session_clock.advance(100)
    assert there.cleanup_inactive_sessions() == 0
    session_clock.advance(0.001)
    assert there.cleanup_inactive_sessions() == 1


@pytest.mark.parametrize("touches", [True, False])
def test_a_longer_timeout_is_kept_to_by_a_process_that_has_not_heard(
    pair: Pair, session_clock: ManualClock, touches: bool
) -> None:
    """It lets go of its own copy when that is due, and the record stays: also if nothing but the timeout was changed,
    and the process that did so is gone.
    """
    here, there = pair
    session = here.create_session("support")
    there.get_session(session.id)
    if touches:
        session_clock.advance(1)
        session.touch()
    session.set_timeout(1000)
    here.close()
    session_clock.advance(90)
    assert there.cleanup_inactive_sessions() == 0
    assert there.stats().removed[RemovalCause.PASSIVATED] == 1
    assert there.get_session(session.id).session_timeout == 1000


def test_a_longer_timeout_is_found_wherever_the_session_is_asked_for(pair: Pair, session_clock: ManualClock) -> None:
    """A process whose copy is due by what it knows finds that the session lives on."""
    here, there = pair
    calls: list[Callable[[str], Any]] = [
        lambda session_id: there.get_session(session_id),
        lambda session_id: there.touch_session(session_id),
        lambda session_id: give_back(there, session_id, 1000),
        lambda session_id: there.switch_session(session_id),
        lambda session_id: session_id in there,
    ]
    sessions = [here.create_session() for _ in calls]
    for session in sessions:
        there.get_session(session.id)
        session.set_timeout(1000)
    here.close()
    session_clock.advance(200)
    for session, call in zip(sessions, calls, strict=True):
        assert call(session.id) is not False
        assert there.get_session(session.id).session_timeout == 1000


@pytest.mark.parametrize("way", ["get_session", "checkout", "switch_session", "rotate_session", "in"])
def test_a_shorter_timeout_that_has_passed_ends_the_session_everywhere(
    pair: Pair, session_clock: ManualClock, closings: tuple[Closings, Closings], way: str
) -> None:
    """A process that has a copy, and had not heard, finds with a look that the session has expired: nothing revives
    it. A checkout allows for what others allow for, too: that this process may not have written its touches yet.
    """
    here, there = pair
    there.start_cleanup_task()
    session = here.create_session(session_timeout=10_000)
    there.get_session(session.id)
    give_back(here, session.id, 50)
    here.close()
    session_clock.advance(50 + 21)
    if way == "in":
        assert session.id not in there
    else:
        calls = {"checkout": lambda session_id: there.checkout(session_id).__enter__()}
        with pytest.raises(SessionExpiredError) as caught:
            calls.get(way, getattr(there, way))(session.id)
        assert (caught.value.cause, caught.value.limit) == (RemovalCause.IDLE, 50)
        assert caught.value.ended_at == pytest.approx(50)
    there.cleanup_inactive_sessions()
    assert closings[1] == [(session.id, RemovalCause.IDLE)]
    assert (len(there), there.stats().checked_out) == (0, 0)
    with pytest.raises(SessionExpiredError):
        there.get_session(session.id)
    there.stop_cleanup_task()


def test_a_shorter_timeout_and_a_store_that_cannot_delete(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore], session_clock: ManualClock
) -> None:
    """The session has expired, and its id does not load until the record is gone: nothing revives it."""
    here, there = pair
    there.start_cleanup_task()
    session = here.create_session(session_timeout=10_000)
    there.get_session(session.id)
    give_back(here, session.id, 50)
    here.close()
    session_clock.advance(100)
    stores[1].failing = {DELETE}
    for _ in range(2):
        with pytest.raises(SessionExpiredError):
            there.checkout(session.id).__enter__()
    stores[1].failing.clear()
    there.cleanup_inactive_sessions()
    assert stores[1].load(session.id) is None
    there.stop_cleanup_task()


def test_a_checkout_within_what_others_allow_for_goes_on(pair: Pair, session_clock: ManualClock) -> None:
    """A process that has not heard of a shorter timeout may have activity that it has not written."""
    here, there = pair
    there.start_cleanup_task()
    session = here.create_session(session_timeout=10_000)
    there.get_session(session.id)
    give_back(here, session.id, 50)
    here.close()
    session_clock.advance(60)
    with there.checkout(session.id) as held:
        assert held.session_timeout == 50
    session_clock.advance(50)
    assert there.get_session(session.id) is held
    there.stop_cleanup_task()


def test_a_timeout_set_here_is_kept_when_another_is_set_there(pair: Pair) -> None:
    """Until it is written: then it is the one that counts."""
    here, there = pair
    session = here.create_session()
    copy = there.get_session(session.id)
    session.set_timeout(100)
    give_back(there, session.id, 200)
    assert here.get_session(session.id).session_timeout == 100
    here.cleanup_inactive_sessions()
    assert there.get_session(session.id) is copy
    assert copy.session_timeout == 100


def test_a_sweep_goes_by_the_timeout_of_the_record(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore], session_clock: ManualClock
) -> None:
    """Of sessions that are in no memory any more, whichever process swept first."""
    here, there = pair
    short, long = (here.create_session(name) for name in ("short", "long"))
    short.set_timeout(5)
    long.set_timeout(1000)
    here.close()
    session_clock.advance(6)
    assert there.cleanup_inactive_sessions() == 1
    session_clock.advance(990)
    assert there.cleanup_inactive_sessions() == 0
    session_clock.advance(6)
    assert there.cleanup_inactive_sessions() == 1
    assert stores[1].calls[ATTACH] == 0
