"""Checkouts in asyncio programs: waiting, nesting, and what runs in threads."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionBusyError,
    SessionExpiredError,
)
from sessionkit.aio import AsyncCheckout, checkout
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, in_thread
from ..helpers.tasks import Coordinator, NoWaiter, is_free, run, until, until_waiting


def test_two_tasks_have_the_session_one_after_the_other(coordinator: Coordinator) -> None:
    """Each has it for itself while it awaits something; one thread for all that needs one is enough."""
    log: list[str] = []

    async def task(name: str) -> None:
        async with checkout(coordinator, "it", timeout=WAIT) as session:
            assert session is coordinator.get_session("it")
            log.append(f"{name} in")
            await asyncio.sleep(0.001)
            log.append(f"{name} out")

    async def both() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await asyncio.gather(task("A"), task("B"))

    run(both())
    assert log == ["A in", "A out", "B in", "B out"]
    assert is_free(coordinator)


def test_a_task_may_take_it_again_and_no_other_task_may(coordinator: Coordinator) -> None:
    """Nested in the task's own block, synchronous or not; a task that it starts is another one, and so is a thread."""

    async def take() -> str:
        try:
            async with checkout(coordinator, "it", timeout=0):
                return "taken"
        except SessionBusyError:
            return "busy"

    def take_in_thread() -> str:
        try:
            with coordinator.checkout("it", timeout=0):
                return "taken"
        except SessionBusyError:
            return "busy"

    async def everybody() -> list[str]:
        return [
            await take(),
            take_in_thread(),
            await asyncio.create_task(take()),
            await asyncio.to_thread(take_in_thread),
        ]

    async def within() -> list[list[str]]:
        found = []
        async with checkout(coordinator, "it"):
            found.append(await everybody())
            async with checkout(coordinator, "it"):
                found.append(await everybody())
        with coordinator.checkout("it"):
            found.append(await everybody())
        return found

    assert run(within()) == [["taken", "taken", "busy", "busy"]] * 3
    assert is_free(coordinator)


def test_tasks_of_one_holder_have_it_together(coordinator: Coordinator) -> None:
    """As threads of one holder do; other holders wait."""

    async def work(both: asyncio.Barrier) -> None:
        async with checkout(coordinator, "it", holder="request 1", timeout=WAIT):
            await both.wait()
            assert [held.holder for held in coordinator.checkouts()] == ["'request 1'"] * 2
            with pytest.raises(SessionBusyError):
                await checkout(coordinator, "it", holder="request 2", timeout=0).__aenter__()
            await both.wait()

    async def together() -> None:
        both = asyncio.Barrier(2)
        await asyncio.gather(work(both), work(both))

    run(together())
    assert is_free(coordinator)


def test_tasks_and_threads_wait_in_one_queue(coordinator: Coordinator) -> None:
    """First come, first served."""
    log: list[str] = []

    def thread() -> None:
        with coordinator.checkout("it"):
            log.append("thread")

    async def task(name: str) -> None:
        async with checkout(coordinator, "it"):
            log.append(name)

    async def all_of_them() -> None:
        async with checkout(coordinator, "it"):
            waiting: list[Awaitable[Any]] = []
            for wait in (lambda: task("1"), lambda: asyncio.to_thread(thread), lambda: task("2")):
                waiting.append(asyncio.create_task(wait()))
                await until_waiting(coordinator, len(waiting))
        await asyncio.gather(*waiting)

    run(all_of_them())
    assert log == ["1", "thread", "2"]


def test_a_thousand_tasks_wait_without_a_thread_each(coordinator: Coordinator) -> None:
    """They are served in their order; without a store, no thread is started at all."""
    served: list[int] = []
    threads: set[str] = set()

    async def task(number: int) -> None:
        async with checkout(coordinator, "it"):
            served.append(number)

    async def all_of_them() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2, "ours"))
        async with checkout(coordinator, "it"):
            tasks = [asyncio.create_task(task(number)) for number in range(1000)]
            await until_waiting(coordinator, len(tasks))
            threads.update(thread.name for thread in threading.enumerate())
        await asyncio.gather(*tasks)

    run(all_of_them())
    assert sorted(served) == list(range(1000))
    if coordinator.store is None:
        assert served == list(range(1000))
        assert not [name for name in threads if name.startswith("ours")]


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_a_wait_that_is_too_long_raises_as_it_does_in_a_thread(coordinator: Coordinator, timeout: float) -> None:
    """And leaves nothing in the queue."""

    async def wait() -> None:
        with pytest.raises(SessionBusyError, match=rf"'it' is checked out elsewhere, .*timeout={timeout}"):
            async with checkout(coordinator, "it", timeout=timeout):
                pass

    with coordinator.checkout("it"):
        with in_thread(lambda: run(wait())) as waited:
            waited.result(WAIT)
        assert coordinator.checkouts()[0].waiting == []
    assert is_free(coordinator)


def test_a_wait_ends_if_the_session_does(coordinator: Coordinator) -> None:
    """With the error that says why."""

    async def wait() -> None:
        async with checkout(coordinator, "it"):
            pass

    async def both() -> None:
        async with checkout(coordinator, "it"):
            waiting = asyncio.create_task(wait())
            await until_waiting(coordinator, 1)
            await asyncio.to_thread(coordinator.close_session, "it")
            with pytest.raises(SessionExpiredError):
                await waiting

    run(both())


def test_arguments_are_checked_at_once(coordinator: Coordinator) -> None:
    """As those of a synchronous checkout."""
    with pytest.raises(TypeError, match="exclusive must be True or False"):
        checkout(coordinator, "it", exclusive="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be 0 or more"):
        checkout(coordinator, "it", timeout=-1)


def test_sharing_tasks_have_it_together(session_coordinator: CoordinatorFactory) -> None:
    """In memory; what is exclusive waits for them."""
    coordinator = session_coordinator()
    coordinator.create_session(session_id="it")

    async def share(both: asyncio.Barrier) -> None:
        async with checkout(coordinator, "it", exclusive=False):
            await both.wait()
            with pytest.raises(SessionBusyError):
                await asyncio.create_task(AsyncCheckout(coordinator.checkout("it", timeout=0)).__aenter__())
            await both.wait()

    async def together() -> None:
        both = asyncio.Barrier(2)
        await asyncio.gather(share(both), share(both))

    run(together())
    assert is_free(coordinator)


@pytest.mark.parametrize("way", ["leaving", "close", "not even entered"])
def test_close_callbacks_never_run_on_the_loop(coordinator: Coordinator, closed_in: list[int], way: str) -> None:
    """Whichever step of a checkout it is that ends a session."""

    async def end() -> None:
        taken = checkout(coordinator, "it")
        if way == "not even entered":
            held = coordinator.checkout("it")
            held.__enter__()
            await asyncio.to_thread(coordinator.close_session, "it")
            held.give_back_later()
            with pytest.raises(SessionExpiredError):
                await taken.__aenter__()
            return
        async with taken as session:
            if way == "close":
                await taken.close()
                assert closed_in
            else:
                await asyncio.to_thread(coordinator.close_session, "it")
                assert session.ended is RemovalCause.CLOSED
                assert closed_in == []

    run(end())
    assert len(closed_in) == 1
    assert closed_in != [threading.get_ident()]


def test_the_holder_is_told_that_the_session_was_taken_away(coordinator: Coordinator) -> None:
    """By what it calls, and by leaving, unless the block raised something itself."""

    async def taken_away(error: Exception | None) -> None:
        coordinator.create_session(session_id="other")
        taken = checkout(coordinator, "other")
        async with taken:
            await asyncio.to_thread(coordinator.close_session, "other", force=True)
            with pytest.raises(SessionExpiredError):
                await taken.save()
            if error is not None:
                raise error

    with pytest.raises(SessionExpiredError, match="other"):
        run(taken_away(None))
    with pytest.raises(ZeroDivisionError):
        run(taken_away(ZeroDivisionError()))


def test_the_holder_saves_reverts_and_rotates(coordinator: Coordinator) -> None:
    """As the holder of a synchronous checkout does."""
    is_stored = coordinator.store is not None

    async def work() -> None:
        taken = checkout(coordinator, "it")
        with pytest.raises(RuntimeError, match="enter it first"):
            await taken.save()
        async with taken as session:
            session.data["n"] = 1
            await taken.save()
            session.data["n"] = 2
            await taken.revert()
            assert session.data == {"n": 1 if is_stored else 2}
            await taken.rotate("new")

    run(work())
    assert "it" not in coordinator
    assert coordinator.get_session("new").data == {"n": 1 if is_stored else 2}


@pytest.mark.parametrize("queued", [False, True])
def test_if_no_thread_can_be_had_the_loop_does_the_work(
    stored: Coordinator, monkeypatch: pytest.MonkeyPatch, queued: bool
) -> None:
    """Once, also where the call that could not be started was queued."""
    late: list[Callable[[], object]] = []

    def refuse(self: object, executor: object, function: Callable[..., object], *arguments: object) -> None:
        if queued:
            late.append(lambda: function(*arguments))
        raise RuntimeError("can't start new thread")

    async def block() -> None:
        async with checkout(stored, "it") as session:
            session.data["n"] = 1

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "run_in_executor", refuse)
        run(block())
    for call in late:
        call()
    assert is_free(stored)


def test_a_call_that_runs_although_starting_it_failed_is_waited_for(
    stored: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor whose threads are all there may have begun what it says it could not start."""

    def begin_and_refuse(self: object, executor: object, function: Callable[..., object], *arguments: object) -> None:
        function(*arguments)
        raise RuntimeError("can't start new thread")

    async def block() -> None:
        async with checkout(stored, "it") as session:
            session.data["n"] = 1

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "run_in_executor", begin_and_refuse)
        run(block())
    assert is_free(stored)


def test_a_wait_for_another_process_takes_no_thread(
    stored: Coordinator, session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """Between two looks at the store, the executor's one thread is free; the wait ends with the other's checkout."""
    with closing(SQLiteStore(tmp_path / "sessions.db")) as other_store:
        there = session_coordinator(store=other_store)
        held = there.checkout("it")

        async def wait() -> str:
            async with checkout(stored, "it") as session:
                return str(session.data["by"])

        async def both() -> str:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            await asyncio.to_thread(held.__enter__)
            waiting = asyncio.create_task(wait())
            await until(stored.checkouts)
            assert held.session is not None
            held.session.data["by"] = "the other"
            await asyncio.to_thread(held.__exit__)
            return await waiting

        assert run(both()) == "the other"
        there.close()


def test_a_wait_for_another_process_has_its_limit(
    stored: Coordinator, session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """And can be cancelled."""
    with closing(SQLiteStore(tmp_path / "sessions.db")) as other_store:
        there = session_coordinator(store=other_store)

        async def wait(timeout: float | None) -> None:
            async with checkout(stored, "it", timeout=timeout):
                pass

        async def limited() -> None:
            with pytest.raises(SessionBusyError, match=r"in another process, .*timeout=0\.01"):
                await wait(0.01)
            waiting = asyncio.create_task(wait(None))
            await until(stored.checkouts)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()

        with there.checkout("it"), in_thread(lambda: run(limited())) as done:
            done.result(WAIT)
        assert is_free(stored)
        there.close()


def test_a_session_that_is_closed_by_force_while_it_waits_for_another_process(
    stored: Coordinator, session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """Asking again says that it has ended."""
    with closing(SQLiteStore(tmp_path / "sessions.db")) as other_store:
        there = session_coordinator(store=other_store)
        held, asking = there.checkout("it"), stored.checkout("it")
        held.__enter__()

        async def wait() -> None:
            asking.begin(NoWaiter(), "a holder")
            assert asking.ask() is None
            assert asking.pause is not None
            await asyncio.to_thread(stored.close_session, "it", force=True)
            with pytest.raises(SessionExpiredError):
                asking.ask()
            assert asking.begin_to_leave() is None

        run(wait())
        held.__exit__()
        there.close()


def test_a_checkout_is_for_one_block(coordinator: Coordinator) -> None:
    """Neither for two, nor for a copy, nor outside of a task."""

    async def misuse() -> None:
        taken = checkout(coordinator, "it")
        async with taken:
            assert repr(taken) == "<AsyncCheckout of session 'it', for an async with block>"
        with pytest.raises(RuntimeError, match="was used already"):
            await taken.__aenter__()
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            copy.copy(taken)
        outside = checkout(coordinator, "it").__aenter__()
        refused = asyncio.get_running_loop().create_future()

        def enter_outside() -> None:
            with pytest.raises(RuntimeError, match="in an asyncio task only"):
                outside.send(None)
            refused.set_result(None)

        asyncio.get_running_loop().call_soon(enter_outside)
        await refused

    run(misuse())
    assert is_free(coordinator)


def test_operators_see_which_task_has_it_and_which_wait(coordinator: Coordinator) -> None:
    """By their names, also of a task that is gone and left its block open."""

    async def block() -> None:
        async with checkout(coordinator, "it"):
            pass

    async def look() -> None:
        taken = checkout(coordinator, "it")
        opening = asyncio.create_task(taken.__aenter__(), name="opens")
        await opening
        waiting = asyncio.create_task(block(), name="waits")
        await until_waiting(coordinator, 1)
        (held,) = coordinator.checkouts()
        assert (held.holder, held.waiting) == ("<asyncio task 'opens'>", ["<asyncio task 'waits'>"])
        del opening
        gc.collect()
        assert coordinator.checkouts()[0].holder == "<asyncio task that is gone>"
        await taken.__aexit__()
        await waiting

    run(look())


def test_a_closed_coordinator_says_so(coordinator: Coordinator) -> None:
    """As to threads."""

    async def enter() -> None:
        coordinator.close()
        async with checkout(coordinator, "it"):
            pass

    with pytest.raises(CoordinatorClosedError):
        run(enter())
