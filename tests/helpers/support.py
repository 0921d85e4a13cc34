"""What several test files need: bounded waits, threads whose errors count, a clock that can be held up, a child."""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sessionkit import CoordinatorConfig, ManagedSession, RemovalCause, SessionCoordinator, StoreError
from sessionkit.stores import SessionRecord, SQLiteStore, Store
from sessionkit.testing import ManualClock
from sessionkit.util.clock import BUILTIN_CLOCKS, system_clock

WAIT = 20.0
"""Seconds that any hand-shake may take before the test fails; nothing waits that long when all is well."""


@contextmanager
def in_thread(function: Callable[..., Any], *args: Any) -> Iterator[Future[Any]]:
    """Run a function in another thread for the length of the block, which then waits for its end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function, *args)
        yield future
        future.exception(WAIT)


def all_at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions in a thread each, released by one barrier; their results, or the exceptions they raised."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        barrier.wait(WAIT)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        futures = [pool.submit(run, function) for function in functions]
        return [future.exception(WAIT) or future.result(WAIT) for future in futures]


LOCK_PROBE = "lock probe"
"""The name of the threads that ask for the lock: a clock that looks whether it is free gives them a reading at once."""


def lock_is_free(coordinator: SessionCoordinator[Any]) -> bool:
    """Whether another thread could take the coordinator's lock now: it can count the sessions."""
    counted = threading.Event()
    # Should the lock never be free, nobody waits for this thread.
    probe = threading.Thread(target=lambda: (len(coordinator), counted.set()), name=LOCK_PROBE, daemon=True)
    probe.start()
    return counted.wait(WAIT)


def one_minute(**settings: Any) -> CoordinatorConfig:
    """A minute of session timeout, a cleanup every ten seconds, and these settings."""
    return CoordinatorConfig(session_timeout=60, cleanup_interval=10, **settings)


class Closings(list[tuple[str, RemovalCause]]):
    """A close callback that notes whom it was called for, by name or else id."""

    def __call__(self, session: ManagedSession[Any], cause: RemovalCause) -> None:
        self.append((session.name or session.id, cause))


class HeldUpClock(ManualClock):
    """A manual clock in which one thread can be held up between its reading and what it does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.held_up = threading.Event()
        self.go_on = threading.Event()
        self._thread: int | None = None

    def hold_up_this_thread(self) -> None:
        """This thread stops after its next reading until `go_on` is set."""
        self._thread = threading.get_ident()

    def __call__(self) -> float:
        reading = super().__call__()
        if threading.get_ident() == self._thread and not self.go_on.is_set():
            self.held_up.set()
            assert self.go_on.wait(WAIT)
        return reading


@contextmanager
def system_time(clock: ManualClock) -> Iterator[None]:
    """Make the clock the system's own, which coordinators also read on their paths without the lock."""
    # freezegun, the public way to set the system's time, freezes it: then every call takes the lock.
    with patch.object(time, "monotonic", clock), patch.dict(BUILTIN_CLOCKS, {system_clock: clock}):
        yield


def in_child(function: Callable[[], Any]) -> Any:
    """Fork, run the function in the child, and give its result, or fail with its traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            outcome = (True, function())
        except BaseException:  # noqa: BLE001  it goes to the parent, whatever it is
            outcome = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    assert answer, "the child died without an answer"
    succeeded, result = pickle.loads(answer)  # noqa: S301  written by our own child
    assert succeeded, result
    return result


def records_in(path: Path) -> dict[str, SessionRecord]:
    """What is in a SQLite store that nobody has open here; 100 at most."""
    with closing(SQLiteStore(path)) as store:
        return {record.id: record for record in store.page(None, 100)}


class WatchedStore:
    """A store whose calls are counted, and fail on demand."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self.failing: set[str] = set()
        """The methods that fail; `"*"` for all."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name == "clock_offset":
            # No I/O, which cannot fail.
            return method

        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            if self.failing & {name, "*"}:
                raise StoreError(f"no {name} today") from OSError(28, "No space left on device")
            return method(*arguments)

        return call
