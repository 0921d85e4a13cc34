"""One session in several processes: with affinity, it stays where it is, and others are told where that is."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flask
import pytest

import sessionkit.flask
from sessionkit import (
    CoordinatorConfig,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionElsewhereError,
    SessionError,
    SessionExistsError,
    SessionExpiredError,
    SessionNotFoundError,
)
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.wsgi import KEY, SessionMiddleware

from ..helpers.processes import (
    LOOKS,
    TOUCHES,
    Maker,
    Processes,
)
from ..helpers.support import (
    DETACH,
    FIND,
    JOIN,
    LEASE,
    LOAD,
    all_at_once,
)
from ..helpers.web import Visitor


@pytest.fixture
def apart(process: Maker) -> Processes:
    """Two processes that leave each other's sessions alone."""
    return process("http://10.0.0.7:8000", affinity=True), process("http://10.0.0.8:8000", affinity=True)


@pytest.mark.parametrize("way", LOOKS | TOUCHES)
def test_a_caller_elsewhere_is_told_where_the_session_is(apart: Processes, way: str) -> None:
    """`SessionElsewhereError` names the other process; nothing is made or written, and the session stays as it is."""
    here, there = apart
    session = there.sessions.create_session("support")
    with pytest.raises(SessionElsewhereError) as caught:
        (LOOKS | TOUCHES)[way](here.sessions, session.id)
    assert (caught.value.session_id, caught.value.instance_name) == (session.id, "http://10.0.0.8:8000")
    assert there.instances(session.id) == ()
    assert set(here.store.calls) <= {JOIN, LOAD, FIND}
    assert (len(here.sessions), here.made, here.sessions.stats().checked_out) == (0, [], 0)
    there.sessions.cleanup_inactive_sessions()
    assert there.sessions.get_session(session.id) is session
    assert there.closed == []


@pytest.mark.parametrize("way", LOOKS | TOUCHES)
@pytest.mark.parametrize("end", ["close", "passivate", "leave"])
def test_once_its_process_has_let_go_it_is_had_here(process: Maker, way: str, end: str) -> None:
    """Closed, passivated, or given up as another process's: with all of its data."""
    here = process("here", affinity=True)
    there = process("there", affinity=end != "leave", max_active_sessions=1, on_full="passivate")
    session_id = there.sessions.create_session("support").id
    there.add(session_id, "there")
    if end == "close":
        there.sessions.close()
    elif end == "passivate":
        there.sessions.create_session()
    else:
        third = process("third")
        third.add(session_id, "third")
        assert session_id in there.sessions
        third.sessions.close()
    (LOOKS | TOUCHES)[way](here.sessions, session_id)
    (session,) = here.sessions.list_sessions()
    assert session.data["said"][0] == "there"
    assert session.resource is here.made[0]


def test_a_session_whose_process_died_is_had_here(process: Maker, path: Path) -> None:
    """At once: no process has to notice first."""
    here = process("here", affinity=True)
    pid = os.fork()
    if pid == 0:
        dying = SessionCoordinator[Any](CoordinatorConfig(affinity=True), store=SQLiteStore(path))
        dying.create_session("support", data={"said": ["there"]})
        os._exit(0)
    os.waitpid(pid, 0)
    assert here.sessions.switch_session("support").data == {"said": ["there"]}


def test_what_needs_no_resource_works_from_elsewhere(apart: Processes) -> None:
    """Whether it is live, that its name is taken, and ending it."""
    here, there = apart
    session = there.sessions.create_session("support")
    assert session.id in here.sessions
    with pytest.raises(SessionExistsError):
        here.sessions.create_session("support")
    here.sessions.close_session(session.id)
    with pytest.raises(SessionNotFoundError):
        there.sessions.get_session(session.id)
    assert [closing.cause for closing in there.closed] == [RemovalCause.PASSIVATED]
    with pytest.raises(SessionExpiredError):
        here.sessions.get_session(session.id)


def test_what_expired_elsewhere_is_told_to_have_expired(apart: Processes, session_clock: ManualClock) -> None:
    """Expiry is the same for every caller, wherever the session is in memory."""
    here, there = apart
    there.sessions.start_cleanup_task()
    session = there.sessions.create_session()
    session_clock.advance(60 + 20)
    with pytest.raises(SessionElsewhereError):
        here.sessions.get_session(session.id)
    session_clock.advance(0.1)
    with pytest.raises(SessionExpiredError):
        here.sessions.get_session(session.id)
    there.sessions.stop_cleanup_task()
    assert there.instances(session.id) == ()


def test_restoring_all_passes_over_what_is_elsewhere(apart: Processes) -> None:
    """And brings back the rest."""
    here, there = apart
    ids = [there.sessions.create_session().id for _ in range(3)]
    assert here.sessions.restore_sessions() == 0
    there.sessions.close()
    assert here.sessions.restore_sessions() == 3
    assert {session.id for session in here.sessions.list_sessions()} == set(ids)


def test_of_several_that_restore_at_once_one_gets_it(process: Maker) -> None:
    """The other processes are told that another one has it, and leave no trace."""
    maker = process("maker")
    ids = [maker.sessions.create_session().id for _ in range(10)]
    maker.sessions.close()
    processes = [process(f"p-{number}", affinity=True) for number in range(4)]
    for session_id in ids:
        answers = all_at_once(*(partial(each.sessions.get_session, session_id) for each in processes))
        had = [each for each, answer in zip(processes, answers, strict=True) if isinstance(answer, ManagedSession)]
        refused = [answer for answer in answers if isinstance(answer, SessionElsewhereError)]
        assert (len(had) <= 1, len(had) + len(refused)) == (True, 4)
        instances = {name for each in processes for name in each.instances(session_id)}
        assert instances == {each.sessions.config.instance_name for each in had}


@pytest.mark.parametrize("fails", [False, True])
def test_another_process_that_was_faster(process: Maker, apart: Processes, fails: bool) -> None:
    """It was nowhere at the first look, and elsewhere at the second: it is left there; should that fail, later."""
    here, there = apart
    maker = process("maker")
    session_id = maker.sessions.create_session().id
    maker.sessions.close()

    def be_faster() -> None:
        there.sessions.get_session(session_id)
        here.store.failing = {DETACH} if fails else set()

    here.store.after(LOAD, be_faster)
    with pytest.raises(SessionElsewhereError, match=r"10\.0\.0\.8"):
        here.sessions.get_session(session_id)
    assert len(there.instances(session_id)) == fails
    here.store.failing.clear()
    here.sessions.cleanup_inactive_sessions()
    assert there.instances(session_id) == ()


def test_a_copy_that_another_process_took_over_is_let_go_and_not_restored(process: Maker) -> None:
    """Where processes differ: one that leaves sessions alone had it, and one that does not has it now."""
    here, there = process("here", affinity=True), process("there")
    for way in LOOKS.values():
        session_id = here.sessions.create_session("support").id
        there.add(session_id, "there")
        with pytest.raises(SessionElsewhereError, match="'there'"):
            way(here.sessions, session_id)
        assert len(here.sessions) == 0
        assert there.instances(session_id) == ()
        there.add(session_id, "there again", timeout=0)
        there.sessions.close_session(session_id)


# ---- Names, and the error


def test_the_error_says_what_to_do_and_travels() -> None:
    """It has the id and the instance, also as a copy or in another process, and is one of the library's own."""
    error = SessionElsewhereError("s-1", "http://10.0.0.7:8000")
    assert isinstance(error, SessionError)
    assert not isinstance(error, SessionNotFoundError)
    assert str(error) == (
        "session 's-1' is in memory of 'http://10.0.0.7:8000': send the request there, or let this coordinator "
        "restore it with affinity=False"
    )
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  our own bytes
        assert (twin.session_id, twin.instance_name, str(twin)) == ("s-1", "http://10.0.0.7:8000", str(error))


def test_an_instance_without_a_name_is_called_after_its_host_and_process(process: Maker) -> None:
    """So that an operator finds it."""
    there = process(None)
    here = process("here", affinity=True)
    session = there.sessions.create_session()
    assert here.instances(session.id) == (f"{os.uname().nodename}:{os.getpid()}",)
    with pytest.raises(SessionElsewhereError, match=str(os.getpid())):
        here.sessions.get_session(session.id)


@pytest.mark.parametrize("name", ["x", "x" * 255, "http://10.0.0.7:8000/a?b=%20#c", "Küche 7", " "])
def test_instance_names_in_form_are_taken(name: str) -> None:
    """Every printable text of up to 255 characters."""
    assert CoordinatorConfig(instance_name=name).instance_name == name


@pytest.mark.parametrize("name", ["", "x" * 256, "new\nline", "tab\t", "nul\0", "x\x7f", "\u202e", "\ud800", "a\xa0b"])
def test_instance_names_out_of_form_are_refused(name: str) -> None:
    """What a terminal or a header could not have as it is."""
    with pytest.raises(ValueError, match="use 1 to 255 printable ones") as caught:
        CoordinatorConfig(instance_name=name)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [5, 5.0, b"bytes", True, ["list"], object()])
def test_instance_names_and_affinity_of_the_wrong_type(value: Any) -> None:
    """They say what they must be."""
    with pytest.raises(TypeError, match="instance_name must be a str"):
        CoordinatorConfig(instance_name=value)
    if value is not True:
        with pytest.raises(TypeError, match="affinity must be"):
            CoordinatorConfig(affinity=value)


# ---- The web


def visits(session: Any) -> str:
    """A page: how many visits there were, and of how many the resource knew when it was made."""
    session["said"] = [*session.get("said", []), "visit"]
    return f"{len(session['said'])} of {len(session.resource.knew.get('said', []))}"


def wsgi_site(sessions: SessionCoordinator[Any]) -> SessionMiddleware:
    """An application under the middleware."""

    def site(environ: Any, start_response: Any) -> list[bytes]:
        status, page = "200 OK", ""
        match environ["PATH_INFO"]:
            case "/":
                page = visits(environ[KEY])
            case "/answers":
                status, page = _answer_of_its_own(lambda: visits(environ[KEY]), "200 OK")
            case "/answers-503":
                status, page = _answer_of_its_own(lambda: visits(environ[KEY]), "503 Gone Elsewhere")
            case "/fails":
                status, page = _answer_of_its_own(lambda: visits(environ[KEY]), "500 Oh No")
        start_response(status, [("Content-Type", "text/plain")])
        return [page.encode()]

    return SessionMiddleware(site, sessions)


def _answer_of_its_own(page: Callable[[], str], status: str) -> tuple[str, str]:
    try:
        return "200 OK", page()
    except SessionElsewhereError as error:
        return status, f"own page: {error.instance_name}"


def flask_site(sessions: SessionCoordinator[Any]) -> flask.Flask:
    """An application with Flask's own session."""
    app = flask.Flask(__name__)
    sessionkit.flask.init_app(app, sessions)

    @app.get("/")
    def index() -> str:
        return visits(flask.session)

    @app.get("/stream")
    def stream() -> flask.Response:
        return flask.Response(flask.stream_with_context(visits(flask.session) for _ in range(1)))

    return app


def test_a_request_whose_session_is_elsewhere_is_sent_back_with_its_instance(apart: Processes) -> None:
    """503, `Retry-After`, and the instance's name in `Sessionkit-Instance`, by which a router resends the request;
    nothing is taken from the client."""
    here, there = apart
    visitor = Visitor(wsgi_site(there.sessions))
    assert visitor.text() == "1 of 1"
    visitor.app = wsgi_site(here.sessions)
    answer = visitor.get()
    assert (answer.status, answer["Retry-After"]) == ("503 Service Unavailable", "5")
    assert answer["Sessionkit-Instance"] == "http://10.0.0.8:8000"
    assert (answer["Set-Cookie"], answer["Cache-Control"], answer["Vary"]) == (None, "no-store", "Cookie")
    assert b"try again" in answer.written[0]
    for path, status, instance in (
        ("/answers", "200 OK", None),
        ("/answers-503", "503 Gone Elsewhere", "http://10.0.0.8:8000"),
        ("/fails", "503 Service Unavailable", "http://10.0.0.8:8000"),
        ("/nothing", "200 OK", None),
    ):
        answer = visitor.get(path)
        assert (answer.status, answer["Sessionkit-Instance"]) == (status, instance)
    visitor.app = wsgi_site(there.sessions)
    assert visitor.text() == "2 of 1"


def test_a_router_that_goes_by_the_instance(process: Maker) -> None:
    """Whichever process a request comes to first, the visitor has one live resource, and loses nothing."""
    processes = {name: process(name, affinity=True) for name in ("a", "b", "c")}
    sites = {name: wsgi_site(each.sessions) for name, each in processes.items()}
    visitor = Visitor(sites["a"])
    for turn, name in enumerate("abcacb", 1):
        visitor.app = sites[name]
        answer = visitor.get()
        instance = answer["Sessionkit-Instance"]
        if instance is not None:
            visitor.app = sites[instance]
            answer = visitor.get()
        assert answer.written == [f"{turn} of 1".encode()]
    assert [len(each.made) for each in processes.values()] == [1, 0, 0]


def test_a_flask_request_whose_session_is_elsewhere(apart: Processes) -> None:
    """As with the middleware; also with a page of the application's own, unless that has another status."""
    here, there = apart
    app = flask_site(there.sessions)
    client = app.test_client()
    assert client.get("/").text == "1 of 1"
    cookie = client.get_cookie("__Host-session")
    assert cookie is not None

    def ask(site: flask.Flask, path: str = "/") -> Any:
        visitor = site.test_client()
        visitor.set_cookie("__Host-session", cookie.value, secure=True)
        return visitor.get(path, base_url="https://localhost")

    elsewhere = flask_site(here.sessions)
    for path in ("/", "/stream"):
        response = ask(elsewhere, path)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert response.headers.getlist("Sessionkit-Instance") == ["http://10.0.0.8:8000"]
        assert "Set-Cookie" not in response.headers
        assert response.headers["Vary"] == "Cookie"
    for status, instances in ((503, ["http://10.0.0.8:8000"]), (200, [])):
        own = flask_site(here.sessions)
        own.register_error_handler(503, lambda error, status=status: (type(error.__cause__).__name__, status))
        response = ask(own)
        assert (response.text, response.status_code) == ("SessionElsewhereError", status)
        assert response.headers.getlist("Sessionkit-Instance") == instances
    assert ask(app).text == "2 of 1"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("Küche 7", "K%C3%BCche 7"),
        ('http://[::1]:80/a?b=%20&c="d"~', 'http://[::1]:80/a?b=%20&c="d"~'),
        ("\U0001f388", "%F0%9F%8E%88"),
    ],
)
def test_an_instance_name_in_a_header_is_ascii(process: Maker, name: str, header: str) -> None:
    """What is not is percent-quoted, as in a URL; the rest is as it is."""
    there, here = process(name, affinity=True), process("here", affinity=True)
    visitor = Visitor(wsgi_site(there.sessions))
    visitor.get()
    visitor.app = wsgi_site(here.sessions)
    assert visitor.get()["Sessionkit-Instance"] == header


def test_no_other_503_names_an_instance(process: Maker) -> None:
    """A session that is busy, or a store that fails, is no better elsewhere."""
    here = process("here", affinity=True)
    visitor = Visitor(wsgi_site(here.sessions))
    visitor.get()
    here.store.failing = {LEASE}
    answer = visitor.get()
    assert (answer.status, answer["Sessionkit-Instance"]) == ("503 Service Unavailable", None)
