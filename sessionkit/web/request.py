"""A visit: one request's way to the session of whoever sent it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from threading import RLock
from typing import Any
from urllib.parse import quote

from ..coordinator import SessionCoordinator
from ..core.session import ManagedSession
from ..errors import (
    CoordinatorClosedError,
    SessionBusyError,
    SessionConflictError,
    SessionElsewhereError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from ..util.log import report_failure
from .cookie import SessionCookie
from .tenure import Tenure
from .tokens import id_of, new_token

UNAVAILABLE = (
    SessionBusyError,
    SessionElsewhereError,
    SessionLimitError,
    SessionConflictError,
    StoreError,
    CoordinatorClosedError,
)
"""The errors for which a server cannot go on with a session now, and may later: 503."""

RETRY_AFTER_SECONDS = 5
"""What goes into `Retry-After` then."""

REFUSAL = "The session is not available at the moment. Please try again in a few seconds.\n"
"""What goes into the body then."""

INSTANCE_HEADER = "Sessionkit-Instance"
"""The header that names the process which has the session, where that is why this one cannot have it."""


def instance_headers(status: str, failure: BaseException | None) -> list[tuple[str, str]]:
    """What a response says, besides, to whoever may send the request to another process.

    Only a 503: with any other status, the application has made its own answer of the failure.
    """
    if not (isinstance(failure, SessionElsewhereError) and status.startswith("503")):
        return []
    return [(INSTANCE_HEADER, quote(failure.instance_name, safe="".join(map(chr, range(0x20, 0x7F)))))]


class Visit:
    """Finds the session by the request's cookie when somebody looks, makes one when somebody writes, and gives it back.

    For one request, in whatever threads, and whatever sends its response. What is in `UNAVAILABLE` and raised once is
    raised again by the next look; after any other error, the next look tries again: no visitor is to be taken for a new
    one because of an error.
    """

    def __init__(
        self, coordinator: SessionCoordinator[Any], cookie: SessionCookie, header: str, *, shared: bool, timeout: float
    ) -> None:
        self._coordinator = coordinator
        self._cookie = cookie
        self._header = header
        self._tenure = Tenure(coordinator, shared=shared, timeout=timeout)
        self._lock = RLock()

    # What most requests leave as it is. First: whether it is known by now if there is a session.
    _found_out = False
    # The token that the session has now, and the one by which the client has it.
    _token: str | None = None
    _clients_token: str | None = None
    looked_at = False
    """Whether anybody asked for the session: only then does the response depend on the cookie."""
    left: dict[str, Any] | None = None
    """What the session had when it was given back; None before that."""
    headers_sent = False
    """Whether it is too late to give the client another token. For whoever sends them to say."""
    new = False
    """Whether the session was made in this request."""
    ended: SessionExpiredError | None = None
    """How the visitor's last session ended, if it did and that is known."""
    failure: Exception | None = None
    """Why there is no session to be had, or to be saved, in this request."""

    @property
    def session(self) -> ManagedSession[Any] | None:
        """The session, while it is checked out."""
        return self._tenure.session

    def look(self) -> ManagedSession[Any] | None:
        """The session, checked out; None if there is none, or if it was given back."""
        if self.failure is not None:
            raise self.failure
        if not self._found_out:
            self.looked_at = True
            self._find_out()
        return self.session

    def create(self, data: dict[str, Any]) -> None:
        """Write to the session, and make it first, where a look found none."""
        with self._lock:
            if self.session is not None:
                # Another thread of this request was faster.
                self.session.data.update(data)
                return
            self._check_headers("the first write to a session")
            token = new_token()
            with self.noting_failure():
                self._coordinator.create_session(session_id=id_of(token), data=data)
                try:
                    self._tenure.take(id_of(token))
                except BaseException as error:
                    # Nobody has its token.
                    with suppress(SessionNotFoundError):
                        self._coordinator.close_session(id_of(token))
                    if not isinstance(error, SessionNotFoundError):
                        raise
                    raise SessionLimitError("the new session was evicted at once: all others are in use") from error
            self._token = token
            self.new = True

    def rotate(self) -> None:
        """Give the session another token; if somebody has ended it meanwhile, there is none any more."""
        self._check_headers("rotate()")
        token = new_token()
        with self._lock, self.noting_failure():
            try:
                self._tenure.rotate(id_of(token))
                # First: should it not be had again, the client needs the new one all the same.
                self._token = token
                if self.session is None:
                    self._tenure.take(id_of(token))
            except SessionNotFoundError:
                self._forget()

    def end(self) -> None:
        """End the session."""
        with self._lock, self.noting_failure():
            try:
                self._tenure.end()
            finally:
                self._forget()

    def save(self) -> None:
        """Write to the store what changed so far, before the client is told that it was done."""
        if self.session is not None and self.failure is None:
            with self.noting_failure():
                self._tenure.save()

    def leave(self) -> None:
        """Give the session back, and keep what it had. Leaving again does nothing."""
        with self._lock:
            if self.left is not None:
                return
            self.left = {} if self.session is None else dict(self.session.data)
            try:
                self.save()
            finally:
                with self.noting_failure():
                    self._tenure.give_back()

    def finish(self) -> None:
        """The request is over: leave. Doing it again does nothing; what fails is logged.

        A session whose token never got out is ended: nobody could ever ask for it.
        """
        if not self.looked_at:
            self.left = {}
            return
        session = self.session
        try:
            if session is not None and self.has_news and not self.headers_sent:
                self.end()
            self.leave()
        except Exception:  # noqa: BLE001  nobody could handle it: the response is out
            report_failure("the last changes of session %r are not saved", None if session is None else session.id)

    def __del__(self) -> None:
        # A server may forget to close a body, and a test to send a response. Elsewhere, because the thread that
        # collects this may be in the middle of anything; at the very end of a program, that is too late.
        if self.session is not None:
            with suppress(RuntimeError):
                self._coordinator._call_elsewhere(self.finish)

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

    def _find_out(self) -> None:
        with self._lock:
            # Another thread of this request may have been at it, or the request may be over.
            if self._found_out or self.left is not None:
                return
            token = self._cookie.token_in(self._header)
            if token is not None:
                self._find(token)
            self._found_out = True

    def _find(self, token: str) -> None:
        try:
            with self.noting_failure():
                self._tenure.take(id_of(token))
            self._token = self._clients_token = token
        except SessionNotFoundError as error:
            # Its cookie is not taken away: another request may have been given a new one since.
            self.ended = error if isinstance(error, SessionExpiredError) else None

    def _forget(self) -> None:
        self._tenure.give_back()
        self._token = None
        self.new = False

    def _check_headers(self, what: str) -> None:
        if self.headers_sent:
            raise RuntimeError(
                f"{what} needs a cookie, and the response's headers were sent: do it before the first part of the body"
            )
