"""Ctrl-C wherever the lock is free: nothing is closed twice, nothing is left open, and nothing stays taken."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from sessionkit import CoordinatorClosedError, RemovalCause, SessionBusyError, SessionCoordinator
from sessionkit.testing import ManualClock

from ..helpers.moments import Interruption, interruptions, telling_decisions
from ..helpers.support import WAIT, Closings, in_thread, one_minute, system_time

Coordinator = SessionCoordinator[Any]


def ctrl_c() -> None:
    raise KeyboardInterrupt


@contextmanager
def struck(once: Interruption, coordinator: Coordinator) -> Iterator[None]:
    """Ctrl-C in the block, at a line of the library that runs while the lock is free."""
    try:
        with once.outside_decisions(coordinator, ctrl_c):
            yield
    except KeyboardInterrupt:
        assert once.came


def everywhere(prepare: Callable[[], Coordinator]) -> Iterator[tuple[Coordinator, Any]]:
    """A new coordinator for each line at which Ctrl-C can strike, and the block in which it does."""
    for once in interruptions():
        coordinator = prepare()
        yield coordinator, struck(once, coordinator)
        coordinator.close()


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
        coordinator = Coordinator(one_minute(max_active_sessions=3, on_full="evict"), clock=clock, on_close=closings)
        for name in "abc":
            coordinator.create_session(name)
        clock.advance(61 if way == "cleanup" else 1)
        return coordinator

    for coordinator, strike in everywhere(prepare):
        with strike:
            ENDS[way](coordinator)
        coordinator.close()
        closed = [name for name, _ in closings]
        assert len(closed) == len(set(closed))
        stats = coordinator.stats()
        assert len(closed) + stats.close_interruptions >= stats.created
        assert stats.close_interruptions <= 1


def test_rule_4_ctrl_c_while_a_closed_session_leaves() -> None:
    """It is closed once, or counts as interrupted; the next cleanup does what is left."""
    closings = Closings()

    def prepare() -> Coordinator:
        closings.clear()
        coordinator = Coordinator(clock=ManualClock(), on_close=closings)
        coordinator.create_session(session_id="it")
        return coordinator

    for coordinator, strike in everywhere(prepare):
        with strike:
            coordinator.close_session("it")
        coordinator.cleanup_inactive_sessions()
        if "it" in coordinator:
            # It struck before anything was decided.
            coordinator.close_session("it")
        stats = coordinator.stats()
        assert len(closings) <= 1 <= len(closings) + stats.close_interruptions
        assert stats.removed[RemovalCause.CLOSED] <= 1


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("end", ["enter", "leave"])
def test_rule_3_ctrl_c_leaves_nothing_checked_out(end: str, given: bool) -> None:
    """A session that was being taken, or given back, is free: leaving the block again is enough, and harmless."""
    clock = ManualClock()

    def prepare() -> Coordinator:
        coordinator = Coordinator(one_minute(), clock=clock if given else None)
        coordinator.create_session(session_id="it")
        return coordinator

    with system_time(clock):
        for coordinator, strike in everywhere(prepare):
            checkout = coordinator.checkout("it", timeout=0)
            if end == "enter":
                with strike:
                    checkout.__enter__()
            else:
                checkout.__enter__()
                with strike:
                    checkout.__exit__()
            checkout.__exit__()
            assert coordinator.stats().checked_out == 0
            with in_thread(coordinator.checkout("it", timeout=0).__enter__) as taken:
                assert taken.result(WAIT) is coordinator.get_session("it")


def test_an_interrupted_checkout_that_another_thread_asked_for_meanwhile_is_given_back() -> None:
    """It makes no difference that another thread was refused the session while it was being taken."""

    def prepare() -> Coordinator:
        coordinator = Coordinator()
        coordinator.create_session(session_id="it")
        return coordinator

    def ask(coordinator: Coordinator) -> None:
        with suppress(SessionBusyError), coordinator.checkout("it", timeout=0):
            pass

    def ask_and_strike(coordinator: Coordinator) -> None:
        with in_thread(ask, coordinator) as asked:
            asked.result(WAIT)
        raise KeyboardInterrupt

    with system_time(ManualClock()):
        for once in interruptions():
            with prepare() as coordinator:
                with suppress(KeyboardInterrupt):
                    with once.outside_decisions(coordinator, lambda c=coordinator: ask_and_strike(c)):
                        checkout = coordinator.checkout("it")
                        checkout.__enter__()
                    checkout.__exit__()
                assert coordinator.stats().checked_out == 0
                with in_thread(coordinator.checkout("it", timeout=0).__enter__) as taken:
                    assert taken.exception(WAIT) is None


class Interrupting(str):
    """An id in whose hash something happens, once: in the middle of the decision that looks it up."""

    __slots__ = ("act",)

    act: Callable[[], object] | None

    def __hash__(self) -> int:
        act, self.act = self.act, None
        if act is not None:
            act()
        return super().__hash__()


def interrupt_a_decision(coordinator: Coordinator, act: Callable[[], object]) -> None:
    session_id = Interrupting("nobody")
    session_id.act = act
    assert session_id not in coordinator
    assert session_id.act is None


CLOSES: dict[str, tuple[Callable[[Coordinator], object], RemovalCause]] = {
    "close": (Coordinator.close, RemovalCause.SHUTDOWN),
    "close_session": (lambda coordinator: coordinator.close_session("it"), RemovalCause.CLOSED),
    "force": (lambda coordinator: coordinator.close_session("it", force=True), RemovalCause.CLOSED),
}


@pytest.mark.parametrize("way", CLOSES)
def test_what_closes_in_the_middle_of_a_decision_is_done_by_the_next_call(way: str) -> None:
    """A signal handler or a finalizer may close at any moment: it waits for nothing, and the next call does it."""
    closings = Closings()
    close, cause = CLOSES[way]
    with Coordinator(clock=ManualClock(), on_close=closings) as coordinator:
        coordinator.create_session(session_id="it")
        interrupt_a_decision(coordinator, lambda: close(coordinator))
        assert not closings
        assert len(coordinator) == 0
        assert closings == [("it", cause)]


def test_what_is_given_back_in_the_middle_of_a_decision_is_free_at_the_next_call() -> None:
    """A finalizer that leaves a block gives the session back, as soon as the coordinator is called."""
    with Coordinator(clock=ManualClock()) as coordinator:
        coordinator.create_session(session_id="it")
        checkout = coordinator.checkout("it")
        checkout.__enter__()
        interrupt_a_decision(coordinator, checkout.__exit__)
        assert coordinator.stats().checked_out == 0


def test_every_other_call_in_the_middle_of_a_decision_is_refused() -> None:
    """It says what may be called there, and the decision is made as if nothing had come."""
    refused = []

    def call(coordinator: Coordinator) -> None:
        for call in (len, Coordinator.create_session, Coordinator.list_sessions):
            with pytest.raises(RuntimeError, match=r"may only call close\(\)"):
                call(coordinator)
            refused.append(call)

    with Coordinator(clock=ManualClock()) as coordinator:
        interrupt_a_decision(coordinator, lambda: call(coordinator))
        assert len(refused) == 3
        assert len(coordinator) == 0


class Holder:
    """Another thread that has the session "it" for the length of a block, or until it is told to leave."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._leave = threading.Event()
        self._has_left = threading.Event()

    def leave(self) -> None:
        self._leave.set()
        assert self._has_left.wait(WAIT)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        inside = threading.Event()

        def hold() -> None:
            with self._coordinator.checkout("it"):
                inside.set()
                assert self._leave.wait(WAIT)
            self._has_left.set()

        with in_thread(hold) as held:
            assert inside.wait(WAIT)
            try:
                yield
            finally:
                self._leave.set()
        held.result()


@contextmanager
def signal_once_queued(coordinator: Coordinator, act: Callable[[], object]) -> Iterator[None]:
    """In the block, a signal handler interrupts this thread once it waits for a session, or is about to."""
    queued, handled = threading.Event(), threading.Event()

    def handle(*_: object) -> None:
        if not handled.is_set():
            handled.set()
            act()

    def send() -> None:
        assert queued.wait(WAIT)
        # One that comes right before the thread begins to wait does not wake it.
        while not handled.wait(0.005):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with in_thread(send), telling_decisions(coordinator, queued.set):
            yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("granted", [False, True])
def test_an_interrupted_waiter_leaves_the_queue(granted: bool) -> None:
    """A wait that is interrupted leaves nothing behind, whether or not the session was granted to it meanwhile."""
    with Coordinator() as coordinator:
        coordinator.create_session(session_id="it")
        holder = Holder(coordinator)

        def interrupt() -> None:
            if granted:
                holder.leave()
            raise KeyboardInterrupt

        with holder(), pytest.raises(KeyboardInterrupt), signal_once_queued(coordinator, interrupt):
            coordinator.checkout("it", timeout=WAIT).__enter__()
        assert coordinator.stats().checked_out == 0
        with coordinator.checkout("it", timeout=0), in_thread(coordinator.checkout("it", timeout=0).__enter__) as other:
            assert isinstance(other.exception(WAIT), SessionBusyError)


def test_a_signal_handler_may_check_out_what_the_interrupted_thread_waits_for() -> None:
    """A thread takes again what it has, also if it came to have it by a wait that the handler interrupted."""
    order = []

    with Coordinator() as coordinator:
        coordinator.create_session(session_id="it")
        holder = Holder(coordinator)

        def interrupt() -> None:
            holder.leave()
            with coordinator.checkout("it", timeout=WAIT):
                order.append("handler")

        with holder(), signal_once_queued(coordinator, interrupt), coordinator.checkout("it", timeout=WAIT):
            order.append("block")
        assert order == ["handler", "block"]
        assert coordinator.stats().checked_out == 0


def test_ctrl_c_does_not_end_the_delivery_of_events() -> None:
    """Wherever it strikes, at most one event is lost, and those after it come, and the end of the channel."""
    clock = ManualClock()
    for coordinator, strike in everywhere(lambda: Coordinator(clock=clock)):
        channel = coordinator.subscribe()
        with strike:
            coordinator.create_session()
        later, _ = coordinator.create_session(), coordinator.create_session()
        assert later.id in {event.session_id for event in iter(lambda c=channel: c.get(0), None)}
        coordinator.close()
        assert channel.closed


def test_a_handler_that_closes_the_coordinator_while_its_task_is_started() -> None:
    """A signal handler that closes the coordinator in the middle of start_cleanup_task: no deadlock, no thread."""
    for once in interruptions():
        coordinator = Coordinator(clock=ManualClock())
        with suppress(CoordinatorClosedError), once.outside_decisions(coordinator, coordinator.close):
            coordinator.start_cleanup_task()
        coordinator.close()
        assert not coordinator.stats().cleanup.alive
        for thread in threading.enumerate():
            if thread.name == "sessionkit-cleanup":
                thread.join(WAIT)
                assert not thread.is_alive()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_close_callback_that_is_interrupted_at_the_end_of_a_block_is_not_repeated(
    interruption: type[BaseException],
) -> None:
    """The session is given back, once, and the interruption goes to the thread that left the block."""
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


def test_a_deferred_call_that_fails_is_logged_and_fails_no_other_call(caplog: pytest.LogCaptureFixture) -> None:
    """The next call, which makes it, has nothing to do with a session that had ended before."""
    with Coordinator(clock=ManualClock()) as coordinator:
        session = coordinator.create_session()
        interrupt_a_decision(coordinator, lambda: coordinator.close_session("gone"))
        coordinator.touch_session(session.id)
        assert "a call that was deferred failed" in caplog.text
        assert "'gone'" in caplog.text
        assert coordinator.get_session(session.id) is session
