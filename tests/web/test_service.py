"""What a process that serves requests does for a coordinator, whatever its server."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import flask
import pytest

import sessionkit.flask
from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.wsgi import SessionMiddleware, WebSession

from ..helpers.support import in_child, records_in
from ..helpers.web import Answer, Visitor, request

CONFIG = CoordinatorConfig(session_timeout=60, cleanup_interval=10)


def app(_: Any, start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


def test_the_cleanup_task_runs(session_coordinator: CoordinatorFactory) -> None:
    """In the process that made the middleware, and in those that are forked from it, as `gunicorn --preload` does."""
    coordinator = session_coordinator(CONFIG)
    SessionMiddleware(app, coordinator)
    assert coordinator.stats().cleanup.alive
    assert in_child(lambda: coordinator.stats().cleanup.alive)


def test_a_dropped_middleware_keeps_no_coordinator() -> None:
    """It is not kept for the end of the program."""
    coordinator = SessionCoordinator(CONFIG)
    reference = weakref.ref(coordinator)
    SessionMiddleware(app, coordinator)
    coordinator.close()
    del coordinator
    gc.collect()
    assert reference() is None


PROGRAM = """
import sys
from sessionkit import SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.wsgi import SessionMiddleware

def on_close(session, cause):
    print(cause.name)
    if len(sys.argv) > 2:
        store.failing = True

class Failing(SQLiteStore):
    failing = False
    def touch(self, touches):
        if self.failing:
            from sessionkit import StoreError
            raise StoreError("no touch today")
        return super().touch(touches)

store = Failing(sys.argv[1])
coordinator = SessionCoordinator(store=store, on_close=on_close)
SessionMiddleware(lambda environ, start_response: [], coordinator)
session = coordinator.create_session(session_id="s-1")
session.record_message()
store.failing = len(sys.argv) > 2
"""


def test_a_program_that_ends_closes_its_coordinator(tmp_path: Path) -> None:
    """Without a `with`: what was not written yet is in the store."""
    path = tmp_path / "sessions.db"
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=True)  # noqa: S603  our own program
    assert (done.stdout, done.stderr) == ("SHUTDOWN\n", "")
    assert records_in(path)["s-1"].message_count == 1


def test_an_end_that_fails_is_logged(tmp_path: Path) -> None:
    """The program ends all the same."""
    arguments = [sys.executable, "-c", PROGRAM, tmp_path / "sessions.db", "failing"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)  # noqa: S603  our own program
    assert done.stdout == "SHUTDOWN\n"
    assert "could not be closed as the interpreter exits" in done.stderr
    assert "no touch today" in done.stderr


def test_many_workers_without_a_store_are_warned_of_once(
    session_coordinator: CoordinatorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """At the first request, what will go wrong, and what to do."""
    middleware = SessionMiddleware(app, session_coordinator(CONFIG))
    Visitor(middleware).get()
    assert not caplog.messages
    for _ in range(3):
        Visitor(middleware).get(**{"wsgi.multiprocess": True})
    assert len(caplog.messages) == 1
    assert "several worker processes and no session store" in caplog.text
    assert "SQLiteStore" in caplog.text


def test_with_a_store_requests_do_not_share_the_session(
    session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """`shared=True` raises at start, and says what to do instead; nothing has been started."""
    coordinator = session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db"))
    with pytest.raises(ValueError, match=r"shared=True cannot be had with a store.*read_only"):
        SessionMiddleware(app, coordinator, shared=True)
    with pytest.raises(ValueError, match=r"shared=True cannot be had with a store.*read_only"):
        sessionkit.flask.init_app(flask.Flask(__name__), coordinator, shared=True)
    assert not coordinator.stats().cleanup.alive


def test_many_workers_with_a_store_are_fine(
    session_coordinator: CoordinatorFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said."""
    middleware = SessionMiddleware(app, session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db")))
    Answer(middleware, request(**{"wsgi.multiprocess": True})).read()
    assert not caplog.messages
    assert WebSession.__doc__
