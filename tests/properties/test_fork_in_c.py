"""Children that were forked in C, as uWSGI does it: none of Python's fork hooks ran there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flask
import pytest

import sessionkit.flask
from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionNotFoundError,
)
from sessionkit.stores import SQLiteStore
from sessionkit.stores.open import open_store
from sessionkit.util.fork import start_clean_after_fork, start_clean_if_forked
from sessionkit.wsgi import SessionMiddleware

from ..helpers.moments import held_in_a_decision
from ..helpers.redis_server import shared_server
from ..helpers.support import Closings, all_at_once, fork_in_c, in_child, in_new_process, one_minute
from ..helpers.web import SITE, Visitor

Coordinator = SessionCoordinator[Any]


def flask_page(coordinator: Coordinator) -> Callable[[], object]:
    app = flask.Flask(__name__)
    app.add_url_rule("/", "page", lambda: "nothing of the session")
    sessionkit.flask.init_app(app, coordinator)
    return app.test_client().get


FIRST_CALLS: dict[str, Callable[[Coordinator], Callable[[], object]]] = {
    "create_session": lambda coordinator: coordinator.create_session,
    "start_cleanup_task": lambda coordinator: coordinator.start_cleanup_task,
    "cleanup_inactive_sessions": lambda coordinator: coordinator.cleanup_inactive_sessions,
    "stats": lambda coordinator: coordinator.stats,
    "a WSGI request": lambda coordinator: Visitor(SessionMiddleware(SITE, coordinator)).get,
    "a WSGI request without a look": lambda coordinator: partial(
        Visitor(SessionMiddleware(SITE, coordinator)).get, "/nothing"
    ),
    "a Flask request": flask_page,
}
"""The calls by which a coordinator finds out, as they are made ready in the parent."""


def close_at_once(coordinator: Coordinator) -> None:
    """Close it, without the 5 seconds that it waits for a thread that does not end, such as one that is not here."""
    began = time.monotonic()
    coordinator.close()
    assert time.monotonic() - began < 4


def begin_in_a_child(what: str) -> None:
    closings = Closings()
    with Coordinator(one_minute(), on_close=closings) as coordinator:
        call = FIRST_CALLS[what](coordinator)
        inherited = coordinator.create_session("parents")

        def child() -> list[Any]:
            call()
            with pytest.raises(SessionNotFoundError):
                coordinator.get_session(inherited.id)
            coordinator.create_session("parents")
            assert coordinator.stats().cleanup.alive
            close_at_once(coordinator)
            return [closing for closing in closings if closing[0] == "parents"]

        with held_in_a_decision(coordinator):
            assert in_child(child, fork_in_c) == [("parents", RemovalCause.SHUTDOWN)]
        assert coordinator.get_session(inherited.id) is inherited
        assert closings == []


@pytest.mark.parametrize("what", FIRST_CALLS)
def test_a_worker_that_was_forked_in_c_starts_clean(what: str) -> None:
    """Where a server forks in C, as uWSGI does, each worker starts clean at its first request: with no sessions, and
    a living cleanup task of its own, whatever its parent had locked.
    """
    in_new_process(begin_in_a_child, what)


def close_in_a_child() -> None:
    closings = Closings()
    with Coordinator(one_minute(), on_close=closings) as coordinator:
        coordinator.create_session("parents")

        def child() -> list[Any]:
            close_at_once(coordinator)
            with pytest.raises(CoordinatorClosedError):
                coordinator.create_session()
            return closings

        with held_in_a_decision(coordinator):
            assert in_child(child, fork_in_c) == []


def test_closing_is_not_held_up_by_what_the_parent_had() -> None:
    """In a child that was forked in C, `close()` waits for no thread and no lock of the parent's."""
    in_new_process(close_in_a_child)


def stand_without_a_task() -> None:
    coordinator = Coordinator(one_minute())
    assert in_child(lambda: coordinator.stats().cleanup.alive, fork_in_c) is False
    coordinator.close()
    assert in_child(lambda: coordinator.stats().cleanup.alive, fork_in_c) is False
    with Coordinator(one_minute()) as coordinator:
        coordinator.stop_cleanup_task()
        assert in_child(lambda: coordinator.stats().cleanup.alive, fork_in_c) is False


def test_it_has_a_task_only_where_the_parent_had_one() -> None:
    """A child that was forked in C starts no cleanup task that was not started, or was stopped."""
    in_new_process(stand_without_a_task)


def create_in_many_threads() -> None:
    with Coordinator(one_minute()) as coordinator:

        def child() -> int:
            all_at_once(*[coordinator.create_session] * 8)
            return len(coordinator)

        for _ in range(3):
            assert in_child(child, fork_in_c) == 8


def test_the_first_calls_may_come_from_several_threads_at_once() -> None:
    """In a child that was forked in C, one thread starts clean, the others wait for it, and nothing they do is lost."""
    in_new_process(create_in_many_threads)


class Noted:
    """Something that starts clean, and notes how often."""

    def __init__(self, error: Exception | None = None) -> None:
        self.times = 0
        self.error = error
        start_clean_after_fork(self)

    def after_fork_in_child(self) -> None:
        self.times += 1
        if self.error is not None:
            raise self.error


def begin_with_a_new_one() -> None:
    inherited = Noted()

    def child() -> list[int]:
        own = Noted()
        for _ in range(2):
            start_clean_if_forked()
        return [inherited.times, own.times]

    assert in_child(child, fork_in_c) == [1, 0]
    # A child of the child, and one that is forked in Python, as they come.
    assert in_child(lambda: in_child(child, fork_in_c), fork_in_c) == [1, 0]
    assert in_child(lambda: (start_clean_if_forked(), in_child(child, fork_in_c))[1], fork_in_c) == [2, 0]
    assert in_child(child) == [1, 0]


def test_what_the_child_made_itself_stays() -> None:
    """An object that is made in a child that was forked in C is not taken for the parent's by a later call."""
    in_new_process(begin_with_a_new_one)


def fail_and_be_logged() -> None:
    told: list[str] = []

    class Calling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            coordinator.stats()

    with Coordinator(one_minute()) as coordinator:
        noted = [Noted(), Noted(OSError("not today")), Noted()]
        coordinator.create_session()
        logger = logging.getLogger("sessionkit")
        logger.addHandler(Calling())
        logger.propagate = False

        def child() -> list[Any]:
            return [coordinator.stats().live, *(one.times for one in noted), len(told)]

        assert in_child(child, fork_in_c) == [0, 1, 1, 1, 1]


def test_one_that_fails_keeps_no_other_from_it() -> None:
    """In a child that was forked in C, what cannot start clean is logged once, also by a handler that calls back."""
    in_new_process(fail_and_be_logged)


def share_a_store(where: str) -> None:
    store = open_store(where)
    with Coordinator(one_minute(), store=store) as coordinator:
        session = coordinator.create_session(data={"n": 1})
        other = coordinator.create_session()

        def child() -> str:
            assert coordinator.stats().live == 0
            with pytest.raises(SessionBusyError):
                coordinator.checkout(session.id, timeout=0).__enter__()
            with coordinator.checkout(other.id) as held:
                held.data["by"] = "the child"
            own = coordinator.create_session()
            coordinator.close()
            return own.id

        with coordinator.checkout(session.id) as held:
            with held_in_a_decision(coordinator):
                own_id = in_child(child, fork_in_c)
            held.data["n"] += 1
        assert coordinator.get_session(other.id).data == {"by": "the child"}
        assert coordinator.get_session(own_id).data == {}
    with Coordinator(one_minute(), store=store) as coordinator:
        assert coordinator.get_session(session.id).data == {"n": 2}
        for session_id in (session.id, other.id, own_id):
            coordinator.close_session(session_id)


def test_a_sqlite_store_that_the_parent_used(tmp_path: Path) -> None:
    """A child that was forked in C is an instance of its own at a SQLite store, by connections of its own."""
    path = tmp_path / "sessions.db"
    SQLiteStore(path).close()
    in_new_process(share_a_store, str(path))


def test_a_redis_store_that_the_parent_used() -> None:
    """A child that was forked in C is an instance of its own at a Redis store, by connections of its own."""
    with shared_server() as url:
        in_new_process(share_a_store, url)
