"""Clocks that disagree: hosts with a wrong wall clock, that steps, or that were suspended, on one Redis server."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.resources import files
from typing import Any

import pytest
from freezegun import freeze_time

from sessionkit import CoordinatorConfig, SessionCoordinator, SessionNotFoundError
from sessionkit.stores import RedisStore
from sessionkit.stores.redis.liveness import ServerClock
from sessionkit.testing.store_contract import record
from sessionkit.util.clock import steady_clock

from ...helpers.redis_server import Keys, shared_server
from ...helpers.support import examples

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
    server.host_clock = lambda: 1000.0 + steady_clock()
    assert server.offset() == 0.0
    server.note(1000.0 + steady_clock(), steady_clock() - 1)
    assert server.offset() == 0.0
    server.note(1500.0 + steady_clock(), steady_clock() - 1)
    assert 499.9 < server.offset() < 501.1
    server.note(1500.5 + steady_clock(), steady_clock())
    assert 500.4 < server.offset() < 500.6
    server.note(990.0 + steady_clock(), steady_clock())
    assert -10.1 < server.offset() < -9.9


def test_a_frozen_clock_is_gone_by() -> None:
    """While a test has frozen the time, the store takes that for the server's."""
    server = ServerClock()
    with freeze_time("2026-01-01"):
        server.note(2e9, steady_clock())
        assert server.offset() == 0.0
    assert server.offset() > 1e6


# ---- Hosts that are suspended


class World:
    """Hosts on one server, whose time goes on as it is told; each host's wall clock is its own."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url, self._prefix = url, f"test-{secrets.token_hex(4)}"
        self._ahead = 0.0
        monkeypatch.setattr("sessionkit.stores.redis.liveness.steady_clock", self.steady)
        monkeypatch.setattr("sessionkit.stores.redis.store.steady_clock", self.steady)

    def steady(self) -> float:
        return steady_clock() + self._ahead

    def pass_time(self, seconds: float) -> None:
        """So many seconds pass, on all hosts and on the server. A suspended host does nothing meanwhile."""
        self._ahead += seconds
        with Keys(self._url, self._prefix).client() as client:
            client.set(self._prefix, repr(self._ahead))

    def host(self) -> tuple[SessionCoordinator[Any], HostClock]:
        """A coordinator on a host of its own, and the host's clocks."""
        store, clock = RedisStore(self._url, self._prefix), HostClock(self)
        # Private, as above; and a real server's time cannot be set.
        store._clock.host_clock = clock.wall
        script = files("sessionkit.stores.redis").joinpath("store.lua").read_text()
        real = "tonumber(clock[1]) +"
        assert script.count(real) == 1
        script = script.replace(real, f"{real} (redis.call('GET', '{self._prefix}') or 0) +")
        store._server._script = store._server.client.register_script(script)
        return SessionCoordinator[Any](CONFIG, store=store, clock=clock), clock


class HostClock(WrongClock):
    """The clocks of a host in that world: the first one counts suspension, as the default clock does."""

    def __init__(self, world: World) -> None:
        super().__init__(0.0)
        self._world = world

    def __call__(self) -> float:
        return self._world.steady()

    def wall(self) -> float:
        return super().wall() + self._world._ahead

    def step(self, seconds: float) -> None:
        self._wrong_by += seconds


def test_a_host_that_was_suspended_revives_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was suspended, or whose wall clock is set, says what the others say, and revives nothing.

    It knows how late it is at the server before it has asked.
    """
    world = World(url, monkeypatch)
    (suspended, clock), (other, _) = world.host(), world.host()
    with suspended, other:
        session = suspended.create_session()
        stored = other.create_session().id
        world.pass_time(8 * 3600)
        # As a host may believe that no time has passed.
        clock.step(-8 * 3600)
        assert session.id not in suspended
        assert stored not in suspended
        assert session.id not in other
        with pytest.raises(SessionNotFoundError):
            suspended.touch_session(session.id)
        suspended.cleanup_inactive_sessions()
        assert session.id not in other
        made = suspended.create_session()
        assert made.id in other
        assert abs(other.get_session(made.id).metadata.last_active - world.steady()) < 60


@pytest.mark.parametrize("seed", range(examples(4)))
def test_hosts_agree_and_nothing_revives(url: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever happens to the clocks of hosts, they say the same of a session within one write interval, and what one
    of them has said to be expired stays so.
    """
    chance = random.Random(seed)  # noqa: S311  no secret
    world = World(url, monkeypatch)
    timeout, write_interval = CONFIG.session_timeout, 2 * CONFIG.cleanup_interval
    with ExitStack() as stack:
        hosts = [world.host() for _ in range(2)]
        for coordinator, _ in hosts:
            stack.enter_context(coordinator)
        live = {hosts[0][0].create_session(session_id=f"s{number}").id: world.steady() for number in range(3)}
        gone: set[str] = set()
        for _ in range(30):
            coordinator, clock = chance.choice(hosts)
            session_id = chance.choice([*live])
            match chance.randrange(6):
                case 0:
                    clock.step(chance.choice([-1, 1]) * chance.choice([0.5, 300, 601, 8 * 3600]))
                case 1 if chance.random() < 0.1:
                    world.pass_time(8 * 3600)
                case 2 | 3:
                    try:
                        coordinator.touch_session(session_id)
                    except SessionNotFoundError:
                        gone.add(session_id)
                    else:
                        assert session_id not in gone
                        live[session_id] = world.steady()
                case _:
                    world.pass_time(chance.choice([1, 30, 59]))
                    for each, _ in hosts:
                        each.cleanup_inactive_sessions()
            for name, last_active in live.items():
                said = [name in each for each, _ in hosts]
                idle = world.steady() - last_active
                if idle < timeout - 1:
                    assert all(said)
                if idle > timeout + write_interval + 1 or name in gone:
                    assert not any(said)
                if not all(said):
                    gone.add(name)
