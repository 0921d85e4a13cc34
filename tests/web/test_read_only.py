"""Requests that only read their session: the middleware's `read_only`, and the decorator for Flask's views."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import flask.views
import pytest
from markupsafe import Markup

import sessionkit.flask
from sessionkit import ReadOnlySessionError, RemovalCause, SessionCoordinator, SessionState
from sessionkit.flask import session
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.wsgi import SessionMiddleware, WebSession

from ..helpers.support import LOAD, WAIT, WatchedStore, in_thread
from ..helpers.web import CONFIG, Site, Visitor, count

Changes = dict[str, Callable[[WebSession], object]]

CHANGES: Changes = {
    "set": lambda session: session.update(n=7),
    "set item": lambda session: session.__setitem__("n", 7),
    "delete": lambda session: session.__delitem__("n"),
    "delete what is absent": lambda session: session.__delitem__("x"),
    "pop": lambda session: session.pop("n"),
    "popitem": lambda session: session.popitem(),
    "setdefault": lambda session: session.setdefault("x", 1),
    "clear": lambda session: session.clear(),
    "or": lambda session: session.__ior__({"x": 1}),
    "touch": lambda session: session.touch(),
    "rotate": lambda session: session.rotate(),
    "close": lambda session: session.close(),
    "set_timeout": lambda session: session.set_timeout(5),
    "resource": lambda session: session.resource,
}

LOOKS: Changes = {
    "get": lambda session: session.get("n"),
    "pop what is absent": lambda session: session.pop("x", 1),
    "setdefault of what is there": lambda session: session.setdefault("n", 5),
    "update with nothing": lambda session: session.update(),
    "release": lambda session: session.release(),
    "copy": lambda session: session.copy(),
}


def reading(environ: dict[str, Any]) -> bool:
    return bool(environ["PATH_INFO"].startswith("/read"))


def site(coordinator: SessionCoordinator[Any], **pages: Any) -> Visitor:
    """A visitor of a site whose pages that begin with `read` are read-only; nobody waits."""
    app = Site(index=count, read=lambda session: dict(session), look=lambda session: dict(session), **pages)
    return Visitor(SessionMiddleware(app, coordinator, timeout=0, read_only=reading))


def test_a_read_only_request_waits_for_nobody(coordinator: SessionCoordinator[Any]) -> None:
    """While another request of the visitor has the session, however long: it sees the session as it is now."""
    visitor = site(coordinator)
    visitor.get()
    slow = visitor.begin()
    with in_thread(visitor.get, "/read") as answer:
        assert answer.result(WAIT).written == [b"{'n': 2}"]
    assert visitor.get().status == "503 Service Unavailable"
    assert slow.read() == b"2"


def test_a_read_only_request_keeps_nobody_waiting(coordinator: SessionCoordinator[Any]) -> None:
    """While it goes on, others change the session; what it has stays as it was read."""
    seen: list[dict[str, Any]] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        web = environ["sessionkit.session"]
        start_response("200 OK", [])
        for _ in range(3):
            seen.append(dict(web))
            yield b"."

    visitor = site(coordinator)
    visitor.get()
    poll = Visitor(SessionMiddleware(app, coordinator, read_only=lambda environ: True))
    poll.cookies = visitor.cookies
    answer = poll.begin()
    for number in (2, 3, 4):
        next(answer.parts())
        assert visitor.text() == str(number)
        assert coordinator.stats().checked_out == 0
    answer.close()
    assert seen == [{"n": 1}] * 3
    assert visitor.text("/read") == "{'n': 4}"


def test_with_a_store_it_sees_what_is_saved_by_one_read(
    session_coordinator: CoordinatorFactory, store: WatchedStore, tmp_path: Path
) -> None:
    """Whichever worker is asked, while a stream of another one has the session: one read, no lease, no copy."""
    here = session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db"))
    there = session_coordinator(CONFIG, store=store)
    visitor, other = site(here), site(there)
    visitor.get()
    other.cookies = visitor.cookies
    slow = visitor.begin()
    there.cleanup_inactive_sessions()
    store.calls.clear()
    # Before the first part of the slow response went out, the change was saved.
    assert other.text("/read") == "{'n': 2}"
    assert (store.calls, len(there)) == ({LOAD: 1}, 0)
    assert slow.read() == b"2"
    assert other.text("/read") == "{'n': 2}"


def test_a_page_that_polls_keeps_nobody_logged_in(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """A read-only request is no activity: a page that polls keeps nobody logged in. It is told why that was over."""
    visitor = site(coordinator, read_end=lambda session: session.ended and session.ended.cause)
    visitor.get()
    for _ in range(6):
        session_clock.advance(10)
        assert visitor.text("/read") == "{'n': 1}"
    session_clock.advance(1)
    assert visitor.text("/read") == "{}"
    assert visitor.text("/read_end") == str(RemovalCause.IDLE)


def test_a_read_only_response(coordinator: SessionCoordinator[Any]) -> None:
    """It depends on the cookie, and sets none: neither with a session nor without one, nor with a dead one."""
    visitor = site(coordinator, read_nothing=lambda _: "nothing")
    for _ in range(2):
        answer = visitor.get("/read")
        assert (answer.status, answer["Vary"], answer["Set-Cookie"]) == ("200 OK", "Cookie", None)
        assert (answer["Cache-Control"], visitor.get("/read_nothing")["Vary"]) == (None, None)
        visitor.get()
    coordinator.close_session(coordinator.list_sessions()[0].id)
    assert visitor.get("/read")["Set-Cookie"] is None
    assert visitor.token is not None


def test_what_a_read_only_request_sees(coordinator: SessionCoordinator[Any], session_clock: ManualClock) -> None:
    """All but the resource: id, times, and no new session; `repr` shows it too."""

    def view(session: WebSession) -> object:
        return session.id, session.metadata, session.expires_at, session.new, session.ended, repr(session)

    visitor = site(coordinator, read_all=view)
    assert visitor.text("/read_all") == "(None, None, None, False, None, '<WebSession none>')"
    visitor.get()
    (kept,) = coordinator.list_sessions()
    session_clock.advance(10)
    shown = f"<WebSession {kept.id!r}>"
    assert visitor.text("/read_all") == str((kept.id, kept.metadata, kept.expires_at, False, None, shown))


@pytest.mark.parametrize("has_session", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_changing_it_in_a_read_only_request_raises(
    change: str, has_session: bool, coordinator: SessionCoordinator[Any]
) -> None:
    """Changing the session in a read-only request raises `ReadOnlySessionError`, which names the view or the request.
    As the first look or later, and with or without a session; it says what to do, and nothing is changed or made.
    """
    messages: list[str] = []

    def view(session: WebSession, looks: bool) -> object:
        assert not looks or dict(session) == ({"n": 1} if has_session else {})
        if change in ("clear", "pop") and not has_session:
            # There is nothing to change.
            return session.clear()
        with pytest.raises(ReadOnlySessionError, match="snapshot") as caught:
            CHANGES[change](session)
        assert isinstance(caught.value, RuntimeError)
        messages.append(str(caught.value))
        return dict(session)

    visitor = site(coordinator, read_1=lambda s: view(s, False), read_2=lambda s: view(s, True))
    if has_session:
        visitor.get()
    for path in ("/read_1", "/read_2"):
        assert visitor.get(path).status == "200 OK"
    assert all(f"the request GET '/read_{number}' is read-only" in text for number, text in enumerate(messages, 1))
    assert len(coordinator) == has_session
    assert visitor.text("/look") == ("{'n': 1}" if has_session else "{}")


@pytest.mark.parametrize("look", LOOKS)
def test_what_changes_nothing_may_be_done_in_a_read_only_request(
    look: str, coordinator: SessionCoordinator[Any]
) -> None:
    """As by code that asks for what is not there."""
    visitor = site(coordinator, read_1=lambda session: (LOOKS[look](session), dict(session))[1])
    visitor.get()
    assert visitor.text("/read_1") == "{'n': 1}"
    with pytest.raises(KeyError):
        site(coordinator, read_1=lambda session: session.pop("x")).get("/read_1")


def test_a_change_deep_in_what_a_read_only_request_has_read_raises(coordinator: SessionCoordinator[Any]) -> None:
    """Before the response is sent, so that nothing is lost in silence; it is changed nowhere else. What is changed and
    changed back is fine.
    """

    def change(session: WebSession, back: bool) -> object:
        session["list"].append({"n": 1})
        assert session["list"] == [{"n": 1}]
        return session["list"].pop() if back else None

    visitor = site(
        coordinator,
        make=lambda session: session.update(list=[]),
        read_1=lambda session: change(session, False),
        read_2=lambda session: change(session, True),
    )
    visitor.get("/make")
    with pytest.raises(ReadOnlySessionError, match="the request GET '/read_1' is read-only"):
        visitor.get("/read_1")
    assert visitor.text("/read_2") == "{'n': 1}"
    assert visitor.text("/look") == "{'list': []}"


def test_an_error_that_is_not_handled_is_the_applications(coordinator: SessionCoordinator[Any]) -> None:
    """No 503: trying again would not help."""
    visitor = site(coordinator, read_1=count)
    with pytest.raises(ReadOnlySessionError):
        visitor.get("/read_1")
    assert coordinator.stats().checked_out == 0


def test_a_read_only_request_that_cannot_read_is_503(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """If the store cannot say what the session is, or the coordinator is closed: never an empty session."""
    coordinator = session_coordinator(CONFIG, store=store)
    visitor = site(coordinator)
    visitor.get()
    store.failing = {LOAD}
    answer = visitor.get("/read")
    assert (answer.status, answer["Retry-After"], answer["Set-Cookie"]) == ("503 Service Unavailable", "5", None)
    store.failing.clear()
    assert visitor.text("/read") == "{'n': 1}"
    coordinator.close()
    assert visitor.get("/read").status == "503 Service Unavailable"


def test_what_says_which_requests_read_is_checked(coordinator: SessionCoordinator[Any]) -> None:
    """A function of the environment, which is called once a request, before the application."""
    for wrong in (True, "/poll"):
        with pytest.raises(TypeError, match="read_only must be callable"):
            SessionMiddleware(Site(), coordinator, read_only=wrong)  # type: ignore[arg-type]  # what a person may write
    asked: list[str] = []
    app = SessionMiddleware(Site(index=dict), coordinator, read_only=lambda environ: asked.append(environ["PATH_INFO"]))
    Visitor(app).get()
    assert asked == ["/"]


# ---- Flask


@pytest.fixture
def app(coordinator: SessionCoordinator[Any]) -> flask.Flask:
    return flask_site(coordinator)


def flask_site(coordinator: SessionCoordinator[Any], **options: Any) -> flask.Flask:
    app = flask.Flask(__name__)
    sessionkit.flask.init_app(app, coordinator, **options)

    @app.get("/")
    def index() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    @app.get("/poll")
    @sessionkit.flask.read_only
    def poll() -> dict[str, Any]:
        return dict(session)

    @app.get("/write")
    @sessionkit.flask.read_only
    def write() -> str:
        session["n"] = 7
        return "done"

    return app


def test_a_flask_view_that_polls_keeps_nobody_logged_in(
    app: flask.Flask, coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """It is no activity, waits for nobody, depends on the cookie and sets none."""
    client = app.test_client()
    client.get("/")
    for _ in range(6):
        session_clock.advance(10)
        with coordinator.checkout(coordinator.list_sessions()[0].id) if session_clock() > 55 else _nothing():
            with in_thread(client.get, "/poll") as answer:
                assert answer.result(WAIT).json == {"n": 1}
        assert (answer.result().headers["Vary"], answer.result().headers.get("Set-Cookie")) == ("Cookie", None)
    session_clock.advance(61)
    assert client.get("/poll").json == {}


def _nothing() -> Any:
    return in_thread(int)


def test_a_flask_view_that_writes_although_it_only_reads(
    app: flask.Flask, coordinator: SessionCoordinator[Any]
) -> None:
    """The error names the view; nothing has changed, and no session is made for who has none."""
    app.testing = True
    client = app.test_client()
    for number in range(2):
        with pytest.raises(ReadOnlySessionError, match="the view 'write' is read-only"):
            client.get("/write")
        assert len(coordinator) == number
        client.get("/")
    assert client.get("/poll").json == {"n": 2}


def test_views_of_any_kind_can_be_read_only(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """Functions, marked above or below the route, wrapped by others, in blueprints; classes, and methods of theirs."""
    import functools

    def wrapped(view: Any) -> Any:
        @functools.wraps(view)
        def call(*args: Any, **options: Any) -> Any:
            return view(*args, **options)

        return call

    def view() -> dict[str, Any]:
        found = dict(session)
        assert coordinator.stats().checked_out == bool(flask.request.method == "POST")
        return found

    shop = flask.Blueprint("shop", __name__)

    @sessionkit.flask.read_only
    @app.get("/above")
    def above() -> Any:
        return view()

    @app.get("/wrapped")
    @wrapped
    @sessionkit.flask.read_only
    def inner() -> Any:
        return view()

    @shop.get("/blueprint")
    @sessionkit.flask.read_only
    def cart() -> Any:
        return view()

    @sessionkit.flask.read_only
    class Marked(flask.views.View):
        def dispatch_request(self) -> Any:
            return view()

    class Decorated(flask.views.View):
        decorators = [sessionkit.flask.read_only]  # noqa: RUF012  as Flask's documentation writes it

        def dispatch_request(self) -> Any:
            return view()

    class Methods(flask.views.MethodView):
        @sessionkit.flask.read_only
        def get(self) -> Any:
            return view()

        def post(self) -> Any:
            return view()

    app.register_blueprint(shop)
    for path, kind in (("/marked", Marked), ("/decorated", Decorated), ("/methods", Methods)):
        app.add_url_rule(path, view_func=kind.as_view(path.strip("/")))
    app.testing = True
    client = app.test_client()
    client.get("/")
    for path in ("/above", "/wrapped", "/blueprint", "/marked", "/decorated", "/methods"):
        assert client.get(path).json == {"n": 1}, path
        assert client.head(path).status_code == 200
    assert client.post("/methods").json == {"n": 1}
    for wrong in (None, "/poll"):
        with pytest.raises(TypeError, match="read_only marks a view"):
            sessionkit.flask.read_only(wrong)  # type: ignore[type-var]  # what a person may write


def test_what_looks_before_a_read_only_view(app: flask.Flask, coordinator: SessionCoordinator[Any]) -> None:
    """A `before_request` function that looks, as a login does, and one that makes each session permanent, are no
    trouble; what a request that found no view sees is a session.
    """
    app.testing = True
    seen: list[Any] = []

    @app.before_request
    def begin() -> None:
        seen.append((session.get("n"), coordinator.stats().checked_out))
        session.permanent = permanent[0]

    permanent = [True]
    client, stranger = app.test_client(), app.test_client()
    client.get("/")
    for _ in range(2):
        assert client.get("/poll").json == {"_permanent": True, "n": 1}
    assert seen == [(None, 0), (1, 0), (1, 0)]
    assert stranger.get("/poll").json == {}
    assert len(coordinator) == 1
    assert client.get("/absent").status_code == 404
    assert seen[-1] == (1, 1)

    permanent[0] = False
    with pytest.raises(ReadOnlySessionError, match="'poll'"):
        client.get("/poll")


def test_a_flask_view_sees_what_flask_can_hold_and_changes_nothing_deep_in_it(app: flask.Flask) -> None:
    """Values of Flask's own come back as they were; a change in a list is 500, with a page that is sent."""
    values = {"pair": (1, "a"), "bytes": b"\0", "list": [Markup("<b>")]}

    @app.get("/make")
    def make() -> str:
        session.update(values)
        return ""

    @app.get("/read")
    @sessionkit.flask.read_only
    def read() -> str:
        assert dict(session) == values
        assert type(session["list"][0]) is Markup
        return "read"

    @app.get("/append")
    @sessionkit.flask.read_only
    def append() -> str:
        session["list"].append(1)
        return "done"

    client = app.test_client()
    client.get("/make")
    assert client.get("/read").text == "read"
    answer = client.get("/append")
    assert (answer.status_code, "done" in answer.text) == (500, False)
    assert client.get("/read").text == "read"


def test_flash_messages_wait_for_a_request_that_may_take_them(app: flask.Flask) -> None:
    """A read-only page shows none, so that it does not fail when there are some; it cannot flash any itself."""
    app.testing = True

    @app.get("/flash")
    def flash() -> str:
        flask.flash("saved")
        return ""

    @app.get("/page")
    def page() -> str:
        return flask.render_template_string("{{ get_flashed_messages() }}")

    app.add_url_rule("/read", view_func=sessionkit.flask.read_only(lambda: page()), endpoint="read")
    app.add_url_rule("/read-flash", view_func=sessionkit.flask.read_only(lambda: flash()), endpoint="read-flash")
    client = app.test_client()
    assert client.get("/read").text == "[]"
    client.get("/flash")
    for _ in range(2):
        assert client.get("/read").text == "[]"
        assert client.get("/poll").json == {}
    assert client.get("/page").text == "[&#39;saved&#39;]"
    with pytest.raises(ReadOnlySessionError, match="read-flash"):
        client.get("/read-flash")


def test_a_test_may_change_the_session_of_a_page_that_is_read_only(app: flask.Flask) -> None:
    """`session_transaction` is no request of that page, though it is made for its path."""
    app.testing = True

    @app.get("/own/")
    @sessionkit.flask.read_only
    def own() -> dict[str, Any]:
        session.clear() if not session else None
        return dict(session)

    client = app.test_client()
    for _ in range(2):
        with client.session_transaction("/own/") as stored:
            stored["n"] = stored.get("n", 0) + 1
    assert client.get("/own/").json == {"n": 2}
    with client:
        client.get("/poll")
        assert session["n"] == 2


def test_a_flask_stream_that_only_reads(session_coordinator: CoordinatorFactory, tmp_path: Path) -> None:
    """A read-only request waits for no other one of its visitor, and keeps none waiting, on whatever worker. With a
    store and two of them, while one streams events.
    """
    apps = []
    for _ in range(2):
        coordinator = session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db"))
        apps.append(flask_site(coordinator, timeout=0))

        @apps[-1].get("/events")
        @sessionkit.flask.read_only
        def events() -> flask.Response:
            @flask.stream_with_context
            def parts() -> Iterator[str]:
                while True:
                    yield f"{session['n']}\n"

            return flask.Response(parts())

    here, there = (app.test_client() for app in apps)
    here.get("/")
    cookie = here.get_cookie("__Host-session")
    assert cookie is not None
    there.set_cookie("__Host-session", cookie.value, secure=True)
    with here.get("/events") as stream:
        parts = stream.iter_encoded()
        assert next(parts) == b"1\n"
        assert [client.get("/").text for client in (here, there, here, here, there)] == ["2", "3", "4", "5", "6"]
        assert next(parts) == b"1\n"
    assert there.get("/").text == "7"


def test_what_a_snapshot_knows_of_its_state(coordinator: SessionCoordinator[Any]) -> None:
    """Without a store, a page that polls sees how far a request has come that is at work."""
    visitor, at_work, go_on = site(coordinator), threading.Event(), threading.Event()

    def work(session: WebSession) -> str:
        session["step"] = 1
        at_work.set()
        assert go_on.wait(WAIT)
        return "done"

    worker = site(coordinator, work=work)
    visitor.get()
    worker.cookies = visitor.cookies
    with in_thread(worker.get, "/work") as answer:
        assert at_work.wait(WAIT)
        assert visitor.text("/read") == "{'n': 1, 'step': 1}"
        go_on.set()
    assert answer.result().written == [b"done"]
    assert coordinator.list_sessions()[0].state is SessionState.ACTIVE
