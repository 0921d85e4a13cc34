"""The command line: `sessionkit replay ACCESS_LOG`, with the commands of `sessions` added.

`replay.report` has what is printed, and `__main__` the exit statuses.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import BinaryIO, Literal, Self, TextIO, get_args

import click
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID

from .. import CoordinatorConfig
from ..util.log import short_repr
from .replay.accesslog import READ_ERRORS, AccessLog, text_of
from .replay.report import as_json, as_text
from .replay.simulation import Key, ReplayReport, replay
from .sessions import sessions
from .text import parse_duration, write

OnFull = Literal["reject", "evict"]
"""What a replay can do at the limit; it has no store to passivate sessions to."""

LONG = 20_000
"""A log of so many lines gets a progress bar, which moves every so many lines."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="sessionkit")
def sessionkit() -> None:
    """Live sessions that clean up after themselves."""


sessionkit.add_command(sessions)


@sessionkit.command("replay")
@click.argument("log_path", metavar="ACCESS_LOG")
@click.option(
    "--session-timeout",
    type=parse_duration,
    metavar="DURATION",
    default="30m",
    help="How long a session may be idle; it expires when idle for more.",
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
    help="How many sessions may live at once; no limit unless given.",
)
@click.option(
    "--on-full",
    type=click.Choice(get_args(OnFull)),
    default="reject",
    help="At the limit, reject the request or evict the longest idle session.",
)
@click.option(
    "--key",
    type=click.Choice(get_args(Key)),
    default="address",
    help="What tells clients apart: their address, or address and user agent.",
)
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object instead of the table and the chart.")
def replay_command(
    log_path: str,
    session_timeout: float,
    cleanup_interval: float,
    max_active_sessions: int | None,
    on_full: OnFull,
    key: Key,
    wants_json: bool,
) -> None:
    """With this traffic, what do this session timeout and this limit do?

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
    name = "standard input" if log_path == "-" else short_repr(log_path)
    log, report = _replay(log_path, name, config, key)
    for number, line in log.examples:
        click.echo(f"line {number} cannot be read: {line}", err=True)
    if log.unreadable > len(log.examples):
        click.echo(f"... nor can {log.unreadable - len(log.examples):,} more", err=True)
    write(as_json(report, log.unreadable) if wants_json else as_text(report, log.unreadable, name, config, key))


def _config(timeout: float, interval: float, limit: int | None, on_full: OnFull) -> CoordinatorConfig:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = CoordinatorConfig(
            session_timeout=timeout, cleanup_interval=interval, max_active_sessions=limit, on_full=on_full
        )
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
            first = next(entries, None)
            if first is not None:
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
    """A progress bar on stderr for a long log, while the `with` block runs; only if all output goes to a terminal."""

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
        """The same lines; the bar moves on as they are read."""
        return self._watched(lines) if self._wanted else lines

    def replaying(self, done: int, total: int) -> None:
        """Show how far the replay is, if there is a bar."""
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
