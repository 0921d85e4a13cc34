"""What coordinators with a Redis store ask of the server: each call by itself, in rounds."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis

from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import RedisStore
from sessionkit.stores.base import SessionRecord
from sessionkit.stores.redis.cluster import CLUSTER_PARTITIONS
from sessionkit.testing import ManualClock
from sessionkit.wsgi import SessionMiddleware

from .measure import Samples, median
from .redis_memory import TERM, TIMEOUT, Kind, data_of, fill, fill_at_once
from .servers import EVERYSEC, Reading, Servers, cluster_of, one_server

CONFIG = CoordinatorConfig(max_active_sessions=None)
CROWDED = CoordinatorConfig(max_active_sessions=1, on_full="passivate")


class Cost(NamedTuple):
    """What a number of calls cost."""

    number: int
    seconds: Samples
    """Of each call, or of each piece of work where one call does many."""
    reading: Reading
    kept: int
    """Bytes of memory for what the server remembers for a while, in case that nobody heard it."""


@dataclass
class Costs:
    """Of each piece of work, what it cost in each round."""

    servers: Servers
    rounds: dict[str, list[Cost]] = field(default_factory=dict)

    def measure(self, what: str, call: Callable[[str], object], arguments: Sequence[str], number: int = 0) -> None:
        """Call with each argument. `number`: how many pieces of work that is, if not one for each."""
        self.servers.forget_results()
        seconds: Samples = []
        before = self.servers.reading()
        for argument in arguments:
            began = time.perf_counter()
            call(argument)
            seconds.append(time.perf_counter() - began)
        reading = self.servers.between(before)
        kept = self.servers.forget_results()
        if number:
            seconds = [sum(seconds) / number]
        self.rounds.setdefault(what, []).append(Cost(number or len(arguments), seconds, reading, kept))

    def client(self) -> redis.Redis:
        """For what is asked without a store."""
        return self.servers.clients[0]

    def of_each(self, what: str, figure: Callable[[Cost], float]) -> float:
        """A figure of one piece of work: the median over the rounds."""
        return median([figure(cost) / cost.number for cost in self.rounds[what]])

    def round_trips(self, what: str) -> float:
        """How often the server was asked, and its answer waited for."""
        return self.of_each(what, lambda cost: cost.reading.round_trips)

    def commands(self, what: str) -> float:
        """How many commands the server ran, those that the script calls included."""
        return self.of_each(what, lambda cost: cost.reading.commands.total())

    def received(self, what: str) -> float:
        """Bytes to the server."""
        return self.of_each(what, lambda cost: cost.reading.received)

    def sent(self, what: str) -> float:
        """Bytes from the server."""
        return self.of_each(what, lambda cost: cost.reading.sent)

    def appended(self, what: str) -> float:
        """Bytes of the append-only file."""
        return self.of_each(what, lambda cost: cost.reading.appended)

    def kept(self, what: str) -> float:
        """Bytes that are remembered for a while."""
        return self.of_each(what, lambda cost: cost.kept)

    def latency(self, what: str, share: float) -> float:
        """Seconds within which this share of all calls was done."""
        seconds = sorted(itertools.chain.from_iterable(cost.seconds for cost in self.rounds[what]))
        return seconds[min(int(len(seconds) * share), len(seconds) - 1)]

    def count(self, what: str) -> int:
        """Of how many calls the time was taken."""
        return sum(len(cost.seconds) for cost in self.rounds[what])


@contextmanager
def coordinator_on(
    servers: Servers, prefix: str = "sessionkit", config: CoordinatorConfig = CONFIG, clock: ManualClock | None = None
) -> Iterator[SessionCoordinator[Any]]:
    """A coordinator as another process would have it: with a store of its own."""
    store = RedisStore(servers.where(), prefix=prefix, timeout=TIMEOUT, term=TERM)
    coordinator = SessionCoordinator[Any](config, store=store, clock=clock)
    try:
        yield coordinator
    finally:
        coordinator.close()
        store.close()


def new_ids(number: int) -> list[str]:
    """Ids as those that coordinators make."""
    return [secrets.token_urlsafe(32) for _ in range(number)]


def look(coordinator: SessionCoordinator[Any]) -> Callable[[str], None]:
    """A checkout that changes nothing."""

    def work(session_id: str) -> None:
        with coordinator.checkout(session_id):
            pass

    return work


def change(coordinator: SessionCoordinator[Any]) -> Callable[[str], None]:
    """A checkout that changes the data."""

    def work(session_id: str) -> None:
        with coordinator.checkout(session_id) as session:
            session.data["n"] = session.data.get("n", 0) + 1

    return work


CREATE, CREATE_NAMED = "`create_session`", "`create_session`, with a name"
GET, TOUCH = "`get_session`, in memory", "`touch_session`"
FLUSH, NOTHING_DUE = "cleanup, each session touched since the last one", "cleanup with nothing due"
LOOK, CHANGE = "`checkout`, nothing changed", "`checkout`, data changed"
CHANGE_SHARED = "`checkout`, data changed, in another process's memory too"
SWITCH, ROTATE, CLOSE = "`switch_session`, by name", "`rotate_session`", "`close_session`"
RESTORE = "`get_session`, not in memory"
SWAP = '`get_session`, not in memory, which is full (`on_full="passivate"`)'
EXPIRE_HERE, EXPIRE_ALONE = "expiry, of a session in memory", "expiry, of one in nobody's memory"
HEARTBEAT, JOIN = "heartbeat of a process", "a process comes and goes"
PAGE = "listing or restoring, a page of 100"
WEB_NEW, WEB_NOTHING = "web request, the visitor's first", "web request that never looks at its session"
WEB_READ, WEB_WRITE = "web request that reads", "web request that writes"
ECHO = "`ECHO`, what any command costs"


def one_round(costs: Costs, calls: int, size: int) -> None:
    """Each piece of work so many times, with sessions that have so many bytes of data."""
    costs.servers.forget_instances()
    _single(costs, calls, size)
    _moving(costs, calls, size)
    _expiring(costs, calls, size)
    _owning(costs, calls)
    _in_the_web(costs, calls, size)


def _single(costs: Costs, calls: int, size: int) -> None:
    data, ids, names = data_of(size), new_ids(calls), [f"name {secrets.token_hex(8)}" for _ in range(calls)]
    with coordinator_on(costs.servers) as here, coordinator_on(costs.servers) as there:

        def clean_up(_: str) -> None:
            here.cleanup_inactive_sessions()

        here.create_session(data=data)
        costs.measure(CREATE, lambda session_id: here.create_session(session_id=session_id, data=data), ids)
        costs.measure(GET, here.get_session, ids)
        costs.measure(TOUCH, here.touch_session, ids)
        costs.measure(FLUSH, clean_up, [""], calls)
        costs.measure(NOTHING_DUE, clean_up, [""] * (calls // 10))
        costs.measure(LOOK, look(here), ids)
        costs.measure(CHANGE, change(here), ids)
        for session_id in ids:
            there.get_session(session_id)
        costs.measure(CHANGE_SHARED, change(there), ids)
        here.cleanup_inactive_sessions()
        # Here they are newer by now.
        costs.measure(ROTATE, here.rotate_session, ids[: calls // 2])
        here.cleanup_inactive_sessions()
        costs.measure(CLOSE, there.close_session, ids[calls // 2 :])
    with coordinator_on(costs.servers) as here:
        here.create_session(data=data)
        costs.measure(CREATE_NAMED, lambda name: here.create_session(name, data=data), names)
        costs.measure(SWITCH, here.switch_session, names)
        for name in names:
            here.close_session(here.switch_session(name).id)


def _moving(costs: Costs, calls: int, size: int) -> None:
    ids = new_ids(calls)
    with coordinator_on(costs.servers, config=CROWDED) as here, coordinator_on(costs.servers) as there:
        for session_id in ids:
            here.create_session(session_id=session_id, data=data_of(size))
        # So that it has joined.
        there.cleanup_inactive_sessions()
        costs.measure(SWAP, here.get_session, ids[: calls // 2])
        costs.measure(RESTORE, there.get_session, ids[calls // 2 :])
        for session_id in ids:
            there.close_session(session_id)
    with coordinator_on(costs.servers) as here:
        here.create_session(data=data_of(size))
        store = here.store
        assert store is not None
        costs.measure(PAGE, lambda _: store.page(secrets.token_urlsafe(32), 100), [""] * (calls // 20))


def _expiring(costs: Costs, calls: int, size: int) -> None:
    for what, stays in ((EXPIRE_HERE, True), (EXPIRE_ALONE, False)):
        clock, prefix = ManualClock(wall_start=time.time()), f"expiry-{secrets.token_hex(4)}"
        with ExitStack() as stack:
            here = stack.enter_context(coordinator_on(costs.servers, prefix, clock=clock))
            there = stack.enter_context(coordinator_on(costs.servers, prefix, clock=clock))
            there.cleanup_inactive_sessions()
            for session_id in new_ids(calls):
                here.create_session(session_id=session_id, data=data_of(size))
            if not stays:
                here.close()
            clock.advance(CONFIG.session_timeout + 1)
            last = here if stays else there
            costs.measure(what, lambda _, last=last: last.cleanup_inactive_sessions(), [""], calls)


def _owning(costs: Costs, calls: int) -> None:
    store = RedisStore(costs.servers.where(), timeout=TIMEOUT, term=TERM)
    instance = store.join(1.0, "benchmark")
    costs.measure(HEARTBEAT, lambda _: store.set_write_interval(instance, 1.0), [""] * (calls // 5))
    costs.measure(JOIN, lambda _: store.leave(store.join(1.0, "benchmark")), [""] * (calls // 20))
    store.leave(instance)
    store.close()
    client = costs.client()
    client.echo("x")
    costs.measure(ECHO, client.echo, ["x"] * calls)


def _in_the_web(costs: Costs, calls: int, size: int) -> None:
    with coordinator_on(costs.servers) as coordinator:
        coordinator.create_session(data=data_of(size))
        visitors, numbers = Visitors(coordinator, size), [str(number) for number in range(calls)]
        costs.measure(WEB_NEW, visitors.write, numbers)
        costs.measure(WEB_NOTHING, visitors.look_away, numbers)
        costs.measure(WEB_READ, visitors.read, numbers)
        costs.measure(WEB_WRITE, visitors.write, numbers)
        assert len(coordinator) == calls + 1, "each visitor has one session"
        for session in coordinator.list_sessions():
            coordinator.close_session(session.id)


class Visitors:
    """Visitors of a WSGI application, each with a cookie, and a session with so many bytes of data."""

    def __init__(self, coordinator: SessionCoordinator[Any], size: int) -> None:
        self._size = size
        self._app = SessionMiddleware(self._answer, coordinator)
        self._cookies: dict[str, str] = {}

    def look_away(self, visitor: str) -> None:
        """A request that never looks at its session."""
        self._send(visitor, "/nothing")

    def read(self, visitor: str) -> None:
        """One that reads."""
        self._send(visitor, "/read")

    def write(self, visitor: str) -> None:
        """One that writes."""
        self._send(visitor, "/write")

    def _answer(self, environ: Any, start_response: Any) -> list[bytes]:
        session = environ["sessionkit.session"]
        if environ["PATH_INFO"] == "/write":
            session["n"] = session.get("n", 0) + 1
            if "text" not in session:
                session.update(data_of(self._size))
        elif environ["PATH_INFO"] == "/read":
            session.get("n")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    def _send(self, visitor: str, path: str) -> None:
        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Any:
            assert status == "200 OK", status
            self._cookies[visitor] = dict(headers).get("Set-Cookie", cookie)

        cookie = self._cookies.get(visitor, "")
        environ = {
            "PATH_INFO": path,
            "REQUEST_METHOD": "GET",
            "SERVER_NAME": "localhost",
            "HTTP_COOKIE": cookie,
            "wsgi.url_scheme": "http",
        }
        body: Any = self._app(environ, start_response)
        b"".join(body)
        if hasattr(body, "close"):
            body.close()


SIZE = 1_000
"""Bytes of data."""


def on_one_server(calls: int, rounds: int, number: int) -> Costs:
    """What every piece of work costs, beside so many other sessions."""
    with one_server(*EVERYSEC) as servers:
        costs = Costs(servers)
        fill_at_once(servers.where(), number, Kind(size=SIZE))
        for _ in range(rounds):
            one_round(costs, calls, SIZE)
    return costs


def in_a_cluster(calls: int, rounds: int) -> Costs:
    """What every operation costs in a cluster of three servers."""
    with cluster_of(3, *EVERYSEC) as servers:
        costs = Costs(servers)
        # So that each partition has as many as are on a page.
        fill(servers.where(), 150 * CLUSTER_PARTITIONS, Kind(size=SIZE))
        for _ in range(rounds):
            one_round(costs, calls, SIZE)
    return costs


class Remembered(NamedTuple):
    """For how many seconds the server remembers what it did, for a store with the default timeout."""

    calls: float
    removals: float


def remembered() -> Remembered:
    """As the server has it."""
    with one_server() as servers:
        store, now = RedisStore(servers.where()), time.time()
        instance = store.join(1.0, "benchmark")

        def seconds() -> float:
            client = servers.clients[0]
            return round(max(client.pttl(key) for key in client.scan_iter("*}:r:*")) / 1000, 1)

        store.create(SessionRecord("id", None, "{}", "active", now - 9, now - 9, 0, 1.0, None), instance)
        of_calls = seconds()
        store.leave(instance)
        store.delete_expired(now, 1)
        found = Remembered(of_calls, seconds())
        store.close()
    return found
