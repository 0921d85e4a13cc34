"""The life of one visitor's session: another timeout, Flask's permanent sessions, and when its time runs out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import flask
import pytest

import sessionkit.flask
from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.flask import session
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.wsgi import SessionMiddleware, WebSession

from ..helpers.web import CONFIG, Site, Visitor, count

WEEK = timedelta(days=7)


def test_a_request_may_give_its_session_another_timeout(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """For good, from the last activity on; without a session there is nothing to give it to."""

    def remember(session: WebSession) -> object:
        session.set_timeout(1000)
        return session.id is not None

    visitor = Visitor(SessionMiddleware(Site(index=count, remember=remember, look=dict), coordinator))
    assert visitor.text("/remember") == "False"
    assert len(coordinator) == 0
    visitor.get()
    assert visitor.text("/remember") == "True"
    for _ in range(2):
        session_clock.advance(1000)
        assert visitor.text("/look") == "{'n': 1}"
    session_clock.advance(1001)
    assert visitor.text("/look") == "{}"


def test_when_the_time_of_a_session_runs_out(coordinator: SessionCoordinator[Any], session_clock: ManualClock) -> None:
    """In UTC, if nothing touches it from now on; None while there is no session, and once it was given back."""

    def ends(session: WebSession) -> object:
        seen = [session.expires_at, session.metadata and session.metadata.last_active]
        session.release()
        return [*seen, session.expires_at, session.metadata]

    visitor = Visitor(SessionMiddleware(Site(index=count, ends=ends), coordinator))
    assert visitor.text("/ends") == "[None, None, None, None]"
    visitor.get()
    session_clock.advance(10)
    end = datetime.fromtimestamp(session_clock.wall(), UTC) + timedelta(seconds=60)
    assert visitor.text("/ends") == str([end, 10.0, None, None])


def flask_site(coordinator: SessionCoordinator[Any]) -> flask.Flask:
    app = flask.Flask(__name__)
    app.config.update(PERMANENT_SESSION_LIFETIME=WEEK, TESTING=True)
    sessionkit.flask.init_app(app, coordinator)

    @app.get("/login/<int:remember>")
    def login(remember: int) -> str:
        session.permanent = bool(remember)
        session["user"] = "ada"
        return "in"

    @app.get("/forget")
    def forget() -> str:
        session.permanent = False
        return ""

    @app.get("/remember-for/<int:seconds>")
    def remember_for(seconds: int) -> str:
        session.set_timeout(seconds)
        return ""

    @app.get("/who")
    def who() -> str:
        return str(session.get("user"))

    return app


@pytest.mark.parametrize("stored", [False, True])
def test_remember_me(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, tmp_path: Path, stored: bool
) -> None:
    """In Flask, a permanent session lives for `PERMANENT_SESSION_LIFETIME`, and any other for the coordinator's
    timeout, from its last request on. In memory, and in the store of several workers.
    """
    options = [{"store": SQLiteStore(tmp_path / "sessions.db")} if stored else {} for _ in range(1 + stored)]
    clients = [flask_site(session_coordinator(CONFIG, **each)).test_client() for each in options]
    week, late = WEEK.total_seconds(), 1
    if stored:
        # Each worker allows for what the other may not have written yet.
        late += 2 * CONFIG.cleanup_interval

    def get(path: str, worker: int = 0) -> str:
        other = clients[-1 - worker].get_cookie("__Host-session")
        if other is not None:
            clients[worker].set_cookie("__Host-session", other.value, secure=True)
        return clients[worker].get(path).text

    last = len(clients) - 1
    get("/login/1")
    for _ in range(3):
        session_clock.advance(week)
        assert get("/who") == get("/who", last) == "ada"
    session_clock.advance(week + late)
    assert get("/who") == get("/who", last) == "None"
    get("/login/0")
    session_clock.advance(60)
    assert get("/who", last) == "ada"
    session_clock.advance(60 + late)
    assert get("/who") == get("/who", last) == "None"
    get("/login/1")
    get("/forget", last)
    session_clock.advance(60 + late)
    assert get("/who") == get("/who", last) == "None"


def test_permanent_sessions_and_timeouts_of_their_own(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """What was set last counts."""
    coordinator = session_coordinator(CoordinatorConfig(session_timeout=60, cleanup_interval=10))
    client = flask_site(coordinator).test_client()
    client.get("/login/1")
    (kept,) = coordinator.list_sessions()
    assert kept.session_timeout == WEEK.total_seconds()
    client.get("/remember-for/100")
    assert kept.session_timeout == 100
    client.get("/who")
    assert kept.session_timeout == 100
    client.get("/forget")
    assert kept.session_timeout == 60
    session_clock.advance(61)
    assert client.get("/who").text == "None"


def test_a_test_may_make_a_session_permanent(coordinator: SessionCoordinator[Any]) -> None:
    """In `session_transaction`, where there is no application context, and in the copy that a response leaves."""
    client = flask_site(coordinator).test_client()
    with client.session_transaction() as stored:
        stored.permanent = True
        stored["user"] = "ada"
    assert coordinator.list_sessions()[0].session_timeout == WEEK.total_seconds()
    with client:
        assert client.get("/who").text == "ada"
        session.permanent = False
        assert session.permanent is False
    assert coordinator.list_sessions()[0].session_timeout == WEEK.total_seconds()
