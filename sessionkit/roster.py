"""The roster: every decision about membership. Who comes in, who is in use, who has to leave."""

from __future__ import annotations

import contextlib
import sys
from itertools import islice
from math import inf
from typing import Any

from .active import ActiveMark
from .config import CoordinatorConfig, OnFull
from .directory import Directory
from .ending import Ending, RemovalCause
from .errors import SessionExistsError, SessionLimitError
from .finaliser import Finaliser
from .hold import Hold, Holder
from .session import ManagedSession

Session = ManagedSession[Any]

_ADVICE: dict[OnFull, str] = {
    "reject": "; close some, raise the limit, or let on_full='evict' make room",
    "evict": ", and all are checked out; wait until one is given back, or raise the limit",
}


class Roster(Directory):
    """The members of one coordinator, which calls all of it with its lock held. Leavers go to the finaliser."""

    def __init__(self, config: CoordinatorConfig, finaliser: Finaliser) -> None:
        super().__init__(config, finaliser)
        self._config = config
        # No limit is a whole number too: comparing with infinity takes longer.
        self._maxsize = config.max_active_sessions or sys.maxsize
        self.active = ActiveMark(self._table)
        """The mark of the active session."""
        self.created = 0
        self.out: set[Session] = set()
        """The sessions that are checked out; for figures, not for decisions."""

    @property
    def keeps_order(self) -> bool:
        """Whether every touch must be noted in the order of activity, which only a touch with the lock is."""
        return self._table.in_order_since is not None

    def settle(self, now: float, limit: int) -> bool:
        """Set aside sessions whose time ran out, looking at up to `limit`; True if there may be more."""
        return self._table.settle(now, limit)

    # ---- Coming in

    def take_in(self, session: Session, now: float) -> bool:
        """Take in a new session that is ready, if nobody has to leave for it; whether that was so.

        False changes nothing, and says nothing yet of whether there is room: `make_way` decides that.
        """
        session_id, name, at_hand = session._id, session._name, self.at_hand
        if (
            session_id in at_hand
            or len(at_hand) >= self._maxsize
            or self.closed
            or self._opening
            or session_id in self._finaliser.leaving
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
        if not self._full or self._table.next_overdue() is not None:
            return True
        more = self._table.settle(now, limit)
        if self._table.next_overdue() is not None:
            return True
        return not more and (self._config.on_full != "evict" or self._table.put_head_right(limit))

    def make_way(self, session: Session, now: float) -> bool:
        """Decide that there is room for a new session, its id and its name, once `knows_leaver`.

        Those who have to leave for it are claimed from the finaliser, also when it raises; whether there was anybody to
        claim, which is to say with something to close.
        """
        session_id, name = session._id, session._name
        self.active.current(now)
        displaced = former_claimed = self._displace(self.at_hand.get(session_id), now)
        if name is not None:
            displaced |= self._displace(self._names.get(name), now)
            if name in self._names:
                raise SessionExistsError(f"a live session has the name {name!r} already; choose another name")
        if session_id in self.at_hand or session_id in self._opening:
            raise SessionExistsError(f"a live session has the id {session_id!r} already; choose another id")
        former = self._finaliser.leaving.get(session_id)
        if former is not None and not former_claimed:
            if not self._finaliser.claim(former):
                raise SessionExistsError(f"the former session with the id {session_id!r} is still closing; try again")
            displaced = True
        if self._full:
            displaced |= self._finaliser.claim(self._make_room(now))
        return displaced

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
        if self.active.session is not None:
            self.active.current(now)
        self._opening.pop(session._id, None)
        if session._name is not None:
            self._names[session._name] = session
        session._hold = None
        session._created_at = session._last_active = now
        self._table.enter(session, now)
        self.created += 1

    @property
    def _full(self) -> bool:
        return len(self.at_hand) + len(self._opening) >= self._maxsize

    def _displace(self, session: Session | None, now: float) -> bool:
        """End a session whose time ran out, and claim it; whether that was so."""
        return session is not None and self._end_if_over(session, now) and self._finaliser.claim(session)

    def _make_room(self, now: float) -> Session:
        overdue = self._table.next_overdue()
        if overdue is not None:
            self._end_if_over(overdue, now)
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

    # ---- Being used

    def keep_order(self, now: float) -> None:
        """From now on, note every touch in the order of activity: whose turn is it after the active session?"""
        if self._table.in_order_since is None:
            self._table.in_order_since = now

    def touch(self, session: Session, now: float) -> None:
        """The session is active now."""
        if self.active.session is not None:
            self.active.current(now)
        self._table.touched(session, now)

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
            self._finaliser.release(session)
        self._finaliser.claim(session)

    # ---- Leaving

    def end(self, session: Session, ending: Ending, now: float) -> bool:
        """The session has ended: nobody finds it any more, its name is free, and the finaliser has it.

        Whether it can be claimed there: not while it is checked out, nor if there was nothing to close.
        """
        if self.at_hand.get(session._id) is session:
            del self._table[session._id]
        session._ending = ending
        if session._name is not None:
            del self._names[session._name]
        self._tombstones.add(session, ending, now)
        if self.active.session is not None:
            self.active.leave(session, now)
        if session._hold is not None:
            session._hold.dismiss()
        return self._finaliser.admit(session, ending)

    def shut_down(self, sessions: list[Session], now: float) -> None:
        """End those that have not ended yet, and claim those of them that nobody has checked out."""
        for session in sessions:
            if self.at_hand.get(session._id) is session:
                self.end(session, self.ending_of(session, now) or (RemovalCause.SHUTDOWN, now, None), now)
                self._finaliser.claim(session)

    def end_due(self, now: float, age: float | None, limit: int) -> bool:
        """End sessions that are due, or at rest and idle for more than `age`, looking at up to `limit`.

        True if there may be more.
        """
        if self.active.session is not None:
            self.active.current(now)
        looks = 0
        while looks < limit and (overdue := self._table.next_overdue()) is not None:
            looks += 1
            self._end_if_over(overdue, now)
        for found in islice(self._table.due(now), limit - looks):
            looks += 1
            if found is not None:
                self.end(*found, now)
        for session in islice(self._table.idle(age, now) if age is not None else (), limit - looks):
            looks += 1
            if session is not None:
                self.end(session, (RemovalCause.IDLE, now, age), now)
        return looks == limit

    def _end_if_over(self, session: Session, now: float) -> bool:
        # A session that is still being made has a name, but no place in the table yet: it cannot be over.
        ending = self.ending_of(session, now) if session._id in self.at_hand else None
        if ending is None:
            return False
        self.end(session, ending, now)
        return True
