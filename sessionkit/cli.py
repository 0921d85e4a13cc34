"""The command line: `sessionkit replay ACCESS_LOG`. How it ends is told in `__main__`."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from typing import BinaryIO, Self, TextIO, get_args

import click
import plotext  # type: ignore[import-untyped]  # it has no type hints
from rich import box
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

from .accesslog import READ_ERRORS, AccessLog, text_of
from .checks import shown
from .config import CoordinatorConfig, OnFull
from .replay import SLICES, Key, ReplayReport, replay

LONG = 20_000
"""How many lines make a log long enough for a progress bar, and how many the bar moves on by."""

_DAY = 86400
_UNITS = {"d": _DAY, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d+){unit})?" for unit in _UNITS), re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_TIME_STEPS = [
    *(1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200),
    *(_DAY * days for days in (1, 2, 7, 14, 28, 91, 365)),
    *(_DAY * 365 * years for years in (2, 5, 10, 20, 50, 100, 200)),
]
_COUNT_STEPS = [digit * 10**power for power in range(12) for digit in (1, 2, 5)]
# The keys of --json, which are promised.
_JSON_KEYS = (
    *("requests", "unreadable", "created", "expired", "rejected", "evicted", "live_at_end"),
    *("peak_live", "peak_live_at", "cleanups", "session_seconds", "session_requests"),
)


def parse_duration(text: str) -> float:
    """The seconds of `90s`, `30m`, `1h30m`, `2d` or a plain number; `click.BadParameter` unless above 0 and finite."""
    match = _DURATION.fullmatch(text)
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif match and text:
        seconds = sum(float(count or 0) * unit for count, unit in zip(match.groups(), _UNITS.values(), strict=True))
    else:
        raise click.BadParameter(f"{shown(text)} is not a duration; write it like 90s, 30m, 1h30m, 2d, or in seconds")
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{shown(text)} is out of range; a duration must be above 0 and finite")
    return seconds


def format_duration(seconds: float) -> str:
    """The duration in whole seconds, as `parse_duration` reads it."""
    rest, parts = round(seconds), []
    for unit, length in _UNITS.items():
        count, rest = divmod(rest, length)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or "0s"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="sessionkit")
def sessionkit() -> None:
    """Live sessions that clean up after themselves."""


@sessionkit.command("replay")
@click.argument("log_path", metavar="ACCESS_LOG")
@click.option(
    "--session-timeout",
    type=parse_duration,
    metavar="DURATION",
    default="30m",
    help="How long a session may be idle before it expires.",
)
@click.option(
    "--cleanup-interval",
    type=parse_duration,
    metavar="DURATION",
    default="5m",
    help="How often cleanup runs, in the log's own time.",
)
@click.option(
    "--max-active-sessions",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many sessions may live at once; default no limit.",
)
@click.option(
    "--on-full",
    type=click.Choice(get_args(OnFull)),
    default="reject",
    help="At the limit, refuse the request or end the session idle for longest.",
)
@click.option(
    "--key", type=click.Choice(get_args(Key)), default="address", help="What makes two requests the same client's."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table and the chart.")
def replay_command(
    log_path: str,
    session_timeout: float,
    cleanup_interval: float,
    max_active_sessions: int | None,
    on_full: OnFull,
    key: Key,
    as_json: bool,
) -> None:
    """With this traffic, what do this timeout and this limit do?

    Replays a web server's access log: each client is a session, each line a request, and the log's own timestamps are
    the clock. ACCESS_LOG is in Common or Combined Log Format, plain or gzip; - is standard input. A DURATION is written
    like 90s, 30m, 1h30m, 2d, or in plain seconds. All times shown are UTC.

    \b
    Examples:
      sessionkit replay access.log
      sessionkit replay access.log.1.gz --session-timeout 1h
      sessionkit replay access.log --max-active-sessions 200 --on-full evict
      zcat access.log.*.gz | sessionkit replay - --key address+agent --json
    """
    config = _config(session_timeout, cleanup_interval, max_active_sessions, on_full)
    name = "standard input" if log_path == "-" else shown(log_path)
    log, report = _replay(log_path, name, config, key)
    for number, line in log.examples:
        click.echo(f"line {number} cannot be read: {line}", err=True)
    if log.unreadable > len(log.examples):
        click.echo(f"... nor can {log.unreadable - len(log.examples):,} more", err=True)
    _print(_as_json(report, log.unreadable) if as_json else _as_text(report, log.unreadable, name, config, key))


def _config(timeout: float, interval: float, limit: int | None, on_full: OnFull) -> CoordinatorConfig:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = CoordinatorConfig(timeout, interval, limit, on_full=on_full)
    for warning in caught:
        click.echo(f"Warning: {warning.message}", err=True)
    if on_full != "reject" and limit is None:
        click.echo(f"Warning: --on-full {on_full} does nothing without --max-active-sessions", err=True)
    return config


def _replay(path: str, name: str, config: CoordinatorConfig, key: Key) -> tuple[AccessLog, ReplayReport]:
    try:
        with _open(path) as stream, _Progress(stream) as progress:
            log = AccessLog(progress.reading(text_of(stream)))
            entries = iter(log)
            for first in entries:
                return log, replay(chain([first], entries), config, key=key, on_progress=progress.replaying)
    except READ_ERRORS as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or f"damaged or cut off gzip data ({error})"
        raise click.ClickException(
            f"cannot read {name}: {reason}; give the path of an access log, or - for standard input"
        ) from None
    if not log.unreadable:
        raise click.ClickException(f"nothing to replay: {name} has no lines; give an access log with requests in it")
    number, line = log.examples[0]
    raise click.ClickException(
        f"nothing to replay: none of the {log.unreadable:,} lines of {name} is in Common or Combined Log Format "
        f"(line {number} is {line}); give a web server's access log"
    )


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    if path != "-":
        with open(path, "rb", buffering=0) as stream:
            yield stream
        return
    stdin: TextIO | None = sys.stdin
    if stdin is None:
        raise OSError(errno.EBADF, "it is closed")
    yield stdin.buffer


class _Progress:
    """A bar on stderr once a log proves long; `with` takes it away again. None unless all output is to a terminal."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._bar = Bar(console=Console(stderr=True), transient=True)
        self._wanted = sys.stdout.isatty() and sys.stderr.isatty() and self._bar.console.is_interactive
        status = os.fstat(stream.fileno()) if self._wanted else None
        self._size = status.st_size if status and stat.S_ISREG(status.st_mode) else None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def reading(self, lines: Iterable[str]) -> Iterable[str]:
        """The lines; the bar moves on as they are taken."""
        return self._watched(lines) if self._wanted else lines

    def replaying(self, done: int, total: int) -> None:
        """The bar moves on to the replay."""
        if self._task is not None:
            self._bar.update(self._task, description="Replaying", completed=done, total=total)

    def _watched(self, lines: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(lines, start=1):
            if number % LONG == 0:
                self._move_on()
            yield line

    def _move_on(self) -> None:
        if self._task is None:
            self._task = self._bar.add_task("Reading", total=self._size)
            self._bar.start()
        self._bar.update(self._task, completed=self._stream.tell() if self._size else 0)


def _print(text: str) -> None:
    # Whatever the terminal's encoding has no character for is escaped.
    encoding = sys.stdout.encoding
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _as_json(report: ReplayReport, unreadable: int) -> str:
    figures = asdict(report) | {"unreadable": unreadable, "peak_live_at": _time(report.peak_live_at).isoformat()}
    return json.dumps({key: figures[key] for key in _JSON_KEYS}, indent=2) + "\n"


def _as_text(report: ReplayReport, unreadable: int, name: str, config: CoordinatorConfig, key: Key) -> str:
    console = Console(highlight=False, markup=False, color_system=None if os.environ.get("NO_COLOR") else "auto")
    with console.capture() as capture:
        limit = config.max_active_sessions
        console.print(
            f"{name}: {_time(report.first_at):%d %b %Y %H:%M:%S} to {_time(report.last_at):%d %b %Y %H:%M:%S} UTC\n"
            f"session timeout {format_duration(config.session_timeout)}, "
            f"cleanup every {format_duration(config.cleanup_interval)}, "
            f"{'no limit' if limit is None else f'limit {limit:,} ({config.on_full})'}, one session per {key}\n"
        )
        console.print(_figures(report, unreadable))
        console.print(_distributions(report))
        if report.first_at < report.last_at and not console.options.ascii_only:
            console.print(Text.from_ansi(_chart(report, max(40, console.width))), no_wrap=True, crop=True)
    # The padding of the last column is no part of the text.
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
        ("Peak live sessions", report.peak_live, f"at {_time(report.peak_live_at):%d %b %Y %H:%M:%S} UTC"),
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
    """Live sessions over time, with terminal colours."""
    span, first = report.last_at - report.first_at, report.first_at
    # Where nobody was live, nothing is drawn.
    points = [(first + at * span / SLICES, live) for at, live in enumerate(report.live_over_time) if live]
    plotext.terminal.limit(False, False)
    figure = plotext.figure.clear().plot_size(width, 15).theme("simple").title("Live sessions (time in UTC)")
    figure.draw(figure.signal(*zip(*points, strict=True), marker="hd").fillx())
    counts = _ticks(0, report.peak_live, 4, _COUNT_STEPS)
    if counts[-1] < report.peak_live:
        counts.append(counts[-1] + counts[1])
    figure.ruler("y", "left").lim(0, counts[-1]).ticks(counts, [f"{count:,}" for count in counts])
    times = _ticks(first, report.last_at, width // 10, _TIME_STEPS)
    figure.ruler("x", "lower").lim(first, report.last_at).ticks(times, [_tick_label(at, times) for at in times])
    return str(figure.build().string()).rstrip()


def _ticks(first: float, last: float, most: int, steps: Sequence[int]) -> list[int]:
    step = next((step for step in steps if (last - first) / step <= most), steps[-1])
    return list(range(math.ceil(first / step) * step, math.floor(last) + 1, step))


def _tick_label(at: int, times: Sequence[int]) -> str:
    step = times[1] - times[0] if len(times) > 1 else 1
    if step >= 365 * _DAY:
        return f"{_time(at):%b %Y}"
    return f"{_time(at):%d %b}" if at % _DAY == 0 else f"{_time(at):%H:%M:%S}" if step < 60 else f"{_time(at):%H:%M}"


def _time(instant: float) -> datetime:
    return datetime.fromtimestamp(instant, UTC)
