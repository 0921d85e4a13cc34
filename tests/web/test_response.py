"""Responses: streamed ones, broken ones and refused ones; how long each has the session, and what is saved of it."""

from __future__ import annotations

import gc
import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from werkzeug.test import Client

from sessionkit import (
    CoordinatorConfig,
    RemovalCause,
    SessionCoordinator,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.web.cookie import id_of
from sessionkit.wsgi import KEY, SessionMiddleware, WebSession

from ..helpers.support import GIVE_BACK, WAIT, Closings, WatchedStore, in_thread, wait_until
from ..helpers.web import CONFIG, COOKIE, Answer, Visitor, request

ROOM_FOR_3 = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=3)
PLAIN = [("Content-Type", "text/plain")]
STATUS = {"/handles": "500 Internal Server Error", "/refused": "503 Service Unavailable"}


class Counter:
    """Counts visits, and streams the figures of three."""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return getattr(self, environ["PATH_INFO"].strip("/") or "index")(environ[KEY], start_response, environ)

    def count(self, session: WebSession) -> bytes:
        session["n"] = session.get("n", 0) + 1
        return b"%d" % session["n"]

    def index(self, session: WebSession, start_response: Any, _: Any) -> Any:
        text = self.count(session)
        start_response("200 OK", PLAIN)
        return [text]

    def stream(self, session: WebSession, start_response: Any, _: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        for _number in range(3):
            yield self.count(session)

    def nothing(self, session: WebSession, start_response: Any, _: Any) -> Iterator[bytes]:
        session["n"] = 0
        start_response("200 OK", PLAIN)
        yield from ()

    def write(self, session: WebSession, start_response: Any, _: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        write(self.count(session))
        write(b", ")
        return [b"written"]

    def breaks(self, session: WebSession, _: Any, __: Any) -> Any:
        self.count(session)
        raise ValueError("application error")

    def breaks_later(self, session: WebSession, start_response: Any, _: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield self.count(session)
        raise ValueError("application error")

    def breaks_first(self, session: WebSession, start_response: Any, _: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        self.count(session)
        raise ValueError("application error")
        yield b""

    refused = index

    def handles(self, session: WebSession, start_response: Any, _: Any) -> Any:
        try:
            raise ValueError("application error")
        except ValueError:
            start_response("200 OK", PLAIN)
            start_response("500 Internal Server Error", PLAIN, sys.exc_info())
        return [b"sorry ", self.count(session)]


# ---- How long a response has the session


@pytest.mark.parametrize(("path", "parts"), [("/", [b"1"]), ("/stream", [b"1", b"2", b"3"]), ("/nothing", [])])
def test_the_checkout_lasts_until_the_body_was_read(
    path: str, parts: list[bytes], coordinator: SessionCoordinator[Any]
) -> None:
    """A response that was read to its end has given its session back, closed or not, with and without streaming."""
    visitor = Visitor(SessionMiddleware(Counter(), coordinator, timeout=0))
    answer = visitor.begin(path)
    assert coordinator.stats().checked_out == 1
    assert list(answer.parts()) == parts
    assert coordinator.stats().checked_out == 0
    assert visitor.text() == str(len(parts) + 1)
    answer.close()


def test_the_last_part_of_a_list_is_its_end(coordinator: SessionCoordinator[Any]) -> None:
    """Some clients read that, and do not ask whether there is more; before it, the session is had."""

    def app(environ: Any, start_response: Any) -> Any:
        environ[KEY]["n"] = 1
        start_response("200 OK", PLAIN)
        return (b"one", b"two")

    parts = Visitor(SessionMiddleware(app, coordinator)).begin().parts()
    assert (next(parts), coordinator.stats().checked_out) == (b"one", 1)
    assert (next(parts), coordinator.stats().checked_out) == (b"two", 0)


def test_werkzeugs_client_and_responses_that_it_keeps(coordinator: SessionCoordinator[Any]) -> None:
    """They are not closed, and each has been read when the next request comes."""
    client = Client(SessionMiddleware(Counter(), coordinator, timeout=0))
    responses = [client.get("/") for _ in range(3)]
    assert [response.text for response in responses] == ["1", "2", "3"]
    streams = []
    for _ in range(2):
        streams.append(client.get("/stream"))
        assert streams[-1].status_code == 200
        streams[-1].get_data()
    assert streams[1].text == "789"


def test_a_stream_that_raises_has_given_its_session_back(coordinator: SessionCoordinator[Any]) -> None:
    """Closed or not: no more parts will come."""
    visitor = Visitor(SessionMiddleware(Counter(), coordinator, timeout=0))
    answer = visitor.begin("/breaks_later")
    with pytest.raises(ValueError, match="application error"):
        list(answer.parts())
    assert visitor.text() == "2"


def test_the_headers_go_out_within_the_call(coordinator: SessionCoordinator[Any]) -> None:
    """The first part of the body is made before the call returns, so that a server that has the headers by then, and
    looks no more, has all of them."""
    answer = Answer(SessionMiddleware(Counter(), coordinator), request("/stream"))
    assert (answer.status, answer["Vary"], answer["Cache-Control"]) == ("200 OK", "Cookie", "private, no-store")
    assert answer["Set-Cookie"] is not None
    assert coordinator.list_sessions()[0].data == {"n": 1}
    answer.close()


def test_a_streamed_body_may_read_and_write(coordinator: SessionCoordinator[Any]) -> None:
    """The first part may make the session, whose cookie goes out with it; later parts go on with it."""
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    answer = visitor.begin("/stream")
    parts = answer.parts()
    assert next(parts) == b"1"
    assert coordinator.get_session(id_of(visitor.token or "")).data == {"n": 1}
    assert list(parts) == [b"2", b"3"]
    with in_thread(answer.close) as closing:
        assert closing.result(WAIT) is None
    assert coordinator.stats().checked_out == 0
    assert visitor.text() == "4"


def test_a_client_that_goes_away_frees_the_session(coordinator: SessionCoordinator[Any]) -> None:
    """The session is given back when the response's body was read to its end or is closed, also when the client goes
    away or the application raises. What was written by then stays."""
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    answer = visitor.begin("/stream")
    next(answer.parts())
    answer.close()
    visitor.begin("/stream").close()
    assert coordinator.stats().checked_out == 0
    assert visitor.text() == "4"


@pytest.mark.parametrize("path", ["/breaks", "/breaks_later", "/breaks_first"])
def test_an_application_error_after_a_write(
    path: str, session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """It goes to the server as it is, the session is free again, and what was written before stays written."""
    coordinator = session_coordinator(CONFIG, store=store)
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    with pytest.raises(ValueError, match="application error"):
        visitor.get(path)
    assert coordinator.stats().checked_out == 0
    found = store.store.load(id_of(visitor.token or ""))
    assert found is not None
    assert found.record.data == '{"n":2}'


@pytest.mark.parametrize("path", ["/breaks", "/breaks_first"])
def test_a_session_whose_cookie_never_got_out_is_closed(path: str, session_coordinator: CoordinatorFactory) -> None:
    """Nobody could ever ask for it: neither for a new one, nor for one that was rotated."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    with pytest.raises(ValueError, match="application error"):
        visitor.get(path)
    assert (len(coordinator), [cause for _, cause in closings]) == (0, [RemovalCause.CLOSED])


def test_a_client_that_goes_away_before_the_headers(coordinator: SessionCoordinator[Any]) -> None:
    """A new session is closed again."""

    def went_away(*_: object) -> Any:
        assert len(coordinator) == 1
        raise OSError("nobody there")

    with pytest.raises(OSError, match="nobody there"):
        SessionMiddleware(Counter(), coordinator)(request(), went_away)
    assert len(coordinator) == 0


class CollectingId(str):
    """An id that collects garbage whenever the coordinator looks it up, also in the middle of a decision."""

    __slots__ = ()

    def __hash__(self) -> int:
        gc.collect()
        return super().__hash__()


def test_a_server_that_forgets_to_close_the_body(coordinator: SessionCoordinator[Any]) -> None:
    """The session is given back when the body is dropped. That may be while a call of the coordinator has its lock, and
    no session can be given back at once."""
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    gc.disable()
    try:
        kept: list[object] = [visitor.begin()]
        kept.append(kept)
        del kept
        assert coordinator.stats().checked_out == 1
        with pytest.raises(SessionNotFoundError):
            coordinator.close_session(CollectingId("no-session"))
    finally:
        gc.enable()
    wait_until(lambda: coordinator.stats().checked_out == 0)


def test_releasing_early(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """Saves and frees the session at once; it can be read on as it was, and nothing else, and never by mistake."""
    coordinator = session_coordinator(CONFIG, store=store)
    seen: list[object] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        session: WebSession = environ[KEY]
        session["n"] = 1
        session.release()
        session.release()
        seen.extend([coordinator.stats().checked_out, dict(session), session.id])
        start_response("200 OK", PLAIN)
        changes = [
            lambda: session.update(n=2),
            lambda: session.pop("n"),
            session.clear,
            session.touch,
            session.rotate,
            session.close,
        ]
        for change in changes:
            with pytest.raises(RuntimeError, match="given back, and can only be read"):
                change()
        yield b"long"

    visitor = Visitor(SessionMiddleware(app, coordinator))
    assert visitor.text() == "long"
    assert seen == [0, {"n": 1}, None]
    assert store.store.page(None, 1)[0].data == '{"n":1}'
    assert len(coordinator) == 1


def test_releasing_what_was_never_looked_at(coordinator: SessionCoordinator[Any]) -> None:
    """Looks, so that it can be read afterwards."""

    def app(environ: Any, start_response: Any) -> Any:
        environ[KEY].release()
        start_response("200 OK", PLAIN)
        return [str(dict(environ[KEY])).encode()]

    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    visitor.app = SessionMiddleware(app, coordinator)
    assert visitor.text() == "{'n': 1}"


def test_too_late_for_a_cookie(coordinator: SessionCoordinator[Any]) -> None:
    """Once the headers were sent, no session can be made or rotated; an error says what to do. Closing still works."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        session: WebSession = environ[KEY]
        start_response("200 OK", PLAIN)
        session.get("n")
        yield b"first"
        with pytest.raises(RuntimeError, match="before the first part of the body"):
            session.rotate() if session else session.update(n=1)
        session.close()

    visitor = Visitor(SessionMiddleware(app, coordinator))
    assert visitor.text() == "first"
    visitor.app = SessionMiddleware(Counter(), coordinator)
    visitor.get()
    visitor.app = SessionMiddleware(app, coordinator)
    assert visitor.text() == "first"
    assert len(coordinator) == 0


# ---- Bodies and servers


def test_what_was_written_with_the_write_callable(coordinator: SessionCoordinator[Any]) -> None:
    """The old way to send a body: the cookie goes out before its first part."""
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    answer = visitor.begin("/write")
    assert answer.written == [b"1", b", "]
    assert answer.read() == b"1, written"
    visitor.take(answer)
    assert visitor.text() == "2"


def test_a_second_start_response(coordinator: SessionCoordinator[Any]) -> None:
    """With `exc_info`, it replaces the first; the cookie goes out with it."""
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    answer = visitor.get("/handles")
    assert (answer.status, answer.written) == ("500 Internal Server Error", [b"sorry 1"])
    assert visitor.text() == "2"


def test_a_second_start_response_when_the_headers_went_to_the_server(coordinator: SessionCoordinator[Any]) -> None:
    """The server decides: if they are not on the wire yet, the new ones have the cookie too."""

    def app(environ: Any, start_response: Any) -> Any:
        environ[KEY]["n"] = 1
        start_response("200 OK", PLAIN)(b"")
        start_response("500 Internal Server Error", PLAIN, (None, None, None))
        return []

    visitor = Visitor(SessionMiddleware(app, coordinator))
    answer = visitor.get()
    assert (answer.starts, answer.status, answer.exc_info) == (2, "500 Internal Server Error", (None, None, None))
    assert visitor.token is not None


@pytest.mark.parametrize("calls", [0, 2])
def test_an_application_that_breaks_the_rules_of_wsgi(calls: int, coordinator: SessionCoordinator[Any]) -> None:
    """Calls start_response never, or twice without a reason: it is told, and no session stays checked out."""

    def app(environ: Any, start_response: Any) -> Any:
        environ[KEY]["n"] = 1
        for _ in range(calls):
            start_response("200 OK", PLAIN)
        return [b"x"]

    with pytest.raises(AssertionError, match="start_response"):
        Visitor(SessionMiddleware(app, coordinator)).get()
    assert len(coordinator) == 0


@pytest.mark.parametrize("path", ["/", "/stream"])
def test_head(path: str, coordinator: SessionCoordinator[Any]) -> None:
    """As GET without a body: the cookie goes out, the session is saved and given back."""

    def app(environ: Any, start_response: Any) -> Any:
        body = Counter()(environ, start_response)
        return body if environ["REQUEST_METHOD"] == "GET" else iter(list(body)[:0])

    visitor = Visitor(SessionMiddleware(app, coordinator))
    answer = visitor.get(path, REQUEST_METHOD="HEAD")
    assert (answer.status, answer.written) == ("200 OK", [b""])
    assert coordinator.stats().checked_out == 0
    assert visitor.text() in ("2", "4")


def test_the_servers_file_wrapper(coordinator: SessionCoordinator[Any]) -> None:
    """What never looked at the session, or has released it, goes to the server as its own object, which may use
    `sendfile`; else it is read, and the session is given back when it is closed."""

    class Wrapper(FileWrapper):
        pass

    def app(environ: Any, start_response: Any) -> Any:
        session: WebSession = environ[KEY]
        if environ["PATH_INFO"] != "/unseen":
            session["n"] = 1
        if environ["PATH_INFO"] == "/released":
            session.release()
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](files[-1], 2)

    middleware = SessionMiddleware(app, coordinator)
    for path, wrapped in [("/unseen", True), ("/released", True), ("/", False)]:
        files = [io.BytesIO(b"a file")]
        answer = Answer(middleware, request(path, **{"wsgi.file_wrapper": Wrapper}))
        assert (type(answer.body) is Wrapper) is wrapped
        assert coordinator.stats().checked_out == (path == "/")
        assert answer.read() == b"a file"
        assert files[0].closed
    assert coordinator.stats().checked_out == 0
    # Some servers have a function.
    assert Answer(middleware, request("/unseen", **{"wsgi.file_wrapper": lambda *_: [b"x"]})).read() == b"x"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("path", ["/", "/stream", "/write", "/handles", "/refused"])
def test_between_two_validators(path: str, session_coordinator: CoordinatorFactory) -> None:
    """`wsgiref.validate` around the middleware and inside it finds nothing that WSGI does not allow."""
    coordinator = session_coordinator(ROOM_FOR_3)

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/refused":
            for session_id in {"a", "b", "c"} - {session.id for session in coordinator.list_sessions()}:
                coordinator.create_session(session_id=session_id)
        return Counter()(environ, start_response)

    visitor = Visitor(validator(SessionMiddleware(validator(app), coordinator)))
    for _ in range(2):
        answer = visitor.begin(path, **{"wsgi.errors": io.StringIO(), "wsgi.input": io.BytesIO()})
        answer.read()
        visitor.take(answer)
        assert answer.status == STATUS.get(path, "200 OK")
    assert coordinator.stats().checked_out == 0


# ---- 503


def test_no_room_for_one_more_visitor(
    session_coordinator: CoordinatorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """503 with `Retry-After`, which is logged. Visitors with a session go on; a request that only looks is served."""
    app = SessionMiddleware(Counter(), session_coordinator(ROOM_FOR_3))
    visitors = [Visitor(app) for _ in range(3)]
    for visitor in visitors:
        visitor.get()
    late = Visitor(app)
    answer = late.get()
    assert (answer.status, answer["Retry-After"], answer["Set-Cookie"]) == ("503 Service Unavailable", "5", None)
    assert "answered 503: max_active_sessions=3" in caplog.text
    assert visitors[0].text() == "2"
    assert late.get(REQUEST_METHOD="HEAD").written == [b""]


@pytest.mark.parametrize("path", ["/", "/stream", "/write"])
def test_a_store_that_cannot_be_read_is_no_empty_session(
    path: str, session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """When the session is busy for too long, there is no room for it, or the store fails, the client gets 503 with
    `Retry-After`, and never a new empty session. The session is there when the store is back."""
    with SessionCoordinator(CONFIG, store=SQLiteStore(store.store.path)) as other:  # type: ignore[attr-defined]  # a SQLite store has it
        visitor = Visitor(SessionMiddleware(Counter(), other))
        visitor.get()
    coordinator = session_coordinator(CONFIG, store=store)
    visitor.app = SessionMiddleware(Counter(), coordinator)
    token = visitor.token
    store.failing.add("*")
    answer = visitor.get(path)
    assert (answer.status, answer["Retry-After"]) == ("503 Service Unavailable", "5")
    store.failing.clear()
    assert visitor.token == token
    assert visitor.text() == "2"


def test_a_save_that_fails_is_no_success(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """What was written before the first part of the body is in the store before the client hears of it. If it is not,
    the client hears 503; the next request that works has the change."""
    coordinator = session_coordinator(CONFIG, store=store)
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    store.failing.add("save")
    assert visitor.get().status == "503 Service Unavailable"
    store.failing.clear()
    assert coordinator.stats().checked_out == 0
    assert visitor.text() == "3"


def test_data_that_cannot_be_stored_is_an_application_error(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """It says where in the data; no client hears that it was done, and the next request has what was stored last."""
    coordinator = session_coordinator(CONFIG, store=store)

    def app(environ: Any, start_response: Any) -> Any:
        environ[KEY]["n"] = 100
        environ[KEY]["when"] = object()
        start_response("200 OK", PLAIN)
        return [b"done"]

    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    visitor.app = SessionMiddleware(app, coordinator)
    told: list[Any] = []
    with pytest.raises(ValueError, match=r"data\['when'\]"):
        visitor.app(request("/", f"{COOKIE}={visitor.token}"), lambda *headers: told.append(headers))
    assert told == []
    visitor.app = SessionMiddleware(Counter(), coordinator)
    assert visitor.text() == "2"


def test_data_that_cannot_be_stored_at_the_end_of_a_stream(
    session_coordinator: CoordinatorFactory, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """That is logged, and the next request has what was saved last, with a store and without."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        environ[KEY]["n"] = 10
        yield b"first"
        environ[KEY]["when"] = object()

    for kept, expected in ((store, "11"), (None, "11")):
        coordinator = session_coordinator(CONFIG, store=kept)
        visitor = Visitor(SessionMiddleware(app, coordinator))
        assert visitor.text() == "first"
        visitor.app = SessionMiddleware(Counter(), coordinator)
        assert visitor.text() == expected
        assert "data['when']" in caplog.text
        caplog.clear()


def test_what_is_lost_at_the_end_of_a_stream_is_logged(
    session_coordinator: CoordinatorFactory, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The response is out: nobody else can be told."""
    coordinator = session_coordinator(CONFIG, store=store)
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    answer = visitor.begin("/stream")
    parts = answer.parts()
    next(parts)
    store.failing.add(GIVE_BACK)
    list(parts)
    with caplog.at_level(logging.ERROR):
        answer.close()
    store.failing.clear()
    assert "the last changes of session" in caplog.text
    assert coordinator.stats().checked_out == 0


def test_an_application_that_handles_it_has_its_way(session_coordinator: CoordinatorFactory) -> None:
    """Its own answer goes out, unless it says that something failed: that is what frameworks make of any error."""
    coordinator = session_coordinator(ROOM_FOR_3)

    def app(environ: Any, start_response: Any) -> Any:
        with pytest.raises(SessionLimitError):
            environ[KEY]["n"] = 1
        # A page may look at what there is.
        assert dict(environ[KEY]) == {}
        start_response(environ["PATH_INFO"].strip("/"), PLAIN)
        return [b"own answer"]

    for _ in range(3):
        coordinator.create_session()
    visitor = Visitor(SessionMiddleware(app, coordinator))
    for status, retry in (
        ("200 OK", None),
        ("429 Too Many Requests", None),
        ("302 Found", None),
        ("503 Service Unavailable", "5"),
    ):
        answer = visitor.get(f"/{status}")
        assert (answer.status, answer.written, answer["Retry-After"]) == (status, [b"own answer"], retry)
    assert visitor.get("/500 Internal Server Error").status == "503 Service Unavailable"


CHANGES: dict[str, Callable[[WebSession], object]] = {
    "set": lambda session: session.__setitem__("n", 2),
    "update": lambda session: session.update(n=2),
    "or": lambda session: session.__ior__({"n": 2}),
    "setdefault": lambda session: session.setdefault("cart", []).append(1),
    "pop": lambda session: session.pop("n", None),
    "clear": WebSession.clear,
    "touch": WebSession.touch,
    "rotate": WebSession.rotate,
    "close": WebSession.close,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("status", ["200 OK", "302 Found", "403 Forbidden", "503 Service Unavailable"])
def test_after_a_failure_the_session_is_inert(
    status: str,
    change: str,
    session_coordinator: CoordinatorFactory,
    store: WatchedStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a failure the session reads as empty, and changes are ignored and logged once. The client gets 503 with
    `Retry-After` then, whatever the application says was done."""

    def app(environ: Any, start_response: Any) -> Any:
        session: WebSession = environ[KEY]
        with suppress(Exception):
            session.get("n")
        for _ in range(2):
            assert (dict(session), len(session), "n" in session) == ({}, 0, False)
            assert (session.id, session.resource, session.ended, session.new) == (None, None, None, False)
            CHANGES[change](session)
            with pytest.raises(KeyError):
                session.pop("n")
            with pytest.raises(KeyError):
                del session["n"]
            session.release()
        start_response(status, PLAIN)
        return [b"own answer"]

    with SessionCoordinator(CONFIG, store=SQLiteStore(store.store.path)) as other:  # type: ignore[attr-defined]  # a SQLite store has it
        visitor = Visitor(SessionMiddleware(Counter(), other))
        visitor.get()
    visitor.app = SessionMiddleware(app, session_coordinator(CONFIG, store=store))
    store.failing.add("*")
    answer = visitor.get()
    store.failing.clear()
    assert (answer.status, answer["Retry-After"]) == ("503 Service Unavailable", "5")
    assert (answer.written == [b"own answer"]) is status.startswith("503")
    assert caplog.text.count("a change to the session is ignored") == 1
    visitor.app = SessionMiddleware(Counter(), session_coordinator(CONFIG, store=SQLiteStore(store.store.path)))  # type: ignore[attr-defined]  # a SQLite store has it
    assert visitor.text() == "2"


def test_an_application_that_fails_after_the_session_did(
    session_coordinator: CoordinatorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """503 as well; what it raised, and where, is in the log. Its body is closed."""
    coordinator = session_coordinator(ROOM_FOR_3)
    closed: list[bool] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        try:
            with suppress(SessionLimitError):
                environ[KEY]["n"] = 1
            yield b"%d" % environ[KEY]["n"]
        finally:
            closed.append(True)

    for _ in range(3):
        coordinator.create_session()
    assert Visitor(SessionMiddleware(app, coordinator)).get().status == "503 Service Unavailable"
    assert "KeyError: 'n'" in caplog.text
    assert closed == [True]


def test_a_new_session_that_is_evicted_at_once(session_coordinator: CoordinatorFactory) -> None:
    """There was no room for it after all: 503."""
    coordinator = session_coordinator(CONFIG)
    create = coordinator.create_session

    def create_and_evict(**options: Any) -> None:
        coordinator.close_session(create(**options).id)

    coordinator.create_session = create_and_evict  # type: ignore[assignment,method-assign]  # for want of another thread
    assert Visitor(SessionMiddleware(Counter(), coordinator)).get().status == "503 Service Unavailable"


def test_a_release_that_fails_is_503(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """Also where a framework made 500 of it, with a body that needs the session no more."""
    coordinator = session_coordinator(CONFIG, store=store)

    def app(environ: Any, start_response: Any) -> Any:
        session: WebSession = environ[KEY]
        session["n"] = 2
        with pytest.raises(StoreError):
            session.release()
        start_response("500 Internal Server Error", PLAIN)
        return [b"sorry"]

    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    visitor.app = SessionMiddleware(app, coordinator)
    store.failing.add(GIVE_BACK)
    assert visitor.get().status == "503 Service Unavailable"
    store.failing.clear()
    assert coordinator.stats().checked_out == 0


@pytest.mark.parametrize("problem", [OSError("no resource"), KeyboardInterrupt()])
def test_a_look_that_failed_for_another_reason_looks_again(
    problem: BaseException, session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """An application that goes on after that is not given a new empty session, nor the visitor another token."""
    problems = [problem]

    def make(_: Any) -> str:
        if problems:
            raise problems.pop()
        return "live"

    with SessionCoordinator(CONFIG, store=SQLiteStore(store.store.path)) as other:  # type: ignore[attr-defined]  # a SQLite store has it
        visitor = Visitor(SessionMiddleware(Counter(), other))
        visitor.get()

    def app(environ: Any, start_response: Any) -> Any:
        session: WebSession = environ[KEY]
        with pytest.raises(type(problem)):
            session.get("n")
        session["flash"] = "sorry"
        start_response("200 OK", PLAIN)
        return [str(dict(session)).encode()]

    token = visitor.token
    visitor.app = SessionMiddleware(app, session_coordinator(CONFIG, store=store, resource_factory=make))
    assert visitor.text() == "{'n': 1, 'flash': 'sorry'}"
    assert visitor.token == token


def test_a_coordinator_closed_under_a_request(session_coordinator: CoordinatorFactory) -> None:
    """The session that the request has, which nobody got the token of, is closed when the request is over."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)

    def app(environ: Any, _: Any) -> Any:
        environ[KEY]["n"] = 1
        coordinator.close()
        raise ValueError("application error")

    with pytest.raises(ValueError, match="application error"):
        Visitor(SessionMiddleware(app, coordinator)).get()
    assert [cause for _, cause in closings] == [RemovalCause.SHUTDOWN]
    assert coordinator.stats().checked_out == 0


def test_a_closed_coordinator_is_503(session_coordinator: CoordinatorFactory) -> None:
    """As a server has it that is about to stop."""
    coordinator = session_coordinator(CONFIG)
    visitor = Visitor(SessionMiddleware(Counter(), coordinator))
    visitor.get()
    coordinator.close()
    assert visitor.get().status == "503 Service Unavailable"


def test_a_session_ended_in_another_process_while_a_request_runs(
    session_coordinator: CoordinatorFactory, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The visitor logged out there: the request ends as usual, and what it wrote is gone with the session."""
    coordinator = session_coordinator(CONFIG, store=store)

    def app(environ: Any, start_response: Any) -> Any:
        environ[KEY]["n"] = 2
        store.store.delete({environ[KEY].id: None})
        if environ["PATH_INFO"] == "/close":
            environ[KEY].close()
        start_response("200 OK", PLAIN)
        return [b"done"]

    for path in ("/", "/close"):
        visitor = Visitor(SessionMiddleware(Counter(), coordinator))
        visitor.get()
        visitor.app = SessionMiddleware(app, coordinator)
        assert visitor.text(path) == "done"
    assert not caplog.records
    assert store.store.page(None, 10) == []


def test_a_busy_rotation_is_503(coordinator: SessionCoordinator[Any]) -> None:
    """In shared mode, it waits for the other requests no longer than the time limit."""

    def app(environ: Any, start_response: Any) -> Any:
        environ[KEY].rotate()
        start_response("200 OK", PLAIN)
        return [b"rotated"]

    visitor = Visitor(SessionMiddleware(Counter(), coordinator, shared=True))
    visitor.get()
    other = visitor.begin()
    visitor.app = SessionMiddleware(app, coordinator, shared=True, timeout=0.001)
    with in_thread(visitor.get) as future:
        assert future.result(WAIT).status == "503 Service Unavailable"
    assert other.read() == b"2"
    assert coordinator.stats().checked_out == 0
