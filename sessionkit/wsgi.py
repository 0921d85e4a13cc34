"""Sessions for WSGI applications: `SessionMiddleware`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.datastructures import Headers

from .coordinator import SessionCoordinator
from .util.log import report_problem
from .util.validation import Duration, checked_flag, checked_function
from .web.body import Body
from .web.cookie import SessionCookie, add_cookie, checked_cookie, vary_by_cookie
from .web.request import REFUSAL, RETRY_AFTER_SECONDS, Visit, instance_headers
from .web.service import TIMEOUT_SECONDS, Service, checked_timeout
from .web.session import WebSession

__all__ = ["KEY", "SessionCookie", "SessionMiddleware", "WebSession"]

KEY = "sessionkit.session"
"""Where the WSGI environment has the session."""

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class SessionMiddleware:
    """A WSGI application that gives another one a session for each visitor: `environ["sessionkit.session"]`.

    See `WebSession` for what can be done with it. A request that never looks at it costs no lookup, sets no cookie and
    takes no lock. The checkout that the first look takes lasts until the response's body is closed.

    `coordinator` keeps the sessions. Its cleanup task is started here, and it is closed when the interpreter exits.
    `cookie`: what carries the token; default `SessionCookie()`. Requests of one visitor have the session one after the
    other; with `shared=True` they have it at the same time, and write to one dict. `timeout`: how long a request waits
    for the others, in seconds or as a timedelta; default 10, and 0 for not at all.

    Where the session cannot be had or saved, and the application does not make an answer of its own of that, the
    client gets 503 with `Retry-After`. Where that is because `affinity=True` leaves the session to another process, the
    header `Sessionkit-Instance` names that one, so that a router can send the request there; so it does with a 503 of
    the application's own. Responses that depend on the session say `Vary: Cookie`; those that set a cookie,
    `Cache-Control: private, no-store` in place of what they said.

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
    ) -> None:
        checked_function("app", app)
        self._app = app
        self._cookie = checked_cookie(cookie)
        self._shared = checked_flag("shared", shared)
        self._timeout = checked_timeout(timeout)
        self._service = Service(coordinator)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self._service.look_at(environ)
        visit = Visit(
            self._service.coordinator,
            self._cookie,
            environ.get("HTTP_COOKIE", ""),
            shared=self._shared,
            timeout=self._timeout,
        )
        environ[KEY] = WebSession(visit)
        return _Exchange(environ, start_response, visit).run(self._app)


class _Exchange:
    """One request and its response, whose headers wait for the first part of the body: what an application writes to
    the session before that is saved before the client hears of it.
    """

    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse, visit: Visit) -> None:
        self._environ = environ
        self._start_response = start_response
        self._visit = visit
        self._answer: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Callable[[bytes], object] | None = None

    def run(self, app: WSGIApplication) -> Iterable[bytes]:
        """Have the application answer."""
        try:
            try:
                body = app(self._environ, self.start_response)
                if self._is_done_with(body):
                    self.begin()
                    return body
            except Exception:
                if not self.can_refuse:
                    raise
                body = self.refuse()
        except BaseException:
            self._visit.finish()
            raise
        return _Body(self, body)

    @property
    def has_begun(self) -> bool:
        """Whether the headers were sent."""
        return self._write is not None

    @property
    def can_refuse(self) -> bool:
        """Whether the client can be told that there is no session to be had, and that is what went wrong."""
        return self._visit.failure is not None and not self.has_begun

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExceptionInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """What the application calls."""
        if self.has_begun and exc_info is not None:
            # The server raises it, if the headers are on the wire.
            return self._start_response(status, self._with_cookie(headers), exc_info)
        if self._answer is not None and exc_info is None:
            raise AssertionError("start_response was called a second time, and with no exc_info")
        self._answer = status, headers
        return self._write_first

    def begin(self) -> None:
        """Send the headers, once what the session has so far is saved."""
        if self.has_begun:
            return
        if self._answer is None:
            raise AssertionError("the application has to call start_response before the first part of the body")
        self._visit.save()
        status, headers = self._answer
        if self._visit.failure is not None and status.startswith("500"):
            # Some framework made that of what the session raised.
            raise self._visit.failure
        self._send(status, headers)

    def refuse(self) -> list[bytes]:
        """Answer 503, and give the body for it."""
        report_problem("answered 503: %s", self._visit.failure)
        text = REFUSAL.encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(text))),
            ("Retry-After", str(RETRY_AFTER_SECONDS)),
            ("Cache-Control", "no-store"),
        ]
        self._send("503 Service Unavailable", headers)
        return [] if self._environ.get("REQUEST_METHOD") == "HEAD" else [text]

    def finish(self) -> None:
        """The response is over."""
        self._visit.finish()

    def _send(self, status: str, headers: list[tuple[str, str]]) -> None:
        headers = [*headers, *instance_headers(status, self._visit.failure)]
        self._write = self._start_response(status, self._with_cookie(headers))
        self._visit.headers_sent = True

    def _write_first(self, part: bytes, /) -> object:
        self.begin()
        assert self._write is not None, "it has begun"  # noqa: S101  tells mypy
        return self._write(part)

    def _with_cookie(self, given: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if not self._visit.looked_at:
            return given
        headers = Headers(given)
        vary_by_cookie(headers)
        if self._visit.has_news:
            add_cookie(headers, self._visit.set_cookie())
        return headers.to_wsgi_list()

    def _is_done_with(self, body: object) -> bool:
        """Whether nothing has the session, nor will ask for it, and the body can go out as it is."""
        if self._answer is None or (self._visit.looked_at and self._visit.left is None):
            return False
        wrapper = self._environ.get("wsgi.file_wrapper")
        return type(body) in (list, tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper))


class _Body(Body):
    """A body before whose first part the headers are sent."""

    def __init__(self, exchange: _Exchange, given: Iterable[bytes]) -> None:
        super().__init__(given, exchange.finish)
        self._exchange = exchange

    def begin(self) -> None:
        """Have the first part made, and send the headers; if there is no session to be had, another answer."""
        if self._exchange.has_begun and self._parts is not None:
            return
        try:
            super().begin()
            self._exchange.begin()
        except Exception:
            if not self._exchange.can_refuse:
                raise
            self._parts = iter(self._exchange.refuse())
