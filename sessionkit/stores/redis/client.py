"""A Redis server: how it is reached, within what time, and what its failures are called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from redis import Redis, RedisCluster, RedisError
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
)
from redis.exceptions import ConnectionError as NotConnectedError
from redis.exceptions import TimeoutError as TooLateError

from ...errors import StoreError
from ...util.log import report_problem
from ...util.validation import shown
from .address import LIKE, Client, client_of, place_of
from .deadline import Deadline

T = TypeVar("T")

OLDEST = (6, 2)
"""The first version of Redis that has all that the store uses."""

CLIENT_PATIENCE_SECONDS = 60.0
"""For how long a client that was passed in may repeat a call."""

# By the kind of error, or, where a script failed, by what its message has.
_ADVICE: list[tuple[type[Exception], str | None, str]] = [
    (OutOfMemoryError, "OOM ", ". Its memory is full: give it more (maxmemory), or let sessions expire sooner"),
    (ReadOnlyError, "READONLY", ". It is a replica: give the address of the primary, or a Sentinel's"),
    (
        NoPermissionError,
        "NOPERM",
        ". Its user needs EVALSHA, SCRIPT LOAD and INFO, and all data commands on the prefix",
    ),
    (ResponseError, "WRONGTYPE", ". Something else has keys with the store's prefix: give it another prefix"),
    (AuthenticationError, "unauthenticated", ". Check the user and the password in the URL"),
    (TooLateError, None, ". It did not answer within the store's timeout: see whether it is busy, or wait longer"),
    (NotConnectedError, None, ". Check that it runs, and that it can be reached from here"),
]


class Server:
    """A server, or several that act as one, behind a client of redis-py. Thread-safe, and at home in a forked child.

    Made from a URL, each call takes no longer than `timeout` seconds (and the time that it takes to look up a host's
    name), however slowly the server answers. A client that is passed in has its own timeouts, and is never closed.
    """

    def __init__(self, where: str | Client, timeout: float) -> None:
        self._deadline = Deadline()
        self._timeout = timeout
        self._is_ours = isinstance(where, str)
        self._closed = False
        self.client: Client
        if isinstance(where, str):
            self.client, self.name = client_of(where, timeout, self._deadline)
        elif isinstance(where, Redis | RedisCluster):
            self.client, self.name = where, place_of(where)
        else:
            raise TypeError(
                f"RedisStore takes a URL such as {LIKE}, or a redis.Redis or redis.RedisCluster, not {shown(where)}"
            )

    @property
    def patience(self) -> float:
        """After how many seconds a call is certainly not repeated any more."""
        return 2 * self._timeout if self._is_ours else CLIENT_PATIENCE_SECONDS

    @property
    def is_cluster(self) -> bool:
        """Whether keys are spread over several servers."""
        return isinstance(self.client, RedisCluster)

    def call(self, work: Callable[[], T]) -> T:
        """Do what asks the server, with at most the timeout for all of it. Every failure raises `StoreError`."""
        if self._closed:
            raise StoreError(f"the session store {self.name} is closed; open it again")
        try:
            with self._deadline.within(self._timeout):
                return work()
        except (RedisError, RedisClusterException, OSError) as error:
            # A Sentinel that knows of no server has its client with all its settings in the text.
            reason = str(error).partition(" : <")[0].removesuffix(".")
            raise StoreError(f"the session store {self.name} failed: {reason}{_advice(error)}") from error

    def check(self) -> None:
        """See what it is: one that is too old raises `StoreError`, one that may evict live sessions is warned about."""
        info: dict[str, Any] = self.call(lambda: dict(self.client.info()))
        version = str(info.get("redis_version", ""))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
            raise StoreError(
                f"the session store {self.name} runs Redis {version or 'of an unknown version'}, and needs "
                f"{OLDEST[0]}.{OLDEST[1]} or later: upgrade it"
            )
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy != "noeviction":
            report_problem(
                "the session store %s evicts keys when its memory is full (maxmemory-policy %s), live sessions among "
                "them: set maxmemory-policy to noeviction, or give the store a server of its own",
                self.name,
                policy,
            )

    def rest(self) -> None:
        """Keep no connection open that is not in use; the next call opens another one."""
        if self._is_ours and isinstance(self.client, Redis):
            with contextlib.suppress(RedisError, OSError):
                self.client.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close all connections; calls raise from now on."""
        self._closed = True
        if self._is_ours:
            with contextlib.suppress(RedisError, OSError):
                self.client.close()


def _advice(error: Exception) -> str:
    for kind, marker, advice in _ADVICE:
        if (isinstance(error, kind) and kind is not ResponseError) or (marker and marker in str(error)):
            return advice
    return ""
