"""Opening a store by a path or a URL: which store that is, and what is wrong with one that cannot be read."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sessionkit.stores import RedisStore, SQLiteStore
from sessionkit.stores.open import open_store

from ..helpers.records import SUPPORT, ids_in, put
from ..helpers.redis_server import redis_sentinel, redis_server, shared_server
from ..helpers.support import WAIT


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real Redis server, for all tests of this file."""
    with shared_server() as found:
        yield found


def test_paths_and_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is opened by a path or a URL, relative or absolute, with what a URL must escape."""
    monkeypatch.chdir(tmp_path)
    path, strange = tmp_path / "sessions.db", tmp_path / "a ?#%.db"
    put(SQLiteStore(path))
    put(SQLiteStore(strange))
    for where in ("sessions.db", str(path), "sqlite:///sessions.db", f"sqlite:///{path}", f"SQLite:///./{path.name}"):
        store = open_store(where)
        assert repr(store) == f"SQLiteStore({str(path.resolve())!r})"
        store.close()
    for where in (strange.name, "sqlite:///a%20%3F%23%25.db"):
        store = open_store(where)
        assert repr(store) == f"SQLiteStore({str(strange.resolve())!r})"
        store.close()
    (tmp_path / "1:").mkdir()
    put(SQLiteStore(tmp_path / "1:" / "x.db"))
    open_store("1://x.db").close()


def test_prefixes(url: str) -> None:
    """The store is the one with the prefix that the query gives, or else with the usual one; all else is redis-py's."""
    more = "&" if "?" in url else "?"
    for query, shown in (
        ("", "sessionkit"),
        (f"{more}prefix=shop", "shop"),
        (f"{more}prefix=a%26b+c", "a&b c"),
        (f"{more}socket_timeout=1&prefix=shop&socket_keepalive=yes", "shop"),
        (f"{more}socket_timeout=1", "sessionkit"),
    ):
        with closing(open_store(url + query)) as store:
            assert repr(store).endswith(f", prefix={shown!r})")
            assert store.page(None, 1) == []


@pytest.mark.parametrize("scheme", ["redis", "REDIS", "Redis"])
def test_schemes_in_any_case(url: str, scheme: str) -> None:
    """A scheme may be written in capitals."""
    with closing(open_store(scheme + url.removeprefix("redis"))) as store:
        assert type(store) is RedisStore
        assert store.page(None, 1) == []


def test_a_socket_of_the_file_system(tmp_path: Path) -> None:
    """unix:// opens the store behind a socket, also one that has other databases."""
    path = tmp_path / "redis.sock"
    with redis_server("--unixsocket", str(path)) as server:
        put(RedisStore(f"{server.url.removesuffix('0')}3", "shop"), SUPPORT)
        assert ids_in(open_store(f"unix://{path}?db=3&prefix=shop")) == [SUPPORT.id]
        assert ids_in(open_store(f"unix://{path}?prefix=shop")) == []


def test_behind_a_sentinel() -> None:
    """redis+sentinel:// opens the store on the server that a Sentinel names."""
    with redis_sentinel() as (server, where):
        put(RedisStore(server.url, "shop"), SUPPORT)
        assert ids_in(open_store(f"{where}?prefix=shop")) == [SUPPORT.id]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("mysql://:secret@localhost", "'mysql' is not a scheme of session stores, which are: sqlite, redis, rediss, "),
        (
            "sqlite://sessions.db",
            "SQLite's URLs name files and no hosts: write sqlite:///relative.db or sqlite:////abs",
        ),
        ("sqlite:///sessions.db?timeout=3", "no settings for what comes after ? in '/sessions.db?timeout=3'; if it"),
        ("sqlite:///sessions.db#1", "if it is part of the path, write %23"),
        ("sqlite:///sessions%00.db", "null"),
    ],
)
def test_urls_that_cannot_be_read(where: str, reason: str) -> None:
    """`ValueError` for a URL of another kind, and for one of a SQLite store that says more than a path."""
    with pytest.raises(ValueError, match=re.escape(reason)) as raised:
        open_store(where)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("redis://:secret@localhost:port/0", "it has no number for a port; write / ? # @ in a password as %2F %3F %23"),
        ("redis://user:secret/1@localhost/0", "it has no number for a port"),
        ("redis://:secret#1@localhost", "it has no number for a port"),
        ("redis://:secret@[::1/0", "this is no URL of a Redis server"),
        ("redis+sentinel://:secret@localhost:port/shop", "it has no number for a port"),
        ("redis+sentinel://:secret@localhost", "a Sentinel URL names hosts and a service"),
        ("redis+sentinel://:secret@localhost/shop?socket_timeout=1", "a Sentinel URL has no setting 'socket_timeout'"),
        ("redis://:secret@localhost/0?prefex=shop", "unexpected keyword argument 'prefex'"),
        ("redis://:secret@localhost/0?socket_timeout=soon", "Invalid value for 'socket_timeout'"),
        ("rediss://:secret@localhost/0?ssl_cert_reqs=maybe", "Invalid SSL Certificate Requirements Flag"),
        ("redis://:secret@localhost/0?prefix=", "prefix '' is not allowed; use 1 to 64 printable characters"),
        ("redis://:secret@localhost/0?prefix={a}", "prefix '{a}' is not allowed"),
        (
            "postgresql://:secret@localhost",
            "'postgresql' is not a scheme of session stores, which are: sqlite, redis, ",
        ),
    ],
)
def test_redis_urls_that_cannot_be_read(where: str, reason: str) -> None:
    """`ValueError` for a URL of a Redis store; the message says what is wrong and what to write, and no password."""
    with pytest.raises(ValueError, match=re.escape(reason)) as raised:
        open_store(where)
    message = str(raised.value)
    assert "redis://host:6379/0" in message or "prefix" in message or "setting" in message
    assert "secret" not in message


def test_nobody_waits_for_the_import_of_another_store() -> None:
    """Opening a file imports no redis-py, and a Redis store no SQLite."""
    for where, other in (("sqlite:///nowhere.db", "redis"), ("redis://localhost", "sqlite3")):
        program = f"""
import sys
from sessionkit import StoreError
from sessionkit.stores.open import open_store
assert not {{"redis", "sqlite3"}} & set(sys.modules)
try:
    open_store({where!r})
except StoreError:
    pass
assert {other!r} not in sys.modules
"""
        # Isolated from what measures the coverage of child processes, which imports them itself.
        environment = {"PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-S", "-c", program], check=True, timeout=WAIT, env=environment)  # noqa: S603  our own program
