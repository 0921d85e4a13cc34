"""Several processes on one Redis server, some of which are killed at any moment: what holds all the same."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import secrets
import selectors
import signal
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from math import inf
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import pytest

from examples.chat.visitor import TRANSCRIPT_LIMIT
from sessionkit import (
    CoordinatorConfig,
    EventKind,
    ManagedSession,
    RemovalCause,
    SessionConflictError,
    SessionCoordinator,
)
from sessionkit.persistence.client import BATCH
from sessionkit.stores import RedisStore, SessionRecord
from sessionkit.testing import ManualClock

from ...examples.test_chat import ROOT
from ...helpers.redis_server import shared_server
from ...helpers.servers import Server, gunicorn, serving
from ...helpers.support import WAIT

KILLS = max(int(os.environ.get("SESSIONKIT_KILL_ROUNDS", "20")) // 4, 3)
"""How often something happens to a worker in a test. `make soak` has ten times as much of it."""

# Each of these keeps several processes busy: two at once would only wait for each other's.
pytestmark = pytest.mark.xdist_group("processes")

TERM = 1.0
"""For how long a worker that was killed is taken to be alive."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real server, for all tests of this file."""
    with shared_server() as found:
        yield found


@pytest.fixture
def prefix() -> str:
    """What nobody else's keys begin with."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def store(url: str, prefix: str) -> Iterator[RedisStore]:
    """The store of a test, as the parent sees it."""
    with closing(RedisStore(url, prefix, timeout=WAIT, term=TERM)) as store:
        yield store


def records_in(store: RedisStore) -> dict[str, SessionRecord]:
    """All that is in a store."""
    found: dict[str, SessionRecord] = {}
    after = None
    while page := store.page(after, 500):
        found |= {record.id: record for record in page}
        after = page[-1].id
    return found


# ---- Workers


class Line:
    """A worker's own end: what it tells its parent, and what it is told."""

    def __init__(self, number: int, reader: int, writer: int) -> None:
        self.number = number
        self._orders = os.fdopen(reader)
        self._writer = writer
        self._lock = threading.Lock()

    def tell(self, *what: Any) -> None:
        """What the parent hears, also if this process is killed the next moment."""
        with self._lock:
            os.write(self._writer, json.dumps(what).encode() + b"\n")

    def told(self) -> list[Any]:
        """The next order; waits for it."""
        return list(json.loads(self._orders.readline()))

    def is_told(self) -> bool:
        """Whether there is an order."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._orders, selectors.EVENT_READ)
            return bool(selector.select(0))


class Worker:
    """A forked process, as its parent sees it."""

    def __init__(self, number: int, pid: int, reader: int, writer: int) -> None:
        self.number = number
        self.pid = pid
        self.reader = reader
        self.heard: defaultdict[str, list[list[Any]]] = defaultdict(list)
        """What it has told so far, by kind."""
        self.was_killed = False
        self._orders = 0
        self._writer = writer
        self._rest = b""

    def order(self, *what: Any) -> None:
        """Have it do something."""
        self._orders += 1
        os.write(self._writer, json.dumps(what).encode() + b"\n")

    @property
    def has_done_all(self) -> bool:
        """Whether it has told that it did whatever it was to do."""
        return len(self.heard["did"]) == self._orders

    def hear(self) -> bool:
        """Take in what it tells; whether there may be more."""
        text = os.read(self.reader, 65536)
        # A line that was cut off is none.
        *lines, self._rest = (self._rest + text).split(b"\n")
        for what, *rest in map(json.loads, lines):
            assert what != "failed", f"worker {self.number} failed:\n{rest[0]}"
            self.heard[what].append(rest)
        return bool(text)

    @property
    def summary(self) -> dict[str, Any]:
        """How often it has told each kind, and what that was the last time."""
        return {what: (len(told), told[-1]) for what, told in self.heard.items() if told}

    def let_go(self) -> None:
        """Close our ends."""
        os.close(self.reader)
        os.close(self._writer)


class Workers:
    """Several workers, all of which are gone when the block is left."""

    def __init__(self, work: Callable[[Line], object]) -> None:
        self._work = work
        self._selector = selectors.DefaultSelector()
        self.all: list[Worker] = []
        self.living: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in list(self.living):
            self.kill(worker, hear=False)
        self._selector.close()

    def start(self) -> Worker:
        """Fork another one."""
        (their_reader, writer), (reader, their_writer) = os.pipe(), os.pipe()
        number = len(self.all)
        pid = os.fork()
        if pid == 0:
            self._be(Line(number, their_reader, their_writer), reader, writer)
        os.close(their_reader)
        os.close(their_writer)
        worker = Worker(number, pid, reader, writer)
        self._selector.register(reader, selectors.EVENT_READ, worker)
        self.all.append(worker)
        self.living.append(worker)
        return worker

    def _be(self, line: Line, *parents_ends: int) -> None:
        status = 1
        try:
            for end in parents_ends:
                os.close(end)
            for other in self.living:
                other.let_go()
            self._work(line)
            status = 0
        except BaseException:  # noqa: BLE001  it goes to the parent, whatever it is
            line.tell("failed", traceback.format_exc())
        finally:
            os._exit(status)

    def kill(self, worker: Worker, *, hear: bool = True) -> None:
        """Kill one at this moment; what it told before is heard."""
        os.kill(worker.pid, signal.SIGKILL)
        os.waitpid(worker.pid, 0)
        worker.was_killed = True
        while hear and worker.hear():
            pass
        self._forget(worker)

    def finish(self) -> None:
        """Hear all to their ends, which come by themselves."""
        self.listen(lambda: not self.living)

    def listen(self, until: Callable[..., object], *arguments: Any) -> None:
        """Hear all of them until there is what we listen for, for a bounded time: that of thousands of calls."""
        deadline = time.monotonic() + 3 * WAIT
        while not until(*arguments):
            left = deadline - time.monotonic()
            assert left > 0, f"it did not come to that, but to {[worker.summary for worker in self.all]}"
            for key, _ in self._selector.select(left):
                if not key.data.hear():
                    _, status = os.waitpid(key.data.pid, 0)
                    self._forget(key.data)
                    assert status == 0, f"worker {key.data.number} ended with status {status}"

    def order(self, *what: Any) -> None:
        """Have all of them do something."""
        for worker in self.living:
            worker.order(*what)

    @property
    def have_done_all(self) -> bool:
        """Whether all have done what they were to do."""
        return all(worker.has_done_all for worker in self.living)

    def wait(self) -> None:
        """Wait until all have done what they were to do."""
        self.listen(lambda: self.have_done_all)

    def heard(self, what: str) -> list[list[Any]]:
        """All that was told of one kind, by whomever."""
        return [rest for worker in self.all for rest in worker.heard[what]]

    def _forget(self, worker: Worker) -> None:
        self.living.remove(worker)
        self._selector.unregister(worker.reader)
        worker.let_go()


# ---- Updates


def test_no_acknowledged_update_is_lost_when_workers_are_killed(url: str, prefix: str, store: RedisStore) -> None:
    """Whichever workers are killed, no acknowledged update is lost. Each is there once, and none that was refused, as
    those of a worker are that stood still with a session until others had it.
    """
    chance = random.Random(seed := random.randrange(1_000_000))  # noqa: S311  no secret
    with SessionCoordinator[Any](store=store) as coordinator:
        ids = [coordinator.create_session(data={"count": 0, "by": []}).id for _ in range(3)]

    def hammer(line: Line) -> None:
        choice = random.Random(f"{seed} {line.number}")  # noqa: S311  no secret
        with SessionCoordinator[Any](store=RedisStore(url, prefix, timeout=WAIT, term=TERM)) as coordinator:
            order, turn = None, 0
            while order != ["stop"]:
                turn += 1
                session_id, tag = choice.choice(ids), f"{line.number}-{turn}"
                line.tell("begun", session_id, tag)
                try:
                    with coordinator.checkout(session_id, timeout=WAIT) as session:
                        session.data["count"] += 1
                        session.data["by"].append(tag)
                        session.record_message()
                        order = line.told() if line.is_told() else None
                        if order == ["stand still"]:
                            line.tell("still", session_id, tag)
                            os.kill(os.getpid(), signal.SIGSTOP)
                except SessionConflictError:
                    line.tell("refused", session_id, tag)
                else:
                    line.tell("done", session_id, tag)

    with Workers(hammer) as workers:
        for _ in range(4):
            workers.start()

        def updates(of: Iterable[Worker], at: str | None = None) -> int:
            return sum(at in (None, session_id) for worker in of for session_id, _ in worker.heard["done"])

        def has_more(number: int, of: Iterable[Worker], at: str | None = None) -> bool:
            return updates(of, at) >= number

        def go_on(number: int, of: Iterable[Worker], at: str | None = None) -> None:
            workers.listen(has_more, updates(of, at) + number, of, at)

        for turn in range(KILLS):
            go_on(chance.randint(1, 40), workers.all)
            worker = chance.choice(workers.living)
            if turn % 3:
                workers.kill(worker)
                workers.start()
                continue
            before = len(worker.heard["still"])
            worker.order("stand still")
            workers.listen(lambda worker, before: len(worker.heard["still"]) > before, worker, before)
            # Once its term is over, others have what it has checked out; each may have had it just before, too.
            others = [other for other in workers.living if other is not worker]
            go_on(len(others) + 1, others, at=worker.heard["still"][-1][0])
            os.kill(worker.pid, signal.SIGCONT)
        go_on(40, workers.all)
        workers.order("stop")
        workers.finish()
        begun, still, refused, done = (
            {session_id: {tag for at, tag in workers.heard(what) if at == session_id} for session_id in ids}
            for what in ("begun", "still", "refused", "done")
        )
    records = records_in(store)
    for session_id in ids:
        data = json.loads(records[session_id].data)
        there = data["by"]
        assert len(set(there)) == len(there) == data["count"], seed
        assert not done[session_id].difference(there), seed
        # Whoever stood still was told that others had it since, or was killed.
        assert not (refused[session_id] | still[session_id]).intersection(there), seed
        assert begun[session_id].issuperset(there), seed
        # At most one for each that was killed.
        assert len(there) - len(done[session_id]) <= KILLS, seed
        assert 0 <= records[session_id].message_count - data["count"] <= len(refused[session_id]), seed
    # Nobody else is, as nobody else has it meanwhile; on a busy machine, others may have stood still as well.
    assert sum(map(len, refused.values())) <= KILLS, seed


# ---- Expiry

EACH = 500
"""How many sessions each worker makes."""

IN_MEMORY = 400
"""How many of them it has in memory; the others are in the store only."""


class TellingStore(RedisStore):
    """A store that tells the parent its instance, and which sessions it removed, before anybody else hears of it."""

    line: Line

    def join(self, lag: float, name: str) -> str:
        """As the store does."""
        instance = super().join(lag, name)
        self.line.tell("joined", instance)
        return instance

    def delete(self, known: Mapping[str, float | None], instance: str | None = None, now: float = -inf) -> set[str]:
        """As the store does."""
        removed = super().delete(known, instance, now)
        self.line.tell("took", sorted(removed))
        return removed

    def delete_expired(self, now: float, limit: int, max_age: float | None = None) -> list[SessionRecord]:
        """As the store does."""
        removed = super().delete_expired(now, limit, max_age)
        self.line.tell("took", [record.id for record in removed])
        return removed


@pytest.mark.parametrize("kills", [0, *[2] * max(KILLS // 10, 1)])
def test_each_expired_session_is_finalized_by_one_process(url: str, prefix: str, store: RedisStore, kills: int) -> None:
    """The removal of an expired session is told once at most, by one process. Of thousands, none is removed that was
    used in any process, and each resource is closed in the process that made it; one that is killed takes along no
    more than what it was about to tell.
    """
    chance = random.Random(seed := random.randrange(1_000_000))  # noqa: S311  no secret
    config = CoordinatorConfig(
        session_timeout=60, cleanup_interval=10, max_active_sessions=IN_MEMORY, on_full="passivate"
    )

    def work(line: Line) -> None:
        clock = ManualClock()
        # A term that no living worker misses, however busy the machine is: an instance that misses its term counts as
        # dead, and what it has not written is lost with it.
        mine = TellingStore(url, prefix, timeout=WAIT, term=10 * WAIT)
        mine.line = line

        def make(session: ManagedSession[str]) -> str:
            # A session that comes back gets another one.
            resource = f"{session.id} {secrets.token_hex(4)}"
            line.tell("made", resource, os.getpid())
            return resource

        def close(session: ManagedSession[str], cause: RemovalCause) -> None:
            line.tell("closed", session.resource, os.getpid())

        def tell_all() -> None:
            for event in channel:
                if event.kind is EventKind.REMOVED and event.cause is not None:
                    line.tell("removed", event.session_id, event.cause.name)
            line.tell("dropped", channel.dropped)

        coordinator = SessionCoordinator[str](config, clock=clock, store=mine, resource_factory=make, on_close=close)
        channel = coordinator.subscribe(100_000)
        telling = threading.Thread(target=tell_all)
        telling.start()
        with coordinator:
            for order in iter(line.told, ["stop"]):
                match order:
                    case "create", number:
                        for index in range(number):
                            coordinator.create_session(session_id=f"s-{line.number}-{index}")
                    case "look at", session_ids:
                        for session_id in session_ids:
                            coordinator.get_session(session_id)
                    case "touch", session_id:
                        coordinator.touch_session(session_id)
                    case "advance", seconds:
                        clock.advance(seconds)
                    case ["clean up"]:
                        coordinator.cleanup_inactive_sessions()
                line.tell("did")
        telling.join(WAIT)

    with Workers(work) as workers:

        def has_removed(number: int) -> bool:
            return len(workers.heard("removed")) >= number or workers.have_done_all

        for _ in range(4):
            workers.start()
        workers.order("create", EACH)
        workers.wait()
        everyone = {f"s-{worker.number}-{index}" for worker in workers.all for index in range(EACH)}
        for worker in workers.living:
            worker.order("look at", chance.sample(sorted(everyone), 100))
        workers.wait()
        # Before their time is over, some are used, each in whichever process, and one of these goes.
        used = chance.sample(sorted(everyone), 400)
        expired = everyone.difference(used)
        workers.order("advance", 50)
        for session_id in used[:200]:
            chance.choice(workers.living).order("touch", session_id)
        workers.order("clean up")
        workers.wait()
        chance.choice(workers.living).order("stop")
        workers.listen(lambda: len(workers.living) == 3)
        workers.start().order("advance", 50)
        # The use of the others is not written before somebody cleans up.
        by = {session_id: chance.choice(workers.living) for session_id in used[200:]}
        for session_id, worker in by.items():
            worker.order("touch", session_id)
        workers.order("advance", 20)
        workers.wait()
        chance.choice(workers.living).order("clean up")
        workers.wait()
        workers.order("clean up")
        for _ in range(kills):
            workers.listen(has_removed, len(workers.heard("removed")) + chance.randint(1, EACH))
            victim = chance.choice(workers.living)
            workers.kill(victim)
            # Only after its term would the others know that it is dead; the parent knows it now.
            for (instance,) in victim.heard["joined"]:
                store.leave(instance)
            workers.start().order("advance", 70)
            workers.order("clean up")
        workers.wait()
        while not expired.isdisjoint(records_in(store)):
            workers.order("clean up")
            workers.wait()
        workers.order("stop")
        workers.finish()

    killed = [worker for worker in workers.all if worker.was_killed]
    # What was not written is lost with its process.
    active = {session_id for session_id in used if by.get(session_id) not in killed}
    records = records_in(store)
    assert active <= records.keys(), seed
    assert {records[session_id].last_active for session_id in active} == {ManualClock().wall() + 50}, seed
    assert not any(number for (number,) in workers.heard("dropped")), seed
    told = Counter(session_id for session_id, cause in workers.heard("removed") if cause == "IDLE")
    assert set(told.values()) == {1}, seed
    taken = Counter(session_id for (session_ids,) in workers.heard("took") for session_id in session_ids)
    assert set(taken.values()) == {1}, seed
    # Of each thread of a killed worker, one batch that it had removed and not yet told of.
    assert len(expired - taken.keys()) <= 2 * BATCH * kills, seed
    assert told.keys() <= everyone - active, seed
    taken_along = {
        session_id for worker in killed for (session_ids,) in worker.heard["took"] for session_id in session_ids
    }
    assert (taken.keys() - told.keys()) <= taken_along, seed
    for worker in workers.all:
        made, closed = (Counter(map(tuple, worker.heard[what])) for what in ("made", "closed"))
        assert closed <= made if worker in killed else closed == made, seed
        assert {pid for _, pid in made} <= {worker.pid}, seed


# ---- Real servers

SITE = """
import os
from sessionkit import stores

class Store(stores.RedisStore):
    def __init__(self, where, prefix):
        super().__init__(where, f"{os.environ['PREFIX']}-{prefix}", term=float(os.environ['TERM_SECONDS']))

stores.RedisStore = Store
from examples.chat.wsgi import app
"""
"""The example chat as it is, with names and a term of its own."""

SAID = re.compile(r"You: </span>([^<]*)</p>")


class Guest:
    """Somebody who visits the chat, and does again what was not acknowledged, as people do who see an error."""

    def __init__(self, name: str, servers: list[Server]) -> None:
        self.name = name
        self.servers = servers
        self.said: dict[str, list[str]] = {}
        """What was acknowledged, by the address of its chat."""
        self._cookie = ""

    def ask(self, method: str, path: str, **form: str) -> tuple[int, str]:
        """The answer of any server: its status, and where it leads or what it says."""
        deadline = time.monotonic() + WAIT
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": self._cookie}
        while True:
            assert time.monotonic() < deadline, f"nobody answers {self.name}: {method} {path}"
            port = secrets.choice(self.servers).port
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)) as connection:
                try:
                    connection.request(method, path, urlencode(form), headers)
                    response = connection.getresponse()
                    body = response.read().decode()
                except (OSError, http.client.HTTPException):
                    # The worker that had it was killed.
                    continue
            if response.status != 503:
                self._take(response.headers["Set-Cookie"] or "")
                return response.status, response.headers["Location"] or body

    def _take(self, cookie: str) -> None:
        # Without the age that the session had when it was sent.
        cookie = cookie.partition(";")[0].partition(".")[0]
        assert self._cookie in ("", cookie) or not cookie, f"{self.name} got another session"
        self._cookie = self._cookie or cookie

    def begin(self) -> str:
        """Begin a chat, and give its address."""
        status, chat = self.ask("POST", "/chats", story=random.choice(["lighthouse", "library", "station"]))  # noqa: S311  no secret
        assert status == 303
        self.said[chat] = []
        return chat

    def say_something(self, chat: str) -> None:
        """Say something new in a chat of which nobody else knows, and see that all of it is there, and nothing else."""
        said = self.said[chat]
        message = f"{self.name}: {len(said)}"
        assert self.ask("POST", chat, message=message, turn=str(len(said))) == (303, chat)
        said.append(message)
        self.look(chat)

    def look(self, chat: str) -> None:
        """All that was said in a chat is on its page; and at the front door, one's chats are known."""
        status, page = self.ask("GET", chat)
        assert (status, SAID.findall(page)) == (200, self.said[chat][-TRANSCRIPT_LIMIT // 2 :]), self.name
        status, place = self.ask("GET", "/")
        assert (status, place[:7]) == (302, "/chats/"), self.name

    def look_at_all(self) -> None:
        """Look at each chat."""
        for chat in self.said:
            self.look(chat)


@contextmanager
def chat_servers(directory: Path, number: int, **environment: str) -> Iterator[list[Server]]:
    """The example chat, served by several gunicorns with two workers each."""
    with ExitStack() as stack:
        servers = []
        for index in range(number):
            place = directory / f"{index}-{secrets.token_hex(4)}"
            place.mkdir()
            (place / "chat_site.py").write_text(SITE)
            command = gunicorn("--workers=2", "--worker-class=gthread", "--threads=4")
            servers.append(stack.enter_context(serving(place, [*command[:-1], "chat_site:app"], **environment)))
        yield servers


def workers_of(servers: list[Server]) -> list[int]:
    """The pids of all workers that were started so far."""
    return [int(pid) for server in servers for pid in re.findall(r"Booting worker with pid: (\d+)", server.log)]


def test_no_message_is_lost_by_real_servers(url: str, prefix: str, tmp_path: Path) -> None:
    """Several gunicorns serve the chat from one Redis. Whichever workers are killed, no message is lost that was
    acknowledged, nobody gets another one's session or an empty one, and a server that is started afterwards has all of
    it.
    """
    chance = random.Random(seed := random.randrange(1_000_000))  # noqa: S311  no secret
    environment = {"SESSIONKIT_STORE": url, "PREFIX": prefix, "TERM_SECONDS": str(TERM), "PYTHONPATH": str(ROOT)}
    is_over = threading.Event()

    def talk(guest: Guest) -> None:
        chat = guest.begin()
        while not is_over.is_set():
            guest.say_something(chat)

    def messages() -> int:
        return sum(len(said) for guest in guests for said in list(guest.said.values()))

    def look_at_all() -> None:
        with ThreadPoolExecutor(len(guests)) as pool:
            list(pool.map(Guest.look_at_all, guests))

    with chat_servers(tmp_path, 2, **environment) as servers:
        guests = [Guest(f"guest-{number}", servers) for number in range(8)]
        for guest in guests:
            guest.say_something(guest.begin())
        killed: set[int] = set()
        with ThreadPoolExecutor(2 * len(guests)) as pool:
            talks = [pool.submit(talk, guest) for guest in guests * 2]
            try:
                for _ in range(max(KILLS // 2, 10)):
                    enough = messages() + chance.randint(1, 60)
                    # Nobody is done yet, unless something is wrong.
                    while messages() < enough and not wait(talks, 0.005, FIRST_COMPLETED).done:
                        pass
                    pid = chance.choice([pid for pid in workers_of(servers) if pid not in killed])
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            finally:
                is_over.set()
        for finished in talks:
            finished.result(WAIT)
        look_at_all()
        for server in servers:
            server.stop()
    with chat_servers(tmp_path, 1, **environment) as again:
        servers[:] = again
        look_at_all()
    with closing(RedisStore(url, f"{prefix}-candlelight-chats")) as store:
        records = records_in(store)
    for guest in guests:
        for chat, said in guest.said.items():
            assert records[chat.rpartition("/")[2]].message_count == len(said), seed
