"""What the fixtures of the pytest plugin do; the plugin itself is `_sessionkit_pytest.py`, outside of the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .. import CoordinatorConfig, SessionCoordinator
from ..web.service import is_served
from . import ManualClock

CoordinatorFactory = Callable[..., SessionCoordinator[Any]]


@contextmanager
def closing_coordinators(clock: ManualClock) -> Iterator[CoordinatorFactory]:
    """Gives a function that makes coordinators on this clock, and closes them all in the end.

    Fails the test if it left a session of one checked out, or started the cleanup thread of one and left it running.
    """
    made: list[SessionCoordinator[Any]] = []

    def make(config: CoordinatorConfig | None = None, **options: Any) -> SessionCoordinator[Any]:
        coordinator = SessionCoordinator(config, **{"clock": clock, **options})
        made.append(coordinator)
        return coordinator

    try:
        yield make
        left = [complaint for coordinator in made for complaint in _left_by(coordinator)]
    finally:
        for coordinator in made:
            coordinator.close()
    if left:
        pytest.fail("\n".join(left), pytrace=False)


def _left_by(coordinator: SessionCoordinator[Any]) -> Iterator[str]:
    stats = coordinator.stats()
    if stats.checked_out:
        yield f"{coordinator!r} was left with {stats.checked_out} checked out: leave every checkout's with block"
    if stats.cleanup.alive and not is_served(coordinator):
        yield f"{coordinator!r} was left with its cleanup thread running: close() it, or use it in a with block"
