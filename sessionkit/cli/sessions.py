"""The operators' commands, `sessionkit sessions list|show|close|cleanup STORE`; `render` has what they print."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from time import time

import click
from rich.console import Console
from rich.progress import Progress as Bar

from .. import RemovalCause, StoreError
from ..stores import SessionRecord, Store
from ..stores.open import open_store
from ..util.log import short_repr
from .render import WHY, as_json, as_page, as_table, expiry_of, found_as_json, printable
from .text import parse_duration, write

ROWS = 100
"""How many sessions the table shows unless `--limit` is given."""

BATCH = 100
"""How many records one call of the store reads or removes."""


class TakesIds(click.Command):
    """A command that takes ids: an argument that begins with a dash is an id, as generated ones may, unless it is the
    name of an option.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move the options to the front, and put `--` between them and the ids."""
        options = {name for param in self.get_params(ctx) if isinstance(param, click.Option) for name in param.opts}
        if "--" not in args:
            args = [*(arg for arg in args if arg in options), "--", *(arg for arg in args if arg not in options)]
        return super().parse_args(ctx, args)


@click.group("sessions")
def sessions() -> None:
    """Look after the sessions in a store, whether or not servers use it.

    STORE is the path of a SQLite store, or a URL: sqlite:///relative.db, sqlite:////absolute.db, or one that RedisStore
    takes, such as redis://host:6379/0, with ?prefix=... if the store has a prefix of its own. A file must be there: no
    command makes one. All times shown are UTC.

    \b
    Examples:
      sessionkit sessions list sessions.db
      sessionkit sessions show sessions.db support
      sessionkit sessions close sessions.db support kTGn5xJ0
      sessionkit sessions cleanup sessions.db --max-age 12h --dry-run
      sessionkit sessions list "redis://localhost:6379/0?prefix=shop"
    """


@sessions.command("list")
@click.argument("where", metavar="STORE")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"List the first N only. The table has {ROWS} unless given; JSON has all.",
)
@click.option("--json", "wants_json", is_flag=True, help="Print a JSON array instead of the table, an object a line.")
def list_command(where: str, limit: int | None, wants_json: bool) -> None:
    """Which sessions are in the store?

    A line for each, in the order of their ids, and at the end how many there are. Expired sessions stay listed until a
    server or the cleanup command removes them. A server may not have written the latest activity yet; the show command
    says how much may be missing.

    \b
    Examples:
      sessionkit sessions list sessions.db
      sessionkit sessions list sessions.db --limit 20
      sessionkit sessions list sqlite:////srv/shop/sessions.db --json
    """
    with _opened(where) as store:
        list_sessions(store, limit, wants_json)


@sessions.command("show", cls=TakesIds)
@click.argument("where", metavar="STORE")
@click.argument("id_or_name", metavar="ID_OR_NAME")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object instead.")
def show_command(where: str, id_or_name: str, wants_json: bool) -> None:
    """What is known of a session?

    All of its record and its data, and which processes have it in memory. The exit status is 1 if it is not in the
    store.

    \b
    Examples:
      sessionkit sessions show sessions.db support
      sessionkit sessions show sessions.db kTGn5xJ0 --json
    """
    with _opened(where) as store:
        session_id = _id_of(store, id_or_name)
        found, now = None if session_id is None else store.load(session_id), _now(store)
    if found is None:
        raise _absent([id_or_name])
    write(found_as_json(found, now) if wants_json else as_page(found, now))


@sessions.command("close", cls=TakesIds)
@click.argument("where", metavar="STORE")
@click.argument("ids_or_names", metavar="ID_OR_NAME...", nargs=-1, required=True)
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object instead.")
def close_command(where: str, ids_or_names: tuple[str, ...], wants_json: bool) -> None:
    """End sessions for good: delete what the store has of them.

    A server that has such a session in memory notices when it gets or checks it out the next time, and then closes it
    there; work that is under way goes on to its end, and cannot be saved. The exit status is 1 if one of the sessions
    is not in the store; the others are closed all the same.

    \b
    Examples:
      sessionkit sessions close sessions.db support
      sessionkit sessions close sessions.db kTGn5xJ0 c2Vzc2lv support
    """
    with _opened(where) as store:
        ids = {text: _id_of(store, text) for text in ids_or_names}
        closed = store.delete({session_id: None for session_id in ids.values() if session_id is not None})
    absent = [text for text, session_id in ids.items() if session_id not in closed]
    if wants_json:
        write(json.dumps({"closed": sorted(closed), "not_found": absent}, indent=2) + "\n")
    else:
        write(f"Closed {_sessions(len(closed))}\n")
    if absent:
        raise _absent(absent)


@sessions.command("cleanup")
@click.argument("where", metavar="STORE")
@click.option(
    "--max-age",
    type=parse_duration,
    metavar="DURATION",
    help="Also remove sessions that were idle for more than this.",
)
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object instead.")
def cleanup_command(where: str, max_age: float | None, dry_run: bool, wants_json: bool) -> None:
    """Remove expired sessions.

    Servers do this themselves. The command is for a store that no server uses at the moment, or to remove more. A
    session that a server has checked out, or may have used without having written that yet, stays. The command can be
    interrupted: what is removed is removed, and the next run goes on. A DURATION is written like 90s, 30m, 1h30m, 2d,
    or in plain seconds.

    \b
    Examples:
      sessionkit sessions cleanup sessions.db --dry-run
      sessionkit sessions cleanup sessions.db
      sessionkit sessions cleanup sessions.db --max-age 12h
    """
    with _opened(where) as store:
        clean_up(store, max_age, dry_run, wants_json)


def list_sessions(store: Store, limit: int | None, wants_json: bool) -> None:
    """Do what the list command does, with an open store."""
    records, now = _records(store), _now(store)
    if wants_json:
        _write_array(as_json(record, now) for record in islice(records, limit))
        return
    listed = list(islice(records, limit or ROWS))
    if listed:
        write(as_table(listed, now))
    counts = Counter(expiry_of(record, now).has_come for record in chain(listed, records))
    more = counts.total() - len(listed)
    rest = f"; {len(listed):,} shown, {more:,} more not shown (--limit N shows more)" if more else ""
    write(f"{_sessions(counts.total())}: {counts[False]:,} live, {counts[True]:,} expired{rest}\n")


def clean_up(store: Store, max_age: float | None, dry_run: bool, wants_json: bool) -> None:
    """Do what the cleanup command does, with an open store."""
    # One instant for all batches: with a new one for each, more could be due without end.
    now = _now(store)
    if dry_run:
        count = store.count_expired(now, max_age=max_age)
        remaining = max(sum(1 for _ in _records(store)) - count, 0)
        figures: dict[str, bool | int] = {"dry_run": True, "would_remove": count, "would_remain": remaining}
        text = f"Would remove {_sessions(count)}; {remaining:,} would be left"
    else:
        removed = _remove_expired(store, now, max_age)
        remaining = sum(1 for _ in _records(store))
        by_cause = {cause: removed[cause] for cause in WHY}
        figures = {"dry_run": False, "removed": removed.total()}
        figures |= {f"removed_{cause.value}": count for cause, count in by_cause.items()} | {"remaining": remaining}
        causes = ", ".join(f"{count:,} {WHY[cause]}" for cause, count in by_cause.items())
        text = f"Removed {_sessions(removed.total())} ({causes}); {remaining:,} left"
    write((json.dumps(figures, indent=2) if wants_json else text) + "\n")


def _remove_expired(store: Store, now: float, max_age: float | None) -> Counter[RemovalCause]:
    """How many were removed, by cause. Shows a progress bar on stderr if all output goes to a terminal."""
    removed: Counter[RemovalCause] = Counter()
    console = Console(stderr=True)
    is_watched = sys.stdout.isatty() and sys.stderr.isatty() and console.is_interactive
    with Bar(console=console, transient=True, disable=not is_watched) as bar:
        task = bar.add_task("Removing", total=store.count_expired(now, max_age=max_age) if is_watched else None)
        try:
            while records := store.delete_expired(now, BATCH, max_age=max_age):
                removed.update(_cause(record, now) for record in records)
                bar.advance(task, len(records))
        except StoreError as error:
            raise StoreError(f"{error} (removed before that: {_sessions(removed.total())})") from error
    return removed


def _cause(record: SessionRecord, now: float) -> RemovalCause:
    expiry = expiry_of(record, now)
    # Not expired, so it was removed because of --max-age.
    return expiry.cause if expiry.has_come else RemovalCause.IDLE


@contextmanager
def _opened(where: str) -> Iterator[Store]:
    try:
        store = open_store(where)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'STORE'") from None
    except StoreError as error:
        raise _failure(error) from None
    with closing(store):
        try:
            yield store
        except StoreError as error:
            raise _failure(error) from None


def _failure(error: StoreError) -> click.ClickException:
    # The message may quote bytes of a damaged record.
    return click.ClickException(printable(str(error)))


def _now(store: Store) -> float:
    """The time on the store's clock."""
    return time() + store.clock_offset()


def _records(store: Store) -> Iterator[SessionRecord]:
    after = None
    while page := store.page(after, BATCH):
        yield from page
        after = page[-1].id


def _id_of(store: Store, id_or_name: str) -> str | None:
    return id_or_name if store.load(id_or_name) else store.find(id_or_name)


def _absent(ids_or_names: Iterable[str]) -> click.ClickException:
    return click.ClickException(
        f"not in the store: {', '.join(map(short_repr, ids_or_names))}; `sessionkit sessions list STORE` says what is"
    )


def _write_array(objects: Iterator[str]) -> None:
    """Write a JSON array in batches, so that a long one is never in memory as a whole."""
    before = "[\n  "
    while batch := list(islice(objects, BATCH)):
        write(before + ",\n  ".join(batch))
        before = ",\n  "
    write("[]\n" if before.startswith("[") else "\n]\n")


def _sessions(count: int) -> str:
    return f"{count:,} session{'' if count == 1 else 's'}"
