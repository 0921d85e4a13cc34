"""The pytest plugin: fixtures for the tests of programs that use sessionkit.

It is outside of the package, as Hypothesis has its own, because pytest imports every installed plugin before any
conftest. What it imported of sessionkit then would keep the thread-locals and queues of before the conftest of an
application that runs under gevent or eventlet has them replaced. So it imports nothing of sessionkit before a fixture
is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sessionkit.testing import ManualClock
    from sessionkit.testing.pytest_plugin import CoordinatorFactory

# Before it is imported: its tests are to say what they found.
pytest.register_assert_rewrite("sessionkit.testing.store_contract")


@pytest.fixture
def session_clock() -> ManualClock:
    """A clock that stands still until the test moves it: `session_clock.advance(90)`."""
    from sessionkit.testing import ManualClock

    return ManualClock()


@pytest.fixture
def session_coordinator(session_clock: ManualClock) -> Iterator[CoordinatorFactory]:
    """Makes coordinators on `session_clock`, of what `SessionCoordinator` takes: `session_coordinator(config)`.

    Closes them all when the test ends, and fails it if it left a session of one checked out, or started the cleanup
    thread of one and left it running.
    """
    from sessionkit.testing.pytest_plugin import closing_coordinators

    with closing_coordinators(session_clock) as make:
        yield make
