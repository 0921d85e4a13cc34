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

MAX_COOKIES = 10
"""How many cookies of the same name are searched for a token."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_PATH = re.compile(r"/[^\x00-\x1f\x7f;]*")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")


def new_token() -> str:
    """A new secret of 256 random bits: 43 of ASCII letters, digits, `_` and `-`."""
    return secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether a text has the form of a token. Only the coordinator knows whether the token was ever issued."""
    return _TOKEN.fullmatch(text) is not None


def id_of(token: str) -> str:
    """The id of the token's session: its SHA-256, in hexadecimal. No token can be found from an id."""
    return hashlib.sha256(token.encode()).hexdigest()


class SessionCookie:
    """How the token travels: `HttpOnly`, so that no script reads it, and by default `Secure`, `SameSite=Lax`, `Path=/`.

    `name`: up to 64 characters that a cookie's name may have; default `session`. It gets a prefix, which has browsers
    refuse a cookie that does not keep to what the prefix says: `__Host-`, or `__Secure-` where there is a `domain` or
    another `path`. `secure=False` is for development without HTTPS: it leaves out `Secure` and the prefix, and warns
    (`UserWarning`). `same_site`: `"Lax"`, `"Strict"`, or `"None"`, which needs `Secure`. `max_age`: how long the
    browser keeps the cookie from when it is set, in seconds or as a timedelta; default until the browser is closed.
    The session ends by the coordinator's limits, however long the browser keeps the cookie.

    Raises `ValueError` or `TypeError` for a value that no cookie may have. A cookie does not change once made.
    """

    __slots__ = ("_attributes", "_max_age", "name")

    def __init__(
        self,
        name: str = "session",
        *,
        secure: bool = True,
        same_site: SameSite = "Lax",
        path: str = "/",
        domain: str | None = None,
        max_age: Duration | None = None,
    ) -> None:
        if not _NAME.fullmatch(name) or name.startswith("__"):
            raise ValueError(
                f"a cookie's name must be 1 to 64 of ASCII letters, digits and !#$%&'*+.^_`|~-, and begin with no "
                f"'__' (the prefix is added here), not {short_repr(name)}"
            )
        if same_site not in get_args(SameSite):
            raise ValueError(f"same_site must be one of {get_args(SameSite)}, not {short_repr(same_site)}")
        if not _PATH.fullmatch(path):
            raise ValueError(f"path must begin with '/' and have no ';', not {short_repr(path)}")
        if domain is not None and not _DOMAIN.fullmatch(domain):
            raise ValueError(f"domain must be a host's name in ASCII, such as 'example.com', not {short_repr(domain)}")
        if not checked_flag("secure", secure):
            if same_site == "None":
                raise ValueError("same_site='None' needs secure=True: browsers refuse such a cookie otherwise")
            warnings.warn(
                f"the cookie {name!r} is not Secure: anybody who listens on the network can take over sessions. "
                "Leave secure=False out wherever there is HTTPS",
                stacklevel=2,
            )
        prefix = "" if not secure else "__Host-" if path == "/" and domain is None else "__Secure-"
        self.name = prefix + name
        """The name that the client sees, with its prefix."""
        self._max_age = None if max_age is None else ceil(checked_seconds("max_age", max_age))
        self._attributes = {"path": path, "domain": domain, "secure": secure, "samesite": same_site}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def token_in(self, header: str) -> str | None:
        """The token in a `Cookie` header, as WSGI has that; None if no cookie of this name has the form of a token.

        Cookies that are malformed or too long are passed over, whatever their name.
        """
        # Werkzeug gets only what may be our own cookie. For a whole header its time grows with the square of the
        # length, which a client may choose, and it raises for bytes of other cookies that are no UTF-8.
        own = [part for part in header.split(";") if part.lstrip(" \t").startswith(self.name)]
        for part in own[:MAX_COOKIES]:
            if len(part) <= len(self.name) + MAX_COOKIE_CHARACTERS:
                for value in parse_cookie(part).getlist(self.name):
                    if is_token(value):
                        return value
        return None

    def holding(self, token: str, expires: datetime | None = None) -> str:
        """The value of a `Set-Cookie` header that gives the client this token, until `expires` (default: `max_age`)."""
        return self._dump(token, None if expires is not None else self._max_age, expires)

    def removal(self) -> str:
        """The value of a `Set-Cookie` header that takes the token from the client."""
        return self._dump("", 0, None)

    def _dump(self, value: str, max_age: int | None, expires: datetime | None) -> str:
        return dump_cookie(self.name, value, max_age=max_age, expires=expires, httponly=True, **self._attributes)  # type: ignore[arg-type]  # mypy takes the values for all of one type


def checked_cookie(value: object) -> SessionCookie:
    """A `SessionCookie`, and the default one for None. Raises `TypeError` for anything else."""
    if value is None:
        return SessionCookie()
    if not isinstance(value, SessionCookie):
        raise TypeError(f"cookie must be a SessionCookie, such as SessionCookie('shop'), not {short_repr(value)}")
    return value
