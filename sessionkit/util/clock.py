"""What time it is: the default clock, and the comparison with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from math import inf
from types import BuiltinFunctionType

Clock = Callable[[], float]
"""Anything like `time.monotonic`: called without arguments, gives seconds from an origin of its own."""

SLACK = 0.5e-6
"""Seconds by which a limit may be overrun before it counts as passed.

freezegun ticks in microseconds and its readings are near 1.7e9, where neighboring floats are 2.4e-7 apart, so that
`tick(0.3)` reads as 0.29999995 or 0.30000019. Half a tick absorbs the rounding at either side of every boundary.
"""

AGREE_SECONDS = 0.05
"""Clocks that differ by less agree: a process may be held up for as long while it reads them."""

_FRAMES_FREEZEGUN_LOOKS_AT = 5


def system_clock() -> float:
    """Read `time.monotonic`, in seconds; the default clock.

    The name is looked up at every call, so that a test which replaces `time.monotonic` (as freezegun does) sets the
    time here too, in every thread and however deep in its call stack.
    """
    monotonic = time.monotonic
    if type(monotonic) is BuiltinFunctionType:
        return time.monotonic()
    return _read_away_from_threading(monotonic, _FRAMES_FREEZEGUN_LOOKS_AT)


def steady_clock() -> float:
    """Seconds since the host was booted, whatever time a test has set; no step of the wall clock moves it.

    The same in all processes of a host, and also counts while the host is suspended, where the platform has such a
    clock; else it is `time.monotonic`.
    """
    return _read_steady_clock()


def unsuspended_clock() -> float:
    """As `system_clock`, and goes on while the host is suspended; the default clock of a coordinator with a store.

    It agrees with `time.monotonic` until the host is suspended for the first time after the import.
    """
    if type(time.monotonic) is BuiltinFunctionType:
        return _read_steady_clock() - _SUSPENDED_BEFORE
    return system_clock()


def wall_clock_of(clock: Clock) -> Clock:
    """The wall clock that goes with a clock, in UTC seconds since 1970.

    A clock with a method `wall` has its own, as a manual clock does; with any other goes `time.time`, looked up at
    every call.
    """
    wall: Clock | None = getattr(clock, "wall", None)
    return system_wall_clock if wall is None else wall


def system_wall_clock() -> float:
    """Read `time.time`, in UTC seconds since 1970; like `system_clock`, as a test has set it."""
    wall = time.time
    if type(wall) is BuiltinFunctionType:
        return time.time()
    return _read_away_from_threading(wall, _FRAMES_FREEZEGUN_LOOKS_AT)


def _read_away_from_threading(clock: Clock, frames: int) -> float:
    # freezegun gives real time to callers within five frames of the threading module, so that a thread's own first
    # frames would disagree with the rest of the program. Frames of this module in between end that.
    if frames:
        return _read_away_from_threading(clock, frames - 1)
    return clock()


BUILTIN_CLOCKS: dict[Clock, Clock] = (
    # In a dict, where freezegun does not find it to replace it. Empty if time was frozen before the first import.
    {system_clock: time.monotonic, system_wall_clock: time.time} if type(time.monotonic) is BuiltinFunctionType else {}
)
"""For a clock of this module, the builtin that it reads while time is not frozen."""

# CLOCK_BOOTTIME is Linux's; on macOS, CLOCK_MONOTONIC counts suspension, which time.monotonic does not. As a partial,
# freezegun does not find it to replace it.
_read_steady_clock: Clock = (
    partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    if hasattr(time, "clock_gettime")
    else partial(time.monotonic)
)


def stopwatch() -> float:
    """Seconds from some origin, for waits that are real, whatever time a test has set since the import."""
    return BUILTIN_CLOCKS.get(system_clock, time.monotonic)()


def real_wall_clock() -> float:
    """UTC seconds since 1970, whatever time a test has set since the import."""
    return BUILTIN_CLOCKS.get(system_wall_clock, time.time)()


def lead_over(read: Clock, other: Clock) -> float:
    """How far a clock is ahead of another one."""
    # Unless this thread was held up between the readings.
    best = inf, 0.0
    for _ in range(3):
        before, reading, after = other(), read(), other()
        best = min(best, (after - before, reading - before))
        if after - before < AGREE_SECONDS / 10:
            break
    return best[1]


# In whole milliseconds, so that it is 0 on a host that was never suspended.
_SUSPENDED_BEFORE = round(lead_over(steady_clock, stopwatch), 3)


def utc_of(wall: float) -> datetime:
    """An instant of the wall clock as a datetime in UTC; what no datetime can say is the last one that there is."""
    try:
        return datetime.fromtimestamp(wall, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.max.replace(tzinfo=UTC)


def is_past(end: float, now: float) -> bool:
    """Whether a limit that is reached at `end` has passed: the one comparison, since others would round differently."""
    return now - end > SLACK
