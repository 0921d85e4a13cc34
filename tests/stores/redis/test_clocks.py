"""Clocks that disagree: hosts with a wrong wall clock on one Redis server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
from freezegun import freeze_time

from sessionkit import CoordinatorConfig, SessionCoordinator, SessionNotFoundError
from sessionkit.stores import RedisStore
from sessionkit.stores.redis.liveness import ServerClock
from sessionkit.testing.store_contract import record
from sessionkit.util.clock import stopwatch

from ...helpers.redis_server import shared_server

CONFIG = CoordinatorConfig(session_timeout=600, cleanup_interval=60)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real server."""
    with shared_server() as found:
        yield found


class WrongClock:
    """The clocks of a host: the wall clock is wrong by so many seconds."""

    def __init__(self, wrong_by: float) -> None:
        self._wrong_by = wrong_by

    def __call__(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time() + self._wrong_by


def host(url: str, prefix: str, wrong_by: float) -> SessionCoordinator[Any]:
    """A coordinator on a host whose wall clock is wrong."""
    store = RedisStore(url, prefix)
    clock = WrongClock(wrong_by)
    # Private, because a replaced `time.time` is taken for the server's, as in any test.
    store._clock.host_clock = clock.wall
    return SessionCoordinator[Any](CONFIG, store=store, clock=clock)


@pytest.mark.parametrize("wrong_by", [3600.0, -3600.0])
def test_hosts_whose_clocks_are_wrong_lose_nothing(url: str, wrong_by: float) -> None:
    """The server's clock decides what has expired: a host whose own clock is wrong removes no session too early, and
    keeps none for too long.
    """
    prefix = f"test-{secrets.token_hex(4)}"
    now = time.time()
    with host(url, prefix, 0.0) as right, host(url, prefix, wrong_by) as wrong:
        store = right.store
        assert store is not None
        # Also for whoever has asked for nothing yet, and is no instance.
        operator = RedisStore(url, prefix)
        # Private, as above.
        operator._clock.host_clock = lambda: time.time() + wrong_by
        assert abs(operator.clock_offset() + wrong_by) < 1
        operator.close()
        instance = store.join(1.0, "gone")
        for idle in (590, 610):
            store.create(
                record(f"idle-{idle}", created_at=now - 700, last_active=now - idle, session_timeout=600.0), instance
            )
        store.detach(["idle-590", "idle-610"], instance)
        assert wrong.cleanup_inactive_sessions() == 1
        assert wrong.get_session("idle-590").id == "idle-590"
        with pytest.raises(SessionNotFoundError):
            right.get_session("idle-610")
        wrong.touch_session("idle-590")
        made = wrong.create_session(session_id="made")
        wrong.cleanup_inactive_sessions()
        for found in store.page(None, 10):
            assert abs(found.last_active - now) < 60, found
        assert right.get_session(made.id).metadata.created_at <= time.monotonic()
        assert right.cleanup_inactive_sessions() == 0
        store.leave(instance)


def test_the_servers_time_is_known_between_two_bounds() -> None:
    """What was asked and answered says between which bounds it is; a clock that has been set begins anew."""
    server = ServerClock()
    server.host_clock = lambda: 1000.0 + stopwatch()
    assert server.offset() == 0.0
    server.note(1000.0 + stopwatch(), stopwatch() - 1)
    assert server.offset() == 0.0
    server.note(1500.0 + stopwatch(), stopwatch() - 1)
    assert 499.9 < server.offset() < 501.1
    server.note(1500.5 + stopwatch(), stopwatch())
    assert 500.4 < server.offset() < 500.6
    server.note(990.0 + stopwatch(), stopwatch())
    assert -10.1 < server.offset() < -9.9


def test_a_frozen_clock_is_gone_by() -> None:
    """While a test has frozen the time, the store takes that for the server's."""
    server = ServerClock()
    with freeze_time("2026-01-01"):
        server.note(2e9, stopwatch())
        assert server.offset() == 0.0
    assert server.offset() > 1e6
