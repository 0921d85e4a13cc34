"""Forked children start clean, and the end of the program is quiet."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sessionkit.core.sweep import BATCH

from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionNotFoundError,
)
from sessionkit.core.cleanup import THREAD_NAME, CleanupRun, CleanupTask
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, Closings, in_child, in_thread

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@fork
def test_rule_11_a_child_starts_with_no_sessions_and_its_own_task(session_clock: ManualClock) -> None:
    """After fork the child's coordinator is empty, has a living cleanup thread, and closes nothing of its parent's."""
    closings = Closings()

    def child() -> tuple[Any, ...]:
        stats = coordinator.stats()
        assert parents_task._closed
        threads = [thread.name for thread in threading.enumerate()]
        with pytest.raises(SessionNotFoundError):
            coordinator.get_session(inherited.id)
        with pytest.raises(SessionNotFoundError):
            inherited.touch()
        own = coordinator.create_session("support")
        session_clock.advance(4000)
        removed = coordinator.cleanup_inactive_sessions()
        coordinator.close()
        return stats.live, stats.created, stats.cleanup.alive, THREAD_NAME in threads, own.name, removed, list(closings)

    with SessionCoordinator(clock=session_clock, on_close=closings) as coordinator:
        inherited = coordinator.create_session("support")
        parents_task = coordinator._cleanup_task
        assert in_child(child) == (0, 0, True, True, "support", 1, [("support", RemovalCause.IDLE)])
        assert coordinator.get_session(inherited.id) is inherited
    assert closings == [("support", RemovalCause.SHUTDOWN)]


@fork
def test_rule_11_a_child_may_use_the_coordinator_while_its_parent_holds_the_lock(
    session_coordinator: CoordinatorFactory,
) -> None:
    """The lock, the queue and the channel may all be taken by another thread of the parent at the fork."""
    coordinator = session_coordinator()
    channel = coordinator.subscribe()
    held = coordinator.create_session()
    locked, unlock = threading.Event(), threading.Event()

    def hold_everything() -> None:
        with coordinator._lock, coordinator._cleanup_task._lock:
            locked.set()
            assert unlock.wait(WAIT)

    def child() -> tuple[Any, ...]:
        session = coordinator.create_session()
        with coordinator.checkout(session.id), coordinator.subscribe() as own:
            session.record_message()
            heard = own.get(timeout=0)
        coordinator.start_cleanup_task()
        coordinator.close()
        return channel.closed, [event.session_id for event in channel], heard is not None

    with in_thread(hold_everything):
        assert locked.wait(WAIT)
        closed, events, heard = in_child(child)
        unlock.set()
    assert (closed, events, heard) == (True, [held.id], True)
    assert not channel.closed


@fork
def test_a_coordinator_without_a_task_has_none_in_the_child(session_coordinator: CoordinatorFactory) -> None:
    """A child starts a cleanup thread only where its parent had one."""
    coordinator = session_coordinator()
    assert in_child(lambda: coordinator.stats().cleanup.alive) is False
    coordinator.start_cleanup_task()
    coordinator.stop_cleanup_task()
    assert in_child(lambda: coordinator.stats().cleanup.alive) is False
    coordinator.close()
    assert in_child(lambda: len(coordinator)) == 0


@fork
def test_a_child_that_is_forked_inside_a_checkout_gives_nothing_back(
    session_coordinator: CoordinatorFactory,
) -> None:
    """Leaving the inherited block in the child closes nothing and changes nothing of what the child made since."""
    closings = Closings()
    coordinator = session_coordinator(on_close=closings)
    session = coordinator.create_session(session_id="s-1")

    def child() -> tuple[Any, ...]:
        own = coordinator.create_session(session_id="s-1")
        with coordinator.checkout("s-1"):
            checkout.__exit__()
            return coordinator.stats().checked_out, own.id in coordinator, list(closings)

    checkout = coordinator.checkout(session.id)
    with checkout:
        coordinator.close_session(session.id)
        assert in_child(child) == (1, True, [])
        assert closings == []
    assert closings == [("s-1", RemovalCause.CLOSED)]


@fork
def test_a_close_callback_that_forks_does_not_go_on_in_the_child(session_clock: ManualClock) -> None:
    """A fork inside a close callback: the child closes none of the sessions that its parent is closing."""
    asked: list[str | None] = []
    answers: list[Any] = []

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        asked.append(session.name)
        if session.name == "a":
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                forked.append(writer)
                return
            os.close(writer)
            with os.fdopen(reader, "rb") as pipe:
                answers.append(pipe.read())
            os.waitpid(pid, 0)

    forked: list[int] = []
    coordinator = SessionCoordinator(clock=session_clock, on_close=on_close)
    for name in ("a", "b", "c"):
        coordinator.create_session(name)
    session_clock.advance(4000)
    finalizer = coordinator._finalizer
    removed = coordinator.cleanup_inactive_sessions()
    if forked:
        assert not any(finalizer.removed.values())
        os.write(forked[0], repr((asked, removed, len(coordinator))).encode())
        os._exit(0)
    coordinator.close()

    assert (asked, removed) == (["a", "b", "c"], 3)
    assert answers == [repr((["a"], 1, 0)).encode()]


@fork
@pytest.mark.parametrize("forks_in", ["factory", "on_close"])
def test_a_creation_that_forks_makes_no_session_in_the_child(forks_in: str, session_clock: ManualClock) -> None:
    """A fork in the factory, or while the evicted is closed: the child has no session, and makes and closes nothing."""
    made: list[str | None] = []
    closings = Closings()
    answers: list[Any] = []
    forked: list[int] = []

    def fork_for(session: ManagedSession[Any], where: str, name: str) -> None:
        if where != forks_in or session.name != name:
            return
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            forked.append(writer)
            return
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answers.append(pipe.read())
        os.waitpid(pid, 0)

    def factory(session: ManagedSession[Any]) -> str:
        made.append(session.name)
        fork_for(session, "factory", "new")
        return "the parent's agent"

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        fork_for(session, "on_close", "old")

    config = CoordinatorConfig(max_active_sessions=1, on_full="evict")
    coordinator = SessionCoordinator(config, clock=session_clock, resource_factory=factory, on_close=on_close)
    coordinator.create_session("old")
    outcome = "created"
    try:
        coordinator.create_session("new")
    except SessionNotFoundError as error:
        outcome = type(error).__name__
    if forked:
        coordinator.close()
        os.write(forked[0], repr((outcome, len(coordinator), made, list(closings))).encode())
        os._exit(0)
    coordinator.close()

    made_by_then = ["old", "new"] if forks_in == "factory" else ["old"]
    evicted = [("old", RemovalCause.CAPACITY)]
    assert answers == [repr(("SessionNotFoundError", 0, made_by_then, evicted)).encode()]
    assert (outcome, made) == ("created", ["old", "new"])
    assert closings == [*evicted, ("new", RemovalCause.SHUTDOWN)]


@fork
def test_a_closed_coordinator_stays_closed_in_the_child(session_coordinator: CoordinatorFactory) -> None:
    """A fork does not reopen what was closed."""
    coordinator = session_coordinator()
    coordinator.close()

    def child() -> None:
        with pytest.raises(CoordinatorClosedError):
            coordinator.create_session()
        with pytest.raises(CoordinatorClosedError):
            coordinator.start_cleanup_task()
        with pytest.raises(CoordinatorClosedError):
            coordinator.subscribe()

    assert in_child(child) is None


@fork
def test_giving_back_what_the_parent_had_changes_no_figures_of_the_child(
    session_coordinator: CoordinatorFactory,
) -> None:
    """A child that has a session of the same id checked out still has it when it leaves the parent's block."""
    coordinator = session_coordinator()
    coordinator.create_session(session_id="it")
    inherited = coordinator.checkout("it")

    def child() -> list[int]:
        coordinator.create_session(session_id="it")
        figures = []
        with coordinator.checkout("it"):
            inherited.__exit__()
            figures.append(coordinator.stats().checked_out)
        return [*figures, coordinator.stats().checked_out]

    with inherited:
        assert in_child(child) == [1, 0]


@pytest.mark.parametrize("way", ["close", "cleanup_inactive_sessions"])
def test_what_forks_many_sessions_deep_does_not_ask_for_the_lock_of_its_parent(
    way: str, session_clock: ManualClock
) -> None:
    """A close callback that forks returns in the child too: what comes after it is the parent's, and so is the lock."""

    def on_close(*_: object) -> None:
        # What happens in a child, in this process: its coordinator is new, and nobody will ever let go of the old lock.
        if not parents_lock:
            parents_lock.append(coordinator._lock)
            coordinator.after_fork_in_child()
            held.enter_context(in_thread(hold_lock))
            assert has_lock.wait(WAIT)

    def hold_lock() -> None:
        with parents_lock[0]:
            has_lock.set()
            assert done.wait(WAIT)

    parents_lock: list[Any] = []
    has_lock, done = threading.Event(), threading.Event()
    coordinator = SessionCoordinator[Any](clock=session_clock, on_close=on_close)
    for _ in range(3 * BATCH):
        coordinator.create_session()
    session_clock.advance(4000)
    with ExitStack() as held:
        try:
            with in_thread(getattr(coordinator, way)) as called:
                assert called.exception(WAIT) is None
        finally:
            done.set()
    assert len(coordinator) == 0
    coordinator.close()


@fork
def test_one_that_cannot_start_clean_does_not_keep_the_others_from_it(
    session_coordinator: CoordinatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while one coordinator starts clean in a child is reported, and the others start clean."""
    coordinators = [session_coordinator() for _ in range(3)]
    for coordinator in coordinators:
        coordinator.create_session()

    def fail() -> None:
        raise OSError("not today")

    monkeypatch.setattr(coordinators[1]._bus, "abandon", fail)
    assert in_child(lambda: [len(coordinators[0]), len(coordinators[2])]) == [0, 0]


@fork
def test_a_run_of_the_task_that_forks_is_the_last_one_in_the_child(session_clock: ManualClock) -> None:
    """A fork in the cleanup thread: the child's copy of that thread ends, and its own task is another one."""

    class Cleaner:
        runs = 0

        def run(self) -> CleanupRun:
            self.runs += 1
            task.abandon()
            if self.runs == 2:
                raise OSError("failed, and forked")
            return CleanupRun(0.0, 0)

    cleaner = Cleaner()
    task = CleanupTask(10, cleaner.run)
    assert task._fire() is False
    assert task._fire() is False
    task.start()
    assert not task.stats().alive


def use_in_process(coordinator: SessionCoordinator[Any], answers: Any) -> None:
    with coordinator:
        session = coordinator.create_session()
        answers.put((len(coordinator), coordinator.stats().cleanup.alive, session.id in coordinator))


@fork
def test_multiprocessing_with_fork() -> None:
    """The same holds for a Process of multiprocessing's fork context."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with SessionCoordinator[Any]() as coordinator:
        coordinator.create_session()
        process = context.Process(target=use_in_process, args=(coordinator, answers))
        process.start()
        assert answers.get() == (1, True, True)
        process.join(WAIT)
        assert process.exitcode == 0
        assert len(coordinator) == 1


RUNNING_AT_EXIT = """
import threading
from sessionkit import CoordinatorConfig, SessionCoordinator
ran = threading.Event()
coordinator = SessionCoordinator(
    CoordinatorConfig(session_timeout=0.001, cleanup_interval=0.0001), on_close=lambda session, cause: ran.set()
)
coordinator.start_cleanup_task()
for number in range(100):
    coordinator.create_session(f"session {number}")
channel = coordinator.subscribe()
threading.Thread(target=channel.get, daemon=True).start()
assert ran.wait(20)
"""


IDLE_AT_EXIT = """
from sessionkit import SessionCoordinator
coordinator = SessionCoordinator()
coordinator.start_cleanup_task()
coordinator.create_session()
"""


@pytest.mark.parametrize("source", [RUNNING_AT_EXIT, IDLE_AT_EXIT], ids=["at work", "idle"])
def test_the_interpreter_exits_quietly_with_a_running_coordinator(source: str, tmp_path: Path) -> None:
    """Programs that end while the cleanup thread runs print nothing and do not hang.

    Fifty of each kind.
    """
    program = tmp_path / "running_at_exit.py"
    program.write_text(source)

    # A user's program is not measured, and measuring has work of its own to do at the exit.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}

    def run(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603  our own program
            [sys.executable, program], capture_output=True, text=True, timeout=60, check=False, env=environment
        )

    with ThreadPoolExecutor(2) as pool:
        outcomes = {(done.returncode, done.stdout, done.stderr) for done in pool.map(run, range(50))}
    assert outcomes == {(0, "", "")}


def test_a_program_ends_that_still_has_a_response_open() -> None:
    """A request that is a global, and is given back by its finalizer when the interpreter exits, holds nothing up."""
    program = """
from sessionkit import SessionCoordinator
from sessionkit.wsgi import SessionMiddleware

def application(environ, start_response):
    environ["sessionkit.session"]["n"] = 1
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

middleware = SessionMiddleware(application, SessionCoordinator())
response = middleware({"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.url_scheme": "http"}, lambda *_: None)
"""
    ended = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
