"""The finalizer: what happens once to every session that has ended, whatever the cause."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import filterfalse, islice
from threading import get_ident
from typing import Any, Protocol

from ..errors import Ending, RemovalCause
from ..util.log import report_failure
from ..util.validation import checked_result
from .events import EventBus, EventKind
from .session import ManagedSession, SessionState

Session = ManagedSession[Any]
# One object, whatever reads it: an attribute of an enum takes longer to look up.
_CLOSED = SessionState.CLOSED
_REMOVED = EventKind.REMOVED
_PASSIVATED = RemovalCause.PASSIVATED

CloseCallback = Callable[[Any, RemovalCause], object]


class Recorder(Protocol):
    """What keeps the records of sessions, if there is a store."""

    def delete_records(self, sessions: list[Session]) -> list[Session]:
        """Delete the records of those that ended for good; gives those that live on, or were ended, elsewhere.

        Called with the lock free, before the close callbacks; raises nothing.
        """
        ...

    def save_and_forget(self, session: Session) -> None:
        """The close callback has run. Called with the lock free; raises nothing."""
        ...


class Run:
    """One call of `Finalizer.run`, the thread that makes it, and the session whose close callback it is running."""

    __slots__ = ("closing", "thread")

    def __init__(self) -> None:
        self.closing: Session | None = None
        self.thread = get_ident()


class Finalizer:
    """Takes in every session that has ended, and finalizes it once: runs the close callback, lets go of the resource,
    counts, and posts the event.

    `admit` and `release` belong to decisions, under the coordinator's lock. `admit` says whether the caller is to `run`
    the session once the lock is free. Until its callback has begun, the session stays listed in `ready`: if the call is
    interrupted before, the next cleanup or `close` runs it. A session that has nothing to close leaves within the
    decision.
    """

    def __init__(
        self,
        lock: threading.RLock,
        events: EventBus,
        tell_left: Callable[[], object],
        on_close: CloseCallback | None,
        workers: int,
    ) -> None:
        self._lock = lock
        self._tell_left = tell_left
        self._workers = workers
        self._events = events
        self._on_close = on_close
        self.recorder: Recorder | None = None
        """What keeps the records; None without a store."""
        self.leaving: dict[str, Session] = {}
        """All that have ended and are not finalized yet, by id."""
        self.ready: dict[Session, None] = {}
        """Of these, those that are at rest and whose callback has not begun, in the order in which they ended."""
        self.held = 0
        """How many of them are checked out still."""
        # Which run finalizes which session.
        self._claims: dict[Session, Run] = {}
        self.removed = dict.fromkeys(RemovalCause, 0)
        self.failures = 0
        self.interruptions = 0

    # ---- Decisions, with the lock held

    def admit(self, ended: list[tuple[Session, Ending]]) -> bool:
        """Take in sessions that have just ended; True if the caller is to run one of them.

        A session that is checked out is ready once it is released. One that has nothing to close is counted, and told,
        here.
        """
        must_close = self._on_close is not None or self.recorder is not None
        to_close: list[Session] = []
        for session, (cause, ended_at, _) in ended:
            if must_close or session._lock is not None or session._resource is not None:
                to_close.append(session)
                continue
            session._state = _CLOSED
            self.removed[cause] += 1
            if self._events.channels:
                self._events.post(_REMOVED, session._id, ended_at, cause)
        return self.admit_for_later(to_close) if to_close else False

    def admit_for_later(self, sessions: list[Session]) -> bool:
        """As `admit`, but a session that has nothing to close is finalized by a run too."""
        must_run = False
        for session in sessions:
            self.leaving[session._id] = session
            if session._lock is None:
                self.ready[session] = None
                must_run = True
            else:
                self.held += 1
        return must_run

    def release(self, session: Session) -> None:
        """Nobody has the session, which has ended, checked out any more; the caller is to run it."""
        self.held -= 1
        self.ready[session] = None

    def is_waiting(self, session: Session) -> bool:
        """Whether the session is ready and no call of `run` has it."""
        return session in self.ready and session not in self._claims

    def waiting(self, limit: int) -> list[Session]:
        """Up to `limit` sessions that are ready and that no call of `run` has, in the order in which they ended."""
        return list(islice(filterfalse(self._claims.__contains__, self.ready), limit)) if self.ready else []

    def runs_here(self, session: Session) -> bool:
        """Whether this very thread is finalizing the session, and so cannot wait for that."""
        run = self._claims.get(session)
        return run is not None and run.thread == get_ident()

    # ---- The work, with the lock free

    def run(self, sessions: list[Session]) -> int:
        """Finalize those of the sessions that no other call finalizes, in order, or as many at a time as there are
        workers; how many have ended by that.

        A close callback that raises is logged and counted, and the rest goes on. If one is interrupted, the
        interruption goes to the caller, and those after it are ready again for the next run.
        """
        if not sessions:
            return 0
        run = Run()
        try:
            # `setdefault` is one step: of several runs, one gets the session, and can tell after an interruption.
            # What is not ready any more has been finalized since it ended. No comprehension: on 3.13, an interruption
            # within one passes the `finally` by.
            mine: list[Session] = []
            for session in sessions:
                if self._claims.setdefault(session, run) is run and session in self.ready:
                    mine.append(session)  # noqa: PERF401  see above
            if self.recorder is not None and mine:
                self._delete_records(mine, self.recorder)
            ended = sum(session._ending is None or session._ending[0] is not _PASSIVATED for session in mine)
            if self._workers > 1 and len(mine) > 1:
                self._finalize_at_once(mine, run)
            else:
                self._finalize(mine, run)
            return ended
        finally:
            self._give_up(sessions, run)

    def _finalize_at_once(self, sessions: list[Session], run: Run) -> None:
        """Finalize sessions, several at a time, and wait until all are; also if this is interrupted."""
        # Imported here: it takes a quarter of the package's import.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(self._workers, len(sessions)), "sessionkit-close") as pool:
            for session in sessions:
                try:
                    pool.submit(self._finalize_alone, session)
                except RuntimeError:
                    # The system has no thread to give, or the interpreter is finalizing.
                    self._finalize([session], run)

    def _finalize_alone(self, session: Session) -> None:
        run = self._claims[session] = Run()
        try:
            self._finalize([session], run)
        finally:
            self._give_up([session], run)

    def _give_up(self, sessions: list[Session], run: Run) -> None:
        """Let go of what this run has still: after an interruption, those that were closed leave, and others are ready
        again; a session that another run had finalized before is nobody's.
        """
        for session in sessions:
            if self._claims.get(session) is not run:
                continue
            has_left = self.leaving.get(session._id) is not session
            if session._state is _CLOSED and not has_left:
                self._leave(session, _ending_of(session), interrupted=session is run.closing)
                continue
            with self._lock:
                del self._claims[session]
                if not has_left:
                    self.ready[session] = None

    def _delete_records(self, sessions: list[Session], recorder: Recorder) -> None:
        for session in recorder.delete_records(sessions):
            # It has not ended: it only leaves this process.
            session._ending = (_PASSIVATED, _ending_of(session)[1], None)

    def _finalize(self, sessions: list[Session], run: Run) -> None:
        """Close sessions one after the other, and let go of each at once."""
        on_close, ready = self._on_close, self.ready
        for session in sessions:
            ending = _ending_of(session)
            failed = False
            ready.pop(session, None)
            run.closing = session
            # If an interruption comes before this, the session's turn is still to come.
            session._state = _CLOSED
            try:
                if on_close is not None:
                    checked_result("on_close", on_close(session, ending[0]))
            except Exception:  # noqa: BLE001  it is logged and counted, whatever it is
                report_failure(
                    "closing session %r (%s) failed; it is removed all the same", session.id, ending[0].value
                )
                failed = True
            run.closing = None
            self._leave(session, ending, failed)

    def _leave(self, session: Session, ending: Ending, failed: bool = False, interrupted: bool = False) -> None:
        """Let go of a session that was closed."""
        cause, ended_at, _ = ending
        if self.recorder is not None:
            self.recorder.save_and_forget(session)
        session._resource = None
        with self._lock:
            # First: an event says that the session has left.
            del self.leaving[session._id]
            self._claims.pop(session, None)
            self.failures += failed
            self.interruptions += interrupted
            self.removed[cause] += 1
            self._tell_left()
            # Before the id is free for another session, whose creation is an event too.
            if self._events.channels:
                self._events.post(_REMOVED, session._id, ended_at, cause)


def _ending_of(session: Session) -> Ending:
    assert session._ending is not None, "only sessions that have ended are admitted"  # noqa: S101  tells mypy
    return session._ending
