"""Every error that sessionkit raises of its own; all are `SessionError`.

Wrong types raise the built-in `TypeError`, and durations or limits out of range the built-in `ValueError`.
"""

from __future__ import annotations

import enum


class RemovalCause(enum.StrEnum):
    """Why a session left. Each is a str too, so that JSON and logs have it as such."""

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

_ENDED = {
    RemovalCause.IDLE: "it was idle for more than {limit} seconds",
    RemovalCause.LIFETIME: "it reached its maximum lifetime of {limit} seconds",
    RemovalCause.CAPACITY: "it was evicted to make room, because {limit} sessions may live at once",
    RemovalCause.CLOSED: "it was closed",
    RemovalCause.SHUTDOWN: "its coordinator was closed",
    RemovalCause.PASSIVATED: "it was moved out to the store",
}


class SessionError(Exception):
    """The parent of all errors of sessionkit."""


class SessionNotFoundError(SessionError, LookupError):
    """There is no live session with this id (or, for `switch_session`, with this name)."""

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id)
        self.session_id = session_id
        """The id that was asked for."""

    def __str__(self) -> str:
        return (
            f"no live session {self.session_id!r:.140}: check the id (switch_session() finds names too), "
            "or create one with create_session()"
        )


class SessionExpiredError(SessionNotFoundError):
    """The session was here and ended; the coordinator remembers why for a while."""

    def __init__(self, session_id: str, cause: RemovalCause, ended_at: float, limit: float | None = None) -> None:
        super().__init__(session_id)
        # All of them in `args`, so that the error can be pickled and copied.
        self.args = (session_id, cause, ended_at, limit)
        self.cause = cause
        """Why it ended: a `RemovalCause`."""
        self.ended_at = ended_at
        """When it ended: a reading of the coordinator's clock, in seconds."""
        self.limit = limit
        """What it came up against: seconds of idleness or of life, or the number of sessions that may live at once."""

    def __str__(self) -> str:
        return (
            f"session {self.session_id!r} ended at {self.ended_at!r} on the coordinator's clock: "
            f"{_ENDED[self.cause].format(limit=self.limit)}. Create a new one with create_session()"
        )


class SessionExistsError(SessionError):
    """A live session has this name or id already, or the one that had this id is still being closed."""

    def __init__(self, message: str, session_id: str | None = None) -> None:
        super().__init__(message, session_id)
        self.session_id = session_id
        """The id of the session that has the name or the id."""

    def __str__(self) -> str:
        return str(self.args[0])


class SessionLimitError(SessionError):
    """`max_active_sessions` live sessions exist, and none of them may be evicted."""


class SessionBusyError(SessionError):
    """The session stayed checked out by another thread for the whole of `timeout`, or waiting could never end."""


class SessionElsewhereError(SessionError):
    """With `affinity=True`: another process has the session in memory, and the live resource with it."""

    def __init__(self, session_id: str, instance_name: str) -> None:
        super().__init__(session_id, instance_name)
        self.session_id = session_id
        """The id that was asked for."""
        self.instance_name = instance_name
        """The `instance_name` of the coordinator that has it."""

    def __str__(self) -> str:
        return (
            f"session {self.session_id!r} is in memory of {self.instance_name!r}: send the request there, or let this "
            "coordinator restore it with affinity=False"
        )


class SessionConflictError(SessionError):
    """Somebody else saved the session since it was read: what was to be saved is not in the store."""


class ReadOnlySessionError(SessionError, RuntimeError):
    """A web request that only reads its session was to change it."""


class InvalidSessionError(SessionError, ValueError):
    """A name, an id, a change of state or data that no session may have."""


class CoordinatorClosedError(SessionError):
    """The coordinator was closed (or dropped) and keeps no sessions any more."""


class StoreError(SessionError):
    """The store failed: what it was asked for was not done. `__cause__` has the reason, where there was one."""
