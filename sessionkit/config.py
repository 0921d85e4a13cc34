"""The settings of a coordinator."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, fields
from typing import Literal, get_args

from .util.log import short_repr
from .util.validation import Duration, checked_count, checked_flag, checked_instance_name, checked_seconds

OnFull = Literal["reject", "evict", "passivate"]
"""What `create_session` does when `max_active_sessions` live sessions exist."""


@dataclass(frozen=True, slots=True, init=False)
class CoordinatorConfig:
    """The settings of a `SessionCoordinator`; they do not change once made.

    Durations are seconds, or a `datetime.timedelta`, above 0 and finite. Out of range raises `ValueError`, a wrong
    type `TypeError`; what `dataclasses.replace` makes is checked too. A cleanup interval longer than the session
    timeout only warns (`UserWarning`): sessions still expire in time, their memory comes back later.
    """

    session_timeout: float
    """How long a session may be idle, in seconds; it is expired when idle for more. Default: 1 hour."""
    cleanup_interval: float
    """How often the cleanup task runs, in seconds. Default: 5 minutes."""
    max_active_sessions: int | None
    """How many sessions may live at once; None for no limit. Default: 1000."""
    max_lifetime: float | None
    """The age in seconds after which a session ends however busy its user is; None (the default) for no limit."""
    on_full: OnFull
    """`"reject"` (default) raises `SessionLimitError`; `"evict"` removes the least recently active session that is not
    checked out; `"passivate"` moves it out to the store, from where it comes back when it is asked for."""
    event_capacity: int
    """How many unread events a channel keeps before it drops the oldest. Default: 100."""
    max_data_bytes: int
    """How many bytes a session's data may take as JSON, where it goes to a store. Default: 1 MiB."""
    affinity: bool
    """Whether a session that another process has in memory stays there: to ask for it here raises
    `SessionElsewhereError`. By default (False), it is restored here, and the other process lets go of its own."""
    close_workers: int
    """How many close callbacks of a cleanup, or of `close()`, run at once, each in a thread of its own. Default: 1, in
    the thread that cleans up or closes."""
    checkout_warning: float | None
    """After how many seconds of being checked out each cleanup logs a session, once, with the stack of the thread that
    has it; None (the default) for never."""
    instance_name: str | None
    """What other processes call this one, in `SessionElsewhereError`: where a router finds it, for instance. By default
    (None), its host name and process id."""

    # By hand, because the arguments take more than the fields hold: a timedelta, for instance.
    def __init__(
        self,
        *,
        session_timeout: Duration = 3600,
        cleanup_interval: Duration = 300,
        max_active_sessions: int | None = 1000,
        max_lifetime: Duration | None = None,
        on_full: OnFull = "reject",
        event_capacity: int = 100,
        max_data_bytes: int = 1_048_576,
        affinity: bool = False,
        close_workers: int = 1,
        checkout_warning: Duration | None = None,
        instance_name: str | None = None,
    ) -> None:
        if on_full not in get_args(OnFull):
            raise ValueError(f"on_full must be one of {get_args(OnFull)}, not {short_repr(on_full)}")
        values = (
            checked_seconds("session_timeout", session_timeout),
            checked_seconds("cleanup_interval", cleanup_interval),
            None if max_active_sessions is None else checked_count("max_active_sessions", max_active_sessions),
            None if max_lifetime is None else checked_seconds("max_lifetime", max_lifetime),
            on_full,
            checked_count("event_capacity", event_capacity),
            checked_count("max_data_bytes", max_data_bytes),
            checked_flag("affinity", affinity),
            checked_count("close_workers", close_workers),
            None if checkout_warning is None else checked_seconds("checkout_warning", checkout_warning),
            None if instance_name is None else checked_instance_name(instance_name),
        )
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)
        if self.cleanup_interval > self.session_timeout:
            warnings.warn(
                f"cleanup_interval={self.cleanup_interval!r} is longer than session_timeout={self.session_timeout!r}: "
                "sessions expire in time, but stay in memory until the next cleanup; choose a shorter interval",
                stacklevel=_stacklevel_of_caller(),
            )


def _stacklevel_of_caller() -> int:
    """The `stacklevel` of a warning that is to name the code which makes a config, or a changed copy of one."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__") in (__name__, "copy", "dataclasses"):
        level += 1
    return level
