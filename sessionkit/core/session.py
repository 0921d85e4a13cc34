"""One live session, as its users see it."""

from __future__ import annotations

import enum
import sys
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol
from weakref import ref

from ..errors import CoordinatorClosedError, Ending, InvalidSessionError, RemovalCause
from ..util.copies import refuse_copies
from ..util.log import short_repr
from ..util.validation import Duration, checked_seconds
from .locks import SessionLock

# Only type checkers need the default, which typing's own TypeVar has from Python 3.13 on.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")

HAS_STEPS = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether a line can be "one step", into which no other thread comes: CPython with its GIL, which once on stays on."""

NEVER = -inf
"""For `_alive_until`: only the lock can tell whether the session is live."""


class SessionState(enum.StrEnum):
    """What a session is doing; each is a str too."""

    ACTIVE = "active"
    """Ready; every session starts so."""
    WAITING_FOR_INPUT = "waiting_for_input"
    """Its user is to answer."""
    PROCESSING = "processing"
    """Its server is at work."""
    CLOSED = "closed"
    """Ended; there is no way back."""


class SessionMetadata(NamedTuple):
    """The figures of one session as they stood when they were asked for."""

    created_at: float
    """When it was created: a reading of the coordinator's clock, in seconds."""
    last_active: float
    """When it was last touched; never moves back."""
    message_count: int
    """How many messages were recorded."""


class SessionSnapshot(NamedTuple):
    """A session as it stood when it was read: `SessionCoordinator.read_session`. Nothing changes it later."""

    id: str
    name: str | None
    state: SessionState
    data: dict[str, Any]
    """A copy, however deep: what is changed in it is changed nowhere else."""
    metadata: SessionMetadata
    session_timeout: float
    """How long it may be idle, in seconds."""
    expires_at: datetime
    """When its time runs out if nothing touches it until then, in UTC."""


class Activity(enum.Enum):
    """What a session can note of itself; each counts as activity."""

    TOUCH = "touch"
    MESSAGE = "message"
    TOOL_EXECUTION = "tool_execution"
    STATE_CHANGE = "state_change"


class Keeper(Protocol):
    """What a session asks of the engine that keeps it."""

    def touch_this(self, session: ManagedSession[Any]) -> None:
        """Note activity; raise `SessionExpiredError` if the session has ended."""
        ...

    def note_activity(
        self, session: ManagedSession[Any], activity: Activity, state: SessionState | None = None
    ) -> None:
        """Note what the session has done; raise `SessionExpiredError` if it has ended."""
        ...

    def set_timeout(self, session: ManagedSession[Any], timeout: float) -> None:
        """Give the session another session timeout; raise `SessionExpiredError` if it has ended."""
        ...

    def expires_at(self, session: ManagedSession[Any]) -> datetime:
        """When its time runs out, if nothing touches it."""
        ...


class ManagedSession(Generic[R]):
    """A live session. Made by `SessionCoordinator.create_session`, never by hand.

    Reading `id`, `name`, `state`, `ended`, `metadata`, `data` and `resource` does not count as activity, nor does
    `set_timeout`; calling `touch`, `record_message`, `record_tool_execution` and `set_state` does. These five may be
    called from any thread. They raise `SessionExpiredError` once the session has ended (while it is checked out they go
    on working until it is given back, or closed by force), and `CoordinatorClosedError` if its coordinator was dropped.

    `data` and `resource` are for the caller to work on within `SessionCoordinator.checkout`, which keeps other threads
    out. When the last checkout is given back, the dicts and lists in `data` are copied: what its holder has put in, or
    kept a reference to, is not part of them any more.
    """

    # CPython lays slots out by name (not `__weakref__`): the two that a touch uses come first, in the cache line of the
    # object's head.
    __slots__ = (
        "__weakref__",
        "_active_at",
        "_alive_until",
        "_created_at",
        "_data",
        "_ending",
        "_id",
        "_keeper",
        "_lock",
        "_message_count",
        "_name",
        "_resource",
        "_state",
        "_timeout",
    )

    _active_at: float
    """When it was last active; never moves back."""
    _created_at: float

    def __init__(
        self,
        keeper: ref[Keeper],
        session_id: str,
        name: str | None,
        timeout: float,
        data: dict[str, Any] | None,
        resource: R | None,
    ) -> None:
        self._keeper = keeper
        self._id = session_id
        self._name = name
        self._timeout = timeout
        self._data = data
        self._resource = resource
        self._state = _ACTIVE
        self._message_count = 0
        # Guarded by the coordinator's lock. Until this instant the session is live for certain, unless it is closed.
        self._alive_until = NEVER
        # Which checkouts have it, and which wait for it; None while it is at rest.
        self._lock: SessionLock | None = None
        # How it ended, from the decision on.
        self._ending: Ending | None = None

    __reduce_ex__ = refuse_copies(
        "keep its id, and ask the coordinator for the session with get_session(); copy session.data, if that is wanted"
    )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} id={self.id!r} name={self.name!r} {self._state.name}>"

    @property
    def id(self) -> str:
        """Unique among the coordinator's sessions."""
        return self._id

    @property
    def name(self) -> str | None:
        """Unique among the coordinator's live sessions; None if it has none."""
        return self._name

    @property
    def metadata(self) -> SessionMetadata:
        """Creation, last activity and message count as they stand now; later activity does not change the copy."""
        return SessionMetadata(self._created_at, self._active_at, self._message_count)

    @property
    def session_timeout(self) -> float:
        """How long it may be idle, in seconds; it is expired when idle for more."""
        return self._timeout

    @property
    def expires_at(self) -> datetime:
        """When its time runs out if nothing touches it until then, in UTC: by idleness or by age, whichever is first.

        A session that is checked out is touched when it is given back. The instant is one of the wall clock, as it
        stands now. Raises `CoordinatorClosedError` if the coordinator was dropped.
        """
        return self._coordinator().expires_at(self)

    @property
    def state(self) -> SessionState:
        """What the session is doing."""
        return self._state

    @property
    def data(self) -> dict[str, Any]:
        """The session's own dict, always the same one; keep to what JSON can say.

        With a store, and in a web server, anything else is refused when it is saved or given back. Elsewhere it is not
        checked, and what is neither dict nor list is not copied.
        """
        if self._data is None:
            # Most sessions have none. Two threads may come here at once, and must get the same: mypy knows of one.
            fresh: dict[str, Any] = {}
            self._data = fresh if self._data is None else self._data  # type: ignore[redundant-expr]  # one step
        return self._data

    @property
    def resource(self) -> R:
        """The live object that the session owns; None if it was given none, and None once the session is closed."""
        return self._resource  # type: ignore[return-value]  # None only where R is Any, and once it is closed

    @property
    def ended(self) -> RemovalCause | None:
        """Why it has ended; None while it is live. A holder can look here whether it was closed meanwhile."""
        return None if self._ending is None else self._ending[0]

    def touch(self) -> None:
        """Note activity: idle time starts again."""
        keeper = self._keeper()
        if keeper is None:
            raise self._dropped()
        keeper.touch_this(self)

    def record_message(self) -> None:
        """Count one message."""
        self._coordinator().note_activity(self, Activity.MESSAGE)

    def record_tool_execution(self) -> None:
        """Note that a tool was executed."""
        self._coordinator().note_activity(self, Activity.TOOL_EXECUTION)

    def set_state(self, state: SessionState) -> None:
        """Say what the session is doing. Setting the state it has already is activity too, but no change.

        Raises `TypeError` for anything but a `SessionState`, and `InvalidSessionError` for `CLOSED`: that is what
        `SessionCoordinator.close_session` is for.
        """
        if not isinstance(state, SessionState):
            raise TypeError(
                f"a state must be SessionState.ACTIVE, .WAITING_FOR_INPUT or .PROCESSING, not {short_repr(state)}"
            )
        if state is SessionState.CLOSED:
            raise InvalidSessionError(
                f"session {self.id!r} cannot be set from {self._state.name} to CLOSED; "
                "end it with the coordinator's close_session()"
            )
        self._coordinator().note_activity(self, Activity.STATE_CHANGE, state)

    def set_timeout(self, seconds: Duration) -> None:
        """Give the session another session timeout, in seconds or as a timedelta, from its last activity on.

        At any time, also while it is checked out, or being made. It is no activity: if the session has been idle for
        longer than that already, it is expired at once. Setting the timeout that it has does nothing. Keep to a
        handful of different ones: a cleanup looks at one session for each.

        With a store, the record has it with the next save, or with the next cleanup. Another process that has the
        session in memory too goes by it from when it next looks, or checks the session out.

        Raises `ValueError` or `TypeError` for what is no session timeout.
        """
        self._coordinator().set_timeout(self, checked_seconds("session_timeout", seconds))

    def _coordinator(self) -> Keeper:
        keeper = self._keeper()
        if keeper is None:
            raise self._dropped()
        return keeper

    def _dropped(self) -> CoordinatorClosedError:
        return CoordinatorClosedError(
            f"session {self.id!r} is gone: its coordinator was dropped. Keep the coordinator for as long as its "
            "sessions, and close() it"
        )


# One object, whatever reads it: an attribute of an enum takes longer to look up.
_ACTIVE = SessionState.ACTIVE


def ending_of(session: ManagedSession[Any]) -> Ending | None:
    """How the session ended; None while it has not."""
    return session._ending


def is_checked_out(session: ManagedSession[Any]) -> bool:
    """Whether the session is checked out, or being made."""
    return session._lock is not None


def restore_counters(session: ManagedSession[Any], state: SessionState, messages: int) -> None:
    """Give a session the state and the message count that its record has."""
    session._state = state
    session._message_count = messages


def restore_times(session: ManagedSession[Any], created_at: float, last_active: float) -> None:
    """Give a session that is being loaded the times that its record has, on our clock."""
    session._created_at, session._active_at = created_at, last_active


def snapshot_of(session: ManagedSession[Any], session_id: str, expires_at: datetime) -> SessionSnapshot:
    """What the session is now, also while another thread changes it."""
    return SessionSnapshot(
        session_id,
        session._name,
        session._state,
        copied_data(session._data or {}),
        session.metadata,
        session._timeout,
        expires_at,
    )


_CONTAINERS = {dict, list}


def has_containers(data: dict[str, Any]) -> bool:
    """Whether there is a dict or a list in the data: what else JSON can say cannot change."""
    return not _CONTAINERS.isdisjoint(map(type, list(data.values())))


def copied_data(data: dict[str, Any], itself: dict[str, Any] | None = None) -> dict[str, Any]:
    """A copy of the data, and of the dicts and lists in them however deep; all else in them is the same object.

    They may contain each other, and so do the copies. Where they contain the data, these contain `itself`; default the
    copy.
    """
    # Each is copied in one step, so that another thread may be at it. The originals stay here too: an id is an object's
    # own only while that is there.
    copy = data.copy()
    copies: dict[int, tuple[Any, Any]] = {id(data): (data, copy if itself is None else itself)}
    unfinished: list[Any] = [copy]
    while unfinished:
        container = unfinished.pop()
        for key, value in container.items() if type(container) is dict else enumerate(container):
            if type(value) in _CONTAINERS:
                known = copies.get(id(value))
                if known is None:
                    known = copies[id(value)] = value, value.copy()
                    unfinished.append(known[1])
                container[key] = known[1]
    return copy


def replace_data(session: ManagedSession[Any], data: dict[str, Any]) -> None:
    """Give a session other data, in the dict that it has."""
    session.data.clear()
    session.data.update(data)
