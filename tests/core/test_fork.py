"""Forked children start clean, and the end of the program is quiet."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    EventChannel,
    RemovalCause,
    SessionCoordinator,
    SessionNotFoundError,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import interruptions, standing
from ..helpers.support import WAIT, Closings, in_child

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@fork
def test_rule_11_a_child_starts_with_no_sessions_and_its_own_task(session_clock: ManualClock) -> None:
    """After fork the child's coordinator is empty, has a living cleanup thread, and closes nothing of its parent's."""
    closings = Closings()

    def child() -> tuple[Any, ...]:
        stats = coordinator.stats()
        threads = [thread.name for thread in threading.enumerate()]
        with pytest.raises(SessionNotFoundError):
            coordinator.get_session(inherited.id)
        with pytest.raises(SessionNotFoundError):
            inherited.touch()
        own = coordinator.create_session("support")
        session_clock.advance(4000)
        removed = coordinator.cleanup_inactive_sessions()
        coordinator.close()
        return (
            stats.live,
            stats.created,
            stats.cleanup.alive,
            "sessionkit-cleanup" in threads,
            own.name,
            removed,
            list(closings),
        )

    with SessionCoordinator(clock=session_clock, on_close=closings) as coordinator:
        inherited = coordinator.create_session("support")
        assert in_child(child) == (0, 0, True, True, "support", 1, [("support", RemovalCause.IDLE)])
        assert coordinator.get_session(inherited.id) is inherited
    assert closings == [("support", RemovalCause.SHUTDOWN)]


def use_everything(coordinator: SessionCoordinator[Any]) -> bool:
    """Whether a message that a session records is heard."""
    session = coordinator.create_session()
    with coordinator.checkout(session.id), coordinator.subscribe() as own:
        session.record_message()
        heard = own.get(timeout=0)
    coordinator.start_cleanup_task()
    coordinator.close()
    return heard is not None


CALLS: dict[str, Callable[[SessionCoordinator[Any], EventChannel], object]] = {
    "create": lambda coordinator, _: coordinator.create_session(session_id="other"),
    "close": lambda coordinator, _: coordinator.close_session("held"),
    "check out": lambda coordinator, _: coordinator.checkout("held").__enter__(),
    "subscribe": lambda coordinator, _: coordinator.subscribe(),
    "hear": lambda _, channel: channel.get(timeout=0),
    "start": lambda coordinator, _: coordinator.start_cleanup_task(),
}


@fork
@pytest.mark.parametrize("call", CALLS)
def test_rule_11_a_child_may_use_the_coordinator_wherever_its_parent_stands(call: str) -> None:
    """Another thread of the parent may be at any line of a call at the fork, with whatever it has locked there."""
    # Locks are held for more than one line, and forks take long.
    for once in interruptions(step=5):
        coordinator = SessionCoordinator[Any](clock=ManualClock())
        channel = coordinator.subscribe()
        coordinator.create_session(session_id="held")

        def child(
            coordinator: SessionCoordinator[Any] = coordinator, channel: EventChannel = channel
        ) -> tuple[Any, ...]:
            # What was not read is there still; the one that is being read may be gone.
            return use_everything(coordinator), channel.closed, [event.session_id for event in channel][:1]

        with standing(once.anywhere, lambda c=coordinator, ch=channel: CALLS[call](c, ch)):
            heard, closed, events = in_child(child)
        assert (heard, closed) == (True, True)
        assert events == ["held"] or call == "hear"
        assert not channel.closed
        coordinator.close()


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


FIFTY_TIMES = """
import os
import sys
import threading
import sessionkit
children = []
while len(children) < 50:
    child = os.fork()
    if child == 0:
        break
    children.append(child)
else:
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""
"""What follows runs in children, whose interpreters exit as any does, without importing everything each time."""


@fork
@pytest.mark.parametrize("source", [RUNNING_AT_EXIT, IDLE_AT_EXIT], ids=["at work", "idle"])
def test_the_interpreter_exits_quietly_with_a_running_coordinator(source: str) -> None:
    """Programs that end while the cleanup thread runs print nothing and do not hang.

    Fifty of each kind.
    """
    # A user's program is not measured, and measuring has work of its own to do at the exit.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", FIFTY_TIMES + source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
