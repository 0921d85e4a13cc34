"""The pulse of a session: what is noted of it without the coordinator's lock, and why that is safe.

A touch changes no structure: it stores one instant, and the order of sessions is put right later, when somebody meets a
session that has moved on. So a touch can do without the lock, and on the usual path it does:

1. read the clock: now
2. unless now is before `_until`, take the lock instead
3. raise `_last_active` to now
4. unless now is still before `_until`, take the lock after all

Who decides, always under the lock, whether a session has to leave, does this:

a. set `_until` to minus infinity
b. look at `_last_active`, and decide
c. if the session stays, set `_until` anew

**A touch that returned normally buys a full timeout.** Say that a touch returned after step 4, and that some b decides.
If 3 came before b, then b saw that instant or a later one. If b came before 3, then so did its a, and 4 found minus
infinity, unless c came first: then that b removed nothing.

**A checked-out session is never expired or evicted**, for the same reason: to take a session without the lock,
`_checkout` is set, if it was None, before step 4; and b looks at it too. To give it back, `_checkout` is set to None
and `_until` is read after that: whoever gives back sees that something was decided meanwhile, and takes the lock to do
it.

Raising an instant, and setting what was None, must each be *one step*: no other thread may come between looking and
storing. With the GIL, CPython lets another thread in where a function is called or returns and where a loop jumps back,
and nowhere else; lines marked "one step" have no such place, which a test reads in their bytecode. (They are single
lines because a tracer, such as a debugger, adds such places between lines. A tool that runs Python code at each branch
or instruction, by `sys.monitoring`, adds them within lines: beside one, a touch in one thread may undo a simultaneous
one in another.) Without the GIL, every call takes the lock.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..util.clock import BUILTIN_CLOCKS, Clock, system_clock

if TYPE_CHECKING:
    from .hold import Hold, Holder


class Pulse:
    """When a session was last active, who has it, and how long it may be used without the lock.

    The coordinator's lock guards all writes but those of the steps above.
    """

    # A base class's slots come first, in the cache line of the object's head: touching a session reads one line of it.
    __slots__ = ("_checkout", "_hold", "_last_active", "_until")

    _last_active: float
    """When it was last active; never moves back."""
    _until: float
    """Until then the session is live for certain, unless it is closed; minus infinity if only the lock can tell."""
    _checkout: Holder | None
    """The one checkout that has the session to itself."""
    _hold: Hold | None
    """The books of its checkouts, while there are several or somebody waits; `_until` is minus infinity meanwhile."""

    @property
    def checked_out(self) -> bool:
        """Whether somebody has the session."""
        return self._checkout is not None or self._hold is not None


HAS_STEPS = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether "one step" means anything here: CPython with its GIL, which once on stays on."""


def clock_without_lock(clock: Clock) -> Clock | None:
    """The clock to read on paths without the lock, or None if every call must take the lock.

    Only a clock that never goes back will do: the system's own, or one that says `never_goes_back = True` of itself.
    """
    if not HAS_STEPS or not BUILTIN_CLOCKS:
        return None
    if clock is system_clock:
        return BUILTIN_CLOCKS[system_clock]
    return clock if getattr(clock, "never_goes_back", False) is True else None
