"""What a user's type checker sees. Checked by mypy (`make check`), never run."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, assert_type
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import flask

import sessionkit.aio
import sessionkit.flask
from sessionkit import (
    CoordinatorConfig,
    EventChannel,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionEvent,
    SessionExpiredError,
    SessionMetadata,
    SessionSnapshot,
    SessionState,
)
from sessionkit.stores import SQLiteStore, Store
from sessionkit.testing import ManualClock
from sessionkit.wsgi import SessionCookie, SessionMiddleware, WebSession


class Agent:
    def __init__(self, language: str) -> None: ...

    def stop(self) -> None: ...


def make_agent(session: ManagedSession[Agent]) -> Agent:
    return Agent(session.data["lang"])


def stop_agent(session: ManagedSession[Agent], cause: RemovalCause) -> None:
    session.resource.stop()


# The type of the resource follows from the factory.
with SessionCoordinator(resource_factory=make_agent, on_close=stop_agent) as coordinator:
    assert_type(coordinator, SessionCoordinator[Agent])
    session = coordinator.create_session("support", data={"lang": "en"}, session_timeout=timedelta(minutes=5))
    assert_type(session, ManagedSession[Agent])
    assert_type(session.resource, Agent)
    assert_type(session.name, str | None)
    assert_type(session.data, dict[str, Any])
    assert_type(session.state, SessionState)
    assert_type(session.expires_at, datetime)
    session.set_timeout(timedelta(days=7))
    assert_type(coordinator.read_session(session.id), SessionSnapshot)
    with coordinator.checkout(session.id, timeout=1.5) as held:
        assert_type(held, ManagedSession[Agent])
    assert_type(coordinator.active_session, ManagedSession[Agent] | None)
    assert_type(coordinator.list_sessions(), list[ManagedSession[Agent]])
    assert_type(coordinator.cleanup_inactive_sessions(), int)
    with coordinator.subscribe() as channel:
        assert_type(channel, EventChannel)
        assert_type(channel.get(timeout=0), SessionEvent | None)
        for event in channel:
            assert_type(event, SessionEvent)
    coordinator.create_session(resource="no agent")  # type: ignore[arg-type]  # a wrong resource is found
    session.id = "another"  # type: ignore[misc]  # ids do not change

# Without a factory it is Any, unless it is named.
plain = SessionCoordinator(CoordinatorConfig(session_timeout=60), clock=ManualClock())
assert_type(plain.create_session().resource, Any)
named: SessionCoordinator[Agent] = SessionCoordinator()
store: Store = SQLiteStore("sessions.db")
kept = SessionCoordinator(CoordinatorConfig(on_full="passivate"), store=store, resource_factory=make_agent)
assert_type(kept, SessionCoordinator[Agent])
assert_type(kept.restore_sessions(), int)
SessionCoordinator(store="sessions.db")  # type: ignore[arg-type]  # a path is no store
assert_type(named.create_session(resource=Agent("en")).resource, Agent)
CoordinatorConfig(on_full="explode")  # type: ignore[arg-type]  # choices are checked
CoordinatorConfig().session_timeout = 5  # type: ignore[misc]  # a config does not change

try:
    coordinator.get_session("s-1")
except SessionExpiredError as error:
    assert_type(error.cause, RemovalCause)
    assert_type(error.ended_at, float)


# In asyncio programs.
async def work(loop: asyncio.AbstractEventLoop) -> None:
    taken = sessionkit.aio.checkout(coordinator, "s-1", timeout=timedelta(seconds=5))
    async with taken as held:
        assert_type(held, ManagedSession[Agent])
        assert_type(await taken.save(), None)
    with sessionkit.aio.checkout(coordinator, "s-1"):  # type: ignore[attr-defined]  # it is for async with
        pass

    async def make(session: ManagedSession[Agent]) -> Agent:
        return Agent("en")

    async def close(session: ManagedSession[Agent], cause: RemovalCause) -> None: ...

    made = SessionCoordinator(
        resource_factory=sessionkit.aio.on_loop(make, loop), on_close=sessionkit.aio.on_loop(close, loop)
    )
    assert_type(made, SessionCoordinator[Agent])
    sessionkit.aio.on_loop(make_agent, loop)  # type: ignore[arg-type]  # it is not asynchronous


# The middleware is a WSGI application, around one.
def page(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    web: WebSession = environ["sessionkit.session"]
    assert_type(web["user"], Any)
    assert_type(web.id, str | None)
    assert_type(web.ended, SessionExpiredError | None)
    assert_type(web.new, bool)
    assert_type(web.metadata, SessionMetadata | None)
    assert_type(web.expires_at, datetime | None)
    start_response("200 OK", [])
    return []


application: WSGIApplication = SessionMiddleware(
    page, named, cookie=SessionCookie("shop", same_site="Strict"), timeout=5
)
SessionMiddleware(page, named, cookie="shop")  # type: ignore[arg-type]  # a name is no cookie
SessionCookie(same_site="Loose")  # type: ignore[arg-type]  # choices are checked

app = flask.Flask("shop")
sessionkit.flask.init_app(app, named, timeout=timedelta(seconds=5), shared=False)
assert_type(sessionkit.flask.session.resource, Any)
sessionkit.flask.session.rotate()


@app.get("/poll/<int:number>")
@sessionkit.flask.read_only
def poll(number: int) -> str:
    return str(number)


assert_type(poll(1), str)
