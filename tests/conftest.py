"""What holds for every test."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator

import coverage
import pytest
from hypothesis import HealthCheck, settings

from .helpers.support import WAIT

pytest_plugins = ["pytester"]

# Speed is for benchmarks; a test on a busy machine is no slower test.
settings.register_profile("sessionkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sessionkit")


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """For a test that runs the same few lines very often: coverage, which other tests have to reach, would only slow it
    down."""
    measurement = coverage.Coverage.current()
    if measurement is not None:
        measurement.stop()
    yield
    if measurement is not None:
        with warnings.catch_warnings():
            # Of what was imported before it started again.
            warnings.simplefilter("ignore", coverage.exceptions.CoverageWarning)
            measurement.start()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    started = [thread for thread in threading.enumerate() if thread not in before]
    for thread in started:
        # A thread that was told to end may take a moment to do so.
        thread.join(WAIT)
    assert not [thread for thread in started if thread.is_alive()]
