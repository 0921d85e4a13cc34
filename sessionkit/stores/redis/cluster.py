"""Crossing: what takes several steps in a cluster, because it is about several slots."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ...errors import SessionExistsError, StoreError
from ..base import SessionRecord, taken
from .codec import record_of
from .partitions import Partitions

CLAIM_SECONDS = 30
"""For how long a name belongs to a session that is being created."""


class Asker(Protocol):
    """How an operation of `redis.lua` is run: where, which, and with what."""

    def __call__(self, where: str, operation: str, /, *arguments: str, token: str = "") -> Any: ...


class Crossing:
    """Names, and sessions that get another id, where two slots of a cluster have to agree.

    No step leaves anything that is wrong, should it be the last one: a name whose session is not there is free, and of
    a session that has moved only one id is known to anybody. Every failure raises `StoreError`.
    """

    def __init__(self, ask: Asker, ask_for_name: Asker, partitions: Partitions) -> None:
        self._ask_partition = ask
        self._ask_for_name = ask_for_name
        self._partitions = partitions

    # ---- Names

    @contextmanager
    def named(self, record: SessionRecord) -> Iterator[None]:
        """Create a record in the block: its name is its own then. Raises `SessionExistsError` if that is taken."""
        if record.name is None:
            yield
            return
        self._claim(record, record.name)
        try:
            yield
        except BaseException as error:
            # Whoever has the id may have the name too.
            if not isinstance(error, SessionExistsError) or self._name_of(record.id) != record.name:
                with contextlib.suppress(StoreError):
                    self.free([(record.name, record.id)])
            raise
        if not self._point(record.name, record.id, record):
            raise StoreError(
                f"creating session {record.id!r} took longer than {CLAIM_SECONDS} seconds, and its name "
                f"{record.name!r} went to another one; try again"
            )

    def find(self, name: str) -> str | None:
        """The id of the record with this name."""
        found = self._ask_for_name(name, "who")
        if found is None or self._name_of(found.decode()) != name:
            return None
        return str(found.decode())

    def free(self, pairs: Iterable[tuple[str | None, str]]) -> None:
        """These names belong to these ids no more."""
        for name, session_id in pairs:
            if name:
                self._ask_for_name(name, "free", session_id)

    def _claim(self, record: SessionRecord, name: str) -> None:
        instead = ""
        while True:
            token = secrets.token_hex(8)
            other, is_new = self._ask_for_name(name, "claim", record.id, instead, str(CLAIM_SECONDS), token=token)
            if not other:
                return
            instead = other.decode()
            if is_new or self._name_of(instead) == name:
                # If the id is taken too, that is what is said.
                raise taken(record, instead if self._ask(record.id, "saver") is None else record.id)

    def _point(self, name: str, session_id: str, record: SessionRecord) -> bool:
        kept_ms = str(min(int(record.session_timeout * 1000), 10**14))
        return bool(self._ask_for_name(name, "point", session_id, record.id, kept_ms))

    def _name_of(self, session_id: str) -> str | None:
        reply = self._ask(session_id, "load", "")
        return None if reply is None else record_of(session_id, reply[0], reply[1]).name

    # ---- Another id

    def rename(self, session_id: str, new_id: str, instance: str, token: str) -> bytes:
        """Move a record to another id, where `token` marks it; gives what the script's `rename` would."""
        while True:
            reply = self._ask(session_id, "seize", instance, token=secrets.token_hex(8))
            if reply in (b"absent", b"busy"):
                return bytes(reply)
            line, data, mark = reply
            record = record_of(session_id, line, data)
            moved = (line.decode(), record.data, instance, mark.decode(), token)
            if self._ask(new_id, "adopt", *moved, token=secrets.token_hex(8)) == b"taken":
                self._ask(session_id, "mark", instance, mark.decode())
                return b"taken"
            outcome = self._ask(session_id, "give_up", str(record.version), token=secrets.token_hex(8))
            if outcome == b"given up":
                if record.name is not None:
                    self._point(record.name, session_id, record._replace(id=new_id))
                return b"renamed"
            self._ask_partition(self._partitions.of(new_id), "delete", "", "inf", new_id, "")
            if outcome == b"absent":
                return b"absent"
            # Somebody saved it in between: the same again, with that.
            self._ask(session_id, "mark", instance, mark.decode())

    def undo_rename(self, session_id: str, new_id: str, instance: str, token: str) -> None:
        """Undo what became of a renaming that failed, whatever that was."""
        saver = self._ask(new_id, "saver")
        if saver is not None and saver.decode() == token:
            if self._ask(session_id, "load", instance) is None:
                self.rename(new_id, session_id, instance, secrets.token_hex(8))
                return
            self._ask_partition(self._partitions.of(new_id), "delete", "", "inf", new_id, "")
        # It may have been undone before, but for its name.
        name = self._name_of(session_id)
        if name is not None:
            self._ask_for_name(name, "point", new_id, session_id, "0")

    def _ask(self, session_id: str, operation: str, *arguments: str, token: str = "") -> Any:
        return self._ask_partition(self._partitions.of(session_id), operation, session_id, *arguments, token=token)
