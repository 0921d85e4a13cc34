"""What a session costs a request, beside what web applications use instead. `make bench-web` prints it.

Medians of microseconds a request, over rounds in which all take turns, for one visitor whose session has ten keys. The
applications are called as a server would call them, with no server around: what is measured is Python's work. Files are
where the temporary files are.
"""

from __future__ import annotations

import gc
import io
import logging
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import flask
import flask_session
from beaker.middleware import SessionMiddleware as BeakerMiddleware
from cachelib.file import FileSystemCache

import sessionkit.flask
from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import SQLiteStore
from sessionkit.wsgi import SessionMiddleware

REQUESTS = 200
ROUNDS = 25
KEYS = {f"key-{number}": f"value {number}" for number in range(9)}
PAGES = ("/nothing", "/read", "/write")

App = Callable[..., Any]


def plain(key: str | None) -> App:
    """A WSGI application, with the session under this key of its environment."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        path, text = environ["PATH_INFO"], "ok"
        if key is not None and path != "/nothing":
            session = environ[key]
            if path == "/write":
                session["n"] = session.get("n", 0) + 1
                if "key-0" not in session:
                    session.update(KEYS)
                if key == "beaker.session":
                    session.save()
            text = str(session.get("n"))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text.encode()]

    return app


def flask_app(**settings: Any) -> flask.Flask:
    """The same in Flask."""
    app = flask.Flask("benchmark")
    app.config.update(SECRET_KEY="benchmark", **settings)  # noqa: S106  it signs for nobody

    @app.get("/nothing")
    def nothing() -> str:
        return "ok"

    @app.get("/read")
    def read() -> str:
        return str(flask.session.get("n"))

    @app.get("/write")
    def write() -> str:
        flask.session["n"] = flask.session.get("n", 0) + 1
        if "key-0" not in flask.session:
            flask.session.update(KEYS)
        return str(flask.session.get("n"))

    return app


@contextmanager
def contenders(directory: Path) -> Iterator[dict[str, App]]:
    """Who is compared."""
    config = CoordinatorConfig(max_active_sessions=None)
    with ExitStack() as stack:

        def coordinator(name: str | None = None) -> SessionCoordinator[Any]:
            store = None if name is None else SQLiteStore(directory / name)
            return stack.enter_context(SessionCoordinator[Any](config, store=store))

        in_memory, in_sqlite = flask_app(), flask_app()
        sessionkit.flask.init_app(in_memory, coordinator())
        sessionkit.flask.init_app(in_sqlite, coordinator("flask.db"))
        on_files = flask_app(SESSION_TYPE="cachelib", SESSION_CACHELIB=FileSystemCache(str(directory / "flask")))
        flask_session.Session(on_files)
        beaker = {"session.auto": False, "session.lock_dir": str(directory / "locks")}
        on_beakers_files = beaker | {"session.type": "file", "session.data_dir": str(directory / "beaker")}
        yield {
            "WSGI, no sessions": plain(None),
            "sessionkit.wsgi, in memory": SessionMiddleware(plain("sessionkit.session"), coordinator()),
            "sessionkit.wsgi, SQLite": SessionMiddleware(plain("sessionkit.session"), coordinator("wsgi.db")),
            "Beaker, in memory": BeakerMiddleware(plain("beaker.session"), beaker | {"session.type": "memory"}),
            "Beaker, files": BeakerMiddleware(plain("beaker.session"), on_beakers_files),
            "Flask, signed cookie": flask_app(),
            "sessionkit.flask, in memory": in_memory,
            "sessionkit.flask, SQLite": in_sqlite,
            "Flask-Session, files": on_files,
        }


class Visitor:
    """Calls an application, and keeps its cookie."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._cookie = ""

    def get(self, path: str) -> bytes:
        """One request, and its answer."""
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost",
            "HTTP_COOKIE": self._cookie,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        body = self._app(environ, self._start_response)
        answer = b"".join(body)
        close = getattr(body, "close", None)
        if close is not None:
            close()
        return answer

    def _start_response(self, status: str, headers: list[tuple[str, str]], _: Any = None) -> Any:
        assert status.startswith("200"), status
        for name, value in headers:
            if name.lower() == "set-cookie" and (found := re.match(r"[^;]+", value)):
                self._cookie = found[0]
        return lambda _: None

    def microseconds(self, path: str) -> float:
        """A request, on the average of many."""
        gc.collect()
        began = time.perf_counter()
        for _ in range(REQUESTS):
            self.get(path)
        return (time.perf_counter() - began) / REQUESTS * 1e6


def main() -> None:
    """Measure, and print a table."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", DeprecationWarning)
    with tempfile.TemporaryDirectory() as directory, contenders(Path(directory)) as apps:
        visitors = {name: Visitor(app) for name, app in apps.items()}
        figures: dict[str, dict[str, list[float]]] = {name: {page: [] for page in PAGES} for name in visitors}
        for visitor in visitors.values():
            visitor.get("/write")
        for _ in range(ROUNDS):
            for page in PAGES:
                for name, visitor in visitors.items():
                    figures[name][page].append(visitor.microseconds(page))
        for name, visitor in visitors.items():
            # Else it would have been fast for the wrong reason.
            expected = b"ok" if name == "WSGI, no sessions" else b"%d" % (ROUNDS * REQUESTS + 1)
            assert visitor.get("/read") == expected, name
    print(f"{'microseconds a request':32}{'never looks':>14}{'reads':>10}{'writes':>10}")
    for name, pages in figures.items():
        print(
            f"{name:32}{median(pages['/nothing']):14.1f}{median(pages['/read']):10.1f}{median(pages['/write']):10.1f}"
        )


if __name__ == "__main__":
    main()
