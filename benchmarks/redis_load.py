"""What many processes and many callers cost a Redis server, and what it costs them beside SQLite."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from sessionkit import SessionCoordinator
from sessionkit.stores import Changes, RedisStore, SQLiteStore
from sessionkit.stores.base import SessionRecord, Touch

from . import rounds, stores
from .measure import Samples
from .redis_memory import TERM, TIMEOUT, data_of, processes, text_of
from .rounds import Costs, change, new_ids
from .servers import ALWAYS, EVERYSEC, one_server


class InstanceCosts(NamedTuple):
    """What depends on how many processes there are: seconds of the server's processor, and bytes."""

    heartbeat: float
    checkout: float
    """Of a session that is in another process's memory too, with a change."""
    memory: float


def many_instances(numbers: Sequence[int], turns: int) -> dict[int, InstanceCosts]:
    """What a heartbeat and a checkout cost by the number of processes, all of which live."""
    found: dict[int, InstanceCosts] = {}
    with one_server(*EVERYSEC) as servers:
        store = RedisStore(servers.where(), timeout=60.0, term=TERM)
        instances: list[str] = []
        for number in numbers:
            while len(instances) < number:
                instances.append(store.join(1.0, "host-0123456789:12345"))
            costs = Costs(servers)
            for _ in range(turns):
                ids, now = new_ids(100), time.time()
                for session_id in ids:
                    record = SessionRecord(session_id, None, text_of(1000), "active", now, now, 0, 3600.0, None)
                    store.create(record, instances[0])

                def check_out(session_id: str, now: float = now) -> None:
                    reply = store.attach(session_id, instances[1], lease=True)
                    assert reply is not None
                    store.release(session_id, instances[1], Changes(reply.record.version, text_of(1000), Touch(now)))

                costs.measure("heartbeat", lambda _: store.set_write_interval(instances[0], 1.0), [""] * 100)
                costs.measure("checkout", check_out, ids)
            used = servers.clients[0].memory_usage("{sessionkit}:instances", samples=0) or 0
            found[number] = InstanceCosts(_cpu(costs, "heartbeat"), _cpu(costs, "checkout"), used / number)
    return found


def _cpu(costs: Costs, what: str) -> float:
    return costs.of_each(what, lambda cost: cost.reading.cpu)


# ---- Many callers


class Load(NamedTuple):
    """What came of callers that call as fast as they can."""

    rate: float
    """Calls a second."""
    cpu: float
    """Seconds of the server's processor for each call."""
    busy: float
    """Which part of a core the server had."""
    seconds: Samples
    """Of some of the calls."""


def call_on(url: str, threads: int, begin: float, seconds: float) -> tuple[int, Samples]:
    """Check sessions out and change them from so many threads of this process, from an instant on."""
    durations: list[Samples] = [[] for _ in range(threads)]
    store = RedisStore(url, timeout=TIMEOUT, term=TERM)
    coordinator = SessionCoordinator[Any](rounds.CONFIG, store=store)
    work = change(coordinator)

    def run(number: int) -> None:
        ids = [coordinator.create_session(data=data_of(1000)).id for _ in range(50)]
        work(ids[0])
        assert time.time() < begin, "it took too long to begin"
        time.sleep(begin - time.time())
        while time.time() < begin + seconds:
            for session_id in ids:
                began = time.perf_counter()
                work(session_id)
                durations[number].append(time.perf_counter() - began)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    coordinator.close()
    store.close()
    every = [each for found in durations for each in found]
    return len(every), every[:: max(len(every) // 5000, 1)]


CALLERS = [(1, 1), (1, 4), (1, 16), (4, 1), (4, 4)]
"""Processes, and threads in each."""


def throughput(length: float) -> dict[tuple[int, int], Load]:
    """Checkouts with a change by processes and threads on this machine, which the server shares with them."""
    found: dict[tuple[int, int], Load] = {}
    with one_server(*EVERYSEC) as servers:
        for number, threads in CALLERS:
            with processes(number) as pool:
                begin = time.time() + 5 + number / 2
                futures: list[Future[tuple[int, Samples]]] = [
                    pool.submit(call_on, servers.where(), threads, begin, length) for _ in range(number)
                ]
                time.sleep(begin - time.time())
                before = servers.reading()
                time.sleep(length)
                reading = servers.between(before)
                counted = [future.result() for future in futures]
            # Those that ended in that time, which are about as many as were made.
            calls = reading.round_trips / 2
            every = [each for _, some in counted for each in some]
            found[number, threads] = Load(calls / length, reading.cpu / calls, reading.cpu / length, every)
    return found


# ---- Beside SQLite


def beside(number: int) -> dict[str, dict[str, Samples]]:
    """Microseconds of each call by store, in rounds in which all take turns."""
    found: dict[str, dict[str, Samples]] = {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        made: dict[str, Any] = {"SQLite": SQLiteStore(Path(directory) / "sessions.db")}
        for name, how in (("everysec", EVERYSEC), ("always", ALWAYS)):
            servers = stack.enter_context(one_server(*how))
            made[f"Redis, `appendfsync {name}`"] = RedisStore(servers.where(), timeout=TIMEOUT, term=TERM)
        made["no store"] = None
        coordinators = {
            name: stack.enter_context(SessionCoordinator[Any](stores.CONFIG, store=store))
            for name, store in made.items()
        }
        for index in range(number + 1):
            for name, coordinator in coordinators.items():
                for what, figure in stores.one_round(coordinator, index).items():
                    if index:
                        found.setdefault(what, {}).setdefault(name, []).append(figure)
    return found
