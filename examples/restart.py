"""One process of the demo: a visitor comes back to a session that is kept in a store. Run by `make demo`, twice."""
# ruff: noqa: T201  a demo prints

from __future__ import annotations

import os
import sys

from sessionkit import ManagedSession, SessionCoordinator
from sessionkit.stores import SQLiteStore


class Agent:
    """Something live that is never stored: it is made anew for a session that comes back."""

    def __init__(self, session: ManagedSession) -> None:
        self.language = session.data["lang"]


def visit(store_path: str, message: str) -> None:
    """Take up the session "support", or create it, and add a message to its data."""
    with SessionCoordinator(store=SQLiteStore(store_path), resource_factory=Agent) as coordinator:
        if coordinator.restore_sessions() == 0:
            coordinator.create_session("support", data={"lang": "en", "messages": []})
        session = coordinator.switch_session("support")
        with coordinator.checkout(session.id) as held:
            held.data["messages"].append(message)
            held.record_message()
        print(f"  process {os.getpid()}  {session.data['messages']}  (agent speaks {session.resource.language!r})")


if __name__ == "__main__":
    visit(*sys.argv[1:])
