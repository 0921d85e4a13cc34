"""What goes without the lock: looks and touches. What holds however another thread comes in between."""

from __future__ import annotations

import dis
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import sessionkit
from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from sessionkit.testing import ManualClock

from ..helpers.moments import (
    HAS_GIL,
    Interruption,
    held_in_a_decision,
    interruptions,
    telling_decisions,
    until_it_waits,
)
from ..helpers.support import WAIT, Closings, HeldUpClock, in_thread, one_minute, system_time

CONFIG = one_minute(max_active_sessions=2, on_full="evict", max_lifetime=1000)


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

    def give_it_another_timeout(self) -> None:
        with suppress(SessionExpiredError, CoordinatorClosedError):
            self.session.set_timeout(30)

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

    def is_open(self) -> bool:
        try:
            self.coordinator.subscribe().close()
        except CoordinatorClosedError:
            return False
        return True

    def is_free(self) -> bool:
        """Whether another thread can have the session to itself, and it is in nobody's hands now."""
        with in_thread(take_and_leave, self) as taken:
            refused = taken.exception(WAIT)
        assert refused is None or isinstance(refused, SessionBusyError)
        return refused is None and self.coordinator.stats().checked_out == 0

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
    World.give_it_another_timeout,
    World.switch_to_it,
    World.shut_down,
    World.check_it_out_and_back,
    World.share_it,
]


TOUCHES: dict[str, Callable[[World], Any]] = {
    "touch_session": lambda world: world.coordinator.touch_session("it"),
    "touch": lambda world: world.session.touch(),
    "record_message": lambda world: world.session.record_message(),
}


def take(world: World) -> Any:
    checkout = world.coordinator.checkout("it", timeout=0)
    checkout.__enter__()
    return checkout


def take_and_leave(world: World) -> None:
    take(world).__exit__()


def every_place(interruption: Callable[[World], None]) -> Iterator[tuple[World, Callable[[], Any]]]:
    """A new world for each line at which a call can be interrupted by another thread, and the block in which it is.

    Python may let another thread in before any line; it comes while the lock is free, else it would wait for it.
    """
    for once in interruptions():
        clock = ManualClock()
        with system_time(clock):
            world = World(clock)

            def act(world: World = world) -> None:
                with in_thread(interruption, world) as acted:
                    pass
                acted.result()

            with world.coordinator:
                yield world, lambda world=world, act=act, once=once: once.outside_decisions(world.coordinator, act)


@pytest.mark.parametrize("way", TOUCHES)
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_rule_2_a_touch_that_returned_holds_on_every_interleaving(
    way: str, interruption: Callable[[World], None]
) -> None:
    """A touch that returned normally buys a full timeout, wherever a removal comes in between; else it says why not."""
    for world, interrupt in every_place(interruption):
        world.to(59)
        try:
            with interrupt():
                TOUCHES[way](world)
        except (SessionExpiredError, CoordinatorClosedError):
            assert "it" not in world.coordinator
            world.coordinator.close()
            assert world.ended()
            continue
        bought_until = world.session.metadata.last_active + world.session.session_timeout
        assert bought_until >= 59 + (30 if interruption is World.give_it_another_timeout else 60)
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
    """A session that was taken is never expired for idleness or evicted, wherever a removal comes in between."""
    for world, interrupt in every_place(interruption):
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
        with suppress(CoordinatorClosedError):
            world.clean_up()
            world.evict()
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
    for world, interrupt in every_place(interruption):
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
        if not world.is_open() or world.clock() > 1000:
            world.coordinator.close()
        assert world.ended()


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_waiter_is_let_in_wherever_the_session_is_given_back(exclusive: bool) -> None:
    """A thread that begins to wait while the session is being given back gets it: no wake-up is lost."""
    waiters: list[Any] = []

    def wait(world: World) -> None:
        entered, queued = threading.Event(), threading.Event()

        def take() -> None:
            checkout = world.coordinator.checkout("it", exclusive=exclusive, timeout=WAIT)
            with telling_decisions(world.coordinator, queued.set):
                checkout.__enter__()
            entered.set()
            queued.set()
            checkout.__exit__()

        thread = threading.Thread(target=take)
        thread.start()
        assert queued.wait(WAIT)
        waiters.append((thread, entered))

    for world, interrupt in every_place(wait):
        waiters.clear()
        checkout = take(world)
        with interrupt():
            checkout.__exit__()
        for thread, entered in waiters:
            thread.join(WAIT)
            assert entered.is_set()
        assert world.is_free()


def every_moment(use: Callable[[World], Any], decide: Callable[[World], None]) -> Iterator[tuple[World, Any]]:
    """A new world for each line of a decision at which another thread goes on that had read the clock before.

    Gives the world after all that, and what the other thread's call gave or raised.
    """
    for once in interruptions():
        clock = HeldUpClock()
        with system_time(clock):
            world = World(clock)
            with world.coordinator:
                world.to(59)
                yield world, outcome_of(once, use, decide, world, clock)


def outcome_of(
    once: Interruption,
    use: Callable[[World], Any],
    decide: Callable[[World], None],
    world: World,
    clock: HeldUpClock,
) -> Any:
    idents: list[int] = []

    def use_late() -> Any:
        idents.append(threading.get_ident())
        clock.hold_up_this_thread()
        try:
            return use(world)
        except (SessionExpiredError, SessionBusyError, CoordinatorClosedError) as error:
            return error

    def go_on() -> None:
        clock.go_on.set()
        until_it_waits(idents[0], used.done)

    with ThreadPoolExecutor(1) as pool:
        used = pool.submit(use_late)
        assert clock.held_up.wait(WAIT)
        try:
            with once.within_decisions(world.coordinator, go_on):
                decide(world)
        finally:
            clock.go_on.set()
        return used.result(WAIT)


REMOVALS = [World.clean_up_when_due, World.look_when_due, World.clean_up_by_age, World.give_it_another_timeout]


@pytest.mark.parametrize("way", TOUCHES)
@pytest.mark.parametrize("removal", REMOVALS)
def test_rule_2_a_removal_sees_a_touch_that_comes_in_at_any_line(way: str, removal: Callable[[World], None]) -> None:
    """No removal for idleness takes a session whose touch returned, at whatever line of the decision it came in."""
    returned = 0
    for world, error in every_moment(TOUCHES[way], removal):
        world.clean_up()
        assert world.ended() is (error is not None)
        assert ("it" in world.coordinator) is (error is None)
        returned += error is None
    # A message takes the lock.
    assert returned or way == "record_message" or not HAS_GIL


def test_nobody_joins_those_who_share_a_session() -> None:
    """While a session is shared, or held twice, nobody gets it alone, also after it was touched."""
    with system_time(clock := ManualClock()):
        world = World(clock)
        with world.coordinator as coordinator:
            for exclusive in (False, True):
                with (
                    coordinator.checkout("it", exclusive=exclusive),
                    coordinator.checkout("it", exclusive=exclusive),
                ):
                    coordinator.touch_session("it")
                    assert not world.is_free()
                assert world.is_free()


def test_nobody_gets_what_another_thread_has_to_itself() -> None:
    """Of two checkouts the second is refused, and gets the session when it is given back."""
    with system_time(clock := ManualClock()):
        world = World(clock)
        with world.coordinator as coordinator:
            with coordinator.checkout("it"):
                assert not world.is_free()
            take_and_leave(world)
            assert world.is_free()


@pytest.mark.parametrize("given", [False, True])
def test_a_checkout_that_fails_is_no_activity(given: bool) -> None:
    """Asking for a session that somebody else has, and not getting it, leaves its last activity as it is."""
    clock = ManualClock()
    with system_time(clock), SessionCoordinator[Any](CONFIG, clock=clock if given else None) as coordinator:
        session = coordinator.create_session()
        with coordinator.checkout(session.id):
            clock.advance(30)
            with in_thread(coordinator.checkout(session.id, timeout=0).__enter__) as taken:
                assert isinstance(taken.exception(WAIT), SessionBusyError)
            assert session.metadata.last_active == 0


class Sneaky(float):
    """A reading that lets something happen in the middle of the step which stores it."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    def __gt__(self, other: float) -> bool:
        type(self).happens()
        return float(self) > other


class SneakyClock(ManualClock):
    """A manual clock that gives such readings."""

    def __call__(self) -> float:
        return Sneaky(super().__call__())


@pytest.mark.parametrize("way", ["touch_session", "touch"])
def test_a_touch_that_comes_too_late_takes_the_lock_and_says_so(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ends between the two looks of a touch without the lock is gone for that touch too."""
    clock = SneakyClock()
    with system_time(clock):
        world = World(clock)
        with world.coordinator:

            def close_once() -> None:
                monkeypatch.setattr(Sneaky, "happens", lambda: None)
                # Where the lock is taken, the other thread waits for it.
                closer.start()
                until_it_waits(closer.ident or 0, lambda: not closer.is_alive())

            closer = threading.Thread(target=world.close_it)
            clock.advance(1)
            monkeypatch.setattr(Sneaky, "happens", close_once)
            expired = None
            try:
                TOUCHES[way](world)
            except SessionExpiredError as error:
                expired = error
            closer.join(WAIT)
            assert world.ended()
            assert (expired is not None) is HAS_GIL


def test_eviction_finds_the_least_recently_active_among_many_that_have_moved_on() -> None:
    """However many were touched without the lock, the right one is evicted, and the lock is let go on the way."""
    clock = ManualClock()
    with (
        system_time(clock),
        SessionCoordinator[Any](one_minute(max_active_sessions=350, on_full="evict")) as coordinator,
    ):
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
        if not numbers:
            continue
        seen: set[int] = set()
        for code in codes_of(compile(source, str(path), "exec")):
            for instruction in dis.get_instructions(code):
                line = instruction.positions.lineno if instruction.positions else None
                if line in numbers:
                    assert instruction.opname in ALLOWED, f"{path.name}:{line} has {instruction.opname}"
                    seen.add(line)
        assert seen == numbers
        marked += len(numbers)
    assert marked >= 1


@pytest.mark.parametrize("switches", [False, True])
def test_looks_and_touches_do_without_the_lock(switches: bool) -> None:
    """With the GIL, the default clock and no store, looks and touches go on while another thread holds the lock."""
    with system_time(clock := ManualClock()), SessionCoordinator[Any]() as coordinator:
        session = coordinator.create_session()
        if switches:
            # It costs later calls nothing.
            coordinator.switch_session(session.id)
        clock.advance(5)
        counted = threading.Thread(target=coordinator.__len__)
        if HAS_GIL:
            with held_in_a_decision(coordinator):
                counted.start()
                assert coordinator.get_session(session.id) is session
                for touch in (lambda: coordinator.touch_session(session.id), session.touch):
                    clock.advance(1)
                    touch()
                    assert session.metadata.last_active == clock()
                # It is held indeed.
                assert counted.is_alive()
            counted.join(WAIT)


def test_unknown_ids_are_told_without_the_lock_too() -> None:
    """Nothing is known of an id that was never given, and what is no id is refused, as with the lock."""
    with SessionCoordinator[Any](CONFIG) as coordinator:
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


def test_a_look_without_the_lock_at_an_expired_session() -> None:
    """It sees that time is up, and goes on to say so with the lock."""
    with system_time(clock := ManualClock()), SessionCoordinator[Any]() as coordinator:
        session = coordinator.create_session()
        clock.advance(3601)
        with pytest.raises(SessionExpiredError):
            coordinator.get_session(session.id)


@pytest.mark.parametrize("way", ["touch_session", "touch"])
def test_a_touch_without_the_lock_never_outlasts_the_lifetime(way: str) -> None:
    """However late a session is touched, it is gone for every caller once its lifetime is over."""
    with system_time(clock := ManualClock()):
        world = World(clock)
        with world.coordinator:
            for instant in range(50, 1000, 50):
                world.to(instant)
                TOUCHES[way](world)
            world.to(1000)
            assert world.coordinator.get_session("it") is world.session
            world.to(1000.001)
            for call in (TOUCHES[way], lambda world: world.coordinator.get_session("it")):
                with pytest.raises(SessionExpiredError) as caught:
                    call(world)
                assert caught.value.cause is RemovalCause.LIFETIME
