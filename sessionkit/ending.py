"""Why and when a session left."""

from __future__ import annotations

import enum


class RemovalCause(enum.Enum):
    """Why a session left."""

    # Members are singletons, and counted by: the hash of their name, which an enum gives them, takes longer.
    __hash__ = object.__hash__

    IDLE = "idle"
    """Expired: idle for more than its session timeout."""
    LIFETIME = "lifetime"
    """Expired: older than the maximum lifetime, however busy."""
    CAPACITY = "capacity"
    """Evicted: the least recently active one made room for a new one."""
    CLOSED = "closed"
    """Closed on purpose."""
    SHUTDOWN = "shutdown"
    """Its coordinator was closed; if it has a store, the record stays there."""
    PASSIVATED = "passivated"
    """It left the memory of this process only. Its record is in the store, or another process has ended it."""


Ending = tuple[RemovalCause, float, float | None]
"""The end of one session: its cause, its instant on the coordinator's clock, and the limit it came up against.

An expired session ended at the instant its time ran out, not when somebody noticed. The limit is in seconds for `IDLE`
and `LIFETIME`, a number of sessions for `CAPACITY`, and None where there was none. (A plain tuple: making a NamedTuple
takes as long as a tenth of a `close_session`.)
"""
