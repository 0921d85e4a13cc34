"""Moments inside the library's calls, at which a test lets something else happen; found by public calls alone.

A thread that interrupts the coordinator in the middle of a decision is refused every call but those that close: so a
test can tell at each line whether its thread has the lock.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import sessionkit
from sessionkit import SessionCoordinator

from .support import WAIT, in_thread

HAS_GIL = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether looks and touches may go without the lock."""

LIBRARY = str(Path(sessionkit.__file__).parent)
THREADING = str(threading.__file__)

Coordinator = SessionCoordinator[Any]


def in_decision(coordinator: Coordinator) -> bool:
    """Whether this thread is in the middle of a decision of the coordinator, and so has its lock."""
    try:
        _ = "nobody" in coordinator
    except RuntimeError:
        return True
    return False


@contextmanager
def before_each_line(act: Callable[[], object], *files: str) -> Iterator[None]:
    """Call a function before each line that this thread runs of these files and folders (default: the library)."""
    files = files or (LIBRARY,)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(files):
            return None
        if event == "line":
            act()
        return trace

    before = sys.gettrace()
    # What is collected in the block is no part of what is done in it.
    collects = gc.isenabled()
    gc.disable()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()


@contextmanager
def at_each_call(act: Callable[[], object]) -> Iterator[None]:
    """Call a function where this thread calls a function of the library, and where it returns.

    Unlike `before_each_line`, what the library does in the block counts as covered.
    """

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "return") and frame.f_code.co_filename.startswith(LIBRARY):
            act()

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


class Interruption:
    """Something that happens once, before one line of what the library does in a block."""

    def __init__(self, at: int) -> None:
        self._lines_to_go = at
        self.came = False
        """Whether there was such a line, or call."""

    def anywhere(self, act: Callable[[], object]) -> Any:
        """A block in which it happens at whatever line."""
        return before_each_line(lambda: None if self.came else self._count(act))

    def outside_decisions(self, coordinator: Coordinator, act: Callable[[], object]) -> Any:
        """A block in which it happens at a line that runs with the lock free; only those lines count."""
        return before_each_line(lambda: None if self.came or in_decision(coordinator) else self._count(act))

    def between_calls(self, coordinator: Coordinator, act: Callable[[], object]) -> Any:
        """A block in which it happens at a call or a return with the lock free; only those count."""
        return at_each_call(lambda: None if self.came or in_decision(coordinator) else self._count(act))

    def within_decisions(self, coordinator: Coordinator, act: Callable[[], object]) -> Any:
        """A block in which it happens in the middle of a decision; only those lines count."""
        return before_each_line(lambda: self._count(act) if not self.came and in_decision(coordinator) else None)

    def _count(self, act: Callable[[], object]) -> None:
        self._lines_to_go -= 1
        if self._lines_to_go < 0:
            self.came = True
            act()


def interruptions(step: int = 1) -> Iterator[Interruption]:
    """An interruption for each line that counts, or for some of them; the last one finds no line any more."""
    for at in itertools.count(step=step):
        interruption = Interruption(at)
        yield interruption
        if not interruption.came:
            assert at > 0, "no line counted"
            return


@contextmanager
def standing(block: Callable[[Callable[[], object]], Any], call: Callable[[], object]) -> Iterator[None]:
    """Another thread makes a call and stands, for the length of the block, where an interruption has it stand."""
    inside, go_on = threading.Event(), threading.Event()

    def stand() -> None:
        inside.set()
        assert go_on.wait(WAIT)

    def run() -> None:
        with block(stand):
            call()
        # It may not have come there.
        inside.set()

    with in_thread(run) as done:
        try:
            assert inside.wait(WAIT)
            yield
        finally:
            go_on.set()
    done.result()


@contextmanager
def held_in_a_decision(coordinator: Coordinator) -> Iterator[None]:
    """For the length of the block, another thread stands in the middle of a decision: it has the lock."""
    once = Interruption(0)
    with standing(lambda stand: once.within_decisions(coordinator, stand), coordinator.list_sessions):
        assert once.came
        yield


@contextmanager
def telling_decisions(coordinator: Coordinator, tell: Callable[[], object]) -> Iterator[None]:
    """Call a function whenever this thread has left a decision: it has what it asked for, or its place in a queue."""
    was_inside = False

    def look() -> None:
        nonlocal was_inside
        is_inside = in_decision(coordinator)
        if was_inside and not is_inside:
            tell()
        was_inside = is_inside

    # A thread that waits on a condition leaves the decision in there.
    with before_each_line(look, LIBRARY, THREADING):
        yield


def longest_decision(coordinator: Coordinator, call: Callable[[], object]) -> int:
    """How many lines of the library a call runs at most without letting the lock go."""
    longest = lines = 0

    def look() -> None:
        nonlocal longest, lines
        lines = lines + 1 if in_decision(coordinator) else 0
        longest = max(longest, lines)

    with before_each_line(look):
        call()
    return longest


def until_it_waits(thread_id: int, done: Callable[[], bool]) -> None:
    """Let a thread run until it is done, or stands where it stands because it waits.

    A thread that is slow may be taken for one that waits: what a test then asserts must hold all the same.
    """
    position, times = None, 0
    while not done() and times < 20:
        time.sleep(1e-5)
        frame = sys._current_frames().get(thread_id)
        now = None if frame is None else (id(frame), frame.f_lasti)
        position, times = now, times + 1 if now == position else 0


def instructions(call: Callable[[], object]) -> int:
    """How many bytecode instructions a call runs, in all Python functions that it calls; nothing of what is in C."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    # What is collected meanwhile, and the Python functions that this calls, are no part of the call.
    collects = gc.isenabled()
    gc.disable()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return count


def counted_again(call: Callable[[], object]) -> int:
    """The count of a second run: CPython 3.12 and later do not count the first one of a function from its beginning."""
    instructions(call)
    return instructions(call)
