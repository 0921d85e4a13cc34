"""The coordinator with a store against a naive model: dicts and full scans, with restarts, crashes and passivation."""

from __future__ import annotations

import copy
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule, run_state_machine_as_test

from sessionkit import (
    Checkout,
    CoordinatorConfig,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionExistsError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from sessionkit.stores import RedisStore, SQLiteStore, Store
from sessionkit.testing import ManualClock

from ..helpers.redis_server import shared_server
from ..helpers.support import EVERYTHING, GIVE_BACK, SAVE, WatchedStore, examples

NAMES = st.sampled_from([None, None, "a", "b"])
TIMEOUTS = st.sampled_from([None, None, 5, 20])


class Place(Protocol):
    """Where a store keeps its records."""

    def open(self) -> Store: ...

    def remove(self) -> None: ...


class OnDisk:
    """A SQLite file."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp())

    def open(self) -> Store:
        return SQLiteStore(self.directory / "sessions.db")

    def remove(self) -> None:
        shutil.rmtree(self.directory)


class OnServer:
    """A real Redis server, under a prefix of its own."""

    url = ""

    def __init__(self) -> None:
        self.prefix = f"test-{secrets.token_hex(4)}"

    def open(self) -> Store:
        return RedisStore(self.url, prefix=self.prefix)

    def remove(self) -> None:
        pass


@dataclass(eq=False)
class Naive:
    """All that is known of one session, and what of it is in the store."""

    id: str
    name: str | None
    created: float
    last: float
    timeout: float
    data: dict[str, Any] = field(default_factory=dict)
    messages: int = 0
    holds: int = 0
    in_memory: bool = True
    ended: RemovalCause | None = None
    stored: tuple[float, float, dict[str, Any], int] = (0.0, 0.0, {}, 0)

    def store_all(self) -> None:
        self.stored = (self.last, self.timeout, copy.deepcopy(self.data), self.messages)

    def store_touch(self) -> None:
        self.stored = (self.last, self.timeout, self.stored[2], self.messages)

    def revert(self) -> None:
        self.last, self.timeout, data, self.messages = self.stored
        self.data, self.holds, self.in_memory = copy.deepcopy(data), 0, False


class StoreMachine(RuleBasedStateMachine):
    """Every rule does one thing to both, and says what the naive model expects of it."""

    known = Bundle("known")
    place_kind: type[Any] = OnDisk
    held = Bundle("held")

    @initialize(limit=st.sampled_from([1, 2, None]), lifetime=st.sampled_from([None, 30]))
    def start(self, limit: int | None, lifetime: int | None) -> None:
        self.place: Place = self.place_kind()
        self.config = CoordinatorConfig(
            session_timeout=10,
            cleanup_interval=1,
            max_active_sessions=limit,
            max_lifetime=lifetime,
            on_full="passivate",
        )
        self.clock = ManualClock()
        self.sessions: dict[str, Naive] = {}
        self.closed: list[tuple[str, RemovalCause]] = []
        self.era = 0
        self.open()

    def open(self) -> None:
        self.store = WatchedStore(self.place.open())
        self.coordinator = SessionCoordinator[Any](
            self.config,
            clock=self.clock,
            store=self.store,
            resource_factory=lambda session: f"agent of {session.id}",
            on_close=self.note_close,
        )

    def note_close(self, session: ManagedSession[Any], cause: RemovalCause) -> None:
        assert session.resource == f"agent of {session.id}"
        self.closed.append((session.id, cause))

    # ---- The naive model

    @property
    def now(self) -> float:
        return self.clock()

    def due(self, naive: Naive) -> bool:
        idle = not naive.holds and self.now > naive.last + naive.timeout
        return idle or (self.config.max_lifetime is not None and self.now > naive.created + self.config.max_lifetime)

    def live(self) -> list[Naive]:
        return [naive for naive in self.sessions.values() if naive.ended is None and not self.due(naive)]

    def here(self) -> list[Naive]:
        return [naive for naive in self.live() if naive.in_memory]

    def is_full(self) -> bool:
        # One that has ended and is held takes its place still.
        places = [naive for naive in self.sessions.values() if naive in self.here() or naive.holds]
        return self.config.max_active_sessions is not None and len(places) >= self.config.max_active_sessions

    def settle(self) -> None:
        """Take in what on_close was called for, each session for a reason that the model sees."""
        for session_id, cause in self.closed:
            naive = self.sessions[session_id]
            assert naive.in_memory
            assert not naive.holds
            assert naive.ended is None or naive.ended is cause
            naive.in_memory = False
            if cause is RemovalCause.PASSIVATED:
                assert not self.due(naive)
                others = [n for n in self.here() if not n.holds and n.last < naive.last]
                assert not others or self.arriving in others, "the least recently active one is passivated"
                naive.store_all()
            elif cause is not RemovalCause.SHUTDOWN:
                assert cause is RemovalCause.CLOSED or self.due(naive)
                naive.ended = cause
        self.closed.clear()
        self.arriving = None

    arriving: Naive | None = None

    def expected_error(self, naive: Naive) -> type[Exception] | None:
        if naive.ended is not None or self.due(naive):
            return SessionNotFoundError
        if not naive.in_memory and self.is_full() and all(other.holds for other in self.here()):
            return SessionLimitError
        return None

    def came_back(self, naive: Naive) -> None:
        if not naive.in_memory:
            self.arriving = naive
            self.settle()
            naive.in_memory = True
        self.settle()

    # ---- What happens

    @rule(seconds=st.sampled_from([1, 4, 5, 6, 10, 11, 31]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(target=known, name=NAMES, timeout=TIMEOUTS, data=st.dictionaries(st.sampled_from("xy"), st.integers(0, 3)))
    def create(self, name: str | None, timeout: int | None, data: dict[str, Any]) -> Any:
        expected: type[Exception] | None = None
        # They are found out to have ended, because they are in the way.
        named = [naive for naive in self.sessions.values() if name is not None and naive.name == name]
        holders = [naive for naive in named if naive.ended is None and naive not in self.live()]
        if any(naive in self.here() for naive in named):
            expected = SessionExistsError
        elif self.is_full() and all(naive.holds for naive in self.here()):
            expected = SessionLimitError
        elif any(naive in self.live() for naive in named):
            expected = SessionExistsError
        session = None
        with pytest.raises(expected) if expected else nullcontext():
            session = self.coordinator.create_session(name, data=data, session_timeout=timeout)
        self.settle()
        if session is None:
            return None
        for naive in holders:
            naive.ended = naive.ended or (RemovalCause.LIFETIME if naive.holds else RemovalCause.IDLE)
        naive = Naive(session.id, name, self.now, self.now, timeout or 10, dict(data))
        naive.store_all()
        self.sessions[naive.id] = naive
        return naive

    @rule(naive=known, way=st.sampled_from(["get", "touch", "message"]))
    def use(self, naive: Naive | None, way: str) -> None:
        if naive is None:
            return
        expected = self.expected_error(naive)
        with pytest.raises(expected) if expected else nullcontext():
            if way == "touch":
                self.coordinator.touch_session(naive.id)
            else:
                session = self.coordinator.get_session(naive.id)
                assert session.data == naive.data
                assert session.metadata.message_count == naive.messages
                assert session.metadata.created_at == naive.created
                assert session.metadata.last_active == naive.last
                if way == "message":
                    session.record_message()
        if expected is None:
            self.came_back(naive)
            if way != "get":
                naive.last = self.now
                naive.messages += way == "message"
        self.settle()

    @rule(naive=known, timeout=TIMEOUTS.filter(bool))
    def set_timeout(self, naive: Naive | None, timeout: int) -> None:
        if naive is None:
            return
        expected = self.expected_error(naive)
        with pytest.raises(expected) if expected else nullcontext():
            self.coordinator.get_session(naive.id).set_timeout(timeout)
        if expected is None:
            self.came_back(naive)
            naive.timeout = timeout
        self.settle()

    @rule(target=held, naive=known)
    def check_out(self, naive: Naive | None) -> Any:
        if naive is None:
            return None
        expected = self.expected_error(naive)
        checkout = self.coordinator.checkout(naive.id, timeout=0)
        with pytest.raises(expected) if expected else nullcontext():
            session = checkout.__enter__()
        if expected is not None:
            self.settle()
            return None
        assert session.data == naive.data
        self.came_back(naive)
        naive.holds += 1
        naive.last = self.now
        return naive, checkout, session, self.era

    @rule(taken=consumes(held), key=st.sampled_from("xyz"), value=st.integers(0, 5), fails=st.booleans())
    def give_back(self, taken: Any, key: str, value: int, fails: bool) -> None:
        if taken is None or taken[3] != self.era:
            return
        naive, checkout, session, _ = taken
        session.data.setdefault("list", []).append(value)
        naive.data.setdefault("list", []).append(value)
        session.data[key] = naive.data[key] = value
        self.store.failing = {SAVE, GIVE_BACK} if fails else set()
        over = naive.ended is not None or self.due(naive)
        last_one = naive.holds == 1
        with pytest.raises(StoreError) if fails and last_one and not over else nullcontext():
            self.leave(checkout)
        self.store.failing = set()
        naive.holds -= 1
        naive.last = self.now
        if last_one and not fails and not over:
            naive.store_all()
        if last_one and naive.ended is None and self.due(naive):
            naive.ended = RemovalCause.LIFETIME
        self.settle()

    def leave(self, checkout: Checkout[Any]) -> None:
        checkout.__exit__()

    @rule(naive=known)
    def close(self, naive: Naive | None) -> None:
        if naive is None:
            return
        live = naive in self.live()
        with nullcontext() if live else pytest.raises(SessionNotFoundError):
            self.coordinator.close_session(naive.id)
        if live:
            naive.ended = RemovalCause.CLOSED
            naive.in_memory = naive.in_memory and (naive.holds > 0 or bool(self.closed))
        self.settle()

    @rule(dry_run=st.booleans())
    def clean_up(self, dry_run: bool) -> None:
        due = [n for n in self.sessions.values() if n.ended is None and self.due(n) and not n.holds]
        assert self.coordinator.cleanup_inactive_sessions(dry_run=dry_run) == len(due)
        if not dry_run:
            for naive in self.sessions.values():
                if naive.in_memory and naive.ended is None:
                    naive.store_touch()
            self.settle()
            for naive in due:
                naive.ended = naive.ended or RemovalCause.IDLE
        self.settle()

    @rule(wall_step=st.sampled_from([0, 0, 0, 3]))
    def restart(self, wall_step: int) -> None:
        if any(naive.holds for naive in self.sessions.values()):
            return
        self.coordinator.close()
        for naive in self.sessions.values():
            if naive.in_memory:
                naive.store_all()
        self.settle()
        self.clock.advance(wall_step)
        self.open()

    @rule()
    def crash(self) -> None:
        """The process is gone: what it had not written is lost, and nothing else."""
        self.store.failing = {EVERYTHING}
        with suppress(StoreError):
            self.coordinator.close()
        self.closed.clear()
        # With it, its instance in the store is gone, as when its process dies.
        self.store.store.close()
        for naive in self.sessions.values():
            if naive.in_memory:
                naive.revert()
        self.era += 1
        self.open()

    def unended(self) -> set[str]:
        return {record.id for record in self.store.store.page(None, 1000)}

    # ---- What always holds

    @rule()
    def compare(self) -> None:
        for naive in self.sessions.values():
            assert (naive.id in self.coordinator) is (naive in self.live()), naive
        assert {session.id for session in self.coordinator.list_sessions()} == {naive.id for naive in self.here()}
        assert len(self.coordinator) == len(self.here())
        # There is no record of a session that cannot be found, unless cleanup has not come to it yet.
        waiting = {naive.id for naive in self.sessions.values() if naive.ended is None}
        assert self.unended() <= waiting
        assert {naive.id for naive in self.live()} <= self.unended()

    def teardown(self) -> None:
        if hasattr(self, "coordinator"):
            try:
                self.compare()
            finally:
                self.coordinator.close()
                # With sessions checked out still, the coordinator has not left it.
                self.store.store.close()
                self.place.remove()


class RedisMachine(StoreMachine):
    """The same on a Redis server."""

    place_kind = OnServer


@contextmanager
def nowhere() -> Iterator[str]:
    """No server is needed."""
    yield ""


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.filterwarnings("ignore:cleanup_interval")
@pytest.mark.parametrize(("machine", "server"), [(StoreMachine, nowhere), (RedisMachine, shared_server)])
def test_the_coordinator_with_a_store_does_what_dicts_would_do(
    machine: Any, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Random lives with restarts, crashes and passivation: what is live, with which data, what left and why."""
    with server() as OnServer.url, caplog.at_level("CRITICAL", logger="sessionkit"):
        run_state_machine_as_test(machine, settings=settings(max_examples=examples(40), stateful_step_count=40))
