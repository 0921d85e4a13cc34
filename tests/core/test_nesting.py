"""Who may take a session again that is checked out: the code within the block that has it, and nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sessionkit import SessionBusyError, SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, in_thread

Coordinator = SessionCoordinator[Any]


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory) -> Coordinator:
    coordinator = session_coordinator()
    coordinator.create_session(session_id="it")
    return coordinator


def take(coordinator: Coordinator) -> str:
    """Whether the session can be had exclusively here and now."""
    try:
        with coordinator.checkout("it", timeout=0):
            return "taken"
    except SessionBusyError:
        return "busy"


@contextmanager
def through_a_generator(coordinator: Coordinator) -> Iterator[None]:
    with coordinator.checkout("it"):
        yield


@contextmanager
def through_a_stack(coordinator: Coordinator) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(coordinator.checkout("it"))
        yield


@contextmanager
def by_hand(coordinator: Coordinator) -> Iterator[None]:
    checkout = coordinator.checkout("it")
    enter(checkout)
    try:
        yield
    finally:
        checkout.__exit__()


def enter(checkout: Any) -> None:
    checkout.__enter__()


WAYS = [through_a_generator, through_a_stack, by_hand]


@pytest.mark.parametrize("block", WAYS)
def test_code_within_the_block_may_take_it_again(coordinator: Coordinator, block: Callable[..., Any]) -> None:
    """A session that is checked out can be taken again by code within the same block, and by no other thread, task or
    job.

    However the block was entered; once it is left, the session is free.
    """
    with block(coordinator):
        assert take(coordinator) == "taken"
        with coordinator.checkout("it"):
            assert take(coordinator) == "taken"
        with in_thread(lambda: take(coordinator)) as other:
            assert other.result(WAIT) == "busy"
    with in_thread(lambda: take(coordinator)) as other:
        assert other.result(WAIT) == "taken"


@pytest.mark.parametrize("block", WAYS)
def test_a_block_that_a_job_left_behind_keeps_the_next_job_of_its_thread_out(
    coordinator: Coordinator, block: Callable[..., Any]
) -> None:
    """A thread of an executor that enters a block and returns is free for other callers, and the block goes on."""
    held = block(coordinator)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.__enter__).result(WAIT)
        assert pool.submit(take, coordinator).result(WAIT) == "busy"
        pool.submit(held.__exit__, None, None, None).result(WAIT)
        assert pool.submit(take, coordinator).result(WAIT) == "taken"


@pytest.mark.parametrize("block", WAYS)
def test_within_one_job_of_an_executor_blocks_nest(coordinator: Coordinator, block: Callable[..., Any]) -> None:
    """As they do in any other thread."""

    def job() -> str:
        with block(coordinator):
            return take(coordinator)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(job).result(WAIT) == "taken"


def test_another_context_in_the_same_thread_is_another_caller(coordinator: Coordinator) -> None:
    """Frameworks run each request's steps in a copy of its context, in whichever thread is free."""
    requests = [contextvars.copy_context() for _ in range(2)]
    checkout = coordinator.checkout("it")
    requests[0].run(checkout.__enter__)
    assert requests[1].run(take, coordinator) == "busy"
    assert take(coordinator) == "busy"
    assert requests[0].copy().run(take, coordinator) == "busy"
    assert requests[0].run(take, coordinator) == "taken"
    requests[0].copy().run(checkout.__exit__)
    assert requests[1].run(take, coordinator) == "taken"


def test_tasks_of_one_event_loop_exclude_each_other(coordinator: Coordinator) -> None:
    """One has the session while it awaits; another one, or a task that it has started itself, does not get it."""

    async def within() -> list[str]:
        with coordinator.checkout("it"):
            child = asyncio.create_task(other())
            return [take(coordinator), await child, await asyncio.to_thread(take, coordinator)]

    async def other() -> str:
        return take(coordinator)

    async def both() -> tuple[list[str], str]:
        first = asyncio.create_task(within())
        await asyncio.sleep(0)
        return await first, take(coordinator)

    assert asyncio.run(both()) == (["taken", "busy", "busy"], "taken")


def test_a_wait_that_would_block_an_event_loop_is_refused(coordinator: Coordinator) -> None:
    """The error names the cure, and nothing stays queued; a session that is free can be had."""

    async def wait() -> str:
        return await other()

    async def other() -> str:
        with pytest.raises(SessionBusyError, match=r"block the event loop.*sessionkit\.aio\.checkout"):
            coordinator.checkout("it", timeout=60).__enter__()
        return take(coordinator)

    with coordinator.checkout("it", holder="a request"):
        assert asyncio.run(wait()) == "busy"
    assert asyncio.run(asyncio.to_thread(take, coordinator)) == "taken"


def test_a_wait_for_another_process_is_refused_in_an_event_loop_too(
    session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """There it would ask the store again and again."""
    path = tmp_path / "sessions.db"
    with closing(SQLiteStore(path)) as store, closing(SQLiteStore(path)) as other_store:
        here, there = session_coordinator(store=store), session_coordinator(store=other_store)
        there.create_session(session_id="it")

        async def wait() -> None:
            with pytest.raises(SessionBusyError, match="block the event loop"):
                here.checkout("it").__enter__()

        with there.checkout("it"):
            asyncio.run(wait())
        assert take(here) == "taken"
        here.close()
        there.close()


def test_a_given_holder_may_take_it_again_wherever_it_is(coordinator: Coordinator) -> None:
    """`holder=` stands for a request or a task: in any thread, and for no other one."""
    with coordinator.checkout("it", holder="request 1"):
        both = threading.Barrier(2)

        def again() -> str:
            with coordinator.checkout("it", holder="".join(["request", " 1"]), timeout=0):
                both.wait(WAIT)
                return "taken"

        with in_thread(again) as first, in_thread(again) as second:
            assert (first.result(WAIT), second.result(WAIT)) == ("taken", "taken")
        with pytest.raises(SessionBusyError):
            coordinator.checkout("it", holder="request 2", timeout=0).__enter__()
        assert take(coordinator) == "busy"
