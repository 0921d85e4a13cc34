"""One SQLite file: its connections, its transactions, and what is refused."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar
from urllib.parse import quote

from ...errors import StoreError
from ...util.fork import ForkGate, start_clean_after_fork

T = TypeVar("T")

Sync = Literal["NORMAL", "FULL"]
"""What a transaction waits for: NORMAL for the operating system, FULL for the disk."""

_gate = ForkGate()
# A forked child must not even close what it inherited: here they are until it ends.
_inherited: list[Connection] = []


class Connection(sqlite3.Connection):
    """A connection that knows how its transactions are synchronised."""

    sync: Sync | None = None


class Database:
    """Runs work on one SQLite file in WAL mode, each in a transaction of its own.

    `schema` is what a new file is made with, `application_id` and `version` mark the file as one of ours. The file is
    made readable and writable for its owner alone, at once with all that is in it: one that exists is whole. A file
    that is anything else is refused with `StoreError`, and left as it is. The file is never made again: once it is
    deleted, moved or replaced, all work raises `StoreError`.

    May be called from any thread; each has a connection of its own for as long as it works. A fork waits for work under
    way, because SQLite has locks of its own inside; the child opens connections of its own.
    """

    def __init__(self, path: str, timeout: float, schema: str, application_id: int, version: int) -> None:
        self.path = path
        self._timeout = timeout
        self._application_id = application_id
        self._version = version
        self._idle: list[Connection] = []
        self._closed = self._rests = False
        with _told_as_store_error(path), _gate:
            if not os.path.lexists(path):
                self._make_file(schema)
            self._identity = self._look()
            self._check_file()
        start_clean_after_fork(self)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work that only reads with one statement; what it sees is all committed."""
        with self._connection() as connection:
            return work(connection)

    def write(self, work: Callable[[sqlite3.Connection], T], sync: Sync) -> T:
        """Do work that no other write comes into, and commit it; if anything raises, none of it was done."""
        with self._connection() as connection:
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

    def close(self) -> None:
        """Close all connections; one that is in use, when its work is done. Closing again does nothing."""
        self._closed = True
        self.rest()

    def rest(self) -> None:
        """Until `rouse`, keep no connection open that is not in use."""
        self._rests = True
        self._close_idle()

    def rouse(self) -> None:
        """Keep connections open from now on, for more work."""
        self._rests = False

    def _close_idle(self) -> None:
        # The last one that is closed writes to the file.
        with _gate:
            while self._idle:
                with contextlib.suppress(IndexError, sqlite3.Error):
                    self._idle.pop().close()

    def _after_fork_in_child(self) -> None:
        _inherited.extend(self._idle)
        self._idle = []

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with _told_as_store_error(self.path), _gate:
            if self._closed:
                raise StoreError(f"the session store {self.path!r} is closed; open it again")
            self._check_identity()
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                yield connection
            except sqlite3.DatabaseError:
                # Whatever it has noted of the file may be wrong.
                connection.close()
                raise
            except BaseException:
                self._let_go(connection)
                raise
            self._let_go(connection)

    def _let_go(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._closed or self._rests:
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
            # It may have been replaced just before it was opened.
            self._check_identity()
        except BaseException:
            connection.close()
            raise
        return connection

    def _look(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_dev, status.st_ino

    def _check_identity(self) -> None:
        try:
            found = self._look()
        except FileNotFoundError as error:
            raise StoreError(
                f"the session store {self.path!r} was deleted or moved while it was open; bring the file back"
            ) from error
        if found != self._identity:
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
        # Under another name first: whoever sees the file sees all of it, and it never replaces another.
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


@contextmanager
def _told_as_store_error(path: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"the session store {path!r} failed: {error}{_advice(error)}") from error


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
