"""What a store costs: the calls of a coordinator with a SQLite store, and without one. `make bench-stores` prints it.

Medians of microseconds a call, over rounds in which both take turns; the file is where the temporary files are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import SQLiteStore

SESSIONS = 200
ROUNDS = 15

CONFIG = CoordinatorConfig(max_active_sessions=None)


def timed(work: Callable[[str], object], ids: list[str]) -> float:
    """Microseconds a call."""
    began = time.perf_counter()
    for session_id in ids:
        work(session_id)
    return (time.perf_counter() - began) / len(ids) * 1e6


def one_round(coordinator: SessionCoordinator[Any], number: int) -> dict[str, float]:
    """Each call with as many sessions as there are, all of them new."""
    ids = [f"s-{number}-{index}" for index in range(SESSIONS)]

    def check_out(session_id: str) -> None:
        with coordinator.checkout(session_id):
            pass

    def change(session_id: str) -> None:
        with coordinator.checkout(session_id) as session:
            session.data["step"] = number

    figures = {
        "create_session": timed(lambda session_id: coordinator.create_session(session_id=session_id), ids),
        "get_session": timed(coordinator.get_session, ids),
        "touch_session": timed(coordinator.touch_session, ids),
        "checkout, nothing changed": timed(check_out, ids),
        "checkout, data changed": timed(change, ids),
    }
    began = time.perf_counter()
    coordinator.cleanup_inactive_sessions()
    figures["cleanup, for each touched session"] = (time.perf_counter() - began) / SESSIONS * 1e6
    figures["close_session"] = timed(coordinator.close_session, ids)
    return figures


def restored(path: Path) -> float:
    """Microseconds for each session that comes back at once."""
    with SessionCoordinator[Any](CONFIG, store=SQLiteStore(path)) as coordinator:
        for _ in range(SESSIONS):
            coordinator.create_session(data={"lang": "en"})
    with SessionCoordinator[Any](CONFIG, store=SQLiteStore(path)) as coordinator:
        began = time.perf_counter()
        number = coordinator.restore_sessions()
        return (time.perf_counter() - began) / number * 1e6


def main() -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as directory:
        kept: list[dict[str, float]] = []
        plain: list[dict[str, float]] = []
        with (
            SessionCoordinator[Any](CONFIG, store=SQLiteStore(Path(directory) / "sessions.db")) as with_store,
            SessionCoordinator[Any](CONFIG) as without,
        ):
            for number in range(ROUNDS):
                kept.append(one_round(with_store, number))
                plain.append(one_round(without, number))
        print(f"Python {sys.version.split()[0]}, medians of {ROUNDS} rounds of {SESSIONS} calls, in us")
        print(f"{'':34} {'SQLite':>9} {'no store':>9}")
        for what in kept[0]:
            numbers = [median(figures[what] for figures in rounds) for rounds in (kept, plain)]
            print(f"{what:34} {numbers[0]:9.1f} {numbers[1]:9.2f}")
        again = median(restored(Path(directory) / f"{number}.db") for number in range(5))
        print(f"{'restore_sessions, for each':34} {again:9.1f}")


if __name__ == "__main__":
    main()
