"""Several processes that ask for one session at once, of which the first makes it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sessionkit import ManagedSession, SessionBusyError, SessionCoordinator, SessionExistsError
from sessionkit.stores import SessionRecord, SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import TOUCH, WAIT, WatchedStore, in_thread


class Factory:
    """A resource factory that a test lets go on, and have fail."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entered, self.may_go_on = threading.Event(), threading.Event()
        self.failing = False

    def __call__(self, _session: ManagedSession[Any]) -> str:
        self.entered.set()
        assert self.may_go_on.wait(WAIT)
        if self.failing:
            raise ValueError("no kernel today")
        return self.name


class Process:
    """One coordinator, as it would be in a process of its own."""

    def __init__(self, make: CoordinatorFactory, store: WatchedStore, name: str) -> None:
        self.factory = Factory(name)
        self.store = store
        self.coordinator: SessionCoordinator[Any] = make(store=store, resource_factory=self.factory)

    def ask(self) -> ManagedSession[Any]:
        return self.coordinator.get_or_create_session("u1", timeout=WAIT)


@pytest.fixture
def pair(session_coordinator: CoordinatorFactory, tmp_path: Path) -> tuple[Process, Process]:
    """Two processes on one file."""

    def process(name: str) -> Process:
        return Process(session_coordinator, WatchedStore(SQLiteStore(tmp_path / "sessions.db")), name)

    return process("here"), process("there")


def test_get_or_create_session_waits_for_the_factory_of_another_process(pair: tuple[Process, Process]) -> None:
    """Until then its factory is not called; then it finds the session, and the data that the first one gave it."""
    here, there = pair
    there.factory.may_go_on.set()
    with in_thread(lambda: here.coordinator.get_or_create_session("u1", "nb", data={"n": 1})) as first:
        assert here.factory.entered.wait(WAIT)
        with pytest.raises(SessionBusyError, match="'u1' is being made"):
            there.coordinator.get_or_create_session("u1", timeout=0.01)
        with in_thread(there.ask) as second:
            assert not there.factory.entered.is_set()
            here.factory.may_go_on.set()
            session = second.result(WAIT)
        assert first.result(WAIT).id == session.id
    assert (session.name, session.data) == ("nb", {"n": 1})
    assert session.state.value == "active"
    found = here.store.load("u1")
    assert found is not None
    assert found.record.state == "active"


def test_if_the_other_process_fails_this_one_tries_itself(pair: tuple[Process, Process]) -> None:
    """The first one's record is gone by then."""
    here, there = pair
    here.factory.failing = True
    there.factory.may_go_on.set()
    with in_thread(here.ask) as first:
        assert here.factory.entered.wait(WAIT)
        with in_thread(there.ask) as second:
            here.factory.may_go_on.set()
            assert isinstance(first.exception(WAIT), ValueError)
            assert second.result(WAIT).resource == "there"


def test_if_the_other_process_dies_this_one_makes_the_resource(
    pair: tuple[Process, Process], tmp_path: Path, session_clock: ManualClock
) -> None:
    """Its record is there, and no living process is making a resource for it."""
    here, _ = pair
    here.factory.may_go_on.set()
    now = session_clock.wall()
    record = SessionRecord("u1", "nb", "{}", "starting", now, now, 0, 60.0, None)
    with closing(SQLiteStore(tmp_path / "sessions.db")) as dying:
        dying.create(record, dying.join(60, "dying"))
        with pytest.raises(SessionBusyError):
            here.coordinator.get_or_create_session("u1", timeout=0)
    session = here.ask()
    assert (session.name, session.resource) == ("nb", "here")


def test_threads_of_one_process_get_one_session(pair: tuple[Process, Process]) -> None:
    """As without a store; one record is made."""
    here, _ = pair
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(here.ask) for _ in range(4)]
        assert here.factory.entered.wait(WAIT)
        here.factory.may_go_on.set()
        sessions = {future.result(WAIT) for future in futures}
    assert len(sessions) == 1
    assert here.store.calls["create"] == 1


def test_if_the_others_cannot_be_told_that_it_is_ready_they_learn_it_later(pair: tuple[Process, Process]) -> None:
    """The session is there all the same, and the next write says so."""
    here, there = pair
    here.factory.may_go_on.set()
    there.factory.may_go_on.set()
    here.store.failing = {TOUCH}
    session = here.ask()
    with pytest.raises(SessionBusyError):
        there.coordinator.get_or_create_session("u1", timeout=0)
    here.store.failing = set()
    session.touch()
    here.coordinator.cleanup_inactive_sessions()
    assert there.ask().id == session.id


def test_a_name_that_another_session_has(pair: tuple[Process, Process]) -> None:
    """It is not this session that is in the way: that is said, and not waited for."""
    here, there = pair
    here.factory.may_go_on.set()
    here.coordinator.create_session("nb")
    with pytest.raises(SessionExistsError, match="name 'nb'"):
        there.coordinator.get_or_create_session("u1", "nb")
