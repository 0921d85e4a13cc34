"""Replay requests on a coordinator, to see what its settings would have done with them."""

from __future__ import annotations

import math
import statistics
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from operator import le
from typing import Any, Literal

from ... import (
    CoordinatorConfig,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionLimitError,
    SessionNotFoundError,
)
from ...util.clock import is_past
from .accesslog import Entry

Key = Literal["address", "address+agent"]
"""What two requests of the same client have in common."""

Progress = Callable[[int, int], object]
"""Called as `progress(done, total)`."""

SLICES = 400
"""How many equal slices of time `ReplayReport.live_over_time` has."""

STEPS = 400
"""Progress is reported at least this many times, if there are as many requests."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """How one figure is distributed over all sessions."""

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
    """What the settings did with the requests. Instants and durations are seconds on the clock of the log.

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
    """The first instant at which so many were live."""
    cleanups: int
    first_at: float
    last_at: float
    session_seconds: Distribution
    """How long the sessions were used: last activity minus creation."""
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
    """Drive a coordinator with requests, on the clock of the log, and report what it did.

    Each client has a session, and each request records one message in it; a client whose session has ended gets a new
    one. The requests are sorted by time first; those of one instant stay in the order of their lines. If several
    sessions were last active at the same instant, any of them may be evicted. Cleanup is due every `cleanup_interval`
    seconds after the first request. Nothing happens between two requests: of the cleanups that are due there only one
    is run, and all are counted.

    `on_progress(done, total)` is called now and then with the number of requests. Raises `ValueError` if there are no
    entries. Memory: 16 bytes a request, four numbers a session, the clients, and the live sessions; if the entries are
    not in time order, one more number a request while they are sorted.
    """
    return _Run(_Traffic(entries, key), config, on_progress).report()


class _Traffic:
    """All requests in time order, as two columns: the instant, and the number of the client."""

    def __init__(self, entries: Iterable[Entry], key: Key) -> None:
        instants, clients = array("d"), array("L")
        numbers: defaultdict[str | tuple[str, str], int] = defaultdict(count().__next__)
        for instant, address, agent in entries:
            instants.append(instant)
            clients.append(numbers[address if key == "address" else (address, agent)])
        if not instants:
            raise ValueError("there is nothing to replay: no entries")
        if not all(map(le, instants, islice(instants, 1, None))):
            order = sorted(range(len(instants)), key=instants.__getitem__)
            instants = array("d", map(instants.__getitem__, order))
            clients = array("L", map(clients.__getitem__, order))
        self.instants = instants
        self._clients = clients
        self.client_count = len(numbers)
        self.first, self.last = instants[0], instants[-1]

    def __len__(self) -> int:
        return len(self.instants)

    def __iter__(self) -> Iterator[tuple[float, int]]:
        return zip(self.instants, self._clients, strict=True)

    def index_of(self, instant: float) -> int:
        """How many requests are earlier than this instant."""
        return bisect_left(self.instants, instant)


class _LogTime:
    """The coordinator's clock: it shows the instant of the request that is being replayed."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class _Run:
    """One replay: the coordinator, its clock, and what is counted on the way."""

    def __init__(self, traffic: _Traffic, config: CoordinatorConfig, on_progress: Progress | None) -> None:
        self._traffic = traffic
        self._on_progress = on_progress
        self._clock = _LogTime(traffic.first)
        self._config = config
        self._coordinator: SessionCoordinator[Any] = SessionCoordinator(
            config, clock=self._clock, on_close=self._note_end
        )
        self._live: dict[int, ManagedSession[Any]] = {}
        self._population = _Population()
        self._seconds, self._messages = array("d"), array("L")
        self._cleanups = self._rejected = 0

    def report(self) -> ReplayReport:
        """Replay all requests, and report what the coordinator did."""
        with closing(self._coordinator):
            self._replay()
            # Sessions that expired since the last cleanup were not live at the end.
            self._coordinator.cleanup_inactive_sessions()
            live_at_end = len(self._coordinator)
        stats = self._coordinator.stats()
        peak, peak_at = self._population.peak()
        first, last = self._traffic.first, self._traffic.last
        return ReplayReport(
            requests=len(self._traffic),
            clients=self._traffic.client_count,
            created=stats.created,
            expired=stats.removed[RemovalCause.IDLE] + stats.removed[RemovalCause.LIFETIME],
            rejected=self._rejected,
            evicted=stats.removed[RemovalCause.CAPACITY],
            live_at_end=live_at_end,
            peak_live=peak,
            peak_live_at=peak_at,
            cleanups=self._cleanups,
            first_at=first,
            last_at=last,
            session_seconds=Distribution.of(self._seconds),
            session_requests=Distribution.of(self._messages),
            live_over_time=self._population.over_time(first, last, SLICES),
        )

    def _replay(self) -> None:
        live, clock, total = self._live, self._clock, len(self._traffic)
        requests = iter(self._traffic)
        done = 0
        while done < total:
            if self._on_progress is not None:
                self._on_progress(done, total)
            due = self._clean_up(self._traffic.instants[done])
            upto = min(self._traffic.index_of(due), done + total // STEPS)
            # One request at least: where instants are huge, the next cleanup may be due at this very one, rounded.
            upto = max(upto, done + 1)
            for clock.now, client in islice(requests, upto - done):
                session = live.get(client)
                if session is not None:
                    try:
                        session.record_message()
                    except SessionNotFoundError:
                        pass
                    else:
                        continue
                self._begin(client)
            done = upto

    def _begin(self, client: int) -> None:
        try:
            session = self._coordinator.create_session(session_id=str(client))
        except SessionLimitError:
            self._rejected += 1
            return
        session.record_message()
        self._live[client] = session
        self._population.create(self._clock.now)

    def _note_end(self, session: ManagedSession[Any], cause: RemovalCause) -> None:
        del self._live[int(session.id)]
        metadata = session.metadata
        self._seconds.append(metadata.last_active - metadata.created_at)
        self._messages.append(metadata.message_count)
        if cause is RemovalCause.IDLE:
            self._population.expire(metadata.last_active + self._config.session_timeout)
        elif cause is RemovalCause.LIFETIME:
            self._population.expire(metadata.created_at + (self._config.max_lifetime or math.inf))
        elif cause is RemovalCause.CAPACITY:
            self._population.evict(self._clock.now)

    def _clean_up(self, instant: float) -> float:
        """Run a cleanup if one is due at this instant; the instant at which the next one is."""
        first, interval = self._traffic.first, self._config.cleanup_interval
        due = int((instant - first) / interval)
        if due > self._cleanups:
            self._clock.now = instant
            self._coordinator.cleanup_inactive_sessions()
            self._cleanups = due
        return first + (due + 1) * interval


class _Population:
    """How many sessions were live at which instant, told when the replay is over. Memory: two numbers a session.

    Creations are noted in time order. A session that leaves before its time makes room for one that is created at the
    same instant, so it is not live at that instant; one that expires is live at the last instant of its time.
    """

    def __init__(self) -> None:
        self._created = array("d")
        self._expired = array("d")
        self._evicted = array("d")

    def create(self, now: float) -> None:
        """A session is live from this instant on."""
        self._created.append(now)

    def expire(self, end: float) -> None:
        """A session is live up to and including this instant, at which its time runs out."""
        self._expired.append(end)

    def evict(self, now: float) -> None:
        """A session is live up to this instant, and no more at it."""
        self._evicted.append(now)

    def peak(self) -> tuple[int, float]:
        """The most that were live at once, and the first instant at which they were. At least one was created."""
        instants = sorted(set(self._created))
        live, earliest = max(zip(self._live_at(instants), (-instant for instant in instants), strict=True))
        return live, -earliest

    def over_time(self, first: float, last: float, slices: int) -> tuple[int, ...]:
        """The most that were live at once in each of so many equal slices of the time from `first` to `last`.

        A single instant is one slice.
        """
        starts = [first + number * (last - first) / slices for number in range(slices if first < last else 1)]
        # Only creations raise the number, so a slice has its maximum at its start or at a creation.
        instants = sorted({*self._created, *starts})
        most = [0] * len(starts)
        for instant, live in zip(instants, self._live_at(instants), strict=True):
            number = bisect_right(starts, instant) - 1
            most[number] = max(most[number], live)
        return tuple(most)

    def _live_at(self, instants: list[float]) -> Iterator[int]:
        """How many were live at each of these instants, which are in time order."""
        ends, evictions = sorted(self._expired), sorted(self._evicted)
        created = expired = evicted = 0
        for now in instants:
            while created < len(self._created) and self._created[created] <= now:
                created += 1
            while expired < len(ends) and is_past(ends[expired], now):
                expired += 1
            while evicted < len(evictions) and evictions[evicted] <= now:
                evicted += 1
            yield created - expired - evicted
