"""All stores do the same: whatever is asked of them in whatever order, they give the same, or raise the same."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from sessionkit import SessionError, SessionExistsError
from sessionkit.stores import Changes, Known, RedisStore, SQLiteStore, Store, Touch
from sessionkit.testing.store_contract import NOW, record

from ..helpers.redis_server import redis_cluster, shared_server
from ..helpers.support import examples

IDS = st.sampled_from(["s-1", "s-2", "S.3", "_4", "s-5"])
NAMES = st.sampled_from([None, None, "a", "b b"])
INSTANCES = st.integers(0, 2)
INSTANTS = st.sampled_from([NOW - 5, NOW, NOW + 0.1, NOW + 30, NOW + 60, NOW + 60.000001, NOW + 100, NOW + 1000])
TIMEOUTS = st.sampled_from([60.0, 0.5, 7200.0])
TOUCHES = st.builds(
    Touch, INSTANTS, st.integers(0, 3), st.sampled_from([None, "active", "processing"]), st.none() | TIMEOUTS
)
DATA = st.sampled_from(["{}", '{"a":1}', '{"text":"\u20ac\U0001f40d|"}'])
BEHIND = st.integers(0, 1)
KNOWN = st.dictionaries(IDS, st.none() | st.builds(Known, INSTANTS, st.none() | TIMEOUTS), max_size=3)
AGES = st.sampled_from([None, 1.0, 30.0, 1e9])


class Twins(RuleBasedStateMachine):
    """Every rule asks both stores, and compares."""

    where: Any = None

    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.stores: list[Store] = [
            SQLiteStore(self.directory / "sessions.db"),
            RedisStore(self.where, prefix=f"test-{secrets.token_hex(4)}"),
        ]
        self.instances = [[store.join(lag, f"instance {lag}") for store in self.stores] for lag in (1.0, 20.0, inf)]
        self.versions: dict[str, int] = {}

    def ask(self, call: Callable[[Store, Callable[[int], str]], Any]) -> Any:
        """Ask both, who know their instances by number; what both give."""
        found = [self.outcome(call, index) for index in range(2)]
        assert found[0] == found[1]
        return found[0]

    def outcome(self, call: Callable[[Store, Callable[[int], str]], Any], index: int) -> Any:
        try:
            return call(self.stores[index], lambda number: self.instances[number][index])
        except SessionExistsError as error:
            return type(error), str(error), error.session_id
        except SessionError as error:
            return type(error), str(error)

    @rule(session_id=IDS, name=NAMES, instance=INSTANCES, data=DATA, timeout=TIMEOUTS)
    def create(self, session_id: str, name: str | None, instance: int, data: str, timeout: float) -> None:
        lifetime = None if timeout < 60 else 90.0
        made = record(session_id, name=name, data=data, session_timeout=timeout, max_lifetime=lifetime)
        self.ask(lambda store, instance_of: store.create(made, instance_of(instance)))

    @rule(session_id=IDS, name=NAMES.filter(bool), instance=st.none() | INSTANCES)
    def look(self, session_id: str, name: str, instance: int | None) -> None:
        found = self.ask(
            lambda store, instance_of: store.load(session_id, None if instance is None else instance_of(instance))
        )
        self.versions[session_id] = 1 if found is None else found.record.version
        self.ask(lambda store, instance_of: store.find(name))

    @rule(session_id=IDS, instance=INSTANCES, lease=st.booleans())
    def attach(self, session_id: str, instance: int, lease: bool) -> None:
        self.ask(lambda store, instance_of: store.attach(session_id, instance_of(instance), lease=lease))

    @rule(session_ids=st.lists(IDS, max_size=3), instance=INSTANCES)
    def detach(self, session_ids: list[str], instance: int) -> None:
        self.ask(lambda store, instance_of: store.detach(session_ids, instance_of(instance)))

    @rule(session_id=IDS, instance=INSTANCES, behind=BEHIND, data=st.none() | DATA, touch=st.none() | TOUCHES)
    def release(self, session_id: str, instance: int, behind: int, data: str | None, touch: Touch | None) -> None:
        changes = None if touch is None else Changes(self.versions.get(session_id, 1) - behind, data, touch)
        self.ask(lambda store, instance_of: store.release(session_id, instance_of(instance), changes))

    @rule(session_id=IDS, behind=BEHIND, data=st.none() | DATA, touch=TOUCHES)
    def save(self, session_id: str, behind: int, data: str | None, touch: Touch) -> None:
        changes = Changes(self.versions.get(session_id, 1) - behind, data, touch)
        self.ask(lambda store, _: store.save(session_id, changes))

    @rule(session_id=IDS, new_id=IDS, instance=INSTANCES)
    def rename(self, session_id: str, new_id: str, instance: int) -> None:
        self.ask(lambda store, instance_of: store.rename(session_id, new_id, instance_of(instance)))

    @rule(touches=st.dictionaries(IDS, TOUCHES, max_size=4))
    def touch(self, touches: dict[str, Touch]) -> None:
        self.ask(lambda store, _: store.touch(touches))

    @rule(known=KNOWN, instance=st.none() | INSTANCES, now=st.just(-inf) | INSTANTS)
    def delete(self, known: dict[str, Known | None], instance: int | None, now: float) -> None:
        self.ask(
            lambda store, instance_of: store.delete(known, None if instance is None else instance_of(instance), now)
        )

    @rule(now=INSTANTS, age=AGES)
    def delete_expired(self, now: float, age: float | None) -> None:
        self.ask(lambda store, _: store.count_expired(now, age))
        self.ask(lambda store, _: sorted(store.delete_expired(now, 100, age)))

    @rule(after=st.none() | IDS, limit=st.integers(1, 6))
    def page(self, after: str | None, limit: int) -> None:
        self.ask(lambda store, _: store.page(after, limit))

    @rule(instance=INSTANCES, lag=st.sampled_from([0.5, 30.0, inf]))
    def set_write_interval(self, instance: int, lag: float) -> None:
        self.ask(lambda store, instance_of: store.set_write_interval(instance_of(instance), lag))

    @precondition(lambda self: hasattr(self, "instances"))
    @rule(instance=INSTANCES)
    def leave_and_join(self, instance: int) -> None:
        self.ask(lambda store, instance_of: store.leave(instance_of(instance)))
        self.instances[instance] = [store.join(2.0, "again") for store in self.stores]

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for session_id in ("s-1", "s-2", "S.3", "_4", "s-5"):
                self.ask(lambda store, _, session_id=session_id: store.load(session_id))  # type: ignore[misc]  # a default binds it now
            for store in self.stores:
                store.close()
            shutil.rmtree(self.directory)


@contextmanager
def one_server() -> Iterator[Any]:
    """The URL of a real server."""
    with shared_server() as url:
        yield url


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("server", "number"), [(one_server, 30), (redis_cluster, 10)])
def test_a_redis_store_does_what_a_sqlite_store_does(
    server: Callable[[], AbstractContextManager[Any]], number: int
) -> None:
    """Whatever is asked in whatever order, on one server and on a cluster of three."""
    with server() as Twins.where:
        # As found: to make a failing example shorter takes minutes.
        run_state_machine_as_test(
            Twins, settings=settings(max_examples=examples(number), stateful_step_count=30, phases=[Phase.generate])
        )
