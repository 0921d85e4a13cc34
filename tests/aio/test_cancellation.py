"""Tasks that are cancelled, and coroutines that are thrown away, at whatever moment: the session is given back once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from sessionkit import (
    SessionNotFoundError,
)
from sessionkit.aio import checkout

from ..helpers.support import GIVE_BACK, LEASE, RELEASE, WAIT, WatchedStore, in_thread
from ..helpers.tasks import Coordinator, is_free, run, until, until_waiting


def test_cancelled_at_whatever_step_it_gives_back_once(coordinator: Coordinator) -> None:
    """Of a block that waits for its turn, has it and leaves, each step of the loop is tried."""

    async def block(inside: list[str]) -> None:
        async with checkout(coordinator, "it"):
            inside.append("in")
            await asyncio.sleep(0)

    async def cancelled_after(steps: int) -> bool:
        inside: list[str] = []
        async with checkout(coordinator, "it"):
            task = asyncio.create_task(block(inside))
            for _ in range(min(steps, 3)):
                await asyncio.sleep(0)
        for _ in range(steps - 3):
            await asyncio.sleep(0)
        was_cancelled = task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or inside == ["in"]
        assert coordinator.checkouts() == []
        return was_cancelled

    for steps in range(200):
        if not run(cancelled_after(steps)):
            break
        assert is_free(coordinator)
    assert steps > 5


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("moment", [LEASE, "in the block", GIVE_BACK])
def test_cancelled_while_a_thread_does_io_it_gives_back_once(
    stored: Coordinator, store: WatchedStore, moment: str, number: int
) -> None:
    """What the thread does is waited for, however often the task is cancelled meanwhile; then the lease is released."""
    begun, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        begun.set()
        assert go_on.wait(WAIT)

    async def block() -> None:
        async with checkout(stored, "it") as session:
            session.data["n"] = 1
            if moment == "in the block":
                begun.set()
                await asyncio.Event().wait()

    async def cancelled() -> None:
        if moment != "in the block":
            store.before(moment, stop)
        task = asyncio.create_task(block())
        await until(begun.is_set)
        for _ in range(number):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = store.calls[RELEASE] + store.calls[GIVE_BACK]
    run(cancelled())
    assert store.calls[RELEASE] + store.calls[GIVE_BACK] == before + 1
    assert is_free(stored)


def test_a_cancellation_says_what_failed_meanwhile(stored: Coordinator, store: WatchedStore) -> None:
    """The error of the store is the cause of the cancellation that is raised."""
    begun, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        begun.set()
        assert go_on.wait(WAIT)
        raise SessionNotFoundError("it")

    async def block() -> None:
        async with checkout(stored, "it"):
            pass

    async def cancelled() -> BaseException | None:
        store.before(LEASE, stop)
        task = asyncio.create_task(block())
        await until(begun.is_set)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return caught.value.__cause__

    assert isinstance(run(cancelled()), SessionNotFoundError)


def test_a_cancelled_wait_lets_those_behind_it_pass(coordinator: Coordinator) -> None:
    """It may be cancelled in the very moment in which the session becomes its own."""
    served: list[str] = []

    async def task(name: str) -> None:
        async with checkout(coordinator, "it"):
            served.append(name)

    async def all_of_them() -> None:
        async with checkout(coordinator, "it"):
            first = asyncio.create_task(task("first"))
            await until_waiting(coordinator, 1)
            second = asyncio.create_task(task("second"))
            await until_waiting(coordinator, 2)
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert first.cancelled()

    run(all_of_them())
    assert served == ["second"]
    assert is_free(coordinator)


def test_a_cancelled_wait_for_a_thread_leaves_the_session_free(coordinator: Coordinator) -> None:
    """Once the thread has given it back. (`asyncio.to_thread(checkout.__enter__)` cannot be cancelled: its thread waits
    on, and takes the session for good.)
    """

    async def cancelled() -> None:
        waiting = asyncio.create_task(checkout(coordinator, "it").__aenter__())
        await until_waiting(coordinator, 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    held = coordinator.checkout("it", holder="a thread")
    held.__enter__()
    run(cancelled())
    held.__exit__()
    assert is_free(coordinator)
    assert coordinator.stats().checked_out == 0


def test_a_coroutine_that_is_thrown_away_gives_back_at_the_next_call(coordinator: Coordinator) -> None:
    """Within the block, in the queue, or with its loop closed before its turn: a program that ends may leave it so."""
    holding, waiting = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def block() -> None:
        async with checkout(coordinator, "it"):
            await asyncio.Event().wait()

    tasks = [holding.create_task(block())]
    holding.run_until_complete(until(coordinator.checkouts))
    tasks.append(waiting.create_task(block()))
    waiting.run_until_complete(until_waiting(coordinator, 1))
    for loop in (holding, waiting):
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    while tasks:
        # Else asyncio says that it was destroyed.
        tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]
        tasks.pop(0).get_coro().close()  # type: ignore[union-attr]
        coordinator.touch_session("it")
        coordinator.cleanup_inactive_sessions()
    assert coordinator.checkouts() == []
    assert is_free(coordinator)


def test_a_turn_that_comes_when_the_loop_is_closed_is_passed_on(coordinator: Coordinator) -> None:
    """The next call gives the session back."""
    loop = asyncio.new_event_loop()

    async def block() -> None:
        async with checkout(coordinator, "it"):
            await asyncio.Event().wait()

    with coordinator.checkout("it"):
        with in_thread(lambda: loop.create_task(block())) as made:
            task = made.result(WAIT)
        with in_thread(lambda: loop.run_until_complete(until_waiting(coordinator, 1))) as waited:
            waited.result(WAIT)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert coordinator.checkouts() == []
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.get_coro().close()  # type: ignore[union-attr]
    assert is_free(coordinator)


def test_a_coroutine_that_is_thrown_away_while_a_thread_asks(stored: Coordinator, store: WatchedStore) -> None:
    """What the thread takes is given back at the next call."""
    begun, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        begun.set()
        assert go_on.wait(WAIT)

    async def thrown_away() -> None:
        store.before(LEASE, stop)
        entering = checkout(stored, "it").__aenter__()
        entering.send(None)
        await until(begun.is_set)
        entering.close()
        go_on.set()
        await until(lambda: not stored.checkouts() or stored.cleanup_inactive_sessions())

    run(thrown_away())
    assert is_free(stored)


def test_a_generator_that_is_left_early_gives_back(coordinator: Coordinator) -> None:
    """As a response is that is streamed to a client who goes away."""

    async def stream() -> AsyncIterator[int]:
        async with checkout(coordinator, "it") as session:
            for number in range(3):
                session.data["sent"] = number
                yield number

    async def read_one() -> None:
        generator = stream()
        assert await anext(generator) == 0
        await generator.aclose()  # type: ignore[attr-defined]

    run(read_one())
    assert is_free(coordinator)
    assert coordinator.get_session("it").data == {"sent": 0}
