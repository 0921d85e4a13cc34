"""Partitions: the parts of a Redis store, each of which lies in one slot of a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

CLUSTER_PARTITIONS = 64
"""How many a store has in a cluster: it spreads over up to as many servers. On one server, it has one."""


class Partitions:
    """Which partition an id or a name belongs to, and what the keys there begin with."""

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
