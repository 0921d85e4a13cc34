"""The middleware around applications of several frameworks: one contract, and WSGI as its validator has it."""

from __future__ import annotations

import gc
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import bottle
import falcon
import flask
import pytest

from sessionkit import SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.wsgi import KEY, SessionMiddleware, WebSession

from ..helpers.support import EVERYTHING, WAIT, WatchedStore, all_at_once
from ..helpers.web import CONFIG, Visitor, count

with warnings.catch_warnings():
    # Pyramid and WebOb import modules that are deprecated.
    warnings.simplefilter("ignore")
    import pyramid.config
    import pyramid.response

Page = Callable[[WebSession], str | Iterator[bytes]]


# ---- The pages, which know no framework


def counted(session: WebSession) -> str:
    return str(count(session))


def log_in(session: WebSession) -> str:
    session.rotate()
    session["user"] = "ada"
    return "welcome"


def log_out(session: WebSession) -> str:
    session.close()
    return "goodbye"


def user(session: WebSession) -> str:
    return str(session.get("user", "nobody"))


def fail(session: WebSession) -> str:
    counted(session)
    raise ValueError("the application fails")


def stream(session: WebSession) -> Iterator[bytes]:
    try:
        for number in range(1000):
            session["sent"] = number
            yield b"x" * 1000
    finally:
        session["ended"] = True


def seen(session: WebSession) -> str:
    return f"{session.get('sent')} {session.get('ended')}"


PAGES: dict[str, Page] = {
    "count": counted,
    "login": log_in,
    "logout": log_out,
    "user": user,
    "fail": fail,
    "stream": stream,
    "seen": seen,
    "nothing": lambda _: "nothing",
}


# ---- The same application in each framework


def plain_app() -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        result = PAGES[environ["PATH_INFO"].strip("/")](environ[KEY])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [result.encode()] if isinstance(result, str) else result

    return app


def bottle_app() -> Any:
    app = bottle.Bottle()
    for name, page in PAGES.items():
        app.route(f"/{name}", callback=lambda page=page: page(bottle.request.environ[KEY]))
    return app


def falcon_app() -> Any:
    class Resource:
        def __init__(self, page: Page) -> None:
            self.page = page

        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            result = self.page(request.env[KEY])
            response.content_type = falcon.MEDIA_TEXT
            if isinstance(result, str):
                response.text = result
            else:
                response.stream = result

        on_head = on_get

    app = falcon.App()
    for name, page in PAGES.items():
        app.add_route(f"/{name}", Resource(page))
    return app


def flask_app() -> Any:
    app = flask.Flask(__name__)
    for name, page in PAGES.items():
        app.add_url_rule(f"/{name}", name, lambda page=page: page(flask.request.environ[KEY]))
    return app


def pyramid_app() -> Any:
    def view(page: Page, request: Any) -> Any:
        result = page(request.environ[KEY])
        if isinstance(result, str):
            return pyramid.response.Response(result)
        return pyramid.response.Response(app_iter=result, content_type="text/plain")

    with pyramid.config.Configurator() as config:
        for name, page in PAGES.items():
            config.add_route(name, f"/{name}")
            config.add_view(partial(view, page), route_name=name)
        return config.make_wsgi_app()


FRAMEWORKS = {"WSGI": plain_app, "Bottle": bottle_app, "Falcon": falcon_app, "Flask": flask_app, "Pyramid": pyramid_app}


@pytest.fixture(autouse=True)
def _every_body_is_closed(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    gc.collect()
    # What the validator says of one that is not.
    assert "without being closed" not in capsys.readouterr().err


@pytest.fixture(params=FRAMEWORKS)
def application(request: pytest.FixtureRequest) -> Any:
    """An application that is held to WSGI by the validator."""
    return validator(FRAMEWORKS[request.param]())


@pytest.fixture(params=["in memory", "with a store"])
def coordinator(
    request: pytest.FixtureRequest, session_coordinator: CoordinatorFactory, store: WatchedStore
) -> SessionCoordinator[Any]:
    return session_coordinator(CONFIG, store=None if request.param == "in memory" else store)


@pytest.fixture
def visitor(application: Any, coordinator: SessionCoordinator[Any]) -> Visitor:
    """Somebody whose server is held to WSGI by the validator, too, and so is the middleware, on both its sides."""
    return Visitor(validator(SessionMiddleware(application, coordinator, timeout=WAIT)))


def test_a_visitor_is_known_again(visitor: Visitor) -> None:
    """The middleware keeps to WSGI on both its sides, as `wsgiref.validate` has it. In every framework, a session is
    kept from request to request, and costs nothing where nobody looks.
    """
    nothing = visitor.get("/nothing")
    assert (nothing.written, nothing["Vary"], visitor.token) == ([b"nothing"], None, None)
    assert [visitor.text("/count") for _ in range(3)] == ["1", "2", "3"]
    assert Visitor(visitor.app).text("/count") == "1"


def test_login_and_logout(visitor: Visitor) -> None:
    """In every framework, a login changes the token, and after the logout every copy of it is dead."""
    assert (visitor.text("/user"), visitor.token) == ("nobody", None)
    visitor.get("/count")
    before = dict(visitor.cookies)
    answer = visitor.get("/login")
    assert answer["Cache-Control"] == "private, no-store"
    assert visitor.cookies != before
    assert visitor.text("/user") == "ada"

    copy = Visitor(visitor.app)
    for cookies in (before, dict(visitor.cookies)):
        copy.cookies = cookies
        assert copy.text("/user") == ("nobody" if cookies == before else "ada")
    visitor.get("/logout")
    assert visitor.token is None
    assert [visitor.text("/user"), copy.text("/user")] == ["nobody", "nobody"]


def test_requests_at_once(visitor: Visitor) -> None:
    """In every framework, no update is lost when requests of one visitor come at once."""
    visitor.get("/count")
    seen = all_at_once(*[partial(visitor.text, "/count")] * 8)
    assert sorted(seen, key=int) == [str(number) for number in range(2, 10)]


def test_a_client_that_goes_away(visitor: Visitor, coordinator: SessionCoordinator[Any]) -> None:
    """In every framework, a client that goes away in mid-stream frees the session, with what was written until then."""
    visitor.get("/count")
    answer = visitor.begin("/stream")
    parts = answer.parts()
    assert next(parts) == next(parts) == b"x" * 1000
    assert coordinator.stats().checked_out == 1
    answer.close()
    assert coordinator.stats().checked_out == 0
    assert visitor.text("/seen") == "1 True"


def test_a_stream_that_is_read_to_its_end(visitor: Visitor, coordinator: SessionCoordinator[Any]) -> None:
    """In every framework, a stream arrives whole, and has the session until its end."""
    visitor.get("/count")
    assert len(visitor.get("/stream").written[0]) == 1_000_000
    assert coordinator.stats().checked_out == 0
    assert visitor.text("/seen") == "999 True"


def test_an_application_that_fails(visitor: Visitor, coordinator: SessionCoordinator[Any]) -> None:
    """In every framework, a session whose request fails is given back, with what was written before."""
    visitor.get("/count")
    # Some frameworks answer 500, others leave that to the server.
    with suppress(ValueError):
        answer = visitor.get("/fail", **{"wsgi.errors": io.StringIO()})
        assert answer.status.startswith("500")
    assert coordinator.stats().checked_out == 0
    assert visitor.text("/count") == "3"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_session_that_cannot_be_had(
    method: str, application: Any, session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """In every framework, the client gets 503 with `Retry-After` when the store fails."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    visitor = Visitor(validator(SessionMiddleware(application, session_coordinator(CONFIG, store=store))))
    visitor.get("/count")
    store.failing = {EVERYTHING}
    # Some frameworks answer 500 on their own, and the middleware makes 503 of that.
    answer = visitor.get("/count", REQUEST_METHOD=method, **{"wsgi.errors": io.StringIO()})
    assert (answer.status, answer["Retry-After"]) == ("503 Service Unavailable", "5")
    store.failing = set()
    assert visitor.text("/count") == "2"
