"""Sessions for WSGI applications: `SessionMiddleware`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.datastructures import Headers

from . import SessionCoordinator
from .util.log import report_failure, report_problem
from .util.validation import Duration, checked_function
from .web.cookie import SessionCookie, checked_cookie
from .web.request import RequestSession
from .web.response import Body, add_cookie, explain_failure, refusal, vary_by_cookie
from .web.service import TIMEOUT_SECONDS, Service, checked_timeout
from .web.session import WebSession

__all__ = ["KEY", "SessionCookie", "SessionMiddleware", "WebSession"]

KEY = "sessionkit.session"
"""Where the WSGI environment has the session."""

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class SessionMiddleware:
    """A WSGI application that gives another one a session for each visitor: `environ["sessionkit.session"]`.

    It is a `WebSession`. A request that never looks at it costs no lookup, sets no cookie and takes no lock. The first
    look checks the session out until the response's body was read to its end or is closed. The first part of the body
    is made, and the headers are sent, before the call returns.

    `coordinator` keeps the sessions. Its cleanup task is started here, and it is closed when the interpreter exits.
    `cookie`: what carries the token; default `SessionCookie()`. Requests of one visitor have the session one after the
    other; with `shared=True`, which only a coordinator without a store can do, they have it at the same time, and write
    to one dict. `timeout`: how long a request waits for the others, in seconds or as a timedelta; default 10, and 0 for
    not at all.

    `read_only(environ)`: whether a request only reads, such as a long poll or a stream of events. It sees a snapshot of
    the session: it waits for no other request and keeps none waiting, does not touch the session, and sets no cookie;
    changing the session raises `ReadOnlySessionError`. It is called before the application.

    If the session cannot be had or saved, the client gets 503 with `Retry-After`. An application that catches the error
    may answer itself, with any status but 500, unless it goes on to change the session: that is ignored, and the client
    gets 503 then, too. If `affinity=True` leaves the session to another instance, the header `Sessionkit-Instance`
    names that instance, so that a router can send the request there. A 503 of the application's own has these headers,
    too.

    Responses that depend on the session say `Vary: Cookie`; those that set a cookie say `Cache-Control: private,
    no-store` in place of what the application said.

    May be called from any thread. Raises `TypeError` or `ValueError` for bad input.
    """

    def __init__(
        self,
        app: WSGIApplication,
        coordinator: SessionCoordinator[Any],
        *,
        cookie: SessionCookie | None = None,
        shared: bool = False,
        timeout: Duration = TIMEOUT_SECONDS,
        read_only: Callable[[WSGIEnvironment], object] | None = None,
    ) -> None:
        checked_function("app", app)
        if read_only is not None:
            checked_function("read_only", read_only)
        self._read_only = read_only
        self._app = app
        self._coordinator = coordinator
        self._cookie = checked_cookie(cookie)
        self._timeout = checked_timeout(timeout)
        self._service = Service(coordinator, shared=shared)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self._service.check_server(environ)
        reader = self._reader_of(environ)
        request = RequestSession(
            self._coordinator,
            self._cookie,
            environ.get("HTTP_COOKIE", ""),
            shared=self._service.shared,
            timeout=self._timeout,
            find_reader=lambda: reader,
        )
        environ[KEY] = WebSession(request)
        return _Exchange(environ, start_response, request).run(self._app)

    def _reader_of(self, environ: WSGIEnvironment) -> str | None:
        if self._read_only is None or not self._read_only(environ):
            return None
        return f"the request {environ.get('REQUEST_METHOD')} {environ.get('PATH_INFO')!r}"


class _Exchange:
    """One request and its response. The headers wait for the first part of the body: what the application writes to
    the session before that is saved before the client is told that it was done.
    """

    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse, request: RequestSession) -> None:
        self._environ = environ
        self._start_response = start_response
        self._request = request
        # The status and headers that the application has given, and the server's `write` once they are sent.
        self._answer: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Callable[[bytes], object] | None = None

    def run(self, app: WSGIApplication) -> Iterable[bytes]:
        """Have the application answer. Returns the body."""
        body = Body((), self._request.finish)
        try:
            try:
                made = app(self._environ, self._note_answer)
                body = Body(made, self._request.finish)
                if self._is_complete(made):
                    self._begin()
                    return made
                # Within this call: a server may send what it has of the headers when the call returns.
                body.begin()
                self._begin()
                return body
            except Exception as error:
                if not self._can_refuse:
                    raise
                refused = self._refuse(error)
        except BaseException:
            body.close()
            raise
        body.close()
        return refused

    @property
    def _can_refuse(self) -> bool:
        """Whether the session is what went wrong, and the client can be told so."""
        return self._request.failure is not None and not self._request.headers_sent

    def _note_answer(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExceptionInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """The `start_response` that the application calls."""
        if self._request.headers_sent and exc_info is not None:
            # The server raises it, if the headers are on the wire.
            return self._start_response(status, self._with_session(status, headers), exc_info)
        if self._answer is not None and exc_info is None:
            raise AssertionError("start_response was called a second time, and with no exc_info")
        self._answer = status, headers
        return self._write_part

    def _write_part(self, part: bytes, /) -> object:
        return self._begin()(part)

    def _begin(self) -> Callable[[bytes], object]:
        """Save the session, and send the headers, if they were not sent. Returns the server's `write`."""
        if self._write is not None:
            return self._write
        if self._answer is None:
            raise AssertionError("the application has to call start_response before the first part of the body")
        self._request.save()
        status, headers = self._answer
        if self._request.failure is not None and self._request.is_hidden_by(status):
            raise self._request.failure
        return self._send(status, headers)

    def _refuse(self, error: Exception) -> list[bytes]:
        """Answer 503. Returns the body."""
        if error is self._request.failure:
            report_problem("answered 503: %s", error)
        else:
            report_failure("answered 503: %s; and the application failed then", self._request.failure)
        headers, text = refusal()
        self._send("503 Service Unavailable", headers)
        return [] if self._environ.get("REQUEST_METHOD") == "HEAD" else [text]

    def _send(self, status: str, headers: list[tuple[str, str]]) -> Callable[[bytes], object]:
        self._write = self._start_response(status, self._with_session(status, headers))
        self._request.headers_sent = True
        return self._write

    def _with_session(self, status: str, given: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The headers, with what the session adds to them."""
        if not self._request.looked_at:
            return given
        headers = Headers(given)
        vary_by_cookie(headers)
        if self._request.failure is not None:
            explain_failure(headers, status, self._request.failure)
        lifetime = self._request.cookie.max_age
        if self._request.has_news or self._request.is_due(lifetime):
            add_cookie(headers, self._request.set_cookie(dated=lifetime is not None))
        return headers.to_wsgi_list()

    def _is_complete(self, body: object) -> bool:
        """Whether the body can go out as it is: nothing has the session, nor will any code ask for it."""
        if self._answer is None or (self._request.looked_at and self._request.left is None):
            return False
        wrapper = self._environ.get("wsgi.file_wrapper")
        return type(body) in (list, tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper))
