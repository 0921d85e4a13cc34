"""`flask.session` on a coordinator: what Flask's documentation says of it, and what is ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import pytest
from markupsafe import Markup
from werkzeug.exceptions import ServiceUnavailable

import sessionkit.flask
from sessionkit import CoordinatorConfig, RemovalCause, SessionBusyError, SessionCoordinator
from sessionkit.flask import SessionCookie, session
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.web.cookie import id_of

from ..helpers.support import WAIT, Closings, WatchedStore, in_thread
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
    """JSON has no tuples and no Markup: the messages are text then, and are escaped."""
    first = site(session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db")))
    client = first.test_client()
    client.get("/flash")
    cookie = client.get_cookie(COOKIE)
    assert cookie is not None
    first.extensions["sessionkit"].close()
    second = site(session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db"))).test_client()
    second.set_cookie(COOKIE, cookie.value or "")
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
    """With `stream_with_context`, the session is there until the body is closed."""
    client = app.test_client()
    client.get("/")
    response = client.get("/stream")
    assert coordinator.stats().checked_out == 1
    assert response.text == "234"
    response.close()
    assert coordinator.stats().checked_out == 0
    assert client.get("/").text == "5"


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
    store.failing.add("save")
    client.get("/nested")
    response = client.get("/nested")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert (response.text, response.headers["X-Content-Type-Options"]) == ("own page", "nosniff")
    assert "ETag" not in response.headers
    assert response.content_length == len("own page")
    assert "answering 503: no save today" in caplog.text
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
