"""Creating, finding, touching, switching, listing and closing."""

from __future__ import annotations

import copy
import pickle
import re
from datetime import timedelta
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    InvalidSessionError,
    ManagedSession,
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

from ..helpers.support import Closings, one_minute


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


@pytest.mark.parametrize(
    "activity",
    [
        lambda coordinator, session: coordinator.touch_session(session.id),
        lambda coordinator, session: coordinator.switch_session(session.id),
        lambda _, session: session.touch(),
        lambda _, session: session.record_message(),
        lambda _, session: session.record_tool_execution(),
        lambda _, session: session.set_state(SessionState.PROCESSING),
        lambda _, session: session.set_state(SessionState.ACTIVE),
    ],
    ids=["touch", "switch", "session.touch", "message", "tool execution", "state change", "same state"],
)
def test_every_activity_starts_idle_time_again(
    activity: Any, coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """A touch, a switch, a message, a tool execution and a state set each buy a full timeout."""
    session = coordinator.create_session()
    session_clock.advance(60)
    activity(coordinator, session)
    session_clock.advance(60)
    assert session.id in coordinator
    session_clock.advance(0.001)
    assert session.id not in coordinator


def test_messages_are_counted(coordinator: SessionCoordinator[Any]) -> None:
    """Only record_message counts messages, and metadata is a copy that later activity does not change."""
    session = coordinator.create_session()
    before = session.metadata
    session.record_message()
    session.record_message()
    session.record_tool_execution()

    assert (before.message_count, session.metadata.message_count) == (0, 2)


def test_states_change_freely_but_for_closed(coordinator: SessionCoordinator[Any]) -> None:
    """A live session may go from any state to any but CLOSED; only an end closes it, and nothing reopens it."""
    session = coordinator.create_session()
    live = [SessionState.WAITING_FOR_INPUT, SessionState.PROCESSING, SessionState.ACTIVE]
    for first in live:
        for second in live:
            session.set_state(first)
            session.set_state(second)
            assert session.state is second

    with pytest.raises(InvalidSessionError, match=r"ACTIVE to CLOSED.*close_session"):
        session.set_state(SessionState.CLOSED)
    with pytest.raises(TypeError, match="'processing'"):
        session.set_state("processing")  # type: ignore[arg-type]  # the mistake under test
    assert session.state is SessionState.ACTIVE
    coordinator.close_session(session.id)
    with pytest.raises(SessionExpiredError):
        session.set_state(SessionState.ACTIVE)
    assert session.state is SessionState.CLOSED


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
    """Closing says CLOSED to whoever asks later, a second close included."""
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


@pytest.mark.parametrize("cleanup", [True, False], ids=["after cleanup", "before cleanup"])
def test_expired_sessions_tell_when_their_time_ran_out(
    cleanup: bool, coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """SessionExpiredError has the instant at which the time ran out, whether or not cleanup has run."""
    session = coordinator.create_session("support")
    session_clock.advance(100)
    if cleanup:
        coordinator.cleanup_inactive_sessions()

    for name_or_id in (session.id, "support"):
        with pytest.raises(SessionExpiredError, match=r"idle for more than 60\.0 seconds") as caught:
            coordinator.switch_session(name_or_id)
        assert (caught.value.session_id, caught.value.cause, caught.value.ended_at) == (
            session.id,
            RemovalCause.IDLE,
            60,
        )


def test_tombstones_are_bounded_in_number_and_age(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """The last 1024 endings are known for an hour of the coordinator's clock."""
    ids = [coordinator.create_session().id for _ in range(1000)]
    for session_id in ids:
        coordinator.close_session(session_id)
    late = [coordinator.create_session().id for _ in range(100)]
    for session_id in late:
        coordinator.close_session(session_id)

    def error(session_id: str) -> type[Exception]:
        with pytest.raises(SessionNotFoundError) as caught:
            coordinator.get_session(session_id)
        return caught.type

    assert error(ids[75]) is SessionNotFoundError
    assert error(ids[76]) is SessionExpiredError
    assert error(late[-1]) is SessionExpiredError
    session_clock.advance(3601)
    assert error(late[-1]) is SessionNotFoundError


def test_an_id_and_a_name_that_end_again_are_remembered_anew(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """Of sessions that had the same id or name one after the other, the last ending is known, and known longest."""
    for _ in range(2):
        coordinator.create_session("again", session_id="again")
        coordinator.close_session("again")
        session_clock.advance(10)
        for _ in range(1000):
            session = coordinator.create_session("filler")
            coordinator.close_session(session.id)
    with pytest.raises(SessionExpiredError) as caught:
        coordinator.switch_session("again")
    assert caught.value.ended_at == 10


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


def test_closing_the_active_session_makes_the_most_recently_active_one_active(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """After the end of the active session comes the one that was most recently active, then the next, then none."""
    names = ["a", "b", "c"]
    sessions = {}
    for name in names:
        sessions[name] = coordinator.create_session(name, session_timeout=100 if name == "b" else None)
        session_clock.advance(1)
    coordinator.touch_session(sessions["a"].id)
    session_clock.advance(1)
    coordinator.switch_session("b")

    order = []
    while (active := coordinator.active_session) is not None:
        order.append(active.name)
        coordinator.close_session(active.id)

    assert order == ["b", "a", "c"]
    coordinator.create_session("d")
    assert coordinator.active_session is None


def test_a_checked_out_session_can_become_the_active_one(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """The most recently active session may be one that somebody has checked out."""
    resting = coordinator.create_session()
    busy = coordinator.create_session()
    active = coordinator.create_session()
    coordinator.switch_session(active.id)

    with coordinator.checkout(resting.id):
        pass
    session_clock.advance(1)
    with coordinator.checkout(busy.id):
        coordinator.close_session(active.id)
        assert coordinator.active_session is busy


@pytest.mark.parametrize("looks", [True, False], ids=["looked at in between", "not looked at"])
def test_the_expiry_of_the_active_session_does_not_depend_on_who_looks(
    looks: bool, coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """When the active session expires, the most recently active one at that instant follows, whenever it is noticed."""
    active = coordinator.create_session(session_timeout=10)
    heir = coordinator.create_session()
    other = coordinator.create_session()
    session_clock.advance(1)
    coordinator.touch_session(heir.id)
    coordinator.switch_session(active.id)
    session_clock.advance(11)
    if looks:
        assert coordinator.active_session is heir
    session_clock.advance(1)
    coordinator.touch_session(other.id)

    assert coordinator.active_session is heir


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


def test_the_context_manager_closes_everything(session_clock: ManualClock) -> None:
    """Leaving the block ends all sessions with SHUTDOWN, least recently active first, and the cleanup thread."""
    closings = Closings()
    with SessionCoordinator(clock=session_clock, on_close=closings) as coordinator:
        coordinator.create_session("a")
        coordinator.create_session("b")
        assert coordinator.stats().cleanup.alive
    assert closings == [("a", RemovalCause.SHUTDOWN), ("b", RemovalCause.SHUTDOWN)]
    assert not coordinator.stats().cleanup.alive
    assert len(coordinator) == 0


def test_after_close_every_call_says_so(coordinator: SessionCoordinator[Any]) -> None:
    """A closed coordinator raises CoordinatorClosedError; looking at it still works, and closing again does nothing."""
    session = coordinator.create_session()
    coordinator.switch_session(session.id)
    coordinator.close()

    for call in (
        lambda: coordinator.create_session(),
        lambda: coordinator.get_session(session.id),
        lambda: coordinator.touch_session(session.id),
        lambda: coordinator.switch_session(session.id),
        lambda: coordinator.close_session(session.id),
        lambda: coordinator.checkout(session.id).__enter__(),
        lambda: coordinator.cleanup_inactive_sessions(),
        lambda: coordinator.subscribe(),
        lambda: coordinator.start_cleanup_task(),
        lambda: coordinator.__enter__(),
    ):
        with pytest.raises(CoordinatorClosedError, match="closed"):
            call()
    with pytest.raises(SessionExpiredError) as caught:
        session.touch()
    assert caught.value.cause is RemovalCause.SHUTDOWN
    assert (len(coordinator), coordinator.list_sessions(), coordinator.active_session) == (0, [], None)
    assert session.id not in coordinator
    coordinator.close()
    coordinator.stop_cleanup_task()
    assert coordinator.stats().removed[RemovalCause.SHUTDOWN] == 1


def test_closing_expired_sessions_says_that_they_were_idle(session_clock: ManualClock) -> None:
    """close() gives a session that had expired before its true cause."""
    closings = Closings()
    coordinator = SessionCoordinator(one_minute(), clock=session_clock, on_close=closings)
    coordinator.create_session("a")
    session_clock.advance(30)
    coordinator.create_session("b")
    session_clock.advance(31)
    coordinator.close()

    assert closings == [("a", RemovalCause.IDLE), ("b", RemovalCause.SHUTDOWN)]


def test_closing_many_takes_more_than_one_batch(session_clock: ManualClock) -> None:
    """close() ends every session once, also where they are many, and a callback closes others meanwhile."""
    closings = Closings()

    def on_close(session: ManagedSession[Any], cause: RemovalCause) -> None:
        closings(session, cause)
        coordinator.close()

    coordinator = SessionCoordinator(clock=session_clock, on_close=on_close)
    ids = {coordinator.create_session().id for _ in range(350)}
    coordinator.close()

    assert {session_id for session_id, _ in closings} == ids
    assert len(closings) == 350


def test_a_session_outlives_its_coordinator_without_harm() -> None:
    """A session whose coordinator was dropped says what to do when it is used."""
    coordinator: SessionCoordinator[Any] = SessionCoordinator()
    session = coordinator.create_session("support")
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        del coordinator

    with pytest.raises(CoordinatorClosedError, match="dropped"):
        session.touch()
    assert repr(session) == f"<ManagedSession id={session.id!r} name='support' ACTIVE>"
