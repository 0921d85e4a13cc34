"""Objects that start clean in a forked child."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Protocol
from weakref import WeakSet

from .log import report_failure


class StartsClean(Protocol):
    """What has locks, threads or connections that a forked child must not inherit."""

    def after_fork_in_child(self) -> None: ...


_registered: WeakSet[StartsClean] = WeakSet()
# The process in which all of them are clean, and the one in which they began to be: two, because a log handler may be
# told of one that failed, and call the next.
_clean_in = _begun_in = os.getpid()
# By process, so that no child waits for a thread of its parent.
_turns: dict[int, threading.RLock] = {}


def start_clean_after_fork(instance: StartsClean) -> None:
    """Have the instance told in every child that is forked while it lives; it is not kept alive for that."""
    # Else the instance, which is this process's own, would be told with those that are its parent's.
    start_clean_if_forked()
    _registered.add(instance)


def start_clean_if_forked() -> None:
    """Have all instances told now if nobody has told them that this is a forked child.

    Nobody does where a program forks in C, as uWSGI does: none of Python's hooks runs there. Costs a look at the
    process id. Thread-safe: all are clean when this returns.
    """
    pid = os.getpid()
    if pid != _clean_in:
        with _turns.setdefault(pid, threading.RLock()):
            if pid not in (_clean_in, _begun_in):
                _tell_all()


def _tell_all() -> None:
    global _clean_in, _begun_in
    _begun_in = os.getpid()
    for instance in list(_registered):
        try:
            instance.after_fork_in_child()
        except Exception:  # noqa: BLE001  the others must start clean all the same
            report_failure("%r could not start clean after a fork", instance)
    _clean_in = _begun_in


# Windows has no fork to register for.
with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_tell_all)
