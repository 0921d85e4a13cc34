"""What tests of asyncio programs need: bounded runs, and waits for what other tasks do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sessionkit import (
    SessionBusyError,
    SessionCoordinator,
)

from .support import WAIT, in_thread

Coordinator = SessionCoordinator[Any]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, for a bounded time."""

    async def bounded() -> Any:
        async with asyncio.timeout(WAIT):
            return await coroutine

    return asyncio.run(bounded())


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
