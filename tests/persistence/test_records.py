"""Where a stored session is, as far as one process knows: each state, and how it is left."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionExpiredError,
    SessionNotFoundError,
    StoreError,
)
from sessionkit.persistence.records import StoredSession, Whereabouts
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import until_it_waits
from ..helpers.processes import CONFIG, Restart, config
from ..helpers.support import (
    ATTACH,
    CREATE,
    DELETE,
    DETACH,
    LOAD,
    RENAME,
    WAIT,
    WatchedStore,
    records_in,
)

LOADING, CREATING, RESIDENT, LEAVING, PENDING_DELETE, PENDING_DETACH = Whereabouts
GONE = None


def whereabouts(coordinator: SessionCoordinator[Any], session_id: str = "it") -> Whereabouts | None:
    """Where the session is; None if nothing is known of it."""
    entries = entries_of(coordinator)
    return entries[session_id].state if session_id in entries else GONE


def entries_of(coordinator: SessionCoordinator[Any]) -> dict[str, StoredSession]:
    """What is known of each session. Private: the states are what these tests are about."""
    entries: dict[str, StoredSession] = coordinator._sessions._records.entries  # type: ignore[union-attr]
    return entries


def is_forgotten(coordinator: SessionCoordinator[Any]) -> bool:
    """Whether nothing is known of any session, and no call of the store is due. Private for the same reason."""
    return not entries_of(coordinator) and not coordinator._sessions._records.due  # type: ignore[union-attr]


class Walk:
    """A coordinator, and the states in which its only session was met, one after the other."""

    def __init__(self, make: CoordinatorFactory, store: WatchedStore) -> None:
        self.store = store
        self.seen: list[Whereabouts | None] = []
        self.refuses = False
        """Whether the resource of a session cannot be made."""
        self.sessions: SessionCoordinator[Any] = make(
            config(max_active_sessions=1, on_full="passivate"),
            store=store,
            resource_factory=self._make,
            on_close=lambda session, _: self.look(session),
        )

    def _make(self, session: ManagedSession[Any]) -> str:
        self.look(session)
        if self.refuses and session.id == "it":
            raise ZeroDivisionError
        return "resource"

    def look(self, session: ManagedSession[Any] | None = None) -> None:
        """Note where the session is, unless this is another one."""
        if session is None or session.id == "it":
            self.seen.append(whereabouts(self.sessions))

    def create(self) -> None:
        self.sessions.create_session(session_id="it")
        self.look()

    def get(self) -> None:
        self.sessions.get_session("it")
        self.look()

    def close(self) -> None:
        self.sessions.close_session("it")
        self.look()

    def passivate(self) -> None:
        """Another session takes the only place for a moment."""
        self.store.before(DETACH, self.look)
        self.sessions.create_session(session_id="other")
        self.sessions.close_session("other")
        self.look()

    def clean_up(self) -> None:
        self.sessions.cleanup_inactive_sessions()
        self.look()

    def forget(self) -> None:
        """The record is asked for, and refuses to load."""
        with pytest.raises(SessionExpiredError):
            self.get()
        self.look()

    def step(self, name: str, failing: set[str]) -> list[Whereabouts | None]:
        """One of the steps above, while these operations of the store fail; the states in which the session was met.

        A name that ends with `!` is a step during which no resource can be made.
        """
        self.seen.clear()
        self.store.failing, self.refuses = failing, name.endswith("!")
        try:
            getattr(self, name.rstrip("!"))()
        except (StoreError, ZeroDivisionError):
            assert failing or self.refuses
            self.look()
        finally:
            self.store.failing, self.refuses = set(), False
        return self.seen.copy()


Step = tuple[str, set[str], list[Whereabouts | None]]
"""What is done, which operations of the store fail meanwhile, and the states in which the session is met."""

CREATED: Step = ("create", set(), [CREATING, RESIDENT])
PASSIVATED: Step = ("passivate", set(), [LEAVING, PENDING_DETACH, GONE])
ENDED: Step = ("close", set(), [LEAVING, GONE])
STILL_THERE: Step = ("passivate", {DETACH}, [LEAVING, PENDING_DETACH, PENDING_DETACH])
LOADED: Step = ("get", set(), [LOADING, RESIDENT])
RETRIED: Step = ("clean_up", set(), [GONE])

TABLE: dict[str, list[Step]] = {
    "created and ended": [CREATED, ENDED],
    "a creation that fails": [("create!", set(), [CREATING, GONE]), CREATED, ENDED],
    "a creation that fails, and its record stays": [("create!", {DELETE}, [CREATING, PENDING_DELETE]), RETRIED],
    "a creation whose record may be there": [("create", {CREATE}, [PENDING_DETACH]), RETRIED],
    "passivated and loaded": [CREATED, PASSIVATED, LOADED, ENDED],
    "a load that fails": [CREATED, PASSIVATED, ("get!", set(), [LOADING, GONE]), LOADED, ENDED],
    "a load that fails after attaching": [
        *(CREATED, PASSIVATED),
        ("get!", {DETACH}, [LOADING, PENDING_DETACH]),
        ("clean_up", {DETACH}, [PENDING_DETACH]),
        *(RETRIED, LOADED, ENDED),
    ],
    "a load that may have attached": [CREATED, PASSIVATED, ("get", {ATTACH, DETACH}, [PENDING_DETACH]), RETRIED],
    "a load that is not even tried": [CREATED, PASSIVATED, ("get", {LOAD, ATTACH}, [GONE]), LOADED, ENDED],
    "a deletion that fails": [
        CREATED,
        ("close", {DELETE}, [LEAVING, PENDING_DELETE]),
        ("forget", set(), [PENDING_DELETE]),
        ("create", {CREATE, DELETE}, [PENDING_DELETE]),
        ("clean_up", {DELETE}, [PENDING_DELETE]),
        RETRIED,
    ],
    "an id that is created anew while its deletion is due": [
        *(CREATED, ("close", {DELETE}, [LEAVING, PENDING_DELETE])),
        *(CREATED, ("clean_up", set(), [RESIDENT]), ENDED),
    ],
    "a detach that fails": [CREATED, STILL_THERE, ("clean_up", {DETACH}, [PENDING_DETACH]), RETRIED],
    "a detach that is due for a session that is asked for": [CREATED, STILL_THERE, LOADED, ENDED],
}


@pytest.mark.parametrize("way", TABLE)
def test_each_state_is_left_as_its_table_says(
    session_coordinator: CoordinatorFactory, store: WatchedStore, way: str
) -> None:
    """Whatever fails on the way; in the end nothing is known of the session, and nothing is due."""
    walk = Walk(session_coordinator, store)
    for name, failing, states in TABLE[way]:
        assert (name, walk.step(name, failing)) == (name, states)
    assert is_forgotten(walk.sessions)


def test_the_table_names_every_state() -> None:
    """And each is met on some way."""
    named = StoredSession.__doc__ or ""
    assert [line.strip() for line in named.splitlines() if line.strip().isupper()] == list(Whereabouts.__members__)
    assert {state for steps in TABLE.values() for _, _, states in steps for state in states} == {GONE, *Whereabouts}


def test_a_session_that_comes_back_before_it_is_detached_stays(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """Cleanup detaches one after the other: one that is loaded, or being loaded, meanwhile is in memory for good."""
    coordinator = session_coordinator(config(max_active_sessions=3, on_full="passivate"), store=store)
    for number in range(6):
        store.failing = {DETACH} if number >= 3 else set()
        coordinator.create_session(session_id=f"s-{number}")
    store.failing.clear()
    moved = [f"s-{number}" for number in range(3)]
    assert [whereabouts(coordinator, session_id) for session_id in moved] == [PENDING_DETACH] * 3
    for number in range(3, 6):
        coordinator.close_session(f"s-{number}")
    loaded: list[ManagedSession[Any]] = []

    def load_the_others() -> None:
        others = [session_id for session_id in moved if whereabouts(coordinator, session_id) is PENDING_DETACH]
        loaded.extend(map(coordinator.get_session, others))

    store.before(DETACH, load_the_others)
    coordinator.cleanup_inactive_sessions()
    assert (len(loaded), store.calls[DETACH]) == (2, 4)
    for session in loaded:
        assert coordinator.get_session(session.id) is session
        coordinator.close_session(session.id)
    assert is_forgotten(coordinator)


@pytest.mark.parametrize("operation", [ATTACH, DETACH])
def test_a_session_that_is_created_while_its_id_is_loaded_or_detached(
    session_coordinator: CoordinatorFactory, store: WatchedStore, operation: str
) -> None:
    """The creation waits for that, and the new session is in memory here, as other processes see it too."""
    coordinator = session_coordinator(CONFIG, store=store)
    store.failing = {CREATE}
    with pytest.raises(StoreError):
        coordinator.create_session(session_id="it")
    store.failing.clear()
    creating: list[Future[Any]] = []

    def create_meanwhile() -> None:
        thread_id = pool.submit(get_ident).result(WAIT)
        creating.append(pool.submit(coordinator.create_session, session_id="it"))
        until_it_waits(thread_id, creating[0].done)

    store.before(operation, create_meanwhile)
    with ThreadPoolExecutor(1) as pool:
        if operation == ATTACH:
            with pytest.raises(SessionNotFoundError):
                coordinator.get_session("it")
        else:
            coordinator.cleanup_inactive_sessions()
        session = creating[0].result(WAIT)
    assert (whereabouts(coordinator), coordinator.get_session("it")) == (RESIDENT, session)
    found = store.store.load("it")
    assert found is not None
    assert len(found.elsewhere) == 1


def test_a_session_that_gets_an_id_of_which_a_detach_is_due(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """The store never had a session of this id: nothing is to be detached once another one has it."""
    coordinator = session_coordinator(CONFIG, store=store)
    store.failing = {CREATE}
    with pytest.raises(StoreError):
        coordinator.create_session(session_id="new")
    store.failing.clear()
    coordinator.create_session(session_id="it")
    coordinator.rotate_session("it", "new")
    coordinator.cleanup_inactive_sessions()
    assert (whereabouts(coordinator, "new"), store.calls[DETACH]) == (RESIDENT, 0)
    coordinator.close_session("new")
    assert is_forgotten(coordinator)


def test_a_creation_interrupted_when_its_record_was_made(
    session_coordinator: CoordinatorFactory, store: WatchedStore, session_clock: ManualClock
) -> None:
    """Nobody was given the session: this process does not keep it alive, and the record goes when its time is up."""
    coordinator = session_coordinator(CONFIG, store=store)

    def interrupt() -> None:
        raise KeyboardInterrupt

    store.after(CREATE, interrupt)
    with pytest.raises(KeyboardInterrupt):
        coordinator.create_session(session_id="it")
    assert coordinator.cleanup_inactive_sessions() == 0
    assert is_forgotten(coordinator)
    session_clock.advance(61)
    assert coordinator.cleanup_inactive_sessions() == 1


def test_a_coordinator_closed_while_it_loads_keeps_the_record(
    restart: Restart, store: WatchedStore, path: Path
) -> None:
    """The session that was made of it leaves memory again, and nothing is known of it here."""
    restart(store=store).create_session(session_id="it", data={"a": 1})
    causes: list[RemovalCause] = []

    def make(session: ManagedSession[Any]) -> str:
        coordinator.close()
        return "resource"

    coordinator = restart(resource_factory=make, on_close=lambda _, cause: causes.append(cause))
    with pytest.raises(CoordinatorClosedError):
        coordinator.get_session("it")
    assert causes == [RemovalCause.SHUTDOWN]
    assert is_forgotten(coordinator)
    assert records_in(path)["it"].data == '{"a":1}'


def test_a_session_closed_while_it_is_rotated_refuses_to_load_by_its_new_id(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """If the store fails to delete its record, which has that id already, until cleanup has deleted it."""
    coordinator = session_coordinator(CONFIG, store=store)
    coordinator.create_session(session_id="old")

    def close() -> None:
        coordinator.close_session("old")
        store.failing = {DELETE}

    store.after(RENAME, close)
    with pytest.raises(SessionExpiredError):
        coordinator.rotate_session("old", "new")
    assert whereabouts(coordinator, "new") is PENDING_DELETE
    assert "new" not in coordinator
    store.failing.clear()
    coordinator.cleanup_inactive_sessions()
    assert (is_forgotten(coordinator), store.store.page(None, 10)) == (True, [])
