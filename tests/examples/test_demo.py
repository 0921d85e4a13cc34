"""The example log and the demo keep to what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples import make_access_log
from sessionkit import CoordinatorConfig
from sessionkit.cli.replay.accesslog import AccessLog
from sessionkit.cli.replay.simulation import replay

from ..helpers.support import WAIT

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "access.log"


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A Python process in the root of the project."""
    return subprocess.run(  # noqa: S603
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, timeout=WAIT, check=True
    )


def test_example_log_is_what_its_script_prints() -> None:
    """The committed log is byte for byte the script's output."""
    assert run("examples/make_access_log.py").stdout == EXAMPLE.read_bytes()


def test_example_log_has_something_of_everything() -> None:
    """A few thousand lines: exactly three unreadable, some out of order, the rush as the peak, clients that return."""
    log = AccessLog(make_access_log.lines())
    entries = list(log)
    assert 2000 < len(entries) < 6000
    assert log.unreadable == len(make_access_log.BROKEN) == 3
    assert entries != sorted(entries)
    report = replay(entries, CoordinatorConfig(session_timeout=1800, cleanup_interval=300, max_active_sessions=None))
    rush = make_access_log.START + make_access_log.DAY + 20 * make_access_log.HOUR
    assert rush < report.peak_live_at < rush + make_access_log.HOUR
    assert report.created > 2 * report.clients
    assert (
        replay(
            entries,
            CoordinatorConfig(session_timeout=1800, cleanup_interval=300, max_active_sessions=None),
            key="address+agent",
        ).clients
        > report.clients
    )


def test_log_of_another_size() -> None:
    """The script makes as many visits as it is told to."""
    assert len(make_access_log.lines(1200)) > 1.5 * len(make_access_log.lines(400))


def test_demo() -> None:
    """The demo replays the log, tells a session's life in order, and shows one that survives a restart.

    Only the unreadable lines go to stderr.
    """
    demo = run("-m", "examples.demo")
    text = demo.stdout.decode()
    told = [
        "$ sessionkit replay examples/access.log",
        "Sessions created",
        "Live sessions (time in UTC)",
        "created  'support', 1 live",
        "touched",
        "live     True",
        "live     False",
        "SessionExpiredError, cause IDLE",
        "it was idle for more than 1800.0 seconds",
        "'support' left, cause IDLE",
        "removed 1, 0 live",
        "['where is my parcel?']",
        "['where is my parcel?', 'it came, thank you']",
        "$ sessionkit sessions show sessions.db support",
        '"it came, thank you"',
    ]
    places = [" ".join(text.split()).find(" ".join(part.split())) for part in told]
    assert -1 not in places
    assert places == sorted(places)
    assert demo.stderr.decode().count("cannot be read") == demo.stderr.count(b"\n") == 3
