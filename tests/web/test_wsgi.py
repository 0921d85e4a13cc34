"""The middleware: a session from request to request, what of it travels, and what the client is told."""

from __future__ import annotations

import gc
import logging
import secrets
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec, patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionkit import CoordinatorConfig, SessionCoordinator, SessionNotFoundError
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.web.cookie import id_of
from sessionkit.wsgi import SessionCookie, SessionMiddleware, WebSession

from ..helpers.support import WatchedStore, records_in
from ..helpers.web import CONFIG, COOKIE, SITE, Answer, Site, Visitor, count, request

# ---- From request to request


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


def test_a_request_that_never_looks_costs_nothing(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """A request that never looks at its session costs no lookup, sets no cookie and takes no lock. It is no activity
    either, and the answer goes out as the application made it."""
    coordinator = session_coordinator(CONFIG)
    visitor = Visitor(SessionMiddleware(SITE, coordinator))
    visitor.get()
    session = coordinator.list_sessions()[0]
    last_active = session.metadata.last_active
    session_clock.advance(1)
    answer = visitor.get("/nothing")
    assert answer.headers == SITE.headers
    assert session.metadata.last_active == last_active
    # No call of the coordinator is made, so none takes its lock.
    watched = create_autospec(SessionCoordinator, instance=True)
    visitor.app = SessionMiddleware(SITE, watched)
    watched.reset_mock()
    assert visitor.text("/nothing") == "nothing"
    assert watched.mock_calls == []
    visitor.get("/look")
    assert next(name for name, _, _ in watched.mock_calls) == "checkout"
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


# ---- Tokens


def test_a_token_that_was_not_issued_is_never_adopted(coordinator: SessionCoordinator[Any]) -> None:
    """Fixation: a visitor who brings a token of his own gets another one with the first write, and none before."""
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
    """A person who read an id in a log, a store or a page has nothing."""
    app = SessionMiddleware(SITE, coordinator)
    Visitor(app).get()
    thief = Visitor(app)
    thief.cookies[COOKIE] = coordinator.list_sessions()[0].id
    assert thief.text("/look") == "{}"


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.usefixtures("unmeasured")
def test_forged_ids_leave_no_trace(
    stored: bool, session_coordinator: CoordinatorFactory, store: WatchedStore, tmp_path: Path
) -> None:
    """A token that was not issued is never adopted, and 10,000 forged ones leave no session, no record and no
    memory."""
    coordinator = session_coordinator(CONFIG, store=store if stored else None)
    app = SessionMiddleware(SITE, coordinator)

    def forge(number: int) -> None:
        for token in [secrets.token_urlsafe(32) for _ in range(number)]:
            app_iter = app(request("/look", f"{COOKIE}={token}"), lambda *_: list)  # type: ignore[arg-type,return-value]  # enough of a start_response
            assert list(app_iter) == [b"{}"]
            app_iter.close()  # type: ignore[attr-defined]  # it has one

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
    forge(7000)
    # What 2,000 sessions, or notes of them, would take is above 200 KB; the store's own caches fill up.
    assert grown < 100_000
    assert len(coordinator) == 0
    # It does not know them as sessions that have ended.
    with pytest.raises(SessionNotFoundError) as caught:
        coordinator.get_session(id_of(secrets.token_urlsafe(32)))
    assert caught.type is SessionNotFoundError
    assert sum(coordinator.stats().removed.values()) == 0
    assert stored_bytes() == before_all
    assert not store.calls["create"]
    assert records_in(tmp_path / "sessions.db") == {}
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        assert connection.execute("SELECT * FROM holders").fetchall() == []
    # Nor is anything left to be told to the store.
    coordinator.cleanup_inactive_sessions()
    assert not store.calls["detach"]


def test_secrets_do_not_travel(
    session_coordinator: CoordinatorFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The token has 256 random bits, and the session id is its SHA-256: stores, logs and events never have the
    token. Nor has who reads a repr or an error."""
    path = tmp_path / "sessions.db"
    coordinator = session_coordinator(CONFIG, store=SQLiteStore(path))
    channel = coordinator.subscribe()

    def fail(session: WebSession) -> None:
        raise ValueError(repr(session) + repr(coordinator.get_session(str(session.id))))

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


def test_the_first_token_that_is_live_wins(session_coordinator: CoordinatorFactory, session_clock: ManualClock) -> None:
    """Of several cookies of one name, such as one of a parent domain, each token is tried, up to 10, and the first that
    is live wins. If none is, the application hears how the first one ended that is known to have."""
    coordinator = session_coordinator(CONFIG)

    def ended(session: WebSession) -> object:
        return session.ended and session.ended.cause.name

    app = SessionMiddleware(Site(index=count, ended=ended, close=WebSession.close), coordinator)
    old, live, other = Visitor(app), Visitor(app), Visitor(app)
    old.get()
    session_clock.advance(61)
    for visitor in (live, other):
        visitor.get()
    closed = Visitor(app)
    closed.get()
    closed_token = closed.token
    closed.get("/close")
    stale = [secrets.token_urlsafe(32) for _ in range(9)]

    def ask(path: str, *tokens: str | None) -> Answer:
        answer = Answer(app, request(path, "; ".join(f"{COOKIE}={token}" for token in tokens)))
        answer.written = [answer.read()]
        return answer

    for tokens in (
        [*stale, live.token],
        [live.token, *stale],
        ["garbage", stale[0], old.token, live.token, other.token],
    ):
        assert ask("/ended", *tokens).written == [b"None"]
        before = coordinator.get_session(id_of(str(live.token))).data["n"]
        answer = ask("/", *tokens)
        assert (answer.written, answer["Set-Cookie"]) == ([b"%d" % (before + 1)], None)
    assert coordinator.get_session(id_of(str(other.token))).data == {"n": 1}
    # The eleventh is not looked for, and those that are cost one lookup each.
    with patch.object(coordinator, "checkout", wraps=coordinator.checkout) as checkout:
        assert ask("/", *stale, stale[0], secrets.token_urlsafe(32), live.token).written == [b"1"]
    assert len(checkout.mock_calls) == 11
    assert ask("/ended", stale[0], old.token, closed_token).written == [b"IDLE"]
    assert ask("/ended", stale[0], closed_token, old.token).written == [b"CLOSED"]
    assert live.get("/close")["Set-Cookie"] is not None
    assert ask("/ended", live.token, closed_token).written == [b"CLOSED"]


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


def test_a_cookie_with_a_lifetime_is_renewed(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, tmp_path: Path
) -> None:
    """A cookie with a lifetime is sent again while its visitor is active, at most once in a tenth of its lifetime; also
    by another worker, after a restart, and after a rotation. A request that never looks sends none."""
    cookie = SessionCookie(max_age=600)
    site = Site(index=count, nothing=lambda _: "", rotate=WebSession.rotate, release=WebSession.release)
    config = CoordinatorConfig(session_timeout=1000, cleanup_interval=100)

    def worker() -> SessionMiddleware:
        coordinator = session_coordinator(config, store=SQLiteStore(tmp_path / "sessions.db"))
        return SessionMiddleware(site, coordinator, cookie=cookie)

    visitor = Visitor(worker())
    workers = [visitor.app, worker()]
    sent: list[int] = []
    for second in range(0, 200, 5):
        visitor.app = workers[second % 2]
        if second == 100:
            workers[1] = visitor.app = worker()
        path = {30: "/nothing", 60: "/nothing", 140: "/rotate", 145: "/release"}.get(second, "/")
        answer = visitor.get(path)
        if answer["Set-Cookie"] is not None:
            assert "Max-Age=600;" in str(answer["Set-Cookie"])
            assert answer["Cache-Control"] == "private, no-store"
            sent.append(second)
        session_clock.advance(5)
    assert sent == [0, 65, 125, 140]
    session_clock.advance(5)
    assert visitor.get("/release")["Set-Cookie"] is not None


@pytest.mark.parametrize("sent", ["", ".999999999999999", ".0"])
def test_what_a_client_says_of_its_cookies_age(sent: str, session_coordinator: CoordinatorFactory) -> None:
    """Decides about nothing but whether it is sent again: a cookie of before there was a lifetime is."""
    coordinator = session_coordinator(CONFIG)
    visitor = Visitor(SessionMiddleware(SITE, coordinator))
    visitor.get()
    app = SessionMiddleware(SITE, coordinator, cookie=SessionCookie(max_age=600))
    answer = Answer(app, request("/", f"{COOKIE}={visitor.token}{sent}"))
    assert answer.read() == b"2"
    assert (answer["Set-Cookie"] is None) is (sent == ".0")


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
