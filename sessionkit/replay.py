"""Replaying requests: what a coordinator's settings would have done with them."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise, starmap
from operator import le
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
    """Requests that were refused because there was no room for their session."""
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
    Requests are put in time order first, those of the same instant in the order they came in. Cleanup runs every
    `cleanup_interval` seconds after the first request; while no session is live it is only counted.

    `on_progress(done, total)` is called now and then with the number of requests. Raises `ValueError` if there are no
    entries. Memory: 16 bytes a request, two numbers a session, the clients, and the live sessions; if the entries are
    not in time order, one more number a request.
    """
    traffic = _Traffic(entries, key)
    if not traffic.instants:
        raise ValueError("there is nothing to replay: no entries")
    return _Run(traffic, config, on_progress).report()


class _Traffic:
    """All requests in time order, as two columns: instant, and number of the client."""

    def __init__(self, entries: Iterable[Entry], key: Key) -> None:
        self.instants = array("d")
        self._clients = array("L")
        numbers: dict[Hashable, int] = {}
        add_instant, add_client, number = self.instants.append, self._clients.append, numbers.setdefault
        by_address = key == "address"
        for entry in entries:
            add_instant(entry[0])
            add_client(number(entry[1] if by_address else entry[1:], len(numbers)))
        self.client_count = len(numbers)
        self.first, self.last = min(self.instants, default=0.0), max(self.instants, default=0.0)

    def __len__(self) -> int:
        return len(self.instants)

    def __iter__(self) -> Iterator[tuple[float, int]]:
        instants, clients = self.instants, self._clients
        if all(starmap(le, pairwise(instants))):
            return zip(instants, clients, strict=True)
        order = sorted(range(len(instants)), key=instants.__getitem__)
        return zip(map(instants.__getitem__, order), map(clients.__getitem__, order), strict=True)


class _Run:
    """One replay: the coordinator, its clock, and what is noted on the way."""

    def __init__(self, traffic: _Traffic, config: CoordinatorConfig, on_progress: Progress | None) -> None:
        self._traffic = traffic
        self._on_progress = on_progress
        self._now = traffic.first
        self._interval = config.cleanup_interval
        self._slice = (traffic.last - traffic.first) / SLICES
        self._coordinator: SessionCoordinator[Any] = SessionCoordinator(
            config, clock=lambda: self._now, on_close=self._note_end
        )
        self._live: dict[int, ManagedSession[Any]] = {}
        self._seconds, self._messages = array("d"), array("L")
        self._cleanups = self._rejected = 0
        self._peak, self._peak_at = 0, traffic.first
        self._slices = [0] * (SLICES if self._slice else 1)
        self._slice_number = 0
        self._next_cleanup = self._next_slice = self._next_stop = traffic.first
        self._plan()

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
        live = self._live
        for done, (instant, client) in enumerate(self._traffic):
            if instant >= self._next_stop:
                self._pass_time(instant)
                if self._on_progress is not None:
                    self._on_progress(done, len(self._traffic))
            self._now = instant
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
        live = len(self._coordinator)
        self._note_live(live)
        if live > self._peak:
            self._peak, self._peak_at = live, self._now

    def _note_live(self, live: int) -> None:
        # Only a creation and the passing of time change how many are live, so noting it at both misses no maximum.
        if live > self._slices[self._slice_number]:
            self._slices[self._slice_number] = live

    def _note_end(self, session: ManagedSession[Any], _cause: RemovalCause) -> None:
        del self._live[int(session.id)]
        metadata = session.metadata
        self._seconds.append(metadata.last_active - metadata.created_at)
        self._messages.append(metadata.message_count)

    def _pass_time(self, instant: float) -> None:
        while self._next_stop <= instant:
            self._now = self._next_stop
            if self._next_cleanup <= self._now:
                self._coordinator.cleanup_inactive_sessions()
                self._cleanups += 1
            if self._next_slice <= self._now:
                self._slice_number += 1
            live = len(self._coordinator)
            self._note_live(live)
            if not live:
                self._skip_to(instant)
            self._plan()

    def _skip_to(self, instant: float) -> None:
        # With nobody live nothing happens until the next request, though that may be decades away.
        elapsed = instant - self._traffic.first
        self._cleanups = max(self._cleanups, int(elapsed // self._interval))
        self._slice_number = max(self._slice_number, min(int(elapsed // self._slice), SLICES - 1))

    def _plan(self) -> None:
        first = self._traffic.first
        self._next_cleanup = first + (self._cleanups + 1) * self._interval
        self._next_slice = first + (self._slice_number + 1) * self._slice
        if self._slice_number + 1 == len(self._slices):
            self._next_slice = math.inf
        self._next_stop = min(self._next_cleanup, self._next_slice)
