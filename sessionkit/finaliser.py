"""The one door out: what happens once to every session that has ended, whatever the cause."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from .ending import Ending, RemovalCause
from .events import EventBus, EventKind
from .log import report_failure
from .session import ManagedSession, SessionState

Session = ManagedSession[Any]
CloseCallback = Callable[[Any, RemovalCause], object]


class Finaliser:
    """Takes in every session that has ended and finalises it once.

    `admit`, `release` and `claim` are decisions and are called under the coordinator's lock. `run` does the work, with
    the lock free: it runs the close callback, lets go of the resource, counts, and posts the event. Only a session that
    was claimed is run, and claiming takes it out of the queue, so no session is finalised twice.
    """

    def __init__(self, lock: threading.RLock, bus: EventBus, on_close: CloseCallback | None) -> None:
        self._lock = lock
        self._bus = bus
        self._on_close = on_close
        # All that have ended and are not finalised yet; of these, those that nobody has any more.
        self._leaving: dict[str, Session] = {}
        self._ready: OrderedDict[str, Session] = OrderedDict()
        self._abandoned = False
        self.removed = dict.fromkeys(RemovalCause, 0)
        self.failures = 0
        self.interruptions = 0

    @property
    def ready(self) -> int:
        """How many sessions wait to be claimed."""
        return len(self._ready)

    def admit(self, session: Session) -> None:
        """Take in a session that has just ended; one that is checked out is ready once it is released."""
        self._leaving[session.id] = session
        if session._hold is None:
            self._ready[session.id] = session

    def release(self, session: Session) -> None:
        """Nobody has the session checked out any more: it is ready."""
        self._ready[session.id] = session

    def leaving(self, session_id: str) -> Session | None:
        """The session with this id that has ended and is not finalised yet."""
        return self._leaving.get(session_id)

    def is_ready(self, session: Session) -> bool:
        """Whether the session can be claimed."""
        return session.id in self._ready

    def claim(self, session: Session) -> list[Session]:
        """The session for `run`, if it is ready and nobody else claimed it; else nothing."""
        return [session] if self._ready.pop(session.id, None) is not None else []

    def claim_batch(self, limit: int) -> list[Session]:
        """Up to `limit` ready sessions for `run`, in the order in which they became ready."""
        return [self._ready.popitem(last=False)[1] for _ in range(min(limit, len(self._ready)))]

    def run(self, claimed: list[Session]) -> int:
        """Finalise what was claimed, in order, with the lock free, and return how many that were.

        A close callback that raises is logged and counted, and the rest goes on. Where one is interrupted, the
        interruption goes to the caller, and those after it are ready again for whoever claims next.
        """
        rest = deque(claimed)
        try:
            while rest and not self._abandoned:
                self._finalise(rest.popleft())
        finally:
            if rest and not self._abandoned:
                with self._lock:
                    self._ready.update((session.id, session) for session in rest)
        return len(claimed) - len(rest)

    def abandon(self) -> None:
        """Finalise nothing any more: this is a forked child's copy, and the sessions are its parent's."""
        self._abandoned = True

    def _finalise(self, session: Session) -> None:
        ending = session._ending
        assert ending is not None, "only sessions that have ended are admitted"  # noqa: S101  tells mypy
        session._state = SessionState.CLOSED
        failed = interrupted = False
        try:
            if self._on_close is not None:
                self._on_close(session, ending.cause)
        except Exception:  # noqa: BLE001  it is logged and counted, whatever it is
            failed = True
            report_failure("closing session %r (%s) failed; it is removed all the same", session.id, ending.cause.value)
        except BaseException:
            interrupted = True
            raise
        finally:
            self._leave(session, ending, failed, interrupted)

    def _leave(self, session: Session, ending: Ending, failed: bool, interrupted: bool) -> None:
        if self._abandoned:
            # A callback that forks comes back twice; in the child nothing of this is ours.
            return
        session._resource = None
        with self._lock:
            del self._leaving[session.id]
            self.removed[ending.cause] += 1
            self.failures += failed
            self.interruptions += interrupted
            # Before the id is free for another session, whose creation is an event too.
            self._bus.post(EventKind.REMOVED, session.id, ending.at, ending.cause)
