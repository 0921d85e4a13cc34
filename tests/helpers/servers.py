"""A real server on a loopback port: gunicorn, uWSGI or waitress, with an application of a few pages."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from .support import WAIT
from .web import COOKIE

SITE = """
import os, pathlib, time
from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.wsgi import SessionMiddleware

here = pathlib.Path(__file__).parent

def wait_for(name):
    (here / f"{name}-begun").write_text(str(os.getpid()))
    end = time.monotonic() + 20
    while not (here / name).exists() and time.monotonic() < end:
        time.sleep(0.005)

def pages(environ):
    session, path = environ["sessionkit.session"], environ["PATH_INFO"]
    if path == "/worker":
        return [f"{os.getpid()} {coordinator.stats().cleanup.alive}".encode()]
    session["n"] = session.get("n", 0) + 1
    if path == "/wait":
        wait_for("go-on")
    if path == "/file":
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))
    if path == "/released":
        session.release()
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))
    if path == "/stream":
        return stream(session)
    return [str(session["n"]).encode()]

def stream(session):
    for number in range(100_000):
        session["sent"] = number
        yield b"x" * 200_000

def site(environ, start_response):
    body = pages(environ)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return body

store = None if os.environ.get("NO_STORE") else SQLiteStore(here / "sessions.db")
coordinator = SessionCoordinator(CoordinatorConfig(session_timeout=600, cleanup_interval=300), store=store)
application = SessionMiddleware(site, coordinator, timeout=18)  # a busy machine takes its time
assert "nobody" not in coordinator  # the store is in use before any worker is forked
"""

WAITRESS_PROGRAM = """
import signal, sys, waitress
from site_for_tests import application
server = waitress.create_server(application, host="127.0.0.1", port=0, threads=4)
# As in production: waitress has no handler of its own, and SIGTERM would end it on the spot.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(f"Listening at: http://127.0.0.1:{server.effective_port}", file=sys.stderr, flush=True)
server.run()
"""


BOUND = r"Listening at: http://127\.0\.0\.1:(\d+)|bound to TCP address 127\.0\.0\.1:(\d+)"
"""What servers log of their port."""
WORKER = r"Booting worker|spawned uWSGI worker"
"""What they log of each worker."""


class Server:
    """A server process, its log, and requests to it."""

    def __init__(self, directory: Path, command: list[str], **environment: str) -> None:
        self.directory = directory
        (directory / "site_for_tests.py").write_text(SITE)
        self.log_path = directory / "server.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(  # noqa: S603  our own arguments
                command, cwd=directory, stderr=log, env={**os.environ, **environment}
            )
        found = self.wait_until(lambda: re.search(BOUND, self.log))
        self.port = int(found[1] or found[2])
        workers = sum(int(number) for number in re.findall(r"--(?:workers|processes)=(\d)", " ".join(command)))
        self.wait_until(lambda: len(re.findall(WORKER, self.log)) == workers)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until(self, look: Callable[[], Any]) -> Any:
        """Look until there is something to see, for a bounded time."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if found := look():
                return found
            time.sleep(0.005)
        raise AssertionError(f"it did not come to that; the server's log:\n{self.log}")

    @contextmanager
    def request(self, path: str = "/", token: str | None = None) -> Iterator[http.client.HTTPResponse]:
        """A response, of which as much is read as the block does."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)) as connection:
            connection.request("GET", path, headers={"Cookie": f"{COOKIE}={token}"} if token else {})
            with connection.getresponse() as response:
                assert response.status == 200, response.read()
                yield response

    def text(self, path: str = "/", token: str | None = None) -> str:
        with self.request(path, token) as response:
            return response.read().decode()

    def new_visitor(self) -> str:
        """The token of somebody whose first request it was."""
        with self.request() as response:
            assert response.read() == b"1"
            cookie = re.match(rf"{COOKIE}=([^;]+)", response.headers["Set-Cookie"])
        assert cookie is not None
        return cookie[1]

    def workers(self, number: int) -> dict[str, str]:
        """What that many workers say of themselves: by pid, whether the cleanup task lives."""
        told: dict[str, str] = {}

        def ask() -> bool:
            with ThreadPoolExecutor(8) as pool:
                told.update(text.split() for text in pool.map(self.text, ["/worker"] * 16))
            return len(told) >= number

        self.wait_until(ask)
        return told

    def stop(self) -> None:
        """As an administrator stops it."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT) in (0, -signal.SIGTERM)


@contextmanager
def serving(directory: Path, command: list[str], **environment: str) -> Iterator[Server]:
    server = Server(directory, command, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(WAIT)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


WAITRESS = [sys.executable, "-c", WAITRESS_PROGRAM]


def gunicorn(*options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gunicorn",
        "--bind=127.0.0.1:0",
        "--worker-tmp-dir=/tmp",
        "--no-control-socket",
        # A worker that is told to stop while it starts does not hear it, and is killed after this.
        "--graceful-timeout=5",
        *options,
        "site_for_tests:application",
    ]


UWSGI = shutil.which("uwsgi", path=os.pathsep.join([os.path.join(sys.prefix, "bin"), os.environ.get("PATH", "")]))
needs_uwsgi = pytest.mark.skipif(
    UWSGI is None, reason="there is no uWSGI here: `make test` builds it where there is a C compiler"
)


def uwsgi(*options: str) -> list[str]:
    """As it is by default: the application is loaded, and then the workers are forked, in C."""
    return [
        UWSGI or "uwsgi",
        f"--virtualenv={sys.prefix}",
        "--http-socket=127.0.0.1:0",
        "--master",
        # SIGTERM reloads it by default.
        "--die-on-term",
        *options,
        "--module=site_for_tests",
    ]
