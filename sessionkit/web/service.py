"""What a process that serves requests does for a coordinator."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from ..coordinator import SessionCoordinator
from ..util.log import report_failure, report_problem
from ..util.validation import Duration, checked_wait, shown

TIMEOUT_SECONDS = 10.0
"""How long a request waits for others of the same visitor, unless told otherwise."""

_served: WeakSet[SessionCoordinator[Any]] = WeakSet()


def checked_timeout(value: Duration) -> float:
    """How long a request waits, in seconds: 0 or more."""
    seconds = checked_wait("timeout", value)
    if seconds is None:
        raise TypeError("timeout must be seconds as a number, or a timedelta: a server has to answer some time")
    return seconds


class Service:
    """A coordinator at work in a server: its cleanup task runs, and it is closed when the interpreter exits.

    Also in every process that is forked from this one. Without a store, sessions stay in the process that made them: a
    service says so, once in each process, where a server has more of them.
    """

    def __init__(self, coordinator: SessionCoordinator[Any]) -> None:
        if not isinstance(coordinator, SessionCoordinator):
            raise TypeError(f"coordinator must be a SessionCoordinator, not {shown(coordinator)}")
        self.coordinator = coordinator
        coordinator.start_cleanup_task()
        _served.add(coordinator)
        self._is_alone = coordinator.store is None

    def look_at(self, environ: Mapping[str, Any]) -> None:
        """See from a request whether the server has several processes."""
        if self._is_alone and environ.get("wsgi.multiprocess"):
            self._is_alone = False
            report_problem(
                "this server has several worker processes and no session store: each worker keeps sessions of its own, "
                "so that a visitor whose next request goes to another worker has no session there. Give the "
                "coordinator a store, such as SessionCoordinator(store=SQLiteStore('sessions.db')), or run one worker "
                "with threads"
            )


def is_served(coordinator: SessionCoordinator[Any]) -> bool:
    """Whether a service has the coordinator, and sees to its end."""
    return coordinator in _served


@atexit.register
def _close_all() -> None:
    for coordinator in list(_served):
        try:
            coordinator.close()
        except Exception:  # noqa: BLE001  the others are closed all the same
            report_failure("%r could not be closed as the interpreter exits", coordinator)
