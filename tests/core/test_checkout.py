"""Holding a session while working with it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sessionkit import (
    CoordinatorClosedError,
    RemovalCause,
    SessionBusyError,
    SessionCoordinator,
    SessionExistsError,
    SessionExpiredError,
    SessionState,
)
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import Interruption, interruptions, telling_decisions
from ..helpers.support import WAIT, Closings, HookedClock, in_thread, one_minute, system_time


@pytest.fixture
def closings() -> Closings:
    return Closings()


@pytest.fixture
def coordinator(session_coordinator: CoordinatorFactory, closings: Closings) -> SessionCoordinator[Any]:
    return session_coordinator(one_minute(max_lifetime=1000), on_close=closings)


def take_and_leave(coordinator: SessionCoordinator[Any], session_id: str, **options: Any) -> str:
    with coordinator.checkout(session_id, **options):
        return "taken"


@pytest.fixture
def queued() -> threading.Semaphore:
    """Released once for each thread that has queued up for a session."""
    return threading.Semaphore(0)


def queue_and_leave(
    coordinator: SessionCoordinator[Any], queued: threading.Semaphore, session_id: str, **options: Any
) -> str:
    """Check a session out, tell when that was decided, and leave it."""
    checkout = coordinator.checkout(session_id, **options)
    with telling_decisions(coordinator, queued.release):
        checkout.__enter__()
    checkout.__exit__()
    return "taken"


def test_a_checkout_gives_the_session_and_touches_it_twice(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """A checkout touches the session when it is taken and when it is given back."""
    session = coordinator.create_session()
    session_clock.advance(10)
    with coordinator.checkout(session.id) as held:
        assert held is session
        assert session.metadata.last_active == 10
        assert coordinator.stats().checked_out == 1
        session_clock.advance(10)
    assert session.metadata.last_active == 20
    assert coordinator.stats().checked_out == 0


def test_the_same_thread_may_take_it_again(coordinator: SessionCoordinator[Any]) -> None:
    """Checkouts of one thread nest, in both modes, and the session is held until the outermost ends."""
    session = coordinator.create_session()
    with coordinator.checkout(session.id), coordinator.checkout(session.id, exclusive=False):
        with coordinator.checkout(session.id):
            pass
        with in_thread(lambda: take_and_leave(coordinator, session.id, timeout=0)) as other:
            assert isinstance(other.exception(WAIT), SessionBusyError)
    with coordinator.checkout(session.id, exclusive=False), coordinator.checkout(session.id):
        with in_thread(lambda: take_and_leave(coordinator, session.id, exclusive=False, timeout=0)) as other:
            assert isinstance(other.exception(WAIT), SessionBusyError)
    assert coordinator.stats().checked_out == 0


def test_exclusive_keeps_other_threads_out_until_the_time_limit(coordinator: SessionCoordinator[Any]) -> None:
    """While one thread has a session exclusively, others get SessionBusyError after their timeout, in either mode."""
    session = coordinator.create_session()
    with coordinator.checkout(session.id):
        for exclusive in (True, False):
            with in_thread(
                lambda e=exclusive: take_and_leave(coordinator, session.id, exclusive=e, timeout=0.001)
            ) as f:
                with pytest.raises(SessionBusyError, match=r"timeout=0\.001"):
                    f.result(WAIT)
    assert take_and_leave(coordinator, session.id) == "taken"


def test_several_threads_share_without_exclusive(coordinator: SessionCoordinator[Any]) -> None:
    """With exclusive=False several threads have the session at once."""
    session = coordinator.create_session()
    all_inside = threading.Barrier(3)

    def share() -> None:
        with coordinator.checkout(session.id, exclusive=False):
            all_inside.wait(WAIT)

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(share) for _ in range(3)]:
            future.result(WAIT)
    assert coordinator.stats().checked_out == 0


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("switched", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_a_session_that_was_held_for_longer_than_its_timeout_goes_on(
    exclusive: bool, switched: bool, given: bool
) -> None:
    """Giving back is a touch, also of the active session, however long it was checked out."""
    clock = ManualClock()
    with (
        system_time(clock),
        SessionCoordinator(one_minute(), clock=clock if given else None) as coordinator,
    ):
        session = coordinator.create_session()
        if switched:
            coordinator.switch_session(session.id)
        for _ in range(2):
            with coordinator.checkout(session.id, exclusive=exclusive):
                clock.advance(100)
            assert session.id in coordinator
            assert coordinator.active_session is (session if switched else None)
        clock.advance(60)
        assert session.id in coordinator
        clock.advance(1)
        assert session.id not in coordinator


def test_a_thread_that_waits_gets_it_when_it_is_given_back(
    coordinator: SessionCoordinator[Any], queued: threading.Semaphore
) -> None:
    """Waiters are let in first come first served, and a sharer does not overtake a waiting exclusive one."""
    session = coordinator.create_session()
    order: list[str] = []

    def take(name: str, exclusive: bool) -> None:
        checkout = coordinator.checkout(session.id, exclusive=exclusive)
        with telling_decisions(coordinator, queued.release):
            checkout.__enter__()
        order.append(name)
        checkout.__exit__()

    with ThreadPoolExecutor(3) as pool:
        with coordinator.checkout(session.id, exclusive=False):
            futures = [pool.submit(take, "first", True)]
            assert queued.acquire(timeout=WAIT)
            futures.append(pool.submit(take, "second", False))
            assert queued.acquire(timeout=WAIT)
            futures.append(pool.submit(take, "third", True))
            assert queued.acquire(timeout=WAIT)
        for future in futures:
            future.result(WAIT)
    assert order == ["first", "second", "third"]


def test_a_waiter_that_gives_up_lets_those_behind_it_pass(
    coordinator: SessionCoordinator[Any], queued: threading.Semaphore
) -> None:
    """When an exclusive waiter's time is up, a sharer that queued behind it joins those who share."""
    session = coordinator.create_session()
    with ThreadPoolExecutor(2) as pool, coordinator.checkout(session.id, exclusive=False):
        impatient = pool.submit(queue_and_leave, coordinator, queued, session.id, timeout=0.05)
        assert queued.acquire(timeout=WAIT)
        patient = pool.submit(take_and_leave, coordinator, session.id, exclusive=False)
        assert isinstance(impatient.exception(WAIT), SessionBusyError)
        assert patient.result(WAIT) == "taken"


def test_a_thread_that_shares_cannot_wait_to_have_it_alone(coordinator: SessionCoordinator[Any]) -> None:
    """Two sharers that both wait for the other to leave would wait for ever, so asking is refused at once."""
    session = coordinator.create_session()
    inside, leave = threading.Event(), threading.Event()

    def share() -> None:
        with coordinator.checkout(session.id, exclusive=False):
            inside.set()
            assert leave.wait(WAIT)

    with in_thread(share), coordinator.checkout(session.id, exclusive=False):
        assert inside.wait(WAIT)
        with pytest.raises(SessionBusyError, match="give the shared checkout back"):
            take_and_leave(coordinator, session.id)
        leave.set()


def test_a_close_while_checked_out_ends_it_when_it_is_given_back(
    coordinator: SessionCoordinator[Any], closings: Closings
) -> None:
    """Closed while held: gone for every caller at once, its name free, and finalized when the holder leaves."""
    session = coordinator.create_session("support", session_id="s-1")
    with coordinator.checkout("s-1"):
        coordinator.close_session("s-1")
        assert "s-1" not in coordinator
        assert (len(coordinator), coordinator.stats().checked_out, closings) == (0, 1, [])
        with pytest.raises(SessionExpiredError):
            coordinator.touch_session("s-1")
        session.record_message()
        assert session.state is SessionState.ACTIVE
        successor = coordinator.create_session("support")
    assert closings == [("support", RemovalCause.CLOSED)]
    assert session.state is SessionState.CLOSED
    assert coordinator.list_sessions() == [successor]


def test_an_id_is_not_free_before_its_session_is_given_back(coordinator: SessionCoordinator[Any]) -> None:
    """A closed session that is still held keeps its id, so that two sessions never share a record."""
    coordinator.create_session(session_id="s-1")
    with coordinator.checkout("s-1"):
        coordinator.close_session("s-1")
        with pytest.raises(SessionExistsError, match="still closing"):
            coordinator.create_session(session_id="s-1")
    assert coordinator.create_session(session_id="s-1").id in coordinator


def test_the_end_of_a_session_sends_its_waiters_away(
    coordinator: SessionCoordinator[Any], queued: threading.Semaphore
) -> None:
    """A thread that waits for a session which is closed gets SessionExpiredError, not a closed session."""
    session = coordinator.create_session()
    with ThreadPoolExecutor(2) as pool:
        with coordinator.checkout(session.id):
            waiters = [pool.submit(queue_and_leave, coordinator, queued, session.id) for _ in range(2)]
            assert queued.acquire(timeout=WAIT)
            assert queued.acquire(timeout=WAIT)
            coordinator.close_session(session.id)
            for waiter in waiters:
                with pytest.raises(SessionExpiredError) as caught:
                    waiter.result(WAIT)
                assert caught.value.cause is RemovalCause.CLOSED


def test_closing_the_coordinator_sends_waiters_away(
    coordinator: SessionCoordinator[Any], queued: threading.Semaphore, closings: Closings
) -> None:
    """close() does not wait for holders: waiters get CoordinatorClosedError, the holder finalizes when it is done."""
    session = coordinator.create_session("support")
    with ThreadPoolExecutor(1) as pool, coordinator.checkout(session.id):
        waiter = pool.submit(queue_and_leave, coordinator, queued, session.id)
        assert queued.acquire(timeout=WAIT)
        coordinator.close()
        assert isinstance(waiter.exception(WAIT), CoordinatorClosedError)
        assert closings == []
    assert closings == [("support", RemovalCause.SHUTDOWN)]
    assert coordinator.stats().checked_out == 0


def test_a_lifetime_that_passes_while_checked_out_ends_it_when_it_is_given_back(
    coordinator: SessionCoordinator[Any], closings: Closings, session_clock: ManualClock
) -> None:
    """Too old while held: gone for every caller at once, and finalized with LIFETIME when given back."""
    session = coordinator.create_session("support")
    with coordinator.checkout(session.id):
        session_clock.advance(1001)
        assert len(coordinator) == 0
        assert coordinator.list_sessions() == []
        assert coordinator.cleanup_inactive_sessions(dry_run=True) == 0
        with pytest.raises(SessionExpiredError) as caught:
            coordinator.get_session(session.id)
        assert (caught.value.cause, caught.value.ended_at) == (RemovalCause.LIFETIME, 1000)
        assert closings == []
    assert closings == [("support", RemovalCause.LIFETIME)]


def test_a_cleanup_meets_a_held_session_that_is_too_old(
    coordinator: SessionCoordinator[Any], closings: Closings, session_clock: ManualClock
) -> None:
    """Cleanup ends a held session that is too old, counts it for nobody, and the give-back finalizes it."""
    session = coordinator.create_session("support")
    with coordinator.checkout(session.id):
        session_clock.advance(1001)
        assert coordinator.cleanup_inactive_sessions() == 0
        assert closings == []
    assert closings == [("support", RemovalCause.LIFETIME)]


def test_a_waiter_whose_session_is_too_old_when_it_gets_it_is_told(
    coordinator: SessionCoordinator[Any], queued: threading.Semaphore, closings: Closings, session_clock: ManualClock
) -> None:
    """A waiter that is let in after the lifetime passed gives the session back and gets SessionExpiredError."""
    session = coordinator.create_session("support")
    with ThreadPoolExecutor(1) as pool:
        with coordinator.checkout(session.id):
            waiter = pool.submit(queue_and_leave, coordinator, queued, session.id)
            assert queued.acquire(timeout=WAIT)
            session_clock.advance(1001)
        with pytest.raises(SessionExpiredError) as caught:
            waiter.result(WAIT)
    assert caught.value.cause is RemovalCause.LIFETIME
    assert closings == [("support", RemovalCause.LIFETIME)]


def test_an_error_in_the_block_gives_the_session_back(coordinator: SessionCoordinator[Any]) -> None:
    """An exception leaves the block as it came, and the session is free again."""
    session = coordinator.create_session()
    with pytest.raises(ZeroDivisionError), coordinator.checkout(session.id):
        raise ZeroDivisionError
    assert coordinator.stats().checked_out == 0


def test_a_checkout_is_for_one_block(coordinator: SessionCoordinator[Any]) -> None:
    """Entering a checkout twice is an error, and leaving it twice gives back once."""
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    with checkout, pytest.raises(RuntimeError, match="used already"):
        checkout.__enter__()
    checkout.__exit__()
    assert coordinator.stats().checked_out == 0


def test_a_checkout_that_was_not_entered_has_no_session(coordinator: SessionCoordinator[Any]) -> None:
    """Its methods are for the length of the block, and say so."""
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    for call in (checkout.save, checkout.revert, lambda: checkout.rotate("new")):
        with pytest.raises(RuntimeError, match=f"{session.id}.* does not have the session: enter it first"):
            call()
    assert coordinator.list_sessions() == [session]
    assert session.id != "new"


def test_a_holder_ends_its_session_and_gives_it_back(coordinator: SessionCoordinator[Any], closings: Closings) -> None:
    """`close` of a checkout is the end of the session and of the checkout; doing it again does nothing."""
    coordinator.create_session("support", session_id="it")
    checkout = coordinator.checkout("it")
    checkout.__enter__()
    for _ in range(2):
        checkout.close()
        assert closings == [("support", RemovalCause.CLOSED)]
        assert coordinator.stats().checked_out == 0


def test_a_session_that_is_given_back_while_its_holder_closes_it_ends(
    session_coordinator: CoordinatorFactory, closings: Closings
) -> None:
    """A server may leave the block in another thread at that moment: the session ends, and is closed once."""
    clock = HookedClock()
    coordinator = session_coordinator(clock=clock, on_close=closings)
    coordinator.create_session("support", session_id="it")
    checkout = coordinator.checkout("it")
    checkout.__enter__()
    clock.at_reading(1, checkout.__exit__)
    checkout.close()
    assert closings == [("support", RemovalCause.CLOSED)]
    assert coordinator.stats().checked_out == 0


def test_a_checkout_may_be_left_in_another_thread(coordinator: SessionCoordinator[Any]) -> None:
    """A server may close a streamed response in another thread; the session is free then."""
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    checkout.__enter__()
    with in_thread(checkout.__exit__) as left:
        left.result(WAIT)
    assert coordinator.stats().checked_out == 0
    assert take_and_leave(coordinator, session.id, timeout=0) == "taken"


def test_a_later_thread_is_never_taken_for_the_one_that_has_the_session(coordinator: SessionCoordinator[Any]) -> None:
    """A checkout may outlive its thread, and no thread that comes after it has the session as if it were that one."""
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id)
    idents: list[int] = []

    def enter() -> None:
        idents.append(threading.get_ident())
        checkout.__enter__()

    def enter_later() -> None:
        idents.append(threading.get_ident())
        with pytest.raises(SessionBusyError):
            take_and_leave(coordinator, session.id, timeout=0)
        refused.append(idents[-1])

    refused: list[int] = []
    for target in [enter, *[enter_later] * 50]:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join(WAIT)
    assert refused == idents[1:]
    # Python gave the ident of the thread that had ended to a later one.
    assert idents[0] in refused
    checkout.__exit__()
    assert take_and_leave(coordinator, session.id, timeout=0) == "taken"


def test_a_clock_that_fails_does_not_keep_the_session(session_coordinator: CoordinatorFactory) -> None:
    """If the clock raises when the session is given back, the error is seen and the session is free all the same."""
    fails = False

    def clock() -> float:
        if fails:
            raise OSError("no time")
        return 5.0

    coordinator = session_coordinator(clock=clock)
    session = coordinator.create_session()
    with coordinator.checkout(session.id):
        checkout = coordinator.checkout(session.id)
        with pytest.raises(OSError, match="no time"), checkout:
            fails = True
        fails = False
        checkout.__exit__()
        assert coordinator.stats().checked_out == 1
    assert coordinator.stats().checked_out == 0
    assert take_and_leave(coordinator, session.id, timeout=0) == "taken"


@pytest.mark.parametrize("exclusive", ["no", None, 1, 0])
def test_exclusive_is_true_or_false(exclusive: Any, coordinator: SessionCoordinator[Any]) -> None:
    """Anything but a bool is refused before anything is held."""
    session = coordinator.create_session()
    with pytest.raises(TypeError, match=f"exclusive must be True or False, not {exclusive!r}"):
        coordinator.checkout(session.id, exclusive=exclusive)
    assert coordinator.stats().checked_out == 0


def test_a_checkout_that_was_refused_may_be_tried_again(coordinator: SessionCoordinator[Any]) -> None:
    """A checkout that raised on entering has nothing, and can be entered once more."""
    session = coordinator.create_session()
    checkout = coordinator.checkout(session.id, timeout=0)
    inside, leave = threading.Event(), threading.Event()

    def hold_it() -> None:
        with coordinator.checkout(session.id):
            inside.set()
            assert leave.wait(WAIT)

    with in_thread(hold_it):
        assert inside.wait(WAIT)
        with pytest.raises(SessionBusyError):
            checkout.__enter__()
        leave.set()
    with checkout as held:
        assert held is session


def test_nothing_is_held_before_the_block_is_entered(coordinator: SessionCoordinator[Any]) -> None:
    """Calling checkout takes nothing; only the with block does."""
    session = coordinator.create_session()
    coordinator.checkout(session.id)

    assert coordinator.stats().checked_out == 0


# ---- The data


def test_data_belong_to_their_session(coordinator: SessionCoordinator[Any]) -> None:
    """Dicts and lists are detached where they are given to a new session, and when the last checkout is given back:
    what a holder has put in or read is not part of them any more."""
    theirs = {"roles": ["user"], "deep": {"er": [[]]}}
    created = coordinator.create_session(data=theirs)
    theirs["roles"].append("admin")  # type: ignore[attr-defined]  # mypy takes the values for all of one type
    assert created.data == {"roles": ["user"], "deep": {"er": [[]]}}
    data, roles, odd = created.data, ["a"], object()
    with coordinator.checkout(created.id) as held:
        read = held.data["deep"]
        held.data.update(roles=roles, odd=odd, pair=(odd,), n=1)
        with coordinator.checkout(created.id):
            pass
        # That was not the last.
        roles.append("b")
        read["er"].append(1)
    roles.append("c")
    read["er"][0].append(2)
    assert created.data is data
    # What JSON has no form for is left as it is.
    assert created.data == {"roles": ["a", "b"], "deep": {"er": [[], 1]}, "odd": odd, "pair": (odd,), "n": 1}


def test_data_may_contain_themselves_and_be_deep(coordinator: SessionCoordinator[Any]) -> None:
    """Without a store: the session is given back, and what is the same in it stays the same."""
    session = coordinator.create_session()
    loop: list[Any] = [session.data]
    loop.append(loop)
    with coordinator.checkout(session.id) as held:
        deep: list[Any] = []
        for _ in range(10_000):
            deep = [deep]
        held.data.update(loop=loop, again=loop, deep=deep)
    assert session.data["loop"] is session.data["again"]
    assert session.data["loop"] is not loop
    assert session.data["loop"][1] is session.data["loop"]
    assert session.data["loop"][0] is session.data
    innermost = session.data["deep"]
    assert innermost is not deep
    while innermost:
        innermost = innermost[0]
    assert coordinator.stats().checked_out == 0
    session.data.clear()


def come_and_go(coordinator: SessionCoordinator[Any], session_id: str) -> None:
    """Another thread shares the session, changes what is deep in its data, and gives it back."""

    def change() -> None:
        with coordinator.checkout(session_id, exclusive=False) as held:
            held.data["list"].append(1)

    with in_thread(change) as future:
        future.result(WAIT)


@pytest.mark.parametrize("stays", [False, True])
def test_no_change_is_lost_when_a_shared_session_is_given_back(
    stays: bool, coordinator: SessionCoordinator[Any]
) -> None:
    """At whichever moment of that another checkout comes in, and stays or goes: what it changes, however deep, is
    kept."""
    session = coordinator.create_session()
    for interruption in interruptions():
        session.data["list"] = ours = [0]
        assert lists_after(coordinator, session.id, interruption, stays) == ([0, 1] if interruption.came else [0])
        ours.append("no part of it any more")
        assert session.data["list"] == ([0, 1] if interruption.came else [0])


def lists_after(
    coordinator: SessionCoordinator[Any], session_id: str, interruption: Interruption, stays: bool
) -> list[Any]:
    """The list in a session after it was shared and given back, in the middle of which another checkout came."""
    came: list[Any] = []

    def come_and_stay() -> None:
        other = coordinator.checkout(session_id, exclusive=False, holder=object())
        came.append((other, other.__enter__().data["list"]))

    checkout = coordinator.checkout(session_id, exclusive=False)
    session = checkout.__enter__()
    act = come_and_stay if stays else lambda: come_and_go(coordinator, session_id)
    with interruption.outside_decisions(coordinator, act):
        checkout.__exit__()
    for other, read in came:
        read.append(1)
        other.__exit__()
    return list(session.data["list"])


class Waiter:
    """Notes that it was woken, as an event loop would that is to ask again."""

    woken = 0

    def wake(self) -> None:
        self.woken += 1


@pytest.mark.parametrize("holder", [None, "request 1"])
def test_a_checkout_in_steps_asks_until_its_turn_has_come(coordinator: SessionCoordinator[Any], holder: object) -> None:
    """Nothing waits in between: the waiter is woken once, when it is time to ask again."""
    session, waiter = coordinator.create_session(), Waiter()
    in_steps = coordinator.checkout(session.id, holder=holder)
    with coordinator.checkout(session.id, holder="another"):
        in_steps.begin(waiter, "a task")
        assert in_steps.ask() is None
        # It may ask when it likes.
        assert in_steps.ask() is None
        assert waiter.woken == 0
    assert waiter.woken == 1
    assert in_steps.ask() is session
    (held,) = coordinator.checkouts()
    assert held.holder == repr(holder or "a task")
    with coordinator.checkout(session.id, holder=holder or "a task", timeout=0):
        assert in_steps.is_quick
    with pytest.raises(RuntimeError, match="was used already"):
        in_steps.begin(waiter, "a task")
    assert in_steps.begin_to_leave() is None
    assert take_and_leave(coordinator, session.id) == "taken"


def test_a_place_in_the_queue_is_given_back_like_a_session(coordinator: SessionCoordinator[Any]) -> None:
    """Those behind it pass, and giving it back again does nothing."""
    session, first, second = coordinator.create_session(), Waiter(), Waiter()
    checkouts = [coordinator.checkout(session.id) for _ in range(2)]
    with coordinator.checkout(session.id, holder="another"):
        for checkout, waiter in zip(checkouts, (first, second), strict=True):
            checkout.begin(waiter, repr(waiter))
            assert checkout.ask() is None
        assert checkouts[0].begin_to_leave() is None
        assert checkouts[0].begin_to_leave() is None
    assert (first.woken, second.woken) == (0, 1)
    assert checkouts[1].ask() is session
    checkouts[1].__exit__()


def test_since_when_a_checkout_that_waited_has_the_session(
    coordinator: SessionCoordinator[Any], session_clock: ManualClock
) -> None:
    """From when it got it, not from when it began to wait."""
    session = coordinator.create_session()
    waited = coordinator.checkout(session.id)
    session_clock.advance(5)
    with coordinator.checkout(session.id, holder="another"):
        waited.begin(Waiter(), "a task")
        assert waited.ask() is None
        session_clock.advance(10)
    assert waited.ask() is session
    session_clock.advance(3)
    assert [held.held_for for held in coordinator.checkouts()] == [3]
    waited.__exit__()
