"""Hosts that are suspended and wall clocks that step, simulated: what processes on one store say of the time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sessionkit import SessionCoordinator, SessionExpiredError, SessionNotFoundError
from sessionkit.stores import Store
from sessionkit.util import clock

from ..helpers.processes import CONFIG, OpenStore
from ..helpers.support import examples

HOUR = 3600.0
TIMEOUT, WRITE_INTERVAL = CONFIG.session_timeout, 2 * CONFIG.cleanup_interval


class Host:
    """The clocks of a simulated host; a coordinator's clock is the one that counts suspension, as by default."""

    def __init__(self) -> None:
        self.steady = 1000.0
        self.epoch = 1.7e9

    def __call__(self) -> float:
        return self.steady

    def wall(self) -> float:
        return self.steady + self.epoch

    def step(self, seconds: float) -> None:
        """The wall clock is set."""
        self.epoch += seconds


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which all coordinators of the test are."""
    host = Host()
    monkeypatch.setattr("sessionkit.stores.sqlite.store.steady_clock", host)
    monkeypatch.setattr("sessionkit.stores.sqlite.store.real_wall_clock", host.wall)
    return host


Start = Callable[[], SessionCoordinator[Any]]


@pytest.fixture
def start(open_store: OpenStore, host: Host) -> Iterator[Start]:
    """Starts a process on the host, which promises to write its touches in time; all have ended when the test ends."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(SessionCoordinator[Any](CONFIG, store=open_store(), clock=host))


def in_store(coordinator: SessionCoordinator[Any]) -> str:
    """A session that is in no process's memory; this process ends."""
    session_id = coordinator.create_session().id
    coordinator.close()
    return session_id


# ---- Steps of the wall clock


@pytest.mark.parametrize("step", [8 * HOUR, -8 * HOUR, 1.0, -1.0])
def test_a_step_of_the_wall_clock_moves_no_session(start: Start, host: Host, step: float) -> None:
    """While a process has the file open, a wall clock that is set, forward or back, neither expires nor revives a
    session.
    """
    sleeping = in_store(start())
    first, second = start(), start()
    awake = first.create_session().id
    host.steady += TIMEOUT - WRITE_INTERVAL
    host.step(step)
    late = start()
    for each in (first, second, late):
        assert each.cleanup_inactive_sessions() == 0
        assert awake in each
        assert sleeping in each
        assert each.read_session(awake).expires_at == first.get_session(awake).expires_at
    late.touch_session(sleeping)
    host.steady += 2 * WRITE_INTERVAL + 1
    for each in (late, second, first):
        assert sleeping in each
        each.cleanup_inactive_sessions()
        with pytest.raises(SessionNotFoundError):
            each.get_session(awake)


@pytest.mark.parametrize("step", [-8 * HOUR, -30.0])
def test_what_has_expired_is_not_revived_by_a_wall_clock_that_is_set_back(
    start: Start, host: Host, step: float
) -> None:
    """Neither for the process that said so, nor for others, before any cleanup has seen it."""
    session_id = in_store(start())
    first, second = start(), start()
    host.steady += TIMEOUT + 1
    assert session_id not in first
    host.step(step)
    for each in (start(), second, first):
        assert session_id not in each
        with pytest.raises(SessionExpiredError):
            each.get_session(session_id)


def test_once_no_process_is_left_the_next_one_goes_by_the_wall_clock(start: Start, host: Host, store: Store) -> None:
    """A host whose clock was wrong when the first process came is not wrong for ever."""
    first, second = start(), start()
    first.cleanup_inactive_sessions()
    host.step(8 * HOUR)
    assert store.clock_offset() == -8 * HOUR  # also for a store that is no instance's
    second.cleanup_inactive_sessions()
    first.close()
    assert store.clock_offset() == -8 * HOUR
    second.close()
    assert store.clock_offset() == 0
    start().cleanup_inactive_sessions()
    assert store.clock_offset() == 0


def test_a_dead_instance_says_nothing_of_the_time(open_store: OpenStore, host: Host, store: Store) -> None:
    """A killed process that had the file open does not keep it to a time that nobody goes by."""
    killed = open_store()
    killed.join(1.0, "killed")
    host.step(HOUR)
    assert store.clock_offset() == -HOUR
    killed.close()
    assert store.clock_offset() == 0
    store.join(1.0, "next")
    assert store.clock_offset() == 0


# ---- Suspension


@pytest.mark.parametrize("with_store", [True, False])
def test_the_default_clock_counts_suspension_if_there_is_a_store(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, with_store: bool
) -> None:
    """A host that was suspended has counted that time: all its processes say the same of a session, and none revives.

    By CLOCK_BOOTTIME. Without a store, the clock is time.monotonic, which does not count it; until then, all agree.
    """
    options = {"store": open_store()} if with_store else {}
    with SessionCoordinator[Any](CONFIG, **options) as first, SessionCoordinator[Any](CONFIG, **options) as second:
        before = time.monotonic()
        session_id = first.create_session().id
        assert before - 0.01 <= first.get_session(session_id).metadata.created_at <= time.monotonic() + 0.01
        # Private, because it is the system that is simulated.
        monkeypatch.setattr(clock, "_read_steady_clock", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + 8 * HOUR)
        assert (session_id in first) != with_store
        if with_store:
            assert session_id not in second
            with pytest.raises(SessionExpiredError):
                first.touch_session(session_id)
            first.cleanup_inactive_sessions()
            assert session_id not in second


# ---- All of it


@pytest.mark.parametrize("seed", range(examples(10)))
def test_processes_agree_and_nothing_revives(start: Start, host: Host, seed: int) -> None:
    """Whatever happens to the clocks of their host, processes on one SQLite store say the same of a session within one
    write interval, and what any of them has said to be expired stays so.
    """
    chance = random.Random(seed)  # noqa: S311  no secret
    processes = [start() for _ in range(2)]
    live = {processes[0].create_session(session_id=f"s{number}").id: host.steady for number in range(3)}
    gone: set[str] = set()
    for _ in range(60):
        process = chance.choice(processes)
        session_id = chance.choice([*live])
        match chance.randrange(8):
            case 0:
                host.step(chance.choice([-1, 1]) * chance.choice([0.5, 30, 61, 8 * HOUR]))
            case 1 if chance.random() < 0.1:
                host.steady += 8 * HOUR  # suspended
            case 2:
                processes.remove(process)
                processes.append(start())
                process.close()
            case 3 | 4:
                try:
                    process.touch_session(session_id)
                except SessionNotFoundError:
                    gone.add(session_id)
                else:
                    assert session_id not in gone
                    live[session_id] = host.steady
            case _:
                host.steady += chance.choice([1, 5, 10])
                for each in processes:
                    each.cleanup_inactive_sessions()
        for name, last_active in live.items():
            said = [name in each for each in processes]
            idle = host.steady - last_active
            if idle <= TIMEOUT:
                assert all(said)
            if idle > TIMEOUT + WRITE_INTERVAL or name in gone:
                assert not any(said)
            if not all(said):
                gone.add(name)
