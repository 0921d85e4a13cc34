"""A small WSGI application, and a visitor who keeps cookies as a browser does and reads a body when told to."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any

from sessionkit import CoordinatorConfig
from sessionkit.wsgi import KEY, WebSession

CONFIG = CoordinatorConfig(session_timeout=60, cleanup_interval=10, max_active_sessions=100)
COOKIE = "__Host-session"

View = Callable[[WebSession], object]


class Site:
    """An application whose pages are functions of the session; what they return is the text."""

    def __init__(self, **pages: View) -> None:
        self.pages = pages
        self.headers = [("Content-Type", "text/plain")]

    def __call__(self, environ: Any, start_response: Any) -> Any:
        text = str(self.pages[environ["PATH_INFO"].strip("/") or "index"](environ[KEY]))
        start_response("200 OK", list(self.headers))
        return [text.encode()]


def count(session: WebSession) -> int:
    session["n"] = session.get("n", 0) + 1
    return int(session["n"])


SITE = Site(index=count, look=lambda session: dict(session), nothing=lambda _: "nothing")


class Answer:
    """One response: what the application has told so far, and its body, read and closed when asked."""

    def __init__(self, app: Any, environ: dict[str, Any]) -> None:
        self.environ = environ
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.written: list[bytes] = []
        self.starts = 0
        self.body: Iterable[bytes] = app(environ, self.start_response)
        """What the application gave the server."""

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        self.starts += 1
        self.status, self.headers, self.exc_info = status, headers, exc_info
        return self.written.append

    def __getitem__(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None

    def parts(self) -> Any:
        """The body's parts, one by one."""
        return iter(self.body)

    def read(self) -> bytes:
        """The whole body; closes it, as a server does."""
        try:
            return b"".join(self.written) + b"".join(self.body)
        finally:
            self.close()

    def close(self) -> None:
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


class Visitor:
    """Somebody with a browser. Takes every cookie that is set, and sends all of them."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.cookies: dict[str, str] = {}

    @property
    def token(self) -> str | None:
        return self.cookies.get(COOKIE)

    def begin(self, path: str = "/", **environ: Any) -> Answer:
        """A request whose body is not read yet."""
        answer = Answer(self.app, request(path, "; ".join(f"{k}={v}" for k, v in self.cookies.items()), **environ))
        self.take(answer)
        return answer

    def get(self, path: str = "/", **environ: Any) -> Answer:
        """A request from beginning to end; what was read is in `written`."""
        answer = self.begin(path, **environ)
        answer.written = [answer.read()]
        self.take(answer)
        return answer

    def text(self, path: str = "/", **environ: Any) -> str:
        return self.get(path, **environ).written[0].decode()

    def take(self, answer: Answer) -> None:
        """Take the cookies that a response sets."""
        for name, morsel in SimpleCookie(answer["Set-Cookie"] or "").items():
            if morsel["max-age"] == "0":
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = morsel.value


def request(path: str = "/", cookies: str = "", **environ: Any) -> dict[str, Any]:
    """The WSGI environment of a request."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **({"HTTP_COOKIE": cookies} if cookies else {}),
        **environ,
    }
