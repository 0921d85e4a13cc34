"""Sessions for Flask: `init_app`."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from types import ModuleType
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import click
import flask
import flask.cli
import flask.sessions
from werkzeug.exceptions import ServiceUnavailable
from werkzeug.wsgi import ClosingIterator

from . import SessionCoordinator
from .stores import Store
from .util.log import report_problem
from .util.validation import Duration
from .web.cookie import SameSite, SessionCookie, checked_cookie
from .web.request import RequestSession
from .web.response import REFUSAL, RETRY_AFTER_SECONDS, Body, add_cookie, instance_headers, vary_by_cookie
from .web.service import TIMEOUT_SECONDS, Service, checked_timeout
from .web.session import WebSession, request_of

__all__ = ["CoordinatedSessions", "FlaskSession", "SessionCookie", "init_app", "session"]

EXTENSION = "sessionkit"
"""Under this name, `app.extensions` has the application's coordinator."""

MAX_BUFFERED_BYTES = 65_536
"""A response of Flask's own that says it has no more bytes than this is read into memory, and is no stream any more."""

REQUEST = "sessionkit.request"
"""Where the WSGI environment has the `RequestSession`."""

IS_FINISHED = "sessionkit.is_finished"
"""Where the WSGI environment says that the request is finished as soon as the application has been called."""

CONTENT_HEADERS = (
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
"""The headers that describe a response's content, and are wrong once it has another one."""


def init_app(
    app: flask.Flask,
    coordinator: SessionCoordinator[Any],
    *,
    cookie: SessionCookie | None = None,
    shared: bool = False,
    timeout: Duration = TIMEOUT_SECONDS,
) -> None:
    """Have a coordinator keep `flask.session`, and add `flask sessionkit list|cleanup` to Flask's command line.

    `flask.session` is a `FlaskSession` from then on. The coordinator's cleanup task is started here, and the
    coordinator is closed when the interpreter exits. Call this once the application is configured.

    `cookie`: what carries the token; by default one that takes `SESSION_COOKIE_NAME`, `_DOMAIN`, `_PATH`, `_SAMESITE`
    and `_PARTITIONED` from the configuration, and is `HttpOnly` whatever that says. It is `Secure`, too, unless the
    application is in debug mode already and `SESSION_COOKIE_SECURE` is False: then it is not, and that is warned about.
    (False is Flask's default, so that it says nothing by itself.) For HTTP without debug mode, pass
    `SessionCookie(secure=False)`. `shared` and `timeout` are as `SessionMiddleware` has them. No `SECRET_KEY` is
    needed. Raises `TypeError` or `ValueError` for bad input.
    """
    sessions = CoordinatedSessions(
        coordinator,
        _cookie_of(app) if cookie is None else checked_cookie(cookie),
        shared=shared,
        timeout=checked_timeout(timeout),
    )
    app.session_interface = sessions
    app.extensions[EXTENSION] = coordinator
    app.register_error_handler(SessionUnavailable, _explain)
    app.wsgi_app = _finishing(app.wsgi_app)  # type: ignore[assignment,method-assign]  # as Flask's documentation adds middleware
    app.teardown_request(_finish_with_context)
    app.cli.add_command(_commands)


class FlaskSession(WebSession, flask.sessions.SessionMixin):  # type: ignore[override]  # the mixin's `new` can be set
    """`flask.session`: as Flask's documentation has it, and a `WebSession`, with `resource`, `rotate()` and `close()`.

    `permanent` gives the cookie an end, `PERMANENT_SESSION_LIFETIME` from now; the session ends by the coordinator's
    limits. `modified` need not be set: any change is saved, however deep in the data. `clear()` ends the session, and a
    session that has neither data nor resource left is ended, too. If the session cannot be had or saved, Flask's own
    `ServiceUnavailable` is raised, which an `errorhandler(503)` may give a page; its `__cause__` says why. If that is
    because `affinity=True` leaves the session to another instance, the response has the header `Sessionkit-Instance`.

    The session is given back before the body is sent, or, if the body is a stream, when it is closed. After that it is
    a copy of what it was, for tests to look at.
    """

    def __init__(self, request: RequestSession) -> None:
        super().__init__(request)
        self.modified = False
        """Whether keys were set or removed in this request."""
        self.unavailable = False
        """Whether the session could not be had or saved in this request, and an error page says so: it reads as empty,
        so that the page may be rendered by templates that ask for the session."""

    def clear(self) -> None:
        """End the session, as `close` does: this is how Flask's documentation logs a user out."""
        if self._is_copy:
            self._readable().clear()
        else:
            self.close()

    @property
    def _is_copy(self) -> bool:
        return request_of(self).left is not None and self._request.headers_sent

    def _readable(self) -> dict[str, Any]:
        if self.unavailable:
            return {}
        if self._is_copy and not request_of(self).looked_at:
            # The first look comes after the response.
            request_of(self).left = None
            self.release()
        return super()._readable()

    def _writable(self) -> dict[str, Any] | None:
        self.modified = True
        return self._readable() if self._is_copy else super()._writable()


session = cast(FlaskSession, flask.session)
"""`flask.session` itself, with the type that it has."""


class CoordinatedSessions(flask.sessions.SessionInterface):
    """Flask's session interface, for one coordinator; see `init_app`."""

    def __init__(
        self, coordinator: SessionCoordinator[Any], cookie: SessionCookie, *, shared: bool, timeout: float
    ) -> None:
        self._service = Service(coordinator, shared=shared)
        self._coordinator = coordinator
        self._cookie = cookie
        self._timeout = timeout

    def open_session(self, _app: flask.Flask, request: flask.Request) -> FlaskSession:
        """The session of a request, which nothing has looked at yet."""
        environ = request.environ
        self._service.check_server(environ)
        environ[REQUEST] = request_session = RequestSession(
            self._coordinator,
            self._cookie,
            environ.get("HTTP_COOKIE", ""),
            shared=self._service.shared,
            timeout=self._timeout,
            translate=_unavailable,
        )
        return FlaskSession(request_session)

    def save_session(self, app: flask.Flask, session: flask.sessions.SessionMixin, response: flask.Response) -> None:
        """Save the session before the response is sent."""
        assert isinstance(session, FlaskSession), "open_session makes no others"  # noqa: S101  tells mypy
        request = request_of(session)
        if isinstance(response.response, ClosingIterator) and (response.content_length or inf) <= MAX_BUFFERED_BYTES:
            # Flask makes a stream of its own error pages.
            response.make_sequence()
        stream = None
        # A file that is passed through directly goes to the server as it is.
        if response.is_streamed and not response.direct_passthrough:
            response.response = stream = Body(response.response, request.finish)
            # What the first part does to the session is saved, too, before anything is sent.
            try:
                stream.begin()
            except SessionUnavailable as error:
                self._refuse(app, response, error)
        if request.looked_at:
            if request.failure is None:
                self._save(app, session, response)
            else:
                response.headers.extend(instance_headers(response.status, request.failure.__cause__))
            vary_by_cookie(response.headers)
        request.headers_sent = True
        if stream is None:
            request.finish()
        elif response.response is not stream:
            # There is another answer now.
            stream.close()

    def _save(self, app: flask.Flask, session: FlaskSession, response: flask.Response) -> None:
        request, expires = request_of(session), self.get_expiration_time(app, session)
        try:
            if session.modified and request.left is None and not session and session.resource is None:
                session.close()
            request.save()
        except SessionUnavailable as error:
            # The response says that something was done, and it was not.
            self._refuse(app, response, error)
        if request.has_news or (expires is not None and app.config["SESSION_REFRESH_EACH_REQUEST"]):
            add_cookie(response.headers, request.set_cookie(expires))

    def _refuse(self, app: flask.Flask, response: flask.Response, error: SessionUnavailable) -> None:
        """Make a 503 of the response, in place."""
        refusal = app.make_response(app.handle_user_exception(error))
        response.status, response.response = refusal.status, refusal.response
        for name in CONTENT_HEADERS:
            response.headers.remove(name)
        response.headers.update(refusal.headers)


class SessionUnavailable(ServiceUnavailable):
    """What a view sees if the session cannot be had or saved."""


def _unavailable(error: Exception) -> SessionUnavailable:
    report_problem("answering 503: %s", error)
    return SessionUnavailable(REFUSAL, retry_after=RETRY_AFTER_SECONDS)


def _explain(error: SessionUnavailable) -> flask.typing.ResponseReturnValue:
    session.unavailable = True
    plain = ServiceUnavailable(error.description, retry_after=error.retry_after)
    plain.__cause__ = error.__cause__
    return flask.current_app.handle_user_exception(plain)


def _finishing(app: WSGIApplication) -> WSGIApplication:
    """The application; if it makes no response, the request's session is given back all the same."""

    def wsgi_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[IS_FINISHED] = True
        has_answered = False
        try:
            body = app(environ, start_response)
            has_answered = True
        finally:
            # Another session interface may have been set since.
            request = environ.get(REQUEST)
            if request is not None and not (has_answered and request.headers_sent):
                request.finish()
        return body

    return wsgi_app


def _finish_with_context(_error: BaseException | None) -> None:
    # A context that a test pushed. Other contexts that end may be copies, and their request goes on.
    current = flask.session
    if not flask.request.environ.get(IS_FINISHED) and isinstance(current, FlaskSession):
        request_of(current).finish()


def _cookie_of(app: flask.Flask) -> SessionCookie:
    config = app.config
    name, partitioned = config["SESSION_COOKIE_NAME"], config.get("SESSION_COOKIE_PARTITIONED", False)
    same_site = cast(SameSite, str(config["SESSION_COOKIE_SAMESITE"] or "Lax").title())
    # Flask's default is False, so that only the debug mode tells who means it. Some cookies cannot do without.
    needs_secure = partitioned or same_site == "None" or name.startswith("__")
    return SessionCookie(
        name,
        secure=bool(config["SESSION_COOKIE_SECURE"] or not app.debug or needs_secure),
        same_site=same_site,
        path=config["SESSION_COOKIE_PATH"] or config["APPLICATION_ROOT"] or "/",
        domain=config["SESSION_COOKIE_DOMAIN"] or None,
        partitioned=bool(partitioned),
    )


# ---- The commands


@click.group("sessionkit", cls=flask.cli.AppGroup)
def _commands() -> None:
    """Look after the sessions in this application's store."""


@_commands.command("list")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="List the first N only.")
@click.option("--json", "wants_json", is_flag=True, help="Print a JSON array instead of the table, an object a line.")
def _list(limit: int | None, wants_json: bool) -> None:
    """Which sessions are in the store?"""
    _cli().list_sessions(_store(), limit, wants_json)


@_commands.command("cleanup")
@click.option(
    "--max-age",
    metavar="DURATION",
    help="Also remove sessions that have been idle for more than this, such as 90s or 12h.",
)
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object instead.")
def _cleanup(max_age: str | None, dry_run: bool, wants_json: bool) -> None:
    """Remove expired sessions, which servers do themselves while they run."""
    cli = _cli()
    age = None if max_age is None else cli.parse_duration(max_age)
    cli.clean_up(_store(), age, dry_run, wants_json)


def _cli() -> ModuleType:
    # Imported here, because what the commands print with is another extra.
    try:
        from .cli import sessions
    except ImportError as error:
        raise click.ClickException(
            f"these commands need another extra ({error}); run: pip install 'sessionkit[cli]'"
        ) from None
    return sessions


def _store() -> Store:
    store: Store | None = flask.current_app.extensions[EXTENSION].store
    if store is None:
        raise click.ClickException(
            "this application has no session store: its sessions are in the memory of its server, where no other "
            "command sees them. Give the coordinator one, such as SessionCoordinator(store=SQLiteStore('sessions.db'))"
        )
    return store
