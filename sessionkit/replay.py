"""Replaying requests: what a coordinator's settings would have done with them."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from .accesslog import Entry
from .config import CoordinatorConfig
from .coordinator import SessionCoordinator
from .ending import RemovalCause
from .errors import SessionLimitError, SessionNotFoundError
from .session import ManagedSession

Key = Literal["address", "address+agent"]
"""What makes two requests the same client's."""

Progress = Callable[[int, int], object]
"""Called as `progress(done, total)`."""

SLICES = 400
"""Into how many equal slices of time `ReplayReport.live_over_time` is cut."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """One figure over all sessions."""

    median: float
    mean: float
    p95: float
    """The 95th percentile: the last cut of `statistics.quantiles(n=20, method="inclusive")`; of one value, itself."""
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """The distribution of at least one value."""
        values = sorted(values)
        p95 = statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
        return cls(statistics.median(values), statistics.fmean(values), p95, values[-1])


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What the settings did with the requests. Instants and durations are seconds, on the entries' own clock.

    `created == expired + evicted + live_at_end`, and the sessions' requests add up to `requests - rejected`.
    """

    requests: int
    clients: int
    created: int
    expired: int
    rejected: int
    """Requests that were rejected because there was no room for their session."""
    evicted: int
    live_at_end: int
    """Sessions whose time had not run out at the last request."""
    peak_live: int
    """The most sessions that were live at once; an expired one does not count, whether or not cleanup has run."""
    peak_live_at: float
    """When that was first so."""
    cleanups: int
    first_at: float
    last_at: float
    session_seconds: Distribution
    """The sessions' lengths: last activity minus creation."""
    session_requests: Distribution
    live_over_time: tuple[int, ...]
    """The most sessions live at once in each slice of the time from `first_at` to `last_at`."""


def replay(
    entries: Iterable[Entry],
    config: CoordinatorConfig,
    *,
    key: Key = "address",
    on_progress: Progress | None = None,
) -> ReplayReport:
    """Drive a coordinator with requests, on the requests' own clock, and report what it did.

    Each client is a session and each request one recorded message; a client whose session has ended gets a new one.
    Requests are put in time order first, those of the same instant in the order they came in. Cleanup is due every
    `cleanup_interval` seconds after the first request. Nothing happens between two requests, so of all the cleanups
    that are due there only one is run, though each is counted.

    `on_progress(done, total)` is called now and then with the number of requests. Raises `ValueError` if there are no
    entries. Memory: 16 bytes a request, two numbers a session, the clients, and the live sessions; if the entries are
    not in time order, one more number a request.
    """
    return _Run(_Traffic(entries, key), config, on_progress).report()


class _Traffic:
    """All requests in time order, as two columns: instant, and number of the client."""

    def __init__(self, entries: Iterable[Entry], key: Key) -> None:
        self._instants = array("d")
        self._clients = array("L")
        numbers: dict[str | tuple[str, str], int] = {}
        for instant, address, agent in entries:
            client = address if key == "address" else (address, agent)
            self._instants.append(instant)
            self._clients.append(numbers.setdefault(client, len(numbers)))
        if not self._instants:
            raise ValueError("there is nothing to replay: no entries")
        self.client_count = len(numbers)
        self.first, self.last = min(self._instants), max(self._instants)

    def __len__(self) -> int:
        return len(self._instants)

    def __iter__(self) -> Iterator[tuple[float, int]]:
        instants, clients = self._instants, self._clients
        if all(before <= after for before, after in pairwise(instants)):
            return zip(instants, clients, strict=True)
        order = sorted(range(len(instants)), key=instants.__getitem__)
        return ((instants[place], clients[place]) for place in order)


class _LogTime:
    """The time of the request that is being replayed; requests are in time order."""

    never_goes_back = True

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class _Run:
    """One replay: the coordinator, its clock, and what is noted on the way."""

    def __init__(self, traffic: _Traffic, config: CoordinatorConfig, on_progress: Progress | None) -> None:
        self._traffic = traffic
        self._on_progress = on_progress
        self._clock = _LogTime(traffic.first)
        self._interval = config.cleanup_interval
        self._coordinator: SessionCoordinator[Any] = SessionCoordinator(
            config, clock=self._clock, on_close=self._note_end
        )
        self._live: dict[int, ManagedSession[Any]] = {}
        self._seconds, self._messages = array("d"), array("L")
        self._cleanups = self._rejected = 0
        self._peak, self._peak_at = 0, traffic.first
        # The most that were live in each slice of time, so far; and how many are live at most.
        self._slices = [0]
        self._at_most = 0

    def report(self) -> ReplayReport:
        """Replay everything, and say what happened."""
        with closing(self._coordinator):
            self._replay()
            # What has expired since the last cleanup was not live at the end.
            self._coordinator.cleanup_inactive_sessions()
            live_at_end = len(self._coordinator)
        stats = self._coordinator.stats()
        return ReplayReport(
            requests=len(self._traffic),
            clients=self._traffic.client_count,
            created=stats.created,
            expired=stats.removed[RemovalCause.IDLE] + stats.removed[RemovalCause.LIFETIME],
            rejected=self._rejected,
            evicted=stats.removed[RemovalCause.CAPACITY],
            live_at_end=live_at_end,
            peak_live=self._peak,
            peak_live_at=self._peak_at,
            cleanups=self._cleanups,
            first_at=self._traffic.first,
            last_at=self._traffic.last,
            session_seconds=Distribution.of(self._seconds),
            session_requests=Distribution.of(self._messages),
            live_over_time=tuple(self._slices),
        )

    def _replay(self) -> None:
        live, clock, stop = self._live, self._clock, self._clock.now
        for done, (instant, client) in enumerate(self._traffic):
            if instant >= stop:
                stop = self._pass_time(instant)
                if self._on_progress is not None:
                    self._on_progress(done, len(self._traffic))
            clock.now = instant
            session = live.get(client)
            if session is None:
                self._begin(client)
                continue
            try:
                session.record_message()
            except SessionNotFoundError:
                self._begin(client)

    def _begin(self, client: int) -> None:
        try:
            session = self._coordinator.create_session(session_id=str(client))
        except SessionLimitError:
            self._rejected += 1
            return
        session.record_message()
        self._live[client] = session
        # Some may have expired since that was counted, but no others have come.
        self._at_most += 1
        if self._at_most <= self._slices[-1]:
            return
        live = self._at_most = len(self._coordinator)
        self._slices[-1] = max(self._slices[-1], live)
        if live > self._peak:
            self._peak, self._peak_at = live, self._clock.now

    def _note_end(self, session: ManagedSession[Any], _cause: RemovalCause) -> None:
        del self._live[int(session.id)]
        metadata = session.metadata
        self._seconds.append(metadata.last_active - metadata.created_at)
        self._messages.append(metadata.message_count)

    def _pass_time(self, instant: float) -> float:
        """Do what is due up to `instant`, and say when something is due next."""
        first = self._traffic.first
        # Only creations add to those that are live, so a slice's most are live at its start or at a creation in it.
        while self._next_slice() <= instant:
            self._clock.now = self._next_slice()
            self._at_most = len(self._coordinator)
            self._slices.append(self._at_most)
        self._clock.now = instant
        due = int((instant - first) / self._interval)
        if due > self._cleanups:
            self._coordinator.cleanup_inactive_sessions()
            self._cleanups = due
        return min(first + (due + 1) * self._interval, self._next_slice())

    def _next_slice(self) -> float:
        first, last, number = self._traffic.first, self._traffic.last, len(self._slices)
        # A single instant is one slice.
        return first + number * (last - first) / SLICES if number < SLICES and first < last else math.inf
