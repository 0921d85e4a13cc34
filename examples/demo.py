"""The demo: an access log replayed, the life of one session, and one that outlives its process. See `make demo`."""
# ruff: noqa: T201  a demo prints

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from datetime import timedelta
from pathlib import Path

from sessionkit import CoordinatorConfig, ManagedSession, RemovalCause, SessionCoordinator, SessionExpiredError
from sessionkit.cli.main import sessionkit
from sessionkit.testing import ManualClock

ACCESS_LOG = Path(__file__).with_name("access.log")


def replay_a_log() -> None:
    """What `sessionkit replay examples/access.log` prints."""
    print("$ sessionkit replay examples/access.log\n", flush=True)
    sessionkit(["replay", os.path.relpath(ACCESS_LOG)], standalone_mode=False)


def live_a_life() -> None:
    """Create, touch, expire, and why it ended."""
    # Leave the clock away for real time. This one moves only when told to, so nobody has to wait.
    clock = ManualClock()
    config = CoordinatorConfig(session_timeout=timedelta(minutes=30))

    def say(what: str) -> None:
        print(f"  {timedelta(seconds=clock())}  {what}")

    def on_close(session: ManagedSession, cause: RemovalCause) -> None:
        say(f"on_close: {session.name!r} left, cause {cause.name}")

    print("\nThe life of a session, with a session timeout of 30 minutes\n")
    with SessionCoordinator(config, clock=clock, on_close=on_close) as coordinator:
        session = coordinator.create_session("support", data={"lang": "en"})
        say(f"created  {session.name!r}, {len(coordinator)} live")

        clock.advance(timedelta(minutes=25))
        session.record_message()
        say("touched  by a message: 30 more minutes from here")

        clock.advance(timedelta(minutes=25))
        say(f"live     {session.id in coordinator}: idle for 25 minutes only")

        clock.advance(timedelta(minutes=10))
        say(f"live     {session.id in coordinator}: idle for 35 minutes, though no cleanup has run")

        try:
            coordinator.touch_session(session.id)
        except SessionExpiredError as error:
            say(f"touch    {type(error).__name__}, cause {error.cause.name}")
            print("\n" + textwrap.fill(str(error), 78, initial_indent="    ", subsequent_indent="    ") + "\n")

        removed = coordinator.cleanup_inactive_sessions()
        say(f"cleanup  removed {removed}, {len(coordinator)} live")


def survive_a_restart() -> None:
    """Two processes, one after the other, and the operator's view of what they left."""
    print("\nA session that survives a restart of its process, in a SQLite store\n", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        store = os.path.join(directory, "sessions.db")
        for message in ("where is my parcel?", "it came, thank you"):
            subprocess.run([sys.executable, "-m", "examples.restart", store, message], check=True)  # noqa: S603  our own
        print("\n$ sessionkit sessions show sessions.db support\n", flush=True)
        sessionkit(["sessions", "show", store, "support"], standalone_mode=False)


if __name__ == "__main__":
    replay_a_log()
    live_a_life()
    survive_a_restart()
