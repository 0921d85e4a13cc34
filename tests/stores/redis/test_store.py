"""What is the Redis store's own: how its server is named, names and ids in a cluster, pages, clocks, other stores."""

from __future__ import annotations

import inspect
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

import pytest
import redis

from sessionkit import SessionBusyError, SessionExistsError, StoreError
from sessionkit.stores import Changes, Found, Known, RedisStore, Touch
from sessionkit.stores.redis.cluster import CLUSTER_PARTITIONS, Partitions
from sessionkit.testing.store_contract import NOW, record

from ...helpers.redis_server import RedisServer, redis_cluster, redis_replica, redis_sentinel, redis_server, wait_for
from ...helpers.support import all_at_once

TIMEOUT = 0.2
BOUND = 5.0
"""What a call with that timeout takes at most, on a busy machine."""

PASSWORD = "s3cret/word"  # noqa: S105  of a server that lives for this test


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A real server, for all tests of this file that need one."""
    with redis_server() as found:
        yield found


@pytest.fixture(scope="module")
def cluster() -> Iterator[redis.RedisCluster]:
    """A real cluster of three servers."""
    with redis_cluster() as found:
        yield found


@contextmanager
def opened(where: Any, prefix: str = "", **settings: Any) -> Iterator[RedisStore]:
    """A store under a prefix of its own, if none is given, for the length of the block."""
    with closing(RedisStore(where, prefix or f"test-{secrets.token_hex(4)}", **settings)) as store:
        yield store


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    with opened(server.url) as found:
        yield found


@pytest.fixture
def instance(store: RedisStore) -> str:
    return store.join(10.0, "first")


def base_of(store: RedisStore) -> str:
    """What its keys begin with, on one server."""
    return f"{{{store.prefix}}}"


def found_in(store: RedisStore, session_id: str, instance: str | None = None) -> Found:
    found = store.load(session_id, instance)
    assert found is not None
    return found


# ---- How the server is named


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((None,), "takes a URL such as redis://host:6379/0, .* not None"),
        ((b"redis://localhost",), "takes a URL"),
        (("redis://localhost", 7), "prefix must be a str, not 7"),
        (("redis://localhost", "p", "2"), "timeout must be seconds"),
        (("redis://localhost", "p", 2, None), "term must be seconds"),
    ],
)
def test_arguments_of_a_wrong_type(arguments: tuple[Any, ...], problem: str) -> None:
    """They raise `TypeError` at once, and say what is wanted."""
    with pytest.raises(TypeError, match=problem):
        RedisStore(*arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("sessions.db",), "this is no URL of a Redis server: Redis URL must specify"),
        (("http://localhost",), "this is no URL of a Redis server"),
        (("redis://localhost:port",), "no number for a port"),
        (("redis://localhost:99999",), "no number for a port"),
        (("redis://localhost/0?socket_timeout=soon",), "Invalid value for .socket_timeout"),
        (("redis://localhost/0?color=red",), "color"),
        (("redis://localhost/0?protocol=9",), "protocol"),
        (("redis+sentinel://localhost",), "a Sentinel URL names hosts and a service"),
        (("redis+sentinel:///service",), "a Sentinel URL names hosts and a service"),
        (("redis+sentinel://localhost/service/zero",), "a Sentinel URL names hosts and a service"),
        (("redis+sentinel://localhost:port/service",), "no number for a port"),
        (("redis+sentinel://localhost/service?color=red",), "has no setting 'color'; pass a client"),
        (("redis://localhost", ""), "prefix '' is not allowed; use 1 to 64 printable characters"),
        (("redis://localhost", "p" * 65), "prefix 'ppp.* is not allowed"),
        (("redis://localhost", "a{b}"), "no braces"),
        (("redis://localhost", "a\n"), "is not allowed"),
        (("redis://localhost", "p", 0), "timeout must be above 0"),
        (("redis://localhost", "p", 1, inf), "term must be above 0 seconds and finite"),
    ],
)
def test_arguments_that_are_wrong(arguments: tuple[Any, ...], problem: str) -> None:
    """They raise `ValueError` at once, and say what to do."""
    with pytest.raises(ValueError, match=problem):
        RedisStore(*arguments)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:pa/s3cret@localhost/0",
        "redis://user:s3cret@localhost:port/0",
        "redis://user:s3cret\u2100@localhost/0",
        "redis://user:s3cret@[localhost/0",
        "redis://user:s3cret@localhost/0?color=red",
        "redis+sentinel://user:pa/s3cret@localhost/service",
        "redis+sentinel://user:pa#s3cret@localhost/service",
        "redis+sentinel://user:pa:s3cret@localhost:port/service",
        "redis+sentinel://user:s3cret\u2100@localhost/service",
        "redis+sentinel://user:s3cret@[localhost/service",
        "redis+sentinel://user:s3cret@localhost/service/s",
        "http://user:s3cret@localhost",
    ],
)
def test_a_bad_url_is_not_shown(url: str) -> None:
    """It may have a password, or a part of one where nobody expects it."""
    with pytest.raises(ValueError, match=r"give .*like redis://host:6379/0") as caught:
        RedisStore(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert "'pa'" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "localhost:6379/0"),
        ("redis://user:s3cret@host.example:7000/3", "host.example:7000/3"),
        ("rediss://:s3cret@host.example", "host.example:6379/0"),
        ("redis://host.example?db=4&password=s3cret", "host.example:6379/4"),
        ("unix://user:s3cret@/run/redis.sock?db=2", "/run/redis.sock/2"),
        ("redis+sentinel://u:s3cret@a:1,b,[::1]:3/service", "service of a:1,b,[::1]:3/0"),
        ("rediss+sentinel://:s3cret@a/service/5?sentinel_password=s3cret&sentinel_username=u", "service of a/5"),
    ],
)
def test_a_store_shows_where_it_is_and_no_password(url: str, shown: str) -> None:
    """Its `repr` has the place and the prefix; nothing is asked of the server for that."""
    with opened(url, "shop") as store:
        assert repr(store) == f"RedisStore({shown!r}, prefix='shop')"


def test_sentinels_are_found_at_their_places() -> None:
    """Hosts with and without a port, IPv6 addresses too; the Sentinels have credentials of their own."""
    url = "redis+sentinel://u:p%2Fw@a:1,b,[::1]:3/service/5?sentinel_username=v&sentinel_password=q%2Fr"
    with opened(url) as store:
        # Private, because no server is asked, and so only the client knows.
        pool = store._server.client.connection_pool
        sentinels = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        assert [(each["host"], each["port"]) for each in sentinels] == [("a", 1), ("b", 26379), ("::1", 3)]
        assert {(each["username"], each["password"]) for each in sentinels} == {("v", "q/r")}
        settings = pool.connection_kwargs
        assert (settings["username"], settings["password"], settings["db"]) == ("u", "p/w", 5)


def test_a_server_that_asks_for_a_password() -> None:
    """With the right one the store works; a wrong one or none fails, says what to check, and shows none."""
    with redis_server() as server, server.client() as client:
        client.config_set("requirepass", PASSWORD)
        place = f"127.0.0.1:{server.port}/0"
        with opened(f"redis://:s3cret%2Fword@{place}") as store:
            store.create(record(), store.join(1.0, "first"))
            assert PASSWORD not in repr(store)
        for wrong in (f"redis://:wr0ng@{place}", f"redis://{place}"):
            with opened(wrong) as store:
                began = time.monotonic()
                with pytest.raises(StoreError, match="Check the user and the password in the URL") as caught:
                    store.join(1.0, "first")
                assert time.monotonic() - began < BOUND
                assert "wr0ng" not in str(caught.value)


def test_a_server_at_a_socket_in_the_file_system(tmp_path: Path) -> None:
    """A `unix://` URL; another database there is another store."""
    path = tmp_path / "socket"
    with redis_server("--unixsocket", str(path)):
        with opened(f"unix://{path}", "one") as store, opened(f"unix://{path}?db=1", "one") as elsewhere:
            store.create(record(), store.join(1.0, "first"))
            assert found_in(store, "s-1").record == record()
            assert elsewhere.load("s-1") is None


def test_a_user_who_may_not_do_all_that_is_needed(server: RedisServer) -> None:
    """It fails, and says what the user needs; with all of that, it works."""
    with server.client() as client:
        client.execute_command("ACL SETUSER limited on >pw ~* +@all -evalsha")
        with opened(f"redis://limited:pw@127.0.0.1:{server.port}/0", "one") as store:
            with pytest.raises(StoreError, match="Its user needs EVALSHA, SCRIPT LOAD and INFO"):
                store.join(1.0, "first")
            client.execute_command(
                "ACL SETUSER limited reset on >pw ~{two}* +evalsha +script|load +info +client", *DATA
            )
        with opened(f"redis://limited:pw@127.0.0.1:{server.port}/0", "two") as store:
            store.create(record(name="a"), store.join(1.0, "first"))
            assert store.find("a") == "s-1"
        client.execute_command("ACL DELUSER limited")


DATA = ("+@read", "+@write", "+time")


def test_a_client_of_redis_py(server: RedisServer) -> None:
    """It is used as it is, and not closed; its own timeouts hold."""
    with redis.Redis(port=server.port, db=3, protocol=2) as client:
        with opened(client, "one") as store:
            assert repr(store) == f"RedisStore('localhost:{server.port}/3', prefix='one')"
            instance = store.join(1.0, "first")
            store.create(record(), instance)
            store.leave(instance)
        assert client.exists("{one}:s:s-1")


def test_a_replica_is_no_place_to_write_to(server: RedisServer) -> None:
    """It fails, and says whose address to give."""
    with redis_server("--replicaof", "127.0.0.1", str(server.port)) as replica, opened(replica.url) as store:
        with pytest.raises(StoreError, match="It is a replica: give the address of the primary"):
            store.join(1.0, "first")


def test_keys_that_are_something_else(server: RedisServer, store: RedisStore, instance: str) -> None:
    """Something else under the same prefix is told, and so is a record that is damaged; nothing is changed."""
    base = base_of(store)
    with server.client() as client:
        client.set(f"{base}:s:s-1", "something else")
        with pytest.raises(StoreError, match="Something else has keys with the store's prefix"):
            store.load("s-1")
        client.delete(f"{base}:s:s-1")
        store.create(record(), instance)
        for damage in ({"m": "||x|1|0|1||1|"}, {"d": b"\xff"}):
            client.hset(f"{base}:s:s-2", mapping={**client.hgetall(f"{base}:s:s-1"), **damage})
            with pytest.raises(StoreError, match="the record of session 's-2' is damaged"):
                store.load("s-2")
        client.hset(f"{base}:s:s-2", "m", "nothing of ours")
        with pytest.raises(StoreError):
            store.load("s-2")
        assert found_in(store, "s-1").record == record()


def test_the_defaults() -> None:
    """As the README says: two seconds for a call, and ten for a term."""
    defaults = {name: each.default for name, each in inspect.signature(RedisStore).parameters.items()}
    assert (defaults["timeout"], defaults["term"], defaults["prefix"]) == (2.0, 10.0, "sessionkit")


def test_a_store_of_another_layout(server: RedisServer) -> None:
    """A store that a later version keeps is left alone, by instances and by whoever only looks."""
    with opened(server.url, "later") as store, server.client() as client:
        client.set("{later}:layout", "4")
        with pytest.raises(StoreError, match="has layout '4', and this sessionkit knows '3'; use the sessionkit that"):
            store.join(1.0, "first")
        for look in (lambda: store.page(None, 1), lambda: store.delete_expired(NOW, 1), store.clock_offset):
            with pytest.raises(StoreError, match="has layout '4'"):
                look()
        assert client.keys("{later}*") == [b"{later}:layout"]


def test_prefixes_keep_stores_apart(server: RedisServer) -> None:
    """What has another prefix is another store, also where one begins like the other."""
    with opened(server.url, "a") as one, opened(server.url, "a:b") as other:
        one.create(record(name="a"), one.join(1.0, "first"))
        instance = other.join(1.0, "first")
        assert (other.load("s-1"), other.find("a"), other.page(None, 10)) == (None, None, [])
        assert other.delete_expired(NOW + 1e6, 10) == []
        other.create(record(name="a"), instance)
        assert one.delete({"s-1": None}) == {"s-1"}
        assert other.find("a") == "s-1"


# ---- Sentinels


def test_sentinels_that_know_nothing() -> None:
    """No Sentinel there, or one that does not know the service: the call fails in bounded time, and names no client."""
    with redis_sentinel() as (_, url):
        for where in (url.replace("/sessions/", "/other/"), "redis+sentinel://127.0.0.1:1,localhost:2/sessions"):
            with opened(where, timeout=TIMEOUT) as store:
                began = time.monotonic()
                with pytest.raises(StoreError, match=r"No master found for '(other|sessions)'") as caught:
                    store.load("s-1")
                assert time.monotonic() - began < BOUND
                assert "<" not in str(caught.value)


def test_sentinels_that_do_not_answer() -> None:
    """However many there are, and however often they are tried: the call ends in time, and another one may answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent, redis_sentinel() as (_, url):
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with opened(f"redis+sentinel://{','.join([place] * 20)}/sessions", timeout=BOUND / 4) as store:
            began = time.monotonic()
            with pytest.raises(StoreError):
                store.load("s-1")
            assert time.monotonic() - began < BOUND
        with opened(url.replace("//", f"//{place},")) as store:
            assert store.load("s-1") is None


def test_a_failover() -> None:
    """The store goes on with the server that takes over, with all that it had been told, in the same process."""
    with redis_server() as primary, redis_replica(primary) as replica, redis_sentinel(primary) as (_, url):
        port = int(url.rpartition("/sessions")[0].rpartition(":")[2])
        with opened(url) as store, redis.Redis(port=port, protocol=2) as sentinel, replica.client() as client:
            store.create(record(name="a"), store.join(10.0, "first"))
            key = f"{base_of(store)}:s:s-1"
            wait_for(lambda: client.exists(key) == 1)

            def has_begun() -> bool:
                with suppress(redis.ResponseError):
                    return bool(sentinel.execute_command("SENTINEL FAILOVER sessions"))
                return False

            wait_for(has_begun)

            def goes_on() -> bool:
                with suppress(StoreError):
                    store.touch({"s-1": Touch(NOW + 1)})
                # It cuts its connections when it takes over.
                with suppress(redis.ConnectionError):
                    return b"|1800000001.0|" in client.hget(key, "m")
                return False

            wait_for(goes_on)
            assert found_in(store, "s-1").record == record(name="a", last_active=NOW + 1)


# ---- Names, ids and pages


def test_of_many_that_want_a_name_one_gets_it(store: RedisStore, cluster: redis.RedisCluster) -> None:
    """With different ids, from several threads at once, on one server and on a cluster; the name finds that one."""
    with opened(cluster) as spread:
        for each in (store, spread):
            instance = each.join(10.0, "first")

            def create(session_id: str, each: RedisStore = each, instance: str = instance) -> str:
                try:
                    each.create(record(session_id, name="a"), instance)
                except SessionExistsError as error:
                    return error.session_id or "nobody"
                return ""

            outcomes = all_at_once(*(lambda number=number: create(f"s-{number}") for number in range(6)))
            (page,) = each.page(None, 10)
            assert sorted(outcomes) == ["", *[page.id] * 5]
            assert each.find("a") == page.id


def test_pages_over_all_partitions(cluster: redis.RedisCluster) -> None:
    """In the order of ids, each once, whatever the size of the pages and wherever the records lie."""
    with opened(cluster) as store:
        instance = store.join(10.0, "first")
        ids = sorted(f"s-{number}" for number in range(60))
        for session_id in ids:
            store.create(record(session_id), instance)
        for size in (1, 7, 59, 60, 100):
            seen: list[str] = []
            while page := store.page(seen[-1] if seen else None, size):
                seen += [each.id for each in page]
            assert seen == ids
        store.detach(ids, instance)
        assert store.count_expired(NOW + 61) == 60
        told = []
        while some := store.delete_expired(NOW + 61, 7):
            assert len(some) <= 7
            told += [each.id for each in some]
        assert sorted(told) == ids
        assert store.touch(dict.fromkeys(ids, Touch(NOW))) == set(ids)


def test_expired_records_that_somebody_has_are_passed_over(store: RedisStore, instance: str) -> None:
    """However many there are before those that nobody has, which are found all the same, once each."""
    held, free = ([f"{kind}-{number:03}" for number in range(600)] for kind in ("held", "free"))
    for number, (session_id, other_id) in enumerate(zip(held, free, strict=True)):
        store.create(record(session_id, last_active=NOW + number), instance)
        store.create(record(other_id, last_active=NOW + number + 0.5), instance)
    store.detach(free, instance)
    assert store.count_expired(NOW + 1e6) == 600
    told: list[str] = []
    while some := store.delete_expired(NOW + 1e6, 70):
        told += [each.id for each in some]
    assert sorted(told) == free
    assert store.count_expired(NOW + 1e6) == 0
    assert store.delete(dict.fromkeys(held)) == set(held)


def test_keys_go_by_themselves_a_day_after_the_timeout_that_was_set(
    server: RedisServer, store: RedisStore, instance: str
) -> None:
    """A longer timeout makes the time of the session's key, and of those that all sessions have, longer; a shorter one
    makes that of its own shorter.
    """
    day, base = 86_400, base_of(store)
    store.create(record(name="a"), instance)
    with server.client() as client:
        for timeout, longest in ((1e6, 1e6), (5.0, 1e6)):
            store.touch({"s-1": Touch(NOW, session_timeout=timeout)})
            assert timeout + day - 60 < client.ttl(f"{base}:s:s-1") <= timeout + day
            for key in ("due", "ids", "names", "longest", "layout"):
                assert client.ttl(f"{base}:{key}") > longest + day - 60


def test_a_name_is_kept_for_as_long_as_the_timeout_that_was_set(cluster: redis.RedisCluster) -> None:
    """Also on a cluster, where it is in another slot than its session; however the timeout is written."""
    with opened(cluster) as store:
        instance = store.join(10.0, "first")
        ways: list[Callable[[str, Touch], object]] = [
            lambda session_id, touch: store.touch({session_id: touch}),
            lambda session_id, touch: store.save(session_id, Changes(1, "{}", touch)),
        ]
        for number, write in enumerate(ways):
            store.create(record(f"s-{number}", name=f"a-{number}"), instance)
            store.create(record(f"nameless-{number}"), instance)
            # Where a name is, no public call says.
            key = f"{store._partitions.of(f'a-{number}')}:names"
            for session_id in (f"s-{number}", f"nameless-{number}"):
                write(session_id, Touch(NOW, session_timeout=1e6))
            assert cluster.ttl(key) > 1e6
        store.touch({"gone": Touch(NOW, session_timeout=1e6)})


def test_what_has_gone_by_itself_is_no_trouble(server: RedisServer, store: RedisStore, instance: str) -> None:
    """A key that the server dropped leaves nothing behind that is in the way, or that anybody is told of."""
    base = base_of(store)
    for session_id in ("s-1", "s-2"):
        store.create(record(session_id, name=session_id), instance)
    store.detach(["s-1", "s-2"], instance)
    with server.client() as client:
        client.delete(f"{base}:s:s-1")
        assert store.find("s-1") is None
        assert [each.id for each in store.page(None, 1)] == ["s-2"]
        assert store.delete_expired(NOW + 61, 10) == [record("s-2", name="s-2")]
        assert client.zcard(f"{base}:due") == client.zcard(f"{base}:ids") == 0
    store.create(record("s-3", name="s-1"), instance)
    assert store.find("s-1") == "s-3"


def test_sessions_of_a_cluster_are_spread(cluster: redis.RedisCluster) -> None:
    """Every server has about as many partitions as the others."""
    with opened(cluster) as store:
        slots = sorted(cluster.keyslot(base) for base in Partitions(store.prefix, CLUSTER_PARTITIONS).bases)
        assert [sum(low <= slot < low + 4096 for slot in slots) for low in range(0, 16384, 4096)] == [16] * 4
        assert repr(store).startswith("RedisStore('cluster of 127.0.0.1:")


# ---- What takes several steps in a cluster, and is interrupted


FEW = 4
"""Partitions, so that there are few steps."""


class Interrupted:
    """A store whose connection breaks after so many steps, before or after the last one was done, and stays so."""

    def __init__(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
        # Private, here and below: it is between the steps of one call that something happens.
        self._run = store._server.run
        self.left: int | None = None
        self.is_done = False
        self.was_interrupted = False
        monkeypatch.setattr(store._server, "run", self)

    def __call__(self, keys: list[str], operation: str, *arguments: str, **options: Any) -> Any:
        if self.left is None:
            return self._run(keys, operation, *arguments, **options)
        self.left -= 1
        if self.left > 0:
            return self._run(keys, operation, *arguments, **options)
        if self.left == 0 and self.is_done:
            self._run(keys, operation, *arguments, **options)
        self.was_interrupted = True
        raise StoreError("the connection is broken")

    def at_each_step(self, begin: Callable[[], object], act: Callable[[], object], check: Callable[[], object]) -> int:
        """Begin anew, and act and check with an interruption at each step, until none is left; how many there are."""
        steps = 0
        while True:
            steps += 1
            for self.is_done in (False, True):
                begin()
                self.left, self.was_interrupted = steps, False
                if self._acts(act):
                    self.left = None
                    return steps - 1
                self.left = None
                check()

    def _acts(self, act: Callable[[], object]) -> bool:
        with suppress(StoreError):
            act()
            # It may do without the last steps.
            return not self.was_interrupted
        return False


@pytest.fixture
def spread(cluster: redis.RedisCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisStore]:
    """A store on a cluster, with few partitions, so that there are few steps."""
    monkeypatch.setattr("sessionkit.stores.redis.store.CLUSTER_PARTITIONS", FEW)
    with opened(cluster, term=3600) as found:
        yield found


@pytest.fixture
def other(cluster: redis.RedisCluster, spread: RedisStore) -> Iterator[RedisStore]:
    """The same store, as another process has it."""
    with opened(cluster, spread.prefix, term=3600) as found:
        yield found


def test_a_renaming_that_is_interrupted_is_undone(
    spread: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever step: who asks by the old id has the session, its name and its lease; the new id is absent."""
    instance, second = spread.join(10.0, "first"), other.join(5.0, "second")

    def begin() -> None:
        other.delete({"s-1": None, "s-2": None})
        spread.create(record(name="a"), instance)
        spread.attach("s-1", instance, lease=True)

    def check() -> None:
        assert found_in(spread, "s-1").record._replace(version=1) == record(name="a")
        assert other.load("s-2") is None
        assert other.find("a") == "s-1"
        assert [each.id for each in other.page(None, 10)] == ["s-1"]
        with pytest.raises(SessionBusyError):
            other.attach("s-1", second, lease=True)
        spread.release("s-1", instance)
        assert other.attach("s-1", second, lease=True) is not None

    steps = Interrupted(spread, monkeypatch).at_each_step(begin, lambda: spread.rename("s-1", "s-2", instance), check)
    assert steps == 4
    assert spread.load("s-1") is None
    assert found_in(other, "s-2") == Found(record("s-2", name="a"), inf, ("first",))
    assert other.find("a") == "s-2"


def test_an_undoing_that_is_interrupted_is_done_again(
    spread: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renaming that was done to the end, and not heard of, is undone at last, whatever becomes of the undoing."""
    instance = spread.join(10.0, "first")
    interrupted = Interrupted(spread, monkeypatch)

    def begin() -> None:
        other.delete({"s-1": None, "s-2": None})
        spread.load("s-1")
        spread.create(record(name="a"), instance)
        interrupted.left, interrupted.is_done = 4, True
        with pytest.raises(StoreError):
            spread.rename("s-1", "s-2", instance)
        interrupted.left = None
        assert other.find("a") == "s-2"

    def check() -> None:
        assert found_in(spread, "s-1").record._replace(version=1) == record(name="a")
        assert other.load("s-2") is None
        assert other.find("a") == "s-1"
        assert [each.id for each in other.page(None, 10)] == ["s-1"]

    assert interrupted.at_each_step(begin, lambda: spread.load("s-1"), check) > 4
    check()


def test_a_renaming_of_a_session_without_a_name_is_undone(
    spread: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no name to take care of, the same holds."""
    instance = spread.join(10.0, "first")

    def begin() -> None:
        other.delete({"s-1": None, "s-2": None})
        spread.create(record(), instance)

    def check() -> None:
        assert found_in(spread, "s-1").record._replace(version=1) == record()
        assert [each.id for each in other.page(None, 10)] == ["s-1"]

    steps = Interrupted(spread, monkeypatch).at_each_step(begin, lambda: spread.rename("s-1", "s-2", instance), check)
    assert steps == 3
    assert found_in(other, "s-2").record == record("s-2")


def test_a_renaming_and_somebody_who_saves_meanwhile(
    spread: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved while a session moves moves with it; and it is undone with that, if it is interrupted then."""
    instance = spread.join(10.0, "first")
    interrupted = Interrupted(spread, monkeypatch)
    run, saved = spread._server.run, []

    def run_beside_a_save(keys: list[str], operation: str, *arguments: str, **options: Any) -> Any:
        if operation == "give_up" and not saved:
            saved.append(other.save("s-1", Changes(1, '{"by":"other"}', Touch(NOW + 1))))
        return run(keys, operation, *arguments, **options)

    def begin() -> None:
        other.delete({"s-1": None, "s-2": None})
        spread.load("s-1")
        saved.clear()
        spread.create(record(name="a"), instance)

    def check() -> None:
        found = found_in(spread, "s-1").record
        assert (found.data, found.name) == ('{"by":"other"}' if saved else '{"lang":"en"}', "a")
        assert [each.id for each in other.page(None, 10)] == ["s-1"]
        assert other.find("a") == "s-1"

    monkeypatch.setattr(spread._server, "run", run_beside_a_save)
    assert interrupted.at_each_step(begin, lambda: spread.rename("s-1", "s-2", instance), check) == 9
    assert other.load("s-1") is None
    assert found_in(other, "s-2").record.data == '{"by":"other"}'


def test_a_renaming_and_somebody_who_deletes_meanwhile(
    spread: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is deleted while it moves is gone, by both ids."""
    instance = spread.join(10.0, "first")
    run = spread._server.run

    def run_beside_a_deletion(keys: list[str], operation: str, *arguments: str, **options: Any) -> Any:
        if operation == "give_up":
            assert other.delete({"s-1": None}) == {"s-1"}
        return run(keys, operation, *arguments, **options)

    spread.create(record(name="a"), instance)
    monkeypatch.setattr(spread._server, "run", run_beside_a_deletion)
    assert not spread.rename("s-1", "s-2", instance)
    assert other.page(None, 10) == []
    assert other.find("a") is None


def test_a_creation_that_is_interrupted_is_undone(
    spread: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever step: the same can be created again, by the same id or name, and the name finds it."""
    instance = spread.join(10.0, "first")

    def begin() -> None:
        other.delete({"s-1": None, "s-2": None})

    def check(session_id: str) -> None:
        spread.create(record(session_id, name="a"), instance)
        assert other.find("a") == session_id
        assert [each.id for each in other.page(None, 10)] == [session_id]

    for session_id in ("s-1", "s-2"):
        steps = Interrupted(spread, monkeypatch).at_each_step(
            begin,
            lambda: spread.create(record(name="a"), instance),
            lambda session_id=session_id: check(session_id),
        )
        assert steps == 3
        monkeypatch.undo()


def test_a_deletion_that_is_interrupted(spread: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whichever step, the session is gone with the next try at last, and its name is free."""
    instance = spread.join(10.0, "first")
    for delete in (
        lambda: spread.delete({"s-1": None}),
        lambda: spread.delete({"s-1": Known(NOW)}, instance, NOW),
        lambda: spread.detach(["s-1"], instance) or spread.delete_expired(NOW + 61, 10),
    ):

        def begin() -> None:
            other.delete({"s-1": None, "s-2": None})
            spread.delete_expired(NOW + 61, 10)
            spread.create(record(name="a"), instance)

        def check(delete: Callable[[], object] = delete) -> None:
            delete()
            assert other.find("a") is None
            spread.create(record("s-2", name="a"), instance)
            assert other.find("a") == "s-2"

        Interrupted(spread, monkeypatch).at_each_step(begin, delete, check)
        assert other.find("a") is None
        monkeypatch.undo()


def test_a_name_whose_creation_takes_too_long(
    cluster: redis.RedisCluster, spread: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is kept for half a minute for who creates a session; who takes longer has created nothing."""
    instance, second = spread.join(10.0, "first"), other.join(5.0, "second")
    run = spread._server.run

    def run_slowly(keys: list[str], operation: str, *arguments: str, **options: Any) -> Any:
        if operation == "point":
            for key in keys[1:]:
                cluster.hset(key, "a", "s-1|1.0")
            other.create(record("s-2", name="a"), second)
        return run(keys, operation, *arguments, **options)

    monkeypatch.setattr(spread._server, "run", run_slowly)
    # As if it had asked before.
    monkeypatch.setattr(other._cluster, "_name_of", lambda _: None)
    with pytest.raises(StoreError, match="took longer than 30 seconds, and its name 'a' went to another one"):
        spread.create(record(name="a"), instance)
    monkeypatch.undo()
    assert spread.load("s-1") is None
    assert other.find("a") == "s-2"


def test_a_name_that_is_being_taken_is_not_free(spread: RedisStore, other: RedisStore) -> None:
    """While one session is created, another one cannot have its name, nor is the first found by it."""
    instance, second = spread.join(10.0, "first"), other.join(5.0, "second")
    # Private, because it lasts for a moment only.
    with spread._cluster.named(record(name="a")):
        assert other.find("a") is None
        with pytest.raises(SessionExistsError) as caught:
            other.create(record("s-2", name="a"), second)
        assert caught.value.session_id == "s-1"
        spread._ask(spread._partitions.of("s-1"), "undo_create", "s-1", instance, "nothing")
    assert other.find("a") is None


def test_a_name_that_was_lost_is_that_of_its_session(
    cluster: redis.RedisCluster, spread: RedisStore, other: RedisStore
) -> None:
    """Whoever wants to create the same session again restores the name by that, after a while; nobody else gets it."""
    instance, second = spread.join(10.0, "first"), other.join(5.0, "second")
    spread.create(record(name="a"), instance)
    names = f"{Partitions(spread.prefix, FEW).of('a')}:names"
    cluster.hdel(names, "a")
    assert spread.find("a") is None
    with pytest.raises(SessionExistsError) as caught:
        other.create(record(name="a"), second)
    assert caught.value.session_id == "s-1"
    # As if half a minute had passed.
    cluster.hset(names, "a", "s-1|1.0")
    assert spread.find("a") == "s-1"
    with pytest.raises(SessionExistsError):
        other.create(record("s-2", name="a"), second)


# ---- Clocks


def test_the_clock_of_the_server_is_the_one_that_counts(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is wrong knows by how much once it has joined, and clocks that agree are not corrected."""
    assert store.clock_offset() == 0.0
    store.join(1.0, "first")
    assert store.clock_offset() == 0.0
    for seconds in (100.0, -100.0):
        # Private, because a replaced `time.time` is taken for the server's, as in any test.
        monkeypatch.setattr(store._clock, "host_clock", lambda seconds=seconds: time.time() + seconds)
        assert store.clock_offset() == pytest.approx(-seconds, abs=1.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert store.clock_offset() == 0.0
