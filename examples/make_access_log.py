"""Makes examples/access.log, two days of a small site's traffic, always the same: nobody's real data.

    python examples/make_access_log.py > examples/access.log
    python examples/make_access_log.py 200000 > big.log      # that many visits in the same two days

There is day and night, people who come back, an office behind one address, a monitor that never rests, a crawler in the
first night, and a rush in the second evening. Lines stand in the order in which the answers were finished, as in real
logs, and three of them are broken. Addresses are from the ranges for documentation; all else is invented.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

SEED = 20260114
VISITS = 560
START = int(datetime(2026, 1, 14, tzinfo=UTC).timestamp())
MINUTE, HOUR, DAY = 60, 3600, 86400

MONITOR, CRAWLER, OFFICE = "192.0.2.1", "192.0.2.66", "203.0.113.7"
# How busy each hour of the day is, of 10.
RHYTHM = (1, 1, 0, 0, 0, 1, 2, 4, 6, 7, 7, 8, 8, 6, 6, 7, 7, 6, 7, 9, 10, 9, 6, 3)
PAGES = ("/", "/shop", "/shop/lamps", "/shop/chairs", "/shop/cart", "/about", "/journal", "/journal/oak", "/help")
AGENTS = ("Lantern/3.2 (desktop)", "Lantern/3.1 (phone)", "Heron/12 (desktop; rv:12)", "Heron/11 (tablet)", "Quill/0.9")
BROKEN = (
    "198.51.100.23 - - [14/Jan/2026:11:02:4",
    "upstream timed out while reading the answer of 192.0.2.80",
    '203.0.113.99 - - [-] "-" 408 0 "-" "-"',
)

# When, who, with what, and which page.
Request = tuple[int, str, str, str]


def visit(rng: random.Random, start: int, address: str, agent: str) -> Iterator[Request]:
    """One person clicks through the site, and may read for a while."""
    instant = start
    while True:
        yield instant, address, agent, rng.choice(PAGES)
        if rng.random() < 0.16:
            return
        instant += rng.randrange(3, 90) if rng.random() < 0.85 else rng.randrange(3 * MINUTE, 40 * MINUTE)


def busy_time(rng: random.Random) -> int:
    """Some instant of the two days, more likely at a busy hour."""
    while True:
        instant = rng.randrange(2 * DAY)
        if rng.random() * 10 < RHYTHM[instant % DAY // HOUR]:
            return START + instant


def newcomer(rng: random.Random) -> str:
    """An address nobody is likely to have had yet."""
    if rng.random() < 0.3:
        return f"2001:db8:{rng.randrange(1, 65536):x}::{rng.randrange(1, 65536):x}"
    return f"{rng.choice(('198.51.100', '203.0.113'))}.{rng.randrange(8, 255)}"


def requests(rng: random.Random, visits: int) -> Iterator[Request]:
    """All requests of the two days, in no order."""
    people: list[tuple[str, str]] = []
    for _ in range(visits):
        if not people or rng.random() < 0.6:
            people.append((newcomer(rng), rng.choice(AGENTS)))
        yield from visit(rng, busy_time(rng), *rng.choice(people))
    rush = START + DAY + 20 * HOUR + 10 * MINUTE
    for _ in range(visits // 14):
        yield from visit(rng, rush + rng.randrange(15 * MINUTE), newcomer(rng), rng.choice(AGENTS))
    for day in (START, START + DAY):
        for _ in range(12):
            yield from visit(rng, day + rng.randrange(9 * HOUR, 17 * HOUR), OFFICE, rng.choice(AGENTS))
    for instant in range(START, START + 2 * DAY, 10 * MINUTE):
        yield instant + rng.randrange(3), MONITOR, "Pulse/1.0", "/health"
    instant = START + 2 * HOUR
    while instant < START + 5 * HOUR:
        yield instant, CRAWLER, "Snail/2 (a crawler)", f"/journal?page={rng.randrange(1, 400)}"
        instant += rng.randrange(15, 50)


def line(rng: random.Random, request: Request) -> tuple[int, str]:
    """When the answer was finished, and the line the server writes then (Combined Log Format)."""
    instant, address, agent, page = request
    status = rng.choice((200, 200, 200, 200, 200, 200, 304, 404))
    size = 0 if status == 304 else rng.randrange(300, 40000)
    stamp = f"{datetime.fromtimestamp(instant, UTC):%d/Jan/%Y:%H:%M:%S} +0000"
    finished = instant + (rng.randrange(1, 20) if rng.random() < 0.05 else 0)
    return finished, f'{address} - - [{stamp}] "GET {page} HTTP/1.1" {status} {size} "-" "{agent}"'


def lines(visits: int = VISITS) -> list[str]:
    """The lines of the log, the same ones every time."""
    rng = random.Random(SEED)  # noqa: S311  no secrets are made here
    finished = [line(rng, request) for request in sorted(requests(rng, visits))]
    log = [text for _, text in sorted(finished, key=lambda pair: pair[0])]
    for broken in BROKEN:
        log.insert(rng.randrange(len(log)), broken)
    return log


if __name__ == "__main__":
    sys.stdout.writelines(f"{text}\n" for text in lines(*map(int, sys.argv[1:])))
