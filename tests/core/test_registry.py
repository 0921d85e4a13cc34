"""Finding sessions by id and by name: creating, looking, listing, switching."""

from __future__ import annotations

import copy
import pickle
import re
from datetime import timedelta
from typing import Any

import pytest

from sessionkit import (
    CoordinatorConfig,
    RemovalCause,
    SessionCoordinator,
    SessionError,
    SessionExistsError,
    SessionExpiredError,
    SessionMetadata,
    SessionNotFoundError,
    SessionState,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import one_minute


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory) -> SessionCoordinator[Any]:
    return session_coordinator(one_minute())


def test_defaults_are_those_of_the_docs() -> None:
    """One hour of timeout, five minutes between cleanups, 1000 sessions, no lifetime, reject, 100 events."""
    config = CoordinatorConfig()

    assert (config.session_timeout, config.cleanup_interval, config.max_active_sessions) == (3600, 300, 1000)
    assert (config.max_lifetime, config.on_full, config.event_capacity) == (None, "reject", 100)


def test_durations_may_be_timedeltas() -> None:
    """A timedelta means its total seconds, wherever seconds are taken."""
    config = CoordinatorConfig(
        session_timeout=timedelta(hours=2), cleanup_interval=timedelta(minutes=1), max_lifetime=timedelta(days=1)
    )

    assert (config.session_timeout, config.cleanup_interval, config.max_lifetime) == (7200, 60, 86400)


def test_create_gives_a_live_session(coordinator: SessionCoordinator[Any], session_clock: ManualClock) -> None:
    """A new session is active, empty, just touched, and found by its id."""
    session_clock.advance(5)

    session = coordinator.create_session()

    assert session.state is SessionState.ACTIVE
    assert session.metadata == SessionMetadata(created_at=5, last_active=5, message_count=0)
    assert (session.name, session.data, session.resource) == (None, {}, None)
    assert coordinator.get_session(session.id) is session
    assert session.id in coordinator
    assert len(coordinator) == 1


def test_generated_ids_carry_256_bits(coordinator: SessionCoordinator[Any]) -> None:
    """A generated id is 43 URL-safe characters, another one each time."""
    ids = {coordinator.create_session().id for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", session_id) for session_id in ids)


def test_create_takes_name_id_data_resource_and_timeout(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """Each option of create_session is what the session then has; the data is copied."""
    data = {"lang": "en"}
    agent = object()

    session = coordinator.create_session("support", session_id="s-1", data=data, resource=agent, session_timeout=5)
    assert (session.session_timeout, coordinator.create_session().session_timeout) == (5, 60)
    session.data["step"] = 1

    assert (session.name, session.id, session.resource) == ("support", "s-1", agent)
    assert session.data == {"lang": "en", "step": 1}
    assert data == {"lang": "en"}
    session_clock.advance(5.001)
    assert "s-1" not in coordinator


def test_a_name_and_an_id_are_taken_while_their_session_lives(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """A second session of the same name or id is refused; after the end of the first both are free."""
    first = coordinator.create_session("support", session_id="s-1")

    with pytest.raises(SessionExistsError, match="name 'support'"):
        coordinator.create_session("support")
    with pytest.raises(SessionExistsError, match="id 's-1'"):
        coordinator.create_session(session_id="s-1")
    assert len(coordinator) == 1
    coordinator.close_session(first.id)
    second = coordinator.create_session("support", session_id="s-1")
    session_clock.advance(61)
    third = coordinator.create_session("support", session_id="s-1")

    assert coordinator.list_sessions() == [third]
    assert coordinator.stats().removed[RemovalCause.IDLE] == 1
    assert second.state is SessionState.CLOSED


def test_an_expired_name_is_free_for_a_session_with_another_id(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """The name of a session that expired can be taken although no cleanup has run, and then means the new one."""
    coordinator.create_session("support")
    session_clock.advance(61)

    successor = coordinator.create_session("support")

    assert coordinator.switch_session("support") is successor


def test_get_looks_and_does_not_touch(coordinator: SessionCoordinator[Any], session_clock: ManualClock) -> None:
    """Getting a session leaves its idle time running."""
    session = coordinator.create_session()
    session_clock.advance(40)
    coordinator.get_session(session.id)
    session_clock.advance(21)

    with pytest.raises(SessionExpiredError):
        coordinator.get_session(session.id)


def test_unknown_ids_are_not_found(coordinator: SessionCoordinator[Any]) -> None:
    """Every call that names a session raises SessionNotFoundError for an id that nobody has, and says which."""

    def check_out(session_id: str) -> None:
        with coordinator.checkout(session_id):
            pytest.fail("it was checked out")

    for call in (
        coordinator.get_session,
        coordinator.touch_session,
        coordinator.switch_session,
        coordinator.close_session,
        check_out,
    ):
        with pytest.raises(SessionNotFoundError, match="'nobody'") as caught:
            call("nobody")
        assert caught.value.session_id == "nobody"
        assert type(caught.value) is SessionNotFoundError
    assert isinstance(caught.value, LookupError)
    with pytest.raises(SessionNotFoundError, match="'no body'"):
        coordinator.switch_session("no body")


def test_a_closed_session_is_remembered_as_closed(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """Closing says CLOSED to every caller later, a second close included."""
    session = coordinator.create_session("support")
    session_clock.advance(3)
    coordinator.close_session(session.id)

    for call in (coordinator.get_session, coordinator.close_session, coordinator.switch_session):
        with pytest.raises(SessionExpiredError, match="it was closed") as caught:
            call(session.id)
        assert (caught.value.session_id, caught.value.cause, caught.value.ended_at) == (
            session.id,
            RemovalCause.CLOSED,
            3,
        )
    with pytest.raises(SessionExpiredError):
        coordinator.switch_session("support")
    with pytest.raises(SessionExpiredError):
        session.touch()


def test_errors_survive_pickling_and_copying() -> None:
    """An error can go to another process and comes back with its data."""
    error = SessionExpiredError("s-1", RemovalCause.IDLE, 60.0, 1800.0)

    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  our own bytes
        assert (twin.session_id, twin.cause, twin.ended_at, str(twin)) == ("s-1", RemovalCause.IDLE, 60.0, str(error))
    assert issubclass(SessionExpiredError, SessionError)


def test_switching_makes_active_by_id_or_by_name(coordinator: SessionCoordinator[Any]) -> None:
    """The active session is the one switched to last; before the first switch there is none."""
    first = coordinator.create_session("first")
    second = coordinator.create_session("second")
    assert coordinator.active_session is None

    assert coordinator.switch_session("first") is first
    assert coordinator.active_session is first
    assert coordinator.switch_session(second.id) is second
    assert coordinator.active_session is second


def test_an_id_goes_before_a_name(coordinator: SessionCoordinator[Any]) -> None:
    """Where one session's name is another one's id, switch_session means the id."""
    coordinator.create_session("twin")
    by_id = coordinator.create_session(session_id="twin")

    assert coordinator.switch_session("twin") is by_id


def test_when_the_active_session_ends_none_is_active(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """The application chooses the next one, such as the last of list_sessions(): the most recently active."""
    sessions = {}
    for name in ("a", "b", "c"):
        sessions[name] = coordinator.create_session(name, session_timeout=100 if name == "b" else None)
        session_clock.advance(1)
    coordinator.touch_session(sessions["a"].id)
    session_clock.advance(1)
    coordinator.switch_session("b")
    coordinator.close_session(sessions["b"].id)

    assert coordinator.active_session is None
    assert coordinator.switch_session(coordinator.list_sessions()[-1].id) is sessions["a"]
    assert coordinator.active_session is sessions["a"]
    coordinator.close_session(sessions["a"].id)
    assert coordinator.active_session is None
    coordinator.create_session("d")
    assert coordinator.active_session is None


@pytest.mark.parametrize("looks", [True, False], ids=["looked at in between", "not looked at"])
@pytest.mark.parametrize("cleans", [True, False], ids=["cleaned up", "not cleaned up"])
def test_when_the_active_session_expires_none_is_active(
    looks: bool, cleans: bool, coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """It makes no difference who looks, and when, nor whether a cleanup has run."""
    active = coordinator.create_session(session_timeout=10)
    other = coordinator.create_session()
    coordinator.switch_session(active.id)
    session_clock.advance(11)
    if looks:
        assert coordinator.active_session is None
    if cleans:
        assert coordinator.cleanup_inactive_sessions() == 1
    coordinator.touch_session(other.id)

    assert coordinator.active_session is None
    assert coordinator.list_sessions() == [other]


def test_an_active_session_that_is_held_when_it_ends_is_active_no_more(coordinator: SessionCoordinator[Any]) -> None:
    """A session that was closed while it is checked out is gone for every caller, and so not active."""
    session = coordinator.create_session()
    coordinator.switch_session(session.id)
    with coordinator.checkout(session.id):
        assert coordinator.active_session is session
        coordinator.close_session(session.id)
        assert coordinator.active_session is None


def test_a_rotated_session_stays_the_active_one(coordinator: SessionCoordinator[Any]) -> None:
    """Another id makes no other session of it."""
    session = coordinator.create_session()
    coordinator.switch_session(session.id)
    coordinator.rotate_session(session.id)
    assert coordinator.active_session is session


def test_list_goes_from_least_to_most_recently_active(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """list_sessions gives the live sessions in order of activity, whatever their timeouts."""
    sessions = []
    for timeout in (60, 30, 60, 30):
        sessions.append(coordinator.create_session(session_timeout=timeout))
        session_clock.advance(1)
    coordinator.touch_session(sessions[0].id)
    session_clock.advance(1)

    with coordinator.checkout(sessions[2].id):
        assert coordinator.list_sessions() == [sessions[1], sessions[3], sessions[0], sessions[2]]
    session_clock.advance(29)
    assert coordinator.list_sessions() == [sessions[0], sessions[2]]


def test_a_coordinator_is_true_also_when_it_is_empty(coordinator: SessionCoordinator[Any]) -> None:
    """`coordinator or ...` means the coordinator, although its length is 0."""
    assert len(coordinator) == 0
    assert bool(coordinator) is True


def test_in_is_false_for_what_is_no_id(coordinator: SessionCoordinator[Any]) -> None:
    """`in` answers for any object."""
    session = coordinator.create_session()

    assert session.id in coordinator
    assert "nobody" not in coordinator
    assert 5 not in coordinator
    assert session not in coordinator
    assert ["list"] not in coordinator
