"""The `with` block in which a session is checked out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol

from .clock import SteadyClock
from .errors import SessionBusyError, SessionExpiredError
from .hold import Hold, Waiter, this_thread
from .roster import Roster
from .session import ManagedSession, R
from .sweep import Sweep


class Lender(Protocol):
    """What a checkout needs of its coordinator."""

    _lock: threading.RLock
    _clock: SteadyClock
    _roster: Roster
    _sweep: Sweep

    def _begin_call(self) -> float: ...

    def _interrupted(self) -> bool: ...

    def _call_elsewhere(self, call: Callable[[], None]) -> None: ...


class Checkout(Generic[R]):
    """Takes a session on entering and gives it back on leaving. Made by `SessionCoordinator.checkout`.

    For one `with` block: entering it again raises `RuntimeError`, unless it raised the first time. It may be left in
    another thread than the one that entered it, as a server does that closes a streamed response elsewhere.
    """

    __slots__ = ("_exclusive", "_holder", "_lender", "_session", "_session_id", "_timeout")

    def __init__(self, lender: Lender, session_id: str, exclusive: bool, timeout: float | None) -> None:
        self._lender = lender
        self._session_id = session_id
        self._exclusive = exclusive
        self._timeout = timeout
        self._holder: object | None = None
        self._session: ManagedSession[R] | None = None

    def __enter__(self) -> ManagedSession[R]:
        if self._holder is not None:
            raise RuntimeError(
                f"this checkout of session {self._session_id!r} was used already; call checkout() for each with block"
            )
        holder = this_thread.token
        queued: tuple[ManagedSession[R], Waiter] | None = None
        reading = self._lender._begin_call()
        try:
            with self._lender._lock:
                now = self._lender._clock.advance(reading)
                session = self._lender._roster.find(self._session_id, now)
                hold = self._lender._roster.hold(session)
                if hold.take(holder, self._exclusive):
                    self._lender._roster.touch(session, now)
                else:
                    queued = session, self._queue(hold, holder)
            if queued is not None:
                self._wait(*queued)
        except BaseException:
            if queued is not None:
                self._leave_queue(*queued)
            raise
        self._holder, self._session = holder, session
        return session

    def __exit__(self, *exc_info: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._give_back(session, self._holder)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of session {self._session_id!r}, for a with block>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> None:
            raise AttributeError(
                f"{self!r} has no {name!r}; write `with coordinator.checkout(...) as session:` and use the session"
            )

    def _queue(self, hold: Hold, holder: object) -> Waiter:
        if hold.would_deadlock(holder, self._exclusive):
            raise SessionBusyError(
                f"session {self._session_id!r} is shared by this thread and others, and this thread cannot wait for "
                "them to leave: give the shared checkout back before asking for an exclusive one"
            )
        return hold.queue(holder, self._exclusive)

    def _wait(self, session: ManagedSession[R], waiter: Waiter) -> None:
        waiter.wait(self._timeout)
        # The wait may have been long: a second reading.
        reading = self._lender._clock.read()
        with self._lender._lock:
            now = self._lender._clock.advance(reading)
            ending = session._ending or self._lender._roster.ending_of(session, now)
            if ending is not None:
                self._lender._roster.check_open()
                raise SessionExpiredError(session.id, *ending)
            if not waiter.granted:
                raise SessionBusyError(
                    f"session {session.id!r} is checked out elsewhere, and was for all of timeout={self._timeout!r} "
                    "seconds; wait longer, or share it with exclusive=False on both sides"
                )
            self._lender._roster.touch(session, now)

    def _leave_queue(self, session: ManagedSession[R], waiter: Waiter) -> None:
        with self._lender._lock:
            waiter.hold.withdraw(waiter)
        if waiter.granted:
            self._give_back(session, waiter.holder)

    def _give_back(self, session: ManagedSession[R], holder: object) -> None:
        if self._lender._interrupted():
            # A generator that holds this checkout is collected in the middle of a decision.
            self._lender._call_elsewhere(lambda: self._give_back(session, holder))
            return
        reading = self._lender._clock.latest
        try:
            reading = self._lender._clock.read()
        finally:
            # Even a clock that fails must not keep the session checked out for ever.
            with self._lender._lock:
                now = self._lender._clock.advance(reading)
                claimed = self._lender._roster.give_back(session, holder, self._exclusive, now)
            self._lender._sweep.finish(claimed)
