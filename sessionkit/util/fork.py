"""Objects that start clean in a forked child."""

from __future__ import annotations

import contextlib
import os
from typing import Protocol
from weakref import WeakSet

from .log import report_failure


class StartsClean(Protocol):
    """What has locks or threads that a forked child must not inherit."""

    def after_fork_in_child(self) -> None: ...


_registered: WeakSet[StartsClean] = WeakSet()


def start_clean_after_fork(instance: StartsClean) -> None:
    """Have the instance told in every child that is forked while it lives; it is not kept alive for that."""
    _registered.add(instance)


def _tell_all() -> None:
    for instance in list(_registered):
        try:
            instance.after_fork_in_child()
        except Exception:  # noqa: BLE001  the others must start clean all the same
            report_failure("%r could not start clean after a fork", instance)


# Windows has no fork to register for.
with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_tell_all)
