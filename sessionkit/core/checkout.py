"""The `with` block in which a session is checked out."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from math import inf
from threading import get_ident
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Protocol

from ..errors import SessionBusyError, SessionExpiredError
from ..util.copies import refuse_copies
from .locks import Sleep, Waiter, check_may_wait
from .session import ManagedSession, R, ending_of

_here: ContextVar[None] = ContextVar("sessionkit.here")
"""Set, to nothing, where a block is entered: what sets it gets a mark that only the same context can take back."""


def _job() -> FrameType | None:
    """The call of the function that an executor's thread is working at; None in any other thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "concurrent.futures.thread":
        frame = frame.f_back
    return frame


class ThisThread(threading.local):
    """What is known of the calling thread."""

    def __init__(self) -> None:
        self.is_worker = _job() is not None
        """Whether it works for an executor, one job after the other: a job may leave behind a block it has entered."""


_this_thread = ThisThread()


class Lender(Protocol):
    """What a checkout asks of the engine that made it; each method is the engine's."""

    @property
    def is_quick(self) -> bool: ...

    def recognize(self, checkout: Checkout[Any]) -> None: ...

    def ask(self, checkout: Checkout[Any]) -> ManagedSession[Any] | None: ...

    def give_back(self, checkout: Checkout[Any]) -> None: ...

    def begin_to_give_back(self, checkout: Checkout[Any]) -> Callable[[], object] | None: ...

    def give_back_later(self, checkout: Checkout[Any]) -> None: ...

    def save_held(self, session: ManagedSession[Any]) -> None: ...

    def revert(self, session: ManagedSession[Any]) -> None: ...

    def rename(self, session: ManagedSession[Any], new_id: str) -> None: ...

    def close_held(self, checkout: Checkout[Any]) -> None: ...


class Checkout(Generic[R]):
    """Takes a session on entering and gives it back on leaving. Made by `SessionCoordinator.checkout`.

    For one `with` block: entering it again raises `RuntimeError`, unless it raised the first time. It may be left in
    another thread than the one that entered it, as a server does that closes a streamed response elsewhere. Its
    methods are for the holder of the session, between entering and leaving. If the session was ended by force
    meanwhile, they raise `SessionExpiredError`, and so does leaving, unless the block raised something itself.

    `begin`, `ask` and `begin_to_leave` are entering and leaving in steps that wait for no holder, for event loops:
    `sessionkit.aio` is made of them.
    """

    held = False
    """Whether the session is checked out by this checkout."""
    confirmed = True
    """Whether other processes know of it: False if the store could not be asked."""
    record: object = None
    """What is known of the session's record, if there is a store."""
    session: ManagedSession[R] | None = None
    """The session, from entering until leaving."""
    taken_away = False
    """Whether the session was ended by force while this checkout had it."""
    thread = 0
    """The ident of the thread that entered."""
    since = 0.0
    """When the session was taken, on the coordinator's clock."""
    was_reported = False
    """Whether the log has been told that it takes long."""
    waiter: Waiter | None = None
    """What is woken when its turn has come."""
    pause: float | None = None
    """How many seconds to wait until it asks again; None for until its waiter is woken."""
    _mark: Token[None] | None = None
    _job: FrameType | None = None
    _used = False

    def __init__(
        self, lender: Lender, session_id: str, exclusive: bool, timeout: float | None, holder: object | None = None
    ) -> None:
        self._lender = lender
        self.session_id = session_id
        """The id by which the session was asked for."""
        self.exclusive = exclusive
        """Whether no other holder may have the session at the same time."""
        self.timeout = timeout
        """How long entering waits, in seconds; None for as long as it takes."""
        self.holder = holder
        """What stands for the holder of the session; None for the block itself."""
        self.token = holder

    def __enter__(self) -> ManagedSession[R]:
        if self._used:
            raise self._was_used()
        self.thread = get_ident()
        if self.token is None:
            self._mark_block()
        self._used = True
        ends = inf if self.timeout is None else time.monotonic() + self.timeout
        try:
            session = self._lender.ask(self)
            return self._wait(ends) if session is None else session
        except BaseException:
            # An interruption may have come when it was taken already.
            self._lender.give_back(self)
            self._used = self.taken_away = False
            self.pause = None
            raise

    def _wait(self, ends: float) -> ManagedSession[R]:
        left = ends - time.monotonic()
        while left > 0:
            check_may_wait(self.session_id)
            sleep = self.waiter if isinstance(self.waiter, Sleep) else Sleep()
            seconds = left if self.pause is None else min(left, self.pause)
            awake = sleep.wait(seconds)
            session = self._lender.ask(self)
            if session is not None:
                return session
            # What was slept through counts also where a test has stopped the clock.
            left = min(ends - time.monotonic(), left if awake else left - seconds)
        raise self.busy()

    def __exit__(self, exc_type: object = None, exc: object = None, traceback: object = None) -> None:
        session = self.session
        try:
            rest = self._lender.begin_to_give_back(self)
            if rest is not None:
                rest()
        except Exception:
            raise
        except BaseException:
            # An interruption: what was done already is not done twice.
            self._lender.give_back(self)
            raise
        if self.taken_away and exc_type is None:
            self.check_kept(session)

    __reduce_ex__ = refuse_copies("call checkout() for each with block")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of session {self.session_id!r}, for a with block>"

    # ---- In steps

    @property
    def is_quick(self) -> bool:
        """Whether `ask` takes microseconds: it does no I/O, and calls no factory and no close callback."""
        return self._lender.is_quick

    def begin(self, waiter: Waiter, holder: object) -> None:
        """Begin to enter; `ask` is next. `holder` stands for the code that enters, unless one was given before.

        `waiter.wake()` is called when it is time to ask again: from any thread, and with a lock held, so that it must
        return at once, call no coordinator, and raise nothing.
        """
        if self._used:
            raise self._was_used()
        self.thread, self.waiter = get_ident(), waiter
        if self.holder is None:
            self._lender.recognize(self)
            self.holder = holder
            if self.token is None:
                self.token = holder
            self._mark_block()
        self._used = True

    def ask(self) -> ManagedSession[R] | None:
        """The session, if it can be had now. If not, ask again when the waiter is woken, or after `pause` seconds.

        Raises what entering raises; then, and when it is not to be asked again, `begin_to_leave` undoes it.
        """
        return self._lender.ask(self)

    def busy(self) -> SessionBusyError:
        """The error for a wait that was as long as `timeout` allows."""
        where = "elsewhere" if self.pause is None else "in another process"
        return SessionBusyError(
            f"session {self.session_id!r} is checked out {where}, and was for all of timeout={self.timeout!r} seconds; "
            "wait longer"
        )

    def begin_to_leave(self) -> Callable[[], object] | None:
        """Give the session back, or the place in the queue for it. Doing it again does nothing.

        What that leaves to do and may take long (I/O, a close callback) is given as a call that is to be made once.
        """
        return self._lender.begin_to_give_back(self)

    def check_kept(self, session: ManagedSession[R] | None) -> None:
        """Raise `SessionExpiredError` if the session, which it had, was ended by force meanwhile."""
        if self.taken_away and session is not None:
            raise _taken_away(session)

    def is_around_caller(self) -> bool:
        """Whether the code that asks runs within this block: in the same thread, in the same `contextvars` context
        (each asyncio task has its own) and, where the thread works for an executor, in the same job.
        """
        if self._mark is None or self.thread != get_ident():
            return False
        try:
            _here.reset(self._mark)
        except ValueError:
            # It was made in another context.
            return False
        self._mark = _here.set(None)
        return self._job is None or self._job is _job()

    def save(self) -> None:
        """Write to the store now what changed in the session; without a store, nothing is done.

        Raises `StoreError`, `SessionConflictError`, `SessionNotFoundError` if it was ended elsewhere, and
        `InvalidSessionError` for data that cannot be stored.
        """
        self._lender.save_held(self._held())

    def revert(self) -> None:
        """Set the session's data back to what the store has, as far as this process knows; nothing without a store."""
        self._lender.revert(self._held())

    def rotate(self, new_id: str) -> None:
        """Give the session, which must be held exclusively, another id. Raises as `rotate_session` does."""
        self._lender.rename(self._held(), new_id)

    def close(self) -> None:
        """End the session (cause `CLOSED`), unless it has ended, and give it back.

        Raises `StoreError` if the store has its record still: deleting it is tried again.
        """
        self._lender.close_held(self)

    def give_back_later(self) -> None:
        """Give the session back as soon as the coordinator is called, or its cleanup runs: for finalizers (`__del__`).

        Takes no lock and does no I/O. Giving back twice does nothing.
        """
        self._lender.give_back_later(self)

    def _was_used(self) -> RuntimeError:
        return RuntimeError(
            f"this checkout of session {self.session_id!r} was used already; call checkout() for each with block"
        )

    def _mark_block(self) -> None:
        self._mark = _here.set(None)
        if _this_thread.is_worker:
            self._job = _job()

    def _held(self) -> ManagedSession[R]:
        if self.session is None:
            raise RuntimeError(f"{self!r} does not have the session: enter it first")
        if self.taken_away:
            raise _taken_away(self.session)
        return self.session

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> None:
            raise AttributeError(
                f"{self!r} has no {name!r}; write `with coordinator.checkout(...) as session:` and use the session"
            )


def _taken_away(session: ManagedSession[Any]) -> SessionExpiredError:
    ending = ending_of(session)
    assert ending is not None, "only a session that has ended is taken away"  # noqa: S101  tells mypy
    return SessionExpiredError(session.id, *ending)
