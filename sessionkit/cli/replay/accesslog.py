"""Read an access log: Common and Combined Log Format, as Apache and nginx write them."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from datetime import date
from functools import lru_cache
from typing import BinaryIO

from ...util.log import short_repr

Entry = tuple[int, str, str]
"""One request: its instant in seconds since 1970 (UTC), the client's address, and its agent (`""` if unknown)."""

READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading the text of a log may raise; the last two for compressed logs that are cut off or damaged."""

_GZIP_MAGIC = b"\x1f\x8b"
_BUFFER = 1 << 17
# A user's name may hold spaces and brackets, so all that stands between the address and the time is skipped.
_LINE = re.compile(r"(\S+) .*?\[(\d\d/[A-Z][a-z]{2}/[12]\d{3}:\d\d:\d\d:\d\d [+-]\d{4})\]", re.ASCII)
# Not strptime: it reads the names of months in the language of the locale, and takes ten times as long.
_MONTHS = {"Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "May": 5, "Jun": 6}
_MONTHS |= {"Jul": 7, "Aug": 8, "Sep": 9, "Oct": 10, "Nov": 11, "Dec": 12}
_EPOCH = date(1970, 1, 1).toordinal()


def parse_line(line: str) -> Entry | None:
    """The request that a line records, or None if the line cannot be read.

    The address and the time are required, whatever else is odd. The agent is the last quoted field of the Combined
    format; `"-"`, a field that is cut off, and the Common format's lack of one give `""`.
    """
    match = _LINE.match(line)
    if match is None:
        return None
    address, stamp = match.groups()
    instant = _instant(stamp)
    if instant is None:
        return None
    # A quote inside a field may be escaped or not, but hardly any field holds these three characters.
    start = line.rfind('" "')
    agent = "" if start < 0 else line[start + 3 : line.rfind('"')]
    return instant, address, "" if agent == "-" else agent


@lru_cache(maxsize=4096)
def _instant(stamp: str) -> int | None:
    # dd/Mon/yyyy:HH:MM:SS +zzzz
    midnight = _midnight(stamp[:11], stamp[21:])
    hour, minute, second = int(stamp[12:14]), int(stamp[15:17]), int(stamp[18:20])
    # Second 60 is a leap second: the same instant as the next minute's first, as in POSIX time.
    if midnight is None or hour > 23 or minute > 59 or second > 60:
        return None
    return midnight + 3600 * hour + 60 * minute + second


@lru_cache(maxsize=64)
def _midnight(day: str, offset: str) -> int | None:
    hours, minutes = int(offset[1:3]), int(offset[3:])
    if hours > 23 or minutes > 59:
        return None
    try:
        ordinal = date(int(day[7:]), _MONTHS[day[3:6]], int(day[:2])).toordinal()
    except (KeyError, ValueError):
        return None
    ahead_of_utc = (3600 * hours + 60 * minutes) * (-1 if offset[0] == "-" else 1)
    return 86400 * (ordinal - _EPOCH) - ahead_of_utc


def text_of(stream: BinaryIO) -> io.TextIOWrapper:
    """The text of a log, plain or gzip, as its first bytes tell; its name does not matter.

    Bytes that are not UTF-8 become lone surrogates. Reading raises one of `READ_ERRORS` if it fails. Closing the text
    closes a plain stream, but not a compressed one.
    """
    buffered = io.BufferedReader(stream, _BUFFER)  # type: ignore[type-var]  # every binary file has readinto, though BinaryIO does not say so
    compressed = buffered.peek(2).startswith(_GZIP_MAGIC)
    return io.TextIOWrapper(
        gzip.GzipFile(fileobj=buffered) if compressed else buffered,
        encoding="utf-8",
        errors="surrogateescape",
        newline="\n",
    )


class AccessLog:
    """The entries of a log's lines, in their order, and a count of those that cannot be read.

    Iterate over it once. A blank line has a number, but is not counted as unreadable.
    """

    def __init__(self, lines: Iterable[str], examples: int = 5) -> None:
        self.unreadable = 0
        """How many lines could not be read, so far."""
        self.examples: list[tuple[int, str]] = []
        """The first of them, `examples` at most: their numbers, from 1, and their shortened `repr`, safe to print."""
        self._lines = lines
        self._wanted = examples

    def __iter__(self) -> Iterator[Entry]:
        for number, line in enumerate(self._lines, start=1):
            entry = parse_line(line)
            if entry is not None:
                yield entry
            elif line and not line.isspace():
                self._note(number, line)

    def _note(self, number: int, line: str) -> None:
        self.unreadable += 1
        if len(self.examples) < self._wanted:
            self.examples.append((number, short_repr(line.rstrip("\r\n"))))
