"""Admission: how sessions come in, how many may live at once, and which one makes room."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import CoordinatorClosedError, RemovalCause, SessionExistsError, SessionLimitError
from ..util.validation import checked_result
from .events import EventKind
from .removal import BATCH, LET_IN_SECONDS
from .session import ManagedSession

if TYPE_CHECKING:
    from ..config import CoordinatorConfig, OnFull
    from .state import State

Session = ManagedSession[Any]
ResourceFactory = Callable[[Any], Any]

_ADVICE: dict[OnFull, str] = {
    "reject": "; close some, raise the limit, or let on_full='evict' make room",
    "evict": ", and all are checked out, or still being made; wait until one is given back, or raise the limit",
    "passivate": ", and all are checked out, or still being made; wait until one is given back, or raise the limit",
}


class Arrival:
    """One session on its way in; here, a new one that no store knows of."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def take_turn(self) -> None:
        """Wait until it can be decided whether the session may come in. Called with the lock held, which is free
        meanwhile.
        """

    def keep_record(self) -> None:
        """Make the record of the session, once its place is reserved and before its resource is made."""

    def give_up_record(self) -> None:
        """Undo `keep_record`, if that was done: the session could not be made."""

    def enter(self, state: State, now: float) -> None:
        """Put the session, which is ready, into the registry: its time begins. Called with the lock held."""
        state.registry.add(self.session, now)
        state.events.post(EventKind.CREATED, self.session.id, now)


class Admission:
    """Brings sessions into the registry, and sees to it that there are no more than may live at once."""

    def __init__(self, config: CoordinatorConfig, state: State, factory: ResourceFactory | None) -> None:
        self._on_full = config.on_full
        self._limit = config.max_active_sessions
        # No limit is a whole number too: comparing with infinity takes longer.
        self._maxsize = config.max_active_sessions or sys.maxsize
        self._state = state
        self._registry = state.registry
        self._finalizer = state.finalizer
        self._factory = factory
        self.passivate: Callable[[Session], None]
        """Moves a session out to the store if it is not used meanwhile; set where there is a store."""

    @property
    def is_full(self) -> bool:
        """Whether a session has to leave for one more. Called with the lock held."""
        registry, finalizer = self._registry, self._finalizer
        return len(registry.live) + len(registry.opening) + len(finalizer.ready) + finalizer.held >= self._maxsize

    def try_add(self, session: Session, now: float) -> bool:
        """Take in a new session if it is ready, and no other has to leave for it; whether that was so.

        One decision, with the lock held. False changes nothing, and does not say yet whether there is room.
        """
        registry, finalizer, session_id, name = self._registry, self._finalizer, session._id, session._name
        if (
            (self._factory is not None and session._resource is None)
            or session_id in registry.live
            or session_id in registry.opening
            or session_id in finalizer.leaving
            or (name is not None and name in registry.names)
            or registry.closed
            or len(registry.live) + len(registry.opening) + len(finalizer.ready) + finalizer.held >= self._maxsize
        ):
            return False
        registry.add(session, now)
        return True

    def bring_in(self, arrival: Arrival, reading: float) -> None:
        """Bring a session in, in steps between which the lock is free.

        Its place is reserved, and those that have to leave for it leave; its record is made; its resource is made; then
        it is visible to others. If a step raises, nothing stays behind; but Ctrl-C between two steps may leave a
        session that no caller was given, until it expires, or a place that stays reserved. `reading` is what the clock
        read when the call began.
        """
        session = arrival.session
        made = False
        try:
            self._reserve(arrival, reading)
            try:
                arrival.keep_record()
                if self._factory is not None and session._resource is None:
                    session._resource = checked_result("resource_factory", self._factory(session))
                    made = True
            except BaseException:
                # Before the id is free again.
                arrival.give_up_record()
                raise
        except BaseException:
            with self._state.lock:
                self._registry.unreserve(session)
                self._state.moves.tell()
            raise
        try:
            # The steps may have taken long, and the session's time begins now; if the clock fails, as it was.
            with contextlib.suppress(Exception):
                reading = self._state.read()
                with self._state.lock:
                    self._state.advance(reading)
        finally:
            self._open(arrival, made)

    def _open(self, arrival: Arrival, made: bool) -> None:
        session, state, registry = arrival.session, self._state, self._registry
        with state.lock:
            now = state.latest
            closed = registry.closed
            if closed and not made:
                registry.unreserve(session)
            else:
                arrival.enter(state, now)
            state.moves.tell()
            must_run = closed and made and registry.end(session, (RemovalCause.SHUTDOWN, now, None), now)
        if must_run:
            self._finalizer.run([session])
        if closed:
            arrival.give_up_record()
            raise CoordinatorClosedError(
                f"the coordinator was closed while session {session.id!r} was being created, or loaded: it is not "
                "here, and the resource that was made for it is gone"
            )

    def _reserve(self, arrival: Arrival, reading: float) -> None:
        """Reserve the session's place, and finalize those that have to leave for it, also if it may not have it."""
        session = arrival.session
        while True:
            victim: Session | None = None
            leaving: list[Session] = []
            try:
                with self._state.lock:
                    arrival.take_turn()
                    now = self._state.advance(reading)
                    self._registry.check_open()
                    self._free_identity(session, leaving, now)
                    victim, decided = self._make_room(leaving, now) if self.is_full else (None, True)
                    if decided and victim is None:
                        self._registry.reserve(session, now)
            finally:
                self._finalizer.run(leaving)
            if victim is not None:
                self.passivate(victim)
            elif decided:
                return
            else:
                time.sleep(LET_IN_SECONDS)

    def _free_identity(self, session: Session, leaving: list[Session], now: float) -> None:
        """Decide that a new session may have its id and its name; `leaving` gets those that go for that.

        Raises `SessionExistsError` if it may not.
        """
        registry, session_id, name = self._registry, session._id, session._name
        namesake = None if name is None else registry.names.get(name)
        for other in (registry.live.get(session_id), namesake):
            if other is not None and other._id in registry.live and registry.expire(other, now):
                leaving += [other] if self._finalizer.is_waiting(other) else []
        if name is not None and name in registry.names:
            holder = registry.names[name]._id
            raise SessionExistsError(f"a live session has the name {name!r} already; choose another name", holder)
        if session_id in registry.live:
            raise SessionExistsError(f"a live session has the id {session_id!r} already; choose another id", session_id)
        if session_id in registry.opening:
            raise SessionExistsError(
                f"a session with the id {session_id!r} is being made; choose another id, or let "
                "get_or_create_session() wait for it",
                session_id,
            )
        former = self._finalizer.leaving.get(session_id)
        if former is not None and not self._finalizer.is_waiting(former):
            raise SessionExistsError(
                f"the former session with the id {session_id!r} is still closing; try again", session_id
            )
        if former is not None and former not in leaving:
            leaving.append(former)

    def _make_room(self, leaving: list[Session], now: float) -> tuple[Session | None, bool]:
        """Decide which session makes room for one more, if none is leaving yet; `leaving` gets it.

        Gives the session that is to be passivated first, and whether it could be decided: else it is to be tried again,
        because one decision may look at no more than a batch. Raises `SessionLimitError` if no session may leave.
        """
        if leaving:
            return None, True
        more = False
        if not self._finalizer.waiting(1):
            more = self._registry.expire_due(now, BATCH)
        leaving += self._finalizer.waiting(1)
        if leaving or more:
            return None, bool(leaving)
        if len(self._registry.live) + len(self._registry.opening) + self._finalizer.held < self._maxsize:
            # The rest is being finalized at this moment.
            return None, True
        if self._on_full != "reject":
            found, decided = self._registry.index.find_least_recent(BATCH)
            if not decided or (found is not None and self._on_full == "passivate"):
                return found, decided
            if found is not None:
                if self._registry.end(found, (RemovalCause.CAPACITY, now, self._limit), now):
                    leaving.append(found)
                return None, True
        held = self._finalizer.held
        still = f" ({held} of them have ended, and are checked out still: checkouts() says where)" if held else ""
        raise SessionLimitError(f"max_active_sessions={self._limit} live sessions exist{still}{_ADVICE[self._on_full]}")
