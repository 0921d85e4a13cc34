"""The memory of a Redis server that each session takes."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import redis

from sessionkit.stores import Changes, RedisStore
from sessionkit.stores.base import SessionRecord, Touch

from .measure import median
from .servers import LISTPACK, one_server

TIMEOUT = 10.0
"""Of a call of a store, in seconds: a server that is being measured may be held up by others on the machine."""
TERM = 3600.0
"""Of instances, in seconds: so long that no heartbeat comes between."""


@dataclass(frozen=True)
class Kind:
    """One kind of session whose memory is measured."""

    title: str = ""
    size: int = 1_000
    """Bytes of data."""
    attached: bool = True
    named: bool = False
    saved: bool = False
    web: bool = False
    """With an id of 64 characters, as those of visitors are."""
    many: bool = False
    """Ten times as many of them."""
    settings: tuple[str, ...] = ()


WEB = Kind("the same, a web visitor's: its id has 64 characters, not 43", saved=True, web=True)
KINDS = [
    Kind("100 bytes of data, in nobody's memory", 100, attached=False),
    Kind("100 bytes, in one process's memory", 100),
    Kind("the same, with `hash-max-listpack-value` 2048", 100, settings=LISTPACK),
    Kind("1 KB, in nobody's memory", attached=False),
    Kind("1 KB, in one process's memory"),
    Kind("the same, ten times as many sessions", many=True),
    Kind("the same, as many as before, with a name", named=True),
    Kind("the same, without a name, saved since it was created", saved=True),
    WEB,
    Kind("the same, with `hash-max-listpack-value` 2048", saved=True, web=True, settings=LISTPACK),
    Kind("10 KB, in nobody's memory", 10_000, attached=False),
    Kind("10 KB, in one process's memory", 10_000),
]


class Memory(NamedTuple):
    """Bytes for each session."""

    size: int
    """Of its data."""
    total: float
    session: float
    """The session's own key, without its data."""
    due: float
    ids: float
    names: float

    @property
    def tables(self) -> float:
        """The rest: the server's tables of all keys, and of when they expire."""
        return self.total - self.size - self.session - self.due - self.ids - self.names


def data_of(size: int) -> dict[str, str]:
    """Data that take so many bytes as JSON."""
    return {"text": "x" * (size - len('{"text":""}'))}


def text_of(size: int) -> str:
    """The same as JSON."""
    return '{"text":"' + data_of(size)["text"] + '"}'


def fill(where: str | redis.RedisCluster, number: int, kind: Kind) -> None:
    """Create so many sessions through a store; who attached them never leaves."""
    store = RedisStore(where, timeout=TIMEOUT, term=TERM)
    instance, now, data = store.join(1.0, "benchmark"), time.time(), text_of(kind.size)
    ids: list[str] = []
    for _ in range(number):
        session_id = secrets.token_hex(32) if kind.web else secrets.token_urlsafe(32)
        name = f"name-{secrets.token_hex(8)}" if kind.named else None
        store.create(SessionRecord(session_id, name, data, "active", now, now, 0, 3600.0, None), instance)
        if kind.saved:
            store.save(session_id, Changes(1, data, Touch(now)))
        ids.append(session_id)
    if not kind.attached:
        store.detach(ids, instance)


def processes(number: int) -> ProcessPoolExecutor:
    """So many other processes."""
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))


def fill_at_once(url: str, number: int, kind: Kind) -> int:
    """The same by as many processes as there are cores; how many sessions that made."""
    workers = os.cpu_count() or 1
    with processes(workers) as pool:
        for future in [pool.submit(fill, url, number // workers, kind) for _ in range(workers)]:
            future.result()
    return number // workers * workers


def memory_of(kind: Kind, number: int) -> Memory:
    """How many bytes of the server's memory each of so many sessions takes."""
    with one_server(*kind.settings) as servers:
        # So that it has the script.
        fill_at_once(servers.where(), os.cpu_count() or 1, kind)
        servers.forget_results()
        before = servers.memory()
        number = fill_at_once(servers.where(), number, kind)
        servers.forget_results()
        total = servers.memory() - before
        client, base = servers.clients[0], "{sessionkit}:"
        some = [key for key, _ in zip(client.scan_iter(f"{base}s:*", count=1000), range(1000), strict=False)]
        own = median([client.memory_usage(key, samples=0) or 0 for key in some])
        due, ids, names = (
            (client.memory_usage(base + key, samples=0) or 0) / number for key in ("due", "ids", "names")
        )
        return Memory(kind.size, total / number, own - kind.size, due, ids, names)


def memory(number: int, many: int) -> dict[Kind, Memory]:
    """The memory of every kind of session, with so many of them at a time."""
    return {kind: memory_of(kind, many if kind.many else number) for kind in KINDS}
