"""The paths without the lock: what holds however another thread comes in between."""

from __future__ import annotations

import ast
import dis
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import pytest

import sessionkit
from sessionkit import (
    Checkout,
    CoordinatorClosedError,
    CoordinatorConfig,
    ManagedSession,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from sessionkit.core.finalizer import Finalizer
from sessionkit.core.pulse import HAS_STEPS, clock_without_lock
from sessionkit.core.roster import Roster
from sessionkit.core.table import SessionTable
from sessionkit.testing import ManualClock

from ..helpers.support import WAIT, Closings, HeldUpClock, all_at_once, in_thread, system_time

TIMEOUT = 60
CONFIG = CoordinatorConfig(
    session_timeout=TIMEOUT, cleanup_interval=10, max_active_sessions=2, on_full="evict", max_lifetime=1000
)


class World:
    """A coordinator on a system clock that is set by hand, with one session that was active at 0."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.closings = Closings()
        self.coordinator: SessionCoordinator[Any] = SessionCoordinator(CONFIG, on_close=self.closings)
        self.session = self.coordinator.create_session(session_id="it")

    def to(self, instant: float) -> None:
        self.clock.advance(instant - self.clock())

    def clean_up(self) -> None:
        self.coordinator.cleanup_inactive_sessions()

    def clean_up_when_due(self) -> None:
        self.to(70)
        self.clean_up()

    def look_when_due(self) -> None:
        self.to(70)
        assert self.coordinator.stats().live == len(self.coordinator)

    def clean_up_by_age(self) -> None:
        self.coordinator.cleanup_inactive_sessions(max_age=58)

    def clean_up_after_the_lifetime(self) -> None:
        self.to(1001)
        self.clean_up()

    def close_it(self) -> None:
        self.coordinator.close_session("it")

    def evict(self) -> None:
        with suppress(SessionLimitError):
            for number in range(3):
                self.coordinator.create_session(session_id=f"other-{number}")

    def touch_it(self) -> None:
        self.to(69)
        self.coordinator.touch_session("it")

    def switch_to_it(self) -> None:
        self.coordinator.switch_session("it")

    def shut_down(self) -> None:
        self.coordinator.close()

    def check_it_out_and_back(self) -> None:
        with suppress(SessionBusyError), self.coordinator.checkout("it", timeout=0):
            pass

    def share_it(self) -> None:
        with suppress(SessionBusyError), self.coordinator.checkout("it", exclusive=False, timeout=0):
            pass

    def ended(self) -> bool:
        """Whether the session is gone for good; then it was closed, once."""
        left = [cause for name, cause in self.closings if name == "it"]
        assert len(left) <= 1
        assert ("it" in self.coordinator) <= (not left)
        return bool(left)


INTERRUPTIONS = [
    World.clean_up_when_due,
    World.look_when_due,
    World.clean_up_by_age,
    World.clean_up_after_the_lifetime,
    World.close_it,
    World.evict,
    World.touch_it,
    World.switch_to_it,
    World.shut_down,
    World.check_it_out_and_back,
    World.share_it,
]


@contextmanager
def interrupted(code: CodeType, at: int, act: Callable[[], None], world: World) -> Iterator[list[int]]:
    """Before the line numbered `at` of those that a function runs, let another thread act, unless the lock is taken.

    Gives the list of lines at which it acted: one at most. Python may let another thread in before any line.
    """
    acted: list[int] = []
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line" and next(lines) == at and not world.coordinator._lock_is_owned():
            acted.append(frame.f_lineno)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(act).result(WAIT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield acted
    finally:
        sys.settrace(before)


def every_place(code: CodeType, interruption: Callable[[World], None]) -> Iterator[tuple[World, Callable[[], Any]]]:
    """A new world for each place at which a function can be interrupted, and a context manager that interrupts it."""
    for at in itertools.count():
        clock = ManualClock()
        with system_time(clock):
            world = World(clock)
            acted: list[int] = []

            @contextmanager
            def interrupt(world: World = world, at: int = at, acted: list[int] = acted) -> Iterator[None]:
                with interrupted(code, at, lambda: interruption(world), world) as lines:
                    yield
                acted.extend(lines)

            with world.coordinator:
                yield world, interrupt
        if not acted and at > 30:
            assert at < 100
            return


@pytest.mark.parametrize("way", ["touch_session", "touch"])
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_rule_2_a_touch_that_returned_holds_on_every_interleaving(
    way: str, interruption: Callable[[World], None]
) -> None:
    """A touch that returned normally buys a full timeout, wherever a removal comes in between; else it says why not."""
    function = SessionCoordinator.touch_session if way == "touch_session" else SessionCoordinator._touch_without_lock
    for world, interrupt in every_place(function.__code__, interruption):
        world.to(59)
        try:
            with interrupt():
                TOUCHES[way](world)
        except (SessionExpiredError, CoordinatorClosedError):
            assert "it" not in world.coordinator
            world.coordinator.close()
            assert world.ended()
            continue
        bought_until = world.session.metadata.last_active + TIMEOUT
        assert bought_until >= 59 + TIMEOUT
        ended_on_purpose = world.ended()
        if ended_on_purpose:
            # After the touch: on purpose, or because it has been idle for longer since.
            idle = world.closings[0][1] is RemovalCause.IDLE and interruption is not World.clean_up_by_age
            assert not idle or world.clock() > bought_until
        else:
            assert "it" in world.coordinator
            world.to(max(bought_until, world.clock()))
            world.clean_up()
            assert world.ended() is (world.clock() > 1000)


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_rule_3_a_checkout_that_was_taken_holds_on_every_interleaving(interruption: Callable[[World], None]) -> None:
    """A session that is checked out is never expired for idleness or evicted, wherever a removal comes in between."""
    for world, interrupt in every_place(Checkout.__enter__.__code__, interruption):
        world.to(59)
        checkout = world.coordinator.checkout("it", timeout=0)
        try:
            with interrupt():
                checkout.__enter__()
        except SessionBusyError:
            raise AssertionError("nobody has it any more") from None
        except (SessionExpiredError, CoordinatorClosedError):
            assert "it" not in world.coordinator
            assert world.coordinator.stats().checked_out == 0
            world.coordinator.close()
            assert world.ended()
            continue
        assert not world.ended()
        assert world.coordinator.stats().checked_out == 1
        with in_thread(world.check_it_out_and_back) as other:
            assert isinstance(other.exception(WAIT), SessionExpiredError | CoordinatorClosedError | None)
        world.to(500)
        world.clean_up() if not world.coordinator._roster.closed else None
        world.evict() if not world.coordinator._roster.closed else None
        assert not world.ended()
        checkout.__exit__()
        assert world.coordinator.stats().checked_out == 0
        ended_meanwhile = interruption in (World.close_it, World.shut_down, World.clean_up_after_the_lifetime)
        assert world.ended() or not ended_meanwhile or "it" in world.coordinator


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_rule_3_giving_back_does_what_was_decided_on_every_interleaving(
    interruption: Callable[[World], None],
) -> None:
    """What was decided of a checked-out session is done when it is given back, wherever the decision comes."""
    for world, interrupt in every_place(Checkout.__exit__.__code__, interruption):
        world.to(30)
        checkout = world.coordinator.checkout("it")
        checkout.__enter__()
        world.to(59)
        with interrupt():
            checkout.__exit__()
        assert world.coordinator.stats().checked_out == 0
        if interruption in (World.close_it, World.shut_down):
            assert world.ended() or "it" in world.coordinator
        if not world.ended() and "it" in world.coordinator:
            with in_thread(world.coordinator.checkout("it", timeout=0).__enter__) as taken:
                assert taken.result(WAIT) is world.session
            continue
        if world.coordinator._roster.closed or world.clock() > 1000:
            world.coordinator.close()
        assert world.ended()


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_waiter_is_let_in_wherever_the_session_is_given_back(exclusive: bool) -> None:
    """Whoever begins to wait while the session is being given back gets it: no wake-up is lost."""
    waiters: list[Any] = []

    def wait(world: World) -> None:
        entered = threading.Event()
        begun = threading.Event()

        def take() -> None:
            begun.set()
            with world.coordinator.checkout("it", exclusive=exclusive, timeout=WAIT):
                entered.set()

        thread = threading.Thread(target=take)
        thread.start()
        assert begun.wait(WAIT)
        # Until it waits, or is through.
        while thread.is_alive() and not (world.session._hold and world.session._hold._waiters):
            time.sleep(0)
        waiters.append((thread, entered))

    for world, interrupt in every_place(Checkout.__exit__.__code__, wait):
        waiters.clear()
        checkout = world.coordinator.checkout("it")
        checkout.__enter__()
        with interrupt():
            checkout.__exit__()
        for thread, entered in waiters:
            thread.join(WAIT)
            assert entered.is_set()
        assert world.coordinator.stats().checked_out == 0
        assert world.session._hold is None


class TellingLock:
    """The coordinator's lock, which tells when a thread has to wait for it."""

    def __init__(self) -> None:
        self._lock = REAL_LOCK()
        self.waits = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waits.set()
            assert self._lock.acquire(timeout=WAIT)

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    # The lock of the events is one too, as they are made at the same time.
    def acquire(self, *, blocking: bool) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()

    def _is_owned(self) -> bool:
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]  # typeshed does not know it


REAL_LOCK = threading.RLock
DECISIONS = {
    function.__code__
    for function in (
        SessionTable.over,
        SessionTable._claim,
        SessionTable.popitem,
        SessionTable.settle,
        SessionTable.due,
        SessionTable.idle,
        SessionTable._final_ending,
        SessionTable._set_aside,
        SessionTable.__delitem__,
        Roster.take,
        Roster.hold,
        Roster.end,
        Roster.give_back,
        Roster.leave_hold,
        Finalizer.admit,
    )
}


def every_moment(
    use: Callable[[World], Any], decide: Callable[[World], None], prepare: Callable[[World], None]
) -> Iterator[tuple[World, Any]]:
    """A new world for each line of a decision at which another thread goes on that had read the clock before.

    Gives the world after all that, and what the other thread's call gave or raised.
    """
    for at in itertools.count():
        clock = HeldUpClock()
        with system_time(clock):
            with patch("sessionkit.core.engine.threading.RLock", TellingLock):
                world = World(clock)
            with world.coordinator:
                prepare(world)
                world.to(59)
                moment = Moment(at, world, use, clock)
                moment.decide(decide)
                yield world, moment.outcome
        if not moment.came:
            assert at > 5
            return


class Moment:
    """One line of a decision, and another thread that goes on when it is about to run."""

    def __init__(self, at: int, world: World, use: Callable[[World], Any], clock: HeldUpClock) -> None:
        self._lines_to_go = at
        self._world = world
        self._use = use
        self._clock = clock
        self.came = False
        self.outcome: Any = None

    def decide(self, decide: Callable[[World], None]) -> None:
        with ThreadPoolExecutor(1) as pool:
            self._used = pool.submit(self._use_late)
            assert self._clock.held_up.wait(WAIT)
            before = sys.gettrace()
            sys.settrace(self._trace)
            try:
                decide(self._world)
            finally:
                sys.settrace(before)
                self._clock.go_on.set()
            self.outcome = self._used.result(WAIT)

    def _use_late(self) -> Any:
        self._clock.hold_up_this_thread()
        try:
            return self._use(self._world)
        except (SessionExpiredError, SessionBusyError, CoordinatorClosedError) as error:
            return error

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code not in DECISIONS:
            return None
        if event == "line":
            if self._lines_to_go == 0:
                self._go_on()
            self._lines_to_go -= 1
        return self._trace

    def _go_on(self) -> None:
        """Let the other thread run to its end, or until it has to wait for the lock."""
        self.came = True
        lock: Any = self._world.coordinator._lock
        lock.waits.clear()
        self._clock.go_on.set()
        while not (self._used.done() or lock.waits.is_set()):
            time.sleep(0)


REMOVALS = [
    World.clean_up_when_due,
    World.look_when_due,
    World.clean_up_by_age,
    World.clean_up_after_the_lifetime,
    World.close_it,
    World.evict,
]
TOUCHES = {
    "touch_session": lambda world: world.coordinator.touch_session("it"),
    "touch": lambda world: world.session.touch(),
    "record_message": lambda world: world.session.record_message(),
}


@pytest.mark.parametrize("way", TOUCHES)
@pytest.mark.parametrize("removal", REMOVALS[:3])
def test_rule_2_a_removal_sees_a_touch_that_comes_in_at_any_line(way: str, removal: Callable[[World], None]) -> None:
    """No removal for idleness takes a session whose touch returned, at whatever line of the decision it came in."""
    returned = 0
    for world, error in every_moment(TOUCHES[way], removal, lambda _: None):
        world.clean_up()
        assert world.ended() is (error is not None)
        assert ("it" in world.coordinator) is (error is None)
        returned += error is None
    assert returned or not HAS_STEPS


def take(world: World) -> Any:
    checkout = world.coordinator.checkout("it", timeout=0)
    checkout.__enter__()
    return checkout


@pytest.mark.parametrize("removal", [*REMOVALS, World.share_it])
def test_rule_3_a_removal_sees_a_checkout_that_comes_in_at_any_line(removal: Callable[[World], None]) -> None:
    """Whoever got the session has it until it is given back, at whatever line of a decision the checkout came in."""
    for world, outcome in every_moment(take, removal, lambda _: None):
        if isinstance(outcome, Exception):
            assert removal is not World.share_it or isinstance(outcome, SessionBusyError)
            assert world.coordinator.stats().checked_out == 0
            continue
        assert not world.ended()
        assert world.coordinator.stats().checked_out == 1
        outcome.__exit__()
        assert world.coordinator.stats().checked_out == 0
        assert (world.session._checkout, world.session._hold) == (None, None)
        assert world.ended() is ("it" not in world.coordinator)
        assert removal is not World.close_it or world.ended()


@pytest.mark.parametrize("removal", [*REMOVALS, World.share_it, World.check_it_out_and_back])
def test_rule_4_a_decision_is_done_when_it_is_given_back_at_any_line(removal: Callable[[World], None]) -> None:
    """A session given back in the middle of a decision is finalized once, or goes on, with nothing left over."""
    taken: list[Any] = []
    for world, error in every_moment(lambda _: taken[-1].__exit__(), removal, lambda world: taken.append(take(world))):
        assert error is None
        assert (world.session._checkout, world.session._hold) == (None, None)
        assert world.coordinator.stats().checked_out == 0
        assert world.ended() is ("it" not in world.coordinator)
        assert removal is not World.close_it or world.ended()
        if not world.ended():
            with world.coordinator.checkout("it", timeout=0):
                pass
            world.to(world.clock() + TIMEOUT + 1)
            world.clean_up()
            assert world.ended()


def take_alone(coordinator: SessionCoordinator[Any], session_id: str) -> None:
    with coordinator.checkout(session_id, timeout=0):
        pass


def test_nobody_joins_those_who_share_a_session_without_the_lock() -> None:
    """While a session is shared, or held twice, nobody gets it alone, also after it was touched."""
    with system_time(ManualClock()), SessionCoordinator(CONFIG) as coordinator:
        session = coordinator.create_session()

        for exclusive in (False, True):
            with (
                coordinator.checkout(session.id, exclusive=exclusive),
                coordinator.checkout(session.id, exclusive=exclusive),
            ):
                coordinator.touch_session(session.id)
                with in_thread(take_alone, coordinator, session.id) as taken:
                    assert isinstance(taken.exception(WAIT), SessionBusyError)
            with in_thread(take_alone, coordinator, session.id) as taken:
                assert taken.exception(WAIT) is None


def test_nobody_gets_what_another_thread_has_to_itself_without_the_lock() -> None:
    """Two checkouts without the lock: the second waits in line, and gets the session when it is given back."""
    with system_time(ManualClock()), SessionCoordinator(CONFIG) as coordinator:
        session = coordinator.create_session()

        with coordinator.checkout(session.id), in_thread(take_alone, coordinator, session.id) as taken:
            assert isinstance(taken.exception(WAIT), SessionBusyError)
        take_alone(coordinator, session.id)
        assert (session._checkout, session._hold, coordinator.stats().checked_out) == (None, None, 0)


def test_a_checkout_that_finds_itself_in_the_books_has_the_session() -> None:
    """Who began to take it without the lock, and was put in the books by another thread, takes it once, not twice."""
    with system_time(ManualClock()), SessionCoordinator(CONFIG) as coordinator:
        session = coordinator.create_session()
        checkout = coordinator.checkout(session.id, exclusive=False)
        checkout.__enter__()
        with coordinator._lock:
            assert coordinator._roster.take(session, checkout, 0)
        checkout.__exit__()
        assert (session._hold, coordinator.stats().checked_out) == (None, 0)


@pytest.mark.parametrize("locked", [False, True])
def test_a_checkout_that_fails_is_no_activity(locked: bool) -> None:
    """Whoever asks for a session that somebody else has, and does not get it, leaves its last activity as it is."""
    clock = ManualClock()
    with system_time(clock), SessionCoordinator(CONFIG, clock=clock if locked else None) as coordinator:
        session = coordinator.create_session()
        with coordinator.checkout(session.id):
            clock.advance(30)
            with in_thread(coordinator.checkout(session.id, timeout=0).__enter__) as taken:
                assert isinstance(taken.exception(WAIT), SessionBusyError)
            assert session.metadata.last_active == 0


def test_an_interrupted_checkout_is_given_back() -> None:
    """Ctrl-C while a session is being taken without the lock leaves it free."""

    class Interrupting(set[Any]):
        def add(self, _: object) -> None:
            raise KeyboardInterrupt

    with system_time(ManualClock()), SessionCoordinator(CONFIG) as coordinator:
        session = coordinator.create_session()
        coordinator._roster.out = Interrupting()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                coordinator.checkout(session.id).__enter__()
            assert (session._checkout, session._hold) == (None, None)


class Sneaky(float):
    """A reading that lets something happen in the middle of the step which stores it."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    def __gt__(self, other: float) -> bool:
        type(self).happens()
        return float(self) > other


@pytest.mark.parametrize("way", ["touch_session", "touch", "record_message", "take"])
def test_a_call_that_comes_too_late_takes_the_lock_and_says_so(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ends between the two looks of a call without the lock is gone for that call too."""
    clock = ManualClock()
    with system_time(clock):
        world = World(clock)
        with world.coordinator:
            monkeypatch.setattr(clock, "_reading", Sneaky(1))
            monkeypatch.setattr(Sneaky, "happens", lambda: close_once_without_lock(world))
            with pytest.raises(SessionExpiredError) if HAS_STEPS else nullcontext():
                {**TOUCHES, "take": take}[way](world)
            assert world.ended() is HAS_STEPS
            assert world.coordinator.stats().checked_out == (way == "take" and not HAS_STEPS)


def close_once_without_lock(world: World) -> None:
    if not world.coordinator._lock_is_owned():
        Sneaky.happens = staticmethod(lambda: None)
        with in_thread(world.close_it) as done:
            done.result(WAIT)


def test_who_gave_back_in_between_is_not_put_in_the_books() -> None:
    """The books are opened for whoever has the session by then: nobody, the one before, or one who just begins."""
    with system_time(ManualClock()), SessionCoordinator(CONFIG) as coordinator:
        roster = coordinator._roster
        for next_one in (None, coordinator.checkout("next")):
            session = coordinator.create_session()

            class GivesBack:
                thread: object = object()
                exclusive = True

                def __setattr__(
                    self, name: str, value: object, session: ManagedSession[Any] = session, next_one: Any = next_one
                ) -> None:
                    if value is True:
                        session._checkout = next_one
                    super().__setattr__(name, value)

            first: Any = GivesBack()
            session._checkout = first
            hold = roster.hold(session)
            assert (first.in_books, session._checkout) == (False, None)
            assert hold.free is (next_one is None)
            if next_one is not None:
                assert next_one.in_books
                roster.give_back(session, next_one, 0)
            roster.leave_hold(session, 0)
            coordinator.close_session(session.id)


def test_leaving_tells_nothing_of_who_has_taken_it_since() -> None:
    """Whoever takes a session without the lock counts it, also while another one is leaving with the lock."""
    with system_time(ManualClock()), SessionCoordinator(CONFIG) as coordinator:
        session = coordinator.create_session()
        with coordinator.checkout(session.id):
            coordinator._roster.leave_hold(session, 0)
            assert coordinator.stats().checked_out == 1
        assert coordinator.stats().checked_out == 0


def test_eviction_finds_the_least_recently_active_among_many_that_have_moved_on() -> None:
    """However many were touched without the lock, the right one is evicted, and the lock is let go on the way."""
    clock = ManualClock()
    with system_time(clock), SessionCoordinator(replace(CONFIG, max_active_sessions=350)) as coordinator:
        sessions = [coordinator.create_session() for _ in range(350)]
        clock.advance(1)
        for session in sessions:
            clock.advance(0.1)
            if session is not sessions[300]:
                coordinator.touch_session(session.id)
        coordinator.create_session()
        assert sessions[300].id not in coordinator
        coordinator.create_session()
        assert sessions[0].id not in coordinator
        assert len(coordinator) == 350


def test_last_active_never_moves_back_between_threads_without_the_lock() -> None:
    """A touch that was held up between its reading and its store does not undo a later one."""
    clock = HeldUpClock()
    with system_time(clock), SessionCoordinator(CONFIG) as coordinator:
        session = coordinator.create_session()

        def touch_late() -> None:
            clock.hold_up_this_thread()
            coordinator.touch_session(session.id)

        with in_thread(touch_late) as touched:
            assert clock.held_up.wait(WAIT)
            clock.advance(30)
            coordinator.touch_session(session.id)
            clock.go_on.set()
            touched.result(WAIT)
        assert session.metadata.last_active == 30


ALLOWED = {
    "LOAD_FAST", "LOAD_FAST_LOAD_FAST", "LOAD_FAST_CHECK",
    "STORE_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST",
    "LOAD_ATTR", "STORE_ATTR", "LOAD_CONST", "COMPARE_OP", "IS_OP", "SWAP", "COPY", "POP_TOP", "NOP", "CACHE",
    "POP_JUMP_FORWARD_IF_FALSE", "POP_JUMP_FORWARD_IF_TRUE", "POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE",
    "POP_JUMP_IF_FALSE", "POP_JUMP_IF_TRUE", "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE",
    "JUMP_FORWARD", "TO_BOOL", "BINARY_OP",
}  # fmt: skip
"""Instructions between which CPython 3.11 to 3.13 never lets another thread in: no call, no way back, no return."""


def codes_of(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)


def test_one_step_is_one_step() -> None:
    """Lines marked so have no instruction at which CPython lets another thread in, or collects garbage."""
    marked = 0
    for path in Path(sessionkit.__file__).parent.rglob("*.py"):
        source = path.read_text()
        numbers = {number for number, line in enumerate(source.splitlines(), 1) if line.rstrip().endswith("# one step")}
        seen: set[int] = set()
        for code in codes_of(compile(source, str(path), "exec")):
            for instruction in dis.get_instructions(code):
                line = instruction.positions.lineno if instruction.positions else None
                if line in numbers:
                    assert instruction.opname in ALLOWED, f"{path.name}:{line} has {instruction.opname}"
                    seen.add(line)
        assert seen == numbers
        marked += len(numbers)
    assert marked >= 8


def test_what_is_written_without_the_lock_is_one_step() -> None:
    """Wherever `_last_active` or `_checkout` is stored while others may do so too, the line is marked."""
    alone = {"loans.py": 1, "roster.py": 4, "session.py": 1}
    for path in Path(sessionkit.__file__).parent.rglob("*.py"):
        source = path.read_text()
        lines = source.splitlines()
        stores = [
            node.lineno
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and node.attr in ("_last_active", "_checkout")
        ]
        unmarked = [number for number in stores if not lines[number - 1].endswith("# one step")]
        # Before the session is in the table, or where whoever stores has it to himself.
        assert len(unmarked) <= alone.get(path.name, 0), (path.name, unmarked)


def test_the_lock_is_taken_where_time_or_threads_are_not_the_systems() -> None:
    """A clock that was passed in may go back, and without the GIL there are no steps: every call takes the lock."""
    assert (clock_without_lock(sessionkit.util.clock.system_clock) is time.monotonic) is HAS_STEPS
    assert clock_without_lock(time.monotonic) is None
    assert clock_without_lock(ManualClock()) is None
    with patch("sessionkit.core.pulse.HAS_STEPS", False):
        assert clock_without_lock(sessionkit.util.clock.system_clock) is None


def test_without_steps_every_session_has_its_data_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two threads could make the dict at once, it is made when nobody else has the session."""
    monkeypatch.setattr("sessionkit.coordinator.HAS_STEPS", False)
    with SessionCoordinator() as coordinator:
        assert coordinator.create_session()._data == {}


def test_data_is_the_same_dict_for_all() -> None:
    """However many threads ask first, they get the same dict."""
    with SessionCoordinator() as coordinator:
        session = coordinator.create_session()
        dicts = all_at_once(*[lambda: id(session.data)] * 8)
        assert len(set(dicts)) == 1
        assert session.data is session.data


def test_the_usual_calls_do_without_the_lock() -> None:
    """With the GIL, the default clock and no store, looks, touches and checkouts go on while another thread holds the
    lock, until the first switch.
    """
    with system_time(ManualClock()), SessionCoordinator() as coordinator:
        session = coordinator.create_session()

        def use() -> None:
            coordinator.get_session(session.id)
            coordinator.touch_session(session.id)
            session.touch()
            with coordinator.checkout(session.id):
                pass

        if HAS_STEPS:
            with coordinator._lock, in_thread(use) as used:
                assert used.result(WAIT) is None
        coordinator.switch_session(session.id)
        assert coordinator._goes_without_lock is None
        use()


def test_unknown_ids_are_told_on_the_paths_without_the_lock_too() -> None:
    """Nothing is known of an id that was never given, and what is no id is refused, as with the lock."""
    with SessionCoordinator(CONFIG) as coordinator:
        for call in (
            coordinator.get_session,
            coordinator.touch_session,
            lambda it: coordinator.checkout(it).__enter__(),
        ):
            with pytest.raises(SessionNotFoundError):
                call("nobody")
            for wrong in (None, ["list"]):
                with pytest.raises(TypeError, match="must be a str"):
                    call(wrong)  # type: ignore[arg-type]  # that is what is tried


def test_a_look_without_the_lock_at_who_has_expired() -> None:
    """It sees that time is up, and goes on to say so with the lock."""
    with system_time(clock := ManualClock()), SessionCoordinator() as coordinator:
        session = coordinator.create_session()
        clock.advance(3601)
        with pytest.raises(SessionExpiredError):
            coordinator.get_session(session.id)
