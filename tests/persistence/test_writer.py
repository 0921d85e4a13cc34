"""Activity is written while close callbacks take long."""

from __future__ import annotations

import threading
from typing import Any
from unittest.mock import patch

import pytest

from sessionkit import CoordinatorConfig, ManagedSession, RemovalCause, SessionCoordinator
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import EVERYTHING, WAIT, WatchedStore, in_thread, wait_until


def stored_activity(store: WatchedStore, session_id: str) -> float:
    found = store.load(session_id)
    assert found is not None
    return found.record.last_active


def test_writing_touches_does_not_wait_for_close_callbacks(
    session_coordinator: CoordinatorFactory, store: WatchedStore, session_clock: ManualClock
) -> None:
    """It has its turn before them, and again while they run, also if it failed meanwhile."""
    entered, leave = threading.Event(), threading.Event()

    def close(_session: ManagedSession[Any], _cause: RemovalCause) -> None:
        entered.set()
        assert leave.wait(WAIT)

    config = CoordinatorConfig(session_timeout=60, cleanup_interval=0.001)
    coordinator: SessionCoordinator[Any] = session_coordinator(config, store=store, on_close=close)
    coordinator.create_session()
    user = coordinator.create_session()
    began = session_clock.wall()
    session_clock.advance(50)
    user.touch()
    session_clock.advance(11)
    with in_thread(coordinator.cleanup_inactive_sessions) as cleanup:
        assert entered.wait(WAIT)
        assert stored_activity(store, user.id) == began + 50
        session_clock.advance(1)
        store.failing = {EVERYTHING}
        user.touch()
        wait_until(lambda: coordinator.stats().store.failures)  # type: ignore[union-attr]  # it has a store
        store.failing = set()
        wait_until(lambda: stored_activity(store, user.id) == began + 62)
        assert not cleanup.done()
        leave.set()
        assert cleanup.result(WAIT) == 1
    assert "sessionkit-writer" not in {thread.name for thread in threading.enumerate()}


def test_without_a_thread_touches_are_written_after_the_close_callbacks(
    session_coordinator: CoordinatorFactory, store: WatchedStore, session_clock: ManualClock
) -> None:
    """If the system has none to give; a close outside of a cleanup asks for none."""
    closed: list[Any] = []

    def close(session: ManagedSession[Any], _cause: RemovalCause) -> None:
        user.touch()
        closed.append(session.id)

    coordinator: SessionCoordinator[Any] = session_coordinator(store=store, on_close=close)
    sessions = [coordinator.create_session(session_timeout=60) for _ in range(2)]
    user = coordinator.create_session()
    with patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")) as start:
        coordinator.close_session(sessions[0].id)
        assert start.call_count == 0
        session_clock.advance(61)
        assert coordinator.cleanup_inactive_sessions() == 1
        assert start.call_count == 1
    assert closed == [session.id for session in sessions]
    assert stored_activity(store, user.id) == session_clock.wall()


def test_a_cleanup_within_a_close_callback_does_not_end_the_writing(
    session_coordinator: CoordinatorFactory, store: WatchedStore, session_clock: ManualClock
) -> None:
    """That goes on until the last cleanup has ended."""

    def close(_session: ManagedSession[Any], _cause: RemovalCause) -> None:
        coordinator.cleanup_inactive_sessions()
        session_clock.advance(1)
        user.touch()
        now = session_clock.wall()
        wait_until(lambda: stored_activity(store, user.id) == now)

    config = CoordinatorConfig(session_timeout=60, cleanup_interval=0.001)
    coordinator: SessionCoordinator[Any] = session_coordinator(config, store=store, on_close=close)
    coordinator.create_session()
    user = coordinator.create_session(session_timeout=600)
    session_clock.advance(61)
    assert coordinator.cleanup_inactive_sessions() == 1


def test_a_close_callback_that_returns_a_coroutine_has_failed_with_a_store_too(
    session_coordinator: CoordinatorFactory, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it has run: that is counted, and the log says what to do."""

    async def stop() -> None:
        """Nothing awaits this."""

    coordinator: SessionCoordinator[Any] = session_coordinator(store=store, on_close=lambda session, cause: stop())
    coordinator.close_session(coordinator.create_session().id)
    assert coordinator.stats().close_failures == 1
    assert "sessionkit.aio.on_loop" in caplog.text
