"""Looks and touches that go without the coordinator's lock, and why that is safe.

A touch changes no structure: it stores one instant, and the order of sessions is put right later, when a session that
has moved on is met. So a look or a touch can do without the lock, and on the usual path it does:

1. read the clock: now
2. unless now is before `_alive_until`, take the lock instead
3. raise `_active_at` to now
4. unless now is still before `_alive_until`, take the lock after all

A decision, always under the lock, whether a session has to leave, does this:

a. set `_alive_until` to minus infinity
b. look at `_active_at`, and decide
c. if the session stays, set `_alive_until` anew

**A touch that returned normally buys a full timeout.** Say that a touch returned after step 4, and that some b decides.
If 3 came before b, then b saw that instant or a later one. If b came before 3, then so did its a, and 4 found minus
infinity, unless c came first: then that b removed nothing.

A session that is checked out keeps its `_alive_until`: it has no idle time, and is touched when it is given back.

Raising an instant must be *one step*: no other thread may come between looking and storing. With the GIL, CPython lets
another thread in where a function is called or returns and where a loop jumps back, and nowhere else; lines marked "one
step" have no such place, which a test reads in their bytecode. (They are single lines because a tracer, such as a
debugger, adds such places between lines. A tool that runs Python code at each branch or instruction, by
`sys.monitoring`, adds them within lines: beside one, a touch in one thread may undo a simultaneous one in another.)
Without the GIL, every call takes the lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ..util.clock import BUILTIN_CLOCKS, Clock, system_clock
from .session import HAS_STEPS, ManagedSession

Session = ManagedSession[Any]


class FastPath(NamedTuple):
    """Looks and touches without the lock. Thread-safe."""

    find: Callable[[str], Session | None]
    """Give the live session with this id; None if only the lock can tell."""
    touch: Callable[[str], bool]
    """Note activity of the session with this id; False, and nothing done, if only the lock can tell."""


def fast_path(live: dict[str, Session], clock: Clock) -> FastPath | None:
    """The lock-free path for the sessions in `live` on this clock; None if every call must take the lock.

    Only a clock that never goes back will do: the system's own, or one that says `never_goes_back = True` of itself.
    """
    builtin = BUILTIN_CLOCKS.get(system_clock)
    never_goes_back = clock is system_clock or getattr(clock, "never_goes_back", False) is True
    if not HAS_STEPS or builtin is None or not never_goes_back:
        return None
    read = builtin if clock is system_clock else clock

    def find(session_id: str) -> Session | None:
        try:
            session = live[session_id]
        except (KeyError, TypeError):
            return None
        # Once a test has replaced the system's clock, every call takes the lock.
        if time.monotonic is builtin and read() < session._alive_until:
            return session
        return None

    def touch(session_id: str) -> bool:
        try:
            session = live[session_id]
        except (KeyError, TypeError):
            return False
        if time.monotonic is builtin:
            now = read()
            if now < session._alive_until:
                session._active_at = now if now > session._active_at else session._active_at  # one step
                return now < session._alive_until
        return False

    return FastPath(find, touch)
