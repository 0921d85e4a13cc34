"""Reading a session without having it: `read_session`."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionCoordinator,
    SessionExpiredError,
    SessionMetadata,
    SessionNotFoundError,
    SessionSnapshot,
    SessionState,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import WAIT, HookedClock, in_thread, lock_is_free, one_minute


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory) -> SessionCoordinator[Any]:
    return session_coordinator(one_minute())


def test_a_snapshot_says_what_a_session_is(coordinator: SessionCoordinator[Any], session_clock: ManualClock) -> None:
    """All of it but the resource, as it stood then: nothing changes it, and it changes nothing."""
    session = coordinator.create_session("support", data={"cart": [1, {"of": "ada"}]}, session_timeout=50)
    born = datetime.fromtimestamp(session_clock.wall(), UTC)
    session_clock.advance(1)
    session.record_message()
    session.set_state(SessionState.PROCESSING)
    session_clock.advance(2)
    snapshot = coordinator.read_session(session.id)
    expected = SessionSnapshot(
        id=session.id,
        name="support",
        state=SessionState.PROCESSING,
        data={"cart": [1, {"of": "ada"}]},
        metadata=SessionMetadata(0, 1, 1),
        session_timeout=50,
        expires_at=born + timedelta(seconds=51),
    )
    assert snapshot == expected
    snapshot.data["cart"][1]["of"] = snapshot.data["new"] = "bob"
    with coordinator.checkout(session.id) as held:
        assert held.data == {"cart": [1, {"of": "ada"}]}
        held.data["cart"].append(2)
        held.set_timeout(5)
    assert snapshot.data["cart"] == [1, {"of": "bob"}]
    assert snapshot[:3] + snapshot[4:] == expected[:3] + expected[4:]
    with pytest.raises(AttributeError):
        snapshot.data = {}  # type: ignore[misc]  # the mistake under test


def test_a_snapshot_of_no_data_and_of_data_that_contain_themselves(coordinator: SessionCoordinator[Any]) -> None:
    """The former is an empty dict of its own; in the latter, what was one object is one."""
    session = coordinator.create_session()
    assert coordinator.read_session(session.id).data == {}
    with coordinator.checkout(session.id) as held:
        inner: list[Any] = []
        inner.append(inner)
        held.data.update(itself=held.data, inner=inner, again=inner, deep=[])
        for _ in range(5_000):
            held.data["deep"] = [held.data["deep"]]
    data = coordinator.read_session(session.id).data
    assert data["itself"] is data is not session.data
    assert data["inner"] is data["again"] is data["inner"][0] is not inner
    held.data.clear()


def test_reading_is_no_activity(coordinator: SessionCoordinator[Any], session_clock: ManualClock) -> None:
    """However often a session is read, its time runs out; nothing is told of it."""
    session = coordinator.create_session()
    with coordinator.subscribe() as channel:
        for _ in range(6):
            session_clock.advance(10)
            assert coordinator.read_session(session.id).metadata.last_active == 0
        assert coordinator.stats().checked_out == 0
        assert channel.get(0) is None
    session_clock.advance(0.001)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.read_session(session.id)
    assert (caught.value.cause, caught.value.ended_at) == (RemovalCause.IDLE, 60)


def test_reading_raises_as_a_look_does(coordinator: SessionCoordinator[Any]) -> None:
    """For what is not there, has ended, is no str, or once the coordinator is closed."""
    session = coordinator.create_session("support")
    with pytest.raises(SessionNotFoundError):
        coordinator.read_session("nothing")
    with pytest.raises(SessionNotFoundError):
        coordinator.read_session("support")
    with pytest.raises(TypeError, match="session id must be a str"):
        coordinator.read_session(7)  # type: ignore[arg-type]  # the mistake under test
    coordinator.close_session(session.id)
    with pytest.raises(SessionExpiredError):
        coordinator.read_session(session.id)
    coordinator.close()
    for session_id in (session.id, "nothing"):
        with pytest.raises(CoordinatorClosedError):
            coordinator.read_session(session_id)


def test_reading_waits_for_no_checkout(coordinator: SessionCoordinator[Any], session_clock: ManualClock) -> None:
    """While another thread has the session, and others wait for it, however long: it sees the data as they are now."""
    session = coordinator.create_session(data={"step": 0})
    with coordinator.checkout(session.id) as held:
        with in_thread(coordinator.checkout(session.id, timeout=WAIT).__enter__) as waiting:
            for step in range(3):
                session_clock.advance(1000)
                held.data["step"] = step
                with in_thread(coordinator.read_session, session.id) as read:
                    assert read.result(WAIT).data == {"step": step}
            assert not waiting.done()
            coordinator.close_session(session.id)
            with pytest.raises(SessionExpiredError):
                coordinator.read_session(session.id)
            assert isinstance(waiting.exception(WAIT), SessionExpiredError)


def test_a_session_that_is_being_made_is_not_read(session_coordinator: CoordinatorFactory) -> None:
    """As it is not found."""
    found: list[Any] = []

    def make(session: Any) -> None:
        with pytest.raises(SessionNotFoundError) as caught:
            coordinator.read_session(session.id)
        found.append(caught.value)

    coordinator = session_coordinator(one_minute(), resource_factory=make)
    coordinator.create_session()
    assert len(found) == 1


def test_data_are_copied_with_the_lock_free(session_coordinator: CoordinatorFactory) -> None:
    """However large they are, no other call waits for that."""
    clock = HookedClock()
    coordinator = session_coordinator(one_minute(), clock=clock)
    seen: list[bool] = []

    class Telling(dict[str, Any]):
        def copy(self) -> dict[str, Any]:
            seen.append(lock_is_free(coordinator))
            return dict(self)

    session = coordinator.create_session(data={"a": 1})
    session.data["a"] = {"b": 2}
    # No public call takes a dict of another kind.
    real = session._data
    session._data = Telling(real or {})
    assert coordinator.read_session(session.id).data == {"a": {"b": 2}}
    assert seen == [True]


def test_data_that_another_thread_changes_meanwhile_are_copied(coordinator: SessionCoordinator[Any]) -> None:
    """A reader never raises, and sees each value that has been there for long."""
    session = coordinator.create_session(data={"fixed": {"a": [1]}})
    stop = threading.Event()

    def change() -> None:
        with coordinator.checkout(session.id) as held:
            number = 0
            while not stop.is_set():
                number += 1
                for container in (held.data, held.data["fixed"]):
                    container[f"k{number}"] = {"n": [number]}
                    container.pop(f"k{number - 50}", None)

    with in_thread(change) as changing:
        try:
            for _ in range(2_000):
                assert coordinator.read_session(session.id).data["fixed"]["a"] == [1]
        finally:
            stop.set()
    assert changing.result(WAIT) is None
