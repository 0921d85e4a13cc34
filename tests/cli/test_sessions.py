"""The operators' commands: what they say of a store and its sessions, and what they remove."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result

from sessionkit import CoordinatorConfig, SessionCoordinator, SessionNotFoundError, StoreError
from sessionkit.stores import RedisStore, SessionRecord, SQLiteStore

from ..helpers.command import COMMAND, only_line, run_command, run_on_terminal, run_real, start
from ..helpers.records import IDLE, OLD, SUPPORT, ids_in, put
from ..helpers.redis_server import redis_sentinel, redis_server, shared_server
from ..helpers.support import WAIT

pytestmark = pytest.mark.usefixtures("clock")


def run(command: str, *arguments: str | Path) -> Result:
    """Run one of the commands in this process."""
    return run_command("sessions", command, *arguments)


def words(result: Result) -> list[list[str]]:
    """The words of each line that a command wrote; it succeeded."""
    assert (result.exit_code, result.stderr) == (0, "")
    return [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real Redis server, for all tests of this file."""
    with shared_server() as found:
        yield found


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test's keys begin with."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def where(url: str, prefix: str) -> str:
    """The URL of a Redis store, as an operator gives it to a command."""
    return f"{url}{'&' if '?' in url else '?'}prefix={prefix}"


# ---- list


def test_list(path: Path) -> None:
    """A line for each session in the order of ids, expired ones as such, and the counts at the end."""
    heads, rule, *lines, counts = words(run("list", path))
    assert heads == [
        *("id", "name", "state", "created (UTC)", "last active (UTC)", "idle for", "expires"),
        *("messages", "bytes", "version"),
    ]
    assert re.fullmatch("─+", rule[0])
    assert lines == [
        [
            *("s-1", "support", "active", "2026-01-13 23:00:00", "2026-01-13 23:50:00", "10m", "in 20m"),
            *("3", "13", "2"),
        ],
        [
            *(
                "s-2",
                "left",
                "waiting_for_input",
                "2026-01-13 22:00:00",
                "2026-01-13 23:00:00",
                "1h",
                "expired 30m ago",
            ),
            *("0", "2", "1"),
        ],
        ["s-3", "active", "2026-01-12 23:00:00", "2026-01-13 23:59:00", "1m", "expired 1h ago", "1,200", "2", "1"],
    ]
    assert counts == ["3 sessions: 1 live, 2 expired"]


def test_list_as_json(path: Path) -> None:
    """--json prints an array with an object a line, and nothing else."""
    result = run("list", path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    first, second, third = json.loads(result.stdout)
    assert list(first.items()) == [
        ("id", "s-1"),
        ("name", "support"),
        ("state", "active"),
        ("created_at", "2026-01-13T23:00:00+00:00"),
        ("last_active", "2026-01-13T23:50:00+00:00"),
        ("idle_seconds", 600.0),
        ("session_timeout", 1800.0),
        ("max_lifetime", None),
        ("expires_at", "2026-01-14T00:20:00+00:00"),
        ("expires_of", "idle"),
        ("expired", False),
        ("message_count", 3),
        ("data_bytes", 13),
        ("version", 2),
    ]
    assert (second["expired"], second["expires_of"], second["expires_at"]) == (
        True,
        "idle",
        "2026-01-13T23:30:00+00:00",
    )
    assert (third["expired"], third["expires_of"], third["max_lifetime"]) == (True, "lifetime", 86400.0)
    assert [json.loads(line.rstrip(",")) for line in result.stdout.splitlines()[1:-1]] == [first, second, third]


def test_list_of_an_empty_store(tmp_path: Path) -> None:
    """A store without sessions has no table, and an empty array."""
    put(SQLiteStore(tmp_path / "empty.db"))
    assert run("list", tmp_path / "empty.db").stdout == "0 sessions: 0 live, 0 expired\n"
    assert run("list", tmp_path / "empty.db", "--json").stdout == "[]\n"


def test_list_in_part(tmp_path: Path) -> None:
    """The table ends at its limit and says how many more there are; the array has all unless told otherwise."""
    path = tmp_path / "big.db"
    put(SQLiteStore(path), *(SUPPORT._replace(id=f"s-{number:03}", name=None) for number in range(250)))
    *_, last, counts = words(run("list", path))
    assert last[0] == "s-099"
    assert counts == ["250 sessions: 250 live, 0 expired; 100 shown, 150 more not shown (--limit N shows more)"]
    *_, last, counts = words(run("list", path, "--limit", "250"))
    assert last[0] == "s-249"
    assert counts == ["250 sessions: 250 live, 0 expired"]
    assert [each["id"] for each in json.loads(run("list", path, "--json").stdout)] == ids_in(SQLiteStore(path))
    assert [each["id"] for each in json.loads(run("list", path, "--json", "--limit", "2").stdout)] == ["s-000", "s-001"]


def test_when_nobody_reads_on(tmp_path: Path) -> None:
    """A long list into a pipe that is closed ends with one line and status 141, and lets go of the store."""
    path = tmp_path / "long.db"
    put(SQLiteStore(path), *(SUPPORT._replace(id=f"s-{number:04}", name=None) for number in range(1000)))
    with subprocess.Popen(  # noqa: S603
        [*COMMAND, "sessions", "list", str(path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "[\n"
        process.stdout.close()
        assert only_line(process.stderr.read()) == "Error: the output was closed before all of it was written"
        assert process.wait(WAIT) == 141
    assert os.listdir(tmp_path) == ["long.db"]


# ---- show


def test_show(path: Path) -> None:
    """By name or id: all fields, and the data in lines."""
    by_name = run("show", path, "support")
    assert words(by_name) == [
        ["id", "s-1"],
        ["name", "support"],
        ["state", "active"],
        ["created", "2026-01-13 23:00:00 UTC, 1h ago"],
        ["last active", "2026-01-13 23:50:00 UTC, 10m ago"],
        ["expires", "in 20m (idle for too long)"],
        ["session timeout", "30m"],
        ["max lifetime", "none"],
        ["messages", "3"],
        ["version", "2"],
        ["in memory", "of no process"],
        ["data", "13 bytes"],
        ["{"],
        ['"lang": "en"'],
        ["}"],
    ]
    assert run("show", path, "s-1").stdout == by_name.stdout
    old = words(run("show", path, "s-3"))
    assert ["expires", "expired 1h ago (too old); not yet removed"] in old
    assert (["name", "none"] in old, ["max lifetime", "1d"] in old) == (True, True)


def test_show_as_json(path: Path) -> None:
    """--json prints the object that the list has, and the data."""
    shown = json.loads(run("show", path, "--json", "support").stdout)
    (listed,) = json.loads(run("list", path, "--json", "--limit", "1").stdout)
    assert shown == listed | {"in_memory": False, "instances": [], "lag_seconds": 0.0, "data": {"lang": "en"}}


def test_the_time_is_that_of_the_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is behind shows, and removes, what has expired by the store's clock."""
    monkeypatch.setattr(SQLiteStore, "clock_offset", lambda _: 86_400.0)
    assert words(run("list", path))[-1][0] == "3 sessions: 0 live, 3 expired"
    assert ["expires", "expired 23h40m ago (idle for too long); not yet removed"] in words(run("show", path, "s-1"))
    assert json.loads(run("show", path, "s-1", "--json").stdout)["expired"] is True
    assert json.loads(run("cleanup", path, "--json").stdout)["removed"] == 3


def test_show_who_is_not_there(path: Path) -> None:
    """One line on stderr that names it and what to do, and status 1."""
    for extra in ([], ["--json"]):
        result = run("show", path, "nob\x1body", *extra)
        assert (result.exit_code, result.stdout) == (1, "")
        assert only_line(result.stderr) == (
            "Error: not in the store: 'nob\\x1body'; `sessionkit sessions list STORE` says what is"
        )


def test_an_id_is_found_before_a_name(path: Path) -> None:
    """Where one session has the name that is the id of another, that other is meant."""
    put(SQLiteStore(path), SUPPORT._replace(id="s-4", name="s-1"))
    assert words(run("show", path, "s-1"))[0] == ["id", "s-1"]


# ---- close


def test_close(path: Path) -> None:
    """Sessions are closed by id or name, each once however often it is named, and counted."""
    result = run("close", path, "support", "s-1", "s-3", "s-3")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Closed 2 sessions\n", "")
    assert ids_in(SQLiteStore(path)) == ["s-2"]
    result = run("close", path, "left", "--json")
    assert json.loads(result.stdout) == {"closed": ["s-2"], "not_found": []}
    assert ids_in(SQLiteStore(path)) == []


def test_close_who_is_not_there(path: Path) -> None:
    """Those that are not there are named, status 1; the others are closed all the same."""
    result = run("close", path, "nobody", "support", "s-9")
    assert (result.exit_code, result.stdout) == (1, "Closed 1 session\n")
    assert only_line(result.stderr).startswith("Error: not in the store: 'nobody', 's-9'; ")
    assert ids_in(SQLiteStore(path)) == ["s-2", "s-3"]
    result = run("close", path, "support", "left", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"closed": ["s-2"], "not_found": ["support"]}


def test_ids_that_look_like_options(path: Path) -> None:
    """Generated ids may begin with dashes; options are still found, wherever they stand, and so is help."""
    put(SQLiteStore(path), *(SUPPORT._replace(id=session_id, name=None) for session_id in ("-hjson", "--x", "-")))
    assert words(run("show", path, "-hjson"))[0] == ["id", "-hjson"]
    assert json.loads(run("close", path, "--x", "--json", "-").stdout)["closed"] == ["-", "--x"]
    assert run("close", "--json", "--", path, "--json").stderr.startswith("Error: not in the store: '--json'")
    assert run("close", path, "-hjson", "-h").stdout.startswith("Usage: ")
    assert run("close", path, "-hjson").exit_code == 0


def test_a_process_notices_that_a_session_was_closed(tmp_path: Path) -> None:
    """A session that an operator closes is gone for the process that has it in memory, and is closed there."""
    path, closed = tmp_path / "sessions.db", []
    with SessionCoordinator(
        CoordinatorConfig(), store=SQLiteStore(path), on_close=lambda session, cause: closed.append(session.name)
    ) as coordinator:
        session = coordinator.create_session("support")
        assert run("close", path, "support").exit_code == 0
        with pytest.raises(SessionNotFoundError):
            coordinator.get_session(session.id)
        assert closed == ["support"]


# ---- cleanup


def test_cleanup(path: Path) -> None:
    """What has expired is removed, and counted by cause; again there is nothing left to remove."""
    result = run("cleanup", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "Removed 2 sessions (1 idle for too long, 1 too old); 1 left\n"
    assert ids_in(SQLiteStore(path)) == ["s-1"]
    assert run("cleanup", path).stdout == "Removed 0 sessions (0 idle for too long, 0 too old); 1 left\n"


def test_cleanup_as_json(path: Path) -> None:
    """--json prints one object with the counts."""
    dry = json.loads(run("cleanup", path, "--dry-run", "--json").stdout)
    assert dry == {"dry_run": True, "would_remove": 2, "would_remain": 1}
    wet = json.loads(run("cleanup", path, "--json").stdout)
    assert wet == {"dry_run": False, "removed": 2, "removed_idle": 1, "removed_lifetime": 1, "remaining": 1}


def test_a_dry_run_only_counts(path: Path) -> None:
    """With --dry-run nothing is removed."""
    assert run("cleanup", path, "--dry-run").stdout == "Would remove 2 sessions; 1 would be left\n"
    assert run("cleanup", path, "--dry-run", "--max-age", "9m").stdout == "Would remove 3 sessions; 0 would be left\n"
    assert len(ids_in(SQLiteStore(path))) == 3


def test_cleanup_of_who_was_idle_for_less(path: Path) -> None:
    """--max-age removes as well who was idle for more than that, and counts it as idle."""
    assert "Removed 2 sessions" in run("cleanup", path, "--max-age", "10m").stdout
    assert run("cleanup", path, "--max-age", "599").stdout == (
        "Removed 1 session (1 idle for too long, 0 too old); 0 left\n"
    )


def test_cleanup_leaves_what_a_process_may_have_used(path: Path) -> None:
    """What a process has checked out, or may have touched and not written yet, stays."""
    store = SQLiteStore(path)
    store.attach("s-3", store.join(0.0, "other"), lease=True)
    store.attach("s-2", store.join(3600.0, "other"))
    assert run("cleanup", path, "--max-age", "1").stdout == (
        "Removed 1 session (1 idle for too long, 0 too old); 2 left\n"
    )
    store.close()
    assert "Removed 2 sessions" in run("cleanup", path).stdout


@pytest.mark.parametrize("text", ["1y", "0", "-5"])
def test_a_wrong_duration(path: Path, text: str) -> None:
    """A duration that is none is wrong usage, status 2, and nothing is removed."""
    result = run("cleanup", path, f"--max-age={text}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Invalid value for '--max-age': '{text}' is" in result.stderr
    assert len(ids_in(SQLiteStore(path))) == 3


def test_progress_bar_on_a_terminal(tmp_path: Path) -> None:
    """A cleanup has a bar on a terminal, also with --json, and none elsewhere."""
    path = tmp_path / "big.db"
    for elsewhere in (True, False):
        put(SQLiteStore(path), *(IDLE._replace(id=f"s-{number}", name=None) for number in range(250)))
        if elsewhere:
            result = run_real("sessions", "cleanup", path)
            assert (result.stderr, result.stdout[:20]) == ("", "Removed 250 sessions")
        else:
            status, text = run_on_terminal("sessions", "cleanup", path, "--json")
            assert (status, "Removing" in text, '"removed": 250' in text) == (0, True, True)


@pytest.mark.parametrize("interruption", [StoreError("the disk is gone"), KeyboardInterrupt()])
def test_a_cleanup_that_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    """What was removed until then is removed, and told where the store failed; the next run goes on."""
    path = tmp_path / "big.db"
    put(SQLiteStore(path), *(IDLE._replace(id=f"s-{number}", name=None) for number in range(250)))
    calls = []

    def delete_expired(*arguments: float, **more: float) -> list[SessionRecord]:
        calls.append(arguments)
        if len(calls) > 1:
            raise interruption
        return real(*arguments, **more)  # type: ignore[arg-type]  # as it was called

    with monkeypatch.context() as patch:
        real, _ = SQLiteStore.delete_expired, patch.setattr(SQLiteStore, "delete_expired", delete_expired)
        result = run("cleanup", path)
    assert (result.exit_code, result.stdout.strip()) == (1, "")
    if isinstance(interruption, StoreError):
        assert only_line(result.stderr) == "Error: the disk is gone (removed before that: 100 sessions)"
    assert len(ids_in(SQLiteStore(path))) == 150
    assert "Removed 150 sessions" in run("cleanup", path).stdout


def test_what_an_error_must_not_bring(path: Path) -> None:
    """What SQLite quotes of a damaged record has its control characters escaped too."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sessions SET data = CAST(x'1bff07' AS TEXT)")
    connection.close()
    result = run("show", path, "support")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "\\u001b" in only_line(result.stderr)
    assert only_line(result.stderr).isprintable()


# ---- Which store


@pytest.mark.parametrize("command", ["list", "show", "close", "cleanup"])
def test_no_store_is_made(tmp_path: Path, command: str) -> None:
    """A store that is not there is one line on stderr and status 1; nothing is made."""
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere.db")
    more = ["support"] if command in ("show", "close") else []
    for name in ("nowhere.db", "link.db", "nowhere/sessions.db", "link.db/sessions.db"):
        for where in (str(tmp_path / name), f"sqlite:///{tmp_path / name}"):
            result = run(command, where, *more)
            assert (result.exit_code, result.stdout) == (1, "")
            assert re.match("Error: no session store at '.*'; give the path that the server", only_line(result.stderr))
    assert os.listdir(tmp_path) == ["link.db"]


def test_files_that_are_no_store(path: Path, tmp_path: Path) -> None:
    """A directory, another file and another database are refused in one line, status 1, and left as they are."""
    (tmp_path / "access.log").write_text("192.0.2.1 - - [14/Jan/2026:00:00:00 +0000]\n" * 100)
    (tmp_path / "empty.db").touch()
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE sessions (id)")
    other.close()
    for name, reason in (
        ("", "is a directory; give the path of the session store's file"),
        ("access.log", "file is not a database"),
        ("empty.db", "is an empty file"),
        ("other.db", "is a SQLite database of something else"),
        ("sessions.db/x", "no session store at"),
        ("x" * 300, "cannot be reached: File name too long"),
    ):
        result = run("list", tmp_path / name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert reason in only_line(result.stderr)
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_a_store_that_fails(path: Path, tmp_path: Path) -> None:
    """A store that fails in the middle is one line, status 1, without a traceback; its files are let go of."""
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    for command, *more in (("list",), ("show", "support"), ("close", "support"), ("cleanup",)):
        result = run_real("sessions", command, path, *more)
        assert (result.returncode, result.stdout) == (1, "")
        assert only_line(result.stderr).startswith(f"Error: the session store '{path}' failed: ")
    assert os.listdir(tmp_path) == ["sessions.db"]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("mysql://:secret@localhost", "'mysql' is not a scheme of session stores, which are: sqlite, redis, rediss, "),
        ("redis://:secret@localhost:port/0", "it has no number for a port; write / ? # @ in a password as %2F %3F %23"),
    ],
)
def test_urls_that_cannot_be_read(where: str, reason: str) -> None:
    """A URL that opens no store is wrong usage, status 2; the message says what to write, and no password."""
    result = run("list", where)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value for 'STORE': " in result.stderr
    assert reason in result.stderr
    assert "secret" not in result.stderr


# ---- A store on a Redis server


def test_what_a_redis_store_has(url: str, where: str, prefix: str) -> None:
    """Sessions on a Redis server are listed, shown, cleaned up and closed as those in a file are."""
    put(RedisStore(url, prefix), SUPPORT, IDLE, OLD)
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


def test_what_a_process_has_in_memory_on_a_redis_server(url: str, where: str, prefix: str) -> None:
    """What a living process has in memory is shown as such, and no cleanup removes it."""
    put(RedisStore(url, prefix), IDLE)
    with closing(RedisStore(url, prefix)) as store:
        store.attach("s-2", store.join(5.0, "web-1:4711"))
        assert "of no process" not in run("show", where, "left").stdout
        assert run("cleanup", where).stdout == "Removed 0 sessions (0 idle for too long, 0 too old); 1 left\n"
    assert "of no process" in run("show", where, "left").stdout
    assert run("cleanup", where).stdout.startswith("Removed 1 session ")


def test_many_sessions_on_a_redis_server(url: str, where: str, prefix: str) -> None:
    """More than one step takes are all listed and all removed; on a terminal with a bar."""
    put(RedisStore(url, prefix), *(IDLE._replace(id=f"s-{number:03}", name=None) for number in range(250)))
    assert len(json.loads(run("list", where, "--json").stdout)) == 250
    assert run("list", where, "--limit", "3").stdout.endswith(
        "250 sessions: 0 live, 250 expired; 3 shown, 247 more not shown (--limit N shows more)\n"
    )
    status, text = run_on_terminal("sessions", "cleanup", where, "--json")
    assert (status, "Removing" in text, '"removed": 250' in text) == (0, True, True)


def test_as_an_operator_would_on_a_redis_server(url: str, where: str, prefix: str) -> None:
    """What a coordinator left on the server is there for commands in processes of their own."""
    with SessionCoordinator(CoordinatorConfig(session_timeout=1e6), store=RedisStore(url, prefix)) as coordinator:
        coordinator.create_session("support", data={"lang": "en"})
        assert json.loads(run_real("sessions", "show", where, "support", "--json").stdout)["data"] == {"lang": "en"}
    listed = json.loads(run_real("sessions", "list", where, "--json").stdout)
    assert [each["name"] for each in listed] == ["support"]
    assert run_real("sessions", "close", where, "support").stdout == "Closed 1 session\n"


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


def test_behind_a_sentinel() -> None:
    """redis+sentinel:// opens the store on the server that a Sentinel names; one that it does not know is an error."""
    with redis_sentinel() as (server, where):
        put(RedisStore(server.url, "shop"), SUPPORT)
        assert run("list", f"{where}?prefix=shop").stdout.endswith("1 session: 1 live, 0 expired\n")
        result = run("list", where.replace("/sessions/", "/strangers/"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert only_line(result.stderr).startswith("Error: the session store strangers of 127.0.0.1:")
        assert "No master found for 'strangers'. Check that it runs" in result.stderr


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


# ---- As a whole


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["close"], ["cleanup"]])
def test_help(command: list[str]) -> None:
    """Help is on stdout, status 0, no wider than a terminal, and has examples."""
    result = run_real("sessions", *command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Examples:\n    sessionkit sessions " in result.stdout
    assert run_real("sessions", *command, "-h").stdout == result.stdout


def test_missing_arguments() -> None:
    """An argument that is missing, or too many, is wrong usage."""
    for arguments, reason in (
        (["list"], "Missing argument 'STORE'"),
        (["show", "sessions.db"], "Missing argument 'ID_OR_NAME'"),
        (["close", "sessions.db"], "Missing argument 'ID_OR_NAME...'"),
        (["show", "sessions.db", "a", "b"], "Got unexpected extra argument (b)"),
        (["list", "sessions.db", "--limit", "0"], "0 is not in the range x>=1"),
    ):
        result = run_real("sessions", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert reason in result.stderr


def test_as_an_operator_would(tmp_path: Path) -> None:
    """What coordinators left in a store is listed, shown, cleaned and closed by commands in processes of their own."""
    path = tmp_path / "sessions.db"
    coordinator = SessionCoordinator(CoordinatorConfig(session_timeout=1e6), store=SQLiteStore(path))
    coordinator.create_session("support", data={"lang": "en"})
    coordinator.close()
    put(SQLiteStore(path), IDLE)
    listed = json.loads(run_real("sessions", "list", path, "--json").stdout)
    assert {each["name"]: each["expired"] for each in listed} == {"support": False, "left": True}
    assert run_real("sessions", "cleanup", path).stdout.startswith("Removed 1 session (1 idle")
    assert json.loads(run_real("sessions", "show", path, "support", "--json").stdout)["data"] == {"lang": "en"}
    assert run_real("sessions", "close", path, "support").stdout == "Closed 1 session\n"
    assert run_real("sessions", "list", path).stdout == "0 sessions: 0 live, 0 expired\n"
    assert os.listdir(tmp_path) == ["sessions.db"]
