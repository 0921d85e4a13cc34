"""Asynchronous close callbacks and factories."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from typing import Any

import pytest

from sessionkit import (
    RemovalCause,
)
from sessionkit.aio import checkout, on_loop
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.tasks import Coordinator, run


def test_an_asynchronous_close_callback_and_factory_run_on_the_loop(session_coordinator: CoordinatorFactory) -> None:
    """A thread waits for them, and gets what they return."""
    closed: list[tuple[str, RemovalCause, int]] = []

    async def make(session: Any) -> str:
        await asyncio.sleep(0)
        return f"made for {session.id} in {threading.get_ident()}"

    async def close(session: Any, cause: RemovalCause) -> None:
        await asyncio.sleep(0)
        closed.append((session.resource, cause, threading.get_ident()))

    async def program() -> None:
        loop = asyncio.get_running_loop()
        coordinator = session_coordinator(resource_factory=on_loop(make, loop), on_close=on_loop(close, loop))
        await asyncio.to_thread(coordinator.create_session, session_id="it")
        async with checkout(coordinator, "it"):
            await asyncio.to_thread(coordinator.close_session, "it")
        assert coordinator.stats().close_failures == 0
        await asyncio.to_thread(coordinator.close)

    run(program())
    here = threading.get_ident()
    assert closed == [(f"made for it in {here}", RemovalCause.CLOSED, here)]


def test_what_cannot_run_on_the_loop_is_a_failure_that_says_what_to_do(
    session_coordinator: CoordinatorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """In the loop's own thread, after the loop has stopped, or when it takes too long; the session leaves anyway."""

    async def close(session: Any, cause: RemovalCause) -> None:
        if session.id == "raises":
            raise TimeoutError("of its own")
        cancelled = asyncio.current_task()
        assert cancelled is not None
        await asyncio.Event().wait()

    def coordinator_on(loop: asyncio.AbstractEventLoop, session_id: str) -> Coordinator:
        coordinator = session_coordinator(on_close=on_loop(close, loop, timeout=0.01))
        coordinator.create_session(session_id=session_id)
        return coordinator

    async def program() -> Coordinator:
        loop = asyncio.get_running_loop()
        coordinator = coordinator_on(loop, "own")
        coordinator.close_session("own")
        assert "cannot wait for itself: create and end sessions in other threads" in caplog.text
        coordinator.create_session(session_id="long")
        await asyncio.to_thread(coordinator.close_session, "long")
        assert "took longer than timeout=0.01 seconds, and was cancelled" in caplog.text
        coordinator.create_session(session_id="raises")
        await asyncio.to_thread(coordinator.close_session, "raises")
        assert "of its own" in caplog.text
        coordinator.create_session(session_id="late")
        return coordinator

    coordinator = run(program())
    coordinator.close()
    assert "does not run: end sessions, and close the coordinator, before the loop stops" in caplog.text
    assert coordinator.stats().close_failures == 4
    assert coordinator.stats().leaving == 0


def test_on_loop_checks_what_it_is_given() -> None:
    """When the coordinator is made, not when the first session ends."""

    async def close(session: Any, cause: RemovalCause) -> None:
        """Close nothing."""

    with closing(asyncio.new_event_loop()) as loop:
        with pytest.raises(TypeError, match="function must be an asynchronous function, not 3"):
            on_loop(3, loop)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="loop must be an event loop"):
            on_loop(close, asyncio)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout must be"):
            on_loop(close, loop, timeout=-1)
