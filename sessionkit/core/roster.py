"""The roster: the members of a coordinator. Who comes in, and who has to make way."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from ..config import CoordinatorConfig, OnFull
from ..errors import RemovalCause, SessionExistsError, SessionLimitError
from .finalizer import Finalizer
from .hold import Hold
from .loans import Loans
from .session import ManagedSession

Session = ManagedSession[Any]

_ADVICE: dict[OnFull, str] = {
    "reject": "; close some, raise the limit, or let on_full='evict' make room",
    "evict": ", and all are checked out, or still being made; wait until one is given back, or raise the limit",
    "passivate": ", and all are checked out, or still being made; wait until one is given back, or raise the limit",
}


class Roster(Loans):
    """The members of one coordinator, which calls all of it with its lock held: who comes in, and who makes way."""

    def __init__(self, config: CoordinatorConfig, finalizer: Finalizer) -> None:
        super().__init__(config, finalizer)
        self._config = config
        # No limit is a whole number too: comparing with infinity takes longer.
        self._maxsize = config.max_active_sessions or sys.maxsize
        self.created = 0

    def take_in(self, session: Session, now: float) -> bool:
        """Take in a new session that is ready, if nobody has to leave for it; whether that was so.

        False changes nothing, and says nothing yet of whether there is room: `make_room` decides that.
        """
        session_id, name, at_hand = session._id, session._name, self.at_hand
        if (
            session_id in at_hand
            or len(at_hand) >= self._maxsize
            or self.closed
            or self._opening
            or session_id in self._finalizer.leaving
            or self.active.session is not None
        ):
            return False
        if name is not None:
            if name in self._names:
                return False
            self._names[name] = session
        session._created_at = session._last_active = now
        self._table.enter(session, now)
        self.created += 1
        return True

    def knows_leaver(self, now: float, limit: int) -> bool:
        """See who has to leave for the next session, if anybody has to; whether `limit` looks were enough for that.

        If they were not, it is to be called again.
        """
        self.check_open()
        if not self.is_full or self._table.next_overdue() is not None:
            return True
        more = self._table.settle(now, limit)
        if self._table.next_overdue() is not None:
            return True
        return not more and (self._config.on_full == "reject" or self._table.put_head_right(limit))

    def free_identity(self, session: Session, now: float) -> bool:
        """Decide that a new session may have its id and its name, once `knows_leaver`.

        Those who have to leave for it are claimed from the finalizer, also when it raises; whether there was anybody to
        claim, which is to say with something to close.
        """
        session_id, name = session._id, session._name
        self.active.current(now)
        displaced = former_claimed = self._displace(self.at_hand.get(session_id), now)
        if name is not None:
            displaced |= self._displace(self._names.get(name), now)
            if name in self._names:
                holder = self._names[name]._id
                raise SessionExistsError(f"a live session has the name {name!r} already; choose another name", holder)
        if session_id in self.at_hand or session_id in self._opening:
            raise SessionExistsError(f"a live session has the id {session_id!r} already; choose another id", session_id)
        former = self._finalizer.leaving.get(session_id)
        if former is not None and not former_claimed:
            if not self._finalizer.claim(former):
                raise SessionExistsError(
                    f"the former session with the id {session_id!r} is still closing; try again", session_id
                )
            displaced = True
        return displaced

    def whom_to_passivate(self) -> Session | None:
        """Who has to move out to the store before there is room for one more, if anybody has to."""
        if self._config.on_full != "passivate" or not self.is_full or self._table.next_overdue() is not None:
            return None
        return self._table.least_recent()

    def passivate(self, session: Session, last_active: float, now: float) -> None:
        """End a session whose record is up to date, and claim it, if it was last active then and is at rest still."""
        if self.at_hand.get(session._id) is session and session._last_active == last_active and not session.checked_out:
            self.move_out(session, now)

    def make_room(self, now: float) -> bool:
        """Decide that there is room for a new session, as `free_identity` does; nobody has to be passivated for it."""
        return self.is_full and self._finalizer.claim(self._leaver(now))

    def reserve(self, session: Session, now: float) -> None:
        """Keep the session's id, name and place until `open` or `unreserve`."""
        session._created_at = session._last_active = now
        session._hold = Hold()
        self._opening[session._id] = session
        if session._name is not None:
            self._names[session._name] = session

    def unreserve(self, session: Session) -> None:
        """Forget a session that could not be made. Does nothing if its place was never reserved."""
        if self._opening.get(session._id) is session:
            del self._opening[session._id]
            if session._name is not None:
                del self._names[session._name]

    def open(self, session: Session, now: float) -> None:
        """The session is ready: its time begins."""
        self._end_opening(session, now)
        session._created_at = session._last_active = now
        self._table.enter(session, now)
        self.created += 1

    def reopen(self, session: Session, created_at: float, last_active: float, now: float) -> None:
        """The session that was restored is ready: its time goes on."""
        self._end_opening(session, now)
        session._created_at = created_at
        if self.dirty is None or session not in self.dirty:
            # Else its factory has used it.
            session._last_active = last_active
        self._table.re_enter(session, now)

    def _end_opening(self, session: Session, now: float) -> None:
        if self.active.session is not None:
            self.active.current(now)
        self._opening.pop(session._id, None)
        if session._name is not None:
            self._names[session._name] = session
        session._hold = None

    @property
    def is_full(self) -> bool:
        """Whether somebody has to leave for one more."""
        return len(self.at_hand) + len(self._opening) >= self._maxsize

    def rename(self, session: Session, new_id: str, now: float) -> None:
        """Give a session that is checked out another id; who waits for it by the old one is sent away.

        Raises as `find` does, and `SessionExistsError` if the new id is taken.
        """
        self.find(session._id, now)
        if new_id in self.at_hand or new_id in self._opening or new_id in self._finalizer.leaving:
            raise SessionExistsError(f"a session has the id {new_id!r} already; choose another id", new_id)
        self._table.rename(session, new_id)
        if session._hold is not None:
            session._hold.dismiss()

    def _displace(self, session: Session | None, now: float) -> bool:
        """End a session whose time ran out, and claim it; whether that was so."""
        return session is not None and self.end_if_over(session, now) and self._finalizer.claim(session)

    def _leaver(self, now: float) -> Session:
        overdue = self._table.next_overdue()
        if overdue is not None:
            self.end_if_over(overdue, now)
            return overdue
        if self._config.on_full == "evict":
            with contextlib.suppress(KeyError):
                evicted = self._table.popitem()[1]
                self.end(evicted, (RemovalCause.CAPACITY, now, self._maxsize), now)
                return evicted
        raise SessionLimitError(
            f"max_active_sessions={self._config.max_active_sessions} live sessions exist"
            + _ADVICE[self._config.on_full]
        )
