"""What is checked out, where, and for how long."""

from __future__ import annotations

import sys
import threading
import traceback
from typing import Any, NamedTuple

from ..util.log import report_problem, short_repr
from .locks import Holder
from .session import ManagedSession


class Holding(NamedTuple):
    """One session that is checked out: which checkouts have it, and which wait for it, in their order."""

    session: ManagedSession[Any]
    holders: list[Holder]
    waiters: list[Holder]


class CheckoutInfo(NamedTuple):
    """One checkout, as it stood when it was asked for."""

    session_id: str
    name: str | None
    """The session's name."""
    ended: bool
    """Whether the session has ended, and only waits to be given back."""
    exclusive: bool
    thread: str
    """The name of the thread that took the session, or "gone" if that thread has ended."""
    holder: str | None
    """What was given as `holder`, in short; None if the thread has it."""
    held_for: float
    """Seconds since it was taken, on the coordinator's clock."""
    waiting: list[str]
    """What waits for the session, first come first: names of threads, and holders that were given, in short."""


def describe(holdings: list[Holding], now: float) -> list[CheckoutInfo]:
    """Every checkout, the longest first."""
    names = _thread_names()
    found = [
        CheckoutInfo(
            session_id=session.id,
            name=session.name,
            ended=session.ended is not None,
            exclusive=holder.exclusive,
            thread=names.get(holder.thread, "gone"),
            holder=None if holder.holder is None else short_repr(holder.holder),
            held_for=max(now - holder.since, 0.0),
            waiting=[
                names.get(waiter.thread, "gone") if waiter.holder is None else short_repr(waiter.holder)
                for waiter in waiters
            ],
        )
        for session, holders, waiters in holdings
        for holder in holders
    ]
    return sorted(found, key=lambda checkout: checkout.held_for, reverse=True)


def warn_of_long(holdings: list[Holding], now: float, limit: float) -> None:
    """Log each checkout that takes longer than `limit` seconds, once, with what its thread is doing."""
    long = [(session, holder) for session, holders, _ in holdings for holder in holders if now - holder.since > limit]
    for session, holder in long:
        if holder.was_reported:
            continue
        holder.was_reported = True
        frame = sys._current_frames().get(holder.thread)
        report_problem(
            "session %r has been checked out for %.0f seconds (checkout_warning=%g); "
            "close_session(%r, force=True) ends it. The thread that took it, %r, is here:\n%s",
            session.name or session.id,
            now - holder.since,
            limit,
            session.id,
            _thread_names().get(holder.thread, "gone"),
            "".join(traceback.format_stack(frame)),
        )


def _thread_names() -> dict[int | None, str]:
    return {thread.ident: thread.name for thread in threading.enumerate()}
