"""The Redis store: the whole store contract on a real server, and what is its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import redis

from sessionkit.stores import RedisStore, Store
from sessionkit.testing import StoreContract

from ...helpers.redis_server import redis_cluster, redis_sentinel, shared_server


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real server, for all tests of this file."""
    with shared_server() as found:
        yield found


class TestRedisStore(StoreContract):
    """The store contract."""

    @pytest.fixture(autouse=True)
    def _server(self, url: str) -> None:
        self.url = url

    def new_store(self) -> Store:
        """On the one server, under a prefix of its own."""
        return RedisStore(self.url, prefix=f"test-{secrets.token_hex(4)}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[redis.RedisCluster]:
    """A real cluster of three servers."""
    with redis_cluster() as found:
        yield found


class TestRedisStoreOnACluster(StoreContract):
    """The store contract, on a cluster of three servers."""

    @pytest.fixture(autouse=True)
    def _cluster(self, cluster: redis.RedisCluster) -> None:
        self.cluster = cluster

    def new_store(self) -> Store:
        """On the one cluster, under a prefix of its own."""
        return RedisStore(self.cluster, prefix=f"test-{secrets.token_hex(4)}")


@pytest.fixture(scope="module")
def sentinel_url() -> Iterator[str]:
    """A real Sentinel, and the server that it watches."""
    with redis_sentinel() as (_, found):
        yield found


class TestRedisStoreBehindASentinel(StoreContract):
    """The store contract, on a server that a Sentinel names."""

    @pytest.fixture(autouse=True)
    def _sentinel(self, sentinel_url: str) -> None:
        self.url = sentinel_url

    def new_store(self) -> Store:
        """On the one server, under a prefix of its own."""
        return RedisStore(self.url, prefix=f"test-{secrets.token_hex(4)}")
