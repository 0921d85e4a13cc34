"""What several test files need: bounded waits, threads whose errors count, a clock that can be held up, a child."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sessionkit import CoordinatorConfig, ManagedSession, RemovalCause, SessionCoordinator, StoreError
from sessionkit.stores import Changes, SessionRecord, SQLiteStore, Store, Touch
from sessionkit.testing import ManualClock
from sessionkit.util.clock import BUILTIN_CLOCKS, system_clock

WAIT = 20.0
"""Seconds that any hand-shake may take before the test fails; nothing waits that long when all is well."""


def examples(number: int) -> int:
    """How many random examples to try where so many do every day; `make soak` tries ten times as many."""
    return number * int(os.environ.get("SESSIONKIT_EXAMPLES", "1"))


# What a store is asked to do, as `WatchedStore` counts it and lets it fail.
JOIN, LEAVE, SET_WRITE_INTERVAL = "join", "leave", "set_write_interval"
CREATE, LOAD, FIND, PAGE, RENAME = "create", "load", "find", "page", "rename"
ATTACH, DETACH, LEASE, RELEASE = "attach", "detach", "lease", "release"
GIVE_BACK, SAVE, TOUCH = "give_back", "save", "touch"  # to give back is to save and to release in one step
DELETE, DELETE_IF_DUE = "delete", "delete_unless_used"
EVERYTHING = "*"


def operation_of(method: str, arguments: tuple[Any, ...]) -> str:
    """Which of these a call of a store's method is: some methods do one thing or another by what they are given."""
    match method:
        case "attach" if arguments[2:] and arguments[2]:
            return LEASE
        case "release" if arguments[2:] and arguments[2] is not None:
            return GIVE_BACK
        case "delete" if isinstance(arguments[0], Mapping) and any(at is not None for at in arguments[0].values()):
            return DELETE_IF_DUE
    return method


def delete_record(store: Any, session_id: str) -> None:
    """Delete a record, as an instance elsewhere does that closes the session."""
    store.delete({session_id: None})


def save_record(store: Any, session_id: str, version: int, data: str) -> None:
    """Save a record, as an instance elsewhere does that has read this version."""
    store.save(session_id, Changes(version, data, Touch(0.0)))


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
    """A close callback that notes which sessions it was called for, by name or else id."""

    def __call__(self, session: ManagedSession[Any], cause: RemovalCause) -> None:
        self.append((session.name or session.id, cause))


class HookedClock(ManualClock):
    """A manual clock in which something may happen between a reading and what is done with it."""

    def __init__(self, start: float = 0.0, wall_start: float = ManualClock().wall()) -> None:
        super().__init__(start, wall_start)
        self._here = threading.local()

    def at_reading(self, number: int, act: Callable[[], object]) -> None:
        """Call `act` at the reading of this number from now on, of those in this thread; once."""
        self._here.left, self._here.act = number, act

    def __call__(self) -> float:
        reading = super().__call__()
        left = getattr(self._here, "left", 0)
        if left:
            self._here.left = left - 1
            if left == 1:
                self._here.act()
        return reading


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
    with patch.object(time, "monotonic", clock), patch.dict(BUILTIN_CLOCKS, {system_clock: clock}):
        yield


def in_child(function: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Any:
    """Fork, run the function in the child, and give its result, or fail with its traceback."""
    reader, writer = os.pipe()
    pid = fork()
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


def fork_in_c() -> int:
    """Fork as a server does that is written in C: none of Python's hooks runs. For `in_new_process`."""
    pid = int(ctypes.PyDLL(None).fork())
    if pid == 0:
        # No other thread lives on that could end a child that hangs, after it has shown where.
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(int(3 * WAIT))
    return pid


def in_new_process(function: Callable[..., None], *arguments: str) -> None:
    """Call a function of a test module in a process of its own, which has no threads but those that it starts.

    For forks in C: Python itself hangs in the child if another thread waited for the GIL at that moment. Here, a thread
    lets it go only where it waits for something else.
    """
    program = (
        f"import sys, {function.__module__} as tests; "
        f"sys.setswitchinterval(1000); tests.{function.__name__}(*sys.argv[1:])"
    )
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=5 * WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread does, for `WAIT` seconds at most."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.001)


def records_in(path: Path) -> dict[str, SessionRecord]:
    """What is in a SQLite store that is not open here; 100 at most."""
    with closing(SQLiteStore(path)) as store:
        return {record.id: record for record in store.page(None, 100)}


def record_of(store: Any, session: ManagedSession[Any]) -> SessionRecord:
    """The record of a session, which has one."""
    found = store.load(session.id)
    assert found is not None
    record: SessionRecord = found.record
    return record


class WatchedStore:
    """A store whose operations are counted, fail on demand, and have something happen before or after them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self.failing: set[str] = set()
        """The operations that fail; `EVERYTHING` for all."""
        self.unreadable: set[str] = set()
        """The ids of the sessions whose records cannot be loaded."""
        self.instance: str | None = None
        """The instance that joined last."""
        self._before: dict[str, Callable[[], object]] = {}
        self._after: dict[str, Callable[[], object]] = {}

    def before(self, operation: str, act: Callable[[], object]) -> None:
        """Have something done before the next such operation, once. What it raises, the operation raises, undone."""
        self._before[operation] = act

    def after(self, operation: str, act: Callable[[], object]) -> None:
        """Have something done after the next such operation, once. What it raises, the operation raises, done."""
        self._after[operation] = act

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name == "clock_offset" or not callable(method):
            # No I/O, which cannot fail.
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            operation = operation_of(name, (*arguments, *options.values()))
            self.calls[operation] += 1
            self._before.pop(operation, _nothing)()
            if self.failing & {operation, EVERYTHING} or (operation == LOAD and arguments[0] in self.unreadable):
                raise StoreError(f"no {operation} today") from OSError(28, "No space left on device")
            result = method(*arguments, **options)
            if operation == JOIN:
                self.instance = result
            self._after.pop(operation, _nothing)()
            return result

        return call


def _nothing() -> None:
    pass
