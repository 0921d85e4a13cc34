"""Without POSIX, as on Windows: what works, and what is said of the rest.

Simulated: what Windows lacks is taken away, but for what others need because `sys.platform` says that this is Linux:
click needs termios and tty, subprocess needs os.WNOHANG.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.redis_server import shared_server
from ..helpers.support import WAIT

WITHOUT_POSIX = """
import os, signal, socket, sys, time

TAKEN = {
    os: "fork forkpty register_at_fork uname getuid geteuid getgid getpgid setsid killpg waitid fchmod chown mkfifo "
        "pread pwrite posix_fallocate sched_getaffinity O_CLOEXEC O_NOFOLLOW O_DIRECTORY",
    signal: "SIGHUP SIGKILL SIGALRM SIGUSR1 SIGCHLD SIGPIPE alarm setitimer pthread_kill pthread_sigmask sigwait",
    socket: "AF_UNIX",
    time: "tzset clock_gettime CLOCK_MONOTONIC CLOCK_BOOTTIME pthread_getcpuclockid",
}
for module, names in TAKEN.items():
    for name in names.split():
        vars(module).pop(name, None)
for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog"):
    sys.modules[name] = None
"""

REQUESTS = """
import flask
import sessionkit.flask
from sessionkit import SessionCoordinator
from sessionkit.wsgi import KEY, SessionMiddleware
from werkzeug.test import Client

def application(environ, start_response):
    session = environ[KEY]
    session["n"] = session.get("n", 0) + 1
    start_response("200 OK", [])
    return [str(session["n"]).encode()]

app = flask.Flask("app")
app.add_url_rule("/", view_func=lambda: str(flask.session.setdefault("n", 7)))
with SessionCoordinator() as coordinator:
    sessionkit.flask.init_app(app, coordinator)
    for client in Client(SessionMiddleware(application, coordinator)), app.test_client():
        print([client.get("/", base_url="https://localhost").text for _ in range(2)])
"""


def run(program: str, *arguments: str | Path) -> str:
    """What a program prints, errors included, in a process of its own in which there is no POSIX."""
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-W", "error", "-c", WITHOUT_POSIX + program, *map(str, arguments)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WAIT, check=False,
    )  # fmt: skip
    return done.stdout


def test_it_is_taken_away() -> None:
    """Else the other tests would show nothing."""
    assert run("import fcntl").endswith("ModuleNotFoundError: import of fcntl halted; None in sys.modules\n")
    assert "no attribute 'fork'" in run("os.fork()")


def test_sessions_in_memory_work_without_posix() -> None:
    """With their cleanup task, checkouts, close callbacks and events."""
    program = """
from sessionkit import SessionCoordinator
with SessionCoordinator(on_close=lambda _, cause: print(cause)) as coordinator, coordinator.subscribe() as channel:
    session = coordinator.create_session("support")
    with coordinator.checkout(session.id, timeout=5) as held:
        held.record_message()
    print(coordinator.stats().cleanup.alive, len(coordinator), channel.get(0).kind)
"""
    assert run(program) == "True 1 created\nshutdown\n"


def test_requests_work_without_posix() -> None:
    """The middleware and the Flask extension keep a session from request to request."""
    assert run(REQUESTS) == "['1', '2']\n['7', '7']\n"


def test_the_command_line_works_without_posix(tmp_path: Path) -> None:
    """It replays a log, and says in one line that a SQLite store cannot be opened."""
    command = "from sessionkit.__main__ import main; main()"
    log = tmp_path / "access.log"
    log.write_text('1.2.3.4 - - [01/Jan/2026:00:00:00 +0000] "GET / HTTP/1.1" 200 5\n')
    assert '"created": 1' in run(command, "replay", log, "--json")
    store = tmp_path / "sessions.db"
    store.touch()
    answer = run(command, "sessions", "list", store)
    assert answer.count("\n") == 1
    assert "SQLiteStore needs POSIX file locks" in answer


def test_the_pytest_plugin_works_without_posix(tmp_path: Path) -> None:
    """Its fixtures make coordinators for a user's test."""
    (tmp_path / "test_user.py").write_text("""
def test_user(session_clock, session_coordinator):
    coordinator = session_coordinator()
    session = coordinator.create_session()
    session_clock.advance(3601)
    assert session.id not in coordinator
""")
    answer = run("import pytest; pytest.main(sys.argv[1:])", "-q", "--rootdir", tmp_path, tmp_path)
    assert "1 passed" in answer, answer


def test_redis_store_works_without_posix() -> None:
    """Sessions outlive their coordinator on a real server, and other instances hear this one's host and process."""
    program = """
from sessionkit import CoordinatorConfig, SessionCoordinator, SessionElsewhereError
from sessionkit.stores import RedisStore
first, second = (SessionCoordinator(CoordinatorConfig(affinity=True), store=RedisStore(sys.argv[1])) for _ in range(2))
session_id = first.create_session(data={"lang": "en"}).id
try:
    second.get_session(session_id)
except SessionElsewhereError as error:
    print(error.instance_name == f"{socket.gethostname()}:{os.getpid()}")
first.close()
print(second.get_session(session_id).data)
second.close_session(session_id)
second.close()
"""
    with shared_server() as url:
        assert run(program, url) == "True\n{'lang': 'en'}\n"


@pytest.mark.parametrize("where", ["sessions.db", "there_is_no_such_folder/sessions.db"])
def test_sqlite_store_says_that_it_needs_posix(where: str, tmp_path: Path) -> None:
    """To make one raises `StoreError`, which says what to use instead; to import it does not. No file is made."""
    program = """
from sessionkit import StoreError
from sessionkit.stores import SQLiteStore
try:
    SQLiteStore(sys.argv[1])
except StoreError as error:
    print(error)
"""
    answer = run(program, tmp_path / where)
    assert answer.startswith(
        "SQLiteStore needs POSIX file locks (the module fcntl), which this platform does not have: "
    )
    assert "use RedisStore" in answer
    assert "WSL" in answer
    assert list(tmp_path.iterdir()) == []
