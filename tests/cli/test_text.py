"""Durations: how options are read, and how the commands show them."""

from __future__ import annotations

import re

import click
import pytest

from sessionkit.cli.text import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800), ("1d1h1m1s", 90061), ("45", 45), ("0.5", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations are read as days, hours, minutes and seconds, or as plain seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30x", "m", "30m1h", "-5", "1e3", "nan", "inf", " 5", "5 m", "1_0", "1.5h", "٣"])
def test_not_durations(text: str) -> None:
    """Anything else is refused, with the value and what to write instead."""
    with pytest.raises(click.BadParameter, match=re.escape(f"{text!r} is not a duration; write it like 90s")):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0", "0s", "0h0m", "9" * 400, "9" * 5000 + "d"])
def test_durations_out_of_range(text: str) -> None:
    """A duration is above 0 and finite."""
    with pytest.raises(click.BadParameter, match="out of range; a duration must be above 0 and finite"):
        parse_duration(text)


def test_durations_are_shown_as_they_are_written() -> None:
    """What is shown can be given as an option again."""
    for seconds in (1, 59, 60, 3600, 86399, 90061, 100 * 86400):
        assert parse_duration(format_duration(seconds)) == seconds


def test_durations_are_shown_in_the_largest_units() -> None:
    """Durations are whole seconds in the largest units."""
    assert [format_duration(seconds) for seconds in (0, 0.4, 5400, 59.6)] == ["0s", "0s", "1h30m", "1m"]
