"""Durations as options are given: `90s`, `30m`, `1h30m`."""

from __future__ import annotations

import math
import re

import click

from ..util.validation import shown
from .replay.report import UNITS

_DURATION = re.compile("".join(rf"(?:(\d+){unit})?" for unit in UNITS), re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def parse_duration(text: str) -> float:
    """The seconds of `90s`, `30m`, `1h30m`, `2d` or a plain number; `click.BadParameter` unless above 0 and finite."""
    match = _DURATION.fullmatch(text)
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif match and text:
        seconds = sum(float(count or 0) * unit for count, unit in zip(match.groups(), UNITS.values(), strict=True))
    else:
        raise click.BadParameter(f"{shown(text)} is not a duration; write it like 90s, 30m, 1h30m, 2d, or in seconds")
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{shown(text)} is out of range; a duration must be above 0 and finite")
    return seconds
