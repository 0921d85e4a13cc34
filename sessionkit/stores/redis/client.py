"""A Redis server: how it is reached, how one call of the script is made, and what failures are called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib.resources import files
from time import sleep
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis import Redis, RedisCluster, RedisError
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, parse_url
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
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from ...errors import StoreError
from ...util.clock import stopwatch
from ...util.log import report_problem, short_repr

T = TypeVar("T")

Client = Redis | RedisCluster

OLDEST = (6, 2)
"""The first version of Redis that has all that the store uses."""

PAUSES = (0.01, 0.02, 0.04)
"""How long to wait, in seconds, before each time that a call is sent again because its connection broke."""

CLIENT_PATIENCE_SECONDS = 60.0
"""For how long a client that was passed in may repeat a call."""

LIKE = "redis://host:6379/0, rediss://… with TLS, unix:///path, or redis+sentinel://host:26379,host:26379/service/0"
"""What URLs look like."""

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


class LapsedError(StoreError):
    """The term of the instance has run out, or the server does not know the instance: a heartbeat has to come first."""


class Server:
    """A server, or several that act as one, behind a client of redis-py. Thread-safe, and at home in a forked child.

    Made from a URL, a call waits up to `timeout` seconds for the server to take a connection, and as long for it to
    answer; a call whose connection broke is sent again, up to three times, while the timeout has not passed. A client
    that is passed in has its own timeouts and retries, and is never closed.
    """

    def __init__(self, where: str | Client, timeout: float) -> None:
        self._timeout = timeout
        self._is_ours = isinstance(where, str)
        self._closed = False
        self.client: Client
        if isinstance(where, str):
            self.client, self.name = _client_of(where, timeout)
        elif isinstance(where, Redis | RedisCluster):
            self.client, self.name = where, _place_of(where)
        else:
            raise TypeError(
                f"RedisStore takes a URL such as {LIKE}, or a redis.Redis or redis.RedisCluster, not "
                f"{short_repr(where)}"
            )
        self._script = self.client.register_script(files(__package__).joinpath("store.lua").read_text("utf-8"))
        # Until a call that was done is certainly not sent again.
        patience = 3 * timeout if self._is_ours else CLIENT_PATIENCE_SECONDS
        self._remembered_ms = str(int(patience * 1000))

    @property
    def is_cluster(self) -> bool:
        """Whether keys are spread over several servers."""
        return isinstance(self.client, RedisCluster)

    def run(self, keys: list[str], operation: str, *arguments: str, token: str = "") -> Any:
        """Run one operation of `store.lua`, in one round trip, and give its result. Every failure raises `StoreError`.

        With a token, the server does it once, however often the call is sent again, and gives the same result each
        time. Raises `LapsedError` if it is for an instance that has to send a heartbeat first.
        """
        sent = [operation, token, self._remembered_ms, *arguments]
        try:
            return self._request(lambda: self._script(keys, sent))
        except StoreError as error:
            if isinstance(error.__cause__, ResponseError) and str(error.__cause__).startswith("LAPSED "):
                raise LapsedError(str(error)) from error.__cause__
            raise

    def check(self) -> None:
        """Raise `StoreError` if the server is too old, and warn in the log if it may evict live sessions."""
        info: dict[str, Any] = self._request(lambda: dict(self.client.info()))
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

    def close_idle(self) -> None:
        """Close the connections that are not in use; the next call opens another one."""
        if self._is_ours and isinstance(self.client, Redis):
            with contextlib.suppress(RedisError, OSError):
                self.client.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close all connections; calls raise from now on."""
        self._closed = True
        if self._is_ours:
            with contextlib.suppress(RedisError, OSError):
                self.client.close()

    def _request(self, send: Callable[[], T]) -> T:
        if self._closed:
            raise StoreError(f"the session store {self.name} is closed; open it again")
        try:
            return self._send_again(send) if self._is_ours else send()
        except (RedisError, RedisClusterException, OSError) as error:
            # A Sentinel that knows of no server has its client with all its settings in the text.
            reason = str(error).partition(" : <")[0].removesuffix(".")
            raise StoreError(f"the session store {self.name} failed: {reason}{_advice(error)}") from error

    def _send_again(self, send: Callable[[], T]) -> T:
        give_up_at = stopwatch() + self._timeout
        for pause in PAUSES:
            try:
                return send()
            except NotConnectedError:
                if stopwatch() + pause > give_up_at:
                    raise
            sleep(pause)
        return send()


def _advice(error: Exception) -> str:
    for kind, marker, advice in _ADVICE:
        if (isinstance(error, kind) and kind is not ResponseError) or (marker and marker in str(error)):
            return advice
    return ""


# ---- Where a server is, as a URL says it or a client knows it. Passwords are never shown.


def _client_of(url: str, timeout: float) -> tuple[Redis, str]:
    """A client for a URL, and where its server is. Raises `ValueError` for a URL that it cannot read."""
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        # The store sends a call again by itself, with one deadline for all.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "max_connections": 2**31,
    }
    scheme = url.partition("://")[0].lower()
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return _sentinel_client(url, options)
    _port_of(url, None)
    try:
        told: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]  # as redis-py has it
        pool = ConnectionPool(**{"connection_class": Connection, **options, **told, "decode_responses": False})
        # It connects to nothing, and knows what settings there are.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, RedisError) as error:
        # The URL is not shown: it may have a password.
        raise ValueError(f"this is no URL of a Redis server: {error}; give one like {LIKE}") from None
    return Redis.from_pool(pool), _shown(told)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        # The message has what was wrong, and that may be a password.
        raise ValueError(f"this is no URL of a Redis server; give one like {LIKE}") from None


def _port_of(url: str, default: int | None) -> int | None:
    parts = _split(url)
    try:
        return parts.port or default
    except ValueError:
        # What stands in the port's place may be the end of a password: it is not shown.
        raise ValueError(
            "this is no URL of a Redis server: it has no number for a port; write / ? # @ in a password as %2F %3F %23 "
            f"%40, and give a URL like {LIKE}"
        ) from None


def _sentinel_client(url: str, options: dict[str, Any]) -> tuple[Redis, str]:
    parts = _split(url)
    user, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not hosts or not service or not (database or "0").isdigit():
        raise ValueError(f"a Sentinel URL names hosts and a service; give one like {LIKE}")
    sentinels = [
        (_split(f"//{host}").hostname or "localhost", _port_of(f"//{host}", 26379)) for host in hosts.split(",")
    ]
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    unknown = set(query) - {"sentinel_username", "sentinel_password"}
    if unknown:
        raise ValueError(
            f"a Sentinel URL has no setting {short_repr(min(unknown))}; pass a client to RedisStore for more"
        )
    username, _, password = user.partition(":")
    server = {
        **options,
        "db": int(database or 0),
        "username": unquote(username) or None,
        "password": unquote(password) or None,
    }
    # A Sentinel that does not answer leaves time for the others, and for the server.
    share = options["socket_timeout"] / (len(sentinels) + 1)
    credentials = {key.removeprefix("sentinel_"): value for key, value in query.items()}
    asked = {**credentials, **options, "socket_timeout": share, "socket_connect_timeout": share}
    kind = SentinelManagedConnection if parts.scheme == "redis+sentinel" else SentinelManagedSSLConnection
    # As redis-py has them: without types.
    sentinel = Sentinel(sentinels, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]  # see above
    pool = SentinelConnectionPool(service, sentinel, connection_class=kind, **server)  # type: ignore[no-untyped-call]  # see above
    return Redis.from_pool(pool), f"{service} of {hosts}/{server['db']}"


def _place_of(client: Client) -> str:
    if isinstance(client, RedisCluster):
        return "cluster of " + ",".join(
            sorted(node.name for node in client.get_nodes())  # type: ignore[no-untyped-call]  # as redis-py has it
        )
    return _shown(client.connection_pool.connection_kwargs)


def _shown(options: dict[str, Any]) -> str:
    """Where it is, without user and password."""
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{place}/{options.get('db') or 0}"
