"""An access log's lines: what is read of them, what is tolerated, and what is not."""

from __future__ import annotations

import gzip
import hashlib
import io
from datetime import datetime

import pytest

from sessionkit.cli.replay.accesslog import READ_ERRORS, AccessLog, parse_line, text_of

STAMP = "[17/May/2015:10:05:03 +0000]"
INSTANT = 1431857103
COMMON = f'192.0.2.1 - - {STAMP} "GET / HTTP/1.1" 200 5'


def combined(agent: str, referer: str = "-") -> str:
    """A line of the Combined Log Format."""
    return f'{COMMON} "{referer}" "{agent}"\n'


def test_common_format_has_no_agent() -> None:
    """A line of the Common Log Format gives instant and address, and an empty agent."""
    assert parse_line(COMMON) == (INSTANT, "192.0.2.1", "")


def test_combined_format_has_an_agent() -> None:
    """A line of the Combined Log Format gives its last quoted field as the agent, with either line end."""
    assert parse_line(combined("Heron/12 (desktop)")) == (INSTANT, "192.0.2.1", "Heron/12 (desktop)")
    assert parse_line(combined("Heron/12").replace("\n", "\r\n")) == (INSTANT, "192.0.2.1", "Heron/12")


@pytest.mark.parametrize(
    ("line", "agent"),
    [
        (combined("-"), ""),
        (combined(""), ""),
        (combined(r"a \"quoted\" name"), r"a \"quoted\" name"),
        (combined('an "unescaped" name'), 'an "unescaped" name'),
        (combined("Quill", referer='http://example.org/?q="x"'), "Quill"),
        (combined("Quill").rstrip() + " 0.004\n", "Quill"),
        (combined("Quill")[:-4], ""),
        (COMMON.replace("GET / HTTP/1.1", r"GET /\" \"x HTTP/1.1"), ""),
        (combined("\udcff\udcfe"), "\udcff\udcfe"),
    ],
)
def test_odd_quoting_is_tolerated(line: str, agent: str) -> None:
    """However fields are quoted, escaped or cut off, the request is read, with the best guess at its agent."""
    assert parse_line(line) == (INSTANT, "192.0.2.1", agent)


@pytest.mark.parametrize("user", ["joe", "Joe Bloggs", "[joe]", '"joe"', "a [b] [c"])
def test_odd_users_are_skipped(user: str) -> None:
    """Users with spaces and brackets do not hide the time."""
    assert parse_line(f'2001:db8::1 - {user} {STAMP} "-" 408 -') == (INSTANT, "2001:db8::1", "")


@pytest.mark.parametrize(
    ("stamp", "iso"),
    [
        ("17/May/2015:10:05:03 +0200", "2015-05-17T10:05:03+02:00"),
        ("01/Jan/2016:00:00:00 -0730", "2016-01-01T00:00:00-07:30"),
        ("29/Feb/2024:23:59:59 +1400", "2024-02-29T23:59:59+14:00"),
        ("31/Dec/1969:23:00:00 +0000", "1969-12-31T23:00:00+00:00"),
        ("31/Dec/2016:23:59:60 +0000", "2017-01-01T00:00:00+00:00"),
    ],
)
def test_instants(stamp: str, iso: str) -> None:
    """Offsets are subtracted, days before 1970 are negative, and a leap second is the next minute's first."""
    assert parse_line(f'h - - [{stamp}] "-" 408 -') == (datetime.fromisoformat(iso).timestamp(), "h", "")


def test_every_month_is_known() -> None:
    """The twelve English names give the twelve months, whatever the locale."""
    for month in range(1, 13):
        moment = datetime.fromisoformat(f"2021-{month:02}-15T12:00:00+00:00")
        entry = parse_line(f'h - - [{moment:%d/%b/%Y:%H:%M:%S} +0000] "-" 408 -')
        assert entry == (moment.timestamp(), "h", "")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "hello",
        STAMP,
        f" - - {STAMP}",
        COMMON.replace("17/May", "31/Feb"),
        COMMON.replace("17/May", "00/May"),
        COMMON.replace("17/May", "17/Mai"),
        COMMON.replace("17/May", "17/mAY"),
        COMMON.replace("2015", "0000"),
        COMMON.replace("2015", "9999"),
        COMMON.replace(":10:05", ":99:05"),
        COMMON.replace(":10:05", ":24:05"),
        COMMON.replace(":10:05", ":10:60"),
        COMMON.replace(":03 ", ":61 "),
        COMMON.replace("+0000", "+2400"),
        COMMON.replace("+0000", "+0060"),
        COMMON.replace("+0000", "UTC"),
        COMMON.replace("17/", "\uff11\uff17/"),
        COMMON[:30],
    ],
)
def test_unreadable(line: str) -> None:
    """Without an address, or without a time that exists, there is no entry."""
    assert parse_line(line) is None


def test_log_counts_what_it_cannot_read() -> None:
    """Unreadable lines are counted and the first ones kept with their numbers; blank lines are numbered only."""
    log = AccessLog([COMMON, "\n", "what\n", "  \r\n", "", "is\r\n", COMMON, "this"], examples=2)
    assert [entry[0] for entry in log] == [INSTANT, INSTANT]
    assert log.unreadable == 3
    assert log.examples == [(3, "'what'"), (6, "'is'")]


def test_examples_are_safe_to_print() -> None:
    """What is shown of a line is short and printable, whatever control characters and bytes were in it."""
    log = AccessLog(["\x1b[2J\udcff\x00" + "x" * 10_000 + "\n"])
    assert list(log) == []
    ((_, shown),) = log.examples
    assert shown.startswith(r"'\x1b[2J\udcff\x00")
    assert shown.isprintable()
    assert len(shown) <= 80


def test_text_of_plain_and_gzip() -> None:
    """Gzip is told by its first bytes; both give the same text, and bytes that are not UTF-8 survive."""
    data = b"one\r\nt\xffw\xc3\xb6\n"
    for packed in (data, gzip.compress(data), gzip.compress(data[:5]) + gzip.compress(data[5:])):
        assert list(text_of(io.BytesIO(packed))) == ["one\r\n", "t\udcffwö\n"]
    assert list(text_of(io.BytesIO(b""))) == []


def test_damaged_gzip_raises_a_read_error() -> None:
    """A gzip log that is cut off, or damaged anywhere, raises one of READ_ERRORS."""
    whole = gzip.compress(bytes(range(256)) * 20 + hashlib.shake_256().digest(5000))
    for damaged in (whole[:-20], whole[:5], whole[:1000] + b"\xff" * 100 + whole[1100:], b"\x1f\x8b\xff" + whole[3:]):
        with pytest.raises(READ_ERRORS):
            text_of(io.BytesIO(damaged)).read()
