"""One store, several coordinators: in one process here, and in several processes at the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from sessionkit import (
    CoordinatorConfig,
    EventKind,
    RemovalCause,
    SessionBusyError,
    SessionConflictError,
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

from ..helpers.support import WAIT, Closings, WatchedStore, in_thread

CONFIG = CoordinatorConfig(session_timeout=60, cleanup_interval=10)

Pair = tuple[SessionCoordinator[Any], SessionCoordinator[Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def closings() -> tuple[Closings, Closings]:
    return Closings(), Closings()


@pytest.fixture
def pair(session_coordinator: CoordinatorFactory, path: Path, closings: tuple[Closings, Closings]) -> Pair:
    """Two coordinators, each with a store of its own on the same file."""
    here, there = (session_coordinator(CONFIG, store=SQLiteStore(path), on_close=closing) for closing in closings)
    return here, there


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
    """Whoever holds it is told when giving back what was changed; nothing is brought back."""
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


def test_a_restored_name_that_somebody_gone_has_here(pair: Pair) -> None:
    """The one here makes way, because it was ended elsewhere; asked for by id too."""
    here, there = pair
    old = here.create_session("support")
    there.close_session(old.id)
    new = there.create_session("support")
    assert here.get_session(new.id).name == "support"
    assert [session.id for session in here.list_sessions()] == [new.id]


# ---- Leases


def test_an_exclusive_checkout_excludes_across_processes(pair: Pair) -> None:
    """With no time to wait it raises at once, whichever way it is asked; given back, it is free."""
    here, there = pair
    session = here.create_session()
    with here.checkout(session.id):
        for exclusive in (True, False):
            with pytest.raises(SessionBusyError, match="another process"):
                there.checkout(session.id, exclusive=exclusive, timeout=0).__enter__()
        assert there.stats().checked_out == 0
        assert there.get_session(session.id).id == session.id
    with there.checkout(session.id, timeout=0, exclusive=False), here.checkout(session.id, timeout=0, exclusive=False):
        with pytest.raises(SessionBusyError):
            here.checkout(session.id, timeout=0).__enter__()
    with there.checkout(session.id, timeout=0):
        pass


def test_a_checkout_waits_for_another_process(pair: Pair) -> None:
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
        while there.stats().checked_out == 0:
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


def test_both_sharing_and_changing_is_a_conflict(pair: Pair) -> None:
    """Nobody's update is lost silently: the second is told, and the next checkout has what the first one saved."""
    here, there = pair
    session = here.create_session()
    checkout = here.checkout(session.id, exclusive=False)
    checkout.__enter__().data["by"] = "here"
    with there.checkout(session.id, exclusive=False) as other:
        other.data["by"] = "there"
    with pytest.raises(SessionConflictError, match="check it out again"):
        checkout.__exit__()
    assert here.stats().store.conflicts == 1  # type: ignore[union-attr]  # there is a store
    with here.checkout(session.id) as held:
        assert held.data == {"by": "there"}


def test_a_look_changes_nothing_under_a_checkout(pair: Pair) -> None:
    """While somebody here works on the data, what others saved is not put into it."""
    here, there = pair
    session = here.create_session()
    with here.checkout(session.id, exclusive=False):
        with there.checkout(session.id, exclusive=False) as other:
            other.data["by"] = "there"
        assert here.get_session(session.id).data == {}
    assert here.get_session(session.id).data == {"by": "there"}


def test_sharing_in_one_process_may_become_exclusive(pair: Pair) -> None:
    """A sole sharer may take it exclusively, which then holds across processes too."""
    here, there = pair
    session = here.create_session()
    with here.checkout(session.id, exclusive=False):
        with there.checkout(session.id, exclusive=False, timeout=0):
            pass
        with here.checkout(session.id, timeout=0):
            with pytest.raises(SessionBusyError):
                there.checkout(session.id, exclusive=False, timeout=0).__enter__()


# ---- Expiry


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


def test_who_seemed_expired_and_lives_on_is_not_called_expired(pair: Pair, session_clock: ManualClock) -> None:
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


def test_a_cleanup_with_its_clock_ahead_removes_nobody_who_is_in_memory_elsewhere(
    session_coordinator: CoordinatorFactory, path: Path
) -> None:
    """A cleanup removes nobody who is in memory of another living process. Clock clock_offset makes no difference."""
    here = session_coordinator(CONFIG, store=SQLiteStore(path))
    session = here.create_session()
    ahead = session_coordinator(CONFIG, clock=ManualClock(wall_start=2e9), store=SQLiteStore(path))
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


def test_evicted_here_and_used_elsewhere(path: Path, session_coordinator: CoordinatorFactory) -> None:
    """Who is evicted while another process has it in memory only leaves this one."""
    closings = Closings()
    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="evict")
    here = session_coordinator(config, store=SQLiteStore(path), on_close=closings)
    there = session_coordinator(config, store=SQLiteStore(path))
    session = here.create_session("first")
    there.get_session(session.id)
    here.create_session("second")
    assert closings == [("first", RemovalCause.PASSIVATED)]
    assert session.id in there


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


# ---- Real processes


@contextmanager
def processes(number: int, target: Callable[..., Any], *arguments: Any) -> Iterator[list[Any]]:
    """Run a function in several new processes, started at once, and give their results."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(number)
    with ExitStack() as stack:
        pipes = []
        for index in range(number):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_report, args=(sender, barrier, target, index, *arguments))
            process.start()
            stack.callback(process.join, WAIT)
            sender.close()
            pipes.append(receiver)
        yield [receiver.recv() for receiver in pipes]


def _report(sender: Any, barrier: Barrier, target: Callable[..., Any], *arguments: Any) -> None:
    sender.send(target(barrier, *arguments))


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


def test_no_update_is_lost(path: Path) -> None:
    """However many processes change the same sessions under exclusive checkouts, no update is lost."""
    with SessionCoordinator[Any](store=SQLiteStore(path)) as coordinator:
        ids = [coordinator.create_session().id for _ in range(3)]
    with processes(4, _hammer, path, ids, 40) as results:
        expected = sum((Counter(result) for result in results), Counter[str]())
    store = SQLiteStore(path)
    for session_id in ids:
        found = store.load(session_id)
        assert found is not None
        data = json.loads(found.record.data)
        assert data["count"] == len(data["by"]) == found.record.message_count == expected[session_id]
    store.close()
    assert sum(expected.values()) == 160


def _expire(all_are_ready: Barrier, index: int, path: Path, ids: list[str]) -> list[tuple[str, str]]:
    """Have some sessions in memory, let all expire, and clean up; for whom on_close or an event said so, and why."""
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


@contextmanager
def killed_when_ready(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run work in a child until it says that it is ready, then the block, and then kill the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        work(*arguments, writer)
    os.close(writer)
    assert os.read(reader, 1) == b"!"
    yield
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)


def _hold(path: str, session_id: str, ready: int) -> None:
    coordinator = SessionCoordinator[Any](store=SQLiteStore(path))
    with coordinator.checkout(session_id) as session:
        session.data["unsaved"] = True
        os.write(ready, b"!")
        signal.pause()


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


def test_what_a_killed_process_had_not_written(pair: Pair, path: Path, session_clock: ManualClock) -> None:
    """Touches since the last cleanup run may be lost with the process; idle time goes on across a restart in wall
    time.
    """
    here, _ = pair
    session = here.create_session()
    here.close()
    with killed_when_ready(_touch, str(path), session.id):
        pass
    store = SQLiteStore(path)
    found = store.load(session.id)
    store.close()
    assert found is not None
    assert (found.record.last_active, found.lag) == (session_clock.wall() + 20, 0.0)


def test_a_lease_ends_when_its_holder_dies(pair: Pair, path: Path) -> None:
    """A lease ends when its holder dies, and the session is free at once. What it did not save is not there."""
    here, _ = pair
    session = here.create_session()
    with killed_when_ready(_hold, str(path), session.id):
        with pytest.raises(SessionBusyError):
            here.checkout(session.id, timeout=0).__enter__()
    with here.checkout(session.id, timeout=0) as held:
        assert held.data == {}


def test_watched_calls_of_one_checkout(session_coordinator: CoordinatorFactory, path: Path) -> None:
    """A checkout is one step of the store when taken, and one when given back, which also saves what changed."""
    store = WatchedStore(SQLiteStore(path))
    coordinator = session_coordinator(CONFIG, store=store)
    session = coordinator.create_session()
    store.calls.clear()
    with coordinator.checkout(session.id) as held:
        held.data["a"] = 1
    assert store.calls == {"lease": 1, "give_back": 1}
    store.calls.clear()
    with coordinator.checkout(session.id):
        pass
    assert store.calls == {"lease": 1, "release": 1}
    store.calls.clear()
    coordinator.get_session(session.id)
    assert store.calls == {"load": 1}


def test_a_name_here_that_the_store_cannot_tell_of(path: Path, session_coordinator: CoordinatorFactory) -> None:
    """Whoever has the name in memory keeps it while the store fails to say that he is gone: nothing is restored."""
    store = WatchedStore(SQLiteStore(path))
    here = session_coordinator(CONFIG, store=store)
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    old = here.create_session("support")
    there.close_session(old.id)
    new = there.create_session("support")
    load = store.store.load

    def load_others(session_id: str, instance: str | None = None) -> Any:
        if session_id == old.id:
            raise StoreError("no load today")
        return load(session_id, instance)

    with patch.object(store.store, "load", load_others), pytest.raises(SessionExistsError):
        here.get_session(new.id)
    assert here.get_session(new.id).name == "support"


# ---- What a hostile reader found


def test_a_give_back_during_close_does_not_give_up_what_others_hold(
    session_coordinator: CoordinatorFactory, path: Path, pair: Pair
) -> None:
    """While close() is under way, leases and attachments stay until the last session has left."""
    here, there = pair
    first, second = here.create_session(), here.create_session()
    outer, inner = here.checkout(first.id), here.checkout(second.id)
    outer.__enter__()
    inner.__enter__()
    here._roster.closed = True
    inner.__exit__()
    with pytest.raises(SessionBusyError):
        there.checkout(first.id, timeout=0).__enter__()
    here.close()
    outer.__exit__()
    with there.checkout(first.id, timeout=0):
        pass


def test_the_first_of_several_sharers_catches_up_before_the_others_work(pair: Pair) -> None:
    """A second one that comes in between finds the newest version, and takes nothing away from under the first."""
    here, there = pair
    session = here.create_session()
    with there.checkout(session.id) as other:
        other.data["by"] = "there"
    standing = here._archive.standing  # type: ignore[union-attr]  # there is a store
    catch_up = standing.catch_up
    users: list[int] = []

    def note(caught: Any, record: Any) -> None:
        users.append(len(here._records.written(caught).users))  # type: ignore[union-attr]  # it is in memory
        catch_up(caught, record)

    standing.catch_up = note  # type: ignore[method-assign]  # to see when it comes
    with here.checkout(session.id, exclusive=False) as first, here.checkout(session.id, exclusive=False):
        assert first.data == {"by": "there"}
    assert users == [0]


def test_a_look_that_was_late_turns_nothing_back(path: Path, session_coordinator: CoordinatorFactory) -> None:
    """A record that was read before somebody here saved a newer version is not taken over."""
    store = WatchedStore(SQLiteStore(path))
    here = session_coordinator(CONFIG, store=store)
    session = here.create_session()
    load = store.store.load

    def load_and_save(*arguments: Any) -> Any:
        found = load(*arguments)
        store.store.load = load
        with here.checkout(session.id) as held:
            held.data["step"] = 1
        return found

    store.store.load = load_and_save
    assert here.get_session(session.id).data == {"step": 1}


def test_an_interrupted_give_back_saves_and_releases_all_the_same(
    path: Path, session_coordinator: CoordinatorFactory
) -> None:
    """Ctrl-C during the save: it is tried once more, and the session is free."""
    store = WatchedStore(SQLiteStore(path))
    here = session_coordinator(CONFIG, store=store)
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    session = here.create_session()
    release = store.store.release

    def interrupted(*arguments: Any) -> Any:
        store.store.release = release
        raise KeyboardInterrupt

    store.store.release = interrupted
    checkout = here.checkout(session.id)
    checkout.__enter__().data["step"] = 1
    with pytest.raises(KeyboardInterrupt):
        checkout.__exit__()
    with there.checkout(session.id, timeout=0) as other:
        assert other.data == {"step": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError])
def test_a_lease_that_was_taken_and_not_told_of_is_given_back(
    path: Path, session_coordinator: CoordinatorFactory, error: type[BaseException]
) -> None:
    """Interrupted, or failed after it was done: the checkout's end, or the next cleanup run, gives it back."""
    store = WatchedStore(SQLiteStore(path))
    here = session_coordinator(CONFIG, store=store)
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    session = here.create_session()
    attach = store.store.attach

    def taken_and_lost(*arguments: Any) -> Any:
        store.store.attach = attach
        attach(*arguments)
        raise error

    store.store.attach = taken_and_lost
    try:
        with here.checkout(session.id):
            store.failing = {"release"}
    except KeyboardInterrupt:
        pass
    store.failing.clear()
    with pytest.raises(SessionBusyError):
        there.checkout(session.id, timeout=0).__enter__()
    here.cleanup_inactive_sessions()
    with there.checkout(session.id, timeout=0):
        pass


def test_a_lease_waiting_to_be_given_back_is_forgotten_with_its_session(
    path: Path, session_coordinator: CoordinatorFactory
) -> None:
    """And one that is in use again is left alone."""
    store = WatchedStore(SQLiteStore(path))
    here = session_coordinator(CONFIG, store=store)
    sessions = [here.create_session() for _ in range(2)]
    for session in sessions:
        store.failing = {"release"}
        checkout = here.checkout(session.id)
        checkout.__enter__()
        with pytest.raises(StoreError):
            checkout.__exit__()
    store.failing.clear()
    here.close_session(sessions[0].id)
    with here.checkout(sessions[1].id):
        store.calls.clear()
        here.cleanup_inactive_sessions()
        assert not store.calls["release"]
    assert store.calls["release"] == 1


def test_a_session_that_could_not_be_detached_is_detached_later(
    path: Path, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Until then nobody else may remove it; one that has come back meanwhile is left alone."""
    store = WatchedStore(SQLiteStore(path))
    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=2, on_full="passivate")
    here = session_coordinator(config, store=store)
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    store.failing = {"detach"}
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
    assert there._archive.records.page(None) == []  # type: ignore[union-attr]  # there is a store


def test_a_session_created_anew_is_not_deleted_for_its_predecessor(
    path: Path, session_coordinator: CoordinatorFactory
) -> None:
    """A delete that waits to be tried again is over once the id has been created again."""
    store = WatchedStore(SQLiteStore(path))
    here = session_coordinator(CONFIG, store=store)
    here.create_session(session_id="s-1", data={"life": 1})
    store.failing = {"delete"}
    here.close_session("s-1")
    store.store.delete({"s-1": None})
    store.failing.clear()
    here.create_session(session_id="s-1", data={"life": 2})
    here.cleanup_inactive_sessions()
    assert here.get_session("s-1").data == {"life": 2}
    assert there_is(store, "s-1")


def there_is(store: WatchedStore, session_id: str) -> bool:
    return store.store.load(session_id) is not None


def test_a_delete_that_is_interrupted_is_done_later(path: Path, session_coordinator: CoordinatorFactory) -> None:
    """Ctrl-C in the middle: the session has ended, and does not come back."""
    store = WatchedStore(SQLiteStore(path))
    here = session_coordinator(CONFIG, store=store)
    session = here.create_session()
    delete = store.store.delete

    def interrupted(*arguments: Any) -> Any:
        store.store.delete = delete
        raise KeyboardInterrupt

    store.store.delete = interrupted
    with pytest.raises(KeyboardInterrupt):
        here.close_session(session.id)
    with pytest.raises(SessionExpiredError):
        here.get_session(session.id)
    here.cleanup_inactive_sessions()
    assert not there_is(store, session.id)


def test_a_session_passivated_while_it_is_closed_is_closed(path: Path, session_coordinator: CoordinatorFactory) -> None:
    """It was in memory at the first look, and in the store only at the second."""
    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    here = session_coordinator(config, store=SQLiteStore(path))
    session = here.create_session()
    archive = here._archive
    assert archive is not None
    close = archive.close_session

    def close_late(session_id: str) -> bool:
        archive.close_session = close  # type: ignore[method-assign]  # once only
        stored = close(session_id)
        here.create_session()
        return stored

    archive.close_session = close_late  # type: ignore[method-assign]  # comes in between
    here.close_session(session.id)
    with pytest.raises(SessionExpiredError):
        here.get_session(session.id)


def test_an_interrupted_restoration_leaves_no_trace(path: Path, session_coordinator: CoordinatorFactory) -> None:
    """Ctrl-C just after we were noted to have it in memory: we are not, and it expires."""
    store = WatchedStore(SQLiteStore(path))
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    session = there.create_session()
    there.close()
    here = session_coordinator(CONFIG, store=store)
    attach = store.store.attach

    def interrupted(*arguments: Any) -> Any:
        store.store.attach = attach
        attach(*arguments)
        raise KeyboardInterrupt

    store.store.attach = interrupted
    with pytest.raises(KeyboardInterrupt):
        here.get_session(session.id)
    assert store.store.load(session.id).lag == 0
    assert here.get_session(session.id).id == session.id


def test_looks_alone_write_no_activity(
    path: Path, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A session that was only looked at here is passivated with the activity that its record had."""
    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    here = session_coordinator(config, store=SQLiteStore(path))
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    session = there.create_session()
    wall = session_clock.wall()
    session_clock.advance(50)
    here.get_session(session.id)
    here.create_session()
    store = SQLiteStore(path)
    found = store.load(session.id)
    store.close()
    assert found is not None
    assert found.record.last_active == wall


def test_what_a_factory_does_with_a_restored_session_is_activity(
    path: Path, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A message that it records buys a full timeout."""
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    session = there.create_session()
    there.close()
    session_clock.advance(50)
    here = session_coordinator(
        CONFIG, store=SQLiteStore(path), resource_factory=lambda restored: restored.record_message()
    )
    assert here.get_session(session.id).metadata.last_active == 50
    session_clock.advance(50)
    assert session.id in here


def test_a_restoration_interrupted_when_it_was_done(path: Path, session_coordinator: CoordinatorFactory) -> None:
    """Ctrl-C after the factory has run: the session is in memory, and no other process may remove it."""

    class InterruptedClock(ManualClock):
        interrupts = False

        def __call__(self) -> float:
            interrupts, self.interrupts = self.interrupts, False
            if interrupts:
                raise KeyboardInterrupt
            return super().__call__()

    clock = InterruptedClock()
    there = session_coordinator(CONFIG, clock=clock, store=SQLiteStore(path))
    session = there.create_session()
    there.close()
    here = session_coordinator(
        CONFIG,
        clock=clock,
        store=SQLiteStore(path),
        resource_factory=lambda _: setattr(clock, "interrupts", True),
    )
    with pytest.raises(KeyboardInterrupt):
        here.get_session(session.id)
    assert len(here) == 1
    again = session_coordinator(CONFIG, clock=clock, store=SQLiteStore(path))
    clock.advance(1000)
    assert again.cleanup_inactive_sessions() == 0


def test_who_asks_while_it_is_seen_whether_a_session_expired_waits_for_the_answer(
    path: Path, session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """It was idle here only: nobody is told that it expired, and who waited gets it back."""
    store = WatchedStore(SQLiteStore(path))
    here = session_coordinator(CONFIG, store=store)
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    session = here.create_session()
    there.get_session(session.id)
    session_clock.advance(50)
    there.touch_session(session.id)
    session_clock.advance(20)
    delete, moved = store.store.delete, here._finalizer.moved
    waits, waiting = moved.wait, threading.Event()

    def note_the_wait(timeout: float) -> bool:
        waiting.set()
        return waits(timeout)

    def ask_meanwhile(*arguments: Any) -> Any:
        asking.append(pool.submit(here.get_session, session.id))
        assert waiting.wait(WAIT)
        return delete(*arguments)

    asking: list[Any] = []
    moved.wait = note_the_wait  # type: ignore[method-assign,assignment]  # to see when it comes
    store.store.delete = ask_meanwhile
    with ThreadPoolExecutor(1) as pool:
        assert here.cleanup_inactive_sessions() == 0
        assert asking[0].result(WAIT).id == session.id


def test_a_session_that_came_back_is_not_detached(path: Path, session_coordinator: CoordinatorFactory) -> None:
    """It waited to be detached, and is in memory again: that it is stays noted."""
    store = WatchedStore(SQLiteStore(path))
    config = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=1, on_full="passivate")
    here = session_coordinator(config, store=store)
    session = here.create_session()
    store.failing = {"detach"}
    here.create_session()
    store.failing.clear()
    here.get_session(session.id)
    here.cleanup_inactive_sessions()
    assert store.store.load(session.id).lag == float("inf")


def test_a_close_callback_of_a_batch_may_wait_for_another_thread_that_writes(
    path: Path, session_coordinator: CoordinatorFactory
) -> None:
    """Whoever was found to have ended elsewhere is closed once the batch is done, with no lock held."""

    def on_close(session: Any, cause: RemovalCause) -> None:
        with in_thread(here.cleanup_inactive_sessions) as cleaning:
            assert cleaning.result(WAIT) == 0
        closed.append(cause)

    closed: list[RemovalCause] = []
    here = session_coordinator(CONFIG, store=SQLiteStore(path), on_close=on_close)
    there = session_coordinator(CONFIG, store=SQLiteStore(path))
    session = here.create_session()
    there.close_session(session.id)
    here.touch_session(session.id)
    here.cleanup_inactive_sessions()
    assert closed == [RemovalCause.PASSIVATED]
