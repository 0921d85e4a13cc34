"""Replaying requests: every figure against a plain model that knows no coordinator."""

from __future__ import annotations

import statistics
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionkit import CoordinatorConfig
from sessionkit.cli.main import OnFull
from sessionkit.cli.replay.accesslog import Entry
from sessionkit.cli.replay.simulation import SLICES, Distribution, ReplayReport, replay

MINUTE = 60
TIMEOUT = 1800


def entries_at(*instants: int, address: str = "192.0.2.1") -> list[Entry]:
    """One client's requests."""
    return [(instant, address, "") for instant in instants]


def unlimited(timeout: float = TIMEOUT, interval: float = 300) -> CoordinatorConfig:
    """Settings without a limit."""
    return CoordinatorConfig(session_timeout=timeout, cleanup_interval=interval, max_active_sessions=None)


def settings(timeout: float, interval: float, limit: int | None, on_full: OnFull = "reject") -> CoordinatorConfig:
    """Settings that may deserve the warning about a long cleanup interval."""
    with pytest.warns(UserWarning, match="cleanup_interval") if interval > timeout else nullcontext():
        return CoordinatorConfig(
            session_timeout=timeout, cleanup_interval=interval, max_active_sessions=limit, on_full=on_full
        )


@dataclass
class Model:
    """What a coordinator of these settings should do, in the plainest way."""

    timeout: int
    limit: float
    evict: bool
    live: OrderedDict[str, list[int]] = field(default_factory=OrderedDict)
    ended: list[list[int]] = field(default_factory=list)
    created: int = 0
    rejected: int = 0
    evicted: int = 0
    peak: int = 0
    peak_at: int = 0

    def request(self, instant: int, address: str) -> None:
        """One request, in time order; a session is the list of its requests' instants."""
        for other in [a for a, times in self.live.items() if instant - times[-1] > self.timeout]:
            self.ended.append(self.live.pop(other))
        if address not in self.live:
            if len(self.live) == self.limit and not self.evict:
                self.rejected += 1
                return
            if len(self.live) == self.limit:
                self.ended.append(self.live.popitem(last=False)[1])
                self.evicted += 1
            self.created += 1
            self.live[address] = []
        self.live[address].append(instant)
        self.live.move_to_end(address)
        if len(self.live) > self.peak:
            self.peak, self.peak_at = len(self.live), instant


# Small numbers everywhere, so that limits, exact timeouts and equal instants are met all the time.
LOGS = st.lists(st.tuples(st.integers(0, 120), st.sampled_from("abcde"), st.sampled_from(["", "x"])), min_size=1)


def gap_count(entries: list[Entry], timeout: int) -> int:
    """How many sessions a plain look at each client's gaps gives."""
    sessions = 0
    for address in {entry[1] for entry in entries}:
        instants = sorted(entry[0] for entry in entries if entry[1] == address)
        gaps = [after - before for before, after in pairwise(instants)]
        sessions += 1 + sum(gap > timeout for gap in gaps)
    return sessions


@given(LOGS, st.integers(1, 40), st.integers(1, 60))
def test_sessions_are_the_gaps_over_the_timeout(entries: list[Entry], timeout: int, interval: int) -> None:
    """Without a limit, sessions over all clients are what counting gaps gives, and the peak what brute force gives."""
    report = replay(entries, settings(timeout, interval, None))
    assert report.created == gap_count(entries, timeout)
    # A session lives at an instant if its client was active in the `timeout` seconds up to then.
    live_at = {
        now: len({address for at, address, _ in entries if now - timeout <= at <= now})
        for now in sorted({entry[0] for entry in entries})
    }
    assert report.peak_live == max(live_at.values())
    assert report.peak_live_at == next(now for now, live in live_at.items() if live == report.peak_live)
    assert max(report.live_over_time) == report.peak_live
    assert report.live_at_end == live_at[max(live_at)]
    assert report.cleanups == (max(live_at) - min(live_at)) // interval


@given(LOGS, st.integers(1, 40), st.integers(1, 60), st.integers(1, 4), st.booleans())
def test_limits_do_what_a_plain_model_does(
    entries: list[Entry], timeout: int, interval: int, limit: int, evict: bool
) -> None:
    """With a limit, every figure is the model's, for reject and for evict, however often cleanup runs."""
    if evict:
        # Of several that were last active at the same instant, any may be evicted.
        entries = list({entry[0]: entry for entry in entries}.values())
    report = replay(entries, settings(timeout, interval, limit, "evict" if evict else "reject"))
    model = Model(timeout, limit, evict)
    for instant, address, _ in sorted(entries, key=lambda entry: entry[0]):
        model.request(instant, address)
    assert (report.created, report.rejected, report.evicted) == (model.created, model.rejected, model.evicted)
    assert (report.peak_live, report.peak_live_at) == (model.peak, model.peak_at)
    assert report.live_at_end == len(model.live)
    assert report.created == report.expired + report.evicted + report.live_at_end
    sessions = model.ended + list(model.live.values())
    assert report.session_requests == Distribution.of([len(times) for times in sessions])
    assert report.session_seconds == Distribution.of([times[-1] - times[0] for times in sessions])


@given(LOGS, st.randoms(use_true_random=False))
def test_order_of_lines_does_not_matter(entries: list[Entry], random) -> None:  # type: ignore[no-untyped-def]
    """Lines are put in time order first: without a limit, any order gives the same report."""
    shuffled = random.sample(entries, len(entries))
    assert replay(shuffled, unlimited(20, 7)) == replay(sorted(entries), unlimited(20, 7))


def test_order_is_stable() -> None:
    """Requests of the same instant are taken in the order of their lines: the first gets the only place."""
    config = CoordinatorConfig(session_timeout=TIMEOUT, cleanup_interval=300, max_active_sessions=1)
    lines = [(9, "late", ""), (5, "first", ""), (5, "second", ""), (7, "first", "")]
    report = replay(lines, config)
    assert (report.created, report.rejected, report.session_requests.max) == (1, 2, 2)


def test_timeout_itself_is_still_live() -> None:
    """A gap of exactly the timeout is one session, a second more is two."""
    assert replay(entries_at(0, TIMEOUT), unlimited()).created == 1
    assert replay(entries_at(0, TIMEOUT + 1), unlimited()).created == 2


def test_peak_counts_what_is_live_not_what_is_in_memory() -> None:
    """With a cleanup that hardly runs, sessions whose timeout has passed are not counted."""
    entries = [(minute * MINUTE, f"client-{minute}", "") for minute in range(100)]
    report = replay(entries, settings(10 * MINUTE, 10_000 * MINUTE, None))
    assert (report.cleanups, report.peak_live, report.live_at_end) == (0, 11, 11)
    assert (report.expired, report.peak_live_at) == (89, 10 * MINUTE)


def test_key() -> None:
    """A client is an address, or an address with an agent."""
    entries = [(0, "office", "Heron"), (1, "office", "Quill"), (2, "home", "Heron")]
    assert replay(entries, unlimited()).clients == 2
    report = replay(entries, unlimited(), key="address+agent")
    assert (report.clients, report.created) == (3, 3)


def test_lifetime_counts_as_expired() -> None:
    """A session that reaches the maximum lifetime has expired, and its client gets another one."""
    config = CoordinatorConfig(
        session_timeout=TIMEOUT, cleanup_interval=300, max_active_sessions=None, max_lifetime=3600
    )
    report = replay(entries_at(*range(0, 7201, 600)), config)
    assert (report.created, report.expired, report.live_at_end) == (2, 1, 1)


def test_bogus_instant_costs_nothing() -> None:
    """A request decades away does not run the millions of cleanups in between, but counts them."""
    first, last = -30_000_000_000, 32_000_000_000
    seen: list[int] = []
    report = replay(
        entries_at(first, 0, last), unlimited(interval=1), on_progress=lambda done, _total: seen.append(done)
    )
    assert (report.created, report.cleanups) == (3, last - first)
    assert len(seen) <= SLICES
    assert [live for live in report.live_over_time if live] == [1, 1, 1]


def test_short_cleanup_interval_costs_nothing() -> None:
    """Cleanups that are due between two requests are counted, not run one by one, also while a session is live."""
    report = replay(entries_at(*range(0, 100_000, 1000)), unlimited(interval=2**-10))
    assert (report.created, report.cleanups) == (1, 99_000 * 2**10)


def test_live_over_time_holds_each_slice_maximum() -> None:
    """A session is in all slices that it was live in, to its timeout, and in no other."""
    report = replay(entries_at(0) + entries_at(SLICES * 100, address="192.0.2.2"), unlimited(1000, 300))
    assert report.live_over_time == (1,) * 11 + (0,) * (SLICES - 12) + (1,)


def test_single_instant() -> None:
    """Requests of one instant alone have one slice, no cleanups, and a single value that is its own percentile."""
    report = replay(entries_at(7, 7, 7), unlimited())
    assert report == ReplayReport(
        requests=3,
        clients=1,
        created=1,
        expired=0,
        rejected=0,
        evicted=0,
        live_at_end=1,
        peak_live=1,
        peak_live_at=7,
        cleanups=0,
        first_at=7,
        last_at=7,
        session_seconds=Distribution(0, 0, 0, 0),
        session_requests=Distribution(3, 3, 3, 3),
        live_over_time=(1,),
    )


def test_distribution() -> None:
    """The 95th percentile is the inclusive one of the statistics module, in whatever order the values come."""
    values = [*range(1, 102)]
    assert Distribution.of(values[::-1]) == Distribution(51, 51, 96, 101)
    assert Distribution.of([1, 2]).p95 == statistics.quantiles([1, 2], n=100, method="inclusive")[94]


def test_progress() -> None:
    """Progress only grows, and stays below the total."""
    seen: list[tuple[int, int]] = []
    replay(entries_at(*range(0, 90_000, 60)), unlimited(), on_progress=lambda *progress: seen.append(progress))
    assert len(seen) > SLICES
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {1500}
    assert seen[-1][0] < 1500


def test_nothing_to_replay() -> None:
    """No entries is an error of the caller."""
    with pytest.raises(ValueError, match="no entries"):
        replay([], unlimited())
