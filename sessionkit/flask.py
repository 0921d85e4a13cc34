"""Sessions for Flask: `init_app`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from functools import partial
from math import inf
from types import ModuleType
from typing import Any, TypeVar, cast
from uuid import UUID
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import click
import flask
import flask.cli
import flask.json.tag
import flask.sessions
import flask.testing
from markupsafe import Markup
from werkzeug.exceptions import ServiceUnavailable
from werkzeug.wsgi import ClosingIterator

from . import InvalidSessionError, SessionBusyError, SessionCoordinator
from .stores import Store
from .util.jsontext import Further, complaint_about, encode_exactly
from .util.log import report_failure, report_problem, short_repr
from .util.validation import Duration
from .web.cookie import SameSite, SessionCookie, checked_cookie
from .web.data import Form, RequestData
from .web.request import RequestSession
from .web.response import REFUSAL, RETRY_AFTER_SECONDS, Body, add_cookie, explain_failure, refusal, vary_by_cookie
from .web.service import TIMEOUT_SECONDS, Service, checked_timeout
from .web.session import WebSession, request_of

__all__ = ["CoordinatedSessions", "FlaskSession", "SessionCookie", "init_app", "read_only", "session"]

V = TypeVar("V", bound=Callable[..., Any])

EXTENSION = "sessionkit"
"""Under this name, `app.extensions` has the application's coordinator."""

MAX_BUFFERED_BYTES = 65_536
"""A response of Flask's own that says it has no more bytes than this is read into memory, and is no stream any more."""

REQUEST = "sessionkit.request"
"""Where the WSGI environment has the `RequestSession`."""

PERMANENT = "_permanent"
"""Where Flask keeps `permanent` in a session's data."""

READ_ONLY = "_sessionkit_read_only"
"""The attribute of views that only read the session."""

FLASHES = "_flashes"
"""Where Flask keeps the messages of `flash` in a session's data."""

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

    `app.test_client()` gets a class of its own, on top of the application's, whose `session_transaction()` gives the
    session back however its block ends.
    """
    sessions = CoordinatedSessions(
        coordinator,
        _cookie_of(app) if cookie is None else checked_cookie(cookie),
        shared=shared,
        timeout=checked_timeout(timeout),
    )
    app.session_interface = sessions
    app.extensions[EXTENSION] = coordinator
    app.test_client_class = _with_transactions(app.test_client_class or flask.testing.FlaskClient)
    app.wsgi_app = _finishing(app.wsgi_app)  # type: ignore[assignment,method-assign]  # as Flask's documentation adds middleware
    app.teardown_request(_finish_with_context)
    app.cli.add_command(_commands)


def read_only(view: V) -> V:
    """A decorator for views that only look at the session, such as a page that polls, or a stream of events.

    The view sees a snapshot: it waits for no other request of the visitor and keeps none waiting, does not touch the
    session, and sets no cookie. Changing the session raises `ReadOnlySessionError`; this holds for `before_request`
    functions and templates too. Flash messages are left for the next request that is not read-only.

    For view functions, with `@app.route` above it or below, classes of views, and their methods. A look that comes
    before Flask knows the view, as in a URL converter, checks the session out.
    """
    if not callable(view):
        raise TypeError(f"read_only marks a view, which is a function or a class, not {short_repr(view)}")
    setattr(view, READ_ONLY, True)
    return view


class FlaskSession(WebSession, flask.sessions.SessionMixin):  # type: ignore[override]  # the mixin's `new` can be set
    """`flask.session`: as Flask's documentation has it, and a `WebSession`, with `resource`, `rotate()` and `close()`.

    It holds what Flask's own sessions can hold: besides what JSON can say, tuple, bytes, `Markup`, `UUID` and datetime.
    These come back as they were, from memory and from every store; anything else is refused, by its exact type and with
    its path (`InvalidSessionError`), before the response is sent. In the session's `data`, which other code sees, they
    stand as Flask's tagged JSON (`flask.json.tag`).

    `permanent` gives the cookie an end, `PERMANENT_SESSION_LIFETIME` from now, and the session that timeout; set to
    False, it has the coordinator's timeout again. The cookie is sent again when `permanent` changes, and while it is
    true: with each response that looks at the session or, if `SESSION_REFRESH_EACH_REQUEST` is False, at most once in a
    tenth of its lifetime. `permanent` alone makes no session: it is kept in the request until something else is
    written. `modified` need not be set: any change is saved, however deep in the data. `clear()` ends the session, and
    a session that has neither data, apart from `permanent`, nor resource left is ended, too.

    If the session cannot be had or saved, Flask's own `ServiceUnavailable` is raised, once; its `__cause__` says why.
    After that it reads as empty, and changes are ignored and logged, so that error pages can be made. The client gets
    503 with `Retry-After`, and the page of an `errorhandler(503)` if there is one, which may choose another status but
    500. So may a view that catches the error, unless a change was ignored. If `affinity=True` leaves the session to
    another instance, a 503 has the header `Sessionkit-Instance`.

    The session is given back before the body is sent, or, if the body is a stream, when that was read to its end or is
    closed. After that it is a copy of what it was, for tests to look at.
    """

    def __init__(self, request: RequestSession, timeout: float, permanent_timeout: Duration) -> None:
        super().__init__(request)
        self._timeout = timeout
        self._permanent_timeout = permanent_timeout
        self.modified = False
        """Whether keys were set or removed in this request."""
        # What stands for data while there is no session: `permanent`, which is not worth one.
        self._kept: dict[str, Any] = {}
        # Whether the session was permanent before it was changed; None if it was not changed.
        self._was_permanent: bool | None = None

    @property
    def permanent(self) -> bool:
        """Whether the session outlives the browser, and lives for `PERMANENT_SESSION_LIFETIME` while it is idle.

        A request that only reads may set it to what it is already, or while there is no session: a `before_request`
        function often sets it for each request.
        """
        return bool(self.get(PERMANENT, False))

    @permanent.setter
    def permanent(self, value: bool) -> None:
        value = bool(value)
        if self._only_reads and (self._request.snapshot is None or value is self.permanent):
            return
        self[PERMANENT] = value
        if not self._is_copy:
            self.set_timeout(self._permanent_timeout if value else self._timeout)

    @property
    def permanent_changed(self) -> bool:
        """Whether `permanent` is another in this request than it was before."""
        return self._was_permanent not in (None, self.permanent)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that is worth a session: no data but `permanent`, and no resource."""
        return self.keys() <= {PERMANENT} and self.resource is None

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.modified = True

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.modified = True

    def update(self, *others: Any, **values: Any) -> None:
        """As a dict's `update`. If it makes the session, `resource_factory` finds all of these values in its data."""
        super().update(*others, **values)
        self.modified = True

    def pop(self, key: str, *default: Any) -> Any:
        """As a dict's `pop`."""
        self.modified |= key in self
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        """As a dict's `popitem`: the last that came in goes out first."""
        self.modified |= len(self) > 0
        return super().popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As a dict's `setdefault`."""
        self.modified |= key not in self
        return super().setdefault(key, default)

    def clear(self) -> None:
        """End the session, as `close` does: this is how Flask's documentation logs a user out."""
        if self._is_copy or (self._only_reads and not self):
            self._readable().clear()
        else:
            self.close()
        self._kept.clear()
        self.modified = True

    @property
    def _is_copy(self) -> bool:
        return request_of(self).left is not None and self._request.headers_sent

    def _readable(self) -> RequestData | dict[str, Any]:
        request = request_of(self)
        if self._is_copy and not request.looked_at:
            # The first look comes after the response.
            request.left = None
            self.release()
        data = super()._readable()
        if request.reader is not None:
            # Showing them would be a change.
            data.pop(FLASHES, None)
        return data if data or request.failure is not None else self._kept

    def _writable(self) -> RequestData | dict[str, Any] | None:
        data = self._readable() if self._is_copy else super()._writable()
        if self._was_permanent is None:
            self._was_permanent = bool(data and data.get(PERMANENT))
        return data

    def _create(self, data: dict[str, Any]) -> None:
        data = self._kept | data
        if data.keys() <= {PERMANENT}:
            self._kept = data
        else:
            super()._create(data)
            self._kept = {}
            if data.get(PERMANENT):
                self.set_timeout(self._permanent_timeout)


session = cast(FlaskSession, flask.session)
"""`flask.session` itself, with the type that it has."""


class TagDateTime(flask.json.tag.TagDateTime):
    """As Flask's own, and microseconds and offset are kept."""

    __slots__ = ()

    def to_json(self, value: datetime) -> str:
        return value.isoformat()

    def to_python(self, value: str) -> datetime:
        return datetime.fromisoformat(value)


class TaggedForm(Form):
    """How the values of `flask.session` stand in a session's data: as the JSON with tags of Flask's own sessions."""

    def __init__(self) -> None:
        self._tagger = flask.json.tag.TaggedJSONSerializer()
        self._tagger.register(TagDateTime, force=True, index=0)

    def dump(self, key: str, value: Any, session_id: str) -> Any:
        if _needs_no_tag(key, value):
            return value
        # Flask's tagger takes subclasses, and gives back their parents.
        complaint = complaint_about({key: value}, session_id, _FURTHER)
        if complaint is not None:
            raise InvalidSessionError(complaint)
        return self._tagger.tag(value)

    def load(self, key: str, text: str) -> Any:
        value = super().load(key, text)
        return self._untagged(value) if _TAG_BEGINS in text else value

    def _untagged(self, value: Any) -> Any:
        if type(value) is list:
            return [self._untagged(item) for item in value]
        if type(value) is not dict:
            return value
        inner = {key: self._untagged(item) for key, item in value.items()}
        try:
            return self._tagger.untag(inner)
        except (TypeError, ValueError):
            # No request has put it there: it is no tag.
            return inner


def _needs_no_tag(key: str, value: Any) -> bool:
    """Whether JSON gives the value back as it was, and no dict in it looks like a tag; all of this is done in C."""
    try:
        text, _, is_same = encode_exactly({key: value})
    except (TypeError, ValueError, RecursionError):
        return False
    return is_same and _TAG_BEGINS not in text


def _nothing_wrong(_: object) -> None:
    pass


def _wrong_datetime(value: datetime) -> str | None:
    if type(value.tzinfo) in (type(None), timezone):
        back = datetime.fromisoformat(value.isoformat())
        if (back, back.fold, back.tzname()) == (value, value.fold, value.tzname()):
            return None
    return f"{short_repr(value)} would lose its time zone or its fold; use value.astimezone(datetime.UTC)"


_FURTHER: Further = {
    tuple: _nothing_wrong,
    bytes: _nothing_wrong,
    Markup: _nothing_wrong,
    UUID: _nothing_wrong,
    datetime: _wrong_datetime,
}
_TAG_BEGINS = '{" '
_TAGGED = TaggedForm()


class CoordinatedSessions(flask.sessions.SessionInterface):
    """Flask's session interface, for one coordinator; see `init_app`."""

    def __init__(
        self, coordinator: SessionCoordinator[Any], cookie: SessionCookie, *, shared: bool, timeout: float
    ) -> None:
        self._service = Service(coordinator, shared=shared)
        self._coordinator = coordinator
        self._cookie = cookie
        self._timeout = timeout

    def open_session(self, app: flask.Flask, request: flask.Request) -> FlaskSession:
        """The session of a request, which nothing has looked at yet."""
        environ = request.environ
        self._service.check_server(environ)
        environ[REQUEST] = request_session = RequestSession(
            self._coordinator,
            self._cookie,
            environ.get("HTTP_COOKIE", ""),
            shared=self._service.shared,
            # The transaction, which may have the session, goes on when this request is over.
            timeout=0 if _in_transaction.get() else self._timeout,
            find_reader=None if _is_matched(request) else partial(_reader_of, app, request),
            translate=_unavailable,
            form=_TAGGED,
        )
        return FlaskSession(request_session, self._coordinator.config.session_timeout, app.permanent_session_lifetime)

    def save_session(self, app: flask.Flask, session: flask.sessions.SessionMixin, response: flask.Response) -> None:
        """Save the session before the response is sent."""
        assert isinstance(session, FlaskSession), "open_session makes no others"  # noqa: S101  tells mypy
        request = request_of(session)
        if isinstance(response.response, ClosingIterator) and (response.content_length or inf) <= MAX_BUFFERED_BYTES:
            # Flask makes a stream of its own error pages.
            response.make_sequence()
        stream = None
        is_wrong = False
        try:
            # A file that is passed through directly goes to the server as it is.
            if response.is_streamed and not response.direct_passthrough:
                response.response = stream = Body(response.response, request.finish)
                # What the first part does to the session is saved, too, before anything is sent.
                stream.begin()
            if request.looked_at and request.failure is None:
                if session.modified and request.left is None and session.is_empty:
                    session.close()
                if stream is None:
                    request.conclude()
                else:
                    request.save()
        except ServiceUnavailable as error:
            if error is not request.failure:
                raise
            # The response says that something was done, and it was not.
            is_wrong = True
        if isinstance(request.failure, ServiceUnavailable):
            if is_wrong or request.is_hidden_by(response.status):
                _refuse(app, response, request)
            explain_failure(response.headers, response.status, request.failure.__cause__)
        if request.looked_at:
            self._add_headers(app, session, response)
        request.headers_sent = True
        if stream is None:
            request.finish()
        elif response.response is not stream:
            # There is another answer now.
            stream.close()

    def _add_headers(self, app: flask.Flask, session: FlaskSession, response: flask.Response) -> None:
        request = request_of(session)
        vary_by_cookie(response.headers)
        lifetime: float | None = self._cookie.max_age
        expires = self.get_expiration_time(app, session)
        must_refresh = session.permanent_changed
        if expires is not None:
            lifetime = app.permanent_session_lifetime.total_seconds()
            must_refresh |= app.config["SESSION_REFRESH_EACH_REQUEST"]
        # After a failure, the session does not say whether it is permanent.
        may_refresh = request.has_token and request.failure is None
        if request.has_news or (may_refresh and (must_refresh or request.is_due(lifetime))):
            add_cookie(response.headers, request.set_cookie(expires, dated=lifetime is not None))


def _refuse(app: flask.Flask, response: flask.Response, request: RequestSession) -> None:
    """Make a 503 of the response, in place, or what the application's error handler makes of that."""
    failure = cast(ServiceUnavailable, request.failure)
    try:
        page = app.make_response(app.handle_http_exception(failure))
    except Exception:  # noqa: BLE001  the client gets 503 all the same
        report_failure("the application's error page for 503 failed")
        page = app.make_response(failure)
    response.response = page.response
    response.status = f"{failure.code} {failure.name}" if request.is_hidden_by(page.status) else page.status
    for name in CONTENT_HEADERS:
        response.headers.remove(name)
    response.headers.update(page.headers)


def _is_matched(request: flask.Request) -> bool:
    """Whether the view is known when the session is opened: then a test opens it, to change it before a request."""
    return request.url_rule is not None or request.routing_exception is not None


def _reader_of(app: flask.Flask, request: flask.Request) -> str | None:
    """The view of the request, if it only reads."""
    view = app.view_functions.get(request.endpoint or "")
    kind = getattr(view, "view_class", None)
    method = request.method.lower()
    if method == "head" and not hasattr(kind, method):
        method = "get"
    marked = any(getattr(each, READ_ONLY, False) for each in (view, kind, getattr(kind, method, None)))
    return f"the view {request.endpoint!r}" if marked else None


def _unavailable(error: Exception) -> ServiceUnavailable:
    if _in_transaction.get() and isinstance(error, SessionBusyError):
        why = "a session_transaction() of this thread has the session: leave its block before the next request"
        error.add_note(why)
        report_problem("answering 503: %s; %s", error, why)
    else:
        report_problem("answering 503: %s", error)
    return ServiceUnavailable(REFUSAL, retry_after=RETRY_AFTER_SECONDS)


def _finishing(app: WSGIApplication) -> WSGIApplication:
    """The application; if it makes no response, the request's session is given back all the same.

    If it makes none after a failure of the session, or one that was not finished, the client gets 503.
    """

    def wsgi_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[IS_FINISHED] = True
        has_answered = False

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            failure = _unsent_failure(environ)
            if failure is not None and not has_answered:
                # An `after_request` function failed, for the error page, too: Flask sends that as it is.
                raise failure
            return start_response(status, headers, *exc_info)

        try:
            body = app(environ, start)
            has_answered = True
        except Exception as error:
            failure = _unsent_failure(environ)
            if failure is None:
                raise
            if error is not failure:
                report_failure("answering 503: the session failed, and then the application did")
            headers, text = refusal()
            start_response("503 Service Unavailable", headers)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [text]
        finally:
            # Another session interface may have been set since.
            request = environ.get(REQUEST)
            if request is not None and not (has_answered and request.headers_sent):
                request.finish()
        return body

    return wsgi_app


def _unsent_failure(environ: WSGIEnvironment) -> Exception | None:
    """Why the request cannot have its session, if no response says so yet."""
    request: RequestSession | None = environ.get(REQUEST)
    return None if request is None or request.headers_sent else request.failure


def _finish_with_context(_error: BaseException | None) -> None:
    # A context that a test pushed. Other contexts that end may be copies, and their request goes on.
    current = flask.session
    if not flask.request.environ.get(IS_FINISHED) and isinstance(current, FlaskSession):
        request_of(current).finish()


# ---- The test client


_in_transaction: ContextVar[bool] = ContextVar("_in_transaction", default=False)
"""Whether a `session_transaction()` is under way: a request within it would wait for what cannot come."""


def _with_transactions(client_class: type[flask.testing.FlaskClient]) -> type[flask.testing.FlaskClient]:
    """A test client whose `session_transaction()` gives the session back however its block ends."""

    class Client(client_class):  # type: ignore[misc,valid-type]  # mypy wants to know the class
        @contextmanager
        def session_transaction(self, *args: Any, **kwargs: Any) -> Iterator[flask.sessions.SessionMixin]:
            session = None
            outer = _in_transaction.get()
            try:
                with super().session_transaction(*args, **kwargs) as session:
                    _in_transaction.set(True)
                    yield session
            finally:
                _in_transaction.set(outer)
                if isinstance(session, FlaskSession):
                    request_of(session).finish()

    return Client


# ---- The configuration


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
