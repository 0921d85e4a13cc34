"""A replay's report as text: the table and the chart for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict
from datetime import UTC, datetime

import plotext
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ... import CoordinatorConfig
from ..text import DAY, format_duration
from .simulation import SLICES, Key, ReplayReport

# The keys of the JSON object: users' programs read them.
_JSON_KEYS = (
    *("requests", "unreadable", "created", "expired", "rejected", "evicted", "live_at_end"),
    *("peak_live", "peak_live_at", "cleanups", "session_seconds", "session_requests"),
)
# The distances that ticks on the chart's two axes may have.
_COUNT_STEPS = [digit * 10**power for power in range(12) for digit in (1, 2, 5)]
_TIME_STEPS = [
    *(1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200),
    *(DAY * days for days in (1, 2, 7, 14, 28, 91, 365)),
    *(DAY * 365 * years for years in (2, 5, 10, 20, 50, 100, 200)),
]


def as_json(report: ReplayReport, unreadable: int) -> str:
    """One JSON object with the report's figures and the number of unreadable lines."""
    figures = asdict(report) | {"unreadable": unreadable, "peak_live_at": _time(report.peak_live_at).isoformat()}
    return json.dumps({key: figures[key] for key in _JSON_KEYS}, indent=2) + "\n"


def as_text(report: ReplayReport, unreadable: int, name: str, config: CoordinatorConfig, key: Key) -> str:
    """The settings, the table and the chart, in the width, the colors and the characters that stdout has.

    `NO_COLOR` takes the colors away. There is no chart of a single instant, nor where there are no block characters.
    """
    console = Console(highlight=False, markup=False, color_system=None if os.environ.get("NO_COLOR") else "auto")
    with console.capture() as capture:
        limit = config.max_active_sessions
        console.print(
            f"{name}: {_date_and_time(report.first_at)} to {_date_and_time(report.last_at)} UTC\n"
            f"session timeout {format_duration(config.session_timeout)}, "
            f"cleanup every {format_duration(config.cleanup_interval)}, "
            f"{'no limit' if limit is None else f'limit {limit:,} ({config.on_full})'}, one session per {key}\n"
        )
        console.print(_figures(report, unreadable))
        console.print(_distributions(report))
        if report.first_at < report.last_at and not console.options.ascii_only:
            console.print(Text.from_ansi(_chart(report, max(40, console.width))), no_wrap=True, crop=True)
    # Without the padding of the last column.
    return re.sub(r" +$", "", capture.get(), flags=re.MULTILINE)


def _figures(report: ReplayReport, unreadable: int) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    rows = [
        ("Requests", report.requests, f"from {report.clients:,} clients"),
        ("Unreadable lines", unreadable, ""),
        ("Sessions created", report.created, ""),
        ("  expired", report.expired, f"in {report.cleanups:,} cleanups"),
        ("  evicted", report.evicted, ""),
        ("  still live at the end", report.live_at_end, ""),
        ("Requests rejected", report.rejected, ""),
        ("Peak live sessions", report.peak_live, f"at {_date_and_time(report.peak_live_at)} UTC"),
    ]
    for label, count, note in rows:
        table.add_row(label, f"{count:,}", note)
    return table


def _distributions(report: ReplayReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column()
    for heading in ("median", "mean", "95th percentile", "maximum"):
        table.add_column(heading, justify="right")
    counts = (f"{value:,.1f}".removesuffix(".0") for value in asdict(report.session_requests).values())
    table.add_row("Requests per session", *counts)
    table.add_row("Session length", *map(format_duration, asdict(report.session_seconds).values()))
    return table


def _chart(report: ReplayReport, width: int) -> str:
    """Live sessions over time, with terminal colors."""
    first, last, peak = report.first_at, report.last_at, report.peak_live
    length = (last - first) / SLICES
    # While no session is live, nothing is drawn.
    points = [(first + number * length, live) for number, live in enumerate(report.live_over_time) if live]
    plotext.terminal.limit(False, False)
    figure = plotext.figure.clear().plot_size(width, 15).theme("simple").title("Live sessions (time in UTC)")
    figure.draw(figure.signal(*zip(*points, strict=True), marker="hd").fillx())
    step = _step(peak, 4, _COUNT_STEPS)
    counts = range(0, peak + step, step)
    figure.ruler("y", "left").lim(0, counts[-1]).ticks(list(counts), [f"{count:,}" for count in counts])
    step = _step(last - first, width // 10, _TIME_STEPS)
    times = range(math.ceil(first / step) * step, math.floor(last) + 1, step)
    figure.ruler("x", "lower").lim(first, last).ticks(list(times), [_tick_label(at, step) for at in times])
    return str(figure.build().string()).rstrip()


def _step(span: float, most: int, steps: list[int]) -> int:
    """The shortest of the steps that the span holds at most `most` times; if none is, the longest."""
    return next((step for step in steps if span / step <= most), steps[-1])


def _tick_label(at: int, step: int) -> str:
    if step >= 365 * DAY:
        return f"{_time(at):%b %Y}"
    if at % DAY == 0:
        return f"{_time(at):%d %b}"
    return f"{_time(at):%H:%M:%S}" if step < 60 else f"{_time(at):%H:%M}"


def _date_and_time(instant: float) -> str:
    return f"{_time(instant):%d %b %Y %H:%M:%S}"


def _time(instant: float) -> datetime:
    return datetime.fromtimestamp(instant, UTC)
