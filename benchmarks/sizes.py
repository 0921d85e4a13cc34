"""What many sessions need: nothing here is measured. It is simulated how they spread, and calculated what they take."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from sessionkit.stores.redis.cluster import CLUSTER_PARTITIONS, Partitions

# ---- How sessions spread over a cluster: simulated

CLUSTERS = (1, 3, 6, 12, 16, 32, 64, 100)


class Spread(NamedTuple):
    """How many partitions, and how many sessions, the servers of a cluster have."""

    fewest: int
    most: int
    """Of partitions."""
    fullest: float
    """Of the server with most sessions, relative to the mean."""


def sessions_by_partition(number: int) -> Counter[str]:
    """How many of so many sessions with random ids each partition has."""
    partitions = Partitions("sessionkit", CLUSTER_PARTITIONS)
    found = Counter(partitions.of(secrets.token_urlsafe(32)) for _ in range(number))
    assert len(found) == CLUSTER_PARTITIONS
    return found


def spread(servers: int, by_partition: Counter[str]) -> Spread:
    """Over servers each of which has an equal range of slots, as `redis-cli --cluster create` makes them."""
    width = REDIS_CLUSTER_HASH_SLOTS / servers
    partitions: Counter[int] = Counter(dict.fromkeys(range(servers), 0))
    sessions: Counter[int] = Counter()
    for base, number in by_partition.items():
        server = min(int((key_slot(base.encode()) + 0.5) // width), servers - 1)
        partitions[server] += 1
        sessions[server] += number
    mean = sum(sessions.values()) / servers
    return Spread(min(partitions.values()), max(partitions.values()), max(sessions.values()) / mean)


# ---- What so many sessions need: calculated

SIZES = (1_000_000, 100_000_000, 1_000_000_000)
REQUEST_EVERY = 300.0
"""Seconds between two requests of one session."""
WRITING = 0.5
"""The part of all requests that change the session's data; the others read."""
LIFE = 7200.0
"""Seconds from a session's creation until it has expired."""
CLEANUP_EVERY = 300.0
"""Seconds."""
RENEWALS = 3
"""Of a process in each of its terms."""
CPU_SHARE = 0.5
"""Of its one core, a server is to use no more than this on the average."""
MEMORY, MEMORY_SHARE = 25e9, 0.6
"""Of a server, and how much of that is to be in use."""


@dataclass(frozen=True)
class Figures:
    """What was measured. By the name of a piece of work; seconds of a server's processor, or bytes."""

    memory: float
    """Of a session."""
    cpu: Callable[[str], float]
    """On one server."""
    cpu_in_cluster: Callable[[str], float]
    """Of all servers of a cluster together."""
    received: Callable[[str], float]
    sent: Callable[[str], float]
    appended: Callable[[str], float]
    kept: Callable[[str], float]
    """Times the seconds for which it is kept."""
    heartbeat: Callable[[float], float]
    """Seconds for one heartbeat at one partition, beside so many processes."""


@dataclass(frozen=True)
class Work:
    """The pieces of work by name."""

    create: str
    read: str
    write: str
    flush: str
    expire: str
    nothing_due: str


class Needs(NamedTuple):
    """What so many sessions need, without replicas."""

    partitions: int
    requests: float
    """A second; so are all rates."""
    touches: float
    created: float
    processes: float
    heartbeats: float
    memory: float
    cores: float
    """For the sessions."""
    heartbeat_cores: float
    cleanup_cores: float
    received: float
    sent: float
    appended: float

    @property
    def servers_for_memory(self) -> int:
        """How many, for the memory alone."""
        return math.ceil(self.memory / (MEMORY * MEMORY_SHARE))

    @property
    def servers_for_cpu(self) -> int:
        """How many, for the work alone."""
        return math.ceil((self.cores + self.heartbeat_cores + self.cleanup_cores) / CPU_SHARE)

    @property
    def servers(self) -> int:
        """How many, if a store may have as many."""
        return max(self.servers_for_memory, self.servers_for_cpu)


def needs(number: int, figures: Figures, work: Work, in_memory: int, term: float) -> Needs:
    """What so many sessions need, with so many of them in each process's memory, and terms of so many seconds."""
    requests = number / REQUEST_EVERY
    # Each session, whatever was done with it, once in a run.
    touches = number / max(CLEANUP_EVERY, REQUEST_EVERY)
    created = number / LIFE
    processes = number / in_memory
    rates = {
        work.read: requests * (1 - WRITING),
        work.write: requests * WRITING,
        work.flush: touches,
        work.create: created,
        work.expire: created,
    }

    def total(figure: Callable[[str], float]) -> float:
        return sum(rate * figure(what) for what, rate in rates.items())

    memory = number * figures.memory + total(figures.kept)
    on_one = Needs(
        1,
        requests,
        touches,
        created,
        processes,
        processes * RENEWALS / term,
        memory,
        total(figures.cpu),
        processes * RENEWALS / term * figures.heartbeat(processes),
        processes / CLEANUP_EVERY * figures.cpu(work.nothing_due),
        total(figures.received),
        total(figures.sent),
        total(figures.appended),
    )
    if on_one.servers == 1:
        return on_one
    heartbeats = on_one.heartbeats * CLUSTER_PARTITIONS
    return on_one._replace(
        partitions=CLUSTER_PARTITIONS,
        heartbeats=heartbeats,
        cores=total(
            lambda what: figures.cpu_in_cluster(what) if what in (work.flush, work.expire) else figures.cpu(what)
        ),
        heartbeat_cores=heartbeats * figures.heartbeat(processes),
        cleanup_cores=processes / CLEANUP_EVERY * figures.cpu_in_cluster(work.nothing_due),
    )
