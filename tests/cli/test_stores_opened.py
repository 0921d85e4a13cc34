"""The operators' commands on a Redis store: which store a URL opens, and what they say where it cannot be had."""

from __future__ import annotations

import json
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import RedisStore, SessionRecord
from sessionkit.stores.open import open_store

from ..helpers.redis_server import redis_sentinel, redis_server, shared_server
from ..helpers.support import WAIT
from .test_main import only_line, run_on_terminal, run_real, start
from .test_sessions import IDLE, OLD, SUPPORT, run


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real server, for all tests of this file."""
    with shared_server() as found:
        yield found


@pytest.fixture
def prefix() -> str:
    """What nobody else's keys begin with."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def where(url: str, prefix: str) -> str:
    """What an operator gives to a command."""
    return with_prefix(url, prefix)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same time as in the other tests of these commands."""
    monkeypatch.setattr("sessionkit.cli.sessions.time", lambda: 1_768_348_800.0)


def with_prefix(url: str, prefix: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}prefix={prefix}"


def put(url: str, prefix: str, *records: SessionRecord) -> None:
    """Put records into a store that no process has in memory."""
    with closing(RedisStore(url, prefix)) as store:
        instance = store.join(0.0, "other")
        for record in records:
            store.create(record, instance)


# ---- The commands


def test_what_a_redis_store_has(url: str, where: str, prefix: str) -> None:
    """Sessions on a Redis server are listed, shown, cleaned up and closed as those in a file are."""
    put(url, prefix, SUPPORT, IDLE, OLD)
    listed = json.loads(run("list", where, "--json").stdout)
    assert [(each["id"], each["expired"]) for each in listed] == [("s-1", False), ("s-2", True), ("s-3", True)]
    assert run("list", where).stdout.endswith("3 sessions: 1 live, 2 expired\n")
    assert json.loads(run("show", where, "support", "--json").stdout)["data"] == {"lang": "en"}
    assert run("cleanup", where, "--dry-run").stdout == "Would remove 2 sessions; 1 would be left\n"
    assert run("cleanup", where).stdout == "Removed 2 sessions (1 idle for too long, 1 too old); 1 left\n"
    assert run("close", where, "support").stdout == "Closed 1 session\n"
    assert run("list", where).stdout == "0 sessions: 0 live, 0 expired\n"
    absent = run("show", where, "support")
    assert (absent.exit_code, absent.stdout) == (1, "")
    assert only_line(absent.stderr).startswith("Error: not in the store: 'support'; ")


def test_what_a_process_has_in_memory(url: str, where: str, prefix: str) -> None:
    """What a living process has in memory is shown as such, and no cleanup removes it."""
    put(url, prefix, IDLE)
    with closing(RedisStore(url, prefix)) as store:
        store.attach("s-2", store.join(5.0, "web-1:4711"))
        assert "of no process" not in run("show", where, "left").stdout
        assert run("cleanup", where).stdout == "Removed 0 sessions (0 idle for too long, 0 too old); 1 left\n"
    assert "of no process" in run("show", where, "left").stdout
    assert run("cleanup", where).stdout.startswith("Removed 1 session ")


def test_many_sessions(url: str, where: str, prefix: str) -> None:
    """More than one step takes are all listed and all removed; on a terminal with a bar."""
    put(url, prefix, *(IDLE._replace(id=f"s-{number:03}", name=None) for number in range(250)))
    assert len(json.loads(run("list", where, "--json").stdout)) == 250
    assert run("list", where, "--limit", "3").stdout.endswith(
        "250 sessions: 0 live, 250 expired; 3 shown, 247 more not shown (--limit N shows more)\n"
    )
    status, text = run_on_terminal("sessions", "cleanup", where, "--json")
    assert (status, "Removing" in text, '"removed": 250' in text) == (0, True, True)


def test_as_an_operator_would(url: str, where: str, prefix: str) -> None:
    """What a coordinator left on the server is there for commands in processes of their own."""
    with SessionCoordinator(CoordinatorConfig(session_timeout=1e6), store=RedisStore(url, prefix)) as coordinator:
        coordinator.create_session("support", data={"lang": "en"})
        assert json.loads(run_real("sessions", "show", where, "support", "--json").stdout)["data"] == {"lang": "en"}
    listed = json.loads(run_real("sessions", "list", where, "--json").stdout)
    assert [each["name"] for each in listed] == ["support"]
    assert run_real("sessions", "close", where, "support").stdout == "Closed 1 session\n"


# ---- Which store


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


def test_nothing_is_written_by_looking() -> None:
    """A server without sessions is a store without any; no command makes anything there."""
    with redis_server() as server:
        for command in ("list", "cleanup"):
            assert run(command, server.url).exit_code == 0
        for command in ("show", "close"):
            assert run(command, server.url, "support").exit_code == 1
        assert run("cleanup", server.url, "--dry-run").stdout == "Would remove 0 sessions; 0 would be left\n"
        with server.client() as client:
            assert client.dbsize() == 0


@pytest.mark.parametrize("scheme", ["redis", "REDIS", "Redis"])
def test_schemes_in_any_case(url: str, scheme: str) -> None:
    """A scheme may be written in capitals."""
    assert run("list", scheme + url.removeprefix("redis")).exit_code == 0


def test_a_socket_of_the_file_system(tmp_path: Path) -> None:
    """unix:// opens the store behind a socket, also one that has other databases."""
    path = tmp_path / "redis.sock"
    with redis_server("--unixsocket", str(path)) as server:
        put(f"{server.url.removesuffix('0')}3", "shop", SUPPORT)
        assert run("list", f"unix://{path}?db=3&prefix=shop").stdout.endswith("1 session: 1 live, 0 expired\n")
        assert run("list", f"unix://{path}?prefix=shop").stdout == "0 sessions: 0 live, 0 expired\n"


def test_behind_a_sentinel() -> None:
    """redis+sentinel:// opens the store on the server that a Sentinel names; one that it does not know is an error."""
    with redis_sentinel() as (server, where):
        put(server.url, "shop", SUPPORT)
        assert run("list", f"{where}?prefix=shop").stdout.endswith("1 session: 1 live, 0 expired\n")
        result = run("list", where.replace("/sessions/", "/strangers/"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert only_line(result.stderr).startswith("Error: the session store strangers of 127.0.0.1:")
        assert "No master found for 'strangers'. Check that it runs" in result.stderr


# ---- What can be wrong


@pytest.mark.parametrize("command", ["list", "show", "close", "cleanup"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel"])
def test_a_server_that_cannot_be_reached(command: str, scheme: str) -> None:
    """One line on stderr that says which and what to check, status 1, and no password."""
    with socket.socket() as nobody:
        # Bound, so that nobody else gets it, and not listening.
        nobody.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{nobody.getsockname()[1]}"
        more = ["support"] if command in ("show", "close") else []
        result = run(command, f"{scheme}://user:secret@{place}/{'shop/' if 'sentinel' in scheme else ''}1", *more)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.match(
        f"Error: the session store (shop of )?{place}/1 failed: .*Check that it runs", only_line(result.stderr)
    )
    assert "secret" not in result.stderr
    assert len(result.stderr) < 250


def test_passwords() -> None:
    """One that is right opens the store, with what a URL must escape; a wrong one is one line, without it."""
    with redis_server() as server:
        with server.client() as client:
            client.config_set("requirepass", "se/cr#e?t")
        place = server.url.removeprefix("redis://")
        assert run("list", f"redis://:se%2Fcr%23e%3Ft@{place}").stdout == "0 sessions: 0 live, 0 expired\n"
        for login in ("", ":geheim@", "user:geheim@"):
            result = run("list", f"redis://{login}{place}")
            assert (result.exit_code, result.stdout) == (1, "")
            assert "Check the user and the password in the URL" in only_line(result.stderr)
            assert "geheim" not in result.stderr


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
def test_urls_that_cannot_be_read(where: str, reason: str) -> None:
    """Wrong usage, status 2; the message says what is wrong and what to write, and no password."""
    result = run("list", where)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value for 'STORE': " in result.stderr
    assert reason in result.stderr
    assert "redis://host:6379/0" in result.stderr or "prefix" in result.stderr or "setting" in result.stderr
    assert "secret" not in result.stderr


def test_without_redis_py() -> None:
    """One line that says what to install, status 1; files are opened all the same."""
    without = "import sys; sys.modules['redis'] = None"
    with start("sessions", "list", "redis://localhost", code=without) as process:
        stdout, stderr = process.communicate(timeout=WAIT)
    assert (process.returncode, stdout) == (1, "")
    assert only_line(stderr) == "Error: RedisStore needs redis-py: pip install 'sessionkit[redis]'"
    with start("sessions", "list", "nowhere.db", code=without) as process:
        _, stderr = process.communicate(timeout=WAIT)
    assert only_line(stderr).startswith("Error: no session store at 'nowhere.db'")


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
