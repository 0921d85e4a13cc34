"""The operators' commands: what they say of a store and its sessions, and what they remove."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import time
from math import inf
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sessionkit import CoordinatorConfig, SessionCoordinator, SessionNotFoundError, StoreError
from sessionkit.cli.main import sessionkit
from sessionkit.stores import SessionRecord, SQLiteStore
from sessionkit.stores.open import open_store

from ..helpers.support import WAIT
from .test_main import COMMAND, only_line, run_on_terminal, run_real

NOW = 1_768_348_800.0
"""The 14th of January 2026, 00:00 UTC: what the clock shows in these tests."""

SUPPORT = SessionRecord("s-1", "support", '{"lang":"en"}', "active", NOW - 3600, NOW - 600, 3, 1800.0, None, 2)
IDLE = SessionRecord("s-2", "left", "{}", "waiting_for_input", NOW - 7200, NOW - 3600, 0, 1800.0, None)
OLD = SessionRecord("s-3", None, "{}", "active", NOW - 90000, NOW - 60, 1200, 1800.0, 86400.0)
RECORDS = (SUPPORT, IDLE, OLD)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessionkit.cli.sessions.time", lambda: NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one session that is live, one that was idle for too long, and one that is too old."""
    path = tmp_path / "sessions.db"
    put(path, *RECORDS)
    return path


def put(path: Path, *records: SessionRecord) -> None:
    """Put records into a store that no process has in memory."""
    store = SQLiteStore(path)
    instance = store.join(0.0, "other")
    for record in records:
        store.create(record, instance)
    store.close()


def ids_in(path: Path) -> list[str]:
    """The ids of all records in a store."""
    store = SQLiteStore(path)
    ids = [record.id for record in store.page(None, 1000)]
    store.close()
    return ids


def run(command: str, *arguments: str | Path) -> Result:
    """Run a command in this process."""
    result = CliRunner().invoke(sessionkit, ["sessions", command, *map(str, arguments)])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def words(result: Result) -> list[list[str]]:
    """The words of each line that a command wrote; it succeeded."""
    assert (result.exit_code, result.stderr) == (0, "")
    return [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()]


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
    put(tmp_path / "empty.db")
    assert run("list", tmp_path / "empty.db").stdout == "0 sessions: 0 live, 0 expired\n"
    assert run("list", tmp_path / "empty.db", "--json").stdout == "[]\n"


def test_list_in_part(tmp_path: Path) -> None:
    """The table ends at its limit and says how many more there are; the array has all unless told otherwise."""
    path = tmp_path / "big.db"
    put(path, *(SUPPORT._replace(id=f"s-{number:03}", name=None) for number in range(250)))
    *_, last, counts = words(run("list", path))
    assert last[0] == "s-099"
    assert counts == ["250 sessions: 250 live, 0 expired; 100 shown, 150 more not shown (--limit N shows more)"]
    *_, last, counts = words(run("list", path, "--limit", "250"))
    assert last[0] == "s-249"
    assert counts == ["250 sessions: 250 live, 0 expired"]
    assert [each["id"] for each in json.loads(run("list", path, "--json").stdout)] == ids_in(path)
    assert [each["id"] for each in json.loads(run("list", path, "--json", "--limit", "2").stdout)] == ["s-000", "s-001"]


def test_a_narrow_terminal_gets_fewer_columns(tmp_path: Path) -> None:
    """Ids and names are never cut off or folded; what has no room is named, and what is piped has all."""
    # On the clock of the processes that are to show it: how wide a column is goes by how long ago something was.
    path, later = tmp_path / "sessions.db", time.time() - NOW
    put(path, *(r._replace(created_at=r.created_at + later, last_active=r.last_active + later) for r in RECORDS))
    status, text = run_on_terminal("sessions", "list", path, COLUMNS="65", NO_COLOR="1")
    heads, _, support, *_, left_out, _ = text.splitlines()
    assert status == 0
    assert heads.split() == ["id", "name", "state", "idle", "for", "expires"]
    assert support.split()[:2] == ["s-1", "support"]
    assert left_out.startswith("(no room for: created (UTC), last active (UTC), messages, bytes, version; a wider")
    status, text = run_on_terminal("sessions", "list", path, COLUMNS="10", NO_COLOR="1")
    assert text.splitlines()[0].split() == ["id", "name", "expires"]
    assert "version" in run_on_terminal("sessions", "list", path, COLUMNS="150")[1].splitlines()[0]
    assert "version" in run_real("sessions", "list", path, env=os.environ | {"COLUMNS": "10"}).stdout


def test_colors_only_where_they_are_wanted(path: Path) -> None:
    """The table has styles on a terminal; with NO_COLOR there is no escape sequence at all."""
    assert "\x1b[2m" in run_on_terminal("sessions", "list", path)[1]
    assert "\x1b" not in run_on_terminal("sessions", "list", path, NO_COLOR="1")[1]


def test_when_nobody_reads_on(tmp_path: Path) -> None:
    """A long list into a pipe that is closed ends with one line and status 141, and lets go of the store."""
    path = tmp_path / "long.db"
    put(path, *(SUPPORT._replace(id=f"s-{number:04}", name=None) for number in range(1000)))
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


@pytest.mark.parametrize(
    ("lag", "name", "memory", "expires", "expired"),
    [
        (75.0, "support", "of b:1; activity of the last 1m15s may", "in 20m (idle for too long); later if", False),
        (7200.0, "left", "of b:1; activity of the last 2h may", "expired 30m ago (idle for too long); unless", False),
        (75.0, "left", "of b:1; activity of the last 1m15s may", "expired 30m ago (idle for too long); not yet", True),
        (inf, "left", "of b:1; which has it checked out or has not", "expired 30m ago (idle for too long); un", False),
        (0.0, "left", "of b:1\n", "expired 30m ago (idle for too long); not yet removed", True),
    ],
)
def test_show_what_a_process_has_in_memory(
    path: Path, lag: float, name: str, memory: str, expires: str, expired: bool
) -> None:
    """A session that a process has in memory may have been active later, and says by how much, and which process."""
    store = SQLiteStore(path)
    session_id = store.find(name)
    assert session_id is not None
    store.attach(session_id, store.join(lag, "b:1"))
    text = run("show", path, name).stdout
    assert f"in memory        {memory}" in text
    assert expires in text
    shown = json.loads(run("show", path, name, "--json").stdout)
    assert (shown["in_memory"], shown["instances"], shown["expired"]) == (True, ["b:1"], expired)
    assert shown["lag_seconds"] == (None if lag == inf else lag)
    store.close()


def test_show_what_several_processes_have_in_memory(path: Path) -> None:
    """All are named, as a terminal may have it, and the figure is of the one that is latest."""
    store = SQLiteStore(path)
    for lag, instance in ((75.0, "b:1"), (30.0, "http://a b/\u202e")):
        store.attach("s-1", store.join(lag, instance))
    text = run("show", path, "s-1").stdout
    assert "of b:1, http://a b/\\u202e; activity of the last 1m15s may not be written yet\n" in text
    assert json.loads(run("show", path, "s-1", "--json").stdout)["instances"] == ["b:1", "http://a b/\u202e"]
    store.attach("s-1", store.join(30.0, "c:1"), "exclusive")
    assert "of b:1, c:1, http://a b/\\u202e; one of which has it checked out" in run("show", path, "s-1").stdout
    store.close()


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
    put(path, SUPPORT._replace(id="s-4", name="s-1"))
    assert words(run("show", path, "s-1"))[0] == ["id", "s-1"]


# ---- close


def test_close(path: Path) -> None:
    """Sessions are closed by id or name, each once however often it is named, and counted."""
    result = run("close", path, "support", "s-1", "s-3", "s-3")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Closed 2 sessions\n", "")
    assert ids_in(path) == ["s-2"]
    result = run("close", path, "left", "--json")
    assert json.loads(result.stdout) == {"closed": ["s-2"], "not_found": []}
    assert ids_in(path) == []


def test_close_who_is_not_there(path: Path) -> None:
    """Those that are not there are named, status 1; the others are closed all the same."""
    result = run("close", path, "nobody", "support", "s-9")
    assert (result.exit_code, result.stdout) == (1, "Closed 1 session\n")
    assert only_line(result.stderr).startswith("Error: not in the store: 'nobody', 's-9'; ")
    assert ids_in(path) == ["s-2", "s-3"]
    result = run("close", path, "support", "left", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"closed": ["s-2"], "not_found": ["support"]}


def test_ids_that_look_like_options(path: Path) -> None:
    """Generated ids may begin with dashes; options are still found, wherever they stand, and so is help."""
    put(path, *(SUPPORT._replace(id=session_id, name=None) for session_id in ("-hjson", "--x", "-")))
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
    assert ids_in(path) == ["s-1"]
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
    assert len(ids_in(path)) == 3


def test_cleanup_of_who_was_idle_for_less(path: Path) -> None:
    """--max-age removes as well who was idle for more than that, and counts it as idle."""
    assert "Removed 2 sessions" in run("cleanup", path, "--max-age", "10m").stdout
    assert run("cleanup", path, "--max-age", "599").stdout == (
        "Removed 1 session (1 idle for too long, 0 too old); 0 left\n"
    )


def test_cleanup_leaves_what_a_process_may_have_used(path: Path) -> None:
    """What a process has checked out, or may have touched and not written yet, stays."""
    store = SQLiteStore(path)
    store.attach("s-3", store.join(0.0, "other"), "exclusive")
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
    assert len(ids_in(path)) == 3


def test_progress_bar_on_a_terminal(tmp_path: Path) -> None:
    """A cleanup has a bar on a terminal, also with --json, and none elsewhere."""
    path = tmp_path / "big.db"
    for elsewhere in (True, False):
        put(path, *(IDLE._replace(id=f"s-{number}", name=None) for number in range(250)))
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
    put(path, *(IDLE._replace(id=f"s-{number}", name=None) for number in range(250)))
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
    assert len(ids_in(path)) == 150
    assert "Removed 150 sessions" in run("cleanup", path).stdout


# ---- What a record may have in it


def test_what_a_terminal_must_not_get(path: Path) -> None:
    """Control characters are escaped, and markup and emoji are shown as they are written."""
    data = '{"bell":"\\u0007","csi":"\x9b31m","name":"\u20ac","key\x7f":1}'
    put(path, SUPPORT._replace(id="\x1b[31m", name="[bold]:smile:\r\n\u202e", state="\x07", data=data))
    for result in (run("list", path), run("show", path, "[bold]:smile:\r\n\u202e")):
        assert "[bold]:smile:\\r\\n\\u202e" in result.stdout
        assert "\\u001b[31m" in result.stdout
        assert all(character.isprintable() or character == "\n" for character in result.stdout)
    assert '"bell": "\\u0007"' in result.stdout
    assert '"csi": "\\u009b31m"' in result.stdout
    assert '"name": "\u20ac"' in result.stdout
    assert '"key\\u007f": 1' in result.stdout
    for result in (run("list", path, "--json"), run("show", path, "\x1b[31m", "--json")):
        assert all(" " <= character <= "~" or character == "\n" for character in result.stdout)
        json.loads(result.stdout)


def test_what_an_error_must_not_bring(path: Path) -> None:
    """What SQLite quotes of a damaged record has its control characters escaped too."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sessions SET data = CAST(x'1bff07' AS TEXT)")
    connection.close()
    result = run("show", path, "support")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "\\u001b" in only_line(result.stderr)
    assert only_line(result.stderr).isprintable()


def test_an_encoding_without_the_characters(path: Path) -> None:
    """What the output's encoding has no character for is escaped."""
    put(path, SUPPORT._replace(id="s-4", name=None, data='{"currency":"\u20ac"}'))
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert '"currency": "\\u20ac"' in run_real("sessions", "show", path, "s-4", env=environment).stdout
    assert run_real("sessions", "list", path, env=environment).stdout.isascii()


@pytest.mark.parametrize(
    "data", ["no JSON", "[1]", '{"a":' + "1" * 5000 + "}", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"]
)
def test_damaged_data_is_shown_as_it_is(path: Path, data: str) -> None:
    """Data that is no JSON object, or none that Python reads, is shown as it is stored, with a remark."""
    put(path, SUPPORT._replace(id="s-4", name=None, data=data))
    *_, remark, text = run("show", path, "s-4").stdout.splitlines()
    assert remark.endswith(f"{len(data):,} bytes, shown as it is stored: it is damaged, or nested too deep")
    assert text == data
    assert json.loads(run("show", path, "s-4", "--json").stdout)["data"] == data


def test_data_that_is_nested_deep(path: Path) -> None:
    """What a coordinator can store can be shown, at whatever depth."""
    for depth in range(50, 1000, 50):
        put(path, SUPPORT._replace(id=f"s-{depth}", name=None, data='{"a":' * depth + "1" + "}" * depth))
        assert f"{6 * depth + 1:,} bytes" in run("show", path, f"s-{depth}").stdout
        assert run("show", path, f"s-{depth}", "--json").exit_code == 0


def test_times_beyond_all_calendars(path: Path) -> None:
    """Instants and durations that nobody writes out are shown in short, and are null or a number in JSON."""
    put(
        path,
        SUPPORT._replace(id="s-4", name=None, session_timeout=1e300),
        SUPPORT._replace(id="s-5", name=None, created_at=-1e300, last_active=inf),
    )
    _, _, *_, forever, strange, _ = words(run("list", path))
    assert "in 1e+300s" in forever
    assert strange[2:6] == ["-1e+300", "inf", "0s", "in infs"]
    assert run("show", path, "s-5").exit_code == 0
    *_, forever, strange = json.loads(run("list", path, "--json").stdout)
    assert (forever["session_timeout"], forever["expires_at"]) == (1e300, None)
    assert (strange["created_at"], strange["last_active"], strange["expires_at"]) == (None, None, None)


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
    ("url", "reason"),
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
def test_urls_that_cannot_be_read(url: str, reason: str) -> None:
    """A URL of another kind is wrong usage, status 2; the message says what to write, and no password."""
    result = run("list", url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value for 'STORE': " in result.stderr
    assert reason in result.stderr
    assert "secret" not in result.stderr


def test_paths_and_urls(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is opened by a path or a URL, relative or absolute, with what a URL must escape."""
    monkeypatch.chdir(tmp_path)
    strange = tmp_path / "a ?#%.db"
    put(strange)
    for where in ("sessions.db", str(path), "sqlite:///sessions.db", f"sqlite:///{path}", f"SQLite:///./{path.name}"):
        store = open_store(where)
        assert repr(store) == f"SQLiteStore({str(path.resolve())!r})"
        store.close()
    for where in (strange.name, "sqlite:///a%20%3F%23%25.db"):
        store = open_store(where)
        assert repr(store) == f"SQLiteStore({str(strange.resolve())!r})"
        store.close()
    (tmp_path / "1:").mkdir()
    put(tmp_path / "1:" / "x.db")
    open_store("1://x.db").close()


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
    put(path, IDLE)
    listed = json.loads(run_real("sessions", "list", path, "--json").stdout)
    assert {each["name"]: each["expired"] for each in listed} == {"support": False, "left": True}
    assert run_real("sessions", "cleanup", path).stdout.startswith("Removed 1 session (1 idle")
    assert json.loads(run_real("sessions", "show", path, "support", "--json").stdout)["data"] == {"lang": "en"}
    assert run_real("sessions", "close", path, "support").stdout == "Closed 1 session\n"
    assert run_real("sessions", "list", path).stdout == "0 sessions: 0 live, 0 expired\n"
    assert os.listdir(tmp_path) == ["sessions.db"]
