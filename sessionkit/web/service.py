"""`Service`: a coordinator at work in a server."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from .. import SessionCoordinator
from ..util.fork import start_clean_if_forked
from ..util.log import report_failure, report_problem, short_repr
from ..util.validation import Duration, checked_flag, checked_wait

TIMEOUT_SECONDS = 10.0
"""How many seconds a request waits for other requests of the same visitor, unless the application says otherwise."""

_served: WeakSet[SessionCoordinator[Any]] = WeakSet()


def checked_timeout(value: Duration) -> float:
    """How many seconds a request waits: 0 or more. Raises `TypeError` or `ValueError` for anything else."""
    seconds = checked_wait("timeout", value)
    if seconds is None:
        raise TypeError("timeout must be seconds as a number, or a timedelta: a server has to answer some time")
    return seconds


class Service:
    """Starts a coordinator's cleanup task, and closes the coordinator when the interpreter exits.

    So it does in every process that is forked from this one. Without a store, sessions stay in the process that made
    them: if the server has several processes, the service logs a warning, once in each.

    `shared`: whether requests of one visitor have the session at the same time. Raises `ValueError` if so, and the
    coordinator has a store.
    """

    def __init__(self, coordinator: SessionCoordinator[Any], *, shared: bool) -> None:
        if not isinstance(coordinator, SessionCoordinator):
            raise TypeError(f"coordinator must be a SessionCoordinator, not {short_repr(coordinator)}")
        if checked_flag("shared", shared) and coordinator.store is not None:
            raise ValueError(
                "shared=True cannot be had with a store: each worker would keep a copy of the session of its own, miss "
                "what others save, and lose what they change. Leave it out; requests that only look at the session "
                "(read_only) wait for no other request"
            )
        self.coordinator = coordinator
        self.shared = shared
        coordinator.start_cleanup_task()
        _served.add(coordinator)
        self._may_warn = coordinator.store is None

    def check_server(self, environ: Mapping[str, Any]) -> None:
        """At the beginning of each request: see that this process uses nothing of the one that it was forked from.

        Warns if the request's WSGI environment says that the server has several processes, and there is no store.
        """
        start_clean_if_forked()
        if self._may_warn and environ.get("wsgi.multiprocess"):
            self._may_warn = False
            report_problem(
                "this server has several worker processes and no session store: each worker keeps sessions of its own, "
                "so that a visitor whose next request goes to another worker has no session there. Give the "
                "coordinator a store, such as SessionCoordinator(store=SQLiteStore('sessions.db')), or run one worker "
                "with threads"
            )


def is_served(coordinator: SessionCoordinator[Any]) -> bool:
    """Whether a service has the coordinator, and will close it."""
    return coordinator in _served


@atexit.register
def _close_all() -> None:
    for coordinator in list(_served):
        try:
            coordinator.close()
        except Exception:  # noqa: BLE001  the other coordinators are closed all the same
            report_failure("%r could not be closed as the interpreter exits", coordinator)
