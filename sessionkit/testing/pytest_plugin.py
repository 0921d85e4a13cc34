"""Fixtures for the tests of programs that use sessionkit; pytest finds them once sessionkit is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .. import CoordinatorConfig, SessionCoordinator
from ..web.service import is_served
from . import ManualClock

# Before it is imported: its tests are to say what they found.
pytest.register_assert_rewrite("sessionkit.testing.store_contract")

CoordinatorFactory = Callable[..., SessionCoordinator[Any]]


@pytest.fixture
def session_clock() -> ManualClock:
    """A clock that stands still until the test moves it: `session_clock.advance(90)`."""
    return ManualClock()


@pytest.fixture
def session_coordinator(session_clock: ManualClock) -> Iterator[CoordinatorFactory]:
    """Makes coordinators on `session_clock`, of what `SessionCoordinator` takes: `session_coordinator(config)`.

    Closes them all when the test ends, and fails it if it left a session of one checked out, or started the cleanup
    thread of one and left it running.
    """
    made: list[SessionCoordinator[Any]] = []

    def make(config: CoordinatorConfig | None = None, **options: Any) -> SessionCoordinator[Any]:
        coordinator = SessionCoordinator(config, **{"clock": session_clock, **options})
        made.append(coordinator)
        return coordinator

    yield make
    try:
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
