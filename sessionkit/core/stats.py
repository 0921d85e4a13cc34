"""The figures of a coordinator, as `stats()` tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..errors import RemovalCause


class CleanupStats(NamedTuple):
    """The cleanup task. Counts run on when it is stopped and started again."""

    alive: bool
    """Whether its thread runs."""
    runs: int
    """How often it ran, failures included."""
    failures: int
    """How often a run failed, or its thread could not be started."""
    removed: int
    """How many sessions its runs removed."""
    last_removed: int
    """How many sessions the last run removed."""
    last_run_at: float | None
    """When the last run began: a reading of the coordinator's clock, in seconds; None before the first."""
    last_duration: float | None
    """How long the last run took, in seconds of `time.perf_counter`; None before the first."""


class StoreStats(NamedTuple):
    """What a coordinator has to do with its store. Counts run from its creation (after a fork: from the fork)."""

    restored: int
    """Sessions that were brought back from the store."""
    failures: int
    """How often the store failed (`StoreError`), or data could not be stored."""
    conflicts: int
    """How often a save was refused, because somebody else had saved the session."""
    dirty: int
    """Sessions with activity that is not in the store yet."""
    pending_deletes: int
    """Sessions that have ended, and whose record could not be deleted yet."""


class CoordinatorStats(NamedTuple):
    """A coordinator at one moment. Counts run from its creation (after a fork: from the fork)."""

    live: int
    """Sessions whose time has not run out, whether or not cleanup has run."""
    checked_out: int
    """Sessions that somebody has checked out, those included that will end when they are given back."""
    created: int
    removed: Mapping[RemovalCause, int]
    """Sessions removed, by cause. Expired ones count once they are removed."""
    close_failures: int
    """Close callbacks that raised."""
    close_interruptions: int
    """Close callbacks that were interrupted (`KeyboardInterrupt`, `SystemExit`); they are not repeated."""
    events_dropped: int
    """Events that channels dropped because they were full."""
    cleanup: CleanupStats
    store: StoreStats | None = None
    """Its dealings with the store; None where there is none."""
