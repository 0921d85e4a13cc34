"""Addresses: where a Redis server is, as a URL says it or a client knows it. Passwords are never shown."""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis import Redis, RedisCluster, RedisError
from redis.backoff import ExponentialBackoff
from redis.connection import Connection, ConnectionPool, parse_url
from redis.exceptions import ConnectionError as NotConnectedError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from ...util.validation import shown
from .deadline import Deadline, timed

Client = Redis | RedisCluster

RETRIES = 3
"""How often a call is sent again whose connection broke. The server notes what it has done, and does nothing twice."""

LIKE = "redis://host:6379/0, rediss://… with TLS, unix:///path, or redis+sentinel://host:26379,host:26379/service/0"
"""What addresses look like."""


def client_of(url: str, timeout: float, deadline: Deadline) -> tuple[Redis, str]:
    """A client for a URL, and where that is. Raises `ValueError` for one that it cannot read."""
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
        pool = ConnectionPool(timed(kind, deadline), **{**options, **told, "decode_responses": False})
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
        known.connection_pool.connection_class = timed(Connection, deadline)
    pool = SentinelConnectionPool(service, sentinel, connection_class=timed(kind, deadline), **server)  # type: ignore[no-untyped-call]  # see above
    return Redis.from_pool(pool), f"{service} of {hosts}/{server['db']}"


def place_of(client: Client) -> str:
    """Where the server of a client is."""
    if isinstance(client, RedisCluster):
        return "cluster of " + ",".join(
            sorted(node.name for node in client.get_nodes())  # type: ignore[no-untyped-call]  # as redis-py has it
        )
    return _shown(client.connection_pool.connection_kwargs)


def _shown(options: dict[str, Any]) -> str:
    """Where it is, without user and password."""
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{place}/{options.get('db') or 0}"
