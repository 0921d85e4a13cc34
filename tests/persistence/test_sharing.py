"""One store, several coordinators: what each sees of what the others do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from sessionkit import (
    EventKind,
    RemovalCause,
    SessionCoordinator,
    SessionExistsError,
    SessionExpiredError,
    SessionNotFoundError,
    SessionState,
    StoreError,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.processes import (
    CONFIG,
    OpenStore,
    Pair,
    Restart,
    config,
    processes,
)
from ..helpers.support import (
    DELETE_IF_DUE,
    DETACH,
    LEASE,
    WAIT,
    Closings,
    HookedClock,
    WatchedStore,
)

# ---- Seeing what others did


def test_a_checkout_sees_the_newest_version(pair: Pair) -> None:
    """Data, state and message count are those that were saved last, wherever that was; the dict is the same one."""
    here, there = pair
    session = here.create_session(data={"step": 0})
    data = session.data
    with there.checkout(session.id) as other:
        other.data.update(step=1, by="there")
        other.record_message()
        other.set_state(SessionState.PROCESSING)
    with here.checkout(session.id) as held:
        assert held is session
        assert held.data is data == {"step": 1, "by": "there"}
        assert (held.metadata.message_count, held.state) == (1, SessionState.PROCESSING)
        del held.data["by"]
        held.record_message()
    assert there.get_session(session.id).data == {"step": 1}
    assert there.get_session(session.id).metadata.message_count == 2


def test_messages_counted_by_several_add_up(pair: Pair) -> None:
    """Also outside of checkouts, where each writes its own with the next batch."""
    here, there = pair
    session = here.create_session()
    other = there.get_session(session.id)
    for _ in range(3):
        session.record_message()
        other.record_message()
    here.cleanup_inactive_sessions()
    there.cleanup_inactive_sessions()
    assert here.get_session(session.id).metadata.message_count == 6
    assert there.get_session(session.id).metadata.message_count == 6


def test_a_look_changes_nothing_under_a_checkout(pair: Pair, stores: tuple[WatchedStore, WatchedStore]) -> None:
    """While a checkout here works on the data, what others saved, because it has no lease, is not put into it."""
    here, there = pair
    session = here.create_session()
    stores[0].failing = {LEASE}
    with here.checkout(session.id):
        stores[0].failing.clear()
        with there.checkout(session.id) as other:
            other.data["by"] = "there"
        assert here.get_session(session.id).data == {}
    assert here.get_session(session.id).data == {"by": "there"}


@pytest.mark.parametrize("way", ["get_session", "checkout", "switch_session", "in", "close_session", "by name"])
def test_a_session_ended_elsewhere_is_not_found_here(pair: Pair, closings: tuple[Closings, Closings], way: str) -> None:
    """Though it is in memory still; it leaves that, so that its resource is closed."""
    here, there = pair
    session = here.create_session("support")
    there.close_session(session.id)
    if way == "in":
        assert session.id not in here
    elif way == "close_session":
        here.close_session(session.id)
        assert closings[0] == [("support", RemovalCause.CLOSED)]
        return
    else:
        calls: dict[str, Callable[[], Any]] = {
            "checkout": lambda: here.checkout(session.id).__enter__(),
            "by name": lambda: here.switch_session("support"),
        }
        with pytest.raises(SessionNotFoundError):
            calls.get(way, lambda: getattr(here, way)(session.id))()
    assert closings[0] == [("support", RemovalCause.PASSIVATED)]
    assert (len(here), here.stats().checked_out) == (0, 0)


def test_a_touch_of_a_session_ended_elsewhere_is_noticed_with_the_next_batch(
    pair: Pair, closings: tuple[Closings, Closings]
) -> None:
    """The touch itself does no I/O; it brings nothing back."""
    here, there = pair
    session = here.create_session("support")
    there.close_session(session.id)
    here.touch_session(session.id)
    here.cleanup_inactive_sessions()
    assert closings[0] == [("support", RemovalCause.PASSIVATED)]
    with pytest.raises(SessionNotFoundError):
        there.get_session(session.id)


def test_a_session_ended_elsewhere_while_it_is_checked_out(pair: Pair, closings: tuple[Closings, Closings]) -> None:
    """The holder is told when it gives back what it changed; nothing is brought back."""
    here, there = pair
    session = here.create_session("support")
    checkout = here.checkout(session.id)
    checkout.__enter__().data["late"] = True
    there.close_session(session.id)
    with pytest.raises(SessionNotFoundError):
        checkout.__exit__()
    assert closings[0] == [("support", RemovalCause.PASSIVATED)]
    with here.checkout(here.create_session("support").id) as held:
        there.close_session(held.id)
        with pytest.raises(SessionNotFoundError):
            here.get_session(held.id)
        assert closings[0] == [("support", RemovalCause.PASSIVATED)]
    assert len(closings[0]) == 2
    assert len(here) == 0


def test_closing_one_coordinator_leaves_the_other_its_sessions(pair: Pair) -> None:
    """The records stay; and events tell each of what it did itself."""
    here, there = pair
    session = here.create_session()
    there.get_session(session.id)
    with there.subscribe() as channel:
        here.close()
        assert there.get_session(session.id).id == session.id
        there.close_session(session.id)
        event = channel.get(0)
        assert event is not None
        assert event.kind is EventKind.REMOVED


# ---- Names


def test_names_are_unique_across_processes(pair: Pair) -> None:
    """A name that was freed elsewhere is free here, though a session here has it in memory still."""
    here, there = pair
    old = here.create_session("support")
    with pytest.raises(SessionExistsError):
        there.create_session("support")
    there.close_session(old.id)
    new = there.create_session("support")
    with pytest.raises(SessionExistsError):
        here.create_session("support")
    assert here.switch_session("support").id == new.id
    assert [session.id for session in here.list_sessions()] == [new.id]
    with here.checkout(new.id):
        with pytest.raises(SessionExistsError):
            here.create_session("support")


def test_a_restored_name_that_an_ended_session_has_here(pair: Pair) -> None:
    """The one here makes way, because it was ended elsewhere; asked for by id too."""
    here, there = pair
    old = here.create_session("support")
    there.close_session(old.id)
    new = there.create_session("support")
    assert here.get_session(new.id).name == "support"
    assert [session.id for session in here.list_sessions()] == [new.id]


def test_a_name_here_that_the_store_cannot_tell_of(pair: Pair, stores: tuple[WatchedStore, WatchedStore]) -> None:
    """The session that has the name in memory keeps it while the store fails to say that it ended: the other one is
    not restored.
    """
    here, there = pair
    old = here.create_session("support")
    there.close_session(old.id)
    new = there.create_session("support")
    stores[0].unreadable = {old.id}
    with pytest.raises(SessionExistsError):
        here.get_session(new.id)
    stores[0].unreadable.clear()
    assert here.get_session(new.id).name == "support"


# ---- Expiry and eviction


def test_a_session_active_elsewhere_survives_a_cleanup_here(
    pair: Pair, closings: tuple[Closings, Closings], session_clock: ManualClock
) -> None:
    """It only leaves memory here; what the other has not written yet makes no difference."""
    here, there = pair
    session = here.create_session("support")
    other = there.get_session(session.id)
    session_clock.advance(50)
    other.touch()
    session_clock.advance(20)
    assert here.cleanup_inactive_sessions() == 0
    assert closings[0] == [("support", RemovalCause.PASSIVATED)]
    assert session.id in there
    assert here.get_session(session.id).name == "support"
    session_clock.advance(40.1)
    assert there.cleanup_inactive_sessions() + here.cleanup_inactive_sessions() <= 1


def test_a_session_that_was_active_elsewhere_is_found_here_when_its_time_ran_out_here(
    pair: Pair, session_clock: ManualClock
) -> None:
    """Whichever way it is asked for: it was idle in this process only."""
    here, there = pair
    sessions = [here.create_session() for _ in range(3)]
    for session in sessions:
        there.get_session(session.id)
    session_clock.advance(50)
    for session in sessions:
        there.touch_session(session.id)
    there.cleanup_inactive_sessions()
    session_clock.advance(20)
    assert sessions[0].id in here
    assert here.get_session(sessions[0].id).metadata.last_active >= 50
    here.touch_session(sessions[1].id)
    here.close_session(sessions[2].id)
    with pytest.raises(SessionNotFoundError):
        there.get_session(sessions[2].id)


def test_an_expired_session_is_finalized_by_one(
    pair: Pair, closings: tuple[Closings, Closings], session_clock: ManualClock
) -> None:
    """In memory of two: one removes it as idle, and for the other it only leaves memory."""
    here, there = pair
    session = here.create_session("support")
    there.get_session(session.id)
    session_clock.advance(61)
    assert here.cleanup_inactive_sessions() + there.cleanup_inactive_sessions() == 1
    causes = [cause for _, cause in closings[0] + closings[1]]
    assert sorted(cause.name for cause in causes) == ["IDLE", "PASSIVATED"]
    for coordinator in pair:
        with pytest.raises(SessionNotFoundError):
            coordinator.get_session(session.id)


def test_a_session_that_seemed_expired_and_lives_on_is_not_called_expired(
    pair: Pair, session_clock: ManualClock
) -> None:
    """What ends elsewhere later is not found here; it is not said to have been idle here."""
    here, there = pair
    session = here.create_session()
    there.get_session(session.id)
    session_clock.advance(50)
    there.touch_session(session.id)
    session_clock.advance(20)
    here.cleanup_inactive_sessions()
    there.close_session(session.id)
    with pytest.raises(SessionNotFoundError) as caught:
        here.get_session(session.id)
    assert not isinstance(caught.value, SessionExpiredError)


def test_a_cleanup_with_its_clock_ahead_removes_nothing_that_is_in_memory_elsewhere(
    session_coordinator: CoordinatorFactory, open_store: OpenStore
) -> None:
    """A cleanup removes no session that is in memory of another living process. Wrong clocks make no difference."""
    here = session_coordinator(CONFIG, store=open_store())
    session = here.create_session()
    ahead = session_coordinator(CONFIG, clock=ManualClock(wall_start=2e9), store=open_store())
    assert ahead.cleanup_inactive_sessions() == 0
    assert here.get_session(session.id) is session


def test_the_lag_of_unwritten_touches_is_allowed_for(pair: Pair, session_clock: ManualClock) -> None:
    """A session in memory of a process that runs its cleanup is expired for others after its lag, not before."""
    here, there = pair
    with here:
        session = here.create_session()
        session_clock.advance(60 + 20)
        assert session.id in there
        session_clock.advance(0.1)
        assert session.id not in there
        with pytest.raises(SessionExpiredError):
            there.get_session(session.id)


def test_a_caller_waits_while_it_is_found_out_whether_the_session_expired(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore], session_clock: HookedClock
) -> None:
    """It was idle here only: no caller is told that it expired, and the one that waited gets it back."""
    here, there = pair
    session = here.create_session()
    there.get_session(session.id)
    session_clock.advance(50)
    there.touch_session(session.id)
    session_clock.advance(20)
    begun = threading.Event()
    asking: list[Any] = []

    def ask() -> Any:
        session_clock.at_reading(1, begun.set)
        return here.get_session(session.id)

    def ask_meanwhile() -> None:
        asking.append(pool.submit(ask))
        assert begun.wait(WAIT)

    stores[0].before(DELETE_IF_DUE, ask_meanwhile)
    with ThreadPoolExecutor(1) as pool:
        assert here.cleanup_inactive_sessions() == 0
        assert asking[0].result(WAIT).id == session.id


def test_evicted_here_and_used_elsewhere(open_store: OpenStore, session_coordinator: CoordinatorFactory) -> None:
    """A session that is evicted while another process has it in memory only leaves this one."""
    closings = Closings()
    settings = config(max_active_sessions=1, on_full="evict")
    here = session_coordinator(settings, store=open_store(), on_close=closings)
    there = session_coordinator(settings, store=open_store())
    session = here.create_session("first")
    there.get_session(session.id)
    here.create_session("second")
    assert closings == [("first", RemovalCause.PASSIVATED)]
    assert session.id in there


# ---- Who has it in memory


def test_a_session_that_could_not_be_detached_is_detached_later(
    open_store: OpenStore, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Until then no other process may remove it; one that has come back meanwhile is left alone."""
    store = open_store()
    here = session_coordinator(config(max_active_sessions=2, on_full="passivate"), store=store)
    there = session_coordinator(CONFIG, store=open_store())
    store.failing = {DETACH}
    sessions = []
    for _ in range(4):
        sessions.append(here.create_session())
        session_clock.advance(1)
    assert here.get_session(sessions[0].id).id == sessions[0].id
    with pytest.raises(StoreError):
        here.cleanup_inactive_sessions()
    session_clock.advance(61)
    assert there.cleanup_inactive_sessions() == 0
    store.failing.clear()
    here.cleanup_inactive_sessions()
    assert there.cleanup_inactive_sessions() + here.cleanup_inactive_sessions() == 2
    assert store.page(None, 10) == []


def test_a_session_that_came_back_is_not_detached(restart: Restart, store: WatchedStore) -> None:
    """It waited to be detached, and is in memory again: that it is stays noted."""
    here = restart(config(max_active_sessions=1, on_full="passivate"), store=store)
    session = here.create_session()
    store.failing = {DETACH}
    here.create_session()
    store.failing.clear()
    here.get_session(session.id)
    here.cleanup_inactive_sessions()
    found = store.store.load(session.id)
    assert found is not None
    assert found.lag == inf


# ---- Real processes


def test_every_expired_record_is_finalized_by_exactly_one_process(path: Path) -> None:
    """Every expired session is finalized by exactly one process. Some are in memory of several here, some of none."""
    with SessionCoordinator[Any](CONFIG, clock=ManualClock(), store=SQLiteStore(path)) as coordinator:
        ids = [coordinator.create_session().id for _ in range(60)]
    with processes(3, _expire, path, ids) as results:
        ended = Counter(session_id for result in results for session_id, cause in result if cause == "IDLE")
    # What was still in memory of one of them when the others cleaned up last.
    clock = ManualClock(wall_start=ManualClock().wall() + 200)
    with SessionCoordinator[Any](CONFIG, clock=clock, store=SQLiteStore(path)) as coordinator:
        with coordinator.subscribe(100) as channel:
            coordinator.cleanup_inactive_sessions()
            while event := channel.get(0):
                ended[event.session_id] += 1
    assert ended == Counter(ids)


def _expire(all_are_ready: Barrier, index: int, path: Path, ids: list[str]) -> list[tuple[str, str]]:
    """Have some sessions in memory, let all expire, and clean up; which ended, as events tell, and why."""
    clock = ManualClock()
    ended: list[tuple[str, str]] = []
    with SessionCoordinator[Any](CONFIG, clock=clock, store=SQLiteStore(path, timeout=60)) as coordinator:
        for session_id in ids[index * 10 : index * 10 + 30]:
            coordinator.get_session(session_id)
        all_are_ready.wait(WAIT)
        clock.advance(100)
        with coordinator.subscribe(10_000) as channel:
            for _ in range(20):
                coordinator.cleanup_inactive_sessions()
            while event := channel.get(0):
                if event.cause is not None:
                    ended.append((event.session_id, event.cause.name))
    return ended
