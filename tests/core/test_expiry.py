"""The session table by itself: the order of idleness, room, and work in bounded steps."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sessionkit.core.line import Line
from sessionkit.core.table import SessionTable, is_past

from sessionkit import RemovalCause
from sessionkit.core.session import ManagedSession


class NoKeeper:
    """A coordinator that nobody asks for anything."""

    def _note_activity(self, *_: object) -> None: ...

    def _touch_without_lock(self, _: object) -> bool:
        return True


class SomeCheckout:
    """A checkout that has a session to itself."""

    thread: object = None
    exclusive = True
    in_books = False


KEEPER = NoKeeper()


def a_session(session_id: str, timeout: float = 10) -> ManagedSession[None]:
    """A session that is not in any table yet."""
    return ManagedSession(weakref.ref(KEEPER), session_id, None, timeout, None, None)


def table_of(*timeouts: float, maxsize: int | None = None) -> SessionTable:
    """A table of sessions named 0, 1, 2, ..., last active at their number, with these timeouts."""
    table = SessionTable(maxsize, None)
    for number, timeout in enumerate(timeouts):
        session = a_session(str(number), timeout)
        session._created_at = session._last_active = number
        table.enter(session, number)
    return table


def touch_without_lock(session: ManagedSession[Any], now: float) -> None:
    """What a touch without the lock does to a session."""
    session._last_active = now


def test_settle_takes_bounded_steps() -> None:
    """settle looks at no more than its limit, and says whether there may be more."""
    table = table_of(10, 10, 20, 20, 30)
    assert table.settle(100, 2) is True
    assert table.overdue == 2
    assert table.settle(100, 2) is True
    assert table.settle(100, 2) is False
    assert table.overdue == len(table) == 5


def test_settle_leaves_those_in_time() -> None:
    """Only those whose own timeout has passed are set aside."""
    table = table_of(10, 100, 10, 10)
    assert table.settle(12.5, 10) is False
    assert table.overdue == 2
    assert {session.id for session in table.snapshot()} == {"1", "3"}


def test_settle_files_anew_who_has_moved_on() -> None:
    """A session that was touched without the lock is met once, filed at its last activity, and met again when due."""
    table = table_of(10, 10, 10)
    touch_without_lock(table["0"], 5)
    touch_without_lock(table["1"], 3)
    assert table.settle(12.5, 10) is False
    assert [session.id for session in table.snapshot()] == ["0", "1"]
    assert table.settle(13.5, 10) is False
    assert [session.id for session in table.snapshot()] == ["0"]
    assert table.settle(15.5, 10) is False
    assert table.overdue == 3


@given(
    st.floats(0, 2e9),
    st.floats(0.001, 1e5),
    st.floats(0, 2e-6),
)
@example(1063535.5932222926, 85.049, 0.0)
def test_who_is_due_has_an_ending(active: float, timeout: float, later: float) -> None:
    """The order and the ending round the same way: nobody is met again and again who is due and has not ended."""
    table = SessionTable(None, None)
    session = a_session("it", timeout)
    session._created_at = session._last_active = active
    table.enter(session, active)
    now = active + timeout + later
    assert table.settle(now, 3) is False
    assert table.overdue == is_past(active + timeout, now)
    # Without a limit, as the coordinator looks when time stands still.
    assert len([*table.due(now)]) == 0


def test_the_overdue_leave_nothing_behind() -> None:
    """Who leaves after its time ran out, in whatever way, is not kept."""
    table = table_of(10, 10, 10)
    table.settle(100, 10)
    assert table.overdue == 3
    del table["1"]
    del table["0"]
    assert (table.overdue, [*table._overdue]) == (1, ["2"])


def test_a_lifetime_is_never_hidden_behind_the_horizon() -> None:
    """No store of the instant until which a look may do without the lock is later than the end of the lifetime."""
    stored: list[float] = []

    class Watched(ManagedSession[None]):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_until":
                stored.append(value)
            super().__setattr__(name, value)

    table = SessionTable(None, 100)
    session = Watched(weakref.ref(KEEPER), "it", None, 60, None, None)
    session._created_at = session._last_active = 0
    table.enter(session, 0)
    for now in (50, 99):
        table.touched(session, now)
    assert max(stored) == 100


def test_looks_at_who_has_moved_on_are_bounded_too() -> None:
    """Filing anew counts as a look, so that the lock is let go however many sessions have moved on."""
    table = table_of(*[10] * 50)
    for session in table.snapshot():
        touch_without_lock(session, 60)
    assert [table.settle(65, 20) for _ in range(4)] == [True, True, False, False]
    assert table.overdue == 0


def test_idle_gives_the_least_recently_active_first() -> None:
    """idle gives those at rest for longer, in order within a line, for whoever takes them out."""
    table = table_of(100, 100, 100, 100)
    found = []
    for session in table.idle(5, 8):
        assert session is not None
        found.append(session.id)
        del table[session.id]
    assert found == ["0", "1", "2"]


def test_idle_leaves_who_has_moved_on() -> None:
    """A session that was touched without the lock is not idle, whatever its place says: that is a look for nothing."""
    table = table_of(100, 100)
    touch_without_lock(table["0"], 7)
    idle = table.idle(5, 8)
    assert next(idle) is None
    assert next(idle) is table["1"]


def test_popitem_takes_the_least_recently_active_at_rest() -> None:
    """popitem keeps to the order of activity over all lines, and leaves the checked out; KeyError if all are."""
    table = table_of(10, 20, 10, 20)
    table["0"]._checkout = SomeCheckout()
    touch_without_lock(table["1"], 9)
    assert [table.popitem()[0] for _ in range(3)] == ["2", "3", "1"]
    with pytest.raises(KeyError, match="no session is at rest"):
        table.popitem()
    assert list(table) == ["0"]


def test_put_head_right_takes_bounded_steps() -> None:
    """put_head_right files anew at most as many as its limit, and says when the least recently active one is found."""
    table = table_of(*[10] * 5)
    for session in table.snapshot()[:3]:
        touch_without_lock(session, 9)
    assert table.put_head_right(2) is False
    assert table.put_head_right(2) is True
    assert table.popitem()[0] == "3"
    assert SessionTable(None, None).put_head_right(1) is True


def test_put_head_right_leaves_the_head_usable() -> None:
    """Looking for the one to evict keeps nobody from being used without the lock."""
    table = table_of(10, 10)
    before = [session._until for session in table.snapshot()]
    assert table.put_head_right(5) is True
    touch_without_lock(table["0"], 5)
    assert table.put_head_right(5) is True
    assert [table[session_id]._until for session_id in "01"] == before


def test_who_was_used_in_between_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is found to be over, and is touched before nobody can touch it, is not over."""
    table = table_of(10)
    until = table["0"]._until
    endings = iter([(RemovalCause.IDLE, 10, 10), None])
    monkeypatch.setattr(table, "_ending_at", lambda *_: next(endings))
    assert table.over(table["0"], 11) is None
    assert (table["0"]._until, table.overdue) == (until, 0)


def test_the_parked_come_back_to_the_end_of_their_line() -> None:
    """A session that is checked out when it is met stands in no line until it is given back."""
    table = table_of(10, 10)
    table["0"]._checkout = SomeCheckout()
    assert table.settle(10.5, 10) is False
    assert table["0"]._until == float("-inf")
    table["0"]._checkout = None
    table.rested(table["0"], 10.5)
    assert table["0"]._until > 10.5
    assert [table.popitem()[0] for _ in range(2)] == ["1", "0"]


def test_a_line_is_in_the_order_of_what_it_knows() -> None:
    """The head is who was filed earliest, whether it was active then or had moved on when it was met."""
    line = Line(10)
    sessions = [a_session(str(number)) for number in range(6)]
    for number, session in enumerate(sessions):
        line.add(session, number)
        session._last_active = number
    sessions[0]._last_active, sessions[1]._last_active, sessions[2]._last_active = 3.5, 2.5, 4.5
    for session in sessions[:3]:
        line.move_on(session)
    line.renew(sessions[2], 6)
    line.discard(sessions[4])
    order = []
    while (head := line.head()) is not None:
        order.append(head.id)
        line.discard(head)
    assert order == ["1", "3", "0", "5", "2"]
    assert line._heap == []


def test_entries_that_are_no_more_do_not_pile_up() -> None:
    """Sessions that are filed anew again and again, and leave, leave nothing behind in the line."""
    line = Line(10)
    for number in range(100):
        session = a_session(str(number))
        line.add(session, number)
        for step in range(5):
            session._last_active = number + step / 10
            line.move_on(session)
        assert line.head() is session
        assert len(line._heap) <= 5
        line.discard(session)
    assert (line._heap, line.moved, list(line)) == ([], {}, [])


def test_the_horizon_is_shared_and_never_too_late() -> None:
    """_until is at most a sixteenth of the timeout before the end, never after it, and one object for many."""
    line = Line(160)
    sessions = []
    for number in range(100):
        session = a_session(str(number), 160)
        line.add(session, number)
        assert number + 150 <= session._until <= number + 160
        sessions.append(session)
    assert len({id(session._until) for session in sessions}) <= 11


def test_the_size_is_bounded_as_in_any_cache() -> None:
    """maxsize and currsize are those of cachetools, and so are the ways to look."""
    table = table_of(10, 10, maxsize=2)
    assert (table.maxsize, table.currsize) == (2, 2)
    assert "0" in table
    assert table.get("0") is table["0"]
    del table["0"]
    assert (table.currsize, list(table), "0" in table) == (1, ["1"], False)
    with pytest.raises(TypeError, match="enter"):
        table["2"] = a_session("2")
