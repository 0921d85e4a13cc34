"""Removing what is due: by hand, and by the task."""

from __future__ import annotations

import gc
import itertools
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionExpiredError,
)
from sessionkit.core.cleanup import CleanupRun, CleanupTask
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import HAS_GIL, interruptions, longest_decision, until_it_waits
from ..helpers.support import WAIT, Closings, in_thread, one_minute, system_time

THREAD_NAME = "sessionkit-cleanup"
EVERY_MILLISECOND = CoordinatorConfig(session_timeout=60, cleanup_interval=0.001)


def cleanup_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_cleanup_removes_what_is_due_and_says_how_many(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """One pass removes each session past its own timeout, least recently active first, and returns the number."""
    closings = Closings()
    coordinator = session_coordinator(one_minute(), on_close=closings)
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
    coordinator = session_coordinator(one_minute(), on_close=closings)
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
    coordinator = session_coordinator(one_minute())
    coordinator.create_session()
    session_clock.advance(61)

    assert coordinator.cleanup_inactive_sessions(max_age=3600) == 1


def test_many_sessions_take_several_batches(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Counting and removing more sessions than one batch holds gets them all."""
    coordinator = session_coordinator(one_minute())
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
    removed = threading.Semaphore(0)
    with SessionCoordinator[Any](
        EVERY_MILLISECOND, clock=session_clock, on_close=lambda session, cause: removed.release()
    ) as coordinator:
        coordinator.stop_cleanup_task()
        before = coordinator.stats().cleanup
        for number in (1, 2):
            coordinator.start_cleanup_task()
            coordinator.create_session()
            session_clock.advance(61)
            assert removed.acquire(timeout=WAIT)
            coordinator.stop_cleanup_task()
            after = coordinator.stats().cleanup
            assert (after.removed, after.alive, after.failures) == (number, False, 0)
            assert after.runs > before.runs
            assert after.last_run_at == session_clock()
            assert after.last_removed in (0, 1)
            assert after.last_duration is not None
            assert 0 <= after.last_duration < WAIT
            before = after


def test_a_task_that_has_not_run_tells_so(session_coordinator: CoordinatorFactory) -> None:
    """Before the first run there is no instant and no duration."""
    stats = session_coordinator().stats().cleanup
    assert (stats.alive, stats.runs, stats.removed, stats.last_removed) == (False, 0, 0, 0)
    assert (stats.last_run_at, stats.last_duration) == (None, None)


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


class SleepingTask:
    """How the cleanup thread sleeps, on a time that passes only while it sleeps or works."""

    def __init__(self, patch: pytest.MonkeyPatch, readings: Iterator[float] | None = None) -> None:
        self.now = 100.0
        self.sleeps: list[float | None] = []
        self.done = threading.Event()
        self._readings = readings
        wait = threading.Condition.wait

        def sleep(condition: threading.Condition, timeout: float | None = None) -> bool:
            if threading.current_thread().name != THREAD_NAME:
                return wait(condition, timeout)
            self.sleeps.append(timeout)
            self.now += timeout or 0
            if len(self.sleeps) > 3:
                self.done.set()
                wait(condition, WAIT)
            return False

        patch.setattr(threading.Condition, "wait", sleep)
        patch.setattr(time, "monotonic", self._read)

    def _read(self) -> float:
        if self._readings is not None and threading.current_thread().name == THREAD_NAME:
            return next(self._readings)
        return self.now


def test_deadlines_are_kept_and_missed_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task sleeps until the next deadline of its grid: a slow run shortens the next sleep, or skips deadlines."""
    task = SleepingTask(monkeypatch)
    durations = iter([1.0, 25.0, 0.0])

    def clock() -> float:
        if threading.current_thread().name == THREAD_NAME:
            task.now += next(durations)
        return 0.0

    with SessionCoordinator[Any](one_minute(), clock=clock):
        assert task.done.wait(WAIT)
    assert task.sleeps[:3] == [10.0, 9.0, 5.0]


def test_a_monotonic_clock_that_jumps_does_not_silence_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far a test moves time.monotonic, the task never sleeps for more than one interval."""
    task = SleepingTask(monkeypatch, itertools.chain([1.7e9], itertools.repeat(5.0)))
    with SessionCoordinator[Any](one_minute(), clock=ManualClock()):
        assert task.done.wait(WAIT)
    assert task.sleeps[0] == 10.0
    assert all(sleep is not None and 0 <= sleep <= 10 for sleep in task.sleeps)


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_rule_7_without_a_thread_sessions_expire_all_the_same(
    session_clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If no thread can be started, that is logged and counted, expiry still holds, and starting is tried again when the
    next session is created.
    """
    closings = Closings()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        coordinator = SessionCoordinator[Any](one_minute(), clock=session_clock, on_close=closings)
        coordinator.start_cleanup_task()
        assert "could not be started" in caplog.text
        assert coordinator.stats().cleanup.failures >= 1
        session = coordinator.create_session("a")
        assert not coordinator.stats().cleanup.alive
        session_clock.advance(61)
        assert session.id not in coordinator
        with pytest.raises(SessionExpiredError):
            session.touch()
        coordinator.cleanup_inactive_sessions()
        assert closings == [("a", RemovalCause.IDLE)]
    assert cleanup_threads() == []
    session_clock.advance(11)
    coordinator.create_session("b")
    assert coordinator.stats().cleanup.alive
    assert len(cleanup_threads()) == 1
    coordinator.close()
    assert cleanup_threads() == []


def test_rule_7_without_a_thread_no_caller_cleans_up(
    session_clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls do what they are for; only a creation tries to start the thread, and each one does, until there is one."""
    closings = Closings()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        coordinator = SessionCoordinator[Any](one_minute(), clock=session_clock, on_close=closings)
        coordinator.start_cleanup_task()
        coordinator.create_session("expired")
        session_clock.advance(61)
        session = coordinator.create_session("live")
        failures = coordinator.stats().cleanup.failures
        assert failures == 3
        assert len([record for record in caplog.records if "could not be started" in record.getMessage()]) >= 1
        session_clock.advance(11)
        for call in (session.touch, session.record_message, coordinator.list_sessions, coordinator.__len__):
            call()
        with coordinator.checkout(session.id):
            pass
        assert coordinator.stats().cleanup.failures == failures
        assert closings == []
    coordinator.touch_session(session.id)
    assert cleanup_threads() == []
    coordinator.create_session("b")
    assert coordinator.stats().cleanup.alive
    assert coordinator.stats().cleanup.failures == failures
    coordinator.close()


@pytest.mark.parametrize("stops", ["stopped", "never started"])
def test_a_creation_starts_no_task_that_nobody_wants(stops: str, session_coordinator: CoordinatorFactory) -> None:
    """Starting is tried again only where it was asked for and failed, and not after stop_cleanup_task."""
    coordinator = session_coordinator()
    if stops == "stopped":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            coordinator.start_cleanup_task()
        coordinator.stop_cleanup_task()
    coordinator.create_session()
    assert cleanup_threads() == []
    assert not coordinator.stats().cleanup.alive


def test_a_stop_while_the_thread_is_being_started_leaves_none(
    session_coordinator: CoordinatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that closes the coordinator right after its thread has started: no deadlock, no thread."""
    coordinator = session_coordinator()
    start = threading.Thread.start

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == THREAD_NAME:
            coordinator.close()

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    coordinator.start_cleanup_task()
    for thread in cleanup_threads():
        thread.join(WAIT)
    assert cleanup_threads() == []
    assert not coordinator.stats().cleanup.alive


def test_a_task_that_was_closed_by_another_thread_does_not_start() -> None:
    """A close() at whatever line of start_cleanup_task leaves no thread behind."""
    for once in interruptions():
        coordinator = SessionCoordinator[Any](clock=ManualClock())

        closer = threading.Thread(target=coordinator.close)

        def close(closer: threading.Thread = closer) -> None:
            closer.start()
            # It may wait for the start.
            until_it_waits(closer.ident or 0, lambda: not closer.is_alive())

        with suppress(CoordinatorClosedError), once.outside_decisions(coordinator, close):
            coordinator.start_cleanup_task()
        if once.came:
            closer.join(WAIT)
        coordinator.close()
        for thread in cleanup_threads():
            thread.join(WAIT)
        assert cleanup_threads() == []


@pytest.mark.parametrize("due", [True, False])
@pytest.mark.parametrize("call", ["cleanup_inactive_sessions", "list_sessions", "close", "create_session"])
def test_rule_5_the_lock_is_let_go_while_there_is_much_to_do(call: str, due: bool) -> None:
    """However many sessions are due, or were touched without the lock, no call holds the lock for longer."""

    def longest(number: int) -> int:
        clock = ManualClock()
        config = one_minute(max_active_sessions=number, on_full="evict")
        with system_time(clock), SessionCoordinator[Any](config) as coordinator:
            sessions = [coordinator.create_session() for _ in range(number)]
            clock.advance(40)
            for session in [] if due else sessions:
                session.touch()
            clock.advance(21)
            return longest_decision(coordinator, getattr(coordinator, call))

    assert longest(600) <= 1.1 * longest(300)


class Cleaner:
    """What a task calls."""

    def run(self) -> CleanupRun:
        return CleanupRun(at=0.0, removed=0)


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


def test_a_task_that_was_closed_does_not_start() -> None:
    """A close() between the check and the start of start_cleanup_task leaves no thread behind."""
    cleaner = Cleaner()
    task = CleanupTask(10, cleaner.run)
    task.close()
    task.start()
    assert (task.wanted, task.stats().alive) == (False, False)
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


@pytest.mark.parametrize("started", [True, False])
def test_at_the_exit_of_the_interpreter_a_coordinator_that_was_not_closed_warns(started: bool) -> None:
    """A coordinator that is collected while the interpreter exits warns, and waits for nothing."""
    program = f"""
from sessionkit import SessionCoordinator
coordinator = SessionCoordinator()
{"coordinator.start_cleanup_task()" if started else ""}
channel = coordinator.subscribe()
coordinator.create_session()
"""
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Traceback" not in done.stderr
    # Python 3.13 without the GIL collects it after it has stopped to show warnings, if a thread was started.
    if HAS_GIL or not started:
        assert "ResourceWarning" in done.stderr
        assert "dropped without close" in done.stderr


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
