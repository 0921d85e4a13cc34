"""Checkouts between processes: when the session is to be had, when it is waited for, and when it is free again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from sessionkit import (
    ManagedSession,
    RemovalCause,
    SessionBusyError,
    SessionConflictError,
    SessionCoordinator,
    StoreError,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.processes import (
    CONFIG,
    Maker,
    OpenStore,
    Pair,
    Restart,
    killed_when_ready,
    processes,
)
from ..helpers.support import (
    DETACH,
    GIVE_BACK,
    LEASE,
    RELEASE,
    SAVE,
    WAIT,
    HookedClock,
    WatchedStore,
    in_thread,
    records_in,
    wait_until,
)


def test_an_exclusive_checkout_excludes_across_processes(pair: Pair) -> None:
    """With no time to wait it raises at once; given back, it is free."""
    here, there = pair
    session = here.create_session()
    with here.checkout(session.id):
        with pytest.raises(SessionBusyError, match="another process"):
            there.checkout(session.id, timeout=0).__enter__()
        assert there.stats().checked_out == 0
        assert there.get_session(session.id).id == session.id
    with there.checkout(session.id, timeout=0):
        with pytest.raises(SessionBusyError):
            here.checkout(session.id, timeout=0).__enter__()


def test_with_a_store_no_checkout_is_shared(pair: Pair, stores: tuple[WatchedStore, WatchedStore]) -> None:
    """`exclusive=False` raises at the call: nothing is taken, nor is the store asked. It says what to do instead."""
    here, _ = pair
    session = here.create_session()
    stores[0].calls.clear()
    for session_id in (session.id, "nothing"):
        with pytest.raises(ValueError, match=f"{session_id}.*has a store.*holder="):
            here.checkout(session_id, exclusive=False)
    assert (here.stats().checked_out, stores[0].calls) == (0, {})


def test_threads_of_one_holder_have_the_session_together(pair: Pair, stores: tuple[WatchedStore, WatchedStore]) -> None:
    """With a store too, threads that check out with the same `holder=` have the session at the same time, also while
    others wait for it; it is saved, and free for other processes, when the last of them gives it back.
    """
    here, there = pair
    session, holder = here.create_session(data={"said": []}), object()
    together = threading.Barrier(3)

    def work(number: int) -> None:
        with here.checkout(session.id, timeout=0, holder=holder) as held:
            held.data["said"].append(number)
            together.wait(WAIT)
        together.wait(WAIT)

    stores[0].calls.clear()
    with ThreadPoolExecutor(3) as pool, here.checkout(session.id, holder=holder) as held:
        threads = [pool.submit(work, number) for number in range(2)]
        together.wait(WAIT)
        together.wait(WAIT)
        assert [thread.result(WAIT) for thread in threads] == [None, None]
        assert sorted(held.data["said"]) == [0, 1]
        assert not stores[0].calls.keys() & {SAVE, GIVE_BACK, RELEASE}
        for others in (here, there):
            waiting = others.checkout(session.id, timeout=0, holder=object())
            with pytest.raises(SessionBusyError):
                waiting.__enter__()
    with there.checkout(session.id, timeout=0) as other:
        assert sorted(other.data["said"]) == [0, 1]


def test_a_thread_of_a_holder_that_comes_as_the_last_one_leaves(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore]
) -> None:
    """It takes a lease of its own, once what the other changed is saved; nothing of either is lost."""
    here, there = pair
    session, holder = here.create_session(), object()
    going = here.checkout(session.id, holder=holder)
    going.__enter__().data["first"] = 1
    coming = threading.Event()

    def come() -> None:
        coming.set()
        with here.checkout(session.id, timeout=WAIT, holder=holder) as held:
            held.data["second"] = held.data["first"] + 1

    with ThreadPoolExecutor(1) as pool:
        second = []

        def let_in() -> None:
            second.append(pool.submit(come))
            assert coming.wait(WAIT)

        stores[0].before(GIVE_BACK, let_in)
        going.__exit__()
        second[0].result(WAIT)
    assert there.get_session(session.id).data == {"first": 1, "second": 2}
    with there.checkout(session.id, timeout=0):
        assert here.stats().checked_out == 0


def test_a_checkout_waits_for_another_process(pair: Pair, stores: tuple[WatchedStore, WatchedStore]) -> None:
    """And has the session, with what was saved, once that one gives it back."""
    here, there = pair
    session = here.create_session()

    def take() -> Any:
        with there.checkout(session.id, timeout=WAIT) as held:
            return held.data

    checkout = here.checkout(session.id)
    held = checkout.__enter__()
    with in_thread(take) as future:
        held.data["from"] = "here"
        wait_until(lambda: stores[1].calls[LEASE])
        assert not future.done()
        checkout.__exit__()
        assert future.result(WAIT) == {"from": "here"}


def test_a_session_on_lease_elsewhere_never_expires_here(pair: Pair, session_clock: ManualClock) -> None:
    """However long it is held there, it is found here, and no cleanup removes it."""
    here, there = pair
    session = here.create_session()
    with there.checkout(session.id):
        session_clock.advance(1000)
        assert here.cleanup_inactive_sessions() == 0
        assert session.id in here
        assert here.get_session(session.id).id == session.id
    session_clock.advance(60)
    assert session.id in here


def test_a_change_without_a_lease_that_others_overtake_is_a_conflict(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore]
) -> None:
    """While the store fails, both may have the session. No update is lost silently: the second one to save raises, and
    the next checkout has what the first one saved.
    """
    here, there = pair
    session = here.create_session()
    checkout = here.checkout(session.id)
    stores[0].failing = {LEASE}
    checkout.__enter__().data["by"] = "here"
    stores[0].failing.clear()
    with there.checkout(session.id) as other:
        other.data["by"] = "there"
    with pytest.raises(SessionConflictError, match="check it out again"):
        checkout.__exit__()
    assert here.stats().store.conflicts == 1  # type: ignore[union-attr]  # there is a store
    with here.checkout(session.id) as held:
        assert held.data == {"by": "there"}


def test_the_first_thread_of_a_holder_catches_up_before_the_others_work(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore]
) -> None:
    """A second one that comes in between finds the newest version, and what it writes is not taken away again."""
    here, there = pair
    session, holder = here.create_session(), object()
    with there.checkout(session.id) as other:
        other.data["by"] = "there"
    came, done = threading.Event(), threading.Event()

    def come_too() -> None:
        came.set()
        with here.checkout(session.id, holder=holder) as second:
            assert second.data == {"by": "there"}
            second.data["and by"] = "second"
            assert done.wait(WAIT)

    with ThreadPoolExecutor(1) as pool:
        coming = []

        def let_in() -> None:
            coming.append(pool.submit(come_too))
            assert came.wait(WAIT)

        stores[0].after(LEASE, let_in)
        with here.checkout(session.id, holder=holder) as first:
            assert first.data["by"] == "there"
            wait_until(lambda: "and by" in first.data or coming[0].done())
            done.set()
            coming[0].result(WAIT)
    assert there.get_session(session.id).data == {"by": "there", "and by": "second"}


def test_a_time_limit_is_for_all_of_the_wait(process: Maker) -> None:
    """Also where the session leaves memory meanwhile, and comes back, and the thread has to wait once more."""
    here, there = process("here"), process("there")
    session = here.sessions.create_session()
    taken = there.sessions.checkout(session.id)
    late = [0.0]
    monotonic, waits = time.monotonic, threading.Event()
    read: list[float] = []

    def read_time() -> float:
        now = monotonic() + late[0]
        if threading.current_thread() in waiters:
            read.append(now)
            # It has read when its time is over, and how long that is: now it sleeps.
            if len(read) == 2:
                waits.set()
        return now

    waiters: list[threading.Thread] = []

    def wait_too() -> None:
        waiters.append(threading.current_thread())
        here.add(session.id, "too late", timeout=WAIT)

    def take_there(_: ManagedSession[Any]) -> None:
        taken.__enter__()

    # A checkout that the store did not note, so that another process may have the session after it.
    here.store.failing = {LEASE}
    held = here.sessions.checkout(session.id)
    held.__enter__()
    here.store.failing.clear()
    there.add(session.id, "there")
    here.while_making = take_there
    with patch.object(time, "monotonic", read_time):
        with in_thread(wait_too) as waiting:
            assert waits.wait(WAIT)
            late[0] = 2 * WAIT
            held.__exit__()
            assert isinstance(waiting.exception(WAIT / 2), SessionBusyError)
    taken.__exit__()
    assert session.resource is None
    assert len(here.made) == 2


# ---- When a lease ends


def test_a_give_back_during_close_does_not_give_up_what_others_hold(
    session_coordinator: CoordinatorFactory, open_store: OpenStore
) -> None:
    """While close() is under way, leases and attachments stay until the last session has left."""

    def on_close(session: Any, cause: RemovalCause) -> None:
        if session.name == "third":
            inner.__exit__()
            assert_is_busy()

    def assert_is_busy() -> None:
        with pytest.raises(SessionBusyError):
            there.checkout(first.id, timeout=0).__enter__()

    here = session_coordinator(CONFIG, store=open_store(), on_close=on_close)
    there = session_coordinator(CONFIG, store=open_store())
    first, second, _ = (here.create_session(name) for name in ("first", "second", "third"))
    outer, inner = here.checkout(first.id), here.checkout(second.id)
    outer.__enter__()
    inner.__enter__()
    here.close()
    assert here.stats().close_failures == 0
    assert here.stats().checked_out == 1
    assert_is_busy()
    outer.__exit__()
    with there.checkout(first.id, timeout=0):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError])
def test_a_lease_that_was_taken_and_not_told_of_is_given_back(
    pair: Pair, stores: tuple[WatchedStore, WatchedStore], error: type[BaseException]
) -> None:
    """Interrupted, or failed after it was done: the checkout's end, or the next cleanup run, gives it back."""
    here, there = pair
    store, _ = stores
    session = here.create_session()

    def fail() -> None:
        raise error

    store.after(LEASE, fail)
    with suppress(KeyboardInterrupt):
        with here.checkout(session.id):
            store.failing = {RELEASE}
    store.failing.clear()
    with pytest.raises(SessionBusyError):
        there.checkout(session.id, timeout=0).__enter__()
    here.cleanup_inactive_sessions()
    with there.checkout(session.id, timeout=0):
        pass


def test_a_lease_waiting_to_be_given_back_is_forgotten_with_its_session(restart: Restart, store: WatchedStore) -> None:
    """And one that is in use again is left alone."""
    here = restart(store=store)
    sessions = [here.create_session() for _ in range(2)]
    for session in sessions:
        store.failing = {RELEASE}
        checkout = here.checkout(session.id)
        checkout.__enter__()
        with pytest.raises(StoreError):
            checkout.__exit__()
    store.failing.clear()
    here.close_session(sessions[0].id)
    with here.checkout(sessions[1].id):
        store.calls.clear()
        here.cleanup_inactive_sessions()
        assert not store.calls[RELEASE]
    assert store.calls[RELEASE] == 1


@pytest.mark.parametrize("late", ["on its way to the store", "before that"])
def test_a_lease_that_is_given_back_late_is_not_that_of_another_checkout(
    process: Maker, session_clock: HookedClock, late: str
) -> None:
    """A cleanup run gives back what an interrupted checkout left; the session leaves memory meanwhile, and is checked
    out again."""
    here = process("here", max_active_sessions=1, on_full="passivate")
    there = process("there")
    session_id = here.sessions.create_session().id
    there.add(session_id, "there")

    def interrupt(_: ManagedSession[Any]) -> None:
        here.while_letting_go = lambda _: None
        raise KeyboardInterrupt

    here.while_letting_go = interrupt
    with pytest.raises(KeyboardInterrupt):
        here.add(session_id, "here")
    here.sessions.get_session(session_id)
    detaches, releases = threading.Event(), threading.Event()
    moving: list[Any] = []

    def check_out_again() -> Any:
        here.sessions.create_session()
        checkout = here.sessions.checkout(session_id)
        checkout.__enter__()
        return checkout

    def detach_late() -> None:
        detaches.set()
        assert releases.wait(WAIT)

    def release_late() -> None:
        releases.set()
        # As it should, the other thread waits for this one.
        with suppress(TimeoutError):
            moving[0].result(0.1)

    def check_out_first() -> None:
        moving.append(pool.submit(check_out_again))
        moving[0].result(WAIT)

    with ThreadPoolExecutor(1) as pool:
        if late == "on its way to the store":
            here.store.before(DETACH, detach_late)
            here.store.before(RELEASE, release_late)
            moving.append(pool.submit(check_out_again))
            assert detaches.wait(WAIT)
        else:
            session_clock.at_reading(1, check_out_first)
        here.sessions.cleanup_inactive_sessions()
        releases.set()
        checkout = moving[0].result(WAIT)
    with pytest.raises(SessionBusyError):
        there.sessions.checkout(session_id, timeout=0).__enter__()
    checkout.__exit__()
    there.add(session_id, "there", timeout=0)


# ---- Real processes


def test_a_lease_ends_when_its_holder_dies(pair: Pair, path: Path) -> None:
    """A lease ends when its holder dies, and the session is free at once. What it did not save is not there."""
    here, _ = pair
    session = here.create_session()
    with killed_when_ready(_hold, str(path), session.id):
        with pytest.raises(SessionBusyError):
            here.checkout(session.id, timeout=0).__enter__()
    with here.checkout(session.id, timeout=0) as held:
        assert held.data == {}


def _hold(path: str, session_id: str, ready: int) -> None:
    coordinator = SessionCoordinator[Any](store=SQLiteStore(path))
    with coordinator.checkout(session_id) as session:
        session.data["unsaved"] = True
        os.write(ready, b"!")
        signal.pause()


def test_no_update_is_lost(path: Path) -> None:
    """However many processes change the same sessions under checkouts, no update is lost."""
    with SessionCoordinator[Any](store=SQLiteStore(path)) as coordinator:
        ids = [coordinator.create_session().id for _ in range(3)]
    with processes(4, _hammer, path, ids, 40) as results:
        expected = sum((Counter(result) for result in results), Counter[str]())
    records = records_in(path)
    for session_id in ids:
        data = json.loads(records[session_id].data)
        assert data["count"] == len(data["by"]) == records[session_id].message_count == expected[session_id]
    assert sum(expected.values()) == 160


def _hammer(all_are_ready: Barrier, index: int, path: Path, ids: list[str], rounds: int) -> dict[str, int]:
    """Add one to a counter in each session, again and again, in an order of its own; how often each was."""
    done: Counter[str] = Counter()
    all_are_ready.wait(WAIT)
    with SessionCoordinator[Any](store=SQLiteStore(path, timeout=60)) as coordinator:
        for turn in range(rounds):
            session_id = ids[(turn * (index + 1)) % len(ids)]
            with coordinator.checkout(session_id, timeout=60) as session:
                session.data["count"] = session.data.get("count", 0) + 1
                session.data.setdefault("by", []).append(index)
                session.record_message()
            done[session_id] += 1
    return dict(done)
