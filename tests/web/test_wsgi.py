"""The middleware: when a session is looked up, made, saved and given back, and what the client is told."""

from __future__ import annotations

import gc
import logging
import secrets
import sqlite3
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionkit import (
    CoordinatorConfig,
    RemovalCause,
    SessionCoordinator,
    SessionNotFoundError,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.web.cookie import id_of
from sessionkit.wsgi import KEY, SessionCookie, SessionMiddleware, WebSession

from ..helpers.support import WAIT, Closings, WatchedStore, in_thread, records_in
from ..helpers.web import COOKIE, Answer, Visitor, request

CONFIG = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=100)

View = Callable[[WebSession], object]


class Site:
    """An application whose pages are functions of the session; what they return is the text."""

    def __init__(self, **pages: View) -> None:
        self.pages = pages
        self.headers = [("Content-Type", "text/plain")]

    def __call__(self, environ: Any, start_response: Any) -> Any:
        text = str(self.pages[environ["PATH_INFO"].strip("/") or "index"](environ[KEY]))
        start_response("200 OK", list(self.headers))
        return [text.encode()]


def count(session: WebSession) -> int:
    session["n"] = session.get("n", 0) + 1
    return int(session["n"])


SITE = Site(index=count, look=lambda session: dict(session), nothing=lambda _: "nothing")


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory) -> SessionCoordinator[Any]:
    return session_coordinator(CONFIG)


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    return WatchedStore(SQLiteStore(tmp_path / "sessions.db"))


# ---- When there is a session


def test_a_visitor_has_a_session_from_request_to_request(coordinator: SessionCoordinator[Any]) -> None:
    """Each visitor his own; the id is the SHA-256 of the token, which nobody else has."""
    app = SessionMiddleware(SITE, coordinator)
    one, two = Visitor(app), Visitor(app)
    assert [one.text() for _ in range(3)] == ["1", "2", "3"]
    assert two.text() == "1"
    assert one.token is not None
    assert one.token != two.token
    assert coordinator.get_session(id_of(one.token)).data == {"n": 3}
    assert len(coordinator) == 2
    assert coordinator.stats().checked_out == 0


def test_a_request_that_never_looks_costs_nothing(coordinator: SessionCoordinator[Any]) -> None:
    """A request that never looks at its session costs no lookup, sets no cookie and takes no lock. It is no activity
    either, and the answer goes out as the application made it."""
    app = SessionMiddleware(SITE, coordinator)
    visitor = Visitor(app)
    visitor.get()
    session = coordinator.list_sessions()[0]
    last_active = session.metadata.last_active
    coordinator._clock.latest += 1
    with patch.object(coordinator, "_lock", None), patch.object(coordinator, "checkout", None):
        answer = visitor.get("/nothing")
    assert answer.headers == SITE.headers
    assert session.metadata.last_active == last_active
    body = [b"as it is"]
    bare = SessionMiddleware(lambda _, start: (start("200 OK", []) and None) or body, coordinator)
    assert bare(request(), lambda *_: True) is body  # type: ignore[arg-type,return-value]  # enough of a start_response


def test_a_session_that_is_only_looked_at_and_empty_is_never_made(
    session_coordinator: CoordinatorFactory, store: WatchedStore, tmp_path: Path
) -> None:
    """A session that is only looked at and is empty is never created or stored: the first write creates it. These are
    all ways to read; the response only says that it depends on the cookie."""
    coordinator = session_coordinator(CONFIG, store=store)

    def look(session: WebSession) -> object:
        assert not session
        assert "a" not in session
        assert (session.get("a"), session.pop("a", 1)) == (None, 1)
        assert (session.id, session.resource, session.ended, session.new) == (None, None, None, False)
        session.touch()
        session.rotate()
        session.close()
        session.clear()
        session.update()
        with pytest.raises(KeyError):
            del session["a"]
        with pytest.raises(KeyError):
            session["a"]
        return dict(session)

    answer = Visitor(SessionMiddleware(Site(index=look), coordinator)).get()
    assert answer.written == [b"{}"]
    assert answer.headers == [("Content-Type", "text/plain"), ("Vary", "Cookie")]
    assert len(coordinator) == 0
    assert not store.calls["create"]
    assert records_in(tmp_path / "sessions.db") == {}


def test_the_first_write_makes_the_session(session_coordinator: CoordinatorFactory) -> None:
    """All of an update is in its data when the resource is made; the same request sees it."""
    coordinator = session_coordinator(CONFIG, resource_factory=lambda session: f"live in {session.data['lang']}")

    def write(session: WebSession) -> object:
        assert session.resource is None
        session.update({"lang": "en"}, user=7)
        assert session.new
        return session.resource, session["user"], session.id == coordinator.list_sessions()[0].id

    visitor = Visitor(SessionMiddleware(Site(index=write, again=lambda s: (s.new, s.resource)), coordinator))
    assert visitor.text() == "('live in en', 7, True)"
    assert visitor.text("/again") == "(False, 'live in en')"


def test_it_reads_and_writes_like_a_dict(coordinator: SessionCoordinator[Any]) -> None:
    """What a dict can do, and a repr that shows no token."""

    def checks(session: WebSession) -> str:
        assert repr(session) == "<WebSession not looked at>"
        assert not session._visit.looked_at
        session["a"] = 1
        session.setdefault("b", [])
        session["b"].append(2)
        assert session == {"a": 1, "b": [2]}
        assert (list(session), len(session), "a" in session, session.pop("a")) == (["a", "b"], 2, True, 1)
        del session["b"]
        assert not session
        session.update([("c", 3)])
        assert session.popitem() == ("c", 3)
        session["d"] = 4
        assert session.setdefault("d", 5) == 4
        assert (session.copy(), session | {"e": 5}) == ({"d": 4}, {"d": 4, "e": 5})
        session |= {"f": 6}
        with pytest.raises(KeyError):
            session.pop("g")
        assert (session.pop("f"), session.pop("g", 7)) == (6, 7)
        session.clear()
        assert dict(session) == {}
        assert repr(session) == f"<WebSession {session.id!r}>"
        return "done"

    visitor = Visitor(SessionMiddleware(Site(index=checks), coordinator))
    assert visitor.text() == "done"
    assert len(coordinator) == 1


def test_the_repr_of_a_visitor_without_a_session(coordinator: SessionCoordinator[Any]) -> None:
    """Says that there is none."""
    page = Site(index=lambda session: (session.get("a"), session))
    assert Visitor(SessionMiddleware(page, coordinator)).text() == "(None, <WebSession none>)"


def test_a_session_that_expired_between_two_requests(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """The next request has an empty one, can tell why, and gets another token with the next write."""
    coordinator = session_coordinator(CONFIG)

    def tell(session: WebSession) -> object:
        assert session.ended is not None
        assert not session
        return session.ended.cause.name, session.ended.limit

    visitor = Visitor(SessionMiddleware(Site(index=count, tell=tell), coordinator))
    visitor.get()
    token = visitor.token
    session_clock.advance(61)
    assert visitor.text("/tell") == "('IDLE', 60.0)"
    assert visitor.token == token
    assert visitor.text() == "1"
    assert visitor.token != token


def test_every_look_is_activity(session_coordinator: CoordinatorFactory, session_clock: ManualClock) -> None:
    """The session is touched when it is taken and given back, and when the application says so in between."""
    coordinator = session_coordinator(CONFIG)

    def long(session: WebSession) -> str:
        session.get("n")
        session_clock.advance(50)
        session.touch()
        assert coordinator.list_sessions()[0].metadata.last_active == session_clock()
        session_clock.advance(50)
        return "long"

    visitor = Visitor(SessionMiddleware(Site(index=count, long=long), coordinator))
    visitor.get()
    session_clock.advance(60)
    visitor.get("/long")
    session_clock.advance(60)
    assert visitor.text() == "2"


# ---- Tokens


def test_a_token_that_was_not_issued_is_never_adopted(coordinator: SessionCoordinator[Any]) -> None:
    """Fixation: whoever brings a token of his own gets another one with the first write, and none before."""
    app = SessionMiddleware(SITE, coordinator)
    victim = Visitor(app)
    planted = secrets.token_urlsafe(32)
    victim.cookies[COOKIE] = planted
    assert victim.text("/look") == "{}"
    assert victim.text() == "1"
    assert victim.token != planted
    attacker = Visitor(app)
    attacker.cookies[COOKIE] = planted
    assert attacker.text("/look") == "{}"


def test_an_id_is_no_token(coordinator: SessionCoordinator[Any]) -> None:
    """Whoever read one in a log, a store or a page has nothing."""
    app = SessionMiddleware(SITE, coordinator)
    Visitor(app).get()
    thief = Visitor(app)
    thief.cookies[COOKIE] = coordinator.list_sessions()[0].id
    assert thief.text("/look") == "{}"


@pytest.mark.parametrize("stored", [False, True])
def test_forged_ids_leave_no_trace(
    stored: bool, session_coordinator: CoordinatorFactory, store: WatchedStore, tmp_path: Path
) -> None:
    """A token that was not issued is never adopted, and 100,000 forged ones leave no session, no record and no
    memory."""
    coordinator = session_coordinator(CONFIG, store=store if stored else None)
    app = SessionMiddleware(SITE, coordinator)

    def forge(number: int) -> str:
        for token in [secrets.token_urlsafe(32) for _ in range(number)]:
            app_iter = app(request("/look", f"{COOKIE}={token}"), lambda *_: list)  # type: ignore[arg-type,return-value]  # enough of a start_response
            assert list(app_iter) == [b"{}"]
            app_iter.close()  # type: ignore[attr-defined]  # it has one
        return token

    def stored_bytes() -> list[bytes]:
        return [tmp_path.joinpath(f"sessions.db{suffix}").read_bytes() for suffix in ("", "-wal") if stored]

    forge(1000)
    before_all = stored_bytes()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        forge(2000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    forged = forge(97_000)
    # What 2,000 sessions, or notes of them, would take is above 200 KB; the store's own caches fill up.
    assert grown < 100_000
    assert len(coordinator) == 0
    with pytest.raises(SessionNotFoundError) as caught:
        coordinator.get_session(id_of(forged))
    assert caught.type is SessionNotFoundError
    assert stored_bytes() == before_all
    assert not store.calls["create"]
    assert records_in(tmp_path / "sessions.db") == {}
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        assert connection.execute("SELECT * FROM holders").fetchall() == []
    if coordinator._records is not None:
        assert not coordinator._records.undetached


def test_secrets_do_not_travel(
    session_coordinator: CoordinatorFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The token has 256 random bits, and the session id is its SHA-256: who reads the store, the log or an event has no
    token. Nor has who reads a repr or an error."""
    path = tmp_path / "sessions.db"
    coordinator = session_coordinator(CONFIG, store=SQLiteStore(path))
    channel = coordinator.subscribe()

    def fail(session: WebSession) -> None:
        raise ValueError(repr(session) + repr(session._visit.session))

    visitor = Visitor(SessionMiddleware(Site(index=count, fail=fail, close=WebSession.close), coordinator))
    with caplog.at_level(logging.DEBUG):
        visitor.get()
        token = visitor.token
        assert token is not None
        with pytest.raises(ValueError, match="WebSession") as caught:
            visitor.get("/fail")
        visitor.get("/close")
    told = [str(caught.value), caplog.text, *(str(event) for event in iter(lambda: channel.get(0), None))]
    assert len(told) == 4
    assert not [text for text in told if token in text]
    assert not [file for file in tmp_path.iterdir() if token.encode() in file.read_bytes()]
    assert id_of(token) in told[-1]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_as_cookies(header: bytes) -> None:
    """Whatever a client sends, it has no session, and the response's headers are those of any visitor."""
    with SessionCoordinator(CONFIG) as coordinator:
        app = SessionMiddleware(SITE, coordinator)
        answer = Answer(app, request("/look", header.decode("latin-1")))
        assert answer.read() == b"{}"
        assert answer.headers == [("Content-Type", "text/plain"), ("Vary", "Cookie")]
        fresh = Answer(app, request("/", header.decode("latin-1")))
        assert fresh.read() == b"1"
        assert [name for name, _ in fresh.headers] == ["Content-Type", "Vary", "Set-Cookie", "Cache-Control"]
        assert len(coordinator) == 1


def test_nothing_that_a_client_sends_comes_back_in_a_header_or_a_log_line(
    session_coordinator: CoordinatorFactory, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that a client sends as a cookie comes back in a header or a log line. Here, it sends line breaks and
    more, when all goes well and when not."""
    coordinator = session_coordinator(CONFIG, store=store)
    app = SessionMiddleware(SITE, coordinator)
    evil = "x\r\nSet-Cookie: admin=1\nForged: log line"
    visitor = Visitor(app)
    visitor.get()
    header = f"{evil}={evil}; {COOKIE}={evil}; {COOKIE}={visitor.token}"
    with caplog.at_level(logging.DEBUG):
        answers = [Answer(app, request("/", header))]
        answers[0].read()
        store.failing.add("*")
        answers.append(Answer(app, request("/", f"{COOKIE}={secrets.token_urlsafe(32)}; {evil}")))
        answers[1].read()
        store.failing.clear()
    told = "".join(f"{name}: {value}\0" for answer in answers for name, value in answer.headers)
    assert "\n" not in told
    assert "admin" not in told + caplog.text
    assert [answer.status[:3] for answer in answers] == ["200", "503"]


# ---- What the client is told


def test_the_headers_of_a_new_session(coordinator: SessionCoordinator[Any]) -> None:
    """A response that depends on the session says `Vary: Cookie`; one that sets a cookie says `Cache-Control: private,
    no-store`. That is so whatever the application said of it."""
    site = Site(index=count)
    site.headers = [("Vary", "Accept"), ("Cache-Control", "public, max-age=600"), ("Set-Cookie", "other=1")]
    app = SessionMiddleware(site, coordinator)
    answer = Answer(app, request())
    answer.read()
    cookies = [value for name, value in answer.headers if name == "Set-Cookie"]
    assert cookies[0] == "other=1"
    assert cookies[1].startswith(f"{COOKIE}=")
    assert set(cookies[1].split("; ")[1:]) == {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"}
    assert (answer["Vary"], answer["Cache-Control"]) == ("Accept, Cookie", "private, no-store")
    again = Answer(app, request(cookies=cookies[1].partition(";")[0]))
    again.read()
    assert (again["Vary"], again["Cache-Control"]) == ("Accept, Cookie", "public, max-age=600")
    assert again["Set-Cookie"] == "other=1"


@pytest.mark.parametrize(
    ("given_vary", "told"),
    [
        (["*"], "*"),
        (["cookie"], "cookie"),
        ([""], "Cookie"),
        (["Accept", "Origin, DNT"], "Accept, Origin, DNT, Cookie"),
    ],
)
def test_vary_is_said_once(coordinator: SessionCoordinator[Any], given_vary: list[str], told: str) -> None:
    """With all that the application said, in however many headers."""
    site = Site(index=lambda session: session.get("a"))
    site.headers = [("Vary", value) for value in given_vary]
    assert Visitor(SessionMiddleware(site, coordinator)).get()["Vary"] == told


def test_no_cache_is_told_to_keep_a_cookie_in_other_words(coordinator: SessionCoordinator[Any]) -> None:
    """Shared caches have headers of their own, which come before `Cache-Control`."""
    site = Site(index=count)
    site.headers = [
        ("CDN-Cache-Control", "max-age=60"),
        ("Surrogate-Control", "max-age=60"),
        ("Expires", "Thu, 01 Jan"),
    ]
    assert [name for name, _ in Visitor(SessionMiddleware(site, coordinator)).get().headers] == [
        "Vary",
        "Set-Cookie",
        "Cache-Control",
    ]


def test_the_cookie_can_be_another_one(coordinator: SessionCoordinator[Any]) -> None:
    """Its name and age, for one."""
    app = SessionMiddleware(SITE, coordinator, cookie=SessionCookie("shop", max_age=600))
    visitor = Visitor(app)
    answer = visitor.get()
    assert "Max-Age=600" in str(answer["Set-Cookie"])
    assert list(visitor.cookies) == ["__Host-shop"]
    assert visitor.text() == "2"


def test_what_the_middleware_is_given_is_checked(coordinator: SessionCoordinator[Any]) -> None:
    """At once, with what was given."""
    for app, options in [
        (None, {}),
        (SITE, {"shared": 1}),
        (SITE, {"timeout": "long"}),
        (SITE, {"timeout": None}),
        (SITE, {"cookie": "name"}),
    ]:
        with pytest.raises(TypeError):
            SessionMiddleware(app, coordinator, **options)  # type: ignore[arg-type]  # what a person may write
    with pytest.raises(ValueError, match="timeout"):
        SessionMiddleware(SITE, coordinator, timeout=-1)
    with pytest.raises(TypeError, match="coordinator"):
        SessionMiddleware(SITE, SITE)  # type: ignore[arg-type]  # what a person may write


# ---- Logging in and out


def test_rotation_gives_a_new_token(coordinator: SessionCoordinator[Any]) -> None:
    """Data and resource stay, the client is told, and the old token is of no use."""

    def login(session: WebSession) -> str:
        session["user"] = 7
        session.rotate()
        session["after"] = True
        return "in"

    app = SessionMiddleware(Site(index=count, login=login, look=dict), coordinator)
    visitor, thief = Visitor(app), Visitor(app)
    visitor.get()
    thief.cookies.update(visitor.cookies)
    assert visitor.text("/login") == "in"
    assert visitor.token != thief.token
    assert visitor.text("/look") == "{'n': 1, 'user': 7, 'after': True}"
    assert thief.text("/look") == "{}"
    assert len(coordinator) == 1


def test_rotation_of_a_session_made_in_the_same_request(coordinator: SessionCoordinator[Any]) -> None:
    """One session, one cookie, with the last token."""

    def work(session: WebSession) -> str:
        session["a"] = 1
        session.rotate()
        return "ok"

    visitor = Visitor(SessionMiddleware(Site(index=work, look=dict), coordinator))
    visitor.get()
    assert visitor.text("/look") == "{'a': 1}"
    assert len(coordinator) == 1


def test_closing_ends_the_session_and_takes_the_cookie(session_coordinator: CoordinatorFactory) -> None:
    """After `close()` the token is dead for whoever copied it. The resource is closed when the call returns."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)

    def logout(session: WebSession) -> object:
        session.close()
        return closings[0][1].name, dict(session), session.id

    app = SessionMiddleware(Site(index=count, logout=logout, look=dict), coordinator)
    visitor, thief = Visitor(app), Visitor(app)
    visitor.get()
    thief.cookies.update(visitor.cookies)
    answer = visitor.get("/logout")
    assert answer.written == [b"('CLOSED', {}, None)"]
    assert answer["Cache-Control"] == "private, no-store"
    assert not visitor.cookies
    assert thief.text("/look") == "{}"


def test_a_write_after_closing_makes_another_session(coordinator: SessionCoordinator[Any]) -> None:
    """To say goodbye on the next page, for one."""

    def logout(session: WebSession) -> object:
        session.close()
        session["message"] = "goodbye"
        return session.new

    visitor = Visitor(SessionMiddleware(Site(index=count, logout=logout, look=dict), coordinator))
    visitor.get()
    token = visitor.token
    assert visitor.text("/logout") == "True"
    assert visitor.token != token
    assert visitor.text("/look") == "{'message': 'goodbye'}"
    assert len(coordinator) == 1


def test_a_session_made_and_closed_in_one_request_leaves_nothing(coordinator: SessionCoordinator[Any]) -> None:
    """No cookie either."""

    def work(session: WebSession) -> str:
        session["a"] = 1
        session.close()
        return "done"

    visitor = Visitor(SessionMiddleware(Site(index=work), coordinator))
    assert visitor.get()["Set-Cookie"] is None
    assert len(coordinator) == 0


def test_a_session_that_ended_under_the_request_cannot_be_rotated(coordinator: SessionCoordinator[Any]) -> None:
    """There is none any more, and the client is told so; touching and closing do no harm either."""

    def work(session: WebSession) -> object:
        session.get("n")
        coordinator.close_session(coordinator.list_sessions()[0].id)
        session.touch()
        session.rotate()
        session.close()
        return session.id

    visitor = Visitor(SessionMiddleware(Site(index=count, work=work), coordinator))
    visitor.get()
    assert visitor.text("/work") == "None"
    assert visitor.token is None


# ---- Several processes


@pytest.fixture
def workers(session_coordinator: CoordinatorFactory, store: WatchedStore, tmp_path: Path) -> tuple[Visitor, Visitor]:
    """One visitor's session in two workers: in this one's store, calls can fail."""
    site = Site(index=count, look=dict, close=WebSession.close, rotate=WebSession.rotate)
    stores = (store, SQLiteStore(tmp_path / "sessions.db"))
    here, there = (Visitor(SessionMiddleware(site, session_coordinator(CONFIG, store=kept))) for kept in stores)
    here.get()
    there.cookies.update(here.cookies)
    assert there.text("/look") == "{'n': 1}"
    return here, there


@pytest.mark.parametrize("failing", ["*", "lease"])
@pytest.mark.parametrize("path", ["/close", "/rotate"])
def test_a_dead_token_is_not_served_from_memory(
    path: str, failing: str, workers: tuple[Visitor, Visitor], store: WatchedStore
) -> None:
    """It died in another worker, and the store cannot say so here: 503."""
    here, there = workers
    there.get(path)
    store.failing.add(failing)
    assert here.get("/look").status == "503 Service Unavailable"
    store.failing.clear()
    assert here.text("/look") == "{}"


def test_a_new_session_that_the_store_does_not_confirm(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """503, and nothing of it stays: nobody has its token."""
    coordinator = session_coordinator(CONFIG, store=store)
    store.failing.add("lease")
    answer = Visitor(SessionMiddleware(SITE, coordinator)).get()
    assert (answer.status, answer["Set-Cookie"]) == ("503 Service Unavailable", None)
    assert len(coordinator) == 0
    assert store.store.page(None, 1) == []
    store.failing.clear()


def test_a_rotation_after_which_a_shared_session_is_not_had_again(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """503, with the new token: the old one is dead."""
    coordinator = session_coordinator(CONFIG, store=store)
    rename = store.store.rename

    def rename_and_fail(*arguments: Any) -> bool:
        store.failing.add("lease")
        return rename(*arguments)

    site = Site(index=count, rotate=WebSession.rotate)
    visitor = Visitor(SessionMiddleware(site, coordinator, shared=True))
    visitor.get()
    token = visitor.token
    with patch.object(store.store, "rename", rename_and_fail):
        assert visitor.get("/rotate").status == "503 Service Unavailable"
    store.failing.clear()
    assert visitor.token != token
    assert visitor.text() == "2"


def test_a_log_out_that_others_may_not_see_is_no_success(workers: tuple[Visitor, Visitor], store: WatchedStore) -> None:
    """The store cannot delete the record: 503, and the cookie is taken all the same; it is deleted later."""
    here, there = workers
    store.failing.add("delete")
    assert here.get("/close").status == "503 Service Unavailable"
    assert here.token is None
    assert there.text("/look") == "{'n': 1}"
    store.failing.clear()
    here.app._service.coordinator.cleanup_inactive_sessions()
    assert there.text("/look") == "{}"


# ---- Several requests of one visitor


def test_requests_that_one_thread_serves_exclude_each_other(coordinator: SessionCoordinator[Any]) -> None:
    """As those do that are greenlets of one thread."""
    visitor = Visitor(SessionMiddleware(SITE, coordinator, timeout=0))
    visitor.get()
    first = visitor.begin()
    assert visitor.get().status == "503 Service Unavailable"
    assert first.read() == b"2"
    assert visitor.text() == "3"


def test_no_update_is_lost(coordinator: SessionCoordinator[Any]) -> None:
    """Exclusive mode: concurrent requests of one visitor have the session one after the other."""
    app = SessionMiddleware(SITE, coordinator, timeout=WAIT)
    visitor = Visitor(app)
    visitor.get()
    threads = [threading.Thread(target=lambda: [visitor.get() for _ in range(25)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert visitor.text() == "202"


def test_a_request_that_waited_too_long_gets_503(coordinator: SessionCoordinator[Any]) -> None:
    """With `Retry-After`; and the one that has the session is not disturbed."""
    visitor = Visitor(SessionMiddleware(SITE, coordinator, timeout=0))
    visitor.get()
    slow = visitor.begin()
    with in_thread(visitor.get) as future:
        answer = future.result(WAIT)
    assert (answer.status, answer["Retry-After"]) == ("503 Service Unavailable", "5")
    assert (answer["Cache-Control"], answer["Vary"], answer["Set-Cookie"]) == ("no-store", "Cookie", None)
    assert b"try again" in answer.written[0]
    assert slow.read() == b"2"
    assert visitor.text() == "3"


def test_shared_requests_have_the_session_at_the_same_time(coordinator: SessionCoordinator[Any]) -> None:
    """Both see what either writes."""
    visitor = Visitor(SessionMiddleware(SITE, coordinator, shared=True, timeout=0))
    visitor.get()
    slow = visitor.begin()
    with in_thread(visitor.text) as future:
        assert future.result(WAIT) == "3"
    assert slow.read() == b"2"
    assert coordinator.list_sessions()[0].data == {"n": 3}


class Meeting:
    """Two requests of one visitor: one waits in the middle until the other one has done something."""

    def __init__(self, coordinator: SessionCoordinator[Any], act: View, *, shared: bool) -> None:
        self.arrived, self.go_on = threading.Event(), threading.Event()
        self.visitor = Visitor(
            SessionMiddleware(
                Site(index=count, wait=self.wait, act=act, look=dict), coordinator, shared=shared, timeout=WAIT
            )
        )
        self.visitor.get()

    def wait(self, session: WebSession) -> object:
        session["begun"] = True
        self.arrived.set()
        assert self.go_on.wait(WAIT)
        session["ended"] = True
        return sorted(session)


def test_login_rotation_while_another_request_runs(coordinator: SessionCoordinator[Any]) -> None:
    """The rotation waits for it; and a request that waits for the rotation, by the old token, gets nothing."""
    rotated = threading.Event()

    def login(session: WebSession) -> str:
        session.rotate()
        session["user"] = 7
        rotated.set()
        return "in"

    meeting = Meeting(coordinator, login, shared=True)
    old = Visitor(meeting.visitor.app)
    old.cookies.update(meeting.visitor.cookies)
    with in_thread(old.text, "/wait") as waiting:
        assert meeting.arrived.wait(WAIT)
        with in_thread(meeting.visitor.text, "/act") as acting:
            assert not rotated.wait(0.01)
            meeting.go_on.set()
            assert acting.result(WAIT) == "in"
        assert waiting.result(WAIT) == "['begun', 'ended', 'n']"
    assert old.text("/look") == "{}"
    assert meeting.visitor.text("/look") == "{'n': 1, 'begun': True, 'ended': True, 'user': 7}"


def test_a_request_that_waited_while_another_one_rotated_has_nothing(coordinator: SessionCoordinator[Any]) -> None:
    """After `rotate()` the old token is dead at once, for requests that wait with it too."""
    holds, go_on = threading.Event(), threading.Event()

    def login(session: WebSession) -> str:
        session["user"] = 7
        holds.set()
        assert go_on.wait(WAIT)
        session.rotate()
        return "in"

    app = SessionMiddleware(Site(index=count, login=login, look=dict), coordinator, timeout=WAIT)
    visitor, old = Visitor(app), Visitor(app)
    visitor.get()
    old.cookies.update(visitor.cookies)
    session = coordinator.list_sessions()[0]
    with in_thread(visitor.text, "/login") as first:
        assert holds.wait(WAIT)
        with in_thread(old.text, "/look") as second:
            while session._hold is None or not session._hold._waiters:
                threading.Event().wait(0.001)
            go_on.set()
            assert (first.result(WAIT), second.result(WAIT)) == ("in", "{}")
    assert visitor.text("/look") == "{'n': 1, 'user': 7}"


def test_two_requests_that_rotate_a_shared_session(coordinator: SessionCoordinator[Any]) -> None:
    """The one that comes second has a token that is dead, and no session; nothing breaks."""
    both = threading.Barrier(2)

    def rotate(session: WebSession) -> object:
        session.get("n")
        both.wait(WAIT)
        session.rotate()
        return dict(session)

    app = SessionMiddleware(Site(index=count, rotate=rotate), coordinator, shared=True, timeout=WAIT)
    visitor = Visitor(app)
    visitor.get()
    copy = Visitor(app)
    copy.cookies.update(visitor.cookies)
    with in_thread(visitor.text, "/rotate") as one, in_thread(copy.text, "/rotate") as other:
        assert sorted([one.result(WAIT), other.result(WAIT)]) == ["{'n': 1}", "{}"]
    assert coordinator.stats().checked_out == 0


def test_several_threads_of_one_request(coordinator: SessionCoordinator[Any]) -> None:
    """Find, or make, one session, and have it both; what the last one knows is kept."""

    def work(session: WebSession) -> object:
        found, asked = [], threading.Event()

        def ask() -> None:
            asked.set()
            found.append(dict(session))
            session["other"] = True

        take = session._visit._tenure.take

        def take_slowly(session_id: str) -> None:
            thread.start()
            assert asked.wait(WAIT)
            take(session_id)

        thread = threading.Thread(target=ask)
        with patch.object(session._visit._tenure, "take", take_slowly):
            found.append(dict(session))
        thread.join(WAIT)
        return found, session.copy()

    def make(session: WebSession) -> object:
        assert session.get("a") is None
        session._visit.create({"a": 1})
        session._visit.create({"b": 2})
        return dict(session)

    visitor = Visitor(SessionMiddleware(Site(index=count, work=work, make=make), coordinator))
    visitor.get()
    assert visitor.text("/work") == "([{'n': 1}, {'n': 1}], {'n': 1, 'other': True})"
    assert Visitor(visitor.app).text("/make") == "{'a': 1, 'b': 2}"
    assert len(coordinator) == 2
    assert coordinator.stats().checked_out == 0


def test_a_look_that_comes_when_the_request_is_over(coordinator: SessionCoordinator[Any]) -> None:
    """A thread that the request has left behind finds nothing, and holds nothing."""
    left: list[WebSession] = []

    def leave(session: WebSession) -> str:
        left.append(session)
        return "left"

    visitor = Visitor(SessionMiddleware(Site(index=count, leave=leave), coordinator))
    visitor.get()
    visitor.begin("/leave").close()
    left[0]._visit.finish()
    assert dict(left[0]) == {}
    assert left[0].id is None
    assert coordinator.stats().checked_out == 0


def test_log_out_while_another_request_runs(session_coordinator: CoordinatorFactory) -> None:
    """It goes on to its end, what it writes is gone with the session, which is closed then, and once."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)
    meeting = Meeting(coordinator, WebSession.close, shared=True)
    running = Visitor(meeting.visitor.app)
    running.cookies.update(meeting.visitor.cookies)
    with in_thread(running.text, "/wait") as waiting:
        assert meeting.arrived.wait(WAIT)
        with in_thread(meeting.visitor.get, "/act") as acting:
            assert acting.result(WAIT).status == "200 OK"
        assert not closings
        assert running.text("/look") == "{}"
        meeting.go_on.set()
        assert waiting.result(WAIT) == "['begun', 'ended', 'n']"
    assert [cause for _, cause in closings] == [RemovalCause.CLOSED]
    assert running.text("/look") == "{}"
