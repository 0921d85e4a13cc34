"""The SQLite store: the contract, and what is its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import sessionkit.stores
from sessionkit import SessionBusyError, StoreError
from sessionkit.stores import Changes, Known, SQLiteStore, Touch
from sessionkit.stores.sqlite.database import Database, ForkGate
from sessionkit.stores.sqlite.store import APPLICATION_ID, SCHEMA_VERSION
from sessionkit.testing import StoreContract
from sessionkit.testing.store_contract import NOW, record

from ...helpers.support import WAIT, all_at_once, in_child, in_thread


def database_of(store: SQLiteStore) -> Database:
    """A store's database. Private, because no call of the store shows what SQLite does within."""
    return store._database


def idle_of(store: SQLiteStore) -> list[Any]:
    """The connections that a store keeps open. Private, because nothing else shows them on every system."""
    return database_of(store)._idle


class TestSQLiteStore(StoreContract):
    """The SQLite store does what every store must do."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sessions.db"

    def new_store(self) -> SQLiteStore:
        return SQLiteStore(self.path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path, timeout=0.01)
    yield store
    store.close()


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


# ---- The file


def test_a_new_file_is_for_its_instance_alone(store: SQLiteStore, path: Path) -> None:
    """Whatever the umask: the database, what SQLite keeps beside it, and the instances' files."""
    before = os.umask(0)
    try:
        fresh = SQLiteStore(path.with_name("fresh.db"))
        fresh.create(record(), fresh.join(1.0, "other"))
    finally:
        os.umask(before)
    files = list(path.parent.glob("fresh.db*"))
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    fresh.close()
    assert [file.name for file in path.parent.glob("fresh.db*")] == ["fresh.db"]


def test_the_file_says_what_it_is(store: SQLiteStore, path: Path) -> None:
    """It is marked as ours, with the version of its schema, and in WAL mode."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        marks = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version", "journal_mode")
        ]
    assert marks == [APPLICATION_ID, SCHEMA_VERSION, "wal"]
    assert repr(store) == f"SQLiteStore({str(path)!r})"
    assert store.path == path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"just a text", "not a database"),
        (b"SQLite format 3\0 and then nothing of the kind" * 100, "failed: .* It is left as it is"),
    ],
)
def test_a_file_that_is_something_else_is_refused(path: Path, content: bytes, message: str) -> None:
    """StoreError says what is wrong; the file, and the directory, are left untouched."""
    path.write_bytes(content)
    before = contents(path)
    with pytest.raises(StoreError, match=message):
        SQLiteStore(path)
    assert contents(path) == before


@pytest.mark.parametrize(
    ("pragma", "message"),
    [
        ("application_id = 42", r"is a SQLite database of something else \(application_id 42"),
        (f"application_id = {APPLICATION_ID}; PRAGMA user_version = 99", "has schema version 99"),
    ],
)
def test_a_database_that_is_not_ours_is_refused(path: Path, pragma: str, message: str) -> None:
    """Another program's, or one that a later sessionkit made; it is left as it is."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE sessions (mine TEXT); PRAGMA {pragma};")
    before = contents(path)
    with pytest.raises(StoreError, match=message):
        SQLiteStore(path)
    assert contents(path) == before


def test_what_a_deleted_store_left_is_not_taken_over(path: Path) -> None:
    """A -wal without its database may hold what is not on disk elsewhere: it is refused, and left as it is."""
    leftover = path.with_name(path.name + "-wal")
    leftover.write_bytes(b"precious")
    with pytest.raises(StoreError, match=r"-wal' is there, and the session store .* is not"):
        SQLiteStore(path)
    assert contents(path) == {leftover.name: b"precious"}


@pytest.mark.parametrize("bad", ["", ":memory:"])
def test_a_path_that_names_no_file(bad: str) -> None:
    """Sessions are to outlive the process; what is no path at all is a TypeError."""
    with pytest.raises(ValueError, match="must name a file"):
        SQLiteStore(bad)
    with pytest.raises(TypeError):
        SQLiteStore(5)  # type: ignore[arg-type]  # what is tried
    with pytest.raises(ValueError, match="timeout"):
        SQLiteStore("sessions.db", timeout=0)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """A StoreError with the cause chained; also where the path is a directory."""
    with pytest.raises(StoreError, match="No such file or directory") as caught:
        SQLiteStore(tmp_path / "missing" / "sessions.db")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(StoreError, match="is not a file"):
        SQLiteStore(tmp_path)


def test_a_path_with_every_character(tmp_path: Path) -> None:
    """What means something in a URI is taken as it is; a relative path stays where it was."""
    place = tmp_path / "a b?c=d#e%20\u20ac"
    place.mkdir()
    store = SQLiteStore(place / "100%.db?mode=memory")
    store.create(record(), store.join(1.0, "other"))
    store.close()
    assert (place / "100%.db?mode=memory").stat().st_size > 0
    before = Path.cwd()
    os.chdir(place)
    try:
        relative = SQLiteStore("100%.db?mode=memory")
    finally:
        os.chdir(before)
    assert relative.load("s-1") is not None
    relative.close()


def test_many_that_make_the_same_file_at_once(path: Path) -> None:
    """All of them get the same store, and nothing is left lying about."""
    stores = all_at_once(*[lambda: SQLiteStore(path)] * 8)
    for number, store in enumerate(stores):
        store.create(record(f"s-{number}"), store.join(1.0, "other"))
    assert [len(store.page(None, 100)) for store in stores] == [8] * 8
    for store in stores:
        store.close()
    assert list(contents(path)) == [path.name]


def test_a_store_without_instances_has_no_file_open(path: Path) -> None:
    """Whoever makes one for a coordinator need not close it; it opens again when it is used."""
    store = SQLiteStore(path)
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    store.leave(instance)
    assert idle_of(store) == []
    assert list(contents(path)) == [path.name]
    assert store.load("s-1") is not None
    store.close()


# ---- What fails


def test_a_lock_that_is_held_for_too_long(store: SQLiteStore, path: Path) -> None:
    """After the timeout, StoreError says what to do; reads go on, and once it is free, so do writes."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"database is locked.*longer timeout") as caught:
            store.touch({"s-1": Touch(NOW + 1)})
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert store.load("s-1") is not None
    assert store.touch({"s-1": Touch(NOW + 1)}) == set()


def test_a_file_deleted_or_moved_away_is_noticed(store: SQLiteStore, path: Path) -> None:
    """Nothing is written to a file that nobody will find again; brought back, it goes on."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    away = path.with_name("away.db")
    path.rename(away)
    for call in (lambda: store.load("s-1"), lambda: store.delete({"s-1": None})):
        with pytest.raises(StoreError, match="was deleted or moved"):
            call()
    assert not path.exists()
    away.rename(path)
    assert store.delete({"s-1": None}) == {"s-1"}


def test_a_file_that_was_replaced_is_noticed(store: SQLiteStore, path: Path) -> None:
    """By whatever: nothing is read from it or written to it."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    backup = path.with_name("backup.db")
    shutil.copy(path, backup)
    backup.replace(path)
    for _ in range(2):
        with pytest.raises(StoreError, match="was replaced"):
            store.load("s-1")
    database_of(store).stop_pooling()
    with pytest.raises(StoreError, match="was replaced"):
        store.load("s-1")


def test_a_file_replaced_while_it_is_opened_is_noticed(store: SQLiteStore, path: Path) -> None:
    """It is looked at once more when the connection is there."""
    connect = sqlite3.connect
    database_of(store).stop_pooling()

    def replace_and_connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        shutil.copy(path, path.with_name("copy.db")).replace(path)
        return connect(*arguments, **options)

    with patch.object(sqlite3, "connect", replace_and_connect), pytest.raises(StoreError, match="was replaced"):
        store.load("s-1")


def test_a_corrupt_file_is_left_as_it_is(path: Path) -> None:
    """Damaged while nobody looked: StoreError when the damage is met, and never a new file."""
    store = SQLiteStore(path)
    instance = store.join(1.0, "other")
    for number in range(200):
        store.create(record(f"s-{number}", data='"' + "x" * 500 + '"'), instance)
    store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    before = path.read_bytes()
    store = SQLiteStore(path)
    with pytest.raises(StoreError, match=r"malformed.*bring it back from a backup"):
        store.page(None, 1000)
    store.close()
    assert path.read_bytes() == before


def test_a_read_only_file(store: SQLiteStore, path: Path) -> None:
    """Reads go on; a write is a StoreError that says what to check."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    for connection in idle_of(store):
        connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match=r"readonly database.*may write"):
        store.touch({"s-1": Touch(NOW)})
    assert store.load("s-1") is not None


def test_a_full_disk(store: SQLiteStore, path: Path) -> None:
    """Nothing of the failed write is there; reads go on, and once there is room, so do writes."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    for connection in idle_of(store):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"full.*Make room"):
        store.save("s-1", Changes(1, '{"a":"' + "x" * 100_000 + '"}', Touch(NOW + 1, 5)))
    found = store.load("s-1")
    assert found is not None
    assert found.record == record()
    assert store.save("s-1", Changes(1, '{"a":"' + "x" * 100_000 + '"}', Touch(NOW))) == 2


def test_a_really_full_disk(path: Path) -> None:
    """A process that may not make its files any larger: acknowledged saves are there, and no other."""
    program = f"""
import resource, signal, sys
from sessionkit import StoreError
from sessionkit.testing.store_contract import record
from sessionkit.stores import SQLiteStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = SQLiteStore({str(path)!r})
instance = store.join(1.0, "other")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for number in range(1000):
    try:
        store.create(record(f"s-{{number:04}}", data='"' + "x" * 1000 + '"'), instance)
    except StoreError as error:
        print(number, len(store.page(None, 1000)), type(error.__cause__).__name__)
        break
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True)  # noqa: S603  our own program
    acknowledged, there, cause = done.stdout.split()
    assert acknowledged == there
    assert cause == "OperationalError"
    store = SQLiteStore(path)
    assert len(store.page(None, 1000)) == int(acknowledged) > 0
    store.close()


def test_a_database_error_closes_its_connection(store: SQLiteStore) -> None:
    """What it has noted of the file may be wrong; whatever else is raised within leaves it open, and nothing done."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    database = database_of(store)

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM sessions")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write(fail, "FULL")
    assert len(idle_of(store)) == 1
    with pytest.raises(StoreError, match="no such table"):
        database.read(lambda connection: connection.execute("SELECT * FROM nobody"))
    assert idle_of(store) == []
    assert store.load("s-1") is not None


def test_closing_while_another_thread_is_at_work(store: SQLiteStore) -> None:
    """What is under way is finished, and then closed."""
    started, go_on = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> int:
        started.set()
        assert go_on.wait(WAIT)
        return int(connection.execute("SELECT 5").fetchone()[0])

    with in_thread(database_of(store).read, work) as future:
        assert started.wait(WAIT)
        store.close()
        go_on.set()
        assert future.result(WAIT) == 5
    assert idle_of(store) == []


def test_the_database_knows_of_no_session(tmp_path: Path) -> None:
    """One file of any schema, of its own kind."""
    database = Database(str(tmp_path / "other.db"), 1.0, "CREATE TABLE t (x)", 7, 1)
    database.write(lambda connection: connection.execute("INSERT INTO t VALUES (5)"), "NORMAL")
    assert database.read(lambda connection: connection.execute("SELECT x FROM t").fetchall()) == [(5,)]
    database.close()


# ---- Instances and processes


def test_an_instance_lives_as_long_as_its_process(store: SQLiteStore, path: Path) -> None:
    """Its attachments and leases end with it, however it ends; its file goes when somebody notices."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)

    def child() -> str:
        mine = SQLiteStore(path)
        name = mine.join(7.0, "mine")
        assert mine.attach("s-1", name, lease=True) is not None
        with pytest.raises(SessionBusyError):
            store.attach("s-1", instance, lease=True)
        return name

    dead = in_child(child)
    assert path.with_name(f"{path.name}-instance-{dead}").exists()
    found = store.attach("s-1", instance, lease=True)
    assert found is not None
    assert found.lag == 0.0
    store.join(1.0, "other")
    assert not path.with_name(f"{path.name}-instance-{dead}").exists()


def test_a_forked_child_does_not_keep_its_parents_instances_alive(path: Path) -> None:
    """When the parent has died, they are dead, though the child lives on; and the child's copy of the store works."""
    reader, writer = os.pipe()
    parents_life = os.pipe()
    parent = os.fork()
    if parent == 0:
        store = SQLiteStore(path)
        instance = store.join(1.0, "other")
        store.create(record(), instance)
        store.attach("s-1", instance, lease=True)
        if os.fork() == 0:
            os.close(parents_life[1])
            os.read(parents_life[0], 1)
            fresh = store.join(1.0, "other")
            os.write(writer, b"free" if store.attach("s-1", fresh, lease=True) else b"gone")
        os._exit(0)
    for file in (writer, *parents_life):
        os.close(file)
    os.waitpid(parent, 0)
    assert os.read(reader, 10) == b"free"
    os.close(reader)


def test_an_instance_whose_file_was_deleted_is_noted_again(store: SQLiteStore, path: Path) -> None:
    """Somebody cleaned up a directory: others may take it for dead, and it goes on all the same."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    path.with_name(f"{path.name}-instance-{instance}").unlink()
    other = SQLiteStore(path)
    second = other.join(1.0, "other")
    assert other.attach("s-1", second, lease=True) is not None
    other.release("s-1", second)
    assert store.attach("s-1", instance, lease=True) is not None
    assert store.attach("s-1", instance) is not None
    other.close()
    store.leave(instance)


def test_an_instance_that_cannot_be_noted_leaves_no_file(store: SQLiteStore, path: Path) -> None:
    """A failed join leaves nothing behind."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError):
            store.join(1.0, "other")
    with patch("sessionkit.stores.sqlite.liveness.LockFiles.acquire", side_effect=OSError(24, "Too many open files")):
        with pytest.raises(StoreError, match="Too many open files"):
            store.join(1.0, "other")
    assert not list(path.parent.glob("*-instance-*"))


def test_a_dropped_store_lets_go_of_its_files(path: Path) -> None:
    """Collected without close(): its instances are dead to others."""
    dropped = SQLiteStore(path)
    instance = dropped.join(1.0, "other")
    dropped.create(record(), instance)
    dropped.attach("s-1", instance, lease=True)
    database_of(dropped).stop_pooling()
    del dropped
    store = SQLiteStore(path)
    assert store.attach("s-1", store.join(1.0, "other"), lease=True) is not None
    store.close()


def test_a_fork_waits_for_work_under_way() -> None:
    """And work that begins waits for the fork; a signal handler that forks within does not wait for itself for ever."""
    gate = ForkGate()
    inside, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def work() -> None:
        with gate:
            inside.set()
            assert go_on.wait(WAIT)
            order.append("work")

    with in_thread(work) as working:
        assert inside.wait(WAIT)
        with in_thread(lambda: in_child(lambda: order)) as forking:
            go_on.set()
            assert working.result(WAIT) is None
            assert forking.result(WAIT) == ["work"]

    with patch("sessionkit.stores.sqlite.database.GATE_SECONDS", 0.01), gate:
        assert in_child(lambda: "went on") == "went on"


def test_stores_are_imported_when_they_are_used() -> None:
    """The package of stores has SQLiteStore, and nothing that it has not."""
    assert sessionkit.stores.SQLiteStore is SQLiteStore
    with pytest.raises(AttributeError, match="NoStore"):
        sessionkit.stores.NoStore  # noqa: B018  the look is the test


def test_the_files_of_instances_nobody_knew_are_cleared_away(store: SQLiteStore, path: Path) -> None:
    """Their process died before it was noted; those of the living stay."""
    instance = store.join(1.0, "other")
    stray = path.with_name(f"{path.name}-instance-stray")
    stray.touch()
    store.join(1.0, "other")
    assert not stray.exists()
    assert path.with_name(f"{path.name}-instance-{instance}").exists()


def test_a_file_that_is_not_what_it_was(path: Path) -> None:
    """A corrupt file is refused and left as it is; one that was deleted, moved or replaced while open is noticed before
    anything is written to it.
    """
    store = SQLiteStore(path)
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    original = path.with_name("original.db")
    path.rename(original)
    for content in (None, b"SQLite format 3\0 but corrupt" * 200):
        if content is not None:
            path.write_bytes(content)
            with pytest.raises(StoreError):
                SQLiteStore(path)
        before = contents(path)
        with pytest.raises(StoreError):
            store.save("s-1", Changes(1, "{}", Touch(NOW)))
        assert contents(path) == before
    original.replace(path)
    assert store.save("s-1", Changes(1, "{}", Touch(NOW))) == 2
    store.close()


def test_what_waits_for_the_disk(store: SQLiteStore) -> None:
    """What is created, saved or deleted has been flushed to disk (`fsync`) when the call returns; touches and leases
    have not. SQLite calls the one FULL, which is 2, and the other NORMAL, which is 1.
    """

    def synchronous() -> int:
        return int(database_of(store).read(lambda connection: connection.execute("PRAGMA synchronous").fetchone()[0]))

    instance = store.join(1.0, "other")
    levels = [synchronous()]
    for call in (
        lambda: store.create(record(), instance),
        lambda: store.touch({"s-1": Touch(NOW)}),
        lambda: store.save("s-1", Changes(1, "{}", Touch(NOW))),
        lambda: store.attach("s-1", instance, lease=True),
        lambda: store.delete({"s-1": None}),
        lambda: store.release("s-1", instance),
        lambda: store.delete({"s-1": Known(NOW)}, instance, NOW),
        lambda: store.detach(["s-1"], instance),
        lambda: store.delete_expired(NOW, 1),
    ):
        call()
        levels.append(synchronous())
    assert levels == [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]


def test_a_forked_childs_copy_closes_its_files_when_its_own_last_instance_leaves(store: SQLiteStore) -> None:
    """The instances that its parent has there are none of its own."""
    store.join(1.0, "other")

    def child() -> int:
        store.leave(store.join(1.0, "other"))
        return len(idle_of(store))

    assert in_child(child) == 0


def test_an_interrupted_begin_leaves_no_transaction_open(store: SQLiteStore) -> None:
    """Ctrl-C right after the lock was taken: it is given back."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)

    class Interrupted(sqlite3.Connection):
        sync = "NORMAL"

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *arguments)
            if sql.startswith("BEGIN"):
                raise KeyboardInterrupt
            return cursor

    idle_of(store).append(
        sqlite3.connect(store.path, isolation_level=None, check_same_thread=False, factory=Interrupted)  # type: ignore[arg-type]  # it stands for ours
    )
    with pytest.raises(KeyboardInterrupt):
        store.touch({"s-1": Touch(NOW)})
    assert not idle_of(store)[-1].in_transaction
    database_of(store).stop_pooling()
    assert store.touch({"s-1": Touch(NOW)}) == set()


def test_no_connection_stays_open_once_the_last_instance_has_left(tmp_path: Path) -> None:
    """Also not one that another thread was using then; with the next instance, connections are kept again."""
    store = SQLiteStore(tmp_path / "sessions.db")
    idle = idle_of(store)
    instance = store.join(1.0, "other")
    store.find("nobody")
    assert len(idle) == 1

    def leave_meanwhile(connection: sqlite3.Connection) -> None:
        with in_thread(store.leave, instance) as future:
            assert future.exception(WAIT) is None

    database_of(store).read(leave_meanwhile)
    store.find("nobody")
    assert not idle
    instance = store.join(1.0, "other")
    store.find("nobody")
    assert len(idle) == 1
    rest = database_of(store).stop_pooling

    def rest_late() -> None:
        store.join(1.0, "other")
        rest()

    with patch.object(database_of(store), "stop_pooling", rest_late):
        store.leave(instance)
    store.find("nobody")
    assert len(idle) == 1
    store.close()


def test_an_instance_that_has_left_promises_nothing(store: SQLiteStore) -> None:
    """It is not noted again, and so no connection stays open for it."""
    instance = store.join(1.0, "other")
    store.leave(instance)
    store.set_write_interval(instance, 5.0)
    store.find("nobody")
    assert idle_of(store) == []


def test_a_session_that_is_deleted_while_somebody_attaches_is_absent(store: SQLiteStore) -> None:
    """It was there at the first look, and is gone at the second."""
    instance = store.join(1.0, "other")
    store.create(record(), instance)
    load = store.load

    def load_and_delete(session_id: str) -> Any:
        found = load(session_id)
        store.delete({session_id: None})
        return found

    with patch.object(store, "load", load_and_delete):
        assert store.attach("s-1", instance) is None
