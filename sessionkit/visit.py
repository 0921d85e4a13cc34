"""A visit: one request's way to the session of whoever sent it."""

from __future__ import annotations

from collections.abc import Iterator
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


class Visit:
    """Finds the session by the request's cookie when somebody looks, makes one when somebody writes, and gives it back.

    For one request, and whatever sends its response. Whatever is in `UNAVAILABLE` and raised once is raised again by
    the next look: no visitor is to be taken for a new one because of it.
    """

    def __init__(
        self, coordinator: SessionCoordinator[Any], cookie: SessionCookie, header: str, *, shared: bool, timeout: float
    ) -> None:
        self._coordinator = coordinator
        self._cookie = cookie
        self._header = header
        self._shared = shared
        self._timeout = timeout
        self._checked_out: Checkout[Any] | None = None
        # The token that the session has now, and the one by which the client has it.
        self._token: str | None = None
        self._clients_token: str | None = None
        self.session: ManagedSession[Any] | None = None
        """The session, once somebody has looked, if there is one."""
        self.looked_at = False
        """Whether anybody asked for the session: only then does the response depend on the cookie."""
        self.left: dict[str, Any] | None = None
        """What it had when it was given back; None before that."""
        self.headers_sent = False
        """Whether it is too late to give the client another token. For whoever sends them to say."""
        self.new = False
        """Whether the session was made in this request."""
        self.ended: SessionExpiredError | None = None
        """How the visitor's last session ended, if it did and that is known."""
        self.failure: Exception | None = None
        """Why there is no session to be had, or to be saved, in this request."""

    def look(self) -> ManagedSession[Any] | None:
        """The session, checked out; None if there is none, or if it was given back."""
        if self.failure is not None:
            raise self.failure
        if not self.looked_at:
            self.looked_at = True
            token = self._cookie.token_in(self._header)
            if token is not None:
                self._find(token)
        return None if self.left is not None else self.session

    def create(self, data: dict[str, Any]) -> None:
        """Make a session, checked out, where a look found none."""
        self._check_headers("the first write to a session")
        token = new_token()
        with self.noting_failure():
            self._coordinator.create_session(session_id=id_of(token), data=data)
            try:
                self._take(token)
            except SessionNotFoundError as error:
                raise SessionLimitError("the new session was evicted at once: all others are in use") from error
        self._token = token
        self.new = True

    def rotate(self, session: ManagedSession[Any]) -> None:
        """Give the session another token."""
        self._check_headers("rotate()")
        token = new_token()
        with self.noting_failure():
            if self._shared:
                # Others may have it as well, and are to finish first.
                self._give_back()
            self._coordinator.rotate_session(session.id, id_of(token), timeout=self._timeout)
            self._token = token
            if self._shared:
                self._take(token)

    def end(self, session: ManagedSession[Any]) -> None:
        """End the session; somebody else may have done so."""
        with self.noting_failure(), suppress(SessionNotFoundError):
            self._coordinator.close_session(session.id)
        self.session = self._token = None
        self.new = False
        self._give_back()

    def save(self) -> None:
        """Write to the store what changed so far, before the client is told that it was done."""
        if self.session is not None and self._checked_out is not None and self.failure is None:
            # Somebody may have ended it meanwhile.
            with self.noting_failure(), suppress(SessionNotFoundError):
                self._coordinator.save_session(self.session.id)

    def leave(self) -> None:
        """Give the session back, and keep what it had. Leaving again does nothing."""
        if self.left is None:
            self.left = {} if self.session is None else dict(self.session.data)
            with self.noting_failure():
                self._give_back()

    def finish(self) -> None:
        """The request is over: leave. Doing it again does nothing; what fails is logged.

        A session whose token never got out is ended: nobody could ever ask for it.
        """
        session = self.session
        try:
            if session is not None and self.has_news and not self.headers_sent:
                self.end(session)
            self.leave()
        except Exception:  # noqa: BLE001  nobody could handle it: the response is out
            report_failure("the last changes of session %r are not saved", None if session is None else session.id)

    @property
    def has_news(self) -> bool:
        """Whether the client has to be told of another token, or of none."""
        return self._token != self._clients_token

    def set_cookie(self, expires: datetime | None = None) -> str:
        """The value of the `Set-Cookie` header that tells the client of its token, or of none."""
        return self._cookie.removal() if self._token is None else self._cookie.holding(self._token, expires)

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Around what may be unavailable."""
        try:
            yield
        except UNAVAILABLE as error:
            self.failure = error
            raise

    def _find(self, token: str) -> None:
        try:
            with self.noting_failure():
                self._take(token)
        except SessionNotFoundError as error:
            # Its cookie is not taken away: another request may have been given a new one since.
            self.ended = error if isinstance(error, SessionExpiredError) else None
        else:
            self._token = self._clients_token = token

    def _take(self, token: str) -> None:
        checkout = self._coordinator.checkout(id_of(token), exclusive=not self._shared, timeout=self._timeout)
        self.session = checkout.__enter__()
        self._checked_out = checkout

    def _give_back(self) -> None:
        checkout, self._checked_out = self._checked_out, None
        if checkout is not None:
            # Somebody may have ended it meanwhile.
            with suppress(SessionNotFoundError):
                checkout.__exit__()

    def _check_headers(self, what: str) -> None:
        if self.headers_sent:
            raise RuntimeError(
                f"{what} needs a cookie, and the response's headers were sent: do it before the first part of the body"
            )
