"""Sessions for Flask: `init_app`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import flask
import flask.sessions
from werkzeug.exceptions import ServiceUnavailable
from werkzeug.wsgi import ClosingIterator

from .coordinator import SessionCoordinator
from .flask_cli import EXTENSION, commands
from .util.log import report_problem
from .util.validation import Duration, checked_flag
from .web.body import Body
from .web.cookie import SameSite, SessionCookie, add_cookie, checked_cookie, vary_by_cookie
from .web.request import REFUSAL, RETRY_AFTER_SECONDS, UNAVAILABLE, Visit, instance_headers
from .web.service import TIMEOUT_SECONDS, Service, checked_timeout
from .web.session import WebSession

__all__ = ["CoordinatedSessions", "FlaskSession", "SessionCookie", "init_app", "session"]

SMALL = 65_536
"""Up to how many bytes a response is no stream, whatever it is made of, if it says how many they are."""

VISIT = "sessionkit.visit"
"""Where the WSGI environment has the request's visit."""

IS_FINISHED = "sessionkit.is_finished"
"""Where the WSGI environment says that the visit is finished when the application has been called."""

OF_ITS_CONTENT = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Language",
    "Content-Length",
    "Content-Range",
    "Content-Type",
    "ETag",
    "Last-Modified",
    "Location",
)
"""What a response says of its content, and is not true of another one."""


def init_app(
    app: flask.Flask,
    coordinator: SessionCoordinator[Any],
    *,
    cookie: SessionCookie | None = None,
    shared: bool = False,
    timeout: Duration = TIMEOUT_SECONDS,
) -> None:
    """Have `flask.session` kept by a coordinator, and add `flask sessionkit list|cleanup` to Flask's command line.

    `flask.session` is a `FlaskSession`. The coordinator's cleanup task is started here, and it is closed when the
    interpreter exits. Call it once the application is configured.

    `cookie`: what carries the token; by default a secure one that takes `SESSION_COOKIE_NAME`, `_DOMAIN`, `_PATH` and
    `_SAMESITE` from the configuration, and is `HttpOnly` and `Secure` whatever that says. For development without
    HTTPS, elsewhere than on localhost, pass `SessionCookie(secure=False)`. `shared` and `timeout` are as
    `SessionMiddleware` has them. No `SECRET_KEY` is needed.
    """
    sessions = CoordinatedSessions(
        coordinator,
        _cookie_of(app) if cookie is None else checked_cookie(cookie),
        shared=checked_flag("shared", shared),
        timeout=checked_timeout(timeout),
    )
    app.session_interface = sessions
    app.extensions[EXTENSION] = coordinator
    app.register_error_handler(SessionUnavailable, _explain)
    app.wsgi_app = _finishing(app.wsgi_app)  # type: ignore[assignment,method-assign]  # as Flask's documentation adds middleware
    app.teardown_request(_finish_with_context)
    app.cli.add_command(commands)


class FlaskSession(WebSession, flask.sessions.SessionMixin):  # type: ignore[override]  # the mixin's `new` can be set
    """`flask.session`: as Flask's documentation has it, and a `WebSession`, with `resource`, `rotate()` and `close()`.

    `permanent` gives the cookie an end, `PERMANENT_SESSION_LIFETIME` from now; when the session ends is up to the
    coordinator. `modified` need not be set: what changes, however deep, is saved. `clear()` ends the session, as a
    session without data and resource is ended. Where the session cannot be had or saved, Flask's own
    `ServiceUnavailable` is raised, which an `errorhandler(503)` may give a page; its `__cause__` says why. Where that
    is because `affinity=True` leaves the session to another process, the response has the header `Sessionkit-Instance`.

    The session is given back before the body goes out, or, where that is a stream, when it is closed. After that it is
    a copy of what it was, for tests to look at.
    """

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self.modified = False
        """Whether keys were set or removed in this request."""

    def clear(self) -> None:
        """End the session, as `close` does: it is how Flask's documentation logs out."""
        if self._is_a_copy:
            self._readable().clear()
        else:
            self.close()

    @property
    def _is_a_copy(self) -> bool:
        return self._visit.left is not None and self._visit.headers_sent

    def _readable(self) -> dict[str, Any]:
        visit = self._visit
        if isinstance(visit, FlaskVisit) and visit.is_explained:
            return {}
        if self._is_a_copy and not visit.looked_at:
            # The first look comes after the response.
            visit.left = None
            self.release()
        return super()._readable()

    def _writable(self) -> dict[str, Any] | None:
        self.modified = True
        return self._readable() if self._is_a_copy else super()._writable()


session = cast(FlaskSession, flask.session)
"""`flask.session` itself, as type checkers should see it."""


class CoordinatedSessions(flask.sessions.SessionInterface):
    """Flask's session interface, for one coordinator; see `init_app`."""

    def __init__(
        self, coordinator: SessionCoordinator[Any], cookie: SessionCookie, *, shared: bool, timeout: float
    ) -> None:
        self._service = Service(coordinator)
        self._cookie = cookie
        self._shared = shared
        self._timeout = timeout

    def open_session(self, _app: flask.Flask, request: flask.Request) -> FlaskSession:
        """The session of a request, which nobody has looked at yet."""
        self._service.look_at(request.environ)
        header = request.environ.get("HTTP_COOKIE", "")
        visit = FlaskVisit(self._service.coordinator, self._cookie, header, shared=self._shared, timeout=self._timeout)
        request.environ[VISIT] = visit
        return FlaskSession(visit)

    def save_session(self, app: flask.Flask, session: flask.sessions.SessionMixin, response: flask.Response) -> None:
        """Save the session before the response goes out."""
        assert isinstance(session, FlaskSession), "open_session makes no others"  # noqa: S101  tells mypy
        visit = session._visit
        if isinstance(response.response, ClosingIterator) and (response.content_length or inf) <= SMALL:
            # Flask makes a stream of its own error pages.
            response.make_sequence()
        stream = None
        # A file that is passed through directly goes to the server as it is.
        if response.is_streamed and not response.direct_passthrough:
            response.response = stream = Body(response.response, visit.finish)
            # What it does to the session for its first part is to be saved too, before anything goes out.
            try:
                stream.begin()
            except SessionUnavailable as error:
                self._refuse(app, response, error)
        if visit.looked_at:
            if visit.failure is None:
                self._save(app, session, response)
            else:
                response.headers.extend(instance_headers(response.status, visit.failure.__cause__))
            vary_by_cookie(response.headers)
        visit.headers_sent = True
        if stream is None:
            visit.finish()
        elif response.response is not stream:
            # There is another answer now.
            stream.close()

    def _save(self, app: flask.Flask, session: FlaskSession, response: flask.Response) -> None:
        visit, expires = session._visit, self.get_expiration_time(app, session)
        try:
            if session.modified and visit.left is None and not session and session.resource is None:
                session.close()
            visit.save()
        except SessionUnavailable as error:
            # The response says that something was done, which was not.
            self._refuse(app, response, error)
        if visit.has_news or (expires is not None and app.config["SESSION_REFRESH_EACH_REQUEST"]):
            add_cookie(response.headers, visit.set_cookie(expires))

    def _refuse(self, app: flask.Flask, response: flask.Response, error: SessionUnavailable) -> None:
        """Make another response of this one."""
        refusal = app.make_response(app.handle_user_exception(error))
        response.status, response.response = refusal.status, refusal.response
        for name in OF_ITS_CONTENT:
            response.headers.remove(name)
        response.headers.update(refusal.headers)


class SessionUnavailable(ServiceUnavailable):
    """What a view is raised where the session cannot be had."""


class FlaskVisit(Visit):
    """A visit whose failures Flask makes pages of."""

    is_explained = False
    """Whether such a page is being made: it may ask for the session again, and finds nothing in it."""

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        try:
            yield
        except UNAVAILABLE as error:
            report_problem("answering 503: %s", error)
            self.failure = SessionUnavailable(REFUSAL, retry_after=RETRY_AFTER_SECONDS)
            raise self.failure from error


def _explain(error: SessionUnavailable) -> flask.typing.ResponseReturnValue:
    flask.request.environ[VISIT].is_explained = True
    plain = ServiceUnavailable(error.description, retry_after=error.retry_after)
    plain.__cause__ = error.__cause__
    return flask.current_app.handle_user_exception(plain)


def _finishing(app: WSGIApplication) -> WSGIApplication:
    """The application, with an end to each visit for which it made no response."""

    def wsgi_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[IS_FINISHED] = True
        has_answered = False
        try:
            body = app(environ, start_response)
            has_answered = True
        finally:
            # Another session interface may have been set since.
            visit = environ.get(VISIT)
            if visit is not None and not (has_answered and visit.headers_sent):
                visit.finish()
        return body

    return wsgi_app


def _finish_with_context(_error: BaseException | None) -> None:
    # A context that a test pushed. Others that end may be copies, and their request goes on.
    current = flask.session
    if not flask.request.environ.get(IS_FINISHED) and isinstance(current, FlaskSession):
        current._visit.finish()


def _cookie_of(app: flask.Flask) -> SessionCookie:
    config = app.config
    return SessionCookie(
        config["SESSION_COOKIE_NAME"],
        same_site=cast(SameSite, str(config["SESSION_COOKIE_SAMESITE"] or "Lax").title()),
        path=config["SESSION_COOKIE_PATH"] or config["APPLICATION_ROOT"],
        domain=config["SESSION_COOKIE_DOMAIN"] or None,
    )
