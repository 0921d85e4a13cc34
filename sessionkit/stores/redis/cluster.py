"""What only a Redis Cluster needs: parts of a store that lie in different slots, and steps that agree across them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from zlib import crc32

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from ...errors import SessionExistsError, StoreError
from ..base import SessionRecord, taken
from .codec import record_of

CLUSTER_PARTITIONS = 64
"""How many partitions a store has in a cluster: it spreads over up to as many servers. On one server, it has one."""

CLAIM_SECONDS = 30
"""For how long a name is kept for a session that is being created."""


class Partitions:
    """The parts of a store, each of which lies in one slot of a cluster; on one server, there is just one."""

    def __init__(self, prefix: str, count: int) -> None:
        self.bases = [f"{{{prefix}}}"] if count == 1 else list(_spread(prefix, count))
        """What the keys of each partition begin with: a hash tag, which puts all of them into one slot."""

    def of(self, text: str) -> str:
        """The base of the partition that an id or a name belongs to."""
        return self.bases[crc32(text.encode()) % len(self.bases)]

    def sorted(self, ids: Iterable[str]) -> dict[str, list[str]]:
        """Ids by the base of their partition."""
        found: dict[str, list[str]] = {}
        for session_id in ids:
            found.setdefault(self.of(session_id), []).append(session_id)
        return found


def _spread(prefix: str, count: int) -> Iterable[str]:
    """Hash tags whose slots lie evenly among all, so that every server of a cluster gets as many."""
    width = REDIS_CLUSTER_HASH_SLOTS / count
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < count:
        tag = f"{{{prefix}:{number}}}"
        tags.setdefault(int(key_slot(tag.encode()) // width), tag)
        number += 1
    return (tags[part] for part in sorted(tags))


class Ask(Protocol):
    """Runs one operation of `store.lua`: in the partition with this base, or in that of this name."""

    def __call__(self, where: str, operation: str, /, *arguments: str, token: str = "") -> Any: ...


class ClusterSteps:
    """Names, and sessions that get another id: operations of several steps, in the slots of a name and of two ids.

    Each may be interrupted after any step: a name whose session is not there is free, and a session that is being
    moved can be found by one of its two ids only. Every failure raises `StoreError`.
    """

    def __init__(self, ask: Ask, ask_for_name: Ask, partitions: Partitions) -> None:
        self._ask_partition = ask
        self._ask_for_name = ask_for_name
        self._partitions = partitions

    # ---- Names

    @contextmanager
    def named(self, record: SessionRecord) -> Iterator[None]:
        """Claim the name of a record that is created in the block. Raises `SessionExistsError` if it is taken."""
        if record.name is None:
            yield
            return
        self._claim(record, record.name)
        try:
            yield
        except BaseException as error:
            # If the id is taken, that may be by a session which has this name.
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

    def keep(self, session_id: str) -> None:
        """The session has another session timeout: its name is kept for as long as the session."""
        reply = self._ask(session_id, "load", "")
        record = None if reply is None else record_of(session_id, reply[0], reply[1])
        if record is not None and record.name is not None:
            self._point(record.name, session_id, record)

    def free(self, pairs: Iterable[tuple[str | None, str]]) -> None:
        """Free each of these names if it belongs to the id beside it."""
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
            self._delete(new_id)
            if outcome == b"absent":
                return b"absent"
            # Another instance has saved it in between: the same again, with what that one saved.
            self._ask(session_id, "mark", instance, mark.decode())

    def undo_rename(self, session_id: str, new_id: str, instance: str, token: str) -> None:
        """Undo a renaming that failed, whichever of its steps have been done."""
        saver = self._ask(new_id, "saver")
        if saver is not None and saver.decode() == token:
            if self._ask(session_id, "load", instance) is None:
                self.rename(new_id, session_id, instance, secrets.token_hex(8))
                return
            self._delete(new_id)
        # It may have been undone before, except for its name.
        name = self._name_of(session_id)
        if name is not None:
            self._ask_for_name(name, "point", new_id, session_id, "0")

    def _delete(self, session_id: str) -> None:
        self._ask_partition(self._partitions.of(session_id), "delete", "", "-inf", session_id, "", "")

    def _ask(self, session_id: str, operation: str, *arguments: str, token: str = "") -> Any:
        return self._ask_partition(self._partitions.of(session_id), operation, session_id, *arguments, token=token)
