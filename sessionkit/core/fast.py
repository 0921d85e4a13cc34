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
from typing import Any

from ..util.clock import BUILTIN_CLOCKS, Clock, system_clock
from .session import HAS_STEPS, ManagedSession

Session = ManagedSession[Any]


class FastPath:
    """Looks and touches without the lock, of the sessions in `live`. Thread-safe.

    `find` gives None, and `touch` False, where only the lock can tell: then nothing was done.
    """

    __slots__ = ("_clock", "_live", "_system_clock")

    def __init__(self, live: dict[str, Session], clock: Clock) -> None:
        self._live = live
        self._clock = clock
        # The system's own while time is not frozen: once a test replaces it, every call takes the lock.
        self._system_clock = BUILTIN_CLOCKS[system_clock]

    def find(self, session_id: str) -> Session | None:
        """The live session with this id."""
        if time.monotonic is self._system_clock:
            try:
                session = self._live[session_id]
            except (KeyError, TypeError):
                return None
            if self._clock() < session._alive_until:
                return session
        return None

    def touch(self, session_id: str) -> bool:
        """Note activity of the session with this id."""
        try:
            session = self._live[session_id]
        except (KeyError, TypeError):
            return False
        if time.monotonic is self._system_clock:
            now = self._clock()
            if now < session._alive_until:
                session._active_at = now if now > session._active_at else session._active_at  # one step
                return now < session._alive_until
        return False

    def touch_this(self, session: Session) -> bool:
        """Note activity of this very session; one of a forked child's parent is not touched."""
        return self._live.get(session._id) is session and self.touch(session._id)

    def stop(self) -> None:
        """From now on, every call takes the lock."""
        self._live = {}


def fast_path(live: dict[str, Session], clock: Clock) -> FastPath | None:
    """The lock-free path for sessions on this clock; None if every call must take the lock.

    Only a clock that never goes back will do: the system's own, or one that says `never_goes_back = True` of itself.
    """
    if not HAS_STEPS or not BUILTIN_CLOCKS:
        return None
    if clock is system_clock:
        return FastPath(live, BUILTIN_CLOCKS[system_clock])
    return FastPath(live, clock) if getattr(clock, "never_goes_back", False) is True else None
