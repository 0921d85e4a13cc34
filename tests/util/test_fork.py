"""Which objects start clean in a forked child."""

from __future__ import annotations

import os
from typing import Any

import pytest

from sessionkit import SessionCoordinator
from sessionkit.util.fork import start_clean_after_fork

from ..helpers.support import in_child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_one_that_cannot_start_clean_does_not_keep_the_others_from_it() -> None:
    """An error while one object starts clean in a child is reported, and the others start clean."""

    class Unable:
        def _after_fork_in_child(self) -> None:
            raise OSError("not today")

    def prepare() -> list[int]:
        return [len(coordinator) for coordinator in coordinators]

    coordinators: list[SessionCoordinator[Any]] = []
    unable = []
    for _ in range(3):
        coordinators.append(SessionCoordinator())
        coordinators[-1].create_session()
        # No public call fails in a fork: this is what the package registers of its own.
        unable.append(Unable())
        start_clean_after_fork(unable[-1])
    assert in_child(prepare) == [0, 0, 0]
    assert prepare() == [1, 1, 1]
    for coordinator in coordinators:
        coordinator.close()
