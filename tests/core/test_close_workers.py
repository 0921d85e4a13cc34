"""Close callbacks that take long, several at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest

from sessionkit import ManagedSession, RemovalCause, SessionCoordinator
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, one_minute


class Meeting:
    """A close callback that returns once so many of it run at the same time."""

    def __init__(self, number: int) -> None:
        self.barrier = threading.Barrier(number)
        self.closed: list[tuple[Any, RemovalCause]] = []
        self.threads: set[str] = set()

    def __call__(self, session: ManagedSession[Any], cause: RemovalCause) -> None:
        self.barrier.wait(WAIT)
        self.threads.add(threading.current_thread().name)
        self.closed.append((session.resource, cause))


@pytest.mark.parametrize("way", ["cleanup", "close"])
def test_several_close_callbacks_run_at_once(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, way: str
) -> None:
    """As many close callbacks as `close_workers` run at once, each session once, and `close()` waits for them.

    So does a cleanup.
    """
    meeting = Meeting(4)
    coordinator = session_coordinator(one_minute(close_workers=4), on_close=meeting)
    for number in range(8):
        coordinator.create_session(resource=number)
    if way == "cleanup":
        session_clock.advance(61)
        assert coordinator.cleanup_inactive_sessions() == 8
        cause = RemovalCause.IDLE
    else:
        assert coordinator.close() == []
        cause = RemovalCause.SHUTDOWN
    assert Counter(meeting.closed) == Counter((number, cause) for number in range(8))
    assert len(meeting.threads) == 4
    assert coordinator.stats().removed[cause] == 8


def test_one_close_callback_after_the_other_by_default(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """In the thread that cleans up, least recently active first."""
    closed: list[Any] = []
    threads: set[threading.Thread] = set()

    def close(session: ManagedSession[Any], _cause: RemovalCause) -> None:
        threads.add(threading.current_thread())
        closed.append(session.resource)

    coordinator = session_coordinator(one_minute(), on_close=close)
    for number in range(5):
        coordinator.create_session(resource=number)
        session_clock.advance(1)
    session_clock.advance(61)
    assert coordinator.cleanup_inactive_sessions() == 5
    assert closed == [0, 1, 2, 3, 4]
    assert threads == {threading.current_thread()}


def test_a_close_callback_that_raises_harms_no_other(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and counted, as with one worker."""

    def close(session: ManagedSession[Any], _cause: RemovalCause) -> None:
        if session.resource % 2:
            raise ValueError(session.resource)

    coordinator = session_coordinator(one_minute(close_workers=3), on_close=close)
    for number in range(10):
        coordinator.create_session(resource=number)
    session_clock.advance(61)
    assert coordinator.cleanup_inactive_sessions() == 10
    assert coordinator.stats().close_failures == len(caplog.records) == 5


def test_a_close_callback_in_a_worker_may_call_the_coordinator(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Also for its own session, and it does not wait for itself."""
    seen: list[Any] = []

    def close(session: ManagedSession[Any], _cause: RemovalCause) -> None:
        seen.append((session.id in coordinator, coordinator.stats().live, coordinator.cleanup_inactive_sessions()))

    coordinator: SessionCoordinator[Any] = session_coordinator(one_minute(close_workers=2), on_close=close)
    for number in range(2):
        coordinator.create_session(resource=number)
    session_clock.advance(61)
    assert coordinator.cleanup_inactive_sessions() == 2
    assert seen == [(False, 0, 0)] * 2


def test_without_threads_all_are_closed_all_the_same(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """If the system has no thread to give, in the thread that cleans up."""
    closed: list[Any] = []
    coordinator = session_coordinator(
        one_minute(close_workers=4), on_close=lambda session, cause: closed.append(session.resource)
    )
    for number in range(4):
        coordinator.create_session(resource=number)
    session_clock.advance(61)
    with patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
        assert coordinator.cleanup_inactive_sessions() == 4
    assert sorted(closed) == [0, 1, 2, 3]


def test_the_exit_of_the_interpreter_waits_for_close_callbacks() -> None:
    """Those that the cleanup thread, which is a daemon, has given to workers are run to their end."""
    program = """
import os, threading
from sessionkit import CoordinatorConfig, SessionCoordinator
begun, at_exit = threading.Barrier(3), threading.Event()
def close(session, cause):
    begun.wait(20)
    at_exit.wait(20)
    os.write(1, b"closed\\n")
config = CoordinatorConfig(session_timeout=0.01, cleanup_interval=0.01, close_workers=2)
coordinator = SessionCoordinator(config, on_close=close)
for number in range(2):
    coordinator.create_session(resource=number)
coordinator.start_cleanup_task()
begun.wait(20)
threading._register_atexit(at_exit.set)
"""
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["closed", "closed"]
    assert done.stderr == ""
