"""The `with` block in which a session is checked out."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol

from ..errors import SessionBusyError, SessionExpiredError, SessionNotFoundError, StoreError
from ..persistence.archive import Archive
from ..util.clock import Clock, SteadyClock
from ..util.validation import checked_id
from .hold import Hold, Waiter, this_thread
from .roster import Roster
from .session import ManagedSession, R
from .sweep import Sweep


class Lender(Protocol):
    """What a checkout needs of its coordinator."""

    _goes_without_lock: Clock | None
    _quick_clock: Clock
    _lock: threading.RLock
    _clock: SteadyClock
    _roster: Roster
    _sweep: Sweep
    _at_hand: dict[str, ManagedSession[Any]]
    _archive: Archive | None

    def _begin_call(self) -> float: ...

    def _interrupted(self) -> bool: ...

    def _call_elsewhere(self, call: Callable[[], None]) -> None: ...

    def _rename_held(self, session: ManagedSession[Any], new_id: str) -> None: ...

    def close_session(self, session_id: str) -> None: ...


class Checkout(Generic[R]):
    """Takes a session on entering and gives it back on leaving. Made by `SessionCoordinator.checkout`.

    For one `with` block: entering it again raises `RuntimeError`, unless it raised the first time. It may be left in
    another thread than the one that entered it, as a server does that closes a streamed response elsewhere.

    Both ends begin with the steps that `sessionkit.pulse` describes, and take the lock when those do not do.
    """

    __slots__ = ("_holder", "_lender", "_session", "_session_id", "_timeout", "exclusive", "in_books", "thread")

    def __init__(
        self, lender: Lender, session_id: str, exclusive: bool, timeout: float | None, holder: object | None = None
    ) -> None:
        self._lender = lender
        self._session_id = session_id
        self._timeout = timeout
        # Whoever it is for, if that is not the thread that enters it.
        self._holder = holder
        self._session: ManagedSession[R] | None = None
        self.exclusive = exclusive
        self.in_books = False
        self.thread: object | None = None

    def __enter__(self) -> ManagedSession[R]:
        if self.thread is not None:
            raise RuntimeError(
                f"this checkout of session {self._session_id!r} was used already; call checkout() for each with block"
            )
        self.thread = this_thread.token if self._holder is None else self._holder
        lender = self._lender
        session: ManagedSession[R] | None = None
        try:
            if self.exclusive and time.monotonic is lender._goes_without_lock:
                session = lender._at_hand.get(self._session_id)
                now = lender._quick_clock()
                if session is not None and now < session._until:
                    session._checkout = self if session._checkout is None else session._checkout  # one step
                    if session._checkout is self:
                        session._last_active = now if now > session._last_active else session._last_active  # one step
                        # It may have been given another id since it was found.
                        if now < session._until and session._id == self._session_id:
                            lender._roster.out.add(session)
                            self._session = session
                            return session
                    self._undo(session)
            if lender._archive is not None:
                self._session = self._enter_with_store(lender._archive)
                return self._session
            self._session = session = self._enter_with_lock(self._timeout)
            return session
        except BaseException:
            if session is not None:
                self._undo(session)
            self.thread = self._session = None
            raise

    def __exit__(self, exc_type: object = None, exc: object = None, traceback: object = None) -> None:
        session = self._session
        if session is None:
            return
        try:
            self._session = None
            lender = self._lender
            if lender._archive is not None:
                self._exit_with_store(session, lender._archive)
                return
            if time.monotonic is lender._goes_without_lock and not self.in_books:
                now = lender._quick_clock()
                session._last_active = now if now > session._last_active else session._last_active  # one step
                lender._roster.out.discard(session)
                session._checkout = None if session._checkout is self else session._checkout  # one step
                # Another thread may have put it in the books meanwhile, which mypy does not expect.
                if not self.in_books and now < session._until:  # type: ignore[redundant-expr]
                    return
            self._give_back(session)
        except Exception:
            raise
        except BaseException:
            # An interruption, here or in a callback: what was done already is not done twice.
            if self._lender._archive is not None:
                self._exit_with_store(session, self._lender._archive)
            else:
                self._give_back(session)
            raise

    # ---- For the holder, within the block

    @property
    def confirmed(self) -> bool:
        """Whether the store has confirmed the checkout; without a store, always.

        False if the store failed and could not say whether another process has the session: then it is checked out in
        this process only.
        """
        archive = self._lender._archive
        return archive is None or archive.records.is_leased(self)

    def save(self) -> None:
        """Write to the store now what changed, and not only when the session is given back. No store: nothing.

        Raises `StoreError`, `SessionConflictError`, `SessionNotFoundError` if the session was ended elsewhere, and
        `InvalidSessionError` for data that cannot be stored.
        """
        session = self._held()
        if self._lender._archive is not None:
            self._lender._archive.leases.save(session)

    def revert(self) -> None:
        """Set the data back to what the store has of it, as it was last read or saved. No store: nothing."""
        session = self._held()
        if self._lender._archive is not None:
            self._lender._archive.leases.revert(session)

    def rotate(self, new_id: str) -> None:
        """Give the session, which is checked out exclusively, another id. Raises as `rotate_session` does."""
        self._lender._rename_held(self._held(), checked_id(new_id))

    def close(self) -> None:
        """End the session (cause `CLOSED`) and give it back. Does nothing if it has ended already.

        Raises `StoreError` if the store has its record still: deleting it is tried again later.
        """
        session_id = self._held().id
        try:
            with contextlib.suppress(SessionNotFoundError):
                self._lender.close_session(session_id)
        finally:
            with contextlib.suppress(SessionNotFoundError):
                self.__exit__()
        archive = self._lender._archive
        if archive is not None and archive.records.is_ending(session_id):
            raise StoreError(f"session {session_id!r} has ended here, but the store could not delete its record yet")

    def give_back_later(self) -> None:
        """Give the session back soon, with no I/O and no lock in this thread: for finalizers (`__del__`)."""
        if not sys.is_finalizing():
            with contextlib.suppress(RuntimeError):
                self._lender._call_elsewhere(self.__exit__)

    def _held(self) -> ManagedSession[R]:
        if self._session is None:
            raise RuntimeError(
                f"this checkout does not hold session {self._session_id!r}: call this within its with block"
            )
        return self._session

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of session {self._session_id!r}, for a with block>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> None:
            raise AttributeError(
                f"{self!r} has no {name!r}; write `with coordinator.checkout(...) as session:` and use the session"
            )

    def _undo(self, session: ManagedSession[R]) -> None:
        # Another thread may have put it in the books as soon as it had begun to take the session.
        if session._checkout is self or self.in_books:
            self._give_back(session)

    def _enter_with_store(self, archive: Archive) -> ManagedSession[R]:
        began = time.monotonic()
        left = self._timeout
        while True:
            archive.bring(self._session_id)
            try:
                session = self._enter_with_lock(left)
            except SessionNotFoundError:
                # It may have left memory just now; else this raises again.
                continue
            finally:
                left = None if self._timeout is None else max(self._timeout - (time.monotonic() - began), 0.0)
            try:
                if archive.leases.check_out(session, self, self.exclusive, left):
                    return session
            except BaseException:
                self._undo(session)
                raise
            # It leaves memory now, and comes back with another resource.
            self._undo(session)

    def _exit_with_store(self, session: ManagedSession[R], archive: Archive) -> None:
        if self._lender._interrupted():
            self._lender._call_elsewhere(lambda: self._exit_with_store(session, archive))
            return
        try:
            archive.leases.give_back(session, self)
        finally:
            self._give_back(session)
            archive.upkeep.leave_if_done()

    def _enter_with_lock(self, timeout: float | None) -> ManagedSession[R]:
        session: ManagedSession[R] | None = None
        queued: tuple[ManagedSession[R], Waiter] | None = None
        reading = self._lender._begin_call()
        try:
            with self._lender._lock:
                now = self._lender._clock.advance(reading)
                session = self._lender._roster.find(self._session_id, now)
                if not self._lender._roster.take(session, self, now):
                    queued = session, self._queue(self._lender._roster.hold(session))
            if queued is not None:
                self._wait(*queued, timeout)
            # Within the try: an interruption here gives it back too.
            return session
        except BaseException:
            if queued is not None:
                self._leave_queue(*queued)
            elif session is not None:
                self._undo(session)
            raise

    def _queue(self, hold: Hold) -> Waiter:
        if hold.would_deadlock(self):
            raise SessionBusyError(
                f"session {self._session_id!r} is shared by this thread and others, and this thread cannot wait for "
                "them to leave: give the shared checkout back before asking for an exclusive one"
            )
        return hold.queue(self)

    def _wait(self, session: ManagedSession[R], waiter: Waiter, timeout: float | None) -> None:
        waiter.wait(timeout)
        # The wait may have been long: a second reading.
        reading = self._lender._clock.read()
        with self._lender._lock:
            now = self._lender._clock.advance(reading)
            ending = self._lender._roster.ending_of(session, now)
            if ending is not None:
                self._lender._roster.check_open()
                raise SessionExpiredError(session.id, *ending)
            if session.id != self._session_id:
                raise self._lender._roster.absent(self._session_id, now)
            if not waiter.granted:
                raise SessionBusyError(
                    f"session {session.id!r} is checked out elsewhere, and was for all of timeout={self._timeout!r} "
                    "seconds; wait longer, or share it with exclusive=False on both sides"
                )
            self._lender._roster.taken(session, now)

    def _leave_queue(self, session: ManagedSession[R], waiter: Waiter) -> None:
        with self._lender._lock:
            waiter.hold.withdraw(waiter)
        if waiter.granted:
            self._give_back(session)

    def _give_back(self, session: ManagedSession[R]) -> None:
        if self._lender._interrupted():
            # A generator that holds this checkout is collected in the middle of a decision.
            self._lender._call_elsewhere(lambda: self._give_back(session))
            return
        reading = self._lender._clock.latest
        try:
            reading = self._lender._clock.read()
        finally:
            # Even a clock that fails must not keep the session checked out for ever.
            with self._lender._lock:
                try:
                    self._lender._clock.advance(reading)
                finally:
                    self._lender._roster.give_back(session, self, self._lender._clock.latest)
            self._lender._sweep.finish()
