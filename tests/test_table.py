"""The session table by itself: the order of idleness, room, and work in bounded steps."""

from __future__ import annotations

import weakref

import pytest

from sessionkit.session import ManagedSession
from sessionkit.table import SessionTable


class NoKeeper:
    """A coordinator that nobody asks for anything."""

    def _note_activity(self, *_: object) -> None: ...


KEEPER = NoKeeper()


def table_of(*timeouts: float, maxsize: int | None = None) -> SessionTable:
    """A table of sessions named 0, 1, 2, ..., last active at their number, with these timeouts."""
    table = SessionTable(maxsize, None)
    for number, timeout in enumerate(timeouts):
        session: ManagedSession[None] = ManagedSession(weakref.ref(KEEPER), str(number), None, timeout, {}, None)
        session._created_at = session._last_active = number
        table[session.id] = session
        table.rest(session)
    return table


def test_settle_takes_bounded_steps() -> None:
    """settle sets aside no more than its limit, and says whether there may be more."""
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


def test_idle_for_takes_no_more_than_its_limit() -> None:
    """idle_for gives at most as many as asked for, least recently active first within a line."""
    table = table_of(100, 100, 100, 100)
    assert [session.id for session in table.idle_for(5, 8, 10)] == ["0", "1", "2"]
    assert [session.id for session in table.idle_for(5, 8, 2)] == ["0", "1"]


def test_popitem_takes_the_least_recently_active_at_rest() -> None:
    """popitem keeps to the order of idleness over all lines, and leaves the busy; KeyError if all are busy."""
    table = table_of(10, 20, 10)
    table.occupy(table["0"])
    assert [table.popitem()[0] for _ in range(2)] == ["1", "2"]
    with pytest.raises(KeyError, match="no session is at rest"):
        table.popitem()
    assert list(table) == ["0"]


def test_the_size_is_bounded_as_in_any_cache() -> None:
    """maxsize and currsize are those of cachetools."""
    table = table_of(10, 10, maxsize=2)
    assert (table.maxsize, table.currsize) == (2, 2)
    del table["0"]
    assert table.currsize == 1
