"""One session in several processes, each with a live resource: which copy is stale, and is let go."""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from sessionkit import (
    EventKind,
    ManagedSession,
    RemovalCause,
    SessionBusyError,
    SessionElsewhereError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)

from ..helpers.processes import (
    LOOKS,
    TOUCHES,
    Call,
    Closing,
    Maker,
    Process,
    Processes,
    checked_out,
)
from ..helpers.support import (
    LEASE,
    LOAD,
    WAIT,
    HookedClock,
    all_at_once,
    in_thread,
    wait_until,
)


@pytest.fixture
def pair(process: Maker) -> Processes:
    """Two processes that share."""
    return process("here"), process("there")


@pytest.mark.parametrize("way", LOOKS)
def test_a_look_at_a_stale_copy_gives_a_new_one(pair: Processes, way: str) -> None:
    """Another process had the session: here its close callback is called once, with the newest data, and a new resource
    is made of them."""
    here, there = pair
    session = here.sessions.create_session("support", data={"said": []})
    there.add(session.id, "there")
    old = session.resource
    with here.sessions.subscribe() as channel:
        again = LOOKS[way](here.sessions, session.id)
        events = list(iter(lambda: channel.get(0), None))
    assert here.closed == [Closing(RemovalCause.PASSIVATED, {"said": ["there"]}, old)]
    assert [(event.kind, event.cause) for event in events[:2]] == [
        (EventKind.REMOVED, RemovalCause.PASSIVATED),
        (EventKind.RESTORED, None),
    ]
    assert again is not session
    assert session.resource is None
    assert (again.name, again.resource) == ("support", here.made[-1])
    assert [agent.knew for agent in here.made] == [{"said": []}, {"said": ["there"]}]
    assert (len(here.sessions), here.sessions.stats().checked_out, there.closed) == (1, 0, [])


@pytest.mark.parametrize("way", TOUCHES)
def test_a_touch_keeps_a_stale_copy(pair: Processes, way: str) -> None:
    """It does not look: nothing is closed, nor by a cleanup; the next look does that."""
    here, there = pair
    session = here.sessions.create_session()
    there.add(session.id, "there")
    TOUCHES[way](here.sessions, session.id)
    session.touch()
    here.sessions.cleanup_inactive_sessions()
    assert here.closed == []
    assert here.sessions.get_session(session.id).resource is here.made[1]
    assert len(here.closed) == 1


def test_asking_whether_a_session_is_live_lets_go_too(pair: Processes) -> None:
    """`in` looks, and says yes: the session is live, wherever."""
    here, there = pair
    session = here.sessions.create_session()
    there.add(session.id, "there")
    assert session.id in here.sessions
    assert (len(here.closed), len(here.sessions)) == (1, 0)
    assert session.id in here.sessions


def test_a_session_without_a_resource_stays_and_catches_up(process: Maker) -> None:
    """It has nothing that its data do not say: the object is the same, and so is its dict."""
    here, there = process("here", resources=False), process("there")
    session = here.sessions.create_session()
    data = session.data
    for turn in range(2):
        there.add(session.id, turn)
        assert here.sessions.get_session(session.id) is session
        with here.sessions.checkout(session.id) as held:
            assert held is session
            assert here.sessions.get_session(session.id) is session
    assert session.data is data
    assert data == {"said": [0, 1]}
    assert here.closed == []


def test_a_session_that_is_used_again_and_again_has_one_resource(pair: Processes) -> None:
    """It is let go once for each time that the session was elsewhere, and not for checkouts of one's own, in which it
    may be looked at."""
    here, there = pair
    session_id = here.sessions.create_session().id
    for turn in (1, 2):
        there.add(session_id, "there")
        for _ in range(3):
            with here.sessions.checkout(session_id) as held:
                assert here.sessions.get_session(session_id) is held
                assert here.add(session_id, "here") is held.resource
            assert here.sessions.get_session(session_id) is held
        assert (len(here.made), len(here.closed), len(there.closed)) == (turn + 1, turn, turn - 1)
    assert len(here.sessions.get_session(session_id).data["said"]) == 8


def test_what_is_under_way_elsewhere_is_let_go_when_it_is_done(pair: Processes) -> None:
    """A look meanwhile gives what is here; a checkout waits, and then has a new resource."""
    here, there = pair
    session = here.sessions.create_session()
    checkout = there.sessions.checkout(session.id)
    checkout.__enter__().data["said"] = ["half"]
    there.sessions.save_session(session.id)
    assert here.sessions.get_session(session.id) is session
    assert session.data == {"said": ["half"]}
    with pytest.raises(SessionBusyError):
        here.sessions.checkout(session.id, timeout=0.02).__enter__()
    assert (here.closed, here.sessions.stats().checked_out) == ([], 0)
    here.store.calls.clear()
    with in_thread(lambda: here.add(session.id, "here", timeout=WAIT)) as adding:
        wait_until(lambda: here.store.calls[LEASE])
        assert not adding.done()
        checkout.__exit__()
        assert adding.result(WAIT) is here.made[1]
    assert here.made[1].knew == {"said": ["half"]}
    assert len(here.closed) == 1


def test_a_resource_that_was_made_while_another_process_was_at_work_is_stale(pair: Processes) -> None:
    """It knows of half of that only: a checkout that waited makes another one when it has the session."""
    here, there = pair
    session = there.sessions.create_session()
    checkout = there.sessions.checkout(session.id)
    checkout.__enter__().data["said"] = ["there"]
    with in_thread(lambda: here.add(session.id, "here", timeout=WAIT)) as adding:
        wait_until(lambda: here.store.calls[LEASE])
        assert not adding.done()
        assert [agent.knew for agent in here.made] == [{}]
        checkout.__exit__()
        assert adding.result(WAIT) is here.made[1]
    assert here.made[1].knew == {"said": ["there"]}


def test_what_the_close_callback_changes_is_saved_before_others_have_the_session(pair: Processes) -> None:
    """In a checkout: no other process gets the session until it is back here, and in use."""
    here, there = pair
    session_id = here.sessions.create_session().id
    there.add(session_id, "there")

    def close(session: ManagedSession[Any]) -> None:
        session.data["said"].append("closing")
        _assert_is_busy(there, session_id)

    here.while_letting_go = close
    here.while_making = lambda _: _assert_is_busy(there, session_id)
    here.add(session_id, "here")
    assert here.made[1].knew == {"said": ["there", "closing"]}
    assert there.sessions.get_session(session_id).data == {"said": ["there", "closing", "here"]}


def _assert_is_busy(process: Process, session_id: str) -> None:
    with pytest.raises(SessionBusyError):
        process.sessions.checkout(session_id, timeout=0).__enter__()


def test_processes_that_take_long_to_make_a_resource_get_their_turn_all_the_same(process: Maker) -> None:
    """Each checkout makes two at most: one when the session comes into memory, one when it has the lease."""
    processes = [process(name) for name in ("a", "b", "c")]
    session_id = processes[0].sessions.create_session().id
    makes_together = threading.Barrier(3)

    def make(_: ManagedSession[Any]) -> None:
        # As long as the others are at it, if they are.
        try:
            makes_together.wait(0.02)
        except threading.BrokenBarrierError:
            makes_together.reset()

    for each in processes:
        each.while_making = make
    turns = 5

    def work(each: Process) -> None:
        for turn in range(turns):
            each.add(session_id, turn, timeout=WAIT)

    assert all_at_once(*(partial(work, each) for each in processes)) == [None] * 3
    assert len(processes[0].sessions.get_session(session_id).data["said"]) == 3 * turns
    assert max(len(each.made) for each in processes) <= 2 * turns + 1


@pytest.mark.parametrize("affinity", [False, True])
def test_a_resource_in_an_exclusive_checkout_knows_all_that_is_in_the_data(process: Maker, affinity: bool) -> None:
    """Whichever process had the session before, and whatever else is done with it."""
    options = {"affinity": affinity, "max_active_sessions": 2, "on_full": "passivate"}
    processes = [process(name, **options) for name in ("a", "b", "c")]
    ids = [processes[0].sessions.create_session(data={"said": []}).id for _ in range(3)]
    said: Counter[str] = Counter()
    others: list[Call] = [
        LOOKS["get_session"],
        TOUCHES["touch_session"],
        lambda sessions, session_id: session_id in sessions,
        lambda sessions, _: sessions.cleanup_inactive_sessions(),
    ]

    def work(each: Process, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  no secret
        for turn in range(30):
            session_id = chance.choice(ids)
            with suppress(SessionElsewhereError, SessionLimitError):
                if chance.random() < 0.3:
                    chance.choice(others)(each.sessions, session_id)
                    continue
                with each.sessions.checkout(session_id, timeout=WAIT) as session:
                    assert session.resource.knew == session.data
                    session.data["said"] = session.resource.knew["said"] = [*session.data["said"], turn]
                    chance.choice([TOUCHES["save_session"], *others[:3]])(each.sessions, session_id)
                said[session_id] += 1

    assert all_at_once(*(partial(work, each, seed) for seed, each in enumerate(processes * 2))) == [None] * 6
    for each in processes:
        each.sessions.close()
    for session_id in ids:
        assert len(process("last", affinity=True).sessions.get_session(session_id).data["said"]) == said[session_id]
        assert said[session_id] > 0


# ---- Several threads of one process


@pytest.mark.parametrize("holder", [None, object()], ids=["each for itself", "one holder"])
def test_threads_that_check_out_at_once_let_go_once(
    pair: Processes, session_clock: HookedClock, holder: object
) -> None:
    """They get the same new session, with one resource, whichever of them found that the old one is stale."""
    here, there = pair
    session_id = here.sessions.create_session().id
    there.add(session_id, "there")
    together = threading.Barrier(2)

    def check_out() -> Any:
        # Both have found the old one, and take it together.
        session_clock.at_reading(2, lambda: together.wait(WAIT))
        return checked_out(holder=holder, timeout=WAIT)(here.sessions, session_id)

    sessions = all_at_once(check_out, check_out)
    assert sessions[0] is sessions[1]
    assert (len(here.made), len(here.closed), here.sessions.stats().checked_out) == (2, 1, 0)
    assert there.add(session_id, "there again", timeout=0)


def test_threads_that_look_at_once_let_go_once(pair: Processes, session_clock: HookedClock) -> None:
    """Each gets the same new session: no caller is given one that has left memory."""
    here, there = pair
    session_id = here.sessions.create_session().id
    there.add(session_id, "there")
    together = threading.Barrier(2)

    def look() -> Any:
        session_clock.at_reading(1, lambda: together.wait(WAIT))
        return here.sessions.get_session(session_id)

    sessions = all_at_once(look, look)
    assert sessions[0] is sessions[1]
    assert sessions[0].resource is here.made[1]
    assert (len(here.made), len(here.closed)) == (2, 1)


def test_a_look_and_a_checkout_that_find_a_stale_copy_together(pair: Processes) -> None:
    """The session is live: no caller is told that it is not there; and both have the new one."""
    here, there = pair
    old = here.sessions.create_session()
    there.add(old.id, "there")
    looking: list[Any] = []

    def look_and_be_busy() -> None:
        looking.append(pool.submit(here.sessions.get_session, old.id))
        raise SessionBusyError("as if another process had it at this moment")

    here.store.before(LEASE, look_and_be_busy)
    with ThreadPoolExecutor(1) as pool:
        with here.sessions.checkout(old.id, timeout=WAIT) as held:
            assert held is looking[0].result(WAIT)
    assert held is not old
    assert (len(here.made), len(here.closed)) == (2, 1)


def test_a_look_does_not_wait_for_another_process(pair: Processes) -> None:
    """The thread that was about to check out what is let go waits for that process, and not with what is let go."""
    here, there = pair
    old = here.sessions.create_session()
    there.add(old.id, "there")
    checkout = there.sessions.checkout(old.id)
    read = threading.Event()
    looking: list[Any] = []

    def look_and_lose_it() -> None:
        here.store.after(LOAD, read.set)
        looking.append(pool.submit(here.sessions.get_session, old.id))
        # The look has found the copy to be stale, if it may read meanwhile.
        read.wait(1)
        checkout.__enter__()

    here.store.before(LEASE, look_and_lose_it)
    with ThreadPoolExecutor(2) as pool:
        taking = pool.submit(here.add, old.id, "here", timeout=WAIT)
        wait_until(lambda: looking)
        assert looking[0].result(WAIT / 2).resource is here.made[-1]
        assert not taking.done()
        checkout.__exit__()
        assert taking.result(WAIT) is here.made[-1]
    assert here.made[-1].knew == {"said": ["there"]}
    assert len(here.closed) == len(here.made) - 1


def test_a_session_that_is_passivated_while_it_is_looked_at_is_restored(process: Maker) -> None:
    """The caller gets one that is in memory."""
    here = process("here", max_active_sessions=1, on_full="passivate")
    old = here.sessions.create_session()
    here.store.after(LOAD, here.sessions.create_session)
    again = here.sessions.get_session(old.id)
    assert again is not old
    assert again.resource is here.made[-1]


def test_a_look_that_was_late_lets_nothing_go(pair: Processes) -> None:
    """What it read of the store was true until the session was given back here, and is not any more."""
    here, there = pair
    session_id = here.sessions.create_session().id
    there.add(session_id, "there")
    checkout = here.sessions.checkout(session_id)
    held = checkout.__enter__()
    here.store.after(LOAD, checkout.__exit__)
    assert here.sessions.get_session(session_id) is held
    assert (len(here.made), len(here.closed)) == (2, 1)


# ---- When something fails on the way


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_session_that_cannot_be_restored_is_free_elsewhere_at_once(
    pair: Processes, error: type[BaseException]
) -> None:
    """Its factory raises, and so does the checkout; nothing of it is here any more."""
    here, there = pair
    session_id = here.sessions.create_session().id
    there.add(session_id, "there")

    def fail(_: ManagedSession[Any]) -> None:
        raise error

    here.while_making = fail
    with pytest.raises(error):
        here.add(session_id, "here")
    assert (len(here.sessions), there.instances(session_id)) == (0, ())
    there.add(session_id, "there again", timeout=0)


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_checkout_interrupted_while_it_lets_go(pair: Processes, comes_back: bool) -> None:
    """Ctrl-C in the close callback: the session is free elsewhere with the next cleanup run, wherever it is by then."""
    here, there = pair
    session_id = here.sessions.create_session().id
    there.add(session_id, "there")

    def interrupt(_: ManagedSession[Any]) -> None:
        raise KeyboardInterrupt

    here.while_letting_go = interrupt
    with pytest.raises(KeyboardInterrupt):
        here.add(session_id, "here")
    here.while_letting_go = lambda _: None
    assert here.sessions.stats().checked_out == 0
    if comes_back:
        here.sessions.get_session(session_id)
    _assert_is_busy(there, session_id)
    here.sessions.cleanup_inactive_sessions()
    assert there.instances(session_id) == (("here",) if comes_back else ())
    there.add(session_id, "there again", timeout=0)
    for said in (["there", "there again"], ["there", "there again", "and again"]):
        assert here.sessions.get_session(session_id).resource.knew == {"said": said}
        there.add(session_id, "and again", timeout=0)


def test_a_checkout_that_the_store_could_not_note_goes_on_with_what_is_here(pair: Processes) -> None:
    """Though another process had the session before; a checkout inside has the same copy, which is let go then."""
    here, there = pair
    session = here.sessions.create_session()
    for joined in (False, True):
        there.add(session.id, "there")
        here.store.failing = {LEASE}
        with here.sessions.checkout(session.id) as held:
            assert held is session
            here.store.failing.clear()
            assert here.sessions.get_session(session.id) is session
            if joined:
                with here.sessions.checkout(session.id) as inner:
                    assert inner is session
        assert (len(here.closed), held.resource) == (int(joined), here.made[-1])
        session = here.sessions.get_session(session.id)
        assert session is not held
        assert len(here.closed) == 1 + joined


@pytest.mark.parametrize("changes", [False, True])
def test_a_lease_that_was_taken_and_not_told_of_hides_nothing(pair: Processes, changes: bool) -> None:
    """It is given back, and that another process had the session before is known still."""
    here, there = pair
    session = here.sessions.create_session(data={"said": []})
    checked_out()(there.sessions, session.id)

    def fail() -> None:
        raise StoreError("nobody heard of it")

    here.store.after(LEASE, fail)
    with here.sessions.checkout(session.id) as held:
        assert held is session
        if changes:
            held.data["said"] = ["here"]
    there.add(session.id, "there", timeout=0)
    assert here.sessions.get_session(session.id) is not session
    assert here.made[1].knew == {"said": ["here", "there"] if changes else ["there"]}


def test_a_session_that_ends_elsewhere_during_a_checkout_that_was_not_noted(pair: Processes) -> None:
    """Nothing changed in the block, so leaving it raises nothing; the next look finds that the session is gone."""
    here, there = pair
    session = here.sessions.create_session()
    here.store.failing = {LEASE}
    with here.sessions.checkout(session.id):
        here.store.failing.clear()
        there.sessions.close_session(session.id)
    with pytest.raises(SessionNotFoundError):
        here.sessions.get_session(session.id)
    assert [closing.cause for closing in here.closed] == [RemovalCause.PASSIVATED]


def test_a_store_that_fails_while_another_thread_lets_go(pair: Processes) -> None:
    """A checkout without the store's word never has a session that has left memory."""
    here, there = pair
    old = here.sessions.create_session()
    there.add(old.id, "there")
    looking: list[Any] = []

    def look_and_fail() -> None:
        looking.append(pool.submit(here.sessions.get_session, old.id))
        raise StoreError("no lease today")

    here.store.before(LEASE, look_and_fail)
    with ThreadPoolExecutor(1) as pool:
        with here.sessions.checkout(old.id, timeout=WAIT) as held:
            assert held is looking[0].result(WAIT)
            assert here.sessions.list_sessions() == [held]
            assert held.resource is here.made[-1]
    assert here.sessions.get_session(old.id).resource.knew == {"said": ["there"]}
    assert (len(here.made), len(here.closed)) == (2, 1)


def test_a_copy_that_turns_out_to_be_stale_while_the_store_fails(
    pair: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    """A look finds that out between a checkout's failure and what is made of it: the checkout gets the new copy."""
    here, there = pair
    old = here.sessions.create_session()
    there.add(old.id, "there")
    looking: list[Any] = []

    def look(_: logging.LogRecord) -> bool:
        caplog.handler.removeFilter(look)
        here.store.failing.clear()
        looking.append(pool.submit(here.sessions.get_session, old.id))
        wait_until(lambda: not len(here.sessions))
        return True

    # Where the failure is told.
    caplog.handler.addFilter(look)
    here.store.failing = {LEASE}
    with ThreadPoolExecutor(1) as pool, here.sessions.checkout(old.id, timeout=WAIT) as held:
        assert held is looking[0].result(WAIT) is not old
    assert (len(here.made), len(here.closed)) == (2, 1)


def test_a_session_that_leaves_with_a_conflict_is_attached_to_no_instance(
    pair: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process saved it while the close callback ran here: that change is lost and logged, and others may have
    the session to themselves."""
    here, there = pair
    session = here.sessions.create_session()
    there.add(session.id, "there")

    def close(closing: ManagedSession[Any]) -> None:
        closing.data["said"] = "closing"
        there.add(session.id, "meanwhile")

    here.while_letting_go = close
    here.while_making = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        here.sessions.get_session(session.id)
    here.while_letting_go = lambda _: None
    assert f"the last changes of session {session.id!r} are not in the store" in caplog.text
    assert there.instances(session.id) == ()
    assert there.sessions.get_session(session.id).data == {"said": ["there", "meanwhile"]}
