"""Processes that are killed at any moment: what they acknowledged is there, and the file is whole."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import SQLiteStore

ROUNDS = int(os.environ.get("SESSIONKIT_KILL_ROUNDS", "20"))
"""`make soak` runs 200."""


def kill_at_random(work: Callable[[int], object], chance: random.Random, most: int) -> list[str]:
    """Run work in a child that writes lines to a pipe; kill it after up to `most`, and give all that it wrote."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            work(writer)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = [pipe.readline() for _ in range(chance.randint(0, most))]
        for _ in range(chance.randrange(20_000)):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        # What it had acknowledged before it died is in the pipe still; a line that was cut off is none.
        lines += pipe.readlines()
    return [line.strip() for line in lines if line.endswith("\n")]


def is_whole(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_no_acknowledged_save_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    """At whichever moment a process is killed, no acknowledged save is lost, no session that was closed comes back, and
    the file is whole.
    """
    path = tmp_path / "sessions.db"
    chance = random.Random(seed := random.randrange(1_000_000))  # noqa: S311  no secret
    saved: dict[str, int] = {}
    made: set[str] = set()
    ended: set[str] = set()
    with SessionCoordinator[Any](store=SQLiteStore(path)) as coordinator:
        for number in range(3):
            saved[coordinator.create_session(session_id=f"kept-{number}", data={"count": 0}).id] = 0

    def work(acknowledge: int) -> None:
        config = CoordinatorConfig(max_active_sessions=4, on_full="passivate")
        coordinator = SessionCoordinator[Any](config, store=SQLiteStore(path))
        while True:
            for session_id in saved:
                with coordinator.checkout(session_id) as session:
                    session.data["count"] += 1
                    session.data["filler"] = "x" * session.data["count"] * 100
                os.write(acknowledge, f"saved {session_id} {session.data['count']}\n".encode())
            fresh = coordinator.create_session().id
            os.write(acknowledge, f"made {fresh} 0\n".encode())
            if chance.random() < 0.7:
                coordinator.close_session(fresh)
                os.write(acknowledge, f"ended {fresh} 0\n".encode())

    for turn in range(ROUNDS):
        chance.random()
        for line in kill_at_random(work, chance, 12):
            what, session_id, count = line.split()
            if what == "saved":
                saved[session_id] = int(count)
            else:
                (made if what == "made" else ended).add(session_id)
        assert is_whole(path), (seed, turn)
        store = SQLiteStore(path)
        with SessionCoordinator[Any](store=store) as coordinator:
            for session_id, count in saved.items():
                with coordinator.checkout(session_id, timeout=0) as session:
                    # One more may have been saved, and not acknowledged any more.
                    assert session.data["count"] in (count, count + 1), (seed, turn)
                    assert len(session.data.get("filler", "")) == session.data["count"] * 100
                    session.data["count"] = saved[session_id] = 0
                    session.data["filler"] = ""
            there = {record.id for record in store.page(None, 100_000)}
            # One may have been closed, and that not acknowledged any more.
            assert len((made - ended) - there) <= turn + 1, (seed, turn)
            assert not ended & there, (seed, turn)
    assert made
    assert not list(tmp_path.glob("*-instance-*"))


def test_a_store_that_was_killed_while_it_was_made_is_whole_or_not_there(tmp_path: Path) -> None:
    """Whoever opens it next makes it, or finds all of it."""
    chance = random.Random(seed := random.randrange(1_000_000))  # noqa: S311  no secret

    def work(acknowledge: int) -> None:
        SQLiteStore(path)
        os.write(acknowledge, b"made\n")

    for turn in range(ROUNDS):
        path = tmp_path / f"{turn}.db"
        kill_at_random(work, chance, 1)
        store = SQLiteStore(path)
        store.leave(store.join(1.0, "other"))
        assert is_whole(path), (seed, turn)
