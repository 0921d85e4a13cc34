"""The one door out: what happens once to every session that has ended, whatever the cause."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from threading import get_ident
from typing import Any

from .ending import Ending, RemovalCause
from .events import EventBus, EventKind
from .log import report_failure
from .session import ManagedSession, SessionState

Session = ManagedSession[Any]
# One object, whatever reads it: an attribute of an enum takes longer to look up.
_CLOSED = SessionState.CLOSED
_REMOVED = EventKind.REMOVED

CloseCallback = Callable[[Any, RemovalCause], object]


class Finaliser:
    """Takes in every session that has ended and finalises it once.

    `admit`, `release` and `claim` are decisions and are called under the coordinator's lock. `run` does the work, with
    the lock free: it runs the close callback, lets go of the resource, counts, and posts the event. Only a session that
    was claimed is run, and claiming takes it out of the queue, so no session is finalised twice. A thread that was
    interrupted between a claim and its `run` still has what it claimed, and finalises it in its next `run`. A session
    that has nothing to close leaves within the decision.
    """

    def __init__(self, lock: threading.RLock, bus: EventBus, on_close: CloseCallback | None) -> None:
        self._lock = lock
        self._bus = bus
        self._on_close = on_close
        self.leaving: dict[str, Session] = {}
        """All that have ended and are not finalised yet, by id."""
        # Of these, those that somebody has checked out, and those that can be claimed.
        self._detained: dict[str, Session] = {}
        self._ready: OrderedDict[str, Session] = OrderedDict()
        # What each thread has claimed, by the thread's ident. Nobody touches another one's.
        self._claims: dict[int, deque[Session]] = {}
        self.abandoned = False
        """Whether this is a forked child's copy, and finalises nothing any more."""
        self.removed = dict.fromkeys(RemovalCause, 0)
        self.failures = 0
        self.interruptions = 0

    @property
    def ready(self) -> int:
        """How many sessions wait to be claimed."""
        return len(self._ready)

    def admit(self, session: Session, ending: Ending) -> bool:
        """Take in a session that has just ended; whether it can be claimed.

        One that is checked out is ready once it is released; one that has nothing to close leaves at once.
        """
        checked_out = session._checkout is not None or session._hold is not None
        if checked_out:
            self._detained[session._id] = session
        elif self._on_close is None and session._resource is None:
            session._state = _CLOSED
            self.removed[ending[0]] += 1
            if self._bus.channels:
                self._bus.post(_REMOVED, session._id, ending[1], ending[0])
            return False
        else:
            self._ready[session._id] = session
        self.leaving[session._id] = session
        return not checked_out

    def release(self, session: Session) -> None:
        """Nobody has the session checked out any more: it is ready, if it was admitted as checked out."""
        if self._detained.pop(session._id, None) is not None:
            self._ready[session._id] = session

    def claim(self, session: Session) -> bool:
        """Claim the session for this thread, if it is ready and nobody else has; whether that was so."""
        if not self._ready or self._ready.pop(session._id, None) is None:
            return False
        self._claims.setdefault(get_ident(), deque()).append(session)
        return True

    def claim_batch(self, limit: int) -> int:
        """Claim up to `limit` sessions, in the order in which they became ready; how many there were."""
        number = min(limit, len(self._ready))
        if number:
            mine = self._claims.setdefault(get_ident(), deque())
            for _ in range(number):
                mine.append(self._ready.popitem(last=False)[1])
        return number

    def run(self) -> int:
        """Finalise what this thread has claimed, in order, with the lock free, and return how many that were.

        A close callback that raises is logged and counted, and the rest goes on. Where one is interrupted, the
        interruption goes to the caller, and those after it are ready again for whoever claims next.
        """
        mine = self._claims.get(get_ident())
        if mine is None:
            return 0
        finalised = 0
        try:
            # A callback may claim others, and run those.
            del self._claims[get_ident()]
            while mine and not self.abandoned:
                self._finalise_first(mine)
                finalised += 1
        finally:
            if mine and not self.abandoned:
                with self._lock:
                    self._ready.update((session._id, session) for session in mine)
                    mine.clear()
        return finalised

    def abandon(self) -> None:
        """Finalise nothing any more: this is a forked child's copy, and the sessions are its parent's."""
        self.abandoned = True

    def _finalise_first(self, mine: deque[Session]) -> None:
        session: Session | None = None
        failed = interrupted = False
        try:
            session = mine[0]
            mine.popleft()
            session._state = _CLOSED
            failed = not self._close(session)
        except BaseException:
            interrupted = True
            raise
        finally:
            # Where it is the first still, its turn has not come. A callback that forks comes back twice; in the child
            # nothing of this is ours.
            if session is not None and not (mine and mine[0] is session) and not self.abandoned:
                try:
                    self._leave(session, failed, interrupted)
                except BaseException:
                    self._leave(session, failed, interrupted)
                    raise

    def _close(self, session: Session) -> bool:
        """Run the close callback; whether it went well."""
        cause = _ending_of(session)[0]
        try:
            if self._on_close is not None:
                self._on_close(session, cause)
        except Exception:  # noqa: BLE001  it is logged and counted, whatever it is
            report_failure("closing session %r (%s) failed; it is removed all the same", session.id, cause.value)
            return False
        return True

    def _leave(self, session: Session, failed: bool, interrupted: bool) -> None:
        """Let go of a session that was closed. Doing it again does nothing."""
        cause, ended_at, _ = _ending_of(session)
        session._resource = None
        with self._lock:
            if self.leaving.pop(session._id, None) is None:
                return
            self.failures += failed
            self.interruptions += interrupted
            self.removed[cause] += 1
            # Before the id is free for another session, whose creation is an event too.
            self._bus.post(_REMOVED, session._id, ended_at, cause)


def _ending_of(session: Session) -> Ending:
    assert session._ending is not None, "only sessions that have ended are admitted"  # noqa: S101  tells mypy
    return session._ending
