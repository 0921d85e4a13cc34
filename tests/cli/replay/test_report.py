"""A replay's report as text: the table, the chart and its axes, the JSON object."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from sessionkit import CoordinatorConfig
from sessionkit.cli.replay.report import as_json, as_text
from sessionkit.cli.replay.simulation import Distribution, ReplayReport

DAY = 86400
MIDNIGHT = int(datetime(2026, 1, 14, tzinfo=UTC).timestamp())
REPORT = ReplayReport(
    requests=5000,
    clients=3,
    created=4,
    expired=2,
    rejected=1,
    evicted=0,
    live_at_end=2,
    peak_live=3,
    peak_live_at=MIDNIGHT + 30,
    cleanups=24,
    first_at=MIDNIGHT,
    last_at=MIDNIGHT + 7200,
    session_seconds=Distribution(0, 20, 54, 60),
    session_requests=Distribution(1, 1.28, 1.85, 1200),
    live_over_time=(2, 3, *[0] * 397, 1),
)


def use_output(monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8", **environment: str) -> None:
    """Make stdout no terminal, of that encoding, 80 columns wide unless the environment says otherwise."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color", "COLUMNS": "80"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))


@pytest.fixture(autouse=True)
def plain_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with a stdout that is no terminal and takes any character."""
    use_output(monkeypatch)


def text_of(report: ReplayReport) -> str:
    """The text of the report with settings that do not matter."""
    return as_text(
        report,
        2,
        "'access.log'",
        CoordinatorConfig(session_timeout=5400, cleanup_interval=300, max_active_sessions=2),
        "address",
    )


def test_json() -> None:
    """The JSON object has the promised keys, in the promised order."""
    text = as_json(REPORT, 2)
    assert list(json.loads(text).items()) == [
        ("requests", 5000),
        ("unreadable", 2),
        ("created", 4),
        ("expired", 2),
        ("rejected", 1),
        ("evicted", 0),
        ("live_at_end", 2),
        ("peak_live", 3),
        ("peak_live_at", "2026-01-14T00:00:30+00:00"),
        ("cleanups", 24),
        ("session_seconds", {"median": 0, "mean": 20, "p95": 54, "max": 60}),
        ("session_requests", {"median": 1, "mean": 1.28, "p95": 1.85, "max": 1200}),
    ]
    assert text.endswith("}\n")


def test_table() -> None:
    """The table has every figure with its name, in plain text and in 80 columns."""
    text = text_of(REPORT)
    words = " ".join(text.split())
    for part in (
        "Requests 5,000 from 3 clients",
        "Unreadable lines 2",
        "Sessions created 4 expired 2 in 24 cleanups evicted 0 still live at the end 2",
        "Requests rejected 1",
        "Peak live sessions 3 at 14 Jan 2026 00:00:30 UTC",
        "median mean 95th percentile maximum",
        "Requests per session 1 1.3 1.9 1,200",
        "Session length 0s 20s 54s 1m",
        "Live sessions (time in UTC)",
    ):
        assert part in words
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert [line.rstrip() for line in text.splitlines()] == text.splitlines()


def test_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head says what was replayed, from when to when, and with which settings."""
    use_output(monkeypatch, COLUMNS="100")
    assert text_of(REPORT).splitlines()[:2] == [
        "'access.log': 14 Jan 2026 00:00:00 to 14 Jan 2026 02:00:00 UTC",
        "session timeout 1h30m, cleanup every 5m, limit 2 (reject), one session per address",
    ]
    unlimited = as_text(
        REPORT,
        0,
        "standard input",
        CoordinatorConfig(session_timeout=90, cleanup_interval=60, max_active_sessions=None),
        "address+agent",
    )
    assert unlimited.splitlines()[:2] == [
        "standard input: 14 Jan 2026 00:00:00 to 14 Jan 2026 02:00:00 UTC",
        "session timeout 1m30s, cleanup every 1m, no limit, one session per address+agent",
    ]


def test_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """With colors the text is the same, and NO_COLOR takes them away."""
    plain = text_of(REPORT)
    use_output(monkeypatch, FORCE_COLOR="1")
    colored = text_of(REPORT)
    assert "\x1b[" in colored
    uncolored = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [line.rstrip() for line in uncolored.splitlines()] == plain.splitlines()
    use_output(monkeypatch, FORCE_COLOR="1", NO_COLOR="1")
    assert text_of(REPORT) == plain


@pytest.mark.parametrize("columns", [10, 40, 132])
def test_width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """The text keeps to the width of the terminal, however narrow, and the chart fills it."""
    use_output(monkeypatch, COLUMNS=str(columns))
    widths = [len(line) for line in text_of(REPORT).splitlines()]
    assert max(widths) <= columns
    assert columns == 10 or max(widths) > columns - 5


def test_no_chart_without_block_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the encoding has no block characters, the chart is left out and everything else is there."""
    use_output(monkeypatch, encoding="ascii")
    text = text_of(REPORT)
    assert text.isascii()
    assert "Session length" in text
    assert "Live sessions (time" not in text


@pytest.mark.parametrize(
    ("span", "labels"),
    [
        (40, ["14 Jan 00:00:05 ", "00:00:35"]),
        (3600, ["00:15", "01:00"]),
        (86399, ["14 Jan", "12:00"]),
        (6 * DAY, ["15 Jan", "19 Jan"]),
        (3652 * DAY, ["Dec 2027"]),
        (355_374 * DAY, ["Nov 2169"]),
    ],
)
def test_time_axis(span: int, labels: list[str]) -> None:
    """The time axis has round times that suit its length: times of day, then dates, then months and years."""
    axis = text_of(replace(REPORT, last_at=MIDNIGHT + span)).splitlines()[-1]
    assert all(label in axis for label in labels)


def test_no_chart_of_a_single_instant() -> None:
    """A log of a single instant has no chart."""
    text = text_of(replace(REPORT, last_at=MIDNIGHT, live_over_time=(3,)))
    assert "Session length" in text
    assert "Live sessions (time" not in text


@pytest.mark.parametrize(
    ("peak", "counts"),
    [(1, ["1", "0"]), (5, ["6", "4", "2", "0"]), (58, ["60", "40", "20", "0"]), (1000, ["1,000", "500", "0"])],
)
def test_count_axis(peak: int, counts: list[str]) -> None:
    """The axis of sessions begins at 0 and ends at a round number that is not below the peak."""
    text = text_of(replace(REPORT, peak_live=peak))
    assert re.findall(r"^ *([\d,]+)┤", text, flags=re.MULTILINE) == counts
