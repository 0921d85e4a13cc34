"""The creation of a session for which others have to leave, or a resource has to be made."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from .clock import SteadyClock
from .ending import RemovalCause
from .errors import CoordinatorClosedError, SessionNotFoundError
from .events import EventBus, EventKind
from .finaliser import Finaliser
from .roster import Roster
from .session import ManagedSession
from .sweep import BATCH, LET_IN_SECONDS, Sweep


class Maker(Protocol):
    """What a creation needs of its coordinator."""

    _lock: threading.RLock
    _clock: SteadyClock
    _roster: Roster
    _finaliser: Finaliser
    _sweep: Sweep
    _bus: EventBus
    _resource_factory: Callable[[ManagedSession[Any]], Any] | None


class Creation:
    """Brings one new session into a coordinator, in three steps between which the lock is free.

    Its place is reserved, and those who have to leave for it leave; then its resource is made; then it is opened, and
    visible to others. When a step raises, nothing stays behind; but Ctrl-C between two steps may leave a session that
    nobody was given, until it expires, or a place that stays reserved.
    """

    def __init__(self, maker: Maker, session: ManagedSession[Any]) -> None:
        self._maker = maker
        self._session = session
        # Any callback may fork, and in the child the coordinator has another one.
        self._roster = maker._roster
        # Whether a factory made the resource, which is then ours to close.
        self._made = False

    def run(self, reading: float) -> None:
        """Do all of it; `reading` is what the clock read when the call began."""
        try:
            displaced = self._reserve(reading)
            self._make_resource()
        except BaseException:
            with self._maker._lock:
                self._roster.unreserve(self._session)
            raise
        try:
            if self._made or displaced:
                # Callbacks may take long, and the session's time is to begin now; a clock that fails keeps the time.
                with contextlib.suppress(Exception):
                    now = self._maker._clock.read()
                    with self._maker._lock:
                        self._maker._clock.advance(now)
        finally:
            self._open()

    def _reserve(self, reading: float) -> bool:
        """Reserve the session's place, and finalise those who have to leave for it; whether there were any."""
        try:
            while True:
                with self._maker._lock:
                    now = self._maker._clock.advance(reading)
                    if self._roster.knows_leaver(now, BATCH):
                        displaced = self._roster.make_way(self._session, now)
                        self._roster.reserve(self._session, now)
                        return displaced
                time.sleep(LET_IN_SECONDS)
        finally:
            self._maker._sweep.finish()

    def _make_resource(self) -> None:
        # In a child that one of the callbacks forked, there is nothing to make: `_open` tells the caller.
        if self._forked or self._session._resource is not None or self._maker._resource_factory is None:
            return
        self._session._resource = self._maker._resource_factory(self._session)
        self._made = True

    @property
    def _forked(self) -> bool:
        return self._roster is not self._maker._roster

    def _open(self) -> None:
        session, roster = self._session, self._roster
        with self._maker._lock:
            if self._forked:
                # A callback that forks returns in the child too, where the session and its resource are the parent's.
                raise SessionNotFoundError(session.id)
            now = self._maker._clock.latest
            closed = roster.closed
            if self._made or not closed:
                roster.open(session, now)
                self._maker._bus.post(EventKind.CREATED, session.id, now)
            if closed and self._made:
                roster.end(session, (RemovalCause.SHUTDOWN, now, None), now)
                self._maker._finaliser.claim(session)
            elif closed:
                roster.unreserve(session)
        self._maker._sweep.finish()
        if closed:
            raise CoordinatorClosedError(
                f"the coordinator was closed while session {session.id!r} was being created: it is gone, and so is the "
                "resource that was made for it"
            )
