"""The response to a request that has a session: its body, its headers, and the refusal where there is no session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any
from urllib.parse import quote

from werkzeug.datastructures import Headers
from werkzeug.http import parse_set_header

from .. import SessionElsewhereError

RETRY_AFTER_SECONDS = 5
"""What a 503 says in `Retry-After`."""

REFUSAL = "The session is not available at the moment. Please try again in a few seconds.\n"
"""What a 503 says in its body."""

INSTANCE_HEADER = "Sessionkit-Instance"
"""The header that names the instance that has the session, where that is why this one cannot have it."""


def with_first_part(body: Iterable[Any]) -> Iterator[Any]:
    """The parts of a body, of which the application has made the first one already."""
    parts = iter(body)
    return chain(list(islice(parts, 1)), parts)


class Body:
    """An application's body. The server iterates over it and closes it, in any thread.

    `finish` is called when the body is closed, whatever closing the application's own body raises; it may be called
    several times. `begin(body)` is called when the first part is asked for, and returns the parts that go out; default
    `with_first_part`.
    """

    def __init__(
        self,
        body: Iterable[Any],
        finish: Callable[[], object],
        begin: Callable[[Iterable[Any]], Iterator[Any]] = with_first_part,
    ) -> None:
        self._body = body
        self._finish = finish
        self._begin = begin
        self._parts: Iterator[Any] | None = None

    def begin(self) -> Iterator[Any]:
        """Have the first part made before the server asks for it. Returns the parts."""
        self._parts = self._begin(self._body)
        return self._parts

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._parts or self.begin())

    def close(self) -> None:
        """Called by the server at the end, also where the client went away."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._finish()


def vary_by_cookie(headers: Headers) -> None:
    """Say that the response depends on the session, so that caches keep one response for each cookie."""
    vary = parse_set_header(", ".join(headers.getlist("Vary")))
    if "*" not in vary:
        vary.add("Cookie")
        headers["Vary"] = vary.to_header()


def add_cookie(headers: Headers, value: str) -> None:
    """Set a cookie, and forbid caches to keep the response, whatever the application said of that."""
    headers.add("Set-Cookie", value)
    headers["Cache-Control"] = "private, no-store"
    for name in ("CDN-Cache-Control", "Surrogate-Control", "Expires"):
        headers.remove(name)


def instance_headers(status: str, failure: BaseException | None) -> list[tuple[str, str]]:
    """The header that tells a router which instance has the session, if that is why this one answers 503.

    With any other status, the application has made its own answer of the failure.
    """
    if not (isinstance(failure, SessionElsewhereError) and status.startswith("503")):
        return []
    return [(INSTANCE_HEADER, quote(failure.instance_name, safe="".join(map(chr, range(0x20, 0x7F)))))]


def refusal() -> tuple[list[tuple[str, str]], bytes]:
    """The headers and the body of a 503, in plain text."""
    text = REFUSAL.encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(text))),
        ("Retry-After", str(RETRY_AFTER_SECONDS)),
        ("Cache-Control", "no-store"),
    ]
    return headers, text
