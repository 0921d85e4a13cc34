"""Opening a store that is named by a text, as on a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, unquote

# Each kind of store is imported when it is used first.
from .. import stores
from ..errors import StoreError
from ..util.log import short_repr
from .base import Store

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_LIKE_SQLITE = "sqlite:///relative.db or sqlite:////absolute.db"
_LIKE = f"redis://host:6379/0, {_LIKE_SQLITE}"


def open_store(where: str) -> Store:
    """Open the store that `where` says: the path of a SQLite store, or a URL.

    That is `sqlite:///relative.db`, `sqlite:////absolute.db`, or one that `RedisStore` takes, with `prefix=` in its
    query if the store was given a prefix: `redis://host:6379/0?prefix=shop`.

    Makes no store: raises `StoreError` if there is no such file, and `ValueError` for a URL that it cannot read.
    Whether a Redis server can be reached turns out when the store is used.
    """
    scheme, separator, rest = where.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return _open_file(where)
    opener = _OPENERS.get(scheme.lower())
    if opener is None:
        # The rest is not shown: it may have a password.
        raise ValueError(
            f"{short_repr(scheme)} is not a scheme of session stores, which are: {', '.join(_OPENERS)}; give the path "
            f"of a SQLite store, or a URL like {_LIKE}"
        )
    return opener(scheme.lower(), rest)


def _open_sqlite_url(_scheme: str, rest: str) -> Store:
    if not rest.startswith("/"):
        raise ValueError(f"SQLite's URLs name files and no hosts: write {_LIKE_SQLITE}")
    if found := re.search("[?#]", rest):
        raise ValueError(
            f"there are no settings for what comes after {found[0]} in {short_repr(rest)}; if it is part of the path, "
            f"write {quote(found[0])}"
        )
    return _open_file(unquote(rest[1:]))


def _open_file(path: str) -> Store:
    # Not os.path.exists(): that also says no where it may not look.
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"no session store at {short_repr(path)}; give the path that the server gives to its SQLiteStore, or a URL "
            f"like {_LIKE}"
        ) from None
    except OSError as error:
        raise StoreError(f"the session store {short_repr(path)} cannot be reached: {error.strerror}") from error
    if os.path.isdir(path):
        raise StoreError(f"{short_repr(path)} is a directory; give the path of the session store's file")
    return stores.SQLiteStore(path)


def _open_redis_url(scheme: str, rest: str) -> Store:
    try:
        store = stores.RedisStore
    except ImportError as error:
        # redis-py is not there; this says how to get it.
        raise StoreError(str(error)) from error
    place, _, query = rest.partition("?")
    settings = query.split("&")
    own = parse_qsl("&".join(one for one in settings if one.startswith("prefix=")), keep_blank_values=True)
    others = "&".join(one for one in settings if not one.startswith("prefix="))
    url = f"{scheme}://{place}?{others}" if others else f"{scheme}://{place}"
    return store(url, dict(own)["prefix"]) if own else store(url)


_OPENERS: dict[str, Callable[[str, str], Store]] = {
    "sqlite": _open_sqlite_url,
    **dict.fromkeys(("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"), _open_redis_url),
}
