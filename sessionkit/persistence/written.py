"""What this process knows to be in the record of one session."""

from __future__ import annotations

import threading

from ..stores.base import SessionRecord, Touch


class Written:
    """What this process knows to be in the record of one session. Guarded by its lock, as is the I/O for it."""

    __slots__ = (
        "id",
        "last_active",
        "last_state",
        "leased",
        "leases",
        "lock",
        "messages",
        "stale",
        "state",
        "text",
        "users",
        "version",
    )

    def __init__(self, record: SessionRecord) -> None:
        self.id = record.id
        self.lock = threading.RLock()
        self.users: set[object] = set()
        """The checkouts that have the session here."""
        self.leased = False
        """Whether the lease is ours, and what the store said when it was taken has been seen to."""
        self.leases = 0
        """How many leases on it have ended here."""
        self.stale = False
        """Whether somebody else has had the session since its resource was made here."""
        self.last_state: str | None = None
        """The state it had when it ended here, should its record stay."""
        self.last_active = record.last_active
        self.note(record)

    def note(self, record: SessionRecord) -> None:
        """The record is this. Its last activity may be another process's, and is not noted as ours."""
        self.version = record.version
        self.text = record.data
        self.messages = record.message_count
        self.state = record.state

    def take_back(self, touch: Touch) -> None:
        """A touch that was noted as written could not be. The instant stays: whoever was active then was so here."""
        with self.lock:
            self.messages -= touch.messages
            if touch.state is not None:
                self.state = ""
