"""When what is written: at creation, by a checkout, by the cleanup task, at the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest

from sessionkit import (
    Checkout,
    CoordinatorClosedError,
    CoordinatorConfig,
    ManagedSession,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExpiredError,
    SessionNotFoundError,
    SessionState,
    StoreError,
)
from sessionkit.stores import SessionRecord, SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.processes import (
    CONFIG,
    OpenStore,
    Pair,
    Restart,
    config,
    killed_when_ready,
)
from ..helpers.support import (
    CREATE,
    DELETE,
    GIVE_BACK,
    LEASE,
    LOAD,
    RELEASE,
    SAVE,
    TOUCH,
    WAIT,
    Closings,
    WatchedStore,
    delete_record,
    in_child,
    in_thread,
    lock_is_free,
    record_of,
)


def lag_of(store: WatchedStore, session: ManagedSession[Any]) -> float:
    """How late others take the last activity to be that they read in the record."""
    found = store.store.load(session.id)
    assert found is not None
    return found.lag


def interrupt() -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt


# ---- A session begins and ends


def test_a_created_session_is_saved(restart: Restart, store: WatchedStore, session_clock: ManualClock) -> None:
    """When create_session returns, the record has all of the session."""
    session_clock.advance(100)
    coordinator = restart(config(max_lifetime=500), store=store)
    session = coordinator.create_session("support", data={"lang": "en"}, session_timeout=timedelta(minutes=2))

    now = session_clock.wall()
    assert record_of(store, session) == SessionRecord(
        session.id, "support", '{"lang":"en"}', "active", now, now, 0, 120.0, 500.0, 1
    )


def test_expiry_and_close_delete_the_record(restart: Restart, store: WatchedStore, session_clock: ManualClock) -> None:
    """Expired, too old, evicted or closed: its record is gone, and the name is free in the store too."""
    settings = config(max_active_sessions=2, max_lifetime=100, on_full="evict")
    coordinator = restart(settings, store=store)
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
    """No caller was given the session, so the next start has not got it either."""
    coordinator: SessionCoordinator[Any] = restart(store=store, resource_factory=lambda _: coordinator.close())
    with pytest.raises(CoordinatorClosedError):
        coordinator.create_session("support")
    assert store.page(None, 10) == []


def test_a_session_closed_while_it_is_checked_out_does_not_come_back(restart: Restart, open_store: OpenStore) -> None:
    """Its record is gone when close_session returns, though a thread holds it still, and may die doing so."""
    coordinator = restart()
    session = coordinator.create_session()
    store = open_store()
    with coordinator.checkout(session.id) as held:
        coordinator.close_session(session.id)
        assert store.load(session.id) is None
        held.data["late"] = True
    assert store.page(None, 10) == []
    assert coordinator.stats().removed[RemovalCause.CLOSED] == 1


def test_a_session_created_anew_is_not_deleted_for_its_predecessor(store: WatchedStore, restart: Restart) -> None:
    """A delete that waits to be tried again is over once the id has been created again."""
    here = restart(store=store)
    here.create_session(session_id="s-1", data={"life": 1})
    store.failing = {DELETE}
    here.close_session("s-1")
    delete_record(store.store, "s-1")
    store.failing.clear()
    here.create_session(session_id="s-1", data={"life": 2})
    here.cleanup_inactive_sessions()
    assert here.get_session("s-1").data == {"life": 2}
    assert store.store.load("s-1") is not None


def test_a_delete_that_is_interrupted_is_done_later(store: WatchedStore, restart: Restart) -> None:
    """Ctrl-C in the middle: the session has ended, and does not come back."""
    here = restart(store=store)
    session = here.create_session()
    store.before(DELETE, interrupt)
    with pytest.raises(KeyboardInterrupt):
        here.close_session(session.id)
    with pytest.raises(SessionExpiredError):
        here.get_session(session.id)
    here.cleanup_inactive_sessions()
    assert store.store.load(session.id) is None


def test_a_delete_that_failed_and_was_done_by_another_process(restart: Restart, store: WatchedStore) -> None:
    """There is nothing left to do, and nothing to complain of."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    store.failing = {DELETE}
    coordinator.close_session(session.id)
    delete_record(store.store, session.id)
    store.failing.clear()
    assert coordinator.cleanup_inactive_sessions() == 0
    assert coordinator.stats().store.pending_deletes == 0  # type: ignore[union-attr]  # there is a store


# ---- A checkout


def test_a_checkout_saves_what_changed_and_nothing_else(restart: Restart, store: WatchedStore) -> None:
    """Nothing is written to the record when nothing changed; deep changes are noticed, messages and states too."""
    coordinator = restart(store=store)
    session = coordinator.create_session(data={"cart": {"items": [1]}})

    store.calls.clear()
    with coordinator.checkout(session.id):
        pass
    assert not store.calls.keys() & {SAVE, GIVE_BACK, TOUCH, CREATE}

    with coordinator.checkout(session.id) as held:
        held.data["cart"]["items"].append(2)
    assert store.calls[GIVE_BACK] == 1
    assert record_of(store, session).data == '{"cart":{"items":[1,2]}}'

    with coordinator.checkout(session.id) as held:
        held.record_message()
        held.set_state(SessionState.PROCESSING)
    assert not store.calls[SAVE]
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


def test_inner_checkouts_are_saved_when_the_last_is_given_back(restart: Restart, store: WatchedStore) -> None:
    """While another checkout in this process has the session, it is not saved and its lease not given back."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    store.calls.clear()
    with coordinator.checkout(session.id) as held:
        with coordinator.checkout(session.id):
            held.data["step"] = 1
        assert not store.calls.keys() & {SAVE, GIVE_BACK, RELEASE}
    assert (store.calls[SAVE], store.calls[GIVE_BACK], store.calls[RELEASE]) == (0, 1, 0)


def test_watched_calls_of_one_checkout(session_coordinator: CoordinatorFactory, path: Path) -> None:
    """A checkout is one step of the store when taken, and one when given back, which also saves what changed."""
    store = WatchedStore(SQLiteStore(path))
    coordinator = session_coordinator(CONFIG, store=store)
    session = coordinator.create_session()
    store.calls.clear()
    with coordinator.checkout(session.id) as held:
        held.data["a"] = 1
    assert store.calls == {LEASE: 1, GIVE_BACK: 1}
    store.calls.clear()
    with coordinator.checkout(session.id):
        pass
    assert store.calls == {LEASE: 1, RELEASE: 1}
    store.calls.clear()
    coordinator.get_session(session.id)
    assert store.calls == {LOAD: 1}


def test_saving_in_the_middle_of_a_checkout(restart: Restart, store: WatchedStore) -> None:
    """What changed so far is in the store when `save_session` returns; without a change nothing is written."""
    coordinator = restart(store=store)
    session = coordinator.create_session(data={"step": 0})
    with coordinator.checkout(session.id) as held:
        held.data["step"] = 1
        coordinator.save_session(session.id)
        record = record_of(store.store, session)
        assert (record.data, record.version) == ('{"step":1}', 2)
        coordinator.save_session(session.id)
    assert store.calls[SAVE] == 1
    checkout = coordinator.checkout(coordinator.create_session().id)
    held = checkout.__enter__()
    delete_record(store.store, held.id)
    held.data["lost"] = True
    for call in (lambda: coordinator.save_session(held.id), checkout.__exit__):
        with pytest.raises(SessionNotFoundError):
            call()


def test_saving_without_a_store_only_looks(session_coordinator: CoordinatorFactory) -> None:
    """There is nothing to write; a session that is not there is not found."""
    coordinator = session_coordinator(CONFIG)
    assert coordinator.store is None
    coordinator.save_session(coordinator.create_session().id)
    with pytest.raises(SessionNotFoundError):
        coordinator.save_session("nobody")


def test_messages_of_a_session_that_ended_elsewhere_have_nowhere_to_go(restart: Restart, store: WatchedStore) -> None:
    """The thread that recorded them and gives the session back is told, though its data did not change."""
    coordinator = restart(store=store)
    checkout = coordinator.checkout(coordinator.create_session().id)
    held = checkout.__enter__()
    held.record_message()
    delete_record(store.store, held.id)
    with pytest.raises(SessionNotFoundError):
        checkout.__exit__()
    assert len(coordinator) == 0


def test_a_checkout_whose_generator_is_collected_is_saved(restart: Restart) -> None:
    """What changed in it is saved, and the session is free."""
    coordinator = restart()
    session = coordinator.create_session()

    def work() -> Iterator[None]:
        with coordinator.checkout(session.id) as held:
            held.data["step"] = 1
            yield

    steps = work()
    next(steps)
    del steps
    assert coordinator.stats().checked_out == 0
    assert restart().get_session(session.id).data == {"step": 1}


def test_a_checkout_given_back_after_close_is_saved(pair: Pair, path: Path) -> None:
    """close() does not wait for it; the lease ends when it is given back."""
    here, there = pair
    session = here.create_session()
    with here.checkout(session.id) as held:
        here.close()
        held.data["late"] = True
        with pytest.raises(SessionBusyError):
            there.checkout(session.id, timeout=0).__enter__()
    with there.checkout(session.id, timeout=0) as other:
        assert other.data == {"late": True}
    assert not list(path.parent.glob("*-instance-*"))[1:]


def test_an_interrupted_give_back_saves_and_releases_all_the_same(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore]
) -> None:
    """Ctrl-C during the save: it is tried once more, and the session is free."""
    here, there = pair
    session = here.create_session()
    stores[0].before(GIVE_BACK, interrupt)
    checkout = here.checkout(session.id)
    checkout.__enter__().data["step"] = 1
    with pytest.raises(KeyboardInterrupt):
        checkout.__exit__()
    with there.checkout(session.id, timeout=0) as other:
        assert other.data == {"step": 1}


# ---- Activity


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
    assert store.calls[TOUCH] == 1
    assert coordinator.stats().store.dirty == 0  # type: ignore[union-attr]  # there is a store
    assert {record_of(store, session).last_active for session in (first, second)} == {session_clock.wall()}
    assert record_of(store, first).message_count == 1
    coordinator.cleanup_inactive_sessions()
    assert store.calls[TOUCH] == 1

    session_clock.advance(5)
    second.touch()
    coordinator.close()
    assert record_of(store.store, second).last_active == session_clock.wall()


def test_many_touches_are_written_in_bounded_steps(restart: Restart, store: WatchedStore) -> None:
    """No step writes more than a hundred records, so that other processes are let in between."""
    coordinator = restart(config(max_active_sessions=None), store=store)
    for number in range(130):
        coordinator.create_session(session_id=f"s-{number}")
        coordinator.touch_session(f"s-{number}")
    store.calls.clear()
    coordinator.cleanup_inactive_sessions()
    assert store.calls[TOUCH] == 2


def test_a_session_timeout_of_seconds_makes_runs_more_frequent(restart: Restart, store: WatchedStore) -> None:
    """With a store, the cleanup task runs at least four times per session timeout, and promises to be half as quick."""
    with pytest.warns(UserWarning, match="cleanup_interval"):
        settings = CoordinatorConfig(session_timeout=8, cleanup_interval=300)
    with restart(settings, store=store) as coordinator:
        session = coordinator.create_session()
        assert lag_of(store, session) == 4.0
        coordinator.stop_cleanup_task()
        assert lag_of(store, session) == inf


def test_looks_alone_write_no_activity(
    session_coordinator: CoordinatorFactory, open_store: OpenStore, session_clock: ManualClock
) -> None:
    """A session that was only looked at here is passivated with the activity that its record had."""
    here = session_coordinator(config(max_active_sessions=1, on_full="passivate"), store=open_store())
    there = session_coordinator(CONFIG, store=open_store())
    session = there.create_session()
    wall = session_clock.wall()
    session_clock.advance(50)
    here.get_session(session.id)
    here.create_session()
    assert record_of(open_store(), session).last_active == wall


def test_what_a_killed_process_had_not_written(pair: Pair, path: Path, session_clock: ManualClock) -> None:
    """Touches since the last cleanup run may be lost with the process; idle time goes on across a restart in wall
    time.
    """
    here, there = pair
    session = here.create_session()
    here.close()
    with killed_when_ready(_touch, str(path), session.id):
        pass
    session_clock.advance(40)
    assert there.get_session(session.id).metadata.last_active == pytest.approx(20, abs=1e-5)


def _touch(path: str, session_id: str, ready: int) -> None:
    clock = ManualClock()
    coordinator = SessionCoordinator[Any](CONFIG, clock=clock, store=SQLiteStore(path))
    for instant in (20, 40):
        clock.advance(20)
        coordinator.touch_session(session_id)
        if instant == 20:
            coordinator.cleanup_inactive_sessions()
    os.write(ready, b"!")
    signal.pause()


def test_the_activity_of_a_session_that_ends_while_it_is_written(restart: Restart, store: WatchedStore) -> None:
    """Its record is gone when the batch comes to the store: nothing is brought back, nothing fails."""
    closings = Closings()
    coordinator = restart(store=store, on_close=closings)
    session = coordinator.create_session()
    session.touch()

    def close() -> None:
        with in_thread(coordinator.close_session, session.id) as closing:
            closing.result(WAIT)

    store.calls.clear()
    store.before(TOUCH, close)
    assert coordinator.cleanup_inactive_sessions() == 0
    assert closings == [(session.id, RemovalCause.CLOSED)]
    assert coordinator.stats().store.dirty == 0  # type: ignore[union-attr]  # there is a store
    assert store.page(None, 10) == []


def test_nothing_is_written_of_a_session_that_has_left(restart: Restart, store: WatchedStore) -> None:
    """What is done with the object later comes too late: its record is gone, or another session's."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    coordinator.close_session(session.id)
    store.calls.clear()
    session.data["late"] = True
    for act in (session.touch, session.record_message):
        with suppress(SessionNotFoundError):
            act()
    with pytest.raises(SessionExpiredError):
        coordinator.save_session(session.id)
    coordinator.cleanup_inactive_sessions()
    coordinator.close()
    assert not {SAVE, TOUCH, GIVE_BACK, CREATE} & set(store.calls)


# ---- How it is written


def test_the_store_is_called_with_the_lock_free(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """Every call of the store, through all of a session's life."""
    held: list[str] = []
    watched: list[SessionCoordinator[Any]] = []

    class Watching:
        def __getattr__(self, name: str) -> Any:
            if any(not lock_is_free(coordinator) for coordinator in watched):
                held.append(name)
            return getattr(store, name)

    settings = config(max_active_sessions=1, on_full="passivate")
    coordinator = session_coordinator(settings, store=Watching())
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


def test_a_close_callback_of_a_batch_may_wait_for_another_thread_that_writes(
    session_coordinator: CoordinatorFactory, open_store: OpenStore
) -> None:
    """A session that was found to have ended elsewhere is closed once the batch is done, with no lock held."""

    def on_close(session: Any, cause: RemovalCause) -> None:
        with in_thread(here.cleanup_inactive_sessions) as cleaning:
            assert cleaning.result(WAIT) == 0
        closed.append(cause)

    closed: list[RemovalCause] = []
    here = session_coordinator(CONFIG, store=open_store(), on_close=on_close)
    there = session_coordinator(CONFIG, store=open_store())
    session = here.create_session()
    there.close_session(session.id)
    here.touch_session(session.id)
    here.cleanup_inactive_sessions()
    assert closed == [RemovalCause.PASSIVATED]


def test_a_forked_child_gives_nothing_back_of_its_parents(restart: Restart, path: Path) -> None:
    """Leaving the parent's with block there saves nothing, and ends no lease; nor does saving or rotating it before."""
    coordinator = restart()
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    held = checkout.__enter__()
    session.touch()

    def child() -> bool:
        held.data["by"] = "child"
        checkout.save()
        checkout.revert()
        with pytest.raises(SessionNotFoundError):
            checkout.rotate("of-the-child")
        assert held.data["by"] == "child"
        checkout.__exit__()
        with closing(SQLiteStore(path)) as store:
            found = store.load(session.id)
            return found is not None and found.lag == inf and found.record.data == "{}"

    assert in_child(child)
    held.data["by"] = "parent"
    checkout.__exit__()
    assert restart().get_session(session.id).data == {"by": "parent"}


class Interrupting(str):
    """An id in whose look-up, which is in the middle of a decision, something happens once."""

    __slots__ = ("act",)

    act: Callable[[], object]

    def __hash__(self) -> int:
        act, self.act = self.act, lambda: None
        act()
        return super().__hash__()


def look_up_and(coordinator: SessionCoordinator[Any], act: Callable[[], object]) -> None:
    """Interrupt a decision of the coordinator."""
    session_id = Interrupting("nobody")
    session_id.act = act
    assert session_id not in coordinator


@pytest.mark.parametrize("force", [False, True])
def test_a_session_closed_in_the_middle_of_a_decision_is_closed_after_it(
    restart: Restart, store: WatchedStore, force: bool
) -> None:
    """As a finalizer may do that the garbage collector runs there: by the next call, here and in the store."""
    closings = Closings()
    coordinator = restart(store=store, on_close=closings)
    coordinator.create_session("support", session_id="it")
    look_up_and(coordinator, lambda: coordinator.close_session("it", force=force))
    assert (closings, store.calls[DELETE]) == ([], 0)
    assert "it" not in coordinator
    assert (closings, store.store.page(None, 10)) == ([("support", RemovalCause.CLOSED)], [])


@pytest.mark.parametrize("leave", [Checkout.__exit__, Checkout.give_back_later])
def test_a_checkout_left_in_the_middle_of_a_decision_is_given_back_after_it(
    restart: Restart, store: WatchedStore, leave: Callable[[Checkout[Any]], None]
) -> None:
    """By the next call; what changed is saved then."""
    coordinator = restart(store=store)
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["step"] = 1
    look_up_and(coordinator, lambda: leave(checkout))
    assert store.calls[GIVE_BACK] == 0
    assert coordinator.stats().checked_out == 0
    assert record_of(store, session).data == '{"step":1}'
    with coordinator.checkout(session.id, timeout=0):
        pass


def test_closing_what_is_checked_out_twice(restart: Restart, store: WatchedStore) -> None:
    """The second time there is nothing to close; nor is there by a checkout that was not entered."""
    coordinator = restart(store=store)
    session = coordinator.create_session(session_id="it")
    checkout = coordinator.checkout(session.id)
    checkout.close()
    assert coordinator.get_session("it") is session
    checkout.__enter__()
    checkout.close()
    checkout.close()
    assert ("it" in coordinator, coordinator.stats().removed[RemovalCause.CLOSED]) == (False, 1)

    store.failing = {DELETE}
    coordinator.create_session(session_id="other")
    checkout = coordinator.checkout("other")
    checkout.__enter__()
    with pytest.raises(StoreError, match="'other' has ended here, but the store could not delete its record yet"):
        checkout.close()
    store.failing.clear()
    assert "other" not in coordinator
    coordinator.cleanup_inactive_sessions()
    assert store.store.page(None, 10) == []


def test_reverting_a_session_that_is_checked_out(restart: Restart, store: WatchedStore) -> None:
    """Its data is what was saved last."""
    coordinator = restart(store=store)
    session = coordinator.create_session(data={"step": 0})
    checkout = coordinator.checkout(session.id)
    with checkout as held:
        held.data["step"] = 1
        checkout.save()
        held.data.update(step=2, more=True)
        checkout.revert()
        assert held.data == {"step": 1}
    assert record_of(store, session).data == '{"step":1}'
