"""Loans: who uses a session, touches it, checks it out and gives it back."""

from __future__ import annotations

from math import inf
from typing import Any

from ..config import CoordinatorConfig
from .departures import Departures
from .finalizer import Finalizer
from .hold import Hold, Holder
from .session import ManagedSession

Session = ManagedSession[Any]


class Loans(Departures):
    """Notes activity, and lends sessions to checkouts."""

    def __init__(self, config: CoordinatorConfig, finalizer: Finalizer) -> None:
        super().__init__(config, finalizer)
        self.out: set[Session] = set()
        """The sessions that are checked out; for figures, not for decisions."""
        self.dirty: set[Session] | None = None
        """Who was active since that was written to the store last; None where there is no store."""

    @property
    def keeps_order(self) -> bool:
        """Whether every touch must be noted in the order of activity, which only a touch with the lock is."""
        return self._table.in_order_since is not None

    def keep_order(self, now: float) -> None:
        """From now on, note every touch in the order of activity: whose turn is it after the active session?"""
        if self._table.in_order_since is None:
            self._table.in_order_since = now

    def touch(self, session: Session, now: float) -> None:
        """The session is active now."""
        if self.active.session is not None:
            self.active.current(now)
        self._table.touched(session, now)
        if self.dirty is not None:
            self.dirty.add(session)

    def touch_held(self, session: Session, now: float) -> None:
        """Who has the session checked out is active now, and it is seen whether its time ran out all the same.

        Does nothing in a forked child whose parent has it.
        """
        if self._knows(session):
            self.touch(session, now)
            self.ending_of(session, now)

    def take(self, session: Session, holder: Holder, now: float) -> bool:
        """Check the session out if that can be done at once; that is a touch."""
        if holder.in_books:
            # It had begun to take it without the lock, and whoever came in between has put it in the books since.
            self.taken(session, now)
            return True
        if session._hold is None and holder.exclusive:
            session._checkout = holder if session._checkout is None else session._checkout  # one step
            if session._checkout is holder:
                self.taken(session, now)
                return True
        if self.hold(session).take(holder):
            self.taken(session, now)
            return True
        return False

    def taken(self, session: Session, now: float) -> None:
        """A checkout has got the session, perhaps after a wait; that is a touch."""
        self.touch(session, now)
        self.out.add(session)

    def hold(self, session: Session) -> Hold:
        """The books of the session's checkouts; the one that had it to itself, if any, is the first entry."""
        hold = session._hold
        if hold is None:
            # From here on nobody takes it without the lock, and who gives it back does so with the lock.
            session._until = -inf
            hold = session._hold = Hold()
            alone = session._checkout
            if alone is not None:
                # Before it is taken off: who has been taken off must know.
                alone.in_books = True
                found, session._checkout = session._checkout, None  # one step
                if found is not alone:
                    # It was given back in between; and another one may have begun to take it, which will fail.
                    alone.in_books = False
                if found is not None:
                    hold.take(found)
        return hold

    def give_back(self, session: Session, holder: Holder, now: float) -> None:
        """Undo one checkout, or do what is left after that was done without the lock; doing it again does nothing.

        When it was the last, the session rests, or ends if that was due and is then claimed. Does nothing in a forked
        child that gives back what its parent had checked out.
        """
        if not self._knows(session):
            return
        if session._checkout is holder or holder.in_books:
            # While it is still checked out: only then can it not have been idle for too long.
            self.touch(session, now)
        if session._checkout is holder:
            session._checkout = None
        elif holder.in_books and session._hold is not None:
            session._hold.give_back(holder)
        self.leave_hold(session, now)

    def leave_hold(self, session: Session, now: float) -> None:
        """Somebody has given the session back, or has given up waiting for it: see whether anybody has it still."""
        # Until it is filed again, nobody takes it without the lock.
        session._until = -inf
        if session._hold is not None and session._hold.free:
            session._hold = None
        if session._hold is not None:
            self.out.add(session)
        elif session._checkout is None:
            self.out.discard(session)
        if session.checked_out:
            self._table.touched(session, now)
            return
        ending = self.ending_of(session, now)
        if ending is None:
            self._table.rested(session, now)
        elif self.at_hand.get(session._id) is session:
            self.end(session, ending, now)
        else:
            self._finalizer.release(session)
        self._finalizer.claim(session)
