"""Sessions in asyncio programs: `async with sessionkit.aio.checkout(coordinator, session_id) as session: ...`."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from math import inf
from typing import Any, Generic, ParamSpec, TypeVar

from . import Checkout, ManagedSession, SessionCoordinator
from .util.copies import refuse_copies
from .util.log import short_repr
from .util.validation import Duration, checked_wait

R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")


def checkout(
    coordinator: SessionCoordinator[R],
    session_id: str,
    *,
    exclusive: bool = True,
    timeout: Duration | None = None,
    holder: object | None = None,
) -> AsyncCheckout[R]:
    """An asynchronous context manager that holds the session, as `SessionCoordinator.checkout` does for threads.

    Waiting blocks neither the event loop nor a thread; tasks and threads that wait for a session stand in one queue. A
    task may take the session again that it has; two tasks exclude each other, also if one has started the other.
    `timeout`: how many seconds entering waits; default None, for as long as it takes. `holder`: an object that stands
    for several tasks that work on the session together; default the task that enters.

    If the task is cancelled, at whatever moment, the session is given back; what a thread is doing for the checkout
    just then is waited for. I/O, factories and close callbacks run in threads (the loop's default executor); without a
    store, there is usually nothing that needs one. Raises what `SessionCoordinator.checkout` raises, in the same cases.
    """
    return AsyncCheckout(coordinator.checkout(session_id, exclusive=exclusive, timeout=timeout, holder=holder))


def on_loop(
    function: Callable[P, Coroutine[Any, Any, T]],
    loop: asyncio.AbstractEventLoop,
    *,
    timeout: Duration | None = 30,
) -> Callable[P, T]:
    """A plain function that runs an asynchronous one on an event loop, for `on_close=` and `resource_factory=`.

    The thread that calls it waits for what the function returns or raises. After `timeout` seconds (default 30; None:
    as long as it takes) it cancels that, and raises `TimeoutError`. It raises `RuntimeError` if the loop does not run,
    and in the loop's own thread, which would wait for itself. (What a close callback raises is logged and counted.)

    So let threads create and end sessions, while the loop runs: `await asyncio.to_thread(coordinator.close)`.
    """
    if not callable(function):
        raise TypeError(f"function must be an asynchronous function, not {short_repr(function)}")
    if not isinstance(loop, asyncio.AbstractEventLoop):
        raise TypeError(f"loop must be an event loop, such as asyncio.get_running_loop(), not {short_repr(loop)}")
    seconds = checked_wait("timeout", timeout)

    def run(*arguments: P.args, **options: P.kwargs) -> T:
        if _running_loop() is loop:
            raise RuntimeError(
                f"{short_repr(function)} is to run on the event loop of this very thread, which cannot wait for "
                "itself: create and end sessions in other threads, by await asyncio.to_thread(...)"
            )
        if not loop.is_running():
            raise RuntimeError(
                f"{short_repr(function)} is to run on an event loop that does not run: end sessions, and close the "
                "coordinator, before the loop stops"
            )
        call = asyncio.run_coroutine_threadsafe(function(*arguments, **options), loop)
        try:
            return call.result(seconds)
        except TimeoutError:
            if call.done():
                # It is the function's own.
                raise
            raise TimeoutError(
                f"{short_repr(function)} took longer than timeout={seconds} seconds, and was cancelled"
            ) from None
        finally:
            call.cancel()

    return run


class AsyncCheckout(Generic[R]):
    """Takes a session on entering and gives it back on leaving. Made by `checkout`, for one `async with` block.

    Its methods are those of `Checkout`, for the holder of the session, and raise the same.
    """

    def __init__(self, checkout: Checkout[R]) -> None:
        self._checkout = checkout
        self._call: Future[Any] | None = None

    async def __aenter__(self) -> ManagedSession[R]:
        checkout, loop = self._checkout, asyncio.get_running_loop()
        ends = inf if checkout.timeout is None else loop.time() + checkout.timeout
        waiter = _Waiter(checkout, loop)
        checkout.begin(waiter, _Caller(_this_task()))
        try:
            while (session := await self._run(checkout.ask)) is None:
                left = ends - loop.time()
                if left <= 0:
                    raise checkout.busy()
                await waiter.wait(left if checkout.pause is None else min(left, checkout.pause))
            return session
        except BaseException:
            await self._give_back()
            raise

    async def __aexit__(self, exc_type: object = None, exc: object = None, traceback: object = None) -> None:
        session = self._checkout.session
        await self._give_back()
        if exc_type is None:
            self._checkout.check_kept(session)

    __reduce_ex__ = refuse_copies("call checkout() for each async with block")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of session {self._checkout.session_id!r}, for an async with block>"

    async def save(self) -> None:
        """Write to the store now what changed in the session; without a store, nothing is done."""
        await self._run(self._checkout.save)

    async def revert(self) -> None:
        """Set the session's data back to what the store has, as far as this process knows; nothing without a store."""
        await self._run(self._checkout.revert)

    async def rotate(self, new_id: str) -> None:
        """Give the session, which must be held exclusively, another id."""
        await self._run(lambda: self._checkout.rotate(new_id))

    async def close(self) -> None:
        """End the session (cause `CLOSED`), unless it has ended, and give it back."""
        await self._in_thread(self._checkout.close)

    async def _give_back(self) -> None:
        if self._call is not None and not self._call.done():
            # The coroutine is thrown away, and cannot wait for the thread.
            self._call.add_done_callback(lambda _: self._checkout.give_back_later())
        elif _running_loop() is None:
            # It is thrown away after its loop.
            self._checkout.give_back_later()
        else:
            rest = self._checkout.begin_to_leave()
            if rest is not None:
                await self._in_thread(rest)

    async def _run(self, function: Callable[[], T]) -> T:
        return function() if self._checkout.is_quick else await self._in_thread(function)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Make a call in a thread, to its end: if the task is cancelled meanwhile, that is raised then."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        call: Future[T] = Future()
        try:
            loop.run_in_executor(None, copy_context().run, _run, call, function)
        except RuntimeError:
            # The system has no thread to give. It may be queued all the same, and is not to be made twice.
            if call.cancel():
                return function()
        self._call = call
        call.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        cancelled: asyncio.CancelledError | None = None
        while not done.is_set():
            try:
                await done.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled from call.exception()
        return call.result()


class _Waiter:
    """The wait of a task."""

    def __init__(self, checkout: Checkout[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._checkout = checkout
        self._loop = loop
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """End the wait; called in any thread, with a lock held."""
        try:
            # For a loop, this is what the release of a lock is for a thread.
            self._loop.call_soon_threadsafe(self._awake.set)
        except RuntimeError:
            # The loop is closed, and nothing asks any more.
            self._checkout.give_back_later()

    async def wait(self, seconds: float) -> None:
        """Wait until woken, or for that many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == inf else seconds):
                await self._awake.wait()
        self._awake.clear()


class _Caller(weakref.ref[asyncio.Task[Any]]):
    """Stands for a task, and does not keep it."""

    def __repr__(self) -> str:
        task = self()
        return "<asyncio task that is gone>" if task is None else f"<asyncio task {task.get_name()!r}>"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a session can be checked out here in an asyncio task only")
    return task


def _run(call: Future[T], function: Callable[[], T]) -> None:
    if call.set_running_or_notify_cancel():
        try:
            call.set_result(function())
        except BaseException as error:  # noqa: BLE001  it goes to the task that waits, whatever it is
            call.set_exception(error)
