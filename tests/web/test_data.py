"""The data of a request: whose they are, what they may hold, and that they read and write like a dict."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import flask
import pytest
from markupsafe import Markup
from werkzeug.datastructures import MultiDict

import sessionkit.flask
from sessionkit import CoordinatorConfig, InvalidSessionError, SessionCoordinator
from sessionkit.flask import SessionCookie, session
from sessionkit.stores import RedisStore, SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.web.cookie import id_of
from sessionkit.web.request import RequestSession
from sessionkit.web.session import request_of as request_behind
from sessionkit.wsgi import KEY, SessionMiddleware, WebSession

from ..helpers.redis_server import shared_server
from ..helpers.support import GIVE_BACK, WAIT, WatchedStore, in_thread
from ..helpers.web import COOKIE, Site, Visitor, request

mapping_tests = pytest.importorskip("test.mapping_tests", reason="this Python came without its own tests")

KINDS = ["memory", "sqlite", "redis"]
Workers = Callable[[], SessionCoordinator[Any]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def worker(kind: str, session_coordinator: CoordinatorFactory, tmp_path: Path) -> Iterator[Workers]:
    """Makes coordinators that share their sessions; in memory, it is one and the same."""
    config = CoordinatorConfig(on_full="reject" if kind == "memory" else "passivate")
    alone = session_coordinator(config) if kind == "memory" else None
    made: list[SessionCoordinator[Any]] = []
    with shared_server() if kind == "redis" else nullcontext("") as url:

        def make() -> SessionCoordinator[Any]:
            store = SQLiteStore(tmp_path / "sessions.db") if kind == "sqlite" else None
            if kind == "redis":
                store = RedisStore(url, prefix=f"web-data-{uuid.uuid4()}" if not made else made[0].store.prefix)
            made.append(alone or session_coordinator(config, store=store))
            return made[-1]

        yield make
        # Before the server is stopped.
        for coordinator in made:
            coordinator.close()


def flask_site(coordinator: SessionCoordinator[Any], **pages: Callable[[], object]) -> flask.Flask:
    """An application whose pages are functions."""
    app = flask.Flask(__name__)
    sessionkit.flask.init_app(app, coordinator)
    for name, page in pages.items():
        app.add_url_rule(f"/{name}", name, lambda page=page: str(page()))
    return app


# ---- Whose they are


def test_what_is_put_into_two_sessions(worker: Workers) -> None:
    """What one visitor changes reaches no other: a list that is put into two sessions is another one in each."""
    default = ["user"]

    def start(session: WebSession) -> object:
        session["roles"] = default
        assert session["roles"] is default
        return session["roles"]

    def promote(session: WebSession) -> object:
        session["roles"].append("admin")
        return session["roles"]

    def start_anew(session: WebSession) -> object:
        session["roles"] = default
        return session["roles"]

    app = SessionMiddleware(
        Site(start=start, promote=promote, again=start_anew, me=lambda session: session["roles"]), worker()
    )
    ann, bob = Visitor(app), Visitor(app)
    for visitor in (ann, bob):
        assert visitor.text("/start") == "['user']"
    # He puts it where an equal one is.
    bob.text("/again")
    assert ann.text("/promote") == ann.text("/me") == "['user', 'admin']"
    assert bob.text("/me") == Visitor(app).text("/start") == "['user']"
    assert default == ["user"]


def test_what_is_put_into_two_sessions_in_flask(worker: Workers) -> None:
    """The same, also of what is in a tuple, and where the first request goes on with it."""
    default: list[Any] = ["user"]

    def start() -> object:
        session["roles"] = (default, {"deep": default})
        return session["roles"]

    def promote() -> object:
        session["roles"][0].append("admin")
        return session["roles"]

    app = flask_site(worker(), start=start, promote=promote, me=lambda: session["roles"])
    ann, bob = app.test_client(), app.test_client()
    plain, promoted = "(['user'], {'deep': ['user']})", "(['user', 'admin'], {'deep': ['user']})"
    assert [ann.get("/start").text, bob.get("/start").text] == [plain, plain]
    ann.get("/promote")
    assert [visitor.get("/me").text for visitor in (ann, bob)] == [promoted, plain]


def test_what_is_put_in_while_a_stream_has_the_session(session_coordinator: CoordinatorFactory) -> None:
    """With `shared=True`: no other visitor has to wait for the end of a stream until nothing is shared."""
    default = ["user"]

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        session = environ[KEY]
        session.setdefault("roles", default)
        yield b"first"
        if environ["PATH_INFO"] == "/promote":
            session["roles"].append("admin")
        yield repr(session["roles"]).encode()

    coordinator = session_coordinator()
    shared = SessionMiddleware(app, coordinator, shared=True, timeout=0)
    ann = Visitor(shared)
    stream = ann.begin()
    parts = stream.parts()
    assert next(parts) == b"first"
    ann.take(stream)
    assert ann.text("/promote") == "first['user', 'admin']"
    assert Visitor(shared).text() == "first['user']"
    stream.close()
    assert ann.token is not None
    assert coordinator.get_session(id_of(ann.token)).data == {"roles": ["user", "admin"]}
    assert Visitor(shared).text() == "first['user']"
    assert default == ["user"]


def test_what_was_put_in_or_read_can_be_changed_until_the_end(worker: Workers) -> None:
    """Any change is saved, however deep: of a list that made the session, of one that was read, and of one that the
    application has still after it told the first part."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        session = environ[KEY]
        start_response("200 OK", [])
        ours: list[Any] = []
        session.setdefault("ours", ours)
        session["ours"].append({})
        yield b"first"
        session["ours"][-1]["deep"] = len(session["ours"])
        yield b"second"
        if environ["PATH_INFO"] == "/rotate":
            ours.append("made before")
        yield json.dumps(session["ours"]).encode()

    first, second = (Visitor(SessionMiddleware(app, worker())) for _ in range(2))
    assert first.text("/rotate") == 'firstsecond[{"deep": 1}, "made before"]'
    second.cookies = first.cookies
    assert second.text() == 'firstsecond[{"deep": 1}, "made before", {"deep": 3}]'


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_read_before_a_rotation_can_be_changed_after_it(
    shared: bool, session_coordinator: CoordinatorFactory
) -> None:
    """Also where the session is given back for the rotation, so that others have it meanwhile."""

    def rotate(session: WebSession) -> object:
        cart, name = session["cart"], session.setdefault("name", ["ada"])
        session["gone"] = 1
        del session["gone"]
        session.rotate()
        cart.append(2)
        name.append("b")
        return session["cart"] is cart

    site = Site(index=lambda session: session.update(cart=[1]), rotate=rotate, look=dict)
    visitor = Visitor(SessionMiddleware(site, session_coordinator(), shared=shared))
    visitor.get()
    assert visitor.text("/rotate") == "True"
    assert visitor.text("/look") == "{'cart': [1, 2], 'name': ['ada', 'b']}"


def test_requests_that_share_a_session_change_what_is_deep_in_it(session_coordinator: CoordinatorFactory) -> None:
    """Each by its own key: neither undoes what the other one has changed, set or removed."""
    met = threading.Barrier(2)

    def work(session: WebSession, mine: str, other: str) -> object:
        lists = {key: session[key] for key in ("a", "b", "both")}
        met.wait(WAIT)
        lists[mine].append(1)
        session[f"by {mine}"] = [mine]
        del session[f"for {mine}"]
        session["both"] = [*lists["both"], 1]
        return sorted(lists), other

    def first(session: WebSession) -> None:
        session.update({"a": [], "b": [], "both": [], "for a": 1, "for b": 1})

    site = Site(index=first, a=lambda s: work(s, "a", "b"), b=lambda s: work(s, "b", "a"))
    coordinator = session_coordinator()
    visitor = Visitor(SessionMiddleware(site, coordinator, shared=True))
    visitor.get()
    with in_thread(visitor.text, "/a"):
        visitor.text("/b")
    assert coordinator.list_sessions()[0].data == {"a": [1], "b": [1], "both": [1], "by a": ["a"], "by b": ["b"]}


def test_data_that_are_read_anew_meanwhile(session_coordinator: CoordinatorFactory) -> None:
    """As after a change elsewhere: what is the same as before keeps nothing of what the application changes from being
    saved, and what is not the same stays."""
    coordinator = session_coordinator()

    def work(session: WebSession) -> object:
        same, other, kept, gone = (session[key] for key in ("same", "other", "kept", "gone"))
        data = coordinator.list_sessions()[0].data
        data.update({"same": [1], "other": [2], "kept": [1]})
        del data["gone"]
        assert session["same"] is same
        for mine in (same, other, kept, gone):
            mine.append(3)
        return session["other"]

    site = Site(index=lambda s: s.update({"same": [1], "other": [1], "kept": [1], "gone": [1]}), work=work)
    visitor = Visitor(SessionMiddleware(site, coordinator))
    visitor.get()
    assert visitor.text("/work") == "[2]"
    assert coordinator.list_sessions()[0].data == {"same": [1, 3], "other": [2], "kept": [1, 3]}


def test_a_request_that_fails_undoes_what_it_has_changed_itself(session_coordinator: CoordinatorFactory) -> None:
    """Of a session that requests share: what others have set meanwhile stays, by whatever key."""
    coordinator = session_coordinator()

    def wrong(session: WebSession) -> None:
        session["ours"].append({2})
        session["both"], session["new"] = [session["theirs"]], 1
        del session["gone"], session["set anew"]
        visitor.text("/others")
        assert (session["both"], session["theirs"]) == (["theirs"], [1])

    def others(session: WebSession) -> None:
        session.update({"both": ["theirs"], "theirs": [1], "set anew": 2})

    def first(session: WebSession) -> None:
        session.update({"ours": [1], "both": 0, "theirs": [0], "gone": 1, "set anew": 1})

    app = SessionMiddleware(Site(index=first, wrong=wrong, others=others), coordinator, shared=True)
    visitor = Visitor(app)
    visitor.get()
    with pytest.raises(InvalidSessionError, match=r"data\['ours'\]\[1\]"):
        visitor.get("/wrong")
    assert coordinator.list_sessions()[0].data == (
        {"ours": [1], "both": ["theirs"], "theirs": [1], "gone": 1, "set anew": 2}
    )


def test_what_a_resource_keeps_in_the_data(session_coordinator: CoordinatorFactory) -> None:
    """It is seen by the request, and changed by it; what the request has read keeps nothing of it from being saved."""

    def use(session: WebSession) -> object:
        before = session["log"]
        session.resource["log"].append("a line")
        session.resource["lang"] = "fr"
        session["n"] = 1
        return before, session["lang"]

    coordinator = session_coordinator(
        resource_factory=lambda managed: (managed.data.update(log=[], lang="en"), managed.data)[1]
    )
    visitor = Visitor(
        SessionMiddleware(Site(index=lambda s: s.update(n=0, lang="de"), use=use, look=dict), coordinator)
    )
    visitor.get()
    assert visitor.text("/look") == "{'n': 0, 'lang': 'en', 'log': []}"
    assert visitor.text("/use") == "([], 'fr')"
    assert visitor.text("/look") == "{'n': 1, 'lang': 'fr', 'log': ['a line']}"


# ---- What they may hold


class Level(IntEnum):
    LOW = 1


class Pair(NamedTuple):
    left: int
    right: int


class Text(str):
    """A subclass of str."""


WRONG = [
    pytest.param(lambda: Text("a"), "Text", id="str"),
    pytest.param(lambda: Level.LOW, "Level", id="int"),
    pytest.param(lambda: Pair(1, 2), "Pair", id="tuple"),
    pytest.param(lambda: Counter("a"), "Counter", id="Counter"),
    pytest.param(OrderedDict, "OrderedDict", id="OrderedDict"),
    pytest.param(lambda: MultiDict({"a": "b"}), "MultiDict", id="MultiDict"),
    pytest.param(lambda: {1: 2}, "the key 1 is of type int", id="key"),
    pytest.param(lambda: float("nan"), "nan is a number", id="NaN"),
    pytest.param(lambda: {1}, "set", id="set"),
    pytest.param(lambda: Decimal(1), "Decimal", id="Decimal"),
    pytest.param(lambda: date(2026, 1, 1), "date", id="date"),
    pytest.param(lambda: "\ud800", "half of a surrogate pair", id="surrogate"),
    pytest.param(lambda: type("Html", (), {"__html__": lambda _: "<b>"})(), "Html", id="html"),
    pytest.param(lambda: type("Markup", (Markup,), {})("a"), "Markup", id="Markup"),
    pytest.param(lambda: type("bytes", (bytes,), {})(b"a"), "bytes", id="bytes"),
    pytest.param(lambda: type("UUID", (uuid.UUID,), {})(int=1), "UUID", id="UUID"),
]
FLASK_WRONG = [
    pytest.param(lambda: datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), "its time zone", id="zone"),
    pytest.param(lambda: datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")), "its time zone", id="name"),
    pytest.param(lambda: datetime(2026, 1, 1, fold=1, tzinfo=UTC), "its fold", id="fold"),
    pytest.param(lambda: Decimal(1), "(and here, tuple, bytes, Markup, UUID, datetime)", id="types"),
]
PLAIN_WRONG = [
    pytest.param(lambda: (1, 2), "tuple", id="plain tuple"),
    pytest.param(lambda: Markup("a"), "Markup", id="plain Markup"),
    pytest.param(lambda: b"a", "bytes", id="plain bytes"),
]


@pytest.mark.parametrize("kind", ["memory", "sqlite"], indirect=True)
@pytest.mark.parametrize(("make", "message"), [*WRONG, *PLAIN_WRONG])
def test_what_json_would_change_is_refused(make: Callable[[], Any], message: str, worker: Workers) -> None:
    """What JSON would give back as something else is refused with its path before the response is sent, with and
    without a store, and the next request has what was saved last."""
    ways: dict[str, Callable[[WebSession, Any], object]] = {
        "new": lambda session, value: session.update(a=[0, value]),
        "set": lambda session, value: session.__setitem__("a", [0, value]),
        "deep": lambda session, value: session["a"].append(value),
        "default": lambda session, value: session.setdefault("b", [0, value]),
    }

    def site(environ: Any, start_response: Any) -> list[bytes]:
        session, way = environ[KEY], environ["PATH_INFO"].strip("/")
        if way in ways:
            session.pop("gone", None)
            session["n"] = 2
            ways[way](session, make())
        elif way == "good":
            session.update(a=[0], n=1, gone=True)
        start_response("200 OK", [])
        return [repr(dict(session)).encode()]

    coordinator = worker()
    visitor = Visitor(SessionMiddleware(site, coordinator))
    path = r"data\['[ab]'\]\[1\] of session '[0-9a-f]{64}' cannot be stored: .*"
    with pytest.raises(InvalidSessionError, match=path + message):
        visitor.get("/new")
    assert len(coordinator) == 0
    visitor.get("/good")
    for way in ("set", "deep", "default"):
        with pytest.raises(InvalidSessionError, match=path + message):
            visitor.get(f"/{way}")
        assert visitor.text("/look") == "{'a': [0], 'n': 1, 'gone': True}"


@pytest.mark.parametrize("kind", ["memory", "sqlite"], indirect=True)
@pytest.mark.parametrize(("make", "message"), [*WRONG, *FLASK_WRONG])
def test_what_flasks_tags_would_change_is_refused(
    make: Callable[[], Any], message: str, worker: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    """Flask's own tagger takes subclasses; the error names the path, the visitor gets 500, and what was saved stays."""

    def wrong() -> None:
        session["n"] = 2
        session["pair"][0].append((make(),))

    def new() -> None:
        session["new"] = {"a": make()}

    def good() -> None:
        session.update(n=1, pair=([],))

    coordinator = worker()
    app = flask_site(coordinator, wrong=wrong, new=new, good=good, look=lambda: sorted(session.items()))
    client = app.test_client()
    with caplog.at_level(logging.ERROR):
        assert client.get("/new").status_code == 500
        assert "data['new']['a'] of session" in caplog.text
        assert (len(coordinator), client.get_cookie(COOKIE)) == (0, None)
        client.get("/good")
        caplog.clear()
        assert client.get("/wrong").status_code == 500
    assert "data['pair'][0][0][0] of session" in caplog.text
    assert message in caplog.text
    assert client.get("/look").text == "[('n', 1), ('pair', ([],))]"


HELD: dict[str, Any] = {
    "tuple": (1, (), ([2],)),
    "bytes": b"\xff\x00",
    "Markup": Markup("<b>&amp;</b>"),
    "UUID": uuid.UUID(int=7),
    "UTC": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "to the microsecond": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    "naive": datetime(1, 1, 1),
    "offset": datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-3.5))),
    "deep": {"er": [(Markup("a"), {"x": b""})], " t": "two keys"},
    "looks like a tuple": {" t": "no tuple"},
    "looks like what such a thing becomes": {" t__": ["no tuple"]},
    "looks like a dict": {" di": {" t": (1,)}},
    " t": "at the top",
    "JSON": [{"a": None, "b": [True, 1, 1.0, -0.0, "\u20ac"]}, [], {}],
}


def test_what_flasks_own_sessions_hold(worker: Workers) -> None:
    """In Flask, what its own sessions hold (tuple, bytes, `Markup`, `UUID`, datetime) comes back as it was, from
    memory, SQLite and Redis."""
    made: list[str] = []

    def put() -> None:
        session["first"] = HELD["tuple"]
        session.update(HELD)
        made.append(repr(dict(session)))

    def deep() -> None:
        session["deep"]["er"][0][1]["x"] = b"changed"
        session["tuple"][2][0].append((3,))

    pages: dict[str, Callable[[], object]] = {"put": put, "deep": deep, "look": lambda: dict(session)}
    client, other = (flask_site(worker(), **pages).test_client() for _ in range(2))
    client.get("/put")
    cookie = client.get_cookie(COOKIE)
    assert cookie is not None
    other.set_cookie(COOKIE, cookie.value or "")
    assert made == [repr({"first": HELD["tuple"], **HELD})]
    assert client.get("/look").text == other.get("/look").text == made[0]
    other.get("/deep")
    changed = made[0].replace("b''", "b'changed'").replace("(1, (), ([2],))", "(1, (), ([2, (3,)],))")
    changed = changed.replace("([2, (3,)],)", "([2],)", 1)
    assert client.get("/look").text == other.get("/look").text == changed


def test_what_other_code_sees_of_flasks_values(session_coordinator: CoordinatorFactory) -> None:
    """The tagged JSON, as Flask's serializer writes it; what other code puts there and is no tag is seen as it is."""
    coordinator = session_coordinator()

    def put() -> None:
        session["pair"] = (1, Markup("a"))

    client = flask_site(coordinator, put=put, look=lambda: dict(session)).test_client()
    client.get("/put")
    cookie = client.get_cookie(COOKIE)
    assert cookie is not None
    with coordinator.checkout(id_of(cookie.value or "")) as managed:
        assert managed.data == {"pair": {" t": [1, {" m": "a"}]}}
        managed.data.update({"odd": {" t": 5}, "worse": {" u": "no UUID"}, "raw": [{2}]})
    assert client.get("/look").text == (
        "{'pair': (1, Markup('a')), 'odd': {' t': 5}, 'worse': {' u': 'no UUID'}, 'raw': [{2}]}"
    )


def test_data_that_could_not_be_saved_are_not_shown(session_coordinator: CoordinatorFactory, tmp_path: Path) -> None:
    """Not even by the error page, which is made while the session is still held; nor does it change them."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    pages = {
        "put": lambda: session.update(n=[1]),
        "more": lambda: session["n"].append(3),
        "look": lambda: dict(session),
    }
    app = flask_site(session_coordinator(store=store), **pages)

    @app.errorhandler(503)
    def explain(_: Exception) -> tuple[str, int]:
        session.setdefault("n", []).append(2)
        return f"{dict(session)}, {session.copy()}, {list(reversed(session))}", 503

    client = app.test_client()
    client.get("/put")
    store.failing.add(GIVE_BACK)
    assert client.get("/more").text == "{}, {}, []"
    store.failing.clear()
    assert client.get("/look").text == "{'n': [1, 3]}"


def request_of(coordinator: SessionCoordinator[Any]) -> RequestSession:
    """A new visitor's request, with no application."""
    return RequestSession(coordinator, SessionCookie(), "", shared=False, timeout=0)


@pytest.mark.parametrize(("value", "kept"), [(2, [1, 2]), ({3}, [1])])
def test_data_of_a_request_that_is_dropped(
    value: object, kept: object, session_coordinator: CoordinatorFactory
) -> None:
    """What can be stored is kept, and the rest is not."""
    coordinator = session_coordinator()
    session = WebSession(request_of(coordinator))
    session["list"] = [1]
    session["list"].append(value)
    del session
    assert coordinator.list_sessions()[0].data == {"list": kept}
    assert coordinator.stats().checked_out == 0


# ---- A mapping like a dict


class TestWebSession(mapping_tests.TestMappingProtocol):  # type: ignore[misc]  # of a module without types
    """CPython's own tests of what is like a dict, as far as they apply."""

    def setUp(self) -> None:
        self.coordinator = SessionCoordinator[Any](CoordinatorConfig(max_active_sessions=None))
        self.addCleanup(self.coordinator.close)
        self.made: list[RequestSession] = []
        self.addCleanup(lambda: [request.end() for request in self.made])

    def _empty_mapping(self) -> WebSession:
        self.made.append(request_of(self.coordinator))
        return WebSession(self.made[-1])

    type2test = staticmethod(dict)

    def test_fromkeys(self) -> None:
        """A session is made for a visitor, and not from keys."""
        assert not hasattr(WebSession, "fromkeys")

    def test_constructor(self) -> None:
        """Likewise."""
        assert self._empty_mapping() == self._empty_mapping()

    def test_copy(self) -> None:
        """A copy of a session is a dict."""
        session = self._full_mapping({"a": [1]})
        assert type(session.copy()) is dict
        assert session.copy() == {"a": [1]}
        assert session.copy()["a"] is session["a"]
        assert self._empty_mapping().copy() == {}

    def test_order(self) -> None:
        """Keys stand in the order in which they came, and `popitem` takes the last."""
        session = self._full_mapping(dict.fromkeys("abc", 1))
        session["a"] = 2
        assert (list(session), list(reversed(session))) == (["a", "b", "c"], ["c", "b", "a"])
        session["b"] = session.pop("b")
        assert session.popitem() == ("b", 1)
        assert list(session.items()) == [("a", 2), ("c", 1)]
        assert list(reversed(self._empty_mapping())) == []

    def test_merging(self) -> None:
        """`|` with a dict, and with another session, gives a dict; `|=` takes pairs as well."""
        session, other = self._full_mapping({"a": 1, "b": [2]}), self._full_mapping({"b": 3, "c": 4})
        for left, right in ((session, {"b": 3, "c": 4}), ({"a": 1, "b": [2]}, other), (session, other)):
            merged = left | right
            assert (type(merged), list(merged.items())) == (dict, [("a", 1), ("b", 3), ("c", 4)])
        assert {} | session == session | {} == {"a": 1, "b": [2]}
        for wrong in ([("a", 1)], None, 5):
            with pytest.raises(TypeError):
                session | wrong
            with pytest.raises(TypeError):
                wrong | session
        session |= [("a", 2)]
        session |= other
        assert session == {"a": 2, "b": 3, "c": 4}

    def test_equality(self) -> None:
        """By what they have, with dicts and with each other; and so they have no hash."""
        session, same = self._full_mapping({"a": [1]}), self._full_mapping({"a": [1]})
        assert session == same == {"a": [1]} == session
        assert session != {"a": [2]}
        assert session != [("a", [1])]
        assert self._empty_mapping() == {}
        with pytest.raises(TypeError, match="unhashable"):
            hash(session)
        assert json.dumps(dict(session)) == '{"a": [1]}'


class TestFlaskSession(TestWebSession):
    """The same for `flask.session`."""

    def setUp(self) -> None:
        super().setUp()
        self.app = flask_site(self.coordinator)

    def _empty_mapping(self) -> WebSession:
        session = self.app.session_interface.open_session(self.app, flask.Request(request()))
        assert isinstance(session, WebSession)
        self.made.append(request_behind(session))
        return session
