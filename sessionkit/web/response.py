"""The response to a request that has a session: its body, its headers, and the refusal where there is no session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from operator import length_hint
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


class Body:
    """An application's body, to be begun by `begin`. The server iterates over it and closes it, in any thread.

    `finish` is called when the body was read to its end, when it raises, and when it is closed, whatever closing the
    application's own body raises; it may be called several times.
    """

    def __init__(self, body: Iterable[Any], finish: Callable[[], object]) -> None:
        self._body = body
        self._finish = finish
        self._parts: Iterator[Any] = iter(())

    def begin(self) -> None:
        """Have the first part made, before the server asks for it."""
        self._parts = iter(self._body)
        if type(self._body) not in (list, tuple):
            self._parts = chain(list(islice(self._parts, 1)), self._parts)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            part = next(self._parts)
        except BaseException:
            self._finish()
            raise
        # Some clients ask for the next page before they close the last one, or never do. Of a list, they may have read
        # the last part only, and not that there are no more.
        if length_hint(self._parts, 1) == 0:
            self._finish()
        return part

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


def explain_failure(headers: Headers, status: str, failure: BaseException | None) -> None:
    """Say in a 503 when to try again and, if that is why this instance answers so, which instance has the session.

    With any other status, the application has made its own answer of the failure.
    """
    if status.startswith("503"):
        headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
        if isinstance(failure, SessionElsewhereError):
            headers[INSTANCE_HEADER] = quote(failure.instance_name, safe="".join(map(chr, range(0x20, 0x7F))))


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
