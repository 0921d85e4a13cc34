"""The `with` block in which a session is checked out."""

from __future__ import annotations

import threading
from typing import Any, Generic, Protocol

from .clock import SteadyClock
from .errors import SessionBusyError, SessionExpiredError
from .hold import Hold, Waiter
from .roster import Roster
from .session import ManagedSession, R


class Lender(Protocol):
    """What a checkout needs of its coordinator."""

    _lock: threading.RLock
    _clock: SteadyClock
    _roster: Roster

    def _read(self) -> float: ...

    def _finish(self, claimed: list[ManagedSession[Any]]) -> int: ...


class Checkout(Generic[R]):
    """Takes a session on entering and gives it back on leaving. Made by `SessionCoordinator.checkout`.

    For one `with` block: entering it a second time raises `RuntimeError`. It may be left in another thread than the
    one that entered it, as a server does that closes a streamed response elsewhere.
    """

    __slots__ = ("_exclusive", "_lender", "_session", "_session_id", "_thread", "_timeout")

    def __init__(self, lender: Lender, session_id: str, exclusive: bool, timeout: float | None) -> None:
        self._lender = lender
        self._session_id = session_id
        self._exclusive = exclusive
        self._timeout = timeout
        self._thread = 0
        self._session: ManagedSession[R] | None = None

    def __enter__(self) -> ManagedSession[R]:
        if self._thread:
            raise RuntimeError(
                f"this checkout of session {self._session_id!r} was used already; call checkout() for each with block"
            )
        self._thread = threading.get_ident()
        reading = self._lender._read()
        with self._lender._lock:
            now = self._lender._clock.advance(reading)
            session = self._lender._roster.find(self._session_id, now)
            hold = self._lender._roster.hold(session)
            waiter = self._take_or_queue(hold)
            if waiter is None:
                self._lender._roster.touch(session, now)
        if waiter is not None:
            self._wait(session, hold, waiter)
        self._session = session
        return session

    def __exit__(self, *exc_info: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._give_back(session)

    def _take_or_queue(self, hold: Hold) -> Waiter | None:
        if hold.take(self._thread, self._exclusive):
            return None
        if hold.would_deadlock(self._thread, self._exclusive):
            raise SessionBusyError(
                f"session {self._session_id!r} is shared by this thread and others, and this thread cannot wait for "
                "them to leave: give the shared checkout back before asking for an exclusive one"
            )
        return hold.queue(self._thread, self._exclusive)

    def _wait(self, session: ManagedSession[R], hold: Hold, waiter: Waiter) -> None:
        try:
            waiter.wait(self._timeout)
            # The wait may have been long: a second reading.
            reading = self._lender._clock.read()
        except BaseException:
            self._leave_queue(session, hold, waiter)
            raise
        with self._lender._lock:
            now = self._lender._clock.advance(reading)
            ending = session._ending or self._lender._roster.ending_of(session, now)
            if waiter.granted and ending is None:
                self._lender._roster.touch(session, now)
                return
        self._leave_queue(session, hold, waiter)
        if ending is not None:
            self._lender._roster.check_open()
            raise SessionExpiredError(session.id, *ending)
        raise SessionBusyError(
            f"session {session.id!r} is checked out elsewhere, and was for all of timeout={self._timeout!r} seconds; "
            "wait longer, or share it with exclusive=False on both sides"
        )

    def _leave_queue(self, session: ManagedSession[R], hold: Hold, waiter: Waiter) -> None:
        with self._lender._lock:
            hold.withdraw(waiter)
        if waiter.granted:
            self._give_back(session)

    def _give_back(self, session: ManagedSession[R]) -> None:
        reading = self._lender._clock.read()
        with self._lender._lock:
            claimed = self._lender._roster.give_back(
                session, self._thread, self._exclusive, self._lender._clock.advance(reading)
            )
        self._lender._finish(claimed)
