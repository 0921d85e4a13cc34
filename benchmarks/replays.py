"""What a Redis server can do at most: what coordinators send is noted, and sent again as fast as the server takes it.

A server that one caller asks spends most of its time on waking up, and how much that is changes from minute to minute.
One that has much to do does not.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import redis
from redis.connection import Connection, ConnectionPool

from sessionkit.stores.redis.cluster import CLUSTER_PARTITIONS

from .measure import median
from .redis_memory import Kind, fill, fill_at_once
from .rounds import SIZE, Costs, one_round
from .servers import ALWAYS, EVERYSEC, LISTPACK, Servers, cluster_of, one_server

CONNECTIONS = 32


class _Recorder(Connection):
    """A connection that notes what is sent."""

    sent: list[bytes] = []  # noqa: RUF012  of all connections together

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        data = command if isinstance(command, bytes) else b"".join(command)
        # And nothing of what a client says of itself.
        if any(name in data[:32] for name in (b"EVALSHA", b"SCRIPT", b"ECHO")):
            self.sent.append(data)
        return super().send_packed_command(command, check_health)


class Step(NamedTuple):
    """What was sent for one piece of work, or between two."""

    what: str | None
    pieces: list[list[bytes]]
    """Commands; those of one piece come one after the other."""
    number: int
    """Of pieces of work."""


class Recording(Costs):
    """Notes what is sent, not what that costs."""

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.steps: list[Step] = []
        _Recorder.sent.clear()

    def measure(self, what: str, call: Callable[[str], object], arguments: Sequence[str], number: int = 0) -> None:
        self.steps.append(Step(None, [_taken()], 0))
        pieces = []
        for argument in arguments:
            call(argument)
            pieces.append(_taken())
        if number:
            # Each by itself.
            pieces = [[command] for command in chain.from_iterable(pieces)]
        self.steps.append(Step(what, pieces, number or len(pieces)))

    def client(self) -> redis.Redis:
        return redis.Redis(connection_pool=ConnectionPool(_Recorder, port=self.servers.ports[0], protocol=2))


def _taken() -> list[bytes]:
    found = list(_Recorder.sent)
    _Recorder.sent.clear()
    return found


def recorded(calls: int, in_cluster: bool) -> list[Step]:
    """What coordinators send in one round, to one server, or to a cluster, of one: so that it has all partitions."""
    with cluster_of(1) if in_cluster else one_server() as servers:
        recording = Recording(servers)
        if in_cluster:
            url = f"redis://127.0.0.1:{servers.ports[0]}"
            servers.where = lambda: redis.RedisCluster.from_url(url, connection_class=_Recorder, protocol=2)
        else:
            servers.where = recording.client
        one_round(recording, calls, SIZE)
        return recording.steps


class Load(NamedTuple):
    """What a server did."""

    rate: float
    """Pieces of work a second."""
    cpu: float
    """Seconds of its processor for each."""
    busy: float
    """Which part of a core it had."""


@dataclass
class Loads:
    """Of each piece of work, what a server did in each round."""

    rounds: dict[str, list[Load]] = field(default_factory=dict)

    def cpu(self, what: str) -> float:
        """Seconds of its processor: the median."""
        return median([load.cpu for load in self.rounds[what]])

    def busy(self, what: str) -> float:
        """Which part of a core it had: the median."""
        return median([load.busy for load in self.rounds[what]])

    def against(self, others: Loads, what: str) -> float:
        """The median of the ratios within each round."""
        pairs = zip(self.rounds[what], others.rounds[what], strict=True)
        return median([ours.cpu / theirs.cpu for ours, theirs in pairs])


def replay(servers: Servers, steps: list[Step], loads: Loads) -> None:
    """Send all of it again to a server, or the only one of a cluster."""
    servers.forget_instances()
    with _sockets(servers.ports[0]) as connections:
        for step in steps:
            if step.what is None:
                for command in step.pieces[0]:
                    connections[0].sendall(command)
                    _answer(connections[0])
                continue
            if not any(step.pieces):
                continue
            before, began = _cpu(servers), time.perf_counter()
            _send(connections, step.pieces)
            seconds, cpu = time.perf_counter() - began, _cpu(servers) - before
            load = Load(step.number / seconds, cpu / step.number, cpu / seconds)
            loads.rounds.setdefault(step.what, []).append(load)


def _cpu(servers: Servers) -> float:
    info = servers.clients[0].info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


@contextmanager
def _sockets(port: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        connections = []
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.append(connection)
        yield connections


def _send(connections: list[socket.socket], pieces: list[list[bytes]]) -> None:
    """All pieces, spread over all connections, each of which always has one command under way."""
    busy = []
    for index, connection in enumerate(connections):
        queue = chain.from_iterable(pieces[index :: len(connections)])
        if command := next(queue, None):
            connection.sendall(command)
            busy.append((connection, queue))
    while busy:
        still = []
        for connection, queue in busy:
            answer = _answer(connection)
            assert not answer.startswith(b"-"), answer
            if command := next(queue, None):
                connection.sendall(command)
                still.append((connection, queue))
        busy = still


def _answer(connection: socket.socket) -> bytes:
    answer = connection.recv(1 << 20)
    # A server sends each answer whole, in one piece or more.
    while not answer.endswith(b"\r\n"):
        answer += connection.recv(1 << 20)
    return answer


SETTINGS: dict[str, tuple[str, ...]] = {
    "`appendfsync everysec`": EVERYSEC,
    "`appendonly no`": (),
    "`appendfsync always`": ALWAYS,
    "`hash-max-listpack-value` 2048": (*EVERYSEC, *LISTPACK),
    "ten times as many sessions": EVERYSEC,
}
ADVISED, *_, MANY = SETTINGS


def loads(calls: int, rounds: int, number: int, many: int) -> dict[str, Loads]:
    """By the server's settings, which take turns, beside so many other sessions, or that many."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(one_server(*how)) for name, how in SETTINGS.items()}
        found = {name: Loads() for name in servers}
        for name, each in servers.items():
            fill_at_once(each.where(), many if name == MANY else number, Kind(size=SIZE))
        for _ in range(rounds):
            steps = recorded(calls, in_cluster=False)
            for name, each in servers.items():
                replay(each, steps, found[name])
    return found


def in_a_cluster(calls: int, rounds: int) -> Loads:
    """With the partitions of a cluster, all on one server."""
    found = Loads()
    with cluster_of(1, *EVERYSEC) as servers:
        fill(servers.where(), 150 * CLUSTER_PARTITIONS, Kind(size=SIZE))
        for _ in range(rounds):
            replay(servers, recorded(calls, in_cluster=True), found)
    return found
