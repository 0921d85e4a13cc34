"""Removing what is due: by hand, and by the task."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from sessionkit import CoordinatorConfig, ManagedSession, RemovalCause, SessionCoordinator
from sessionkit.core.cleanup import THREAD_NAME, CleanupRun, CleanupTask
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.util.timer import PeriodicThread

from ..helpers.support import WAIT, Closings, in_thread

EVERY_MILLISECOND = CoordinatorConfig(session_timeout=60, cleanup_interval=0.001)


class Cleaner:
    """What a task calls; counts its runs, of which each removes seven sessions."""

    def __init__(self) -> None:
        self.runs = 0
        self.ran_twice = threading.Event()

    def run(self) -> CleanupRun:
        self.runs += 1
        if self.runs == 2:
            self.ran_twice.set()
        return CleanupRun(at=float(self.runs), removed=7)


def cleanup_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_cleanup_removes_what_is_due_and_says_how_many(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """One pass removes each session past its own timeout, least recently active first, and returns the number."""
    closings = Closings()
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10), on_close=closings)
    for name, timeout in (("a", None), ("b", 600), ("c", None), ("d", 30)):
        coordinator.create_session(name, session_timeout=timeout)
        session_clock.advance(1)
    session_clock.advance(60)

    assert coordinator.cleanup_inactive_sessions(dry_run=True) == 3
    assert closings == []
    assert coordinator.cleanup_inactive_sessions() == 3
    assert sorted(closings) == [(name, RemovalCause.IDLE) for name in "acd"]
    assert coordinator.cleanup_inactive_sessions() == 0
    assert len(coordinator) == 1


def test_max_age_removes_those_idle_for_more(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """max_age removes those idle for more than that as well; dry_run only counts; the checked-out stay."""
    closings = Closings()
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10), on_close=closings)
    for name in ("expired", "old", "held", "young"):
        session = coordinator.create_session(name, session_timeout=5 if name == "expired" else None)
        session_clock.advance(10)
        if name == "held":
            held = session
    with coordinator.checkout(held.id):
        session_clock.advance(20)
        assert coordinator.cleanup_inactive_sessions(max_age=30, dry_run=True) == 2
        assert coordinator.cleanup_inactive_sessions(max_age=30) == 2
        assert closings == [("expired", RemovalCause.IDLE), ("old", RemovalCause.IDLE)]
        assert coordinator.cleanup_inactive_sessions(29.9) == 1
        assert coordinator.cleanup_inactive_sessions(max_age=0.001) == 0
    assert [session.name for session in coordinator.list_sessions()] == ["held"]


def test_a_max_age_above_the_timeout_spares_nobody(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A session past its own timeout is gone, whatever max_age says."""
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10))
    coordinator.create_session()
    session_clock.advance(61)

    assert coordinator.cleanup_inactive_sessions(max_age=3600) == 1


def test_many_sessions_take_several_batches(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Counting and removing more sessions than one batch holds gets them all."""
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10))
    for _ in range(350):
        coordinator.create_session()
    session_clock.advance(61)

    assert len(coordinator) == 0
    assert coordinator.cleanup_inactive_sessions(dry_run=True) == 350
    assert coordinator.cleanup_inactive_sessions() == 350
    assert coordinator.cleanup_inactive_sessions(dry_run=True) == 0


def test_the_task_removes_expired_sessions_by_itself(session_clock: ManualClock) -> None:
    """Between entering and leaving the block, a daemon thread named sessionkit-cleanup removes what is due."""
    removed = threading.Event()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        assert threading.current_thread().name == THREAD_NAME
        assert threading.current_thread().daemon
        if cause is RemovalCause.IDLE:
            removed.set()

    with SessionCoordinator(EVERY_MILLISECOND, clock=session_clock, on_close=on_close) as coordinator:
        coordinator.create_session()
        assert len(cleanup_threads()) == 1
        session_clock.advance(61)
        assert removed.wait(WAIT)
    stats = coordinator.stats()
    assert (stats.close_failures, stats.removed[RemovalCause.IDLE]) == (0, 1)
    assert cleanup_threads() == []


def test_one_thread_however_many_sessions_and_starts(session_coordinator: CoordinatorFactory) -> None:
    """Starting again does nothing, stopping again does nothing, and it can be started anew."""
    coordinator = session_coordinator()
    for _ in range(3):
        coordinator.start_cleanup_task()
        for _ in range(10):
            coordinator.create_session()
    assert len(cleanup_threads()) == 1
    coordinator.stop_cleanup_task()
    coordinator.stop_cleanup_task()
    assert cleanup_threads() == []
    assert not coordinator.stats().cleanup.alive
    coordinator.start_cleanup_task()
    assert coordinator.stats().cleanup.alive
    coordinator.close()


def test_stats_tell_how_the_task_does(session_clock: ManualClock) -> None:
    """stats() has the task's runs, the last one's instant, duration and yield, and all it removed."""
    cleaner = Cleaner()
    task = CleanupTask(0.001, cleaner.run)
    before = task.stats()
    task.start()
    assert cleaner.ran_twice.wait(WAIT)
    task.stop()
    after = task.stats()

    assert (before.alive, before.runs, before.last_run_at, before.last_duration) == (False, 0, None, None)
    assert after.runs >= 2
    assert (after.removed, after.last_removed, after.last_run_at) == (7 * after.runs, 7, float(after.runs))
    assert after.last_duration is not None
    assert 0 <= after.last_duration < WAIT
    assert (after.alive, after.failures) == (False, 0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_rule_7_the_cleanup_task_survives_every_error(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A cleanup run that raises, whatever it raises, is logged and counted, and the next run comes."""
    survived = threading.Event()
    calls = 0

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error("the first one")
        if cause is RemovalCause.IDLE:
            survived.set()

    clock = ManualClock()
    with SessionCoordinator(EVERY_MILLISECOND, clock=clock, on_close=on_close) as coordinator:
        for _ in range(2):
            coordinator.create_session()
            clock.advance(61)
        assert survived.wait(WAIT)
        assert coordinator.stats().cleanup.alive
    stats = coordinator.stats()
    assert stats.close_failures + stats.close_interruptions == 1
    assert stats.cleanup.failures == stats.close_interruptions
    assert any("failed" in record.getMessage() for record in caplog.records)


def test_rule_7_the_cleanup_task_survives_a_clock_and_a_log_handler_that_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a clock that fails for a while nor a log handler that raises ends the task."""
    ran_again = threading.Event()
    readings = 0

    def clock() -> float:
        nonlocal readings
        if threading.current_thread().name == THREAD_NAME:
            readings += 1
            if readings <= 2:
                raise OSError("no time")
            if readings == 4:
                ran_again.set()
        return 0.0

    class Raising(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            raise OSError("no disk")

    handler = Raising()
    monkeypatch.setattr(logging.getLogger("sessionkit"), "handlers", [handler])
    with SessionCoordinator(EVERY_MILLISECOND, clock=clock) as coordinator:
        assert ran_again.wait(WAIT)
        assert coordinator.stats().cleanup.failures == 2
        assert coordinator.stats().cleanup.last_run_at == 0.0


def test_close_from_the_cleanup_thread_itself(session_clock: ManualClock) -> None:
    """A callback in the cleanup thread may close the coordinator; the thread then ends."""
    closed = threading.Event()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        coordinator.close()
        closed.set()

    coordinator = SessionCoordinator(EVERY_MILLISECOND, clock=session_clock, on_close=on_close)
    coordinator.create_session()
    coordinator.start_cleanup_task()
    session_clock.advance(61)
    [thread] = cleanup_threads()
    assert closed.wait(WAIT)
    thread.join(WAIT)
    assert not thread.is_alive()


def test_a_run_that_begins_after_close_ends_the_thread(session_coordinator: CoordinatorFactory) -> None:
    """A cleanup run that finds its coordinator closed does nothing, and says that there will be nothing to do."""
    coordinator = session_coordinator()
    assert coordinator._run_cleanup() == CleanupRun(at=0.0, removed=0)
    coordinator.close()
    assert coordinator._run_cleanup() is None


def test_close_waits_for_a_run_that_is_under_way(session_clock: ManualClock) -> None:
    """When close() returns, no cleanup run is at work any more."""
    inside, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        inside.set()
        assert go_on.wait(WAIT)
        order.append("run ended")

    coordinator = SessionCoordinator(EVERY_MILLISECOND, clock=session_clock, on_close=on_close)
    coordinator.create_session()
    coordinator.start_cleanup_task()
    session_clock.advance(61)
    assert inside.wait(WAIT)
    with in_thread(lambda: (coordinator.close(), order.append("closed"))):
        go_on.set()
    assert order == ["run ended", "closed"]
    assert cleanup_threads() == []
    assert coordinator.stats().cleanup.removed == 1


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_rule_7_without_a_thread_sessions_expire_all_the_same(
    session_clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If no thread can be started, that is logged, sessions expire all the same, and starting it is tried again when
    the next session is created.

    Each failure is counted, and only a start that was asked for is logged.
    """
    coordinator = SessionCoordinator[Any](
        CoordinatorConfig(session_timeout=60, cleanup_interval=10), clock=session_clock
    )
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        coordinator.start_cleanup_task()
        assert caplog.text.count("could not be started") == 1
        session = coordinator.create_session()
        assert (coordinator.stats().cleanup.failures, coordinator.stats().cleanup.alive) == (2, False)
        session_clock.advance(61)
        assert session.id not in coordinator
        assert coordinator.stats().cleanup.failures == 2
        coordinator.start_cleanup_task()
        assert caplog.text.count("could not be started") == 2
    assert cleanup_threads() == []
    coordinator.create_session()

    assert (coordinator.stats().cleanup.failures, coordinator.stats().cleanup.alive) == (3, True)
    assert len(cleanup_threads()) == 1
    coordinator.create_session()
    assert len(cleanup_threads()) == 1
    coordinator.close()


@pytest.mark.parametrize("end", [CleanupTask.stop, CleanupTask.close])
def test_a_task_that_was_stopped_is_not_tried_again(
    end: Callable[[CleanupTask], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread could be started and the task was stopped since, nothing starts it but `start`."""
    cleaner = Cleaner()
    task = CleanupTask(10, cleaner.run)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        task.start()
        assert (task.needs_start, task.wanted) == (True, True)
    end(task)
    assert (task.needs_start, task.wanted) == (False, False)
    task.retry_start()
    assert cleanup_threads() == []


def test_a_task_starts_no_thread_while_the_interpreter_is_finalizing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is started, logged or counted then, and stopping it is no error."""
    cleaner = Cleaner()
    task = CleanupTask(10, cleaner.run)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "is_finalizing", lambda: True)
        task.start()
        assert (task.needs_start, task.stats().alive, task.stats().failures) == (False, False, 0)
        task.stop()
    assert cleanup_threads() == []
    assert caplog.text == ""


def test_a_stop_while_the_thread_is_being_started_leaves_none(
    session_coordinator: CoordinatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that closes the coordinator in the middle of start_cleanup_task: no deadlock, no thread."""
    coordinator = session_coordinator()
    start = PeriodicThread.start

    def start_and_be_interrupted(thread: PeriodicThread) -> None:
        start(thread)
        coordinator.close()

    monkeypatch.setattr(PeriodicThread, "start", start_and_be_interrupted)
    coordinator.start_cleanup_task()
    for thread in cleanup_threads():
        thread.join(WAIT)
    assert cleanup_threads() == []
    assert not coordinator.stats().cleanup.alive


def test_a_task_that_was_closed_does_not_start(session_coordinator: CoordinatorFactory) -> None:
    """A close() between the check and the start of start_cleanup_task leaves no thread behind."""
    coordinator = session_coordinator()
    check_open = coordinator._roster.check_open

    def check_and_be_overtaken() -> None:
        check_open()
        coordinator.close()

    coordinator._roster.check_open = check_and_be_overtaken  # type: ignore[method-assign]  # the moment under test
    coordinator.start_cleanup_task()
    assert cleanup_threads() == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_rule_11_a_thousand_dropped_coordinators_leave_no_thread() -> None:
    """A coordinator that is dropped while its task runs is collected, and its thread ends."""
    dropped: list[weakref.ref[SessionCoordinator[Any]]] = []
    threads: list[threading.Thread] = []
    for _ in range(1000):
        coordinator: SessionCoordinator[Any] = SessionCoordinator()
        coordinator.start_cleanup_task()
        coordinator.create_session()
        dropped.append(weakref.ref(coordinator))
        threads += cleanup_threads()
        del coordinator
    gc.collect()

    assert [reference for reference in dropped if reference() is not None] == []
    for thread in threads:
        thread.join(WAIT)
    assert cleanup_threads() == []


def test_rule_11_dropping_warns_once_and_closing_does_not() -> None:
    """Only a coordinator that was not closed warns when it is collected."""
    coordinator: SessionCoordinator[Any] = SessionCoordinator()
    coordinator.close()
    del coordinator
    with pytest.warns(ResourceWarning, match=r"was dropped without close\(\)") as caught:
        SessionCoordinator()
    assert len(caught) == 1


def test_at_the_exit_of_the_interpreter_nothing_is_waited_for(session_coordinator: CoordinatorFactory) -> None:
    """A coordinator that is collected while the interpreter exits warns, and takes no lock a dead thread may have."""
    coordinator = session_coordinator()
    coordinator.start_cleanup_task()
    channel = coordinator.subscribe()
    with pytest.warns(ResourceWarning, match="dropped without close"):
        coordinator.__del__(is_finalizing=lambda: True)
    assert not channel.closed
    assert coordinator.stats().cleanup.alive
    coordinator.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_rule_11_a_coordinator_that_is_dropped_during_its_own_run_ends_its_thread(session_clock: ManualClock) -> None:
    """If the last reference goes while the cleanup thread is at work, the thread ends with that run."""
    inside, go_on = threading.Event(), threading.Event()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        inside.set()
        assert go_on.wait(WAIT)

    coordinator = SessionCoordinator(EVERY_MILLISECOND, clock=session_clock, on_close=on_close)
    coordinator.create_session()
    coordinator.start_cleanup_task()
    [thread] = cleanup_threads()
    session_clock.advance(61)
    assert inside.wait(WAIT)
    del coordinator
    go_on.set()
    thread.join(WAIT)
    assert not thread.is_alive()
