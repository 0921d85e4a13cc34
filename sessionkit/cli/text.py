"""Text that all commands share: durations as they are given and shown, and how stdout is written."""

from __future__ import annotations

import math
import re
import sys

import click

from ..util.log import short_repr

DAY = 86400
"""The seconds of a day."""

_UNITS = {"d": DAY, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d+){unit})?" for unit in _UNITS), re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def parse_duration(text: str) -> float:
    """The seconds of `90s`, `30m`, `1h30m`, `2d` or a plain number; `click.BadParameter` unless above 0 and finite."""
    match = _DURATION.fullmatch(text)
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif match and text:
        seconds = sum(float(count or 0) * unit for count, unit in zip(match.groups(), _UNITS.values(), strict=True))
    else:
        raise click.BadParameter(
            f"{short_repr(text)} is not a duration; write it like 90s, 30m, 1h30m, 2d, or in seconds"
        )
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{short_repr(text)} is out of range; a duration must be above 0 and finite")
    return seconds


def format_duration(seconds: float) -> str:
    """The duration in whole seconds, like `1h30m`; `parse_duration` reads it, unless it is `0s`."""
    rest, parts = round(seconds), []
    for unit, length in _UNITS.items():
        count, rest = divmod(rest, length)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or "0s"


def write(text: str) -> None:
    """Write to stdout and flush it; a character that the encoding of stdout lacks is escaped."""
    encoding = sys.stdout.encoding
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
