"""The command line: what `sessionkit replay` prints, and the exit statuses of every command."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import Result

from sessionkit.__main__ import main

from ..helpers.command import only_line, run_command, run_on_terminal, run_real, start
from ..helpers.support import WAIT

AGENT = '"-" "Heron/12"'


def log_line(instant: int, address: str = "192.0.2.1") -> str:
    """A line of the 14th of January 2026, that many seconds after midnight."""
    hour, minute, second = instant // 3600, instant // 60 % 60, instant % 60
    return f'{address} - - [14/Jan/2026:{hour:02}:{minute:02}:{second:02} +0000] "GET / HTTP/1.1" 200 5 {AGENT}\n'


def run(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    """Run `sessionkit replay` in this process."""
    return run_command("replay", *arguments, stdin=stdin)


def interrupted(process: subprocess.Popen[str]) -> None:
    """Interrupt the process, and check how it ends."""
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=WAIT)
    assert (process.returncode, stdout) == (130, "")
    assert only_line(stderr) == "Error: interrupted"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three clients: one twice in one session, one in two sessions, one once; and two unreadable lines."""
    path = tmp_path / "access.log"
    lines = [log_line(7200, "192.0.2.2"), log_line(0), log_line(60), "what?\n", "\n", log_line(0, "192.0.2.2")]
    path.write_text("".join([*lines, log_line(30, "2001:db8::1"), "\x1b[31mred\n"]))
    return path


EXPECTED = {
    "requests": 5,
    "unreadable": 2,
    "created": 4,
    "expired": 3,
    "rejected": 0,
    "evicted": 0,
    "live_at_end": 1,
    "peak_live": 3,
    "peak_live_at": "2026-01-14T00:00:30+00:00",
    "cleanups": 24,
    "session_seconds": {"median": 0.0, "mean": 15.0, "p95": 51.0, "max": 60.0},
    "session_requests": {"median": 1.0, "mean": 1.25, "p95": 1.85, "max": 2},
}


def test_json(log: Path) -> None:
    """--json prints one object, and nothing else on stdout."""
    result = run(log, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == EXPECTED


def test_unreadable_lines_are_shown_on_stderr(log: Path) -> None:
    """Unreadable lines go to stderr with their numbers, made safe for a terminal."""
    assert run(log).stderr == "line 4 cannot be read: 'what?'\nline 8 cannot be read: '\\x1b[31mred'\n"


def test_only_the_first_unreadable_lines_are_shown(tmp_path: Path) -> None:
    """After five unreadable lines, the others are only counted."""
    path = tmp_path / "access.log"
    path.write_text(log_line(0) + "no\n" * 1005)
    *shown, rest = run(path).stderr.splitlines()
    assert [line.split(" cannot")[0] for line in shown] == [f"line {number}" for number in range(2, 7)]
    assert rest == "... nor can 1,000 more"


def test_table_and_chart(log: Path) -> None:
    """Without --json, stdout has the settings, the table and the chart; the options have made their difference."""
    result = run(log, "--session-timeout", "1h30m", "--max-active-sessions", "2")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    for part in (
        "access.log': 14 Jan 2026 00:00:00 to 14 Jan 2026 02:00:00 UTC",
        "session timeout 1h30m, cleanup every 5m, limit 2 (reject), one session per address",
        "Requests 5 from 3 clients",
        "Unreadable lines 2",
        "Sessions created 3 expired 2 in 24 cleanups evicted 0 still live at the end 1",
        "Requests rejected 1",
        "Peak live sessions 2 at 14 Jan 2026 00:00:00 UTC",
        "Requests per session 1 1.3 1.9 2",
        "Session length 0s 20s 54s 1m",
        "Live sessions (time in UTC)",
    ):
        assert part in words


def test_options_reach_the_replay(log: Path) -> None:
    """Limit, eviction, key, timeout and interval make the difference they should."""
    evicting = json.loads(run(log, "--json", "--max-active-sessions", "1", "--on-full", "evict").stdout)
    assert (evicting["created"], evicting["evicted"], evicting["peak_live"]) == (5, 3, 1)
    assert json.loads(run(log, "--json", "--session-timeout", "59").stdout)["created"] == 5
    assert json.loads(run(log, "--json", "--cleanup-interval", "1m").stdout)["cleanups"] == 120
    two_agents = log_line(0) + log_line(0).replace("Heron", "Quill")
    assert json.loads(run("-", "--json", stdin=two_agents).stdout)["created"] == 1
    assert json.loads(run("-", "--json", "--key", "address+agent", stdin=two_agents).stdout)["created"] == 2


def test_standard_input_and_gzip(log: Path, tmp_path: Path) -> None:
    """A log may come by standard input, and packed, whatever its name is."""
    packed = tmp_path / "packed.log"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    for result in (run(packed, "--json"), run("-", "--json", stdin=packed.read_bytes())):
        assert json.loads(result.stdout) == EXPECTED
    assert run("-", stdin=log.read_bytes()).stdout.startswith("standard input: 14 Jan 2026")


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 harm neither a request nor the message about an unreadable line."""
    path = tmp_path / "access.log"
    path.write_bytes(log_line(0).encode().replace(b"Heron", b"\xff\xfe") + b"\xff\xfe\n")
    result = run_real("replay", path, "--json")
    assert json.loads(result.stdout)["requests"] == 1
    assert result.stderr == "line 2 cannot be read: '\\udcff\\udcfe'\n"


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--session-timeout", "30x", "'30x' is not a duration"),
        ("--session-timeout", "0", "'0' is out of range"),
        ("--cleanup-interval", "soon", "'soon' is not a duration"),
        ("--max-active-sessions", "0", "0 is not in the range x>=1"),
        ("--on-full", "panic", "'panic' is not one of 'reject', 'evict'"),
        ("--key", "cookie", "'cookie' is not one of 'address', 'address+agent'"),
    ],
)
def test_wrong_options(log: Path, option: str, value: str, reason: str) -> None:
    """A wrong option is a usage error, status 2, that names the option, its value and what to do."""
    result = run(log, option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': {reason}" in result.stderr
    assert result.stdout == ""


def test_settings_that_make_little_sense_are_remarked_on(log: Path) -> None:
    """A cleanup interval beyond the timeout, and eviction without a limit, are a plain line each; the replay runs."""
    result = run_real("replay", log, "--json", "--session-timeout", "1m", "--on-full", "evict")
    interval, evict = result.stderr.splitlines()[:2]
    assert interval.startswith("Warning: cleanup_interval=300.0 is longer than session_timeout=60.0: ")
    assert evict == "Warning: --on-full evict does nothing without --max-active-sessions"
    assert result.returncode == 0


def test_logs_that_cannot_be_read(log: Path, tmp_path: Path) -> None:
    """No file, a directory, damaged gzip and a closed input: one line with the name and the reason, status 1."""
    cut_off = tmp_path / "cut.log.gz"
    cut_off.write_bytes(gzip.compress(log.read_bytes())[:-9])
    for path, reason in (
        (tmp_path / "no.log", f"'{tmp_path / 'no.log'}'"[:20]),
        (tmp_path / "no.log", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (cut_off, "damaged or cut off gzip data"),
    ):
        result = run_real("replay", path)
        assert (result.returncode, result.stdout) == (1, "")
        assert only_line(result.stderr).startswith("Error: cannot read '")
        assert reason in result.stderr
    closed = subprocess.run(  # noqa: S602  the shell is what can close it
        f"{sys.executable} -m sessionkit replay - <&-", shell=True, capture_output=True, text=True, check=False
    )
    assert closed.returncode == 1
    assert only_line(closed.stderr).startswith("Error: cannot read standard input: it is closed")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no lines"),
        (b"\n\n", "has no lines"),
        (b"\x7fELF\x00\n\x00\n", r"none of the 2 lines of .* \(line 1 is '\\x7fELF\\x00'\)"),
    ],
)
def test_logs_with_nothing_to_replay(tmp_path: Path, content: bytes, reason: str) -> None:
    """An empty file, and one without any readable line: one line that says so, status 1."""
    path = tmp_path / "access.log"
    path.write_bytes(content)
    result = run_real("replay", path)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.match("Error: nothing to replay: .*" + reason, only_line(result.stderr))


@pytest.mark.parametrize("arguments", [("--help",), ("replay", "--help")])
def test_help(arguments: tuple[str, ...]) -> None:
    """Help is on stdout, status 0, and no wider than a terminal."""
    result = run_real(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_version_and_usage() -> None:
    """--version names the program; an argument that is missing is wrong usage."""
    assert run_real("--version").stdout.startswith("sessionkit, version ")
    missing = run_real("replay")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "Missing argument 'ACCESS_LOG'" in missing.stderr


def test_broken_pipe(log: Path) -> None:
    """When nobody reads the output any more: one line, status 141, whether or not stderr is gone too."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        result = run_real("replay", log, stdout=gone)
        assert result.returncode == 141
        assert only_line(result.stderr.split("\n", 2)[2]).startswith("Error: the output was closed before")
        assert run_real("replay", log, stdout=gone, stderr=gone).returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_output_that_cannot_be_written(log: Path) -> None:
    """A full disk under the output is one line and status 1."""
    with open("/dev/full", "w") as full:
        result = run_real("replay", log, stdout=full)
    assert result.returncode == 1
    assert only_line(result.stderr.split("\n", 2)[2]) == "Error: the output cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("redirection", "status", "reason"),
    [(">&-", 1, "Error: the output cannot be written: it is closed"), (">&- 2>&-", 1, ""), ("2>&-", 0, "")],
)
def test_outputs_that_are_closed(log: Path, redirection: str, status: int, reason: str) -> None:
    """A closed stdout is one line and status 1; a closed stderr harms nothing."""
    result = subprocess.run(  # noqa: S602  the shell is what can close them
        f"{sys.executable} -m sessionkit replay {log} {redirection}",
        shell=True, capture_output=True, text=True, check=False, timeout=WAIT,
    )  # fmt: skip
    assert (result.returncode, result.stderr.strip()) == (status, reason)
    assert ("Sessions created" in result.stdout) == (status == 0)


def test_interrupted_while_reading(tmp_path: Path) -> None:
    """Ctrl-C while the log is being read: one line, status 130."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with start("replay", fifo) as process, open(fifo, "wb"):
        # Opening a FIFO to write waits for its reader, so the command has the log open now and waits for lines.
        interrupted(process)


def test_interrupted_while_starting() -> None:
    """Ctrl-C while the command is still being imported ends in the same way."""
    code = """
        import sys
        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name == "plotext":
                    sys.stderr.flush()
                    print("importing", flush=True)
                    sys.stdin.read()
        sys.meta_path.insert(0, Slow())
    """
    with start("replay", "-", code=textwrap.dedent(code)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        interrupted(process)


def test_an_interruption_anywhere_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the interruption strikes, the status is 130 and stderr has one line."""

    def interrupt() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sessionkit.__main__._run", interrupt)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 130
    assert only_line(capsys.readouterr().err) == "Error: interrupted"


@pytest.mark.parametrize("missing", ["click", "rich", "plotext"])
def test_without_the_extra(missing: str) -> None:
    """Without a library of the extra: one line that says what to install, status 1."""
    with start("replay", "-", code=f"import sys; sys.modules[{missing!r}] = None") as process:
        _, stderr = process.communicate(timeout=WAIT)
    assert process.returncode == 1
    assert only_line(stderr).endswith("run: pip install 'sessionkit[cli]'")


def test_colors_only_where_they_are_wanted(log: Path) -> None:
    """On a terminal the chart is in color; with NO_COLOR there is no escape sequence at all."""
    status, colored = run_on_terminal("replay", log)
    assert (status, "\x1b[" in colored) == (0, True)
    status, plain = run_on_terminal("replay", log, NO_COLOR="1")
    assert (status, "\x1b" in plain) == (0, False)
    uncolored = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [line.rstrip() for line in uncolored.splitlines()] == plain.splitlines()


def test_a_terminal_that_has_no_blocks(log: Path) -> None:
    """Where the encoding has no block characters, the chart is left out and everything else is there."""
    result = run_real("replay", log, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stdout.isascii()) == (0, True)
    assert "Session length" in result.stdout
    assert "Live sessions (time" not in result.stdout


def test_progress_bar_on_a_terminal(tmp_path: Path) -> None:
    """A long log has a progress bar on a terminal, from a file and from a pipe; a short or a piped one has none."""
    short, long = tmp_path / "short.log", tmp_path / "long.log"
    short.write_text(log_line(0) + log_line(3600))
    long.write_text(log_line(0) * 30_000 + log_line(3600) * 15_000)
    _, text = run_on_terminal("replay", long, "--json")
    assert "Reading" in text
    assert "Replaying" in text
    assert "Reading" not in run_on_terminal("replay", short, "--json")[1]
    assert run_real("replay", long, "--json").stderr == ""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["/bin/sh", "-c", f"cat {long} > {fifo}"]):  # noqa: S603
        assert "Reading" in run_on_terminal("replay", fifo, "--json")[1]
