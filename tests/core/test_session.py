"""One session: what it notes of itself, its states and its data."""

from __future__ import annotations

from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    InvalidSessionError,
    SessionCoordinator,
    SessionExpiredError,
    SessionState,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.support import all_at_once, one_minute


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory) -> SessionCoordinator[Any]:
    return session_coordinator(one_minute())


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


def test_a_session_outlives_its_coordinator_without_harm() -> None:
    """A session whose coordinator was dropped says what to do when it is used."""
    coordinator: SessionCoordinator[Any] = SessionCoordinator()
    session = coordinator.create_session("support")
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        del coordinator

    for call in (session.touch, session.record_message):
        with pytest.raises(CoordinatorClosedError, match="dropped"):
            call()
    assert repr(session) == f"<ManagedSession id={session.id!r} name='support' ACTIVE>"


def test_data_is_the_same_dict_for_all(coordinator: SessionCoordinator[Any]) -> None:
    """However many threads ask first, they get the same dict."""
    for _ in range(20):
        session = coordinator.create_session()
        dicts = all_at_once(*[lambda session=session: id(session.data)] * 8)
        assert len(set(dicts)) == 1
        assert session.data is session.data
