"""`RequestSession`: one request's way to the session of the visitor that sent it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from threading import RLock
from typing import Any, NoReturn

from .. import (
    Checkout,
    CoordinatorClosedError,
    InvalidSessionError,
    ManagedSession,
    ReadOnlySessionError,
    SessionBusyError,
    SessionConflictError,
    SessionCoordinator,
    SessionElsewhereError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
    SessionSnapshot,
    StoreError,
)
from ..util.jsontext import encode_data
from ..util.log import report_failure, report_problem
from .cookie import SessionCookie, id_of, new_token
from .data import Form, RequestData

UNAVAILABLE = (
    SessionBusyError,
    SessionElsewhereError,
    SessionLimitError,
    SessionConflictError,
    StoreError,
    CoordinatorClosedError,
)
"""The errors after which a server answers 503: it cannot go on with the session now, and may be able to later."""


class RequestSession:
    """Finds the session by the request's cookie, makes one when the application writes, and gives it back at the end.

    A client may send several cookies of one name, such as one of a parent domain: the first token whose session is live
    wins.

    The first look checks the session out. The request is the holder of the checkout: requests exclude each other also
    where one thread, or several greenlets of one, serve them, and any thread of the request may use the session and
    give it back. With `shared=True`, requests of one visitor have the session at the same time. `timeout`: how many
    seconds to wait for other requests. With a store, a session is used only if the store has confirmed the checkout:
    the session in memory may have been ended by another instance.

    `find_reader` is asked at the first look: if it gives a text, which names what is read-only, this request only
    reads. It sees a snapshot, so that it waits for no other request, nor does another wait for it, and it does not
    touch the session.

    An error that is in `UNAVAILABLE` is raised once, and is `failure` from then on: later looks find nothing, and
    changes are ignored, so that an error page can be made. `translate` makes of it the error that the application sees
    instead; default: it sees the error itself. After any other error, the next look tries again, because no visitor may
    be taken for a new one because of an error.

    `form`: how the application's values stand in the session's data; default as they are.

    A request that is dropped without `finish` gives its session back when it is collected; a new session whose token
    was not sent yet is left to expire then.
    """

    # Most requests leave these as they are.
    session: ManagedSession[Any] | None = None
    """The session, while this request has it checked out."""
    data: RequestData | None = None
    """The session's data as this request sees them, while it has the session."""
    looked_at = False
    """Whether the application asked for the session: only then does the response depend on the cookie."""
    left: RequestData | dict[str, Any] | None = None
    """The data that the session had when it was given back, or was only read; None before that, {} if there was no
    session."""
    reader: str | None = None
    """What is read-only, if this request only reads; None before the first look."""
    snapshot: SessionSnapshot | None = None
    """What a request that only reads sees of the session; None if there is none."""
    headers_sent = False
    """Whether it is too late to send the client another token. Set by the caller that sends the headers."""
    new = False
    """Whether the session was made in this request."""
    ended: SessionExpiredError | None = None
    """How the visitor's last session ended, if it ended and that is known."""
    failure: Exception | None = None
    """Why this request cannot have the session, or could not save it."""
    has_ignored = False
    """Whether the application, after the failure, has made a change that was ignored."""

    _checkout: Checkout[Any] | None = None
    # Whether the cookie was searched for a session.
    _searched = False
    # The token that the session has now, and the token that the client has sent.
    _token: str | None = None
    _clients_token: str | None = None
    # How old the session is, and how old it was when the client was sent its cookie; in seconds.
    _age = 0.0
    _age_when_sent: float | None = None

    def __init__(
        self,
        coordinator: SessionCoordinator[Any],
        cookie: SessionCookie,
        header: str,
        *,
        shared: bool,
        timeout: float,
        find_reader: Callable[[], str | None] | None = None,
        translate: Callable[[Exception], Exception] | None = None,
        form: Form | None = None,
    ) -> None:
        self.cookie = cookie
        """What carries the token."""
        self._coordinator = coordinator
        self._header = header
        self._shared = shared
        self._timeout = timeout
        self._find_reader = find_reader
        self._translate = translate
        self._form = form or Form()
        # Stands for this request. Were it the request itself, its checkout would keep it from being collected.
        self._holder = object()
        # Guards what is above where a request has several threads.
        self._lock = RLock()

    # ---- For the application

    def look(self) -> ManagedSession[Any] | None:
        """The session, checked out; None if there is none, if it was given back, if this request only reads, and after
        a failure."""
        if self.failure is not None:
            return None
        if not self._searched:
            self._search()
        return self.session

    def create(self, data: dict[str, Any]) -> None:
        """Write to the session; if a look found none, make it first. Does nothing after a failure.

        Raises `RuntimeError` if the headers were sent.
        """
        with self._lock:
            if self.failure is not None:
                return
            if self.data is not None:
                # Another thread of this request was faster.
                self.data.update(data)
                return
            self._check_headers("the first write to a session")
            token = new_token()
            try:
                self._create(id_of(token), data)
            except UNAVAILABLE as error:
                self._fail(error)
            self._token = token
            self.new = True

    def refuse_change(self) -> NoReturn:
        """The application is to change the session, and this request only reads: raise `ReadOnlySessionError`."""
        raise ReadOnlySessionError(
            f"{self.reader} is read-only: it has a snapshot of the session, and no change of that would be kept. "
            "Change the session in another request, or let this one not be read-only"
        )

    def rotate(self) -> None:
        """Give the session another token. If the session has ended meanwhile, this request has none from then on.

        Does nothing if this request has no session. Raises `RuntimeError` if the headers were sent.
        """
        self._check_headers("rotate()")
        with self._lock:
            if self.session is None or self._checkout is None:
                return
            try:
                try:
                    self._rotate(self.session.id, self._checkout)
                except SessionNotFoundError:
                    self._forget()
            except UNAVAILABLE as error:
                self._fail(error)

    def end(self) -> None:
        """End the session. Does nothing if this request has no session."""
        with self._lock:
            if self._checkout is None:
                return
            try:
                try:
                    self._checkout.close()
                finally:
                    self._forget()
            except UNAVAILABLE as error:
                self._fail(error)

    def ignore_change(self) -> None:
        """The application changes what it cannot have: that is logged, once."""
        if not self.has_ignored:
            self.has_ignored = True
            report_problem("a change to the session is ignored, which could not be had or saved in this request")

    # ---- For the response

    def save(self) -> None:
        """Write what changed, before the client is told that it was done: to the session's data, and to the store.

        Raises `InvalidSessionError` for data that cannot be stored, also without a store. The data are then what was
        saved last: else each later request would fail, too. Does nothing if the session was ended elsewhere. Raises
        `ReadOnlySessionError` if this request only reads, and has changed something deep in what it has read.
        """
        if self.snapshot is not None:
            self._check_unchanged(self.snapshot)
        checkout, data = self._checkout, self.data
        if checkout is None or data is None or self.failure is not None:
            return
        try:
            with self._reverting(checkout, data):
                data.flush(checkout.session_id)
                checkout.save()
                data.commit()
        except SessionNotFoundError:
            pass
        except UNAVAILABLE as error:
            self._fail(error)

    def leave(self) -> None:
        """Save the session and give it back, in one step; `left` has its data. Leaving again does nothing.

        Raises as `save` does; what cannot be stored is reverted while no other request can have the session.
        """
        with self._lock:
            if self.left is not None:
                return
            self.left = {} if self.data is None else self.data.snapshot()
            try:
                self._prepare()
            finally:
                try:
                    self._give_back()
                except UNAVAILABLE as error:
                    self._fail(error)

    def conclude(self) -> None:
        """Save the session before a response is sent that is complete, and give it back in the same step.

        A session whose token the client is yet to be told is saved only: should the response not be sent, `finish` ends
        it. `finish` is to be called in any case. Raises as `save` does.
        """
        if self.has_news or self.left is not None or self.failure is not None:
            self.save()
        else:
            self.leave()

    def finish(self) -> None:
        """The request is over: leave. Finishing again does nothing, and an error is logged.

        A session whose token was not sent is ended: no client could ever ask for it.
        """
        if not self.looked_at:
            self.left = {}
            return
        session = self.session
        try:
            if session is not None and not self.headers_sent and self.has_news:
                self.end()
            self.leave()
        except Exception:  # noqa: BLE001  no caller could handle it: the response is out
            report_failure("the last changes of session %r are not saved", None if session is None else session.id)

    def is_hidden_by(self, status: str) -> bool:
        """Whether a response of this status would not tell the client of the failure.

        An application may handle it in its own way. But 500 is what frameworks make of any error; and if a change was
        ignored, the response may say that it was made.
        """
        if self.failure is None or status.startswith("503"):
            return False
        return self.has_ignored or status.startswith("500")

    @property
    def has_news(self) -> bool:
        """Whether the client has to be told of another token, or that it has none any more."""
        return self._token != self._clients_token

    @property
    def has_token(self) -> bool:
        """Whether there is a token, for a cookie to carry."""
        return self._token is not None

    def is_due(self, lifetime: float | None) -> bool:
        """Whether the client, whose cookie lives for so many seconds (None: until the browser is closed), has had it
        for a tenth of them, so that it is to be sent again.
        """
        if lifetime is None or self._token is None:
            return False
        sent = self._age_when_sent
        # What the client says of it may be anything.
        return sent is None or not 0 <= self._age - sent < lifetime / 10

    def set_cookie(self, expires: datetime | None = None, *, dated: bool = False) -> str:
        """The value of the `Set-Cookie` header that tells the client of its token, or takes it away.

        `dated`: whether `is_due` is to know, when the client comes back, how long it has had the cookie.
        """
        if self._token is None:
            return self.cookie.removal()
        return self.cookie.holding(self._token, expires, self._age if dated else None)

    def __del__(self) -> None:
        # A server may forget to close a body, and a test to send a response.
        if self._checkout is not None and self.data is not None:
            try:
                self.data.flush(self._checkout.session_id)
            except InvalidSessionError:
                self.data.revert()
            self._checkout.give_back_later()

    # ---- Steps

    def _prepare(self) -> None:
        """Have all changes be in the session's data, as those are to be stored when it is given back."""
        checkout, session, data = self._checkout, self.session, self.data
        if checkout is None or session is None or data is None or self.failure is not None:
            return
        with self._reverting(checkout, data):
            data.flush(session.id)
            if self._coordinator.store is not None:
                encode_data(session.data, self._coordinator.config.max_data_bytes, session.id)

    @contextmanager
    def _reverting(self, checkout: Checkout[Any], data: RequestData) -> Iterator[None]:
        try:
            yield
        except InvalidSessionError:
            data.revert()
            checkout.revert()
            raise

    def _search(self) -> None:
        self.looked_at = True
        with self._lock:
            # Another thread of this request may have searched, in vain, or the request may be over.
            if self._searched or self.failure is not None or self.left is not None:
                return
            self.reader = None if self._find_reader is None else self._find_reader()
            for token, age_when_sent in self.cookie.tokens_in(self._header).items():
                try:
                    self._take(id_of(token))
                except SessionNotFoundError as error:
                    # The client keeps its cookie: another request may have been given a new one meanwhile.
                    if self.ended is None and isinstance(error, SessionExpiredError):
                        self.ended = error
                except UNAVAILABLE as error:
                    self._fail(error)
                else:
                    self.ended = None
                    if self.reader is None:
                        self._token = self._clients_token = token
                        self._age_when_sent = age_when_sent
                    break
            self._searched = True
            if self.reader is not None:
                self.left = {} if self.snapshot is None else RequestData(self.snapshot.data, self._form)

    def _check_unchanged(self, snapshot: SessionSnapshot) -> None:
        read, values = snapshot.data.copy(), self.left
        assert isinstance(values, RequestData), "it was read"  # noqa: S101  tells mypy
        values.flush(snapshot.id)
        if snapshot.data != read:
            # Once: an error page is a response too.
            values.revert()
            self.refuse_change()

    def _take(self, session_id: str) -> None:
        if self.reader is None:
            self._check_out(session_id, exclusive=not self._shared)
        else:
            self.snapshot = self._coordinator.read_session(session_id)

    def _check_out(self, session_id: str, *, exclusive: bool, values: RequestData | None = None) -> Checkout[Any]:
        """Check a session out; the application goes on with the values that it has."""
        checkout = self._coordinator.checkout(
            session_id, exclusive=exclusive, timeout=self._timeout, holder=self._holder
        )
        session = checkout.__enter__()
        data = RequestData(session.data, self._form)
        if values is not None:
            data.adopt(values)
        self._checkout, self.session, self.data = checkout, session, data
        self._age = session.metadata.last_active - session.metadata.created_at
        if not checkout.confirmed:
            # An earlier change that is not saved yet is no failure of this request.
            with suppress(StoreError):
                self._give_back()
            raise StoreError(
                f"the store cannot say whether session {session_id!r} is live, or whether another instance has it; try "
                "again when the store answers"
            )
        return checkout

    def _give_back(self) -> None:
        checkout, self._checkout, self.session, self.data = self._checkout, None, None, None
        if checkout is not None:
            # The session may have been ended elsewhere.
            with suppress(SessionNotFoundError):
                checkout.__exit__()

    def _create(self, session_id: str, data: dict[str, Any]) -> None:
        written = RequestData({}, self._form)
        written.update(data)
        self._coordinator.create_session(session_id=session_id, data=written.storable())
        try:
            self._check_out(session_id, exclusive=not self._shared, values=written)
        except BaseException as error:
            # No client has its token.
            with suppress(SessionNotFoundError):
                self._coordinator.close_session(session_id)
            if not isinstance(error, SessionNotFoundError):
                raise
            raise SessionLimitError("the new session was evicted at once: all others are in use") from error

    def _rotate(self, session_id: str, checkout: Checkout[Any]) -> None:
        token = new_token()
        if not self._shared:
            checkout.rotate(id_of(token))
            self._token = token
            return
        # Other requests have the session, too. Once they have given it back, this one has it alone.
        self.save()
        values = self.data
        self._give_back()
        try:
            self._check_out(session_id, exclusive=True).rotate(id_of(token))
            # Should the session not be had again, the client needs the new token all the same.
            self._token = token
        finally:
            self._give_back()
        self._check_out(id_of(token), exclusive=False, values=values)

    def _forget(self) -> None:
        self._give_back()
        self._token = None
        self.new = False

    def _check_headers(self, what: str) -> None:
        if self.headers_sent:
            raise RuntimeError(
                f"{what} needs a cookie, and the response's headers were sent: do it before the first part of the body"
            )

    def _fail(self, error: Exception) -> NoReturn:
        if self._translate is None:
            self.failure = error
            raise error
        self.failure = self._translate(error)
        raise self.failure from error
