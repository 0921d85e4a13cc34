"""The embedded store: one SQLite file, for all processes of one machine."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from pathlib import Path
from types import BuiltinFunctionType
from typing import TypeVar

from ...errors import SessionConflictError, SessionNotFoundError, StoreError
from ...util.clock import AGREE_SECONDS, SLACK, lead_over, real_wall_clock, steady_clock
from ...util.copies import refuse_copies
from ...util.fork import start_clean_after_fork
from ...util.log import short_repr
from ...util.validation import Duration, checked_seconds
from ..base import Changes, Found, Known, SessionRecord, Touch, busy, conflict, taken, taken_id
from .database import Database, Sync

T = TypeVar("T")

APPLICATION_ID = 0x736B6974
"""What marks a SQLite file as ours: "skit" in ASCII."""

SCHEMA_VERSION = 4

SCHEMA = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY CHECK (typeof(id) = 'text'),
    name TEXT UNIQUE CHECK (typeof(name) IN ('text', 'null')),
    data TEXT NOT NULL CHECK (typeof(data) = 'text'),
    state TEXT NOT NULL CHECK (typeof(state) = 'text'),
    created_at REAL NOT NULL CHECK (typeof(created_at) = 'real'),
    last_active REAL NOT NULL CHECK (typeof(last_active) = 'real'),
    message_count INTEGER NOT NULL CHECK (typeof(message_count) = 'integer'),
    session_timeout REAL NOT NULL CHECK (typeof(session_timeout) = 'real'),
    max_lifetime REAL CHECK (typeof(max_lifetime) IN ('real', 'null')),
    version INTEGER NOT NULL CHECK (typeof(version) = 'integer'),
    due REAL AS (min(last_active + session_timeout, ifnull(created_at + max_lifetime, 9e999)))
);
CREATE INDEX sessions_due ON sessions (due);
CREATE INDEX sessions_last_active ON sessions (last_active);
CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    lag REAL NOT NULL,
    name TEXT NOT NULL,
    epoch REAL NOT NULL  -- the store's time when the host's steady clock read 0; the same for all that are alive
);
CREATE TABLE holders (
    session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
    instance TEXT NOT NULL REFERENCES instances ON DELETE CASCADE,
    lease TEXT,  -- 'exclusive', or NULL while it is only attached
    stale INTEGER NOT NULL,  -- whether another instance has, or had, the lease meanwhile
    PRIMARY KEY (session_id, instance)
) WITHOUT ROWID;
CREATE INDEX holders_instance ON holders (instance);
"""

_COLUMNS = ", ".join(SessionRecord._fields)
# ruff: noqa: S608  what is put into these statements are our own names; values are bound
_FIND = f"""
    SELECT {", ".join("s." + column for column in SessionRecord._fields)}, o.id, o.lag, o.name, h.lease, h.stale
    FROM sessions s
    LEFT JOIN holders h ON h.session_id = s.id
    LEFT JOIN instances o ON o.id = h.instance
    WHERE s.id = ?
"""
# After `_drop_dead_instances`, all holders are alive.
_EXPIRED = f"""
    FROM sessions s
    WHERE (due < :now OR last_active < :now - :age)
    AND (
        :now - (created_at + max_lifetime) > {SLACK}
        OR :now - (last_active + min(session_timeout, :age)) > {SLACK}
    )
    AND NOT EXISTS (SELECT 1 FROM holders WHERE session_id = s.id)
"""
_DELETE = "DELETE FROM sessions WHERE id = :id"
_DELETE_UNLESS_USED = f"""
    DELETE FROM sessions AS d WHERE id = :id
    AND NOT EXISTS (SELECT 1 FROM holders WHERE session_id = d.id)
    AND (
        (last_active <= :known AND session_timeout = ifnull(:timeout, session_timeout))
        OR EXISTS (SELECT 1 {_EXPIRED} AND s.id = d.id)
    )
"""


class SQLiteStore:
    """Keeps session records in a SQLite file: `SQLiteStore("sessions.db")`. The `Store` contract says what it does.

    Safe from any number of threads and of processes on one machine; not on a network file system. A file that does not
    exist is made, with permissions for its owner alone; one that is corrupt, or something else, raises `StoreError` and
    is left as it is. While it is in use, SQLite keeps two files beside it (`-wal` and `-shm`), and each instance one
    that it has locked (`-instance-…`): when its process dies, the lock goes with it.

    What is created, saved or deleted has reached the disk when the call returns, and survives a loss of power as far
    as the disk keeps what it acknowledged. Touches and leases survive the death of the process, and may be lost with
    the power.

    The wall clock says what time it is when the first instance joins; from then on, while any instance lives, the time
    goes by itself: it also goes on while the host is suspended, and a wall clock that is set moves nothing.

    Needs POSIX file locks: on Windows, making one raises `StoreError`; use `RedisStore` there, or WSL.

    `timeout`: how long to wait for another process that writes, in seconds or a timedelta; default 5.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: Duration = 5.0) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise ValueError(f"path must name a file, which outlives the process, not {short_repr(path)}")
        self.path = Path(os.path.realpath(path))
        """Where it is, as an absolute path."""
        try:
            from .liveness import LockFiles
        except ModuleNotFoundError as error:
            # Before a file is made.
            raise StoreError(
                "SQLiteStore needs POSIX file locks (the module fcntl), which this platform does not have: use "
                "RedisStore, or run the program where they are, such as in WSL on Windows"
            ) from error
        self._database = Database(
            str(self.path), checked_seconds("timeout", timeout), SCHEMA, APPLICATION_ID, SCHEMA_VERSION
        )
        self._lock_files = LockFiles(str(self.path))
        # What is in the file of each instance that joined here: write interval, name, epoch.
        self._instances: dict[str, tuple[float, str, float]] = {}
        start_clean_after_fork(self)

    def after_fork_in_child(self) -> None:
        # The instances are the parent's.
        self._instances = {}

    __reduce_ex__ = refuse_copies("make another SQLiteStore with the same path")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    # ---- Instances

    def join(self, write_interval: float, name: str) -> str:
        instance = secrets.token_hex(8)

        def work(connection: sqlite3.Connection) -> float:
            self._drop_dead_instances(connection)
            self._lock_files.remove_unlocked()
            self._lock_files.acquire(instance)
            # The first to come sets the time; from then on it goes by itself, while any instance lives.
            epoch = self._epoch_of_living(connection)
            if epoch is None:
                epoch = lead_over(real_wall_clock, steady_clock)
            connection.execute("INSERT INTO instances VALUES (?, ?, ?, ?)", (instance, write_interval, name, epoch))
            return epoch

        self._database.start_pooling()
        try:
            epoch = self._write(work)
        except BaseException:
            self._lock_files.release(instance)
            self._stop_pooling_if_empty()
            raise
        self._instances[instance] = write_interval, name, epoch
        return instance

    def set_write_interval(self, instance: str, seconds: float) -> None:
        self._write(lambda c: c.execute("UPDATE instances SET lag = ? WHERE id = ?", (seconds, instance)))
        if instance in self._instances:
            self._instances[instance] = seconds, *self._instances[instance][1:]

    def clock_offset(self) -> float:
        here = list(self._instances.values())
        epoch = here[0][2] if here else self._database.read(self._epoch_of_living)
        if epoch is None or type(time.time) is not BuiltinFunctionType:
            # Nobody has set the store's time; or a test has set the host's.
            return 0.0
        offset = epoch + steady_clock() - real_wall_clock()
        if abs(offset) >= AGREE_SECONDS:
            # Or this thread was held up in between.
            offset = epoch - lead_over(real_wall_clock, steady_clock)
        return 0.0 if abs(offset) < AGREE_SECONDS else offset

    def leave(self, instance: str) -> None:
        try:
            self._write(lambda connection: connection.execute("DELETE FROM instances WHERE id = ?", (instance,)))
        finally:
            # Also if the store failed: the next instance that joins sees then that this one is dead.
            self._lock_files.release(instance)
            self._instances.pop(instance, None)
            self._stop_pooling_if_empty()

    def _stop_pooling_if_empty(self) -> None:
        # A store that was made for a coordinator need not be closed.
        if not self._instances:
            self._database.stop_pooling()
            if self._instances:
                # Another instance has joined meanwhile.
                self._database.start_pooling()

    # ---- One record

    def create(self, record: SessionRecord, instance: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            found = connection.execute(
                "SELECT id FROM sessions WHERE id = ? UNION ALL SELECT id FROM sessions WHERE name = ?",
                (record.id, record.name),
            ).fetchone()
            if found is not None:
                raise taken(record, found[0])
            connection.execute(f"INSERT INTO sessions ({_COLUMNS}) VALUES ({_marks(record)})", record)
            self._note_holder(connection, record.id, instance)

        self._database.write(work, "FULL")

    def load(self, session_id: str, instance: str | None = None) -> Found | None:
        return self._database.read(lambda connection: self._find(connection, session_id, instance)[0])

    def find(self, name: str) -> str | None:
        row = self._database.read(
            lambda connection: connection.execute("SELECT id FROM sessions WHERE name = ?", (name,)).fetchone()
        )
        return None if row is None else str(row[0])

    def attach(self, session_id: str, instance: str, *, lease: bool = False) -> Found | None:
        if not lease and self.load(session_id) is None:
            # Most calls for a session that is not in memory are for an absent one: writers need not wait for those.
            return None

        def work(connection: sqlite3.Connection) -> Found | None:
            found, is_leased = self._find(connection, session_id, instance)
            if found is None:
                return None
            if lease and is_leased:
                raise busy(session_id)
            self._note_holder(connection, session_id, instance, stale=is_leased)
            if lease:
                values = session_id, instance
                connection.execute(
                    "UPDATE holders SET lease = 'exclusive' WHERE session_id = ? AND instance = ?", values
                )
                connection.execute("UPDATE holders SET stale = 1 WHERE session_id = ? AND instance <> ?", values)
            return found

        return self._write(work)

    def detach(self, session_ids: Iterable[str], instance: str) -> None:
        rows = [(session_id, instance) for session_id in session_ids]
        self._write(lambda c: c.executemany("DELETE FROM holders WHERE session_id = ? AND instance = ?", rows))

    def release(self, session_id: str, instance: str, changes: Changes | None = None) -> int | None:
        def work(connection: sqlite3.Connection) -> int | SessionNotFoundError | SessionConflictError | None:
            _release(connection, session_id, instance)
            try:
                return None if changes is None else _save(connection, session_id, changes)
            except (SessionNotFoundError, SessionConflictError) as error:
                # Raised here, it would undo the release.
                return error

        outcome = self._database.write(work, _sync_of(changes))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def save(self, session_id: str, changes: Changes) -> int:
        return self._database.write(lambda connection: _save(connection, session_id, changes), _sync_of(changes))

    def rename(self, session_id: str, new_id: str, instance: str) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            found, is_leased = self._find(connection, session_id, instance)
            if found is None:
                return False
            if is_leased:
                raise busy(session_id)
            if self._find(connection, new_id, None)[0] is not None:
                raise taken_id(new_id)
            mine = "SELECT lease FROM holders WHERE session_id = ? AND instance = ?"
            lease = connection.execute(mine, (session_id, instance)).fetchone() or (None,)
            connection.execute("DELETE FROM holders WHERE session_id = ?", (session_id,))
            connection.execute("UPDATE sessions SET id = ? WHERE id = ?", (new_id, session_id))
            self._note_holder(connection, new_id, instance)
            connection.execute("UPDATE holders SET lease = ? WHERE session_id = ?", (*lease, new_id))
            return True

        return self._database.write(work, "FULL")

    # ---- Many records

    def touch(self, touches: Mapping[str, Touch]) -> set[str]:
        def work(connection: sqlite3.Connection) -> set[str]:
            return {session_id for session_id, touch in touches.items() if not _touch(connection, session_id, touch)}

        return self._write(work)

    def delete(self, known: Mapping[str, Known | None], instance: str | None = None, now: float = -inf) -> set[str]:
        def work(connection: sqlite3.Connection) -> set[str]:
            deleted = set()
            self._drop_dead_instances(connection)
            for session_id, told in known.items():
                connection.execute("DELETE FROM holders WHERE session_id = ? AND instance = ?", (session_id, instance))
                last_active, timeout = told or (None, None)
                values = {"id": session_id, "known": last_active, "timeout": timeout, "now": now, "age": inf}
                if connection.execute(_DELETE if told is None else _DELETE_UNLESS_USED, values).rowcount:
                    deleted.add(session_id)
            return deleted

        return self._database.write(work, "FULL")

    def delete_expired(self, now: float, limit: int, max_age: float | None = None) -> list[SessionRecord]:
        def work(connection: sqlite3.Connection) -> list[SessionRecord]:
            self._drop_dead_instances(connection)
            rows = connection.execute(
                f"SELECT {_COLUMNS} {_EXPIRED} ORDER BY due LIMIT :limit",
                {"now": now, "age": inf if max_age is None else max_age, "limit": limit},
            ).fetchall()
            connection.executemany(_DELETE, [{"id": row[0]} for row in rows])
            return [SessionRecord._make(row) for row in rows]

        return self._database.write(work, "FULL")

    def count_expired(self, now: float, max_age: float | None = None) -> int:
        def work(connection: sqlite3.Connection) -> int:
            self._drop_dead_instances(connection)
            values = {"now": now, "age": inf if max_age is None else max_age}
            (count,) = connection.execute(f"SELECT count(*) {_EXPIRED}", values).fetchone()
            return int(count)

        return self._write(work)

    def page(self, after: str | None, limit: int) -> list[SessionRecord]:
        query = f"SELECT {_COLUMNS} FROM sessions WHERE id > ? ORDER BY id LIMIT ?"
        rows = self._database.read(lambda connection: connection.execute(query, (after or "", limit)).fetchall())
        return [SessionRecord._make(row) for row in rows]

    def close(self) -> None:
        self._lock_files.release_all()
        self._database.close()

    # ---- Which instances have what in memory

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return self._database.write(work, "NORMAL")

    def _find(self, connection: sqlite3.Connection, session_id: str, instance: str | None) -> tuple[Found | None, bool]:
        """The record with its lag, and whether another living instance has the lease. One statement."""
        rows = connection.execute(_FIND, (session_id,)).fetchall()
        if not rows:
            return None, False
        lag, names, is_leased, stale = 0.0, list[str](), False, False
        for *_, holder, its_lag, name, lease, is_stale in rows:
            if holder == instance:
                stale = bool(is_stale)
            elif holder is not None and self._lock_files.is_alive(holder):
                names.append(name)
                lag = max(lag, its_lag if lease is None else inf)
                is_leased = is_leased or lease is not None
        record = SessionRecord._make(rows[0][: len(SessionRecord._fields)])
        return Found(record, lag, (*sorted(names),), stale and not is_leased), is_leased

    def _note_holder(
        self, connection: sqlite3.Connection, session_id: str, instance: str, *, stale: bool = False
    ) -> None:
        # The instance is there already, unless its lock file was deleted and another process took it for dead.
        connection.execute(
            "INSERT OR IGNORE INTO instances VALUES (?, ?, ?, ?)",
            (instance, *self._instances.get(instance, (inf, "", 0.0))),
        )
        change = "INSERT OR IGNORE INTO holders (session_id, instance, stale) VALUES (?, ?, ?)"
        connection.execute(change, (session_id, instance, stale))

    def _epoch_of_living(self, connection: sqlite3.Connection) -> float | None:
        rows = connection.execute("SELECT id, epoch FROM instances").fetchall()
        return next((epoch for instance, epoch in rows if self._lock_files.is_alive(instance)), None)

    def _drop_dead_instances(self, connection: sqlite3.Connection) -> None:
        for (instance,) in connection.execute("SELECT id FROM instances").fetchall():
            if not self._lock_files.is_alive(instance):
                connection.execute("DELETE FROM instances WHERE id = ?", (instance,))
                self._lock_files.release(instance)


def _marks(record: SessionRecord) -> str:
    return ", ".join("?" * len(record))


def _sync_of(changes: Changes | None) -> Sync:
    """Data reach the disk before the call returns; touches and leases need not."""
    return "NORMAL" if changes is None or changes.data is None else "FULL"


def _save(connection: sqlite3.Connection, session_id: str, changes: Changes) -> int:
    version, data, touch = changes
    found = connection.execute("SELECT version FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if found is None:
        raise SessionNotFoundError(session_id)
    if data is not None:
        if found[0] != version:
            raise conflict(session_id, found[0], version)
        version += 1
        connection.execute("UPDATE sessions SET data = ?, version = ? WHERE id = ?", (data, version, session_id))
    _touch(connection, session_id, touch)
    return version


def _release(connection: sqlite3.Connection, session_id: str, instance: str) -> None:
    change = "UPDATE holders SET lease = NULL, stale = 0 WHERE session_id = ? AND instance = ? AND lease IS NOT NULL"
    connection.execute(change, (session_id, instance))


def _touch(connection: sqlite3.Connection, session_id: str, touch: Touch) -> bool:
    """Whether the record was there."""
    return bool(
        connection.execute(
            "UPDATE sessions SET last_active = max(last_active, ?), message_count = message_count + ?, "
            "state = ifnull(?, state), session_timeout = ifnull(?, session_timeout) WHERE id = ?",
            (*touch, session_id),
        ).rowcount
    )
