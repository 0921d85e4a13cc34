"""The contract between a coordinator and whatever keeps its sessions' records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple, Protocol


class SessionRecord(NamedTuple):
    """What a store keeps of one session. Instants are wall-clock UTC, in seconds since 1970."""

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
    """What happened to a session since its record was last written, its data apart."""

    last_active: float
    messages: int = 0
    """How many messages were recorded: to be added."""
    state: str | None = None
    """The value of its new `SessionState`; None if that did not change."""


class Found(NamedTuple):
    """A record, how much of it may be out of date, and who else has it."""

    record: SessionRecord
    lag: float
    """How far behind `last_active` may be, in seconds, because other instances have not written their touches yet.

    0 if no other instance has the session in memory, infinity while another one has it on lease.
    """
    elsewhere: tuple[str, ...] = ()
    """The names of the other instances that have it in memory, in the order of the alphabet."""
    stale: bool = False
    """Whether another instance had an exclusive lease since the one who asks attached, or gave its own lease back.

    While that one has it still, this is not told yet: what it does is not done.
    """


class Store(Protocol):
    """Keeps session records for coordinators: several in one process, or in several.

    A store decides nothing from what one process knows: each method here is one step that no other can come into, from
    whatever thread or process (a "transaction"). All methods may be called from any thread. What a method has done
    when it returns survives the death of the process; what survives a loss of power is for each store to say. A failure
    raises `StoreError`, with its cause chained, and then nothing was changed. A method that reads or writes by id
    costs the same however many records there are.

    **Instances.** Each coordinator is an instance, from `join` until `leave` or until its process dies; how a store
    finds out about a death is for it to say. A *living* instance is *attached* to the sessions that it has in memory,
    and may have a *lease* on those that are checked out in it. Both end with the instance. A store that can take a
    living instance for dead makes a new version of a record whose lease it takes from one, so that what that one
    saves is in nobody's way.

    **Absent** means: never created, or deleted since. A record that is gone stays gone: only `create` inserts.
    **Expired** records are like any other, until they are deleted: whoever loads one compares `idle_end` and `life_end`
    with the time, allowing for the lag.
    """

    def join(self, lag: float, name: str) -> str:
        """Become an instance, and get its id. It promises to write its touches within `lag` seconds; see
        `set_write_interval`.

        `name` is what other instances hear of it, in `Found.elsewhere`; several may have the same.
        """
        ...

    def clock_offset(self) -> float:
        """How far the time that the store goes by is ahead of this host's wall clock, in seconds.

        Raises `StoreError` if that has to be asked first, and cannot; once it has been asked, there is no I/O.
        """
        ...

    def set_write_interval(self, instance: str, lag: float) -> None:
        """From now on, the instance writes its touches within `lag` seconds; infinity if it writes them some time."""
        ...

    def leave(self, instance: str) -> None:
        """The instance is gone: its leases end, and it is attached to nothing. Leaving again does nothing."""
        ...

    def create(self, record: SessionRecord, instance: str) -> None:
        """Insert a record and attach the instance to it.

        Raises `SessionExistsError` if its id or its name is taken, be it by an expired record; the error's `session_id`
        is the id of the record that has it. Of two that create the same at once, one gets that.
        """
        ...

    def load(self, session_id: str, instance: str | None = None) -> Found | None:
        """The record as it stands, with its lag because of instances other than this one; None if it is absent."""
        ...

    def find(self, name: str) -> str | None:
        """The id of the record with this name, or None if there is none."""
        ...

    def attach(self, session_id: str, instance: str) -> Found | None:
        """As `load`; and the instance has the session in memory from now on. Attaching again only looks."""
        ...

    def detach(self, session_ids: Iterable[str], instance: str) -> None:
        """The instance has these sessions in memory no more; its leases on them end. Passes over what it does not
        have."""
        ...

    def lease(self, session_id: str, instance: str, exclusive: bool) -> Found | None:
        """Attach the instance, and give it the lease on the session: alone, or shared. None if the record is absent.

        Raises `SessionBusyError` while another living instance has an exclusive lease, or any if this one is to be
        exclusive. Whoever has it already keeps it, and a shared one becomes exclusive where that is asked.
        """
        ...

    def release(self, session_id: str, instance: str) -> None:
        """The instance's lease on this session ends; it stays attached. Does nothing if it has none."""
        ...

    def give_back(self, session_id: str, instance: str, version: int, data: str | None, touch: Touch) -> int:
        """As `save`, and then as `release`, in one step; without new data, only note the touch.

        Gives the version. Where this raises `SessionConflictError` or `SessionNotFoundError`, it has released all the
        same.
        """
        ...

    def save(self, session_id: str, version: int, data: str, touch: Touch) -> int:
        """Replace the data, and note the touch, if the record has this version still; gives the new version.

        Raises `SessionConflictError` if it has another version, and `SessionNotFoundError` if it is absent.
        """
        ...

    def rename(self, session_id: str, new_id: str, instance: str) -> bool:
        """Give the record another id, all the rest staying as it is; whether it was there.

        The instance is attached to it by the new id, with the lease that it had; nobody else is attached to it any
        more. Raises `SessionExistsError` if the new id is taken, and `SessionBusyError` while another living instance
        has a lease on it.
        """
        ...

    def touch(self, touches: Mapping[str, Touch]) -> set[str]:
        """Note what happened to many sessions; gives the ids of those whose record is absent.

        `last_active` is raised, never lowered. Versions stay, so that a touch is in no save's way.
        """
        ...

    def delete(self, session_ids: Iterable[str]) -> set[str]:
        """Delete these records; gives the ids of those that were there. Deleting again gives nothing.

        Of several that delete one record at once, by whatever method, one is told that it was there.
        """
        ...

    def delete_unless_used(self, last_active: Mapping[str, float], instance: str, now: float) -> set[str]:
        """Delete those records that the instance found to be due, and nobody else has used; gives the ids of the
        deleted.

        `last_active` has for each id the instant that the instance knows of the record. A record is deleted if no other
        living instance is attached to it, and it has no later instant or has expired at `now`. The instance is
        attached to none of them any more, deleted or not.
        """
        ...

    def delete_expired(self, now: float, limit: int, max_age: float | None = None) -> list[SessionRecord]:
        """Delete up to `limit` records that have expired at `now`, and give them as they were.

        That is: past their `life_end`, or idle for more than their session timeout (or `max_age`, if that is less).
        What a living instance is attached to is left to it: only that one knows when it was active last.
        """
        ...

    def count_expired(self, now: float, max_age: float | None = None) -> int:
        """How many records `delete_expired` would delete, without a limit."""
        ...

    def page(self, after: str | None, limit: int) -> list[SessionRecord]:
        """Up to `limit` records in the order of their ids, from the first whose id comes later than `after`.

        An empty list says that there are no more. Records that come or go between two pages may be missing.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections. Closing again does nothing; any other call then raises `StoreError`."""
        ...
