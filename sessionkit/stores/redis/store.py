"""The store for many machines: a Redis server, or several that act as one."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from math import inf
from typing import Any

from ...errors import SessionNotFoundError, StoreError
from ...util.clock import steady_clock
from ...util.copies import refuse_copies
from ...util.fork import start_clean_after_fork
from ...util.log import short_repr
from ...util.validation import Duration, checked_seconds
from ..base import Changes, Found, Known, SessionRecord, Touch, busy, conflict, taken, taken_id
from .client import Client, LapsedError, Server
from .cluster import CLUSTER_PARTITIONS, ClusterSteps, Partitions
from .codec import found_of, line_of, parts_of, parts_of_known, records_of
from .liveness import Heartbeats, ServerClock

LAYOUT = "3"
"""The version of what `store.lua` keeps."""

KEEP_SECONDS = 86_400.0
"""For how long the server keeps a record after it expired, if no cleanup removes it; `store.lua` has the same."""

BATCH = 250
"""How many sessions one call of the server is about, at most: other calls wait for no more than that."""


class RedisStore:
    """Keeps session records on a Redis server: `RedisStore("redis://host:6379/0")`. The `Store` contract says how.

    `where`: the URL of a server (`redis://`, `rediss://`, `unix://`), of Sentinels that know one
    (`redis+sentinel://host:26379,host:26379/service/0`), or a client of redis-py, `redis.Redis` or
    `redis.RedisCluster`. Redis 6.2 or later, or Valkey. Safe from any number of threads, processes and machines.

    `prefix`: what all its keys begin with; stores with different ones know nothing of each other. `timeout`: for how
    long a call waits for a dead or silent server, over all retries, before it raises `StoreError`, in seconds or a
    timedelta; default 2. A client that is passed in has timeouts of its own. `term`: for how long an instance is taken
    to be alive that is not heard of, default 10 seconds. One daemon thread sends a heartbeat three times as often,
    while there is an instance.

    It is the server's clock that records, leases and terms go by, not that of any host. What survives the death of the
    server is for its own settings to say (`appendonly`, `appendfsync`), as is what a failover loses.

    A call whose connection broke is sent again while the timeout has not passed; the server does nothing twice. If the
    server cannot be reached until then, the call raises `StoreError`, and what it asked for may have been done, or be
    done later. If it was a creation, a save or a renaming, a later call finds that out and repairs it. If it was the
    removal of expired records, no process is told of them. Messages that came with a touch, or with a release that
    changed no data, may be counted twice.
    """

    def __init__(
        self, where: str | Client, prefix: str = "sessionkit", timeout: Duration = 2.0, term: Duration = 10.0
    ) -> None:
        self.prefix = _checked_prefix(prefix)
        """What all its keys begin with."""
        self._server = Server(where, checked_seconds("timeout", timeout))
        self._partitions = Partitions(self.prefix, CLUSTER_PARTITIONS if self._server.is_cluster else 1)
        self._cluster = (
            ClusterSteps(self._ask, self._ask_for_name, self._partitions) if self._server.is_cluster else None
        )
        self._clock = ServerClock()
        self._heartbeats = Heartbeats(
            checked_seconds("term", term), KEEP_SECONDS, self._send_heartbeat, self._attach_again
        )
        self._forget_instances()
        start_clean_after_fork(self)

    def _forget_instances(self) -> None:
        # The write interval and the name of each instance that joined here.
        self._instances: dict[str, tuple[float, str]] = {}
        # What each instance has in memory, should its term run out.
        self._attached: dict[str, set[str]] = {}
        # Calls that failed, though the server may have done what they asked for. By session id: creations and
        # renamings with their instance and token; saves with their version, and "token:messages" of each.
        self._unheard_creations: dict[str, tuple[SessionRecord, str, str]] = {}
        self._unheard_renames: dict[str, tuple[str, str, str]] = {}
        self._unheard_saves: dict[str, tuple[int, str]] = {}

    def after_fork_in_child(self) -> None:
        # The instances are the parent's, and so is the repair of their calls.
        self._forget_instances()

    __reduce_ex__ = refuse_copies("make another RedisStore for the same server and prefix")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._server.name!r}, prefix={self.prefix!r})"

    # ---- Instances

    def join(self, write_interval: float, name: str) -> str:
        if self._heartbeats.is_empty:
            self._server.check()
        instance = secrets.token_hex(8)
        for base in self._partitions.bases:
            self._begin_term(base, "join", instance, write_interval, name, LAYOUT)
        self._instances[instance] = write_interval, name
        self._attached[instance] = set()
        self._heartbeats.begin(instance)
        return instance

    def set_write_interval(self, instance: str, seconds: float) -> None:
        known = self._instances.get(instance)
        if known is not None:
            self._instances[instance] = seconds, known[1]
            self._send_heartbeat(instance)

    def leave(self, instance: str) -> None:
        with contextlib.suppress(StoreError):
            # No other process knows what there is to repair.
            self._repair_all([*self._unheard_renames, *self._unheard_creations])
        was_last = self._heartbeats.end(instance)
        self._instances.pop(instance, None)
        self._attached.pop(instance, None)
        try:
            for base in self._partitions.bases:
                self._ask(base, "leave", instance)
        finally:
            if was_last and self._heartbeats.is_empty:
                # A store that was made for a coordinator need not be closed.
                self._server.close_idle()

    def clock_offset(self) -> float:
        self._probe()
        return self._clock.offset()

    # ---- One record

    def create(self, record: SessionRecord, instance: str) -> None:
        namesakes = [each.id for each, _, _ in self._unheard_creations.values() if each.name == record.name]
        self._repair_all([record.id, *namesakes])
        base, token = self._partitions.of(record.id), secrets.token_hex(8)
        try:
            with self._named(record):
                taken_by = self._ask(base, "create", record.id, line_of(record), record.data, instance, token=token)
                if taken_by:
                    raise taken(record, taken_by.decode())
        except StoreError:
            self._unheard_creations[record.id] = record, instance, token
            raise
        self._note(instance, record.id)

    def load(self, session_id: str, instance: str | None = None) -> Found | None:
        self._repair(session_id)
        reply = self._ask(self._partitions.of(session_id), "load", session_id, instance or "")
        return None if reply is None else found_of(session_id, reply)

    def find(self, name: str) -> str | None:
        if self._cluster is not None:
            return self._cluster.find(name)
        found = self._ask(self._partitions.of(name), "find", name)
        return None if found is None else str(found.decode())

    def attach(self, session_id: str, instance: str, *, lease: bool = False) -> Found | None:
        self._repair(session_id)
        reply = self._ask(self._partitions.of(session_id), "attach", session_id, instance, "x" if lease else "")
        if reply == b"busy":
            raise busy(session_id)
        if reply is None:
            self._forget(instance, [session_id])
            return None
        self._note(instance, session_id)
        return found_of(session_id, reply)

    def detach(self, session_ids: Iterable[str], instance: str) -> None:
        session_ids = list(session_ids)
        self._repair_all(session_ids)
        for base, ids in self._batches(session_ids):
            self._ask(base, "detach", instance, *ids)
            self._forget(instance, ids)

    def release(self, session_id: str, instance: str, changes: Changes | None = None) -> int | None:
        if changes is not None:
            return self._save(session_id, changes, instance)
        self._repair(session_id)
        self._ask(self._partitions.of(session_id), "release", session_id, instance)
        return None

    def save(self, session_id: str, changes: Changes) -> int:
        return self._save(session_id, changes, "")

    def rename(self, session_id: str, new_id: str, instance: str) -> bool:
        self._repair(session_id)
        token = secrets.token_hex(8)
        try:
            if self._cluster is not None:
                outcome = self._cluster.rename(session_id, new_id, instance, token)
            else:
                base = self._partitions.of(session_id)
                outcome = self._ask(base, "rename", session_id, new_id, instance, token=token)
        except StoreError:
            self._unheard_renames[session_id] = new_id, instance, token
            raise
        if outcome == b"busy":
            raise busy(session_id)
        if outcome == b"taken":
            raise taken_id(new_id)
        self._forget(instance, [session_id])
        if outcome == b"absent":
            return False
        self._note(instance, new_id)
        return True

    # ---- Many records

    def touch(self, touches: Mapping[str, Touch]) -> set[str]:
        absent: set[str] = set()
        self._repair_all(touches)
        for base, ids in self._batches(touches):
            arguments = chain.from_iterable((session_id, *parts_of(touches[session_id])) for session_id in ids)
            found = self._ask(base, "touch", *arguments, token=secrets.token_hex(8))
            absent.update(session_id.decode() for session_id in found)
            for session_id in ids:
                self._keep_name(session_id, touches[session_id])
        return absent

    def delete(self, known: Mapping[str, Known | None], instance: str | None = None, now: float = -inf) -> set[str]:
        deleted: set[str] = set()
        self._repair_all(known)
        for base, ids in self._batches(known):
            arguments = chain.from_iterable((id_, *parts_of_known(known[id_])) for id_ in ids)
            reply = self._ask(base, "delete", instance or "", repr(now), *arguments, token=secrets.token_hex(8))
            pairs = [(name.decode(), id_.decode()) for id_, name in zip(reply[::2], reply[1::2], strict=True)]
            self._free_names(pairs)
            deleted.update(id_ for _, id_ in pairs)
            gone = [id_ for id_ in ids if known[id_] is None or id_ in deleted]
            for each in list(self._attached):
                self._forget(each, ids if each == instance else gone)
        return deleted

    def delete_expired(self, now: float, limit: int, max_age: float | None = None) -> list[SessionRecord]:
        removed: list[SessionRecord] = []
        age = repr(inf if max_age is None else max_age)
        try:
            for base in self._partitions.bases:
                skip = "0"
                while skip and len(removed) < limit:
                    arguments = (repr(now), str(limit - len(removed)), age, skip)
                    reply, *found = self._ask(base, "delete_expired", *arguments, token=secrets.token_hex(8))
                    records = records_of(found)
                    self._free_names((record.name, record.id) for record in records)
                    removed += records
                    skip = reply.decode()
        except StoreError:
            # What has been removed has to be told; the next call raises.
            if not removed:
                raise
        return removed

    def count_expired(self, now: float, max_age: float | None = None) -> int:
        total = 0
        for base in self._partitions.bases:
            skip = "0"
            while skip:
                age = repr(inf if max_age is None else max_age)
                reply, count = self._ask(base, "count_expired", repr(now), age, skip)
                skip = reply.decode()
                total += int(count)
        return total

    def page(self, after: str | None, limit: int) -> list[SessionRecord]:
        found: list[SessionRecord] = []
        for base in self._partitions.bases:
            found += records_of(self._ask(base, "page", after or "", str(limit)))
        return sorted(found)[:limit]

    def close(self) -> None:
        with contextlib.suppress(StoreError):
            for instance in list(self._instances):
                self.leave(instance)
        self._heartbeats.end_all()
        self._server.close()

    # ---- Calls of the server, and the repair of those that failed

    def _ask(self, base: str, operation: str, *arguments: str, token: str = "") -> Any:
        self._probe()
        self._heartbeats.send_overdue()
        # In a cluster, names are in other slots than their sessions.
        keys = [base] if self._cluster is not None else [base, f"{base}:names"]
        return self._run(keys, operation, *arguments, token=token)

    def _ask_for_name(self, name: str, operation: str, *arguments: str, token: str = "") -> Any:
        self._probe()
        self._heartbeats.send_overdue()
        base = self._partitions.of(name)
        return self._run([base, f"{base}:names"], operation, name, *arguments, token=token)

    def _run(self, keys: list[str], *arguments: str, token: str) -> Any:
        try:
            return self._server.run(keys, *arguments, token=token)
        except LapsedError:
            self._heartbeats.send_all()
            return self._server.run(keys, *arguments, token=token)

    def _save(self, session_id: str, changes: Changes, instance: str) -> int:
        """Save the changes, and end the lease of the instance if there is one."""
        self._repair(session_id)
        version, data, touch = changes
        known, unheard = self._unheard_saves.get(session_id, (0, ""))
        if known != version:
            unheard = ""
        token = secrets.token_hex(8)
        text = "" if data is None else "+" + data
        arguments = (session_id, instance, str(version), unheard, text, *parts_of(touch))
        try:
            reply = self._ask(self._partitions.of(session_id), "save", *arguments, token=token)
        except StoreError:
            if data is not None:
                self._unheard_saves[session_id] = version, f"{unheard} {token}:{touch.messages}".lstrip()
            raise
        outcome, found = reply[0], int(reply[1])
        if data is not None or outcome == b"absent":
            self._unheard_saves.pop(session_id, None)
        if outcome == b"absent":
            raise SessionNotFoundError(session_id)
        if outcome == b"conflict":
            raise conflict(session_id, found, version)
        self._keep_name(session_id, touch)
        return found

    def _repair_all(self, session_ids: Iterable[str]) -> None:
        if self._unheard_renames or self._unheard_creations:
            for session_id in session_ids:
                self._repair(session_id)

    def _repair(self, session_id: str) -> None:
        """Undo what the server may have done with this session in calls that failed."""
        if session_id in self._unheard_renames:
            new_id, instance, token = self._unheard_renames[session_id]
            if self._cluster is not None:
                self._cluster.undo_rename(session_id, new_id, instance, token)
            else:
                self._ask(self._partitions.of(session_id), "undo_rename", session_id, new_id, instance, token)
            self._unheard_renames.pop(session_id, None)
        if session_id in self._unheard_creations:
            record, instance, token = self._unheard_creations[session_id]
            if self._ask(self._partitions.of(session_id), "undo_create", session_id, instance, token) is not None:
                self._free_names([(record.name, session_id)])
            self._unheard_creations.pop(session_id, None)

    # ---- Names that are in another slot than their sessions

    def _named(self, record: SessionRecord) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._cluster is None else self._cluster.named(record)

    def _keep_name(self, session_id: str, touch: Touch) -> None:
        if self._cluster is not None and touch.session_timeout is not None:
            # A name that went before its session is only not found.
            with contextlib.suppress(StoreError):
                self._cluster.keep(session_id)

    def _free_names(self, pairs: Iterable[tuple[str | None, str]]) -> None:
        if self._cluster is not None:
            # A name whose session is not there is free all the same.
            with contextlib.suppress(StoreError):
                self._cluster.free(pairs)

    # ---- The server, and the terms of instances

    def _begin_term(
        self, base: str, operation: str, instance: str, write_interval: float, name: str, *layout: str
    ) -> bool:
        """Join or send a heartbeat, in one partition; gives whether the term before had not run out."""
        asked_at = steady_clock()
        keys = [base, f"{base}:names"]
        term = repr(self._heartbeats.term)
        reply = self._server.run(keys, operation, instance, term, repr(write_interval), name, *layout)
        if not isinstance(reply, list):
            raise self._other_layout(reply)
        self._clock.note(float(reply[0]), asked_at)
        return bool(reply[1])

    def _probe(self) -> None:
        """See once, without joining, what time it is at the server and whether this sessionkit knows such a store."""
        if not self._clock.is_known:
            asked_at = steady_clock()
            now, layout = self._server.run(self._partitions.bases[:1], "probe")
            if layout.decode() not in ("", LAYOUT):
                raise self._other_layout(layout)
            self._clock.note(float(now), asked_at)

    def _other_layout(self, found: bytes) -> StoreError:
        return StoreError(
            f"the session store {self!r} has layout {found.decode()!r}, and this sessionkit knows {LAYOUT!r}; use the "
            "sessionkit that made it, or another prefix"
        )

    def _send_heartbeat(self, instance: str) -> bool:
        write_interval, name = self._instances.get(instance, (inf, ""))
        # All of them, whatever the first ones say.
        kept = [self._begin_term(base, "heartbeat", instance, write_interval, name) for base in self._partitions.bases]
        return all(kept)

    def _attach_again(self, instance: str) -> None:
        for base, ids in self._batches(list(self._attached.get(instance, ()))):
            self._ask(base, "attach_again", instance, *ids)

    def _note(self, instance: str, session_id: str) -> None:
        self._attached.setdefault(instance, set()).add(session_id)

    def _forget(self, instance: str, session_ids: Iterable[str]) -> None:
        self._attached.get(instance, set()).difference_update(session_ids)
        if self._unheard_saves:
            for session_id in session_ids:
                self._unheard_saves.pop(session_id, None)

    def _batches(self, session_ids: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        for base, ids in self._partitions.sorted(session_ids).items():
            rest = iter(ids)
            while batch := list(islice(rest, BATCH)):
                yield base, batch


def _checked_prefix(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"prefix must be a str, not {short_repr(value)}")
    if not 0 < len(value) <= 64 or not value.isprintable() or set(value) & set("{}"):
        raise ValueError(f"prefix {short_repr(value)} is not allowed; use 1 to 64 printable characters, and no braces")
    return value
