"""The mistakes that a person makes: each is refused at once, says what was wrong, and changes nothing."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from sessionkit import CoordinatorConfig, InvalidSessionError, SessionCoordinator, SessionError, SessionNotFoundError
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.wsgi import SessionMiddleware

BAD_NAMES = ["", "x" * 65, "naïve", "new\nline", "tab\t", "nul\0", "a/b", "emoji 🎈", "trailing\n"]
BAD_IDS = ["", "x" * 129, "ünicode", "with space", "a/b", "..%2f", "new\nline", "x\x7f"]
WRONG_TYPES: list[Any] = [5, 5.0, b"bytes", True, ["list"], object()]
BAD_DURATIONS = [
    0,
    -1,
    -0.001,
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    pytest.param(10**5000, id="5001 digits"),
    timedelta(0),
    timedelta(seconds=-1),
]
WRONG_DURATIONS: list[Any] = ["60", "1h", True, False, [60], 5j, object()]


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory) -> SessionCoordinator[Any]:
    return session_coordinator()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_out_of_form_are_refused(name: str, coordinator: SessionCoordinator[Any]) -> None:
    """A name is 1 to 64 of ASCII letters, digits, space, '.', '_' and '-'; the message says so."""
    with pytest.raises(InvalidSessionError, match="1 to 64 of ASCII letters") as caught:
        coordinator.create_session(name)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SessionError)
    assert coordinator.stats().created == 0


@pytest.mark.parametrize("name", ["x", "x" * 64, "My chat 2", "a.b_c-d", " "])
def test_names_in_form_are_taken(name: str, coordinator: SessionCoordinator[Any]) -> None:
    """Every name in form is taken as it is."""
    assert coordinator.create_session(name).name == name
    assert coordinator.switch_session(name).name == name


@pytest.mark.parametrize("session_id", BAD_IDS)
def test_ids_out_of_form_are_refused(session_id: str, coordinator: SessionCoordinator[Any]) -> None:
    """An id is 1 to 128 of ASCII letters, digits, '.', '_' and '-', wherever one is passed in."""
    for call in (
        lambda: coordinator.create_session(session_id=session_id),
        lambda: coordinator.rotate_session("it", session_id),
    ):
        with pytest.raises(InvalidSessionError, match="1 to 128 of ASCII letters"):
            call()
    assert coordinator.stats().created == 0


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("session_id", [*BAD_IDS, "x" * 100_000, "\ud800", "a/b", "new\nline"])
def test_no_session_is_found_by_an_id_out_of_form(
    session_id: str, store: bool, session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """`in` says so and never raises, and each call that looks for a session raises `SessionNotFoundError`: for every
    caller, a session that cannot be is one that is not there."""
    coordinator = session_coordinator(store=SQLiteStore(tmp_path / "sessions.db") if store else None)
    assert session_id not in coordinator
    for call in (
        coordinator.get_session,
        coordinator.touch_session,
        coordinator.close_session,
        coordinator.save_session,
        coordinator.read_session,
        coordinator.rotate_session,
        coordinator.switch_session,
        lambda session_id: coordinator.checkout(session_id).__enter__(),
    ):
        with pytest.raises(SessionNotFoundError, match="no live session") as caught:
            call(session_id)
        assert caught.value.session_id == session_id
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", WRONG_TYPES)
def test_names_and_ids_of_the_wrong_type_are_refused(value: Any, coordinator: SessionCoordinator[Any]) -> None:
    """Whatever is no str raises TypeError and is named in the message."""
    for call in (
        lambda: coordinator.create_session(value),
        lambda: coordinator.create_session(session_id=value),
        lambda: coordinator.get_session(value),
        lambda: coordinator.switch_session(value),
        lambda: coordinator.touch_session(value),
        lambda: coordinator.close_session(value),
        lambda: coordinator.checkout(value).__enter__(),
    ):
        with pytest.raises(TypeError, match="must be a str, such as session.id, not .*" + type(value).__name__):
            call()
    assert coordinator.stats().created == 0


async def a_coroutine_function(*_: Any) -> None: ...


async def an_async_generator_function(*_: Any) -> AsyncIterator[None]:
    yield


class Agent:
    """Its calls and methods are asynchronous."""

    async def __call__(self, *_: Any) -> None: ...

    async def aclose(self, *_: Any) -> None: ...

    @staticmethod
    async def stop(*_: Any) -> None: ...

    def close(self, *_: Any) -> None: ...


ASYNCHRONOUS: dict[str, Any] = {
    "function": a_coroutine_function,
    "generator": an_async_generator_function,
    "partial": partial(a_coroutine_function, 1),
    "partial of partial": partial(partial(a_coroutine_function, 1), key=2),
    "object": Agent(),
    "partial of object": partial(Agent(), 1),
    "method": Agent().aclose,
    "partial of method": partial(Agent().aclose, 1),
    "static method": Agent.stop,
    "mock": AsyncMock(),
}
"""What can be called, and does nothing then: each can be told before it is called."""


def duration_calls(coordinator: SessionCoordinator[Any]) -> list[tuple[str, Callable[[Any], object]]]:
    return [
        ("session_timeout", lambda value: CoordinatorConfig(session_timeout=value)),
        ("cleanup_interval", lambda value: CoordinatorConfig(cleanup_interval=value)),
        ("max_lifetime", lambda value: CoordinatorConfig(max_lifetime=value)),
        ("session_timeout", lambda value: coordinator.create_session(session_timeout=value)),
        ("max_age", lambda value: coordinator.cleanup_inactive_sessions(max_age=value)),
    ]


@pytest.mark.parametrize("value", BAD_DURATIONS)
def test_durations_out_of_range_are_refused(value: Any, coordinator: SessionCoordinator[Any]) -> None:
    """A duration is above 0 and finite; 0, negatives, NaN, infinities and what no float holds raise ValueError."""
    for what, call in duration_calls(coordinator):
        with pytest.raises(ValueError, match=f"{what} must be .*seconds") as caught:
            call(value)
        assert len(str(caught.value)) < 300
    assert coordinator.stats().created == 0


@pytest.mark.parametrize("value", WRONG_DURATIONS)
def test_durations_of_the_wrong_type_are_refused(value: Any, coordinator: SessionCoordinator[Any]) -> None:
    """A duration is a number or a timedelta; a bool is neither."""
    for what, call in duration_calls(coordinator):
        with pytest.raises(TypeError, match=f"{what} must be seconds as a number, or a timedelta"):
            call(value)
    with pytest.raises(TypeError, match="timeout must be seconds"):
        coordinator.checkout("s-1", timeout=value)


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, math.inf, timedelta(seconds=-1)])
def test_a_wait_out_of_range_is_refused_before_the_block(timeout: Any, coordinator: SessionCoordinator[Any]) -> None:
    """checkout checks its timeout when it is called: 0 or more, or None."""
    with pytest.raises(ValueError, match="timeout must be 0 or more"):
        coordinator.checkout("s-1", timeout=timeout)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_active_sessions": 0}, ValueError, "max_active_sessions must be at least 1, not 0"),
        ({"max_active_sessions": -5}, ValueError, "max_active_sessions must be at least 1, not -5"),
        ({"max_active_sessions": 1.0}, TypeError, r"max_active_sessions must be a whole number, not 1\.0"),
        ({"max_active_sessions": True}, TypeError, "max_active_sessions must be a whole number, not True"),
        ({"event_capacity": 0}, ValueError, "event_capacity must be at least 1, not 0"),
        ({"event_capacity": None}, TypeError, "event_capacity must be a whole number, not None"),
        (
            {"on_full": "explode"},
            ValueError,
            r"on_full must be one of \('reject', 'evict', 'passivate'\), not 'explode'",
        ),
        ({"on_full": ["reject"]}, ValueError, "on_full must be one of"),
    ],
)
def test_a_config_out_of_range_is_refused(options: Any, error: type[Exception], message: str) -> None:
    """Limits and choices are checked when the config is made."""
    with pytest.raises(error, match=message):
        CoordinatorConfig(**options)


def test_what_is_made_of_a_config_is_checked_too() -> None:
    """A config does not change, and a changed copy passes the same checks."""
    config = CoordinatorConfig()
    with pytest.raises(AttributeError):
        config.session_timeout = 5  # type: ignore[misc]  # that is what is tried
    assert replace(config, max_lifetime=timedelta(hours=2)).max_lifetime == 7200
    with pytest.raises(ValueError, match="session_timeout must be above 0"):
        replace(config, session_timeout=-1)


def test_an_interval_longer_than_the_timeout_only_warns() -> None:
    """A cleanup interval above the session timeout is legal, and warned about where the config is made."""
    with pytest.warns(UserWarning, match=r"cleanup_interval=300\.0 is longer than session_timeout=60\.0") as caught:
        CoordinatorConfig(session_timeout=60)
    assert caught[0].filename == __file__
    CoordinatorConfig(session_timeout=300)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({"session_timeout": 5},), {}, "config must be a CoordinatorConfig"),
        ((), {"clock": 5.0}, r"clock must be callable, not 5\.0"),
        ((), {"on_close": "close"}, "on_close must be callable, not 'close'"),
        ((), {"resource_factory": []}, r"resource_factory must be callable, not \[\]"),
    ],
)
def test_a_coordinator_made_of_the_wrong_things_is_refused(arguments: Any, options: Any, message: str) -> None:
    """What is no config, and what cannot be called, is refused when the coordinator is made, without a warning."""
    with pytest.raises(TypeError, match=message):
        SessionCoordinator(*arguments, **options)


@pytest.mark.parametrize("what", ["clock", "resource_factory", "on_close"])
@pytest.mark.parametrize("function", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_an_asynchronous_function_is_refused(what: str, function: Any) -> None:
    """In whatever form, when the coordinator is made; the message says what to do."""
    message = f"{what} must be a plain function, not the asynchronous .*sessionkit.aio.on_loop"
    with pytest.raises(TypeError, match=message):
        SessionCoordinator(**{what: function})


@pytest.mark.parametrize(
    "function",
    [Agent, Agent().close, Mock(), partial(Agent().close, 1)],
    ids=["class", "method", "mock", "partial of method"],
)
def test_a_function_that_only_has_to_do_with_asynchronous_ones_is_none(function: Any) -> None:
    """The class of asynchronous objects makes one; a plain method of an asynchronous object is plain."""
    with SessionCoordinator[Any](resource_factory=function, on_close=function) as coordinator:
        assert len(coordinator) == 0


def test_a_web_application_that_is_asynchronous_is_refused() -> None:
    """An ASGI application is no WSGI application."""
    with SessionCoordinator[Any]() as coordinator, pytest.raises(TypeError, match="app must be a plain function"):
        SessionMiddleware(Agent(), coordinator)  # type: ignore[arg-type]  # the mistake under test


def test_ids_and_names_cannot_be_changed(coordinator: SessionCoordinator[Any]) -> None:
    """What a session is known by is read-only."""
    session = coordinator.create_session("support")
    for attribute in ("id", "name"):
        with pytest.raises(AttributeError):
            setattr(session, attribute, "another")
    assert coordinator.switch_session("support").id == session.id


@pytest.mark.parametrize("dry_run", ["no", None, 1])
def test_dry_run_is_true_or_false(dry_run: Any, coordinator: SessionCoordinator[Any]) -> None:
    """A dry run is asked for with a bool."""
    with pytest.raises(TypeError, match="dry_run must be True or False"):
        coordinator.cleanup_inactive_sessions(dry_run=dry_run)


@pytest.mark.parametrize(
    ("duration", "error"), [("3", TypeError), (None, TypeError), (True, TypeError), (math.nan, ValueError)]
)
def test_the_manual_clock_takes_finite_seconds_only(duration: Any, error: type[Exception]) -> None:
    """What would break the clock is refused, and the clock stands where it stood."""
    clock = ManualClock(5)
    with pytest.raises(error, match="duration must be"):
        clock.advance(duration)
    assert clock() == 5


@pytest.mark.parametrize("reading", ["12:00", None, [5]])
def test_a_clock_that_gives_no_number_is_refused(reading: Any) -> None:
    """A clock gives seconds as a number; the message has what it gave instead."""
    with SessionCoordinator[Any](clock=lambda: reading) as coordinator:
        with pytest.raises(TypeError, match="must give seconds as a number"):
            coordinator.create_session()
        with pytest.raises(TypeError, match="must give seconds as a number"):
            len(coordinator)


def test_a_checkout_without_with_says_what_to_write(coordinator: SessionCoordinator[Any]) -> None:
    """A caller that forgets `with` is told."""
    session = coordinator.create_session()
    with pytest.raises(AttributeError, match=r"has no 'data'; write `with coordinator\.checkout"):
        _ = coordinator.checkout(session.id).data  # type: ignore[attr-defined]  # the mistake under test


@pytest.mark.parametrize("data", [["a"], "text", 5, [("a", 1)]])
def test_data_of_the_wrong_type_is_refused(data: Any, coordinator: SessionCoordinator[Any]) -> None:
    """The data of a session is a dict."""
    with pytest.raises(TypeError, match="data must be a dict or another mapping"):
        coordinator.create_session("support", data=data)
    assert coordinator.create_session("support").data == {}
