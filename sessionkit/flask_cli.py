"""`flask sessionkit list|cleanup`: the operators' commands, for an application's own store."""

from __future__ import annotations

from types import ModuleType

import click
import flask
import flask.cli

from .stores.base import Store

EXTENSION = "sessionkit"
"""Under this name, `app.extensions` has the application's coordinator."""


@click.group("sessionkit", cls=flask.cli.AppGroup)
def commands() -> None:
    """Look after the sessions in this application's store."""


@commands.command("list")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="List the first N only.")
@click.option("--json", "wants_json", is_flag=True, help="Print a JSON array instead of the table, an object a line.")
def list_command(limit: int | None, wants_json: bool) -> None:
    """Which sessions are in the store?"""
    _operate().list_sessions(_store(), limit, wants_json)


@commands.command("cleanup")
@click.option(
    "--max-age", metavar="DURATION", help="Also remove who has been idle for more than this, such as 90s or 12h."
)
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object instead.")
def cleanup_command(max_age: str | None, dry_run: bool, wants_json: bool) -> None:
    """Remove expired sessions, which servers do themselves while they run."""
    operate = _operate()
    age = None if max_age is None else operate.parse_duration(max_age)
    operate.clean_up(_store(), age, dry_run, wants_json)


def _operate() -> ModuleType:
    # Only now: what it prints with is another extra.
    try:
        from .cli import sessions as operate
    except ImportError as error:
        raise click.ClickException(
            f"these commands need another extra ({error}); run: pip install 'sessionkit[cli]'"
        ) from None
    return operate


def _store() -> Store:
    store: Store | None = flask.current_app.extensions[EXTENSION].store
    if store is None:
        raise click.ClickException(
            "this application has no session store: its sessions are in the memory of its server, where no other "
            "command sees them. Give the coordinator one, such as SessionCoordinator(store=SQLiteStore('sessions.db'))"
        )
    return store
