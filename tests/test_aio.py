"""Checkouts in asyncio programs: waiting, cancellation at whatever moment, and what runs in threads."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExpiredError,
    SessionNotFoundError,
)
from sessionkit.aio import AsyncCheckout, checkout, on_loop
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from .helpers.support import GIVE_BACK, LEASE, RELEASE, WAIT, WatchedStore, in_thread

Coordinator = SessionCoordinator[Any]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, for a bounded time."""

    async def bounded() -> Any:
        async with asyncio.timeout(WAIT):
            return await coroutine

    return asyncio.run(bounded())


@pytest.fixture
def closed_in() -> list[int]:
    """The idents of the threads in which close callbacks have run."""
    return []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WatchedStore]:
    with closing(SQLiteStore(tmp_path / "sessions.db")) as store:
        yield WatchedStore(store)


@pytest.fixture(params=["in memory", "with a store"])
def coordinator(
    session_coordinator: CoordinatorFactory,
    store: WatchedStore,
    request: pytest.FixtureRequest,
    closed_in: list[int],
) -> Iterator[Coordinator]:
    kept = store if request.param == "with a store" else None
    coordinator = session_coordinator(store=kept, on_close=lambda *_: closed_in.append(threading.get_ident()))
    coordinator.create_session(session_id="it")
    yield coordinator
    # While its store is open.
    coordinator.close()


@pytest.fixture
def stored(session_coordinator: CoordinatorFactory, store: WatchedStore) -> Iterator[Coordinator]:
    coordinator = session_coordinator(store=store)
    coordinator.create_session(session_id="it")
    yield coordinator
    coordinator.close()


class NoWaiter:
    """Waits for nothing: asks when it likes."""

    def wake(self) -> None: ...


def is_free(coordinator: Coordinator) -> bool:
    """Whether another thread can have the session at once, in this process and, if there is a store, in another."""

    def take() -> bool:
        try:
            with coordinator.checkout("it", timeout=0):
                return not coordinator.checkouts()[0].waiting
        except SessionBusyError:
            return False

    with in_thread(take) as taken:
        return taken.result(WAIT) and not coordinator.checkouts()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def until_waiting(coordinator: Coordinator, number: int) -> None:
    await until(lambda: [len(held.waiting) for held in coordinator.checkouts()] == [number])


def test_two_tasks_have_the_session_one_after_the_other(coordinator: Coordinator) -> None:
    """Each has it for itself while it awaits something; it is touched, and given back."""
    log: list[str] = []

    async def task(name: str) -> None:
        async with checkout(coordinator, "it", timeout=WAIT) as session:
            assert session is coordinator.get_session("it")
            log.append(f"{name} in")
            await asyncio.sleep(0.001)
            log.append(f"{name} out")

    async def both() -> None:
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


# ---- Cancellation


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


def test_a_thread_that_was_told_to_enter_and_forgotten_keeps_the_session(coordinator: Coordinator) -> None:
    """`asyncio.to_thread(checkout.__enter__)` cannot be cancelled: that is what this module is for."""

    async def cancelled() -> None:
        async with checkout(coordinator, "it"):
            waiting = asyncio.create_task(checkout(coordinator, "it").__aenter__())
            await until_waiting(coordinator, 1)
            waiting.cancel()
            await asyncio.wait([waiting])

    run(cancelled())
    assert is_free(coordinator)
    assert coordinator.stats().checked_out == 0


# ---- Coroutines that are thrown away


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


# ---- What runs in threads


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


# ---- Other processes


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


# ---- What is not as it should be


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


# ---- Functions on a loop


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
