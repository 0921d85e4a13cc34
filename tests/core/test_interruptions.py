"""Ctrl-C wherever the lock is free: nothing is closed twice, nothing is left open, and nothing stays taken."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any

import pytest

from sessionkit import Checkout, CoordinatorConfig, RemovalCause, SessionBusyError, SessionCoordinator
from sessionkit.core.creation import Creation
from sessionkit.core.events import TURN, EventBus, EventKind
from sessionkit.core.finalizer import Finalizer
from sessionkit.core.sweep import Sweep
from sessionkit.testing import ManualClock

from ..helpers.support import WAIT, Closings, in_thread, one_minute, system_time

Coordinator = SessionCoordinator[Any]


class CtrlC:
    """Raises KeyboardInterrupt before one of the lines of some functions, counted over all of them."""

    def __init__(self, coordinator: Coordinator, codes: set[CodeType], at: int) -> None:
        self._coordinator = coordinator
        self._codes = codes
        self._lines_to_go = at
        self.struck = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        except KeyboardInterrupt:
            assert self.struck
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code not in self._codes:
            return None
        if event == "line" and not self.struck and not self._coordinator._lock_is_owned():
            self._lines_to_go -= 1
            if self._lines_to_go < 0:
                self.struck = True
                raise KeyboardInterrupt
        return self._trace


def codes(*instances: type | Callable[..., Any]) -> set[CodeType]:
    """The code of functions, and of all methods of classes."""
    members = [vars(instance).values() if isinstance(instance, type) else [instance] for instance in instances]
    return {member.__code__ for group in members for member in group if hasattr(member, "__code__")}


def everywhere(where: set[CodeType], prepare: Callable[[], Coordinator]) -> Iterator[tuple[Coordinator, CtrlC]]:
    """A new coordinator for each line at which Ctrl-C can strike."""
    at = 0
    struck = True
    while struck:
        coordinator = prepare()
        ctrl_c = CtrlC(coordinator, where, at)
        yield coordinator, ctrl_c
        coordinator.close()
        struck = ctrl_c.struck
        at += 1
    assert at > 10


CLOSING = codes(Finalizer, Sweep, Coordinator.close_session, Coordinator.close, Creation)


def close_all(coordinator: Coordinator) -> None:
    for session in coordinator.list_sessions():
        coordinator.close_session(session.id)


ENDS: dict[str, Callable[[Coordinator], object]] = {
    "close_session": close_all,
    "close": Coordinator.close,
    "cleanup": Coordinator.cleanup_inactive_sessions,
    "eviction": Coordinator.create_session,
}


@pytest.mark.parametrize("way", ENDS)
def test_rule_4_ctrl_c_loses_no_close_callback(way: str) -> None:
    """Ctrl-C that comes while the lock is free loses no close callback: after `close()` in the same thread, each one
    has run or is counted as interrupted.
    """
    clock = ManualClock()
    closings = Closings()

    def prepare() -> Coordinator:
        closings.clear()
        coordinator = Coordinator(
            one_minute(max_active_sessions=3, on_full="evict"),
            clock=clock,
            on_close=closings,
        )
        for name in "abc":
            coordinator.create_session(name)
        clock.advance(61 if way == "cleanup" else 1)
        return coordinator

    for coordinator, ctrl_c in everywhere(CLOSING, prepare):
        with ctrl_c():
            ENDS[way](coordinator)
        coordinator.close()
        closed = [name for name, _ in closings]
        assert len(closed) == len(set(closed))
        stats = coordinator.stats()
        assert len(closed) + stats.close_interruptions >= stats.created
        assert stats.close_interruptions <= ctrl_c.struck


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("end", ["enter", "leave"])
def test_rule_3_ctrl_c_leaves_nothing_checked_out(end: str, locked: bool) -> None:
    """A session that was being taken, or given back, is free: leaving the block again is enough, and harmless."""
    clock = ManualClock()

    def prepare() -> Coordinator:
        coordinator = Coordinator(one_minute(), clock=clock if locked else None)
        coordinator.create_session(session_id="it")
        return coordinator

    with system_time(clock):
        for coordinator, ctrl_c in everywhere(codes(Checkout), prepare):
            checkout = coordinator.checkout("it", timeout=0)
            if end == "enter":
                with ctrl_c():
                    checkout.__enter__()
            else:
                checkout.__enter__()
                with ctrl_c():
                    checkout.__exit__()
            checkout.__exit__()
            assert coordinator.stats().checked_out == 0
            session = coordinator.get_session("it")
            assert (session._checkout, session._hold) == (None, None)


def test_an_interrupted_checkout_that_came_into_the_books_is_given_back() -> None:
    """Who asks for a session puts the one that is just taking it in the books: it is given back from there."""
    with system_time(ManualClock()), Coordinator() as coordinator:
        session = coordinator.create_session()

        def ask() -> None:
            with suppress(SessionBusyError):
                coordinator.checkout(session.id, timeout=0).__enter__()

        class Interrupting(set[Any]):
            def add(self, _: object) -> None:
                coordinator._roster.out = set()
                # Without the GIL this is under the lock.
                if not coordinator._lock_is_owned():
                    with in_thread(ask) as asked:
                        asked.result(WAIT)
                raise KeyboardInterrupt

        coordinator._roster.out = Interrupting()
        with pytest.raises(KeyboardInterrupt):
            coordinator.checkout(session.id).__enter__()
        assert (session._checkout, session._hold, coordinator.stats().checked_out) == (None, None, 0)


def test_a_signal_handler_may_check_out_what_the_interrupted_thread_waits_for() -> None:
    """A thread takes again what it has, also if it came to have it by a wait that the handler interrupted."""
    taken = threading.Event()
    give_back = threading.Event()
    order = []

    def hold() -> None:
        with coordinator.checkout("it"):
            taken.set()
            assert give_back.wait(WAIT)

    def interrupt() -> None:
        while not (session._hold and session._hold._waiters):
            time.sleep(0)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def handler(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        give_back.set()
        with coordinator.checkout("it", timeout=WAIT):
            order.append("handler")

    with Coordinator() as coordinator:
        session = coordinator.create_session(session_id="it")
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            with in_thread(hold):
                assert taken.wait(WAIT)
                with in_thread(interrupt), coordinator.checkout("it", timeout=WAIT):
                    order.append("block")
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert order == ["handler", "block"]
        assert coordinator.stats().checked_out == 0


def test_ctrl_c_between_two_turns_of_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """It strikes while nobody delivers: the rest is brought by whoever comes next."""

    def interrupt(_: float) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    clock = ManualClock()
    with Coordinator(CoordinatorConfig(max_active_sessions=None), clock=clock) as coordinator:
        channel = coordinator.subscribe(1000)
        for number in range(TURN + 1):
            coordinator._bus.post(EventKind.CREATED, str(number), 0)
        monkeypatch.setattr("sessionkit.core.events.time.sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            coordinator.create_session()
        coordinator.create_session()
        assert len([*iter(lambda: channel.get(0), None)]) == TURN + 3


def test_ctrl_c_does_not_end_the_delivery_of_events() -> None:
    """Wherever it strikes, at most one event is lost, and those after it come."""
    clock = ManualClock()
    for coordinator, ctrl_c in everywhere(codes(EventBus), lambda: Coordinator(clock=clock)):
        channel = coordinator.subscribe()
        with ctrl_c():
            coordinator.create_session()
        later = coordinator.create_session()
        assert later.id in {event.session_id for event in iter(lambda channel=channel: channel.get(0), None)}
        assert not coordinator._bus.posted


class InterruptedLock:
    """A lock that Ctrl-C strikes once, right before it is taken or right after it was let go."""

    def __init__(self, lock: Any, when: str) -> None:
        self._lock = lock
        self._when = when

    def __enter__(self) -> None:
        self._strike("before")
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
        self._strike("after")

    def _strike(self, when: str) -> None:
        if self._when == when:
            self._when = "never"
            raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_while_a_closed_session_leaves(when: str) -> None:
    """It is counted once, and its id is free."""
    closings = Closings()
    with Coordinator(clock=ManualClock(), on_close=closings) as coordinator:
        coordinator.create_session(session_id="it")
        coordinator._finalizer._lock = InterruptedLock(coordinator._lock, when)  # type: ignore[assignment]  # as good as one
        with pytest.raises(KeyboardInterrupt):
            coordinator.close_session("it")
        assert (len(closings), coordinator.stats().removed[RemovalCause.CLOSED]) == (1, 1)
        assert not coordinator._finalizer.leaving
        coordinator.create_session(session_id="it")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_close_callback_that_is_interrupted_at_the_end_of_a_block_is_not_repeated(
    interruption: type[BaseException],
) -> None:
    """The session is given back, once, and the interruption goes to whoever left the block."""
    calls = []

    def on_close(*_: object) -> None:
        calls.append(coordinator.stats().checked_out)
        raise interruption

    with Coordinator(clock=ManualClock(), on_close=on_close) as coordinator:
        session = coordinator.create_session()
        checkout = coordinator.checkout(session.id)
        checkout.__enter__()
        coordinator.close_session(session.id)
        with pytest.raises(interruption):
            checkout.__exit__()
        assert calls == [0]
        assert coordinator.stats().close_interruptions == 1
