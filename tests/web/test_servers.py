"""Real servers on a loopback port: gunicorn and uWSGI with their workers, and waitress."""

from __future__ import annotations

import http.client
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sessionkit import SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.web.cookie import id_of
from sessionkit.wsgi import SessionMiddleware

from ..helpers.servers import SITE, WAITRESS, gunicorn, needs_uwsgi, serving, uwsgi
from ..helpers.support import WAIT, in_thread, records_in
from ..helpers.web import COOKIE, Site, Visitor, count

SERVERS = {
    "sync": gunicorn("--workers=3"),
    "sync-preload": gunicorn("--workers=3", "--preload"),
    "gthread": gunicorn("--workers=2", "--worker-class=gthread", "--threads=4"),
    "gthread-preload": gunicorn("--workers=2", "--worker-class=gthread", "--threads=4", "--preload"),
    "uwsgi": uwsgi("--processes=3"),
    "uwsgi-threads": uwsgi("--processes=2", "--threads=4"),
    "waitress": WAITRESS,
}


def kinds(*names: str) -> Any:
    """For each of these servers; uWSGI needs a C compiler, which not every machine has."""
    marked = [pytest.param(name, marks=needs_uwsgi) if "uwsgi" in name else name for name in names]
    return pytest.mark.parametrize("kind", marked)


@kinds(*SERVERS)
def test_no_update_is_lost_in_a_server(kind: str, tmp_path: Path) -> None:
    """No update is lost when requests of one visitor come at once, whatever the number of workers and threads. With
    `gunicorn --preload`, every worker has a living cleanup task. A graceful stop loses nothing."""
    with serving(tmp_path, SERVERS[kind]) as server:
        token = server.new_visitor()
        with ThreadPoolExecutor(8) as pool:
            seen = sorted(int(text) for text in pool.map(lambda _: server.text("/", token), range(80)))
        assert seen == list(range(2, 82))
        workers = server.workers(1 if kind == "waitress" else 2)
        assert set(workers.values()) == {"True"}
        server.stop()
        assert "Traceback" not in server.log
    assert records_in(tmp_path / "sessions.db")[id_of(token)].data == '{"n":81}'
    with SessionCoordinator[Any](store=SQLiteStore(tmp_path / "sessions.db")) as coordinator:
        visitor = Visitor(SessionMiddleware(Site(index=count), coordinator))
        visitor.cookies[COOKIE] = token
        assert visitor.text() == "82"


@pytest.mark.parametrize(
    "command",
    [
        gunicorn("--workers=1", "--worker-class=gthread", "--threads=4", "--preload"),
        pytest.param(uwsgi("--processes=1", "--threads=4"), marks=needs_uwsgi),
    ],
    ids=["gthread-preload", "uwsgi"],
)
def test_sessions_in_memory_of_a_forked_worker(command: list[str], tmp_path: Path) -> None:
    """One worker that was forked from a server with the application loaded needs no store, and loses nothing."""
    with serving(tmp_path, command, NO_STORE="1") as server:
        token = server.new_visitor()
        with ThreadPoolExecutor(8) as pool:
            seen = sorted(int(text) for text in pool.map(lambda _: server.text("/", token), range(40)))
        assert seen == list(range(2, 42))
        (worker,) = server.workers(1).items()
        assert worker[0] != str(server.process.pid)
        assert worker[1] == "True"


@kinds("sync", "gthread-preload", "uwsgi")
def test_a_worker_killed_in_mid_request_frees_its_sessions(kind: str, tmp_path: Path) -> None:
    """A worker that is killed in mid-request frees its sessions at once. Another one has them then."""
    with serving(tmp_path, SERVERS[kind]) as server:
        token = server.new_visitor()
        with in_thread(server.text, "/wait", token) as hanging:
            pid = int(server.wait_until(lambda: _text_of(tmp_path / "go-on-begun")))
            os.kill(pid, signal.SIGKILL)
            assert isinstance(hanging.exception(WAIT), OSError | http.client.HTTPException)
        began = time.monotonic()
        assert server.text("/", token) in ("2", "3")
        # The middleware waits 10 seconds before it gives up: a lease that stood would have been seen.
        assert time.monotonic() - began < 10


@kinds("sync", "gthread", "waitress")
def test_a_graceful_stop_lets_requests_finish(kind: str, tmp_path: Path) -> None:
    """What the one under way wrote is there after the stop; gunicorn answers it too, waitress does not."""
    with serving(tmp_path, SERVERS[kind]) as server:
        token = server.new_visitor()
        with in_thread(server.text, "/wait", token) as running:
            server.wait_until(lambda: _text_of(tmp_path / "go-on-begun"))
            server.process.send_signal(signal.SIGTERM)
            (tmp_path / "go-on").touch()
            assert running.exception(WAIT) is None or kind == "waitress"
        server.process.wait(WAIT)
    assert [record.data for record in records_in(tmp_path / "sessions.db").values()] == ['{"n":2}']


@kinds("sync", "gthread", "uwsgi", "waitress")
def test_files_and_streams(kind: str, tmp_path: Path) -> None:
    """A file arrives whole, by the server's own wrapper; a client that goes away in mid-stream frees the session."""
    with serving(tmp_path, SERVERS[kind]) as server:
        token = server.new_visitor()
        assert server.text("/file", token) == SITE
        assert server.text("/released", token) == SITE
        with server.request("/stream", token) as response:
            assert response.read(10_000) == b"x" * 10_000
        assert server.text("/", token) == "5"


@kinds("sync", "uwsgi")
def test_many_workers_without_a_store_are_told_once(kind: str, tmp_path: Path) -> None:
    """Each worker says it once, whatever is asked of it."""
    with serving(tmp_path, SERVERS[kind], NO_STORE="1") as server:
        workers = server.workers(3)
        assert server.log.count("no session store") == len(workers)


def _text_of(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
