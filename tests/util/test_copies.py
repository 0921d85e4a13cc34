"""Live objects refuse to be copied or pickled; what tells of them can be copied, pickled and turned into JSON."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessionkit import CoordinatorStats, EventKind, RemovalCause, SessionCoordinator, SessionState
from sessionkit.stores import RedisStore, SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.wsgi import SessionMiddleware, WebSession

from ..helpers.support import one_minute
from ..helpers.web import Site, Visitor

COPIES: list[Callable[[Any], object]] = [
    copy.copy,
    copy.deepcopy,
    lambda value: copy.deepcopy({"in": [value]}),
    *(lambda value, protocol=number: pickle.dumps(value, protocol) for number in range(pickle.HIGHEST_PROTOCOL + 1)),
]


def session_of_a_request(coordinator: SessionCoordinator[Any]) -> WebSession:
    seen: list[WebSession] = []
    Visitor(SessionMiddleware(Site(index=seen.append), coordinator)).get()
    return seen[0]


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda coordinator, _: coordinator, "make another with the same config in each other process"),
        (lambda coordinator, _: coordinator.create_session(), r"keep its id, .* get_session\(\)"),
        (lambda coordinator, _: coordinator.checkout("id"), r"call checkout\(\) for each with block"),
        (lambda coordinator, _: coordinator.subscribe(), r"call subscribe\(\) for each reader"),
        (lambda _, path: SQLiteStore(path / "sessions.db"), "make another SQLiteStore with the same path"),
        (lambda *_: RedisStore("redis://localhost:1"), "make another RedisStore for the same server and prefix"),
        (lambda coordinator, _: session_of_a_request(coordinator), r"session\.copy\(\) gives a dict"),
    ],
    ids=["coordinator", "session", "checkout", "channel", "SQLiteStore", "RedisStore", "session of a request"],
)
def test_a_live_object_cannot_be_copied(
    make: Any, advice: str, session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """By whatever way it is tried, a `TypeError` names the object and says what to do instead."""
    live = make(session_coordinator(), tmp_path)
    for make_copy in COPIES:
        with pytest.raises(TypeError, match=f"{type(live).__name__}.* can be neither copied nor pickled: .*{advice}"):
            make_copy(live)


def test_an_attempt_to_copy_harms_nothing(session_coordinator: CoordinatorFactory) -> None:
    """The originals go on: the cleanup task runs, the session is held by its checkout, the channel gets events."""
    with session_coordinator(one_minute()) as coordinator, coordinator.subscribe() as channel:
        session = coordinator.create_session()
        checkout = coordinator.checkout(session.id)
        with checkout:
            for live in (coordinator, session, checkout, channel):
                for make_copy in COPIES:
                    with pytest.raises(TypeError, match="can be neither copied nor pickled"):
                        make_copy(live)
            gc.collect()
            assert (coordinator.stats().cleanup.alive, coordinator.stats().checked_out) == (True, 1)
            session.record_message()
        coordinator.close_session(session.id)
        kinds = [event.kind for event in iter(lambda: channel.get(0), None) if event is not None]
    assert kinds == [EventKind.CREATED, EventKind.MESSAGE, EventKind.REMOVED]


def test_the_figures_can_be_copied_pickled_and_turned_into_json(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock, tmp_path: Path
) -> None:
    """`stats()._asdict()` is a dict of dicts whose keys are str, with a store and without, before and after a run."""

    def check(stats: CoordinatorStats) -> Any:
        for twin in (copy.copy(stats), copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):  # noqa: S301  our own
            assert (type(twin), twin) == (CoordinatorStats, stats)
        figures = json.loads(json.dumps(stats._asdict()))
        assert figures == stats._asdict()
        assert {type(key) for key in stats._asdict()["removed"]} == {str}
        return figures

    coordinator = session_coordinator(one_minute(), store=SQLiteStore(tmp_path / "sessions.db"))
    coordinator.create_session()
    session_clock.advance(61)
    coordinator.cleanup_inactive_sessions()
    figures = check(coordinator.stats())
    assert figures["removed"] == {cause.value: int(cause is RemovalCause.IDLE) for cause in RemovalCause}
    assert figures["cleanup"]["alive"] is False
    assert (figures["store"]["dirty"], figures["live"], figures["created"]) == (0, 0, 1)
    assert check(session_coordinator().stats())["store"] is None


def test_the_figures_of_a_moment_stay() -> None:
    """What is counted later does not change them."""
    with SessionCoordinator[Any]() as coordinator:
        before = coordinator.stats()
        coordinator.close_session(coordinator.create_session().id)
        assert sum(before.removed.values()) == before.created == 0
        assert sum(coordinator.stats().removed.values()) == 1


def test_events_can_be_copied_pickled_and_turned_into_json(session_coordinator: CoordinatorFactory) -> None:
    """So can the figures of one session, and its state: their kinds, causes and states are texts."""
    coordinator = session_coordinator()
    with coordinator.subscribe() as channel:
        session = coordinator.create_session()
        coordinator.close_session(session.id)
        told = [channel.get(0), channel.get(0)]
    for event in told:
        assert event is not None
        for twin in (copy.copy(event), copy.deepcopy(event), pickle.loads(pickle.dumps(event))):  # noqa: S301  our own
            assert twin == event
            assert twin.kind is event.kind
        assert json.loads(json.dumps(event._asdict())) == event._asdict()
    assert [json.loads(json.dumps(event))[0] for event in told] == ["created", "removed"]
    assert json.dumps({"was": session.state, **session.metadata._asdict()}).startswith('{"was": "closed"')


@pytest.mark.parametrize("member", [*RemovalCause, *EventKind, *SessionState], ids=repr)
def test_causes_kinds_and_states_are_texts(member: Any) -> None:
    """Each equals its value, has its hash, and is shown as that; its `repr` says what it is."""
    assert member == member.value == f"{member}" == json.loads(json.dumps(member))
    assert {member.value: "found"}[member] == "found"
    assert repr(member) == f"<{type(member).__name__}.{member.name}: {member.value!r}>"


def test_live_objects_can_be_referenced_weakly(session_coordinator: CoordinatorFactory) -> None:
    """A table with weak keys can say more of a session, and forgets it when the session is gone."""
    coordinator = session_coordinator()
    session = coordinator.create_session()
    notes: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary({session: "a session"})
    checkout, channel = coordinator.checkout(session.id), coordinator.subscribe()
    for live in (coordinator, session, checkout, channel):
        assert weakref.ref(live)() is live
    assert notes[coordinator.get_session(session.id)] == "a session"
    coordinator.close_session(session.id)
    del session, checkout, live
    gc.collect()
    assert len(notes) == 0
