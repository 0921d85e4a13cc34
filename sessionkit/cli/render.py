"""Session records as text: a table and a page for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from .. import RemovalCause
from ..stores import Found, SessionRecord
from ..util.clock import is_past
from .text import format_duration

WHY = {RemovalCause.IDLE: "idle for too long", RemovalCause.LIFETIME: "too old"}
"""The causes for which sessions expire, in words."""

_LONGEST = 1e10  # in seconds; longer durations are shown as a power of ten
_GAP = 2  # between columns


class Expiry(NamedTuple):
    """When a session expires, and why."""

    at: float
    cause: RemovalCause
    has_come: bool


def expiry_of(record: SessionRecord, now: float, lag: float = 0.0) -> Expiry:
    """The expiry of a session whose last activity may have been up to `lag` seconds later."""
    idle_end, life_end = record.idle_end + lag, record.life_end
    at = min(idle_end, life_end)
    cause = RemovalCause.IDLE if idle_end <= life_end else RemovalCause.LIFETIME
    return Expiry(at, cause, is_past(at, now))


def as_json(record: SessionRecord, now: float) -> str:
    """A record without its data as a JSON object of one line."""
    return json.dumps(_fields(record, now))


def found_as_json(found: Found, now: float) -> str:
    """A record, its data, and which instances have it in memory, as a JSON object. Damaged data is a string."""
    data, _, _ = _data(found.record)
    fields = _fields(found.record, now) | {
        "expired": expiry_of(found.record, now, found.lag).has_come,
        "in_memory": bool(found.elsewhere),
        "instances": list(found.elsewhere),
        "lag_seconds": _finite(found.lag),
        "data": data,
    }
    return json.dumps(fields, indent=2) + "\n"


def _fields(record: SessionRecord, now: float) -> dict[str, object]:
    expiry = expiry_of(record, now)
    return {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "created_at": _iso(record.created_at),
        "last_active": _iso(record.last_active),
        "idle_seconds": _finite(max(now - record.last_active, 0.0)),
        "session_timeout": _finite(record.session_timeout),
        "max_lifetime": None if record.max_lifetime is None else _finite(record.max_lifetime),
        "expires_at": _iso(expiry.at),
        "expires_of": expiry.cause.value,
        "expired": expiry.has_come,
        "message_count": record.message_count,
        "data_bytes": _size(record),
        "version": record.version,
    }


class _Column(NamedTuple):
    heading: str
    cell: Callable[[SessionRecord, float], str]
    rank: int = 0
    """On a terminal too narrow for all columns, those of the highest rank are left out first; rank 0 never is."""
    is_number: bool = False


_COLUMNS = (
    _Column("id", lambda record, _: printable(record.id)),
    _Column("name", lambda record, _: printable(record.name or "")),
    _Column("state", lambda record, _: printable(record.state), 2),
    _Column("created (UTC)", lambda record, _: _moment(record.created_at), 6),
    _Column("last active (UTC)", lambda record, _: _moment(record.last_active), 4),
    _Column("idle for", lambda record, now: _span(now - record.last_active), 1, True),
    _Column("expires", lambda record, now: _expires(expiry_of(record, now), now)),
    _Column("messages", lambda record, _: f"{record.message_count:,}", 3, True),
    _Column("bytes", lambda record, _: f"{_size(record):,}", 5, True),
    _Column("version", lambda record, _: f"{record.version:,}", 7, True),
)


def as_table(records: Iterable[SessionRecord], now: float) -> str:
    """A line for each record. On a narrow terminal whole columns are left out, and named below; none is cut off."""
    console = Console(
        highlight=False, markup=False, emoji=False, color_system=None if os.environ.get("NO_COLOR") else "auto"
    )
    lines = [(expiry_of(record, now).has_come, [column.cell(record, now) for column in _COLUMNS]) for record in records]
    texts = zip([column.heading for column in _COLUMNS], *(cells for _, cells in lines), strict=True)
    columns = {column: max(map(cell_len, cells)) + _GAP for column, cells in zip(_COLUMNS, texts, strict=True)}
    left_out = set()
    if console.is_terminal:
        for column in sorted(_COLUMNS, key=lambda column: column.rank, reverse=True):
            if column.rank and sum(columns.values()) - _GAP > console.width:
                left_out.add(column)
                del columns[column]
    console.width = sum(columns.values())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column, width in columns.items():
        # Rich is slow at finding the width by itself.
        table.add_column(column.heading, justify="right" if column.is_number else "left", width=width - _GAP)
    for is_expired, cells in lines:
        kept = (cell for column, cell in zip(_COLUMNS, cells, strict=True) if column in columns)
        table.add_row(*kept, style="dim" if is_expired else None)
    with console.capture() as capture:
        console.print(table)
    text = re.sub(r" +$", "", capture.get(), flags=re.MULTILINE)
    if left_out:
        headings = ", ".join(column.heading for column in _COLUMNS if column in left_out)
        text += f"(no room for: {headings}; a wider terminal or --json has them)\n"
    return text


def as_page(found: Found, now: float) -> str:
    """All of a record, which instances have it in memory, and its data below."""
    record = found.record
    _, data, remark = _data(record)
    lines = {
        "id": record.id,
        "name": "none" if record.name is None else record.name,
        "state": record.state,
        "created": f"{_moment(record.created_at)} UTC, {_span(now - record.created_at)} ago",
        "last active": f"{_moment(record.last_active)} UTC, {_span(now - record.last_active)} ago",
        "expires": _expires_fully(found, now),
        "session timeout": _span(record.session_timeout),
        "max lifetime": "none" if record.max_lifetime is None else _span(record.max_lifetime),
        "messages": f"{record.message_count:,}",
        "version": f"{record.version:,}",
        "in memory": _memory(found),
        "data": f"{_size(record):,} bytes{remark}",
    }
    head = "".join(f"{label:17}{printable(line)}\n" for label, line in lines.items())
    return head + "\n".join(map(printable, data.split("\n"))) + "\n"


def printable(text: str) -> str:
    """The text, safe for a terminal: each character that is not printable is escaped, as in JSON."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)


def _memory(found: Found) -> str:
    if not found.elsewhere:
        return "of no process"
    names = ", ".join(found.elsewhere)
    if found.lag == 0:
        return f"of {names}"
    if found.lag == math.inf:
        which = "which" if len(found.elsewhere) == 1 else "one of which"
        return f"of {names}; {which} has it checked out or has not said when it writes its activity"
    return f"of {names}; activity of the last {_span(max(found.lag, 1))} may not be written yet"


def _expires(expiry: Expiry, now: float) -> str:
    if expiry.has_come:
        return f"expired {_span(now - expiry.at)} ago"
    return f"in {_span(expiry.at - now)}"


def _expires_fully(found: Found, now: float) -> str:
    expiry, latest = expiry_of(found.record, now), expiry_of(found.record, now, found.lag)
    remark = ""
    if latest.has_come:
        remark = "; not yet removed"
    elif expiry.has_come:
        remark = "; unless the process that has it in memory knows of later activity"
    elif latest.at > expiry.at:
        remark = "; later if there was activity that is not written yet"
    return f"{_expires(expiry, now)} ({WHY[expiry.cause]}){remark}"


def _data(record: SessionRecord) -> tuple[Any, str, str]:
    """The data, its text for people, and a remark; if it is not a JSON object, its text as it is stored."""
    try:
        data = json.loads(record.data)
        text = json.dumps(data, indent=2, ensure_ascii=False)
    # ValueError also means an integer of more digits than Python reads.
    except (ValueError, RecursionError):
        data, text = None, ""
    if isinstance(data, dict):
        return data, text, ""
    return record.data, record.data, ", shown as it is stored: it is damaged, or nested too deep"


def _size(record: SessionRecord) -> int:
    return len(record.data.encode(errors="surrogatepass"))


def _span(seconds: float) -> str:
    return format_duration(max(seconds, 0.0)) if seconds < _LONGEST else f"{seconds:.0e}s"


def _moment(instant: float) -> str:
    at = _time(instant)
    return f"{instant:.0e}" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def _iso(instant: float) -> str | None:
    at = _time(instant)
    return None if at is None else at.isoformat()


def _time(instant: float) -> datetime | None:
    """None if the instant is beyond the calendar of `datetime`."""
    try:
        return datetime.fromtimestamp(instant, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
