"""Session records as text: what the list and show commands print of a record, and of one that is odd."""

from __future__ import annotations

import json
import os
import time
from math import inf
from pathlib import Path

import pytest

from sessionkit.stores import SQLiteStore

from ..helpers.command import run_on_terminal, run_real
from ..helpers.records import NOW, RECORDS, SUPPORT, put
from .test_sessions import run, words

pytestmark = pytest.mark.usefixtures("clock")


def test_a_narrow_terminal_gets_fewer_columns(tmp_path: Path) -> None:
    """Ids and names are never cut off or folded; what has no room is named, and what is piped has all."""
    # On the clock of the processes that are to show it: how wide a column is goes by how long ago something was.
    path, later = tmp_path / "sessions.db", time.time() - NOW
    put(
        SQLiteStore(path),
        *(r._replace(created_at=r.created_at + later, last_active=r.last_active + later) for r in RECORDS),
    )
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


def test_what_a_terminal_must_not_get(path: Path) -> None:
    """Control characters are escaped, and markup and emoji are shown as they are written."""
    data = '{"bell":"\\u0007","csi":"\x9b31m","name":"\u20ac","key\x7f":1}'
    put(SQLiteStore(path), SUPPORT._replace(id="\x1b[31m", name="[bold]:smile:\r\n\u202e", state="\x07", data=data))
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


def test_an_encoding_without_the_characters(path: Path) -> None:
    """What the output's encoding has no character for is escaped."""
    put(SQLiteStore(path), SUPPORT._replace(id="s-4", name=None, data='{"currency":"\u20ac"}'))
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert '"currency": "\\u20ac"' in run_real("sessions", "show", path, "s-4", env=environment).stdout
    assert run_real("sessions", "list", path, env=environment).stdout.isascii()


@pytest.mark.parametrize(
    "data", ["no JSON", "[1]", '{"a":' + "1" * 5000 + "}", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"]
)
def test_damaged_data_is_shown_as_it_is(path: Path, data: str) -> None:
    """Data that is no JSON object, or none that Python reads, is shown as it is stored, with a remark."""
    put(SQLiteStore(path), SUPPORT._replace(id="s-4", name=None, data=data))
    *_, remark, text = run("show", path, "s-4").stdout.splitlines()
    assert remark.endswith(f"{len(data):,} bytes, shown as it is stored: it is damaged, or nested too deep")
    assert text == data
    assert json.loads(run("show", path, "s-4", "--json").stdout)["data"] == data


def test_data_that_is_nested_deep(path: Path) -> None:
    """What a coordinator can store can be shown, at whatever depth."""
    for depth in range(50, 1000, 300):
        put(SQLiteStore(path), SUPPORT._replace(id=f"s-{depth}", name=None, data='{"a":' * depth + "1" + "}" * depth))
        assert f"{6 * depth + 1:,} bytes" in run("show", path, f"s-{depth}").stdout
        assert run("show", path, f"s-{depth}", "--json").exit_code == 0


def test_times_beyond_all_calendars(path: Path) -> None:
    """Instants and durations that nobody writes out are shown in short, and are null or a number in JSON."""
    put(
        SQLiteStore(path),
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
    store.attach("s-1", store.join(30.0, "c:1"), lease=True)
    assert "of b:1, c:1, http://a b/\\u202e; one of which has it checked out" in run("show", path, "s-1").stdout
    store.close()
