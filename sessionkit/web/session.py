"""The session of one request, as the application sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Self

from ..core.session import ManagedSession
from ..errors import SessionExpiredError
from .request import Visit


class WebSession(MutableMapping[str, Any]):
    """A dict that is kept for one visitor from request to request, and the session it is kept in.

    Nothing happens until it is looked at. The first look checks the session out, until the response's body is closed
    or `release` is called. Reading never makes a session: while there is none, it is an empty dict. The first write
    makes one, whose token goes out with the response's headers: write before the first part of the body.

    What was written before an error stays written. For the thread, or threads, of one request.

    The first look raises `SessionBusyError` if other requests of this visitor had the session for all of the time
    limit, `StoreError` if the store cannot be read, `SessionElsewhereError` if another process has it in memory (only
    with `affinity=True`), and the first write `SessionLimitError` if there is no room for one more; what raised once
    raises again. An application that does not handle these answers 503.
    """

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def __repr__(self) -> str:
        # Does not look, and shows no token.
        visit = self._visit
        what = repr(visit.session.id) if visit.session is not None else "none" if visit.looked_at else "not looked at"
        return f"<{type(self).__name__} {what}>"

    # ---- The dict

    def __getitem__(self, key: str) -> Any:
        return self._readable()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readable())

    def __len__(self) -> int:
        return len(self._readable())

    def __contains__(self, key: object) -> bool:
        return key in self._readable()

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        data = self._writable()
        if data is None:
            raise KeyError(key)
        del data[key]

    def update(self, *others: Any, **values: Any) -> None:
        """As a dict's `update`. If this makes the session, its `resource_factory` finds all of it in the data."""
        changes = dict(*others, **values)
        data = self._writable()
        if data is not None:
            data.update(changes)
        elif changes:
            self._visit.create(changes)

    # These two at once, where requests share the session.

    def pop(self, key: str, *default: Any) -> Any:
        """As a dict's `pop`."""
        data = self._writable()
        return ({} if data is None else data).pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As a dict's `setdefault`."""
        data = self._writable()
        if data is not None:
            return data.setdefault(key, default)
        self._visit.create({key: default})
        return default

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return self.copy() | dict(other)

    def __ior__(self, other: Mapping[str, Any]) -> Self:
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        """A dict of what there is now, one level deep."""
        return dict(self._readable())

    def clear(self) -> None:
        """Remove all keys. The session goes on; `close` ends it."""
        data = self._writable()
        if data is not None:
            data.clear()

    # ---- The session

    @property
    def id(self) -> str | None:
        """The session's id, which is no secret; None while there is no session, and once it was given back."""
        session = self._visit.look()
        return None if session is None else session.id

    @property
    def resource(self) -> Any:
        """The live object that the session owns; None if it has none, and where `id` is None."""
        session = self._visit.look()
        return None if session is None else session.resource

    @property
    def new(self) -> bool:
        """Whether it was made in this request."""
        return self._visit.new

    @property
    def ended(self) -> SessionExpiredError | None:
        """How the visitor's last session ended, if it did and that is known: `.cause` and `.limit` can be told."""
        self._visit.look()
        return self._visit.ended

    def touch(self) -> None:
        """Note activity, in the middle of a long response: taking and giving back do so anyway.

        Does nothing while there is no session.
        """
        session = self._changeable()
        if session is not None:
            session.touch()

    def rotate(self) -> None:
        """Give the session a new token, and the client with it: do so whenever somebody logs in, or gets more rights.

        The old token is dead at once, for requests that wait for the session too. Data, resource and age stay. Does
        nothing while there is no session: the first write makes a new token anyway. Raises `RuntimeError` once the
        headers were sent, and `SessionBusyError` if, in shared mode, other requests have the session for all of the
        time limit.
        """
        if self._changeable() is not None:
            self._visit.rotate()

    def close(self) -> None:
        """End the session, as somebody logs out, and take the token from the client.

        Other requests that have it finish; what they write is gone with it. The next write makes another session. Does
        nothing while there is no session. Raises `StoreError` if another process may find it yet.
        """
        if self._changeable() is not None:
            self._visit.end()

    def release(self) -> None:
        """Save the session and give it back, before the response's body is closed: for a long download.

        From then on it can be read as it was, and changing it raises `RuntimeError`. Releasing again does nothing.
        Raises as a checkout does that is given back and cannot be saved.
        """
        self._visit.look()
        self._visit.leave()

    def _readable(self) -> dict[str, Any]:
        if self._visit.left is not None:
            return self._visit.left
        session = self._visit.look()
        return {} if session is None else session.data

    def _writable(self) -> dict[str, Any] | None:
        session = self._changeable()
        return None if session is None else session.data

    def _changeable(self) -> ManagedSession[Any] | None:
        if self._visit.left is not None:
            raise RuntimeError(
                "this session was given back, and can only be read: change it before release(), or before the end of "
                "the response's body"
            )
        return self._visit.look()
