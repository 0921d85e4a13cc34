"""The one door out: what happens once to every session that has ended, whatever the cause."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, Protocol

from ..errors import Ending, RemovalCause
from ..util.log import report_failure
from .events import EventBus, EventKind
from .session import ManagedSession, SessionState

Session = ManagedSession[Any]
# One object, whatever reads it: an attribute of an enum takes longer to look up.
_CLOSED = SessionState.CLOSED
_REMOVED = EventKind.REMOVED
_PASSIVATED = RemovalCause.PASSIVATED

CloseCallback = Callable[[Any, RemovalCause], object]


class Recorder(Protocol):
    """What keeps the records of sessions, where there is a store. Called with the lock free; raises nothing."""

    def part_with(self, sessions: Iterable[Session]) -> list[Session]:
        """Delete the records of those that ended for good; gives those that live on, or were ended, elsewhere."""
        ...

    def put_away(self, session: Session) -> None:
        """The session was closed, and is about to be forgotten here."""
        ...


class Finalizer:
    """Takes in every session that has ended and finalizes it once.

    `admit`, `release` and `claim` are decisions and are called under the coordinator's lock. `run` does the work, with
    the lock free: it runs the close callback, lets go of the resource, counts, and posts the event. Only a session that
    was claimed is run, and claiming takes it out of the queue, so no session is finalized twice. A thread that was
    interrupted between a claim and its `run` still has what it claimed, and finalizes it in its next `run`. A session
    that has nothing to close leaves within the decision.
    """

    def __init__(
        self, lock: threading.RLock, bus: EventBus, on_close: CloseCallback | None, recorder: Recorder | None = None
    ) -> None:
        self._lock = lock
        self._bus = bus
        self._on_close = on_close
        self._recorder = recorder
        self.moved = threading.Condition(lock)
        """Told when a session has left, where there is a store: somebody may wait to have it back from there."""
        self.on_moved_out: Callable[[str], object]
        """Called under the lock for each session that seemed to have ended, and only leaves this process. To be set
        where there is a store."""
        # Where there is a store: who is being finalized, and by which thread.
        self._at_work: dict[str, int] = {}
        self.leaving: dict[str, Session] = {}
        """All that have ended and are not finalized yet, by id."""
        # Of these, those that somebody has checked out, and those that can be claimed.
        self._detained: dict[str, Session] = {}
        self._ready: OrderedDict[str, Session] = OrderedDict()
        # What each thread has claimed, by the thread's ident. Nobody touches another one's.
        self._claims: dict[int, deque[Session]] = {}
        self.abandoned = False
        """Whether this is a forked child's copy, and finalizes nothing any more."""
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
        elif self._on_close is None and session._resource is None and self._recorder is None:
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

    def has_claimed(self, session: Session) -> bool:
        """Whether this thread has claimed the session, and not run it yet."""
        return session in self._claims.get(get_ident(), ())

    def claim_batch(self, limit: int) -> int:
        """Claim up to `limit` sessions, in the order in which they became ready; how many there were."""
        number = min(limit, len(self._ready))
        if number:
            mine = self._claims.setdefault(get_ident(), deque())
            for _ in range(number):
                mine.append(self._ready.popitem(last=False)[1])
        return number

    def is_mine(self, session_id: str) -> bool:
        """Whether this very thread is finalizing the session, and so cannot wait for that."""
        return self._at_work.get(session_id) == get_ident()

    def run(self) -> int:
        """Finalize what this thread has claimed, in order, with the lock free, and return how many have ended by that.

        A close callback that raises is logged and counted, and the rest goes on. Where one is interrupted, the
        interruption goes to the caller, and those after it are ready again for whoever claims next.
        """
        mine = self._claims.get(get_ident())
        if mine is None:
            return 0
        finalized = 0
        try:
            # A callback may claim others, and run those.
            del self._claims[get_ident()]
            if self._recorder is not None:
                self._part_with_records(mine, self._recorder)
            while mine and not self.abandoned:
                finalized += mine[0]._ending is None or mine[0]._ending[0] is not _PASSIVATED
                self._finalize_first(mine)
        finally:
            if mine and not self.abandoned:
                with self._lock:
                    self._ready.update((session._id, session) for session in mine)
                    for session in mine:
                        self._at_work.pop(session._id, None)
                    mine.clear()
        return finalized

    def abandon(self) -> None:
        """Finalize nothing any more: this is a forked child's copy, and the sessions are its parent's."""
        self.abandoned = True

    def _part_with_records(self, mine: deque[Session], recorder: Recorder) -> None:
        self._at_work.update((session._id, get_ident()) for session in mine)
        for session in recorder.part_with(list(mine)):
            # It has not ended: it only leaves this process.
            with self._lock:
                session._ending = (_PASSIVATED, _ending_of(session)[1], None)
                self.on_moved_out(session._id)

    def _finalize_first(self, mine: deque[Session]) -> None:
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
        if self._recorder is not None:
            self._recorder.put_away(session)
        session._resource = None
        with self._lock:
            if self.leaving.pop(session._id, None) is None:
                return
            if self._recorder is not None:
                self._at_work.pop(session._id, None)
                self.moved.notify_all()
            self.failures += failed
            self.interruptions += interrupted
            self.removed[cause] += 1
            # Before the id is free for another session, whose creation is an event too.
            self._bus.post(_REMOVED, session._id, ended_at, cause)


def _ending_of(session: Session) -> Ending:
    assert session._ending is not None, "only sessions that have ended are admitted"  # noqa: S101  tells mypy
    return session._ending
