"""The session of one request, as the application sees it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from .checkout import Checkout
from .cookie import SessionCookie
from .coordinator import SessionCoordinator
from .errors import (
    CoordinatorClosedError,
    SessionBusyError,
    SessionConflictError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from .log import report_failure
from .session import ManagedSession
from .tokens import id_of, new_token

UNAVAILABLE = (SessionBusyError, SessionLimitError, SessionConflictError, StoreError, CoordinatorClosedError)
"""The errors for which a server cannot go on with a session now, and may later: 503."""

RETRY_AFTER_SECONDS = 5
"""What goes into `Retry-After` then."""

REFUSAL = "The session is not available at the moment. Please try again in a few seconds.\n"
"""What goes into the body then."""


class WebSession(MutableMapping[str, Any]):
    """A dict that is kept for one visitor from request to request, and the session it is kept in.

    Nothing happens until it is looked at. The first look checks the session out, until the response's body is closed
    or `release` is called. Reading never makes a session: while there is none, it is an empty dict. The first write
    makes one, whose token goes out with the response's headers: write before the first part of the body.

    What was written before an error stays written. For the thread, or threads, of one request.

    The first look raises `SessionBusyError` if other requests of this visitor had the session for all of the time
    limit, `StoreError` if the store cannot be read, and the first write `SessionLimitError` if there is no room for
    one more; what raised once raises again. An application that does not handle these answers 503.
    """

    def __init__(
        self, coordinator: SessionCoordinator[Any], cookie: SessionCookie, header: str, *, shared: bool, timeout: float
    ) -> None:
        self._coordinator = coordinator
        self._cookie = cookie
        self._header = header
        self._shared = shared
        self._timeout = timeout
        self._loan: Checkout[Any] | None = None
        self._session: ManagedSession[Any] | None = None
        # The token that the session has now, and the one by which the client has it.
        self._token: str | None = None
        self._clients_token: str | None = None
        # What it had when it was given back.
        self._left: dict[str, Any] | None = None
        self.looked_at = False
        """Whether anybody asked for the session: only then does the response depend on the cookie."""
        self.headers_sent = False
        """Whether it is too late to give the client another token."""
        self.new = False
        """Whether it was made in this request."""
        self.ended: SessionExpiredError | None = None
        """How the visitor's last session ended, if that is known and it did: `.cause` and `.limit` can be told."""
        self.failure: Exception | None = None
        """Why the session cannot be had, or could not be saved, in this request."""

    def __repr__(self) -> str:
        # Does not look, and shows no token.
        what = repr(self._session.id) if self._session is not None else "none" if self.looked_at else "not looked at"
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
            self._create(changes)

    def clear(self) -> None:
        """Remove all keys. The session goes on; `close` ends it."""
        data = self._writable()
        if data is not None:
            data.clear()

    # ---- The session

    @property
    def id(self) -> str | None:
        """The session's id, which is no secret; None while there is no session, and once it was given back."""
        session = self._look()
        return None if session is None else session.id

    @property
    def resource(self) -> Any:
        """The live object that the session owns; None if it has none, and where `id` is None."""
        session = self._look()
        return None if session is None else session.resource

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
        session = self._changeable()
        if session is None:
            return
        self._check_headers("rotate()")
        token = new_token()
        with self._noting_failure():
            if self._shared:
                # Others may have it as well, and are to finish first.
                self._give_back()
            self._coordinator.rotate_session(session.id, id_of(token), timeout=self._timeout)
            self._token = token
            if self._shared:
                self._take(token)

    def close(self) -> None:
        """End the session, as somebody logs out, and take the token from the client.

        Other requests that have it finish; what they write is gone with it. The next write makes another session. Does
        nothing while there is no session.
        """
        session = self._changeable()
        if session is not None:
            with self._noting_failure():
                self._end(session)

    def release(self) -> None:
        """Save the session and give it back, before the response's body is closed: for a long download.

        From then on it can be read as it was, and all else raises `RuntimeError`. Releasing again does nothing. Raises
        as a checkout does that is given back and cannot be saved.
        """
        self._look()
        with self._noting_failure():
            self._leave()

    @property
    def released(self) -> bool:
        """Whether it was given back."""
        return self._left is not None

    # ---- For whoever sends the response

    def save(self) -> None:
        """Write to the store what changed so far, before the client is told that it was done."""
        if self._session is not None and self._loan is not None and self.failure is None:
            # Somebody may have logged out meanwhile.
            with self._noting_failure(), suppress(SessionNotFoundError):
                self._coordinator.save_session(self._session.id)

    @property
    def has_news(self) -> bool:
        """Whether the client has to be told of another token, or of none."""
        return self._token != self._clients_token

    def set_cookie(self, expires: datetime | None = None) -> str:
        """The value of the `Set-Cookie` header that tells the client of its token, or of none."""
        return self._cookie.removal() if self._token is None else self._cookie.holding(self._token, expires)

    def finish(self) -> None:
        """Give the session back: the request is over. Doing it again does nothing; what fails is logged.

        A session whose token never got out is closed: nobody could ever ask for it.
        """
        session = self._session
        try:
            if session is not None and self.has_news and not self.headers_sent:
                self._end(session)
            self._leave()
        except Exception:  # noqa: BLE001  nobody could handle it: the response is out
            report_failure("the last changes of session %r are not saved", None if session is None else session.id)

    # ---- How it is had

    def _readable(self) -> dict[str, Any]:
        if self._left is not None:
            return self._left
        session = self._look()
        return {} if session is None else session.data

    def _writable(self) -> dict[str, Any] | None:
        session = self._changeable()
        return None if session is None else session.data

    def _changeable(self) -> ManagedSession[Any] | None:
        if self._left is not None:
            raise RuntimeError(
                "this session was given back, and can only be read: change it before release(), or before the end of "
                "the response's body"
            )
        return self._look()

    def _look(self) -> ManagedSession[Any] | None:
        if self.failure is not None:
            raise self.failure
        if not self.looked_at:
            self.looked_at = True
            token = self._cookie.token_in(self._header)
            if token is not None:
                self._find(token)
        return None if self._left is not None else self._session

    def _find(self, token: str) -> None:
        try:
            with self._noting_failure():
                self._take(token)
        except SessionNotFoundError as error:
            # Its cookie is not taken away: another request may have been given a new one since.
            self.ended = error if isinstance(error, SessionExpiredError) else None
        else:
            self._token = self._clients_token = token

    def _create(self, data: dict[str, Any]) -> None:
        self._check_headers("the first write to a session")
        token = new_token()
        with self._noting_failure():
            self._coordinator.create_session(session_id=id_of(token), data=data)
            try:
                self._take(token)
            except SessionNotFoundError as error:
                raise SessionLimitError("the new session was evicted at once: all others are in use") from error
        self._token = token
        self.new = True

    def _take(self, token: str) -> None:
        checkout = self._coordinator.checkout(id_of(token), exclusive=not self._shared, timeout=self._timeout)
        self._session = checkout.__enter__()
        self._loan = checkout

    def _end(self, session: ManagedSession[Any]) -> None:
        # Somebody else may have ended it.
        with suppress(SessionNotFoundError):
            self._coordinator.close_session(session.id)
        self._session = self._token = None
        self.new = False
        self._give_back()

    def _leave(self) -> None:
        if self._left is None:
            self._left = {} if self._session is None else dict(self._session.data)
            self._give_back()

    def _give_back(self) -> None:
        checkout, self._loan = self._loan, None
        if checkout is not None:
            # Somebody may have logged out meanwhile.
            with suppress(SessionNotFoundError):
                checkout.__exit__()

    def _check_headers(self, what: str) -> None:
        if self.headers_sent:
            raise RuntimeError(
                f"{what} needs a cookie, and the response's headers were sent: do it before the first part of the body"
            )

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except UNAVAILABLE as error:
            self.failure = error
            raise
