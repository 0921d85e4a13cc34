"""What is remembered of sessions that have ended, and for how long."""

from __future__ import annotations

import gc
import weakref

import pytest

from sessionkit import RemovalCause
from sessionkit.core.history import EndedSessions
from sessionkit.errors import Ending

HOUR = 3600.0


def closed(at: float) -> Ending:
    return RemovalCause.CLOSED, at, None


def test_an_end_is_known_by_id_and_by_name_for_an_hour() -> None:
    """From the instant at which the end was noted, and not a moment longer."""
    ended = EndedSessions()
    ended.note(("s-1", "chat", closed(5.0), 10.0))
    ended.note(("s-2", None, closed(20.0), 20.0))

    assert ended.ending_of("s-1", 20.0) == closed(5.0)
    assert ended.id_of("chat", HOUR + 9.9) == "s-1"
    assert ended.ending_of("s-1", HOUR + 9.9) == closed(5.0)
    assert ended.ending_of("s-1", HOUR + 10) is None
    assert ended.id_of("chat", HOUR + 10) is None
    assert ended.ending_of("s-2", HOUR + 10) == closed(20.0)
    assert ended.ending_of("unknown", HOUR + 10) is None
    assert ended.id_of("unknown", HOUR + 10) is None


def test_an_end_that_nobody_asked_about_is_forgotten_all_the_same() -> None:
    """Whether an end is filed early or late makes no difference to how long it is known."""
    ended = EndedSessions()
    ended.note(("s-1", "chat", closed(0.0), 0.0))
    assert ended.ending_of("s-1", HOUR) is None
    assert ended.id_of("chat", HOUR) is None


@pytest.mark.parametrize("asked", [False, True])
def test_the_last_1024_are_known(asked: bool) -> None:
    """The one that ended first is forgotten first, whichever was asked about in between."""
    ended = EndedSessions()
    for number in range(1024):
        ended.note((f"s-{number}", f"n-{number}", closed(number), number))
        if asked:
            assert ended.ending_of("s-0", number) == closed(0)
            assert ended.id_of("n-0", number) == "s-0"
    ended.note(("s-1024", "n-1024", closed(1024), 1024))

    assert ended.ending_of("s-0", 1024) is None
    assert ended.id_of("n-0", 1024) is None
    assert [ended.ending_of(f"s-{number}", 1024) for number in range(1, 1025)] == [*map(closed, range(1, 1025))]
    assert [ended.id_of(f"n-{number}", 1024) for number in range(1, 1025)] == [f"s-{n}" for n in range(1, 1025)]


@pytest.mark.parametrize("asked", [False, True])
def test_an_id_that_ends_again_is_known_anew(asked: bool) -> None:
    """Of several ends of one id, or one name, the last one counts; for the hour, and for the number."""
    ended = EndedSessions()
    ended.note(("s-1", "chat", closed(0.0), 0.0))
    if asked:
        assert ended.id_of("chat", 0.0) == "s-1"
    ended.note(("s-1", None, closed(10.0), 10.0))
    ended.note(("s-2", "chat", closed(20.0), 20.0))
    for number in range(1022):
        ended.note((f"filler-{number}", None, closed(30.0), 30.0))

    assert ended.ending_of("s-1", HOUR + 5) == closed(10.0)
    assert ended.id_of("chat", HOUR + 5) == "s-2"


@pytest.mark.parametrize("asked", [False, True])
def test_a_session_that_lives_on_is_forgotten_until_it_ends_again(asked: bool) -> None:
    """Forgetting strikes what was noted before, and nothing that is noted later; forgetting again does nothing."""
    ended = EndedSessions()
    ended.note(("s-1", "chat", closed(0.0), 0.0))
    ended.note(("s-2", None, closed(1.0), 1.0))
    if asked:
        assert ended.ending_of("s-1", 1.0) == closed(0.0)
    ended.forget("s-1")
    ended.forget("s-1")
    assert ended.ending_of("s-1", 2.0) is None
    assert ended.ending_of("s-2", 2.0) == closed(1.0)
    ended.note(("s-1", None, closed(3.0), 3.0))
    assert ended.ending_of("s-1", 3.0) == closed(3.0)


def test_the_history_of_a_dropped_coordinator_goes_at_once() -> None:
    """It does not wait for the garbage collector to find a cycle."""
    ended = EndedSessions()
    ended.note(("s-1", None, closed(0.0), 0.0))
    assert ended.ending_of("s-1", 0.0) == closed(0.0)
    gc.disable()
    try:
        gone = weakref.ref(ended)
        del ended
        assert gone() is None
    finally:
        gc.enable()
