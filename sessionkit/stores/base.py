"""The contract between a coordinator and a store of session records, and the words in which a store refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple, Protocol

from ..errors import SessionBusyError, SessionConflictError, SessionExistsError


class SessionRecord(NamedTuple):
    """What a store keeps of one session. Instants are of the store's time: UTC, in seconds since 1970."""

    id: str
    name: str | None
    """Unique among the records of a store, unless it is None."""
    data: str
    """The session's data: the text of a JSON object."""
    state: str
    """The value of a `SessionState`."""
    created_at: float
    last_active: float
    """Never moves back."""
    message_count: int
    session_timeout: float
    """In seconds; the session is expired when idle for more."""
    max_lifetime: float | None
    """The age in seconds after which the session ends; None for no limit."""
    version: int = 1
    """1 when created, and 1 more for each save, and for each lease that was taken from an instance thought dead."""

    @property
    def idle_end(self) -> float:
        """The instant after which the session has been idle for too long."""
        return self.last_active + self.session_timeout

    @property
    def life_end(self) -> float:
        """The instant after which the session is too old."""
        return inf if self.max_lifetime is None else self.created_at + self.max_lifetime


class Touch(NamedTuple):
    """The activity of a session since its record was last written."""

    last_active: float
    """A wall-clock instant; the record's own is raised to it, and never lowered."""
    messages: int = 0
    """How many messages were recorded: to be added."""
    state: str | None = None
    """The value of its new `SessionState`; None if that did not change."""
    session_timeout: float | None = None
    """Its new session timeout, in seconds; None if that did not change."""


class Known(NamedTuple):
    """What an instance knows of a session that has to go, as far as it can tell."""

    last_active: float
    session_timeout: float | None = None
    """None if it is not known."""


class Changes(NamedTuple):
    """What is to be written of one session: its data, if they changed, and its activity."""

    version: int
    """The version of the record that was changed: the data are written only if the record has that version still."""
    data: str | None
    """The text of a JSON object that replaces the data; None if only the touch is to be noted."""
    touch: Touch


class Found(NamedTuple):
    """A record, by how much other instances may be ahead of it, and which ones have the session in memory."""

    record: SessionRecord
    lag: float
    """How far behind `last_active` may be, in seconds, because other instances have not written their touches yet.

    0 if no other instance has the session in memory, infinity while another one has a lease on it.
    """
    elsewhere: tuple[str, ...] = ()
    """The names of the other instances that have the session in memory, in the order of the alphabet."""
    stale: bool = False
    """Whether the copy in the memory of the instance that asks is stale: another instance has had a lease since
    this one attached, or since this one's own last lease ended.

    Not before that other lease has ended: until then, the other instance may still change the session.
    """


class Store(Protocol):
    """Keeps session records for coordinators: several in one process, or in several.

    Each method is one step: no call from any thread or process comes in between (a "transaction"), and nothing is
    decided from what one process knows. All methods may be called from any thread. What a method has done when it
    returns survives the death of the process; what survives a loss of power is for each store to say. A method that
    fails raises `StoreError`, with its cause chained, and has changed nothing. A method that reads or writes by id
    costs the same however many records there are.

    **Instances.** Each coordinator is an instance, from `join` until `leave` or until its process dies; how a store
    finds out about a death is for the store to say. A *living* instance is *attached* to the sessions that it has in
    memory, and may have a *lease* on those that are checked out in it: a session is on lease to one instance at a time.
    Both end with the instance. If a store can take a living instance for dead, it raises the version of each record
    whose lease it takes from one, so that the record cannot be overwritten by an instance that was alive after all.

    **Absent** means: never created, or deleted since. A record that is gone stays gone: only `create` inserts.
    **Expired** records are like any other, until they are deleted: the caller of `load` compares `idle_end` and
    `life_end` with the time, allowing for the lag.
    """

    def join(self, write_interval: float, name: str) -> str:
        """Become an instance; gives its id.

        The instance promises to write its touches within `write_interval` seconds (infinity: some time), which is the
        lag that other instances have to allow for. `name` is what they hear of it, in `Found.elsewhere`; several
        instances may have the same name.
        """
        ...

    def clock_offset(self) -> float:
        """How far the time that the store goes by is ahead of this host's wall clock, in seconds.

        If a store's time is the same for all its instances, whatever is done to the wall clocks of their hosts, they
        agree on what has expired. 0 while a test has replaced `time.time`: then the test says what time it is.

        Raises `StoreError` if the store has to be asked first, and cannot be; once an instance has joined, there is no
        I/O.
        """
        ...

    def set_write_interval(self, instance: str, seconds: float) -> None:
        """From now on, the instance writes its touches within so many seconds; infinity if it writes them some time."""
        ...

    def leave(self, instance: str) -> None:
        """End an instance: its leases end, and it is attached to nothing. Leaving again does nothing."""
        ...

    def create(self, record: SessionRecord, instance: str) -> None:
        """Insert a record and attach the instance to it.

        Raises `SessionExistsError` if a record, expired or not, has its id or its name; the error's `session_id` is
        the id of that record. Of several calls that create the same at once, one succeeds.
        """
        ...

    def load(self, session_id: str, instance: str | None = None) -> Found | None:
        """Read a record; None if it is absent. Changes nothing.

        The lag and `elsewhere` are because of all living instances other than `instance`; with None, because of all
        that there are.
        """
        ...

    def find(self, name: str) -> str | None:
        """The id of the record with this name, expired or not; None if there is none."""
        ...

    def attach(self, session_id: str, instance: str, *, lease: bool = False) -> Found | None:
        """Read a record, and note that the instance has the session in memory from now on; None if it is absent.

        With `lease`, the instance also gets the lease on the session, which makes the copies of all other instances
        stale once it ends. Raises `SessionBusyError`, and does nothing, while another living instance has it.

        Attaching again is as `load`, and keeps the lease that the instance has. What is found, `stale` too, is as it
        was before the call.
        """
        ...

    def detach(self, session_ids: Iterable[str], instance: str) -> None:
        """Note that the instance does not have these sessions in memory any more; its leases on them end.

        Ids of absent records, and of those that the instance is not attached to, are passed over.
        """
        ...

    def release(self, session_id: str, instance: str, changes: Changes | None = None) -> int | None:
        """End the instance's lease on a session; with `changes`, save them in the same step. It stays attached.

        Does nothing if the instance has no lease, other than saving the changes. With the end of a lease, the
        instance's copy of the session is not stale any more.

        Gives the version of the record if changes were given, as `save` does: raises `SessionConflictError` if the
        record has another version than the changed one and data are given, and `SessionNotFoundError` if it is absent.
        The lease has ended all the same when one of these two is raised. Without changes, gives None and raises
        neither.
        """
        ...

    def save(self, session_id: str, changes: Changes) -> int:
        """Write what changed of a session, under a lease or not; gives the version that the record has then.

        With data: replaces the record's data, notes the touch and raises the version by 1, if the record has the
        changed version still; else raises `SessionConflictError`. Of several calls that save the same version at once,
        one succeeds. Without data (None): only notes the touch, whatever the version, and gives the version in
        `changes`. Raises `SessionNotFoundError` if the record is absent.
        """
        ...

    def rename(self, session_id: str, new_id: str, instance: str) -> bool:
        """Give a record another id, all the rest staying as it is; gives whether the record was there.

        The instance is attached to the record by the new id, with the lease that it had; no other instance is attached
        to it any more. Raises `SessionExistsError` if the new id is taken (be it by this very record), and
        `SessionBusyError` while another living instance has a lease on the session; both change nothing.
        """
        ...

    def touch(self, touches: Mapping[str, Touch]) -> set[str]:
        """Note the activity of many sessions, by id; gives the ids of those whose record is absent.

        `last_active` is raised, never lowered. Versions stay, so that a touch makes no save fail. From a new session
        timeout on, the record expires by that.
        """
        ...

    def delete(self, known: Mapping[str, Known | None], instance: str | None = None, now: float = -inf) -> set[str]:
        """Delete records, by id; gives the ids of those that were there and have been deleted.

        An id with None is deleted in any case, also while other instances have the session. An id with what the caller
        knows of the session is deleted only if no living instance other than `instance` is attached to it, and if the
        record has no later `last_active` and no other session timeout than that, or has expired at `now`.

        `instance` is attached to none of these records any more, deleted or not. Deleting again gives nothing. Of
        several calls that delete one record at once, by this method or by `delete_expired`, one is told of it.
        """
        ...

    def delete_expired(self, now: float, limit: int, max_age: float | None = None) -> list[SessionRecord]:
        """Delete up to `limit` records that have expired at the instant `now`; gives them as they were.

        A record has expired if it is past its `life_end`, or has been idle for more than its session timeout (or than
        `max_age` seconds, if that is less). Records that a living instance is attached to are left alone, however long
        they have been idle: only that instance knows when the session was active last. An empty list says that there
        are no more.
        """
        ...

    def count_expired(self, now: float, max_age: float | None = None) -> int:
        """How many records `delete_expired` would delete, without a limit."""
        ...

    def page(self, after: str | None, limit: int) -> list[SessionRecord]:
        """Up to `limit` records in the order of their ids, from the first whose id comes later than `after`.

        None begins with the first of all. An empty list says that there are no more. Records that are created or
        deleted between two pages may be missing.
        """
        ...

    def close(self) -> None:
        """Close files and connections. Closing again does nothing; any other call then raises `StoreError`."""
        ...


# ---- What a store refuses, in the same words for every store


def busy(session_id: str) -> SessionBusyError:
    """Another living instance has the lease."""
    return SessionBusyError(f"session {session_id!r} is checked out in another process; try again")


def conflict(session_id: str, found: int, version: int) -> SessionConflictError:
    """The record has another version than the one that was changed."""
    return SessionConflictError(
        f"session {session_id!r} was saved by somebody else: it has version {found}, and this change was made to "
        f"version {version}; check it out again, and make the change anew"
    )


def taken(record: SessionRecord, taken_by: str) -> SessionExistsError:
    """The id or the name of a new record belongs to another one."""
    what = f"id {record.id!r}" if taken_by == record.id else f"name {record.name!r}"
    return SessionExistsError(f"a stored session has the {what} already; choose another", taken_by)


def taken_id(session_id: str) -> SessionExistsError:
    """The id that a record is to get belongs to another one."""
    return SessionExistsError(f"a stored session has the id {session_id!r} already; choose another", session_id)
