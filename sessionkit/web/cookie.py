"""The token, which is the secret that a client holds, and the cookie that carries it. Werkzeug parses and writes it."""

from __future__ import annotations

import hashlib
import re
import secrets
import warnings
from datetime import datetime
from math import ceil
from typing import Literal, get_args

from werkzeug.http import dump_cookie
from werkzeug.sansio.http import parse_cookie

from ..util.log import short_repr
from ..util.validation import Duration, checked_flag, checked_seconds

SameSite = Literal["Strict", "Lax", "None"]

MAX_COOKIE_CHARACTERS = 64
"""How many characters may follow the cookie's name: a token has 43."""

MAX_TOKENS = 10
"""How many tokens are taken from cookies of the same name: each costs a lookup."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_VALUE = re.compile(rf"({_TOKEN.pattern})(?:\.([0-9]{{1,15}}))?")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_PATH = re.compile(r"/[^\x00-\x1f\x7f;]*")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_HOST, _SECURE = "__Host-", "__Secure-"


def new_token() -> str:
    """A new secret of 256 random bits: 43 of ASCII letters, digits, `_` and `-`."""
    return secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether a text has the form of a token. Only the coordinator knows whether the token was ever issued."""
    return _TOKEN.fullmatch(text) is not None


def id_of(token: str) -> str:
    """The id of the token's session: its SHA-256, in hexadecimal. No token can be found from an id.

    May be given a cookie's whole value, in which the session's age follows the token.
    """
    return hashlib.sha256(token.partition(".")[0].encode()).hexdigest()


class SessionCookie:
    """How the token travels: `HttpOnly`, so that no script reads it, and by default `Secure`, `SameSite=Lax`, `Path=/`.

    `name`: up to 64 characters that a cookie's name may have; default `session`. It gets a prefix, which has browsers
    refuse a cookie that does not keep to what the prefix says: `__Host-`, or `__Secure-` where there is a `domain` or
    another `path`. A name that begins with one of these is used as it is. `secure=False` is for development without
    HTTPS: it leaves out `Secure` and the prefix, and warns (`UserWarning`). `same_site`: `"Lax"`, `"Strict"`, or
    `"None"`, which needs `Secure`. `domain`: as browsers take it, without a leading dot and without a port.
    `partitioned=True`: each site that embeds this one in a frame has a cookie of its own (CHIPS), which needs `Secure`
    and, for browsers to send it in the frame, `same_site="None"`.

    `max_age`: how long the browser keeps the cookie from when it is sent, in seconds or as a timedelta; default until
    the browser is closed. While its visitor is active, the cookie is sent again, at most once in a tenth of this; to
    tell when, it carries how old the session was when it was sent, in milliseconds, after the token and a dot. The
    session ends by the coordinator's limits, however long the browser keeps the cookie.

    Raises `ValueError` or `TypeError` for a value that no cookie may have. A cookie does not change once made.
    """

    __slots__ = ("_attributes", "_partitioned", "max_age", "name")

    def __init__(
        self,
        name: str = "session",
        *,
        secure: bool = True,
        same_site: SameSite = "Lax",
        path: str = "/",
        domain: str | None = None,
        max_age: Duration | None = None,
        partitioned: bool = False,
    ) -> None:
        if not _NAME.fullmatch(name) or (name.startswith("__") and not name.startswith((_HOST, _SECURE))):
            raise ValueError(
                f"a cookie's name must be 1 to 64 of ASCII letters, digits and !#$%&'*+.^_`|~-, and begin with no "
                f"'__' but that of {_HOST!r} or {_SECURE!r} (else the prefix is added here), not {short_repr(name)}"
            )
        if same_site not in get_args(SameSite):
            raise ValueError(f"same_site must be one of {get_args(SameSite)}, not {short_repr(same_site)}")
        if not _PATH.fullmatch(path):
            raise ValueError(f"path must begin with '/' and have no ';', not {short_repr(path)}")
        if domain is not None:
            domain = _checked_domain(domain)
        is_for_host = path == "/" and domain is None
        if name.startswith(_HOST) and not is_for_host:
            raise ValueError(
                f"the cookie {name!r} can have no other path than '/', and no domain: browsers refuse it otherwise. "
                f"Begin its name with {_SECURE!r}, or with no prefix"
            )
        if not checked_flag("secure", secure):
            if same_site == "None" or checked_flag("partitioned", partitioned) or name.startswith("__"):
                raise ValueError(
                    "same_site='None', partitioned=True and a name with a prefix each needs secure=True: browsers "
                    "refuse such a cookie otherwise"
                )
            warnings.warn(
                f"the cookie {name!r} is not Secure: anybody who listens on the network can take over sessions. "
                "Leave secure=False out wherever there is HTTPS (in Flask, set SESSION_COOKIE_SECURE=True)",
                stacklevel=2,
            )
        prefix = "" if not secure or name.startswith("__") else _HOST if is_for_host else _SECURE
        self.name = prefix + name
        """The name that the client sees, with its prefix."""
        self.max_age = None if max_age is None else ceil(checked_seconds("max_age", max_age))
        """How many seconds the browser keeps the cookie; None for until it is closed."""
        self._partitioned = checked_flag("partitioned", partitioned)
        self._attributes = {"path": path, "domain": domain, "secure": secure, "samesite": same_site}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def tokens_in(self, header: str) -> dict[str, float | None]:
        """The tokens in a `Cookie` header, as WSGI has that, in their order: 10 at most, each once.

        Each has the age of its session when the cookie was sent, in seconds; None for a cookie that does not say so.
        Cookies that are malformed or too long are passed over, whatever their name.
        """
        found: dict[str, float | None] = {}
        for part in header.split(";"):
            # Werkzeug gets only what may be our own cookie. For a whole header its time grows with the square of the
            # length, which a client may choose, and it raises for bytes of other cookies that are no UTF-8.
            if (
                len(part) <= len(self.name) + MAX_COOKIE_CHARACTERS
                and part.lstrip(" \t").startswith(self.name)
                and _TOKEN.search(part, len(self.name))
            ):
                for value in parse_cookie(part).getlist(self.name):
                    if match := _VALUE.fullmatch(value):
                        found.setdefault(match[1], None if match[2] is None else int(match[2]) / 1000)
            if len(found) == MAX_TOKENS:
                break
        return found

    def holding(self, token: str, expires: datetime | None = None, age: float | None = None) -> str:
        """The value of a `Set-Cookie` header that gives the client this token, until `expires` (default: `max_age`).

        `age`: how old the session is, in seconds, for `tokens_in` to tell when the client sends the cookie.
        """
        # The clocks of two hosts may disagree about when the session was created.
        value = token if age is None else f"{token}.{max(0, round(age * 1000))}"
        return self._dump(value, None if expires is not None else self.max_age, expires)

    def removal(self) -> str:
        """The value of a `Set-Cookie` header that takes the token from the client."""
        return self._dump("", 0, None)

    def _dump(self, value: str, max_age: int | None, expires: datetime | None) -> str:
        text = dump_cookie(self.name, value, max_age=max_age, expires=expires, httponly=True, **self._attributes)  # type: ignore[arg-type]  # mypy takes the values for all of one type
        # Werkzeug can write this from version 3.1 on.
        return f"{text}; Partitioned" if self._partitioned else text


def _checked_domain(domain: str) -> str:
    """The domain as browsers and Flask take it: no leading dot, no port, and in ASCII."""
    host = str.partition(domain, ":")[0].lstrip(".")
    try:
        host = host.encode("idna").decode("ascii")
    except UnicodeError:
        host = ""
    if not _DOMAIN.fullmatch(host):
        raise ValueError(f"domain must be a host's name, such as 'example.com', not {short_repr(domain)}")
    return host


def checked_cookie(value: object) -> SessionCookie:
    """A `SessionCookie`, and the default one for None. Raises `TypeError` for anything else."""
    if value is None:
        return SessionCookie()
    if not isinstance(value, SessionCookie):
        raise TypeError(f"cookie must be a SessionCookie, such as SessionCookie('shop'), not {short_repr(value)}")
    return value
