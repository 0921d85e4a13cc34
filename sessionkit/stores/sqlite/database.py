"""One SQLite file: its connections, its transactions, its errors, and what a fork waits for."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable
from typing import Literal, TypeVar
from urllib.parse import quote

from ...errors import StoreError
from ...util.fork import start_clean_after_fork

T = TypeVar("T")

Sync = Literal["NORMAL", "FULL"]
"""What a transaction waits for: NORMAL for the operating system, FULL for the disk."""

GATE_SECONDS = 5.0
"""How long a fork waits for work under way. Bounded: a signal handler may fork in the middle of that very work."""


class ForkGate:
    """Keeps forks away from work in a library that has locks of its own inside: `with gate: ...`.

    A fork, from any thread, waits for the work under way, and work that begins waits for the fork. Without that, a
    child could inherit an inner lock of that library that a thread had locked which the child does not have. Gates
    live for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        with contextlib.suppress(AttributeError):
            os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork_in_parent)
        start_clean_after_fork(self)

    def __enter__(self) -> None:
        with self._changed:
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def _before_fork(self) -> None:
        self._changed.acquire()
        self._changed.wait_for(lambda: self._inside < 1, GATE_SECONDS)

    def _after_fork_in_parent(self) -> None:
        self._changed.release()

    def after_fork_in_child(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0


_gate = ForkGate()
# The connections of a parent: its forked child must not even close them, and keeps them here until it ends.
_inherited: list[Connection] = []


class Connection(sqlite3.Connection):
    """A connection that remembers what its transactions wait for."""

    sync: Sync | None = None


class Database:
    """Runs work on one SQLite file in WAL mode, each piece in a transaction of its own.

    `schema` is what a new file is made with; `application_id` and `version` mark the file as one of ours. A new file
    is readable and writable for its owner alone, and appears with all that is in it. A file that is anything else
    raises `StoreError`, and is left as it is. The file is never made again: once it is deleted, moved or replaced, all
    work raises `StoreError`. So does every failure of SQLite.

    May be called from any thread; each has a connection of its own while it works. A fork waits for work under way,
    because SQLite has locks of its own inside; the child opens connections of its own.
    """

    def __init__(self, path: str, timeout: float, schema: str, application_id: int, version: int) -> None:
        self.path = path
        self._timeout = timeout
        self._application_id = application_id
        self._version = version
        self._idle: list[Connection] = []
        self._closed = False
        # Only while an instance is there, which leaves: nobody need close a store.
        self._pools = False
        try:
            with _gate:
                if not os.path.lexists(path):
                    self._make_file(schema)
                status = os.stat(path)
                self._identity = status.st_dev, status.st_ino
                self._check_file()
        except (sqlite3.Error, OSError) as error:
            raise _as_store_error(path, error) from error
        start_clean_after_fork(self)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work that reads with one statement, and sees only what is committed."""
        return self._run(work)

    def write(self, work: Callable[[sqlite3.Connection], T], sync: Sync) -> T:
        """Do work in a transaction that excludes all other writes, and commit it; if it raises, none of it was done."""

        def transact(connection: Connection) -> T:
            if connection.sync != sync:
                connection.execute(f"PRAGMA synchronous = {sync}")
                connection.sync = sync
            try:
                # Within the try: an interruption may come right after it.
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            return result

        return self._run(transact)

    def close(self) -> None:
        """Close all connections; one that is in use, when its work is done. Closing again does nothing."""
        self._closed = True
        self.stop_pooling()

    def stop_pooling(self) -> None:
        """Keep no connection open that is not in use, until `start_pooling`."""
        self._pools = False
        self._close_idle()

    def start_pooling(self) -> None:
        """Keep connections open from now on, for more work."""
        self._pools = True

    def _close_idle(self) -> None:
        # The last connection that is closed writes to the file: not during a fork.
        with _gate:
            while self._idle:
                with contextlib.suppress(IndexError, sqlite3.Error):
                    self._idle.pop().close()

    def after_fork_in_child(self) -> None:
        _inherited.extend(self._idle)
        self._idle = []

    def _run(self, work: Callable[[Connection], T]) -> T:
        try:
            with _gate:
                connection = self._take()
                try:
                    result = work(connection)
                except sqlite3.DatabaseError:
                    # What this connection has cached of the file may be wrong.
                    connection.close()
                    raise
                except BaseException:
                    self._give_back(connection)
                    raise
                self._give_back(connection)
                return result
        except (sqlite3.Error, OSError) as error:
            raise _as_store_error(self.path, error) from error

    def _take(self) -> Connection:
        if self._closed:
            raise StoreError(f"the session store {self.path!r} is closed; open it again")
        self._check_identity()
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _give_back(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._closed or not self._pools:
            self._close_idle()

    def _connect(self) -> Connection:
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode=rw",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            # The file may have been replaced just before it was opened.
            self._check_identity()
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_identity(self) -> None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError as error:
            raise StoreError(
                f"the session store {self.path!r} was deleted or moved while it was open; bring the file back"
            ) from error
        if (status.st_dev, status.st_ino) != self._identity:
            raise StoreError(
                f"the session store {self.path!r} was replaced by another file while it was open; bring the file back, "
                "or open the store again"
            )

    def _make_file(self, schema: str) -> None:
        for suffix in ("-wal", "-journal"):
            if os.path.lexists(self.path + suffix):
                raise StoreError(
                    f"{self.path + suffix!r} is there, and the session store {self.path!r} that it belongs to is not; "
                    "bring that file back, or move this one away to begin with no sessions"
                )
        # Under another name first: a file that can be seen is whole, and linking it never replaces another one.
        fresh = f"{self.path}-new-{secrets.token_hex(8)}"
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
                connection.executescript(
                    f"PRAGMA journal_mode = WAL; PRAGMA application_id = {self._application_id};"
                    f"PRAGMA user_version = {self._version}; {schema}"
                )
            with contextlib.suppress(FileExistsError):
                os.link(fresh, self.path)
        finally:
            os.unlink(fresh)

    def _check_file(self) -> None:
        if not os.path.isfile(self.path):
            raise StoreError(
                f"{self.path!r} is not a file; give the path of a session store, or one where it can be made"
            )
        if os.path.getsize(self.path) == 0:
            raise StoreError(
                f"{self.path!r} is an empty file, and a session store is never empty: if it held sessions, bring it "
                "back from a backup; if not, delete it"
            )
        # Read-only: a file that is not ours is not even recovered.
        with contextlib.closing(sqlite3.connect(f"file:{quote(self.path)}?mode=ro", uri=True)) as connection:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application_id != self._application_id:
            raise StoreError(
                f"{self.path!r} is a SQLite database of something else (application_id {application_id}, not "
                f"{self._application_id}); give another path"
            )
        if version != self._version:
            raise StoreError(
                f"the session store {self.path!r} has schema version {version}, and this sessionkit knows "
                f"{self._version}; use the sessionkit that made it, or give another path"
            )


def _as_store_error(path: str, error: Exception) -> StoreError:
    return StoreError(f"the session store {path!r} failed: {error}{_advice(error)}")


def _advice(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return ". Another process held its lock for all of the store's timeout; find it, or give a longer timeout"
    if name.startswith("SQLITE_FULL"):
        return ". Make room on its disk"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return ". Check that this user may write the file and its directory"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return ". It is left as it is; bring it back from a backup, or give another path"
    return ""
