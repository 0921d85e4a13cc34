"""Reading a session of a store without having it: `read_session`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionExpiredError,
    SessionNotFoundError,
    SessionState,
    StoreError,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock

from ..helpers.processes import Maker, Pair, Restart, config
from ..helpers.support import (
    DELETE,
    DELETE_IF_DUE,
    LOAD,
    TOUCH,
    WAIT,
    Closings,
    WatchedStore,
    in_thread,
    record_of,
)


def statements(store: WatchedStore, call: Callable[[], object]) -> list[str]:
    """The SQL that a call runs."""
    assert isinstance(store.store, SQLiteStore)
    seen: list[str] = []
    # Its connections are asked themselves: no public call says what is run.
    database = store.store._database
    connections = list(database._idle)
    for connection in connections:
        connection.set_trace_callback(seen.append)
    call()
    for connection in connections:
        connection.set_trace_callback(None)
    return seen


@pytest.mark.parametrize("in_memory", [True, False])
def test_reading_is_one_read_of_the_store(restart: Restart, store: WatchedStore, in_memory: bool) -> None:
    """One SELECT, whether or not the session is in memory: no transaction, and nothing is written."""
    session = restart().create_session("support", data={"n": 1})
    coordinator = restart(store=store)
    if in_memory:
        coordinator.get_session(session.id)
    else:
        assert len(coordinator) == 0
        coordinator.cleanup_inactive_sessions()
    store.calls.clear()
    run = statements(store, lambda: coordinator.read_session(session.id))
    assert len(run) == 1
    assert run[0].lstrip().startswith("SELECT")
    assert store.calls == {LOAD: 1}
    assert len(coordinator) == in_memory


def test_a_snapshot_of_a_session_that_is_in_the_store_only(
    restart: Restart, store: WatchedStore, session_clock: ManualClock
) -> None:
    """All of it as it is stored; no factory is called, no limit is in the way, and it stays out of memory."""
    coordinator = restart()
    made = coordinator.create_session("support", data={"cart": [1]})
    session_clock.advance(5)
    made.record_message()
    made.set_state(SessionState.PROCESSING)
    ends = made.expires_at

    def never(_: Any) -> None:
        raise AssertionError("it is not brought in")

    coordinator = restart(config(max_active_sessions=1), store=store, resource_factory=never)
    for _ in range(2):
        session_clock.advance(7)
        snapshot = coordinator.read_session(made.id)
        assert snapshot[:4] == (made.id, "support", SessionState.PROCESSING, {"cart": [1]})
        assert snapshot.metadata == (pytest.approx(0, abs=1e-5), pytest.approx(5), 1)
        assert (snapshot.session_timeout, snapshot.expires_at) == (60, ends)
        snapshot.data["cart"].append(2)
    assert (len(coordinator), record_of(store, made).data) == (0, '{"cart":[1]}')
    session_clock.advance(46.001)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.read_session(made.id)
    assert (caught.value.cause, caught.value.limit) == (RemovalCause.IDLE, 60)


def test_a_snapshot_is_what_is_saved(pair: Pair) -> None:
    """Whichever process reads: not what the holder of a checkout has changed and not saved yet. Nobody waits."""
    here, there = pair
    session = here.create_session(data={"n": 0})
    with here.checkout(session.id) as held:
        held.data["n"] = 1
        for reader in pair:
            with in_thread(reader.read_session, session.id) as read:
                assert read.result(WAIT).data == {"n": 0}
        here.save_session(session.id)
        for reader in pair:
            assert reader.read_session(session.id).data == {"n": 1}
    assert there.stats().checked_out == len(there) == 0


def test_reading_is_no_activity(pair: Pair, session_clock: ManualClock) -> None:
    """However often it is read, by whichever process: its time runs out."""
    here, there = pair
    session = here.create_session()
    for _ in range(6):
        session_clock.advance(10)
        for reader in pair:
            assert reader.read_session(session.id).metadata.last_active == pytest.approx(0, abs=1e-5)
    here.close()
    session_clock.advance(0.001)
    with pytest.raises(SessionExpiredError):
        there.read_session(session.id)


def test_activity_that_is_not_written_yet_counts(pair: Pair, session_clock: ManualClock) -> None:
    """Touches, timeouts and checkouts of the process that reads; as to others, it allows for what they may have."""
    here, there = pair
    session = here.create_session()
    session_clock.advance(50)
    ends = session.expires_at
    session.touch()
    assert here.read_session(session.id).metadata.last_active == 50
    assert here.read_session(session.id).expires_at == ends + timedelta(seconds=50)
    session_clock.advance(50)
    assert here.read_session(session.id).metadata.last_active == 50
    assert there.read_session(session.id).metadata.last_active == pytest.approx(0, abs=1e-5)
    session.set_timeout(100)
    session_clock.advance(50)
    assert here.read_session(session.id).session_timeout == 100
    with here.checkout(session.id):
        session_clock.advance(1000)
        assert here.read_session(session.id).id == session.id
        assert there.read_session(session.id).id == session.id
    session.set_timeout(5)
    session_clock.advance(6)
    with pytest.raises(SessionExpiredError) as caught:
        here.read_session(session.id)
    assert (caught.value.cause, caught.value.limit) == (RemovalCause.IDLE, 5)


def test_a_session_whose_time_ran_out_here_and_that_is_used_elsewhere(pair: Pair, session_clock: ManualClock) -> None:
    """It is live, and is read; this process lets go of its own copy later."""
    here, there = pair
    session = here.create_session()
    there.get_session(session.id)
    session_clock.advance(50)
    with there.checkout(session.id) as held:
        held.data["by"] = "there"
    session_clock.advance(50)
    for _ in range(2):
        assert here.read_session(session.id).data == {"by": "there"}
    there.close()
    session_clock.advance(20)
    with pytest.raises(SessionExpiredError):
        here.read_session(session.id)


def test_reading_raises_as_a_look_does(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore], closings: tuple[Closings, Closings]
) -> None:
    """For what is not there, was ended here or elsewhere, or is to be deleted; and if the store cannot be read."""
    here, there = pair
    gone, closed, failing = (here.create_session(name) for name in ("gone", "closed", "failing"))
    with pytest.raises(SessionNotFoundError):
        here.read_session("nothing")
    there.close_session(gone.id)
    with pytest.raises(SessionNotFoundError):
        here.read_session(gone.id)
    here.close_session(closed.id)
    with pytest.raises(SessionExpiredError):
        here.read_session(closed.id)
    stores[0].failing = {LOAD}
    with pytest.raises(StoreError, match="no load today"):
        here.read_session(failing.id)
    stores[0].failing = {DELETE}
    here.close_session(failing.id)
    with pytest.raises(SessionExpiredError):
        here.read_session(failing.id)
    stores[0].failing.clear()
    assert closings[0] == [("closed", RemovalCause.CLOSED), ("failing", RemovalCause.CLOSED)]
    here.close()
    with pytest.raises(CoordinatorClosedError):
        here.read_session(failing.id)


def test_a_session_that_was_closed_and_is_still_checked_out(pair: Pair) -> None:
    """It has ended: it is not read, in either process."""
    here, _ = pair
    session = here.create_session()
    with here.checkout(session.id):
        here.close_session(session.id)
        for reader in pair:
            with pytest.raises(SessionNotFoundError):
                reader.read_session(session.id)


def test_a_session_that_expired_while_the_store_fails(
    restart: Restart, store: WatchedStore, session_clock: ManualClock
) -> None:
    """Though its record is there still, and its touches were never written: it does not come back by being read."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    session_clock.advance(50)
    session.touch()
    session_clock.advance(61)
    store.failing = {TOUCH, DELETE_IF_DUE}
    with pytest.raises(SessionExpiredError):
        coordinator.read_session(session.id)
    with pytest.raises(StoreError):
        coordinator.cleanup_inactive_sessions()
    with pytest.raises(SessionExpiredError):
        coordinator.read_session(session.id)
    store.failing.clear()


def test_a_session_that_is_given_another_id(pair: Pair) -> None:
    """It is read by that, and not by the old one, in any process."""
    here, there = pair
    session = here.create_session(session_id="old", data={"n": 1})
    here.rotate_session("old", "new")
    for reader in (here, there):
        assert reader.read_session("new").id == "new"
        with pytest.raises(SessionNotFoundError):
            reader.read_session("old")
    assert session.id == "new"


def test_with_affinity_a_session_elsewhere_is_read(process: Maker) -> None:
    """It stays where it is: only its resource lives there."""
    here, there = process("here", affinity=True), process("there", affinity=True)
    session = here.sessions.create_session(data={"n": 1})
    assert there.sessions.read_session(session.id).data == {"n": 1}
    assert (there.made, here.closed) == ([], [])
