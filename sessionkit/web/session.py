"""`WebSession`: the session of one request, as the application sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from datetime import datetime
from typing import Any, Self

from .. import ManagedSession, SessionExpiredError, SessionMetadata, SessionSnapshot
from ..util.copies import refuse_copies
from ..util.validation import Duration
from .data import RequestData
from .request import RequestSession


class WebSession(MutableMapping[str, Any]):
    """A dict that is kept for one visitor from request to request, and the session that keeps it.

    Nothing happens until the application looks at it. The first look checks the session out, until the response's body
    was read to its end or is closed, or `release` is called. Reading never makes a session: while there is none, the
    dict is empty. The first write makes one, whose token is sent with the response's headers: write before the first
    part of the body.

    It holds what JSON can say; anything else, also a subclass such as an `OrderedDict`, is refused with
    `InvalidSessionError` before the response is sent, and the session has what was saved last. A dict or a list that is
    read or put in is the request's own: what is changed in it, however deep, is saved before the response is sent, and
    at the end. `copy` and `|` give dicts.

    In a request that only reads (`read_only`), it is a snapshot: nothing is checked out, waited for or touched. What
    would change it raises `ReadOnlySessionError`: at once, or, for changes in a dict or a list that was read, before
    the response is sent.

    What was written before an error stays written. For the thread, or threads, of one request.

    The first look raises `SessionBusyError` if other requests of this visitor had the session for all of the time
    limit, `StoreError` if the store cannot be read, and `SessionElsewhereError` if another instance has the session in
    memory (only with `affinity=True`). The first write raises `SessionLimitError` if there is no room for another
    session. `rotate`, `close` and `release` raise the same errors. Each is raised once: after it the dict reads as
    empty, and changes are ignored and logged, so that an error page can be made. If the application does not handle the
    error, or goes on to change what it cannot have, the client gets 503.
    """

    def __init__(self, request: RequestSession) -> None:
        self._request = request

    __reduce_ex__ = refuse_copies("session.copy() gives a dict of what there is in it")

    def __repr__(self) -> str:
        # Does not look, and shows no token.
        request = self._request
        session = request.session or request.snapshot
        what = repr(session.id) if session is not None else "none" if request.looked_at else "not looked at"
        return f"<{type(self).__name__} {what}>"

    # ---- The dict

    def __getitem__(self, key: str) -> Any:
        return self._readable()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readable())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._readable())

    def __len__(self) -> int:
        return len(self._readable())

    def __contains__(self, key: object) -> bool:
        return key in self._readable()

    def __setitem__(self, key: str, value: Any) -> None:
        data = self._writable()
        if data is None:
            self._create({key: value})
        else:
            data[key] = value

    def __delitem__(self, key: str) -> None:
        data = self._writable()
        del (self._readable() if data is None else data)[key]

    def update(self, *others: Any, **values: Any) -> None:
        """As a dict's `update`. If it makes the session, `resource_factory` finds all of these values in its data."""
        changes = dict(*others, **values)
        if not changes and self._only_reads:
            return
        data = self._writable()
        if data is not None:
            data.update(changes)
        elif changes:
            self._create(changes)

    # Each of these is one call of the dict: a mixin's two calls would let another request come between them.

    def pop(self, key: str, *default: Any) -> Any:
        """As a dict's `pop`."""
        if self._only_reads and key not in self:
            return self.copy().pop(key, *default)
        data = self._writable()
        return (self._readable() if data is None else data).pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        """As a dict's `popitem`: the last that came in goes out first."""
        data = self._writable()
        return (self._readable() if data is None else data).popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As a dict's `setdefault`."""
        if self._only_reads and key in self:
            return self[key]
        data = self._writable()
        if data is not None:
            return data.setdefault(key, default)
        there = self._readable()
        if key not in there:
            self._create({key: default})
        return there.get(key, default)

    def __or__(self, other: object) -> dict[str, Any]:
        return self.copy() | dict(other) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: object) -> dict[str, Any]:
        return dict(other) | self.copy() if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]  # as a dict's, it takes more than `|` does
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        """A dict of what there is now, one level deep."""
        return self._readable().copy()

    def clear(self) -> None:
        """Remove all keys. The session goes on; `close` ends it."""
        if self._only_reads and not self:
            return
        data = self._writable()
        if data is not None:
            data.clear()

    # ---- The session

    @property
    def id(self) -> str | None:
        """The session's id, which is no secret; None while there is no session, and once it was given back."""
        session = self._seen()
        return None if session is None else session.id

    @property
    def metadata(self) -> SessionMetadata | None:
        """When it was created and active last, and how many messages it has; None where `id` is None."""
        session = self._seen()
        return None if session is None else session.metadata

    @property
    def expires_at(self) -> datetime | None:
        """When its time runs out, in UTC, if nothing touches it from now on; None where `id` is None.

        By idleness or by age, whichever is first. A request touches it at its end once more, unless it only reads.
        """
        session = self._seen()
        return None if session is None else session.expires_at

    @property
    def resource(self) -> Any:
        """The live object that the session owns; None if it has none, and where `id` is None.

        Raises `ReadOnlySessionError` in a request that only reads: another request may be at work with it.
        """
        session = self._changeable() if self._only_reads else self._request.look()
        return None if session is None else session.resource

    @property
    def new(self) -> bool:
        """Whether the session was made in this request."""
        return self._request.new

    @property
    def ended(self) -> SessionExpiredError | None:
        """How the last session of the visitor ended: its `.cause` and `.limit`; None if none is known to have ended."""
        self._request.look()
        return self._request.ended

    def touch(self) -> None:
        """Note activity in the middle of a long response: the checkout does so at its beginning and its end.

        Does nothing while there is no session.
        """
        session = self._changeable()
        if session is not None:
            session.touch()

    def set_timeout(self, seconds: Duration) -> None:
        """Give the session another session timeout, as `ManagedSession.set_timeout` does: "remember me".

        It is the session's from then on, for all requests. Does nothing while there is no session.
        """
        session = self._changeable()
        if session is not None:
            session.set_timeout(seconds)

    def rotate(self) -> None:
        """Give the session a new token, and send it to the client: do so when a user logs in, or gets more rights.

        The old token is dead at once, also for requests that wait for the session. Data, resource and age stay. Does
        nothing while there is no session: the first write makes a new token anyway. Raises `RuntimeError` once the
        headers were sent, and `SessionBusyError` if, in shared mode, other requests have the session for all of the
        time limit.
        """
        if self._changeable() is not None:
            self._request.rotate()

    def close(self) -> None:
        """End the session, as when a user logs out, and take the token from the client.

        Other requests that have the session go on to their end; what they write is gone with it. The next write makes
        another session. Does nothing while there is no session. Raises `StoreError` if the store could not delete the
        record, so that another instance may still find the session.
        """
        if self._changeable() is not None:
            self._request.end()

    def release(self) -> None:
        """Save the session and give it back before the response's body is closed, such as for a long download.

        From then on it can be read as it was, and changing it raises `RuntimeError`. Releasing again does nothing.
        Raises as `SessionCoordinator.checkout` does when a session is given back and cannot be saved.
        """
        self._request.look()
        if self._request.failure is None:
            self._request.leave()

    # ---- The data. A framework's own session may have another way to them.

    def _readable(self) -> RequestData | dict[str, Any]:
        request = self._request
        session = request.look() if request.left is None else None
        if request.left is not None and request.failure is None:
            return request.left
        # After a failure, nothing is found.
        data = None if session is None else request.data
        return {} if data is None else data

    def _writable(self) -> RequestData | dict[str, Any] | None:
        return None if self._changeable() is None else self._request.data

    def _create(self, data: dict[str, Any]) -> None:
        self._request.create(data)

    @property
    def _only_reads(self) -> bool:
        request = self._request
        if request.left is None:
            request.look()
        return request.reader is not None and request.failure is None

    def _seen(self) -> ManagedSession[Any] | SessionSnapshot | None:
        session = self._request.look()
        return self._request.snapshot if session is None else session

    def _changeable(self) -> ManagedSession[Any] | None:
        request = self._request
        if self._only_reads:
            request.refuse_change()
        if request.failure is not None:
            request.ignore_change()
        elif request.left is not None:
            raise RuntimeError(
                "this session was given back, and can only be read: change it before release(), or before the end of "
                "the response's body"
            )
        return request.look()


def request_of(view: WebSession) -> RequestSession:
    """The request that a session belongs to. For what stands between an application and its server."""
    return view._request
