"""A Redis server: how it is reached, within what time, and what its failures are called."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis import Redis, RedisCluster, RedisError
from redis.backoff import ExponentialBackoff
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

from ..checks import shown
from ..clock import stopwatch
from ..errors import StoreError

T = TypeVar("T")

Client = Redis | RedisCluster

RETRIES = 3
"""How often a call is sent again whose connection broke. The server notes what it has done, and does nothing twice."""

CLIENT_PATIENCE_SECONDS = 60.0
"""For how long a client that was passed in may repeat a call."""

LIKE = "redis://host:6379/0, rediss://… with TLS, unix:///path, or redis+sentinel://host:26379,host:26379/service/0"

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
            self.client, self.name = _client_of(where, timeout, self._deadline)
        elif isinstance(where, Redis | RedisCluster):
            self.client, self.name = where, _name_of(where)
        else:
            raise TypeError(
                f"RedisStore takes a URL such as {LIKE}, or a redis.Redis or redis.RedisCluster, not {shown(where)}"
            )

    @property
    def gives_up_at(self) -> float:
        """Until when the call under way may take, as a reading of `stopwatch`; infinity if its client says."""
        return self._deadline.at if self._is_ours else inf

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

    def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self.call(lambda: dict(self.client.info()))

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


class Deadline(threading.local):
    """Until when the call that this thread is in may take."""

    at = inf

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """For the length of the block: so many seconds, or until the deadline that there is, if that comes first."""
        before, self.at = self.at, min(self.at, stopwatch() + seconds)
        try:
            yield
        finally:
            self.at = before

    def left(self, most: float | None) -> float | None:
        """How long to wait for a socket now: `most`, or what is left. Raises `TimeoutError` if that is nothing."""
        if self.at == inf:
            return most
        left = self.at - stopwatch()
        if left <= 0:
            raise TimeoutError("timed out")
        return left if most is None else min(most, left)


class _TimedSocket:
    """A socket whose waits all end at a deadline: a server that sends a byte now and then may not hold up anybody."""

    def __init__(self, inner: socket.socket, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline
        self._most = inner.gettimeout()

    def settimeout(self, value: float | None) -> None:
        self._most = value

    def recv(self, size: int) -> bytes:
        self._prepare()
        return self._inner.recv(size)

    def recv_into(self, buffer: bytearray, *arguments: int) -> int:
        self._prepare()
        return self._inner.recv_into(buffer, *arguments)

    def sendall(self, data: bytes) -> None:
        self._prepare()
        self._inner.sendall(data)

    def _prepare(self) -> None:
        # Without waiting, there is nothing to end.
        self._inner.settimeout(self._most if self._most == 0 else self._deadline.left(self._most))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _timed(kind: type[Connection], deadline: Deadline) -> type[Connection]:
    """A kind of connection that keeps to the deadline."""

    class Timed(kind):  # type: ignore[valid-type, misc]  # which kind it is, the URL says
        def _connect(self) -> Any:
            settings: Any = self
            most = settings.socket_connect_timeout
            settings.socket_connect_timeout = deadline.left(most)
            try:
                return _TimedSocket(super()._connect(), deadline)
            finally:
                # The next time may have longer.
                settings.socket_connect_timeout = most

    return Timed


def _client_of(url: str, timeout: float, deadline: Deadline) -> tuple[Redis, str]:
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(ExponentialBackoff(cap=0.1, base=0.01), RETRIES, (NotConnectedError,)),
        # Without that, redis-py 5 does not send again what it had sent.
        "retry_on_error": [NotConnectedError],
        "protocol": 2,
        "max_connections": 2**31,
    }
    scheme = url.partition("://")[0].lower()
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return _sentinel_client(url, options, deadline)
    _port_of(url, None)
    try:
        told: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]  # as redis-py has it
        kind = told.pop("connection_class", Connection)
        pool = ConnectionPool(_timed(kind, deadline), **{**options, **told, "decode_responses": False})
        # It connects to nothing, and knows what settings there are.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, RedisError) as error:
        # The URL is not shown: it may have a password.
        raise ValueError(f"this is no URL of a Redis server: {error}; give one like {LIKE}") from None
    return Redis.from_pool(pool), _shown_place(told)


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


def _sentinel_client(url: str, options: dict[str, Any], deadline: Deadline) -> tuple[Redis, str]:
    parts = _split(url)
    user, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not hosts or not service or not (database or "0").isdigit():
        raise ValueError(f"a Sentinel URL names hosts and a service; give one like {LIKE}")
    sentinels = [
        (_split(f"//{host}").hostname or "localhost", _port_of(f"//{host}", 26379)) for host in hosts.split(",")
    ]
    username, _, password = user.partition(":")
    server = {
        **options,
        "db": int(database or 0),
        "username": unquote(username) or None,
        "password": unquote(password) or None,
    }
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    # What the Sentinels themselves ask for.
    asked = {key.removeprefix("sentinel_"): value for key, value in query.items() if key.startswith("sentinel_")}
    unknown = set(query) - {"sentinel_username", "sentinel_password"}
    if unknown:
        raise ValueError(f"a Sentinel URL has no setting {shown(min(unknown))}; pass a client to RedisStore for more")
    kind = SentinelManagedConnection if parts.scheme == "redis+sentinel" else SentinelManagedSSLConnection
    # One that does not answer leaves time for the others, and for the server.
    share = options["socket_timeout"] / (len(sentinels) + 1)
    asked |= {**options, "socket_timeout": share, "socket_connect_timeout": share}
    # As redis-py has them: without types.
    sentinel = Sentinel(sentinels, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]  # see above
    for known in sentinel.sentinels:
        known.connection_pool.connection_class = _timed(Connection, deadline)
    pool = SentinelConnectionPool(service, sentinel, connection_class=_timed(kind, deadline), **server)  # type: ignore[no-untyped-call]  # see above
    return Redis.from_pool(pool), f"{service} of {hosts}/{server['db']}"


def _name_of(client: Client) -> str:
    if isinstance(client, RedisCluster):
        return "cluster of " + ",".join(
            sorted(node.name for node in client.get_nodes())  # type: ignore[no-untyped-call]  # as redis-py has it
        )
    return _shown_place(client.connection_pool.connection_kwargs)


def _shown_place(options: dict[str, Any]) -> str:
    """Where it is, without user and password."""
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{place}/{options.get('db') or 0}"


def _advice(error: Exception) -> str:
    for kind, marker, advice in _ADVICE:
        if (isinstance(error, kind) and kind is not ResponseError) or (marker and marker in str(error)):
            return advice
    return ""
