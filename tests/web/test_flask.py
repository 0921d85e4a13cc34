"""`flask.session` on a coordinator: what Flask's documentation says of it, and what is ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import flask.testing
import pytest
from flask.sessions import SecureCookieSession
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, ServiceUnavailable

import sessionkit.flask
from sessionkit import CoordinatorConfig, RemovalCause, SessionBusyError, SessionCoordinator
from sessionkit.flask import SessionCookie, session
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.web.cookie import id_of, new_token

from ..helpers.support import GIVE_BACK, LEASE, RELEASE, WAIT, Closings, WatchedStore, in_thread
from ..helpers.web import COOKIE

CONFIG = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=3)


@pytest.fixture
def closings() -> Closings:
    return Closings()


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory, closings: Closings) -> SessionCoordinator[Any]:
    return session_coordinator(CONFIG, on_close=closings)


@pytest.fixture
def app(coordinator: SessionCoordinator[Any]) -> flask.Flask:
    return site(coordinator)


def site(coordinator: SessionCoordinator[Any], **options: Any) -> flask.Flask:
    """An application with a few pages, as Flask's tutorial has them."""
    app = flask.Flask(__name__)
    sessionkit.flask.init_app(app, coordinator, **options)

    @app.get("/")
    def index() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    @app.get("/look")
    def look() -> str:
        return json.dumps(dict(session))

    @app.get("/nothing")
    def nothing() -> str:
        return "nothing"

    @app.get("/login/<user>")
    def login(user: str) -> str:
        session.clear()
        session["user"] = user
        return "in"

    @app.get("/rotate")
    def rotate() -> str:
        session.rotate()
        return "rotated"

    @app.get("/logout")
    def logout() -> flask.typing.ResponseReturnValue:
        session.clear()
        return flask.redirect("/")

    @app.get("/flash")
    def give_flash() -> flask.typing.ResponseReturnValue:
        flask.flash("saved", "info")
        flask.flash(Markup("<b>bold</b>"))
        return flask.redirect("/flashed")

    @app.get("/flashed")
    def flashed() -> str:
        return json.dumps(flask.get_flashed_messages(with_categories=True))

    @app.get("/permanent")
    def permanent() -> str:
        session.permanent = True
        return "permanent"

    @app.get("/nested")
    def nested() -> str:
        session.setdefault("cart", []).append("apple")
        return json.dumps(session["cart"])

    @app.get("/breaks")
    def breaks() -> str:
        session["n"] = 100
        raise ValueError("application error")

    @app.get("/stream")
    def stream() -> flask.Response:
        def parts() -> Iterator[str]:
            for _ in range(3):
                session["n"] = session.get("n", 0) + 1
                yield str(session["n"])

        session.setdefault("n", 0)
        return flask.Response(flask.stream_with_context(parts()))

    return app


# ---- As Flask's documentation has it


def test_a_visitor_has_a_session(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """From request to request, each visitor his own, and no SECRET_KEY is needed."""
    one, two = app.test_client(), app.test_client()
    assert [one.get("/").text for _ in range(3)] == ["1", "2", "3"]
    assert two.get("/").text == "1"
    cookie = one.get_cookie(COOKIE)
    assert cookie is not None
    assert cookie.value is not None
    assert coordinator.get_session(id_of(cookie.value)).data == {"n": 3}
    assert coordinator.stats().checked_out == 0
    assert app.secret_key is None


def test_the_headers(app: flask.Flask) -> None:
    """The cookie once, when it is new; `Vary` where the view looks at the session; nothing where it does not."""
    client = app.test_client()
    headers = client.get("/").headers
    assert set(headers["Set-Cookie"].split("; ")[1:]) == {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"}
    assert (headers["Vary"], headers["Cache-Control"]) == ("Cookie", "private, no-store")
    headers = client.get("/").headers
    assert (headers["Vary"], headers.get("Set-Cookie"), headers.get("Cache-Control")) == ("Cookie", None, None)
    assert {"Vary", "Set-Cookie", "Cache-Control"}.isdisjoint(client.get("/nothing").headers.keys())


def test_who_only_looks_makes_no_session(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Nor does a page that renders a template, whose context has the session."""

    @app.get("/template")
    def template() -> str:
        return flask.render_template_string("{{ session.get('n') }}")

    client = app.test_client()
    assert client.get("/look").text == "{}"
    assert client.get("/template").text == "None"
    assert not client.get_cookie(COOKIE)
    assert len(coordinator) == 0


def test_what_is_changed_deep_in_the_data_is_kept(app: flask.Flask) -> None:
    """Without `modified = True`; setting it does no harm."""
    client = app.test_client()
    assert [client.get("/nested").text for _ in range(2)] == ['["apple"]', '["apple", "apple"]']
    with app.test_request_context():
        assert not session.modified
        assert not session.new
        session["a"] = 1
        assert session.modified
        assert session.new
        assert session.accessed
        session.modified = True
        session.close()


def test_logging_in_as_the_tutorial_does_gives_a_new_token(
    app: flask.Flask, coordinator: SessionCoordinator[Any], closings: Closings
) -> None:
    """`session.clear()` ends the session, and the next write makes another one: the old token is dead."""
    client, thief = app.test_client(), app.test_client()
    client.get("/")
    old = client.get_cookie(COOKIE)
    assert old is not None
    thief.set_cookie(COOKIE, old.value or "")
    assert client.get("/login/ada").text == "in"
    assert json.loads(client.get("/look").text) == {"user": "ada"}
    assert thief.get("/look").text == "{}"
    assert [cause for _, cause in closings] == [RemovalCause.CLOSED]
    assert len(coordinator) == 1


def test_logging_out_as_the_tutorial_does_ends_the_session(
    app: flask.Flask, coordinator: SessionCoordinator[Any]
) -> None:
    """And takes the cookie."""
    client = app.test_client()
    client.get("/")
    client.get("/logout")
    assert client.get_cookie(COOKIE) is None
    assert len(coordinator) == 0
    # There is nothing to log out of any more.
    assert "Set-Cookie" not in client.get("/logout").headers


def test_rotation_keeps_the_data(app: flask.Flask) -> None:
    """Another token for the same session."""
    client, thief = app.test_client(), app.test_client()
    client.get("/")
    old = client.get_cookie(COOKIE)
    assert old is not None
    thief.set_cookie(COOKIE, old.value or "")
    client.get("/rotate")
    assert client.get("/").text == "2"
    assert thief.get("/look").text == "{}"


def test_flash_messages(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Are there once, with their categories; a session that had nothing else is gone with them."""
    client = app.test_client()
    assert json.loads(client.get("/flash", follow_redirects=True).text) == [
        ["info", "saved"],
        ["message", "<b>bold</b>"],
    ]
    assert client.get("/flashed").text == "[]"
    assert len(coordinator) == 0
    client.get("/")
    client.get("/flash", follow_redirects=True)
    assert client.get("/look").text == '{"n": 1}'


def test_flash_messages_survive_a_restart(session_coordinator: CoordinatorFactory, tmp_path: Path) -> None:
    """And are what they were: tuples, and Markup that is not escaped."""
    first = site(session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db")))
    client = first.test_client()
    client.get("/flash")
    cookie = client.get_cookie(COOKIE)
    assert cookie is not None
    first.extensions["sessionkit"].close()
    second = site(session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db"))).test_client()
    second.set_cookie(COOKIE, cookie.value or "")
    with second:
        second.get("/look")
        assert session["_flashes"] == [("info", "saved"), ("message", Markup("<b>bold</b>"))]
        assert type(session["_flashes"][1][1]) is Markup
    assert json.loads(second.get("/flashed").text) == [["info", "saved"], ["message", "<b>bold</b>"]]


def test_a_session_with_a_resource_stays_when_its_data_is_empty(session_coordinator: CoordinatorFactory) -> None:
    """Only `clear()` and `close()` end a live object."""
    coordinator = session_coordinator(CONFIG, resource_factory=lambda _: "live")
    app = site(coordinator)

    @app.get("/resource")
    def resource() -> str:
        return str(session.resource)

    client = app.test_client()
    client.get("/flash", follow_redirects=True)
    assert client.get("/look").text == "{}"
    assert client.get("/resource").text == "live"
    client.get("/logout")
    assert client.get("/resource").text == "None"


def test_permanent_sessions(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Their cookie has an end, which each response that looks moves on, unless the configuration says no."""
    app.config["PERMANENT_SESSION_LIFETIME"] = timedelta(hours=2)
    client = app.test_client()
    assert "Expires=" not in client.get("/").headers["Set-Cookie"]
    first = client.get("/permanent").headers["Set-Cookie"]
    assert "Expires=" in first
    refreshed = client.get("/look").headers
    assert refreshed["Set-Cookie"].partition(";")[0] == first.partition(";")[0]
    assert refreshed["Cache-Control"] == "private, no-store"
    assert "Set-Cookie" not in client.get("/nothing").headers
    app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    assert "Set-Cookie" not in client.get("/look").headers
    assert len(coordinator) == 1


def test_a_block_of_a_transaction_that_raises(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Also while the traceback is kept, the session is given back; a new one is ended, because nobody has its token."""
    client = app.test_client()

    def fail() -> None:
        with client.session_transaction() as transaction:
            transaction["a"] = 1
            raise ValueError("in the block")

    for expected in ("1", "2"):
        with pytest.raises(ValueError, match="in the block") as kept:
            fail()
        assert coordinator.stats().checked_out == 0
        assert client.get("/").text == expected
        assert kept.tb is not None
    assert len(coordinator) == 1


def test_a_transaction_that_cannot_be_saved(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """Gives the session back, too."""
    coordinator = session_coordinator(CONFIG, store=store)
    client = site(coordinator).test_client()
    with pytest.raises(ValueError, match="when") as kept, client.session_transaction() as transaction:
        transaction["when"] = object()
    assert coordinator.stats().checked_out == 0
    assert client.get("/").text == "1"
    assert kept.tb is not None


def test_a_request_within_a_transaction(
    session_coordinator: CoordinatorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception within `session_transaction()` gives the session back at once, and a request within the block fails
    at once. The log says why. A request of another visitor goes on, and so does one that only comes later."""
    app = site(session_coordinator(CONFIG), timeout=3600)
    causes: list[BaseException | None] = []

    @app.errorhandler(503)
    def unavailable(error: ServiceUnavailable) -> flask.typing.ResponseReturnValue:
        causes.append(error.__cause__)
        return error.get_response()

    client, other = app.test_client(), app.test_client()
    client.get("/")
    with client.session_transaction() as transaction:
        transaction["n"] = 5
        with other.session_transaction() as another:
            another["n"] = 10
        assert client.get("/").status_code == 503
        assert other.get("/").text == "11"
        assert client.get("/nothing").status_code == 200
    assert "a session_transaction() of this thread has the session" in caplog.text
    with suppress(ValueError), client.session_transaction() as transaction:
        transaction["n"] = 5
        raise ValueError("in the block")
    assert isinstance(causes[0], SessionBusyError)
    assert "leave its block" in causes[0].__notes__[0]
    assert client.get("/").text == "6"


def test_a_test_client_of_the_applications_own(session_coordinator: CoordinatorFactory) -> None:
    """Stays what it is; and another session interface may be set."""

    class Client(flask.testing.FlaskClient):
        greeting = "hello"

    app = flask.Flask(__name__)
    app.test_client_class = Client
    sessionkit.flask.init_app(app, session_coordinator(CONFIG))
    client = app.test_client()
    assert isinstance(client, Client)
    app.session_interface = flask.sessions.SecureCookieSessionInterface()
    app.secret_key = "development"  # noqa: S105  a test's
    with client.session_transaction() as transaction:
        transaction["a"] = 1
    with client.session_transaction() as transaction:
        assert transaction["a"] == 1


def test_the_test_client_as_the_documentation_has_it(app: flask.Flask) -> None:
    """`with client:` to look at the session after a request, `session_transaction` to change it before one."""
    client = app.test_client()
    with client.session_transaction() as transaction:
        transaction["n"] = 41
    with client:
        assert client.get("/").text == "42"
        assert session["n"] == 42
        assert flask.session.get("n") == 42
        client.get("/flash")
        assert flask.get_flashed_messages() == ["saved", "<b>bold</b>"]
        client.get("/nothing")
        assert session["n"] == 42
        session["n"] = "is a copy now"
        session.clear()
        assert dict(session) == {}
    with client.session_transaction() as transaction:
        assert transaction["n"] == 42
        transaction["n"] = 1
    assert client.get("/").text == "2"


def test_streamed_responses(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """With `stream_with_context`, the session is there until the body was read to its end, or is closed."""
    client = app.test_client()
    client.get("/")
    response = client.get("/stream")
    assert coordinator.stats().checked_out == 1
    assert response.text == "234"
    assert coordinator.stats().checked_out == 0
    assert client.get("/").text == "5"
    response.close()


def test_a_file(app: flask.Flask, coordinator: SessionCoordinator[Any], tmp_path: Path) -> None:
    """Is none of the application's code: the session is free while it is sent: nothing closes the response then."""
    path = tmp_path / "file.txt"
    path.write_text("a file")

    @app.get("/file")
    def file() -> flask.Response:
        session["n"] = 1
        return flask.send_file(path)

    response = app.test_client().get("/file")
    assert coordinator.stats().checked_out == 0
    assert response.text == "a file"
    response.close()


@pytest.mark.parametrize("read", [0, 1])
def test_a_client_that_goes_away(read: int, app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """In the middle of a stream, or before it began: the session is given back with the body."""
    client = app.test_client()
    client.get("/")
    response = client.get("/stream")
    assert len([part for part, _ in zip(response.response, range(read), strict=False)]) == read
    assert coordinator.stats().checked_out == 1
    response.close()
    assert coordinator.stats().checked_out == 0


@pytest.mark.parametrize("path", ["/missing", "/forbidden"])
def test_an_error_page(path: str, app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Has the session no longer than any other, though Flask makes a stream of it."""

    @app.get("/forbidden")
    def forbidden() -> None:
        session["n"] = 1
        flask.abort(403)

    response = app.test_client().get(path)
    assert response.status_code in (403, 404)
    assert coordinator.stats().checked_out == 0
    assert ("Set-Cookie" in response.headers) is (path == "/forbidden")


def test_a_stream_that_looks_first_in_its_body(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Is given back too."""

    @app.get("/late")
    def late() -> flask.Response:
        return flask.Response(flask.stream_with_context(str(session["n"]) for _ in range(1)))

    client = app.test_client()
    client.get("/")
    with client.get("/late") as response:
        assert response.text == "1"
    assert coordinator.stats().checked_out == 0


@pytest.mark.parametrize("propagates", [True, False])
def test_an_application_error_frees_the_session(
    propagates: bool, app: flask.Flask, coordinator: SessionCoordinator[Any]
) -> None:
    """Whether Flask answers 500 or lets it through, as in debug mode; what was written stays written."""
    app.config["PROPAGATE_EXCEPTIONS"] = propagates
    client = app.test_client()
    client.get("/")
    if propagates:
        with pytest.raises(ValueError, match="application error"):
            client.get("/breaks")
    else:
        assert client.get("/breaks").status_code == 500
    assert coordinator.stats().checked_out == 0
    assert client.get("/").text == "101"


def test_a_new_session_in_a_request_that_fails_for_good(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """No response was made, and nobody got the token: it is closed."""
    app.testing = True
    with pytest.raises(ValueError, match="application error"):
        app.test_client().get("/breaks")
    assert len(coordinator) == 0


# ---- Where Flask's own sessions are the measure


def lifetime_told(response: Any) -> str:
    """How long a browser keeps the cookie that a response sets."""
    cookie = response.headers.get("Set-Cookie")
    return "no cookie" if cookie is None else "Expires" if "; Expires=" in cookie else "until closed"


@pytest.mark.parametrize("refreshes", [True, False])
def test_permanent_that_changes_is_told_the_browser(refreshes: bool, coordinator: SessionCoordinator[Any]) -> None:
    """In Flask, `session.permanent` that changes sends the cookie again, in both directions, with and without
    `SESSION_REFRESH_EACH_REQUEST`. Flask's own sessions do the same."""

    def told(app: flask.Flask) -> list[str]:
        app.secret_key = "development"  # noqa: S105  a test's
        app.config["SESSION_REFRESH_EACH_REQUEST"] = refreshes

        @app.get("/<name>")
        def page(name: str) -> str:
            match name:
                case "cart":
                    session["cart"] = [1]
                case "login":
                    session.update(user="ada", _permanent=True)
                case "computer-of-mine":
                    session.permanent = True
                case "shared-computer":
                    session.permanent = False
                case "forget":
                    session.pop("_permanent", None)
            return ""

        client = app.test_client()
        pages = ("cart", "login", "shared-computer", "computer-of-mine", "forget", "login")
        return [lifetime_told(client.get(f"/{name}")) for name in pages]

    ours = flask.Flask(__name__)
    sessionkit.flask.init_app(ours, coordinator)
    assert told(ours) == told(flask.Flask(__name__))
    assert len(coordinator) == 1


def test_a_permanent_cookie_that_is_not_refreshed_each_time(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Is sent again once a tenth of its lifetime is over; and so is one with a `max_age`, if it is not permanent."""
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=1000))
    app = site(coordinator, cookie=SessionCookie(max_age=100))
    app.config.update(SESSION_REFRESH_EACH_REQUEST=False, PERMANENT_SESSION_LIFETIME=600)
    client = app.test_client()
    client.get("/")
    told = dict.fromkeys(range(0, 200, 5), "")
    for second in told:
        told[second] = lifetime_told(client.get("/permanent" if second == 15 else "/"))
        session_clock.advance(5)
    # The cookie that has a `max_age` has an `Expires` too.
    assert [second for second, text in told.items() if text == "Expires"] == [10, 15, 75, 135, 195]


def test_permanent_alone_makes_no_session(coordinator: SessionCoordinator[Any]) -> None:
    """In Flask, a session with nothing but `permanent` is not created or stored, for robots that come by; the first
    write creates one that is permanent. One that has nothing else any more is ended."""
    app = site(coordinator)
    app.before_request(lambda: setattr(session, "permanent", True))

    @app.get("/ways")
    def ways() -> str:
        assert (session.permanent, dict(session), session.id) == (True, {"_permanent": True}, None)
        assert session.setdefault("_permanent", False) is True
        del session["_permanent"]
        assert not session
        assert not session.permanent
        assert session.setdefault("_permanent", True) is True
        assert session.pop("_permanent") is True
        session.update({"_permanent": True})
        session.clear()
        assert dict(session) == {}
        session.permanent = True
        return ""

    for number in range(CONFIG.max_active_sessions or 0):
        robot = app.test_client()
        for path in ("/nothing", "/look", "/ways", "/logout"):
            response = robot.get(path)
            assert response.status_code < 400, (number, path)
            assert "Set-Cookie" not in response.headers
    with robot.session_transaction() as transaction:
        transaction.permanent = True
    assert len(coordinator) == 0
    with robot:
        robot.get("/nothing")
        assert session.permanent
    assert lifetime_told(robot.get("/")) == "Expires"
    assert coordinator.list_sessions()[0].data == {"_permanent": True, "n": 1}
    other = app.test_client()
    other.get("/flash")
    assert len(coordinator) == 2
    assert "Set-Cookie" in other.get("/flashed").headers
    assert (len(coordinator), other.get_cookie(COOKIE)) == (1, None)


STEPS: dict[str, Callable[[Any], object]] = {
    "get": lambda session: session.get("a"),
    "in": lambda session: "a" in session,
    "permanent?": lambda session: session.permanent,
    "set": lambda session: session.__setitem__("a", 2),
    "set the same": lambda session: session.__setitem__("a", 1),
    "permanent": lambda session: setattr(session, "permanent", False),
    "delete": lambda session: session.__delitem__("a"),
    "delete absent": lambda session: session.__delitem__("b"),
    "pop": lambda session: session.pop("a"),
    "pop absent": lambda session: session.pop("b", None),
    "pop absent without a default": lambda session: session.pop("b"),
    "popitem": lambda session: session.popitem(),
    "setdefault": lambda session: session.setdefault("b", []),
    "setdefault present": lambda session: session.setdefault("a", []),
    "update": lambda session: session.update(b=2),
    "update with nothing": lambda session: session.update(),
    "or": lambda session: session.__ior__({"b": 2}),
    "clear": lambda session: session.clear(),
}


@pytest.mark.parametrize("start", [{"a": 1}, {}], ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_modified_is_what_flask_means_by_it(step: str, start: dict[str, Any], app: flask.Flask) -> None:
    """False after a look, a `pop` of an absent key and a `setdefault` of a present one, and true after any change."""
    own = SecureCookieSession(start)
    client = app.test_client()
    with client.session_transaction() as transaction:
        transaction.update(start)
    with client.session_transaction() as ours:
        for session_ in (own, ours):
            with suppress(KeyError):
                STEPS[step](session_)
        assert ours.modified is own.modified
        assert dict(ours) == dict(own)


# ---- What is ours


def test_the_live_resource_is_at_hand(session_coordinator: CoordinatorFactory) -> None:
    """Made with all of the first update; the same object in every request."""
    made: list[object] = []

    def make(managed: Any) -> object:
        made.append((managed.data, object()))
        return made[-1]

    app = flask.Flask(__name__)
    sessionkit.flask.init_app(app, session_coordinator(CONFIG, resource_factory=make))

    @app.get("/")
    def index() -> str:
        session.update(lang="en", user=7)
        assert session.resource is made[0]
        return repr(session.resource[0])

    client = app.test_client()
    assert client.get("/").text == client.get("/").text == "{'lang': 'en', 'user': 7}"
    assert len(made) == 1


def test_why_a_session_ended_can_be_told(app: flask.Flask, session_clock: ManualClock) -> None:
    """`session.ended` has the cause and the limit."""

    @app.get("/why")
    def why() -> str:
        return f"{session.ended.cause.name} after {session.ended.limit:g} seconds" if session.ended else "new"

    client = app.test_client()
    client.get("/")
    session_clock.advance(61)
    assert client.get("/why").text == "IDLE after 60 seconds"


def test_no_room_is_503_with_a_page_of_ones_own(
    app: flask.Flask, coordinator: SessionCoordinator[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Flask's ServiceUnavailable, with `Retry-After`, which an error handler may show in its own way."""
    own = site(coordinator)

    @own.errorhandler(503)
    def unavailable(error: ServiceUnavailable) -> tuple[str, int]:
        # As a base template does.
        assert (session.get("user"), flask.get_flashed_messages()) == (None, [])
        return f"own page: {type(error.__cause__).__name__}", 503

    for _ in range(3):
        app.test_client().get("/")
    late = app.test_client()
    response = late.get("/")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "try again" in response.text
    assert "answering 503: max_active_sessions=3" in caplog.text
    assert late.get("/look").text == "{}"
    assert own.test_client().get("/").text == "own page: SessionLimitError"
    coordinator.close()
    assert own.test_client().get("/").text == "own page: CoordinatorClosedError"


Setup = Callable[[flask.Flask, flask.Blueprint], object]


def busy_page(error: Exception) -> str:
    """A page that shows who is logged in and what was flashed, as a base template does."""
    flask.flash("Sorry")
    return flask.render_template_string(
        "busy, {{ session.get('user') }} {{ session.permanent }} {{ session.new }} {{ get_flashed_messages() }}"
    )


def swallow_and_write() -> None:
    for _ in range(2):
        with suppress(Exception):
            session["swallowed"] = session.get("swallowed", 0) + 1


def log_out(*_: object) -> None:
    session.pop("user", None)
    session.clear()
    session.rotate()
    session.close()
    session.touch()
    session.release()


def add_visit(response: flask.Response) -> flask.Response:
    session["visits"] = session.get("visits", 0) + 1
    return response


def add_visit_that_is_there(response: flask.Response) -> flask.Response:
    session["visits"] += 1
    return response


def write_in_stream() -> flask.Response:
    def parts() -> Iterator[str]:
        swallow_and_write()
        yield "stored"

    return flask.Response(flask.stream_with_context(parts()))


SETUPS: dict[str, Setup] = {
    "nothing": lambda app, bp: None,
    "503 of the application": lambda app, bp: app.register_error_handler(503, lambda e: (busy_page(e), 503)),
    "503 of the blueprint": lambda app, bp: bp.register_error_handler(503, lambda e: (busy_page(e), 503)),
    "503 that says 200, and flashes": lambda app, bp: bp.register_error_handler(503, busy_page),
    "503 that fails": lambda app, bp: app.register_error_handler(503, lambda e: session["user"]),
    "503 that raises itself": lambda app, bp: app.register_error_handler(503, lambda e: flask.abort(503)),
    "HTTPException": lambda app, bp: app.register_error_handler(HTTPException, lambda e: ({"e": busy_page(e)}, e.code)),
    "Exception": lambda app, bp: app.register_error_handler(Exception, lambda e: (busy_page(e), 500)),
    "Exception of the blueprint": lambda app, bp: bp.register_error_handler(Exception, lambda e: (str(e), 500)),
    "500": lambda app, bp: app.register_error_handler(500, lambda e: (busy_page(e), 500)),
    "trapped": lambda app, bp: app.config.update(TRAP_HTTP_EXCEPTIONS=True),
    "trapped in tests": lambda app, bp: app.config.update(TRAP_HTTP_EXCEPTIONS=True, TESTING=True),
    "before_request": lambda app, bp: app.before_request(lambda: setattr(session, "permanent", session.permanent)),
    "before_request that swallows": lambda app, bp: app.before_request(swallow_and_write),
    "after_request that writes": lambda app, bp: app.after_request(add_visit),
    "after_request that fails": lambda app, bp: app.after_request(add_visit_that_is_there),
    "after_request that fails in tests": lambda app, bp: (
        app.after_request(add_visit_that_is_there),
        app.config.update(TESTING=True),
    ),
    "teardown_request": lambda app, bp: app.teardown_request(log_out),
    "context processor": lambda app, bp: (
        app.context_processor(lambda: {"user": session.get("user")}),
        app.register_error_handler(503, lambda e: (flask.render_template_string("busy, {{ user }}"), 503)),
    ),
    "view that swallows": lambda app, bp: bp.add_url_rule(
        "/swallow", "swallow", lambda: swallow_and_write() or "stored"
    ),
    "stream that swallows": lambda app, bp: bp.add_url_rule("/swallow", "swallow", write_in_stream),
    "log-out that swallows": lambda app, bp: bp.add_url_rule(
        "/swallow", "swallow", lambda: swallow_and_write() or log_out() or "out"
    ),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("cause", ["full", "busy", "store", "closed"])
@pytest.mark.parametrize("setup", SETUPS)
def test_503_whatever_the_application_does_with_the_session(
    setup: str,
    cause: str,
    method: str,
    session_coordinator: CoordinatorFactory,
    store: WatchedStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In Flask, the client gets 503 with `Retry-After` whatever error handlers, `after_request`, `teardown_request`,
    templates and flashes do with the session then. It reads as empty, and changes are ignored and logged once."""
    coordinator = session_coordinator(CONFIG, store=store)
    app, blueprint = flask.Flask(__name__), flask.Blueprint("shop", __name__)
    blueprint.get("/write")(lambda: session.__setitem__("user", session.get("user", "ada")) or "ok")
    SETUPS[setup](app, blueprint)
    app.register_blueprint(blueprint)
    sessionkit.flask.init_app(app, coordinator, timeout=0)
    client = app.test_client()
    for _ in range(3):
        made = coordinator.create_session(session_id=id_of(token := new_token()), data={"visits": 0})
    if cause != "full":
        client.set_cookie(COOKIE, token)
    path = "/swallow" if setup.endswith("that swallows") and not setup.startswith("before") else "/write"
    with coordinator.checkout(made.id) if cause == "busy" else nullcontext():
        match cause:
            case "store":
                store.failing.add("*")
            case "closed":
                coordinator.close()
        response = client.open(path, method=method)
    store.failing.clear()
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "Set-Cookie" not in response.headers
    assert caplog.text.count("a change to the session is ignored") <= 1
    assert "stored" not in response.text
    assert ("busy" in response.text) is (method == "GET" and setup in PAGES)
    assert coordinator.stats().checked_out == 0


PAGES = {
    "503 of the application",
    "503 of the blueprint",
    "503 that says 200, and flashes",
    "HTTPException",
    "Exception",
    "context processor",
}
"""Where the application has a page of its own, and which is shown."""


def test_an_answer_of_ones_own_to_a_failure(
    session_coordinator: CoordinatorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A view that catches the error may go on without the session, if it changes nothing; so may an error handler."""
    coordinator = session_coordinator(CONFIG)
    for _ in range(3):
        coordinator.create_session()
    app = flask.Flask(__name__)

    @app.get("/catch")
    def catch() -> str:
        with pytest.raises(ServiceUnavailable):
            session["user"] = "ada"
        return f"hello {session.get('user')}"

    @app.get("/later")
    def later() -> str:
        session["user"] = "ada"
        return "ok"

    app.register_error_handler(503, lambda e: ("slow down", 429))
    sessionkit.flask.init_app(app, coordinator)
    client = app.test_client()
    assert (client.get("/catch").status_code, client.get("/catch").text) == (200, "hello None")
    response = client.get("/later")
    assert (response.status_code, response.text) == (429, "slow down")
    assert "Retry-After" not in response.headers
    assert "ignored" not in caplog.text


def test_a_first_look_that_fails_after_the_view(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """In an `after_request` function, or in the first part of a stream."""
    app = site(session_coordinator(CONFIG, store=store))

    @app.get("/late")
    def late() -> flask.Response:
        return flask.Response(flask.stream_with_context(str(session.get("n")) for _ in range(1)))

    with_hook = site(app.extensions["sessionkit"])
    with_hook.after_request(add_visit)
    store.failing.add("*")
    for each, path in ((app, "/late"), (with_hook, "/nothing"), (with_hook, "/missing")):
        client = each.test_client()
        client.set_cookie(COOKIE, new_token())
        response = client.get(path)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    store.failing.clear()


def test_a_busy_session_is_503(session_coordinator: CoordinatorFactory) -> None:
    """After the time limit; in shared mode nobody waits."""
    for shared, expected in ((False, 503), (True, 200)):
        coordinator = session_coordinator(CONFIG)
        app = site(coordinator, timeout=0.001, shared=shared)
        client = app.test_client()
        client.get("/")
        with coordinator.checkout(coordinator.list_sessions()[0].id, exclusive=not shared):
            with in_thread(client.get, "/") as future:
                assert future.result(WAIT).status_code == expected
        assert client.get("/").status_code == 200


def test_a_save_that_fails_is_503(
    session_coordinator: CoordinatorFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The response that said it was done does not go out, but a page of the application's own, with its headers."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    app = site(session_coordinator(CONFIG, store=store))

    @app.errorhandler(503)
    def unavailable(error: ServiceUnavailable) -> flask.Response:
        response = flask.Response("own page", 503)
        response.headers["Retry-After"] = str(error.retry_after)
        return response

    @app.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["ETag"] = '"of another page"'
        return response

    client = app.test_client()
    store.failing.add(GIVE_BACK)
    client.get("/nested")
    response = client.get("/nested")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert (response.text, response.headers["X-Content-Type-Options"]) == ("own page", "nosniff")
    assert "ETag" not in response.headers
    assert response.content_length == len("own page")
    assert "answering 503: no give_back today" in caplog.text
    store.failing.clear()
    assert client.get("/nested").text == '["apple", "apple", "apple"]'
    store.failing.add("*")
    fresh = client.application.test_client()
    assert fresh.get("/nested").status_code == 503
    store.failing.clear()


def test_the_cookie_takes_flasks_configuration(session_coordinator: CoordinatorFactory) -> None:
    """Name, path, domain and SameSite; it is HttpOnly and Secure in any case, unless another one is passed."""
    app = flask.Flask(__name__)
    app.config.update(SESSION_COOKIE_NAME="shop", SESSION_COOKIE_SAMESITE="strict", SESSION_COOKIE_PATH="/shop")
    app.config.update(SESSION_COOKIE_DOMAIN="example.com", SESSION_COOKIE_HTTPONLY=False)
    sessionkit.flask.init_app(app, session_coordinator(CONFIG))

    @app.get("/shop")
    def shop() -> str:
        session["a"] = 1
        return ""

    value = app.test_client().get("/shop").headers["Set-Cookie"]
    assert value.startswith("__Secure-shop=")
    assert {"Path=/shop", "Domain=example.com", "SameSite=Strict", "Secure", "HttpOnly"} <= set(value.split("; "))
    with pytest.warns(UserWarning, match="not Secure"):
        app = site(session_coordinator(CONFIG), cookie=SessionCookie(secure=False))
    assert app.test_client().get("/").headers["Set-Cookie"].startswith("session=")


@pytest.mark.parametrize(
    ("settings", "name", "attributes"),
    [
        ({"SESSION_COOKIE_DOMAIN": ".example.com"}, "__Secure-session", {"Domain=example.com"}),
        ({"SESSION_COOKIE_DOMAIN": "example.com:8000"}, "__Secure-session", {"Domain=example.com"}),
        ({"SESSION_COOKIE_NAME": "__Host-shop"}, "__Host-shop", {"Path=/"}),
        ({"SESSION_COOKIE_NAME": "__Secure-shop", "APPLICATION_ROOT": "/shop"}, "__Secure-shop", {"Path=/shop"}),
        ({"APPLICATION_ROOT": ""}, "__Host-session", {"Path=/"}),
        (
            {"SESSION_COOKIE_PARTITIONED": True, "SESSION_COOKIE_SAMESITE": "None"},
            "__Host-session",
            {"Partitioned", "SameSite=None"},
        ),
        ({"SESSION_COOKIE_SECURE": False}, "__Host-session", set()),
        ({"DEBUG": True, "SESSION_COOKIE_SECURE": True}, "__Host-session", set()),
        # What cannot do without.
        ({"DEBUG": True, "SESSION_COOKIE_NAME": "__Host-session"}, "__Host-session", set()),
        ({"DEBUG": True, "SESSION_COOKIE_SAMESITE": "None"}, "__Host-session", {"SameSite=None"}),
        ({"DEBUG": True, "SESSION_COOKIE_PARTITIONED": True}, "__Host-session", {"Partitioned"}),
    ],
)
def test_settings_that_flask_takes(
    settings: dict[str, Any], name: str, attributes: set[str], coordinator: SessionCoordinator[Any]
) -> None:
    """Are taken, and the cookie is Secure: Flask's `SESSION_COOKIE_SECURE` is False unless it is set."""
    app = flask.Flask(__name__)
    app.config.update(settings)
    app.get("/write")(lambda: session.update(a=1) or "")
    sessionkit.flask.init_app(app, coordinator)
    value = app.test_client().get("/write").headers["Set-Cookie"]
    assert value.startswith(f"{name}=")
    assert {"Secure", "HttpOnly", *attributes} <= set(value.split("; "))
    assert ("Partitioned" in value) is ("Partitioned" in attributes)


def test_debug_mode_without_https(coordinator: SessionCoordinator[Any]) -> None:
    """In debug mode, the cookie is not `Secure`, so that a browser keeps it without HTTPS, and that is warned about,
    unless `SESSION_COOKIE_SECURE` is set."""
    app = flask.Flask(__name__)
    app.debug = True
    with pytest.warns(UserWarning, match="not Secure.*SESSION_COOKIE_SECURE=True"):
        sessionkit.flask.init_app(app, coordinator)
    app.get("/write")(lambda: session.update(a=1) or "")
    value = app.test_client().get("/write").headers["Set-Cookie"]
    assert value.startswith("session=")
    assert "Secure" not in value


@pytest.mark.parametrize("wrong", [{"cookie": "session"}, {"shared": None}, {"timeout": "5"}])
def test_what_init_app_is_given_is_checked(wrong: dict[str, Any], coordinator: SessionCoordinator[Any]) -> None:
    """At once."""
    with pytest.raises(TypeError, match=next(iter(wrong))):
        sessionkit.flask.init_app(flask.Flask(__name__), coordinator, **wrong)


def test_after_release_nothing_is_lost_in_silence(app: flask.Flask) -> None:
    """A write raises, and so does a log-out: the copy is for tests that look when the response is made."""

    @app.get("/release")
    def release() -> str:
        session.release()
        assert session["n"] == 1
        for change in (session.clear, lambda: session.update(n=2), lambda: session.pop("n")):
            with pytest.raises(RuntimeError, match="given back"):
                change()
        return "released"

    client = app.test_client()
    client.get("/")
    assert client.get("/release").text == "released"
    assert client.get("/").text == "2"


def test_a_copied_context_leaves_the_session_to_its_request(
    app: flask.Flask, coordinator: SessionCoordinator[Any]
) -> None:
    """Its thread may use the session, and rotate it; what the request writes after that is kept."""

    @app.get("/copied")
    def copied() -> str:
        session["before"] = 1

        @flask.copy_current_request_context
        def work() -> None:
            session["within"] = 2
            session.rotate()

        with in_thread(work) as future:
            assert future.exception(WAIT) is None
        assert coordinator.stats().checked_out == 1
        session["after"] = 3
        return "done"

    client = app.test_client()
    for _ in range(2):
        assert client.get("/copied").text == "done"
        assert json.loads(client.get("/look").text) == {"before": 1, "within": 2, "after": 3}


@pytest.mark.parametrize("propagates", [True, False])
def test_an_application_whose_own_teardown_fails(
    propagates: bool, app: flask.Flask, coordinator: SessionCoordinator[Any]
) -> None:
    """The session is given back all the same."""
    app.config["PROPAGATE_EXCEPTIONS"] = propagates

    @app.teardown_request
    def fail(_: BaseException | None) -> None:
        raise OSError("rollback failed")

    for path in ("/", "/breaks"):
        with pytest.raises(OSError, match="rollback failed"):
            app.test_client().get(path)
    assert coordinator.stats().checked_out == 0


def test_a_response_that_could_not_be_finished(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Flask sends it as it is, without the cookie: the session that nobody got the token of is closed."""

    @app.after_request
    def fail(_: flask.Response) -> flask.Response:
        raise ValueError("no headers today")

    assert app.test_client().get("/").status_code == 500
    assert (len(coordinator), coordinator.stats().checked_out) == (0, 0)


def test_a_context_that_a_test_pushes(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Gives its session back when it ends."""
    with app.test_request_context():
        session["n"] = 1
        assert coordinator.stats().checked_out == 1
    assert (len(coordinator), coordinator.stats().checked_out) == (0, 0)


def test_the_first_part_of_a_stream_is_saved_before_it_goes_out(
    session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """Also where that looks at the session first; the response says that it depends on it."""
    store = SQLiteStore(tmp_path / "sessions.db")
    app = site(session_coordinator(CONFIG, store=store))

    @app.get("/late")
    def late() -> flask.Response:
        def parts() -> Iterator[str]:
            session["paid"] = True
            yield "paid"

        return flask.Response(flask.stream_with_context(parts()))

    with app.test_client().get("/late") as response:
        assert response.headers["Vary"] == "Cookie"
        assert "Set-Cookie" in response.headers
        assert next(response.iter_encoded()) == b"paid"
        assert [record.data for record in store.page(None, 10)] == ['{"paid":true}']


def test_a_request_that_writes_saves_and_gives_back_in_one_step(
    session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """A page takes two steps of the store, whether it writes or not; a stream saves before its first part is sent."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    client = site(session_coordinator(CONFIG, store=store)).test_client()
    client.get("/")
    store.calls.clear()
    assert client.get("/").text == "2"
    assert store.calls == {LEASE: 1, GIVE_BACK: 1}
    store.calls.clear()
    client.get("/look")
    assert store.calls == {LEASE: 1, RELEASE: 1}


@pytest.mark.parametrize("limit", [30, 1_000])
def test_what_cannot_be_stored_is_reverted_before_another_request_has_the_session(
    limit: int, session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """Too large, or no JSON: the application fails, and nothing was written when the session is given back."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    config = CoordinatorConfig(max_data_bytes=limit)
    coordinator = session_coordinator(config, store=store)
    app = site(coordinator)

    @app.get("/large")
    def large() -> str:
        session["value"] = "x" * 40 if limit == 30 else {1}
        return "done"

    client = app.test_client()
    client.get("/")
    seen: list[object] = []
    store.before(RELEASE, lambda: seen.extend(dict(each.data) for each in coordinator.list_sessions()))
    assert client.get("/large").status_code == 500
    assert seen == [{"n": 1}]
    assert client.get("/").text == "2"


def test_a_stream_whose_first_part_cannot_be_saved(session_coordinator: CoordinatorFactory, tmp_path: Path) -> None:
    """Another answer goes out instead, and the session is given back."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    coordinator = session_coordinator(CONFIG, store=store)
    client = site(coordinator).test_client()
    client.get("/")
    store.failing.add("save")
    assert client.get("/stream").status_code == 503
    store.failing.clear()
    assert coordinator.stats().checked_out == 0
    assert client.get("/").text == "3"


def test_a_stream_that_refuses_in_its_first_part(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """For a reason of its own: that is an error of the application, as it is without us."""

    @app.get("/refuses")
    def refuses() -> flask.Response:
        def parts() -> Iterator[str]:
            session["n"] = 1
            flask.abort(503)
            yield "never"

        return flask.Response(flask.stream_with_context(parts()))

    response = app.test_client().get("/refuses")
    assert (response.status_code, response.headers.get("Retry-After")) == (500, None)
    assert coordinator.stats().checked_out == 0


def test_a_released_session_is_not_ended(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Given back by the view, it is left as it is."""

    @app.get("/release")
    def release() -> str:
        session["a"] = 1
        del session["a"]
        session.release()
        return "released"

    app.test_client().get("/release")
    assert len(coordinator) == 1


def test_a_request_without_our_session_is_left_alone(app: flask.Flask) -> None:
    """An application that changes its session interface later on, for one."""
    app.session_interface = flask.sessions.SecureCookieSessionInterface()
    app.secret_key = "development"  # noqa: S105  a test's
    assert app.test_client().get("/look").text == "{}"


# ---- The command line


def test_the_commands(session_coordinator: CoordinatorFactory, tmp_path: Path, session_clock: ManualClock) -> None:
    """`flask sessionkit list` and `cleanup` show and clean the application's own store."""
    store = SQLiteStore(tmp_path / "sessions.db")
    coordinator = session_coordinator(CONFIG, store=store)
    app = site(coordinator)
    run = app.test_cli_runner().invoke
    client = app.test_client()
    client.get("/")
    listed = run(args=["sessionkit", "list", "--json", "--limit", "1"])
    assert [entry["id"] for entry in json.loads(listed.output)] == [coordinator.list_sessions()[0].id]
    table = run(args=["sessionkit", "list"])
    assert (table.exit_code, table.output.splitlines()[-1]) == (0, "1 session: 0 live, 1 expired")
    coordinator.close()
    assert "Would remove 1 session;" in run(args=["sessionkit", "cleanup", "--dry-run"]).output
    cleaned = run(args=["sessionkit", "cleanup", "--max-age", "12h", "--json"])
    assert json.loads(cleaned.output)["removed"] == 1
    assert run(args=["sessionkit", "list"]).output == "0 sessions: 0 live, 0 expired\n"
    wrong = run(args=["sessionkit", "cleanup", "--max-age", "soon"])
    assert (wrong.exit_code, "not a duration" in wrong.output) == (2, True)
    store.close()


def test_the_commands_without_a_store(app: flask.Flask) -> None:
    """Say that there is nothing that they could see, and what to do."""
    for command in ("list", "cleanup"):
        result = app.test_cli_runner().invoke(args=["sessionkit", command])
        assert result.exit_code == 1
        assert "has no session store" in result.output


def test_the_commands_without_their_extra(app: flask.Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say what to install."""
    monkeypatch.setitem(__import__("sys").modules, "sessionkit.cli.sessions", None)
    monkeypatch.delattr("sessionkit.cli.sessions", raising=False)
    result = app.test_cli_runner().invoke(args=["sessionkit", "list"])
    assert result.exit_code == 1
    assert "pip install 'sessionkit[cli]'" in result.output


def test_logs_have_no_token(app: flask.Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Nor has what Flask logs of an error."""
    client = app.test_client()
    client.get("/")
    cookie = client.get_cookie(COOKIE)
    assert cookie is not None
    with caplog.at_level(logging.DEBUG):
        client.get("/breaks")
    assert "application error" in caplog.text
    assert str(cookie.value) not in caplog.text
    assert SessionBusyError.__doc__
