"""Who starts clean in a forked child, and what a fork waits for."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Protocol
from weakref import WeakSet

from .log import report_failure


class StartsClean(Protocol):
    """What has locks or threads that a forked child must not inherit."""

    def _after_fork_in_child(self) -> None: ...


_registered: WeakSet[StartsClean] = WeakSet()


def start_clean_after_fork(instance: StartsClean) -> None:
    """Have the instance told in every child that is forked while it lives; it is not kept alive for that."""
    _registered.add(instance)


GATE_SECONDS = 5.0
"""How long a fork waits at a gate. Bounded, because a signal handler may fork in the middle of what it waits for."""


class ForkGate:
    """Keeps forks away from work in a library that has locks of its own inside: `with gate: ...`.

    A fork, from whichever thread, waits for the work under way, and work that begins waits for the fork. Without that,
    a child might inherit an inner lock of that library from a thread that it does not have. Gates live for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        with contextlib.suppress(AttributeError):
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork_in_parent, after_in_child=self._make_new
            )

    def __enter__(self) -> None:
        with self._changed:
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def _before_fork(self) -> None:
        self._changed.acquire()
        self._changed.wait_for(lambda: self._inside < 1, GATE_SECONDS)

    def _after_fork_in_parent(self) -> None:
        self._changed.release()

    def _make_new(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0


def _after_fork_in_child() -> None:
    for instance in list(_registered):
        try:
            instance._after_fork_in_child()
        except Exception:  # noqa: BLE001  the others must start clean all the same
            report_failure("%r could not start clean after a fork", instance)


# Windows has no fork to register for.
with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_after_fork_in_child)
