"""How often the Redis store asks its server: counted where commands are sent."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from sessionkit import CoordinatorConfig, SessionCoordinator
from sessionkit.stores import Changes, Known, RedisStore, Touch
from sessionkit.testing.store_contract import NOW, record

from ...helpers.redis_server import shared_server


class CountingConnection(redis.Connection):
    """A connection that counts what is sent, each of which is one round trip."""

    sent = 0

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Count, and send."""
        CountingConnection.sent += 1
        super().send_packed_command(command, check_health)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real server."""
    with shared_server() as found:
        yield found


@pytest.fixture
def store(url: str) -> Iterator[RedisStore]:
    """A store that counts. Its terms are so long that nothing is renewed meanwhile."""
    options = redis.connection.parse_url(url)
    pool = redis.ConnectionPool(CountingConnection, protocol=2, **options)
    with redis.Redis(connection_pool=pool) as client:
        store = RedisStore(client, prefix=f"test-{secrets.token_hex(4)}", term=3600)
        yield store
        store.close()


def trips(call: Callable[[], object]) -> int:
    """How many round trips a call takes."""
    before = CountingConnection.sent
    call()
    return CountingConnection.sent - before


def test_each_operation_of_the_store_is_one_round_trip(store: RedisStore) -> None:
    """Whatever it is about, and however many sessions; the first one apart, which brings the script to the server."""
    instance = store.join(10.0, "instance")
    store.load("s-0")
    ids = [f"s-{number}" for number in range(100)]
    for session_id in ids:
        assert trips(lambda: store.create(record(session_id, name=session_id), instance)) == 1  # noqa: B023  called at once
    for call in (
        lambda: store.load("s-0"),
        lambda: store.load("nobody"),
        lambda: store.find("s-0"),
        lambda: store.attach("s-0", instance),
        lambda: store.attach("s-0", instance, lease=True),
        lambda: store.save("s-0", Changes(1, "{}", Touch(NOW))),
        lambda: store.release("s-0", instance, Changes(2, '{"a":1}', Touch(NOW))),
        lambda: store.release("s-0", instance),
        lambda: store.rename("s-0", "other", instance),
        lambda: store.set_write_interval(instance, 5.0),
        lambda: store.touch({session_id: Touch(NOW) for session_id in ids}),
        lambda: store.page(None, 100),
        lambda: store.detach(ids, instance),
        lambda: store.count_expired(NOW + 61),
        lambda: store.delete(dict.fromkeys(ids[:50], Known(NOW)), instance, NOW),
        lambda: store.delete_expired(NOW + 61, 100),
        lambda: store.delete(dict.fromkeys(ids)),
        lambda: store.leave(instance),
    ):
        assert trips(call) == 1, call


def check_out(
    coordinator: SessionCoordinator[Any], session_id: str, change: Callable[[Any], object]
) -> tuple[int, int]:
    """How many round trips it takes to check a session out, change it, and give it back."""
    checkout = coordinator.checkout(session_id)
    taken = trips(lambda: change(checkout.__enter__()))
    return taken, trips(lambda: checkout.__exit__(None, None, None))


def test_a_checkout_takes_at_most_two_round_trips_and_giving_it_back_one(store: RedisStore) -> None:
    """A checkout takes at most two round trips, and giving it back one, with what changed. (One more with
    `affinity=True`, and four in all where it moves a resource here from another process.)
    """
    config = CoordinatorConfig(on_full="passivate", max_active_sessions=1)
    settings: dict[str, Any] = {"store": store, "resource_factory": lambda session: object()}
    with SessionCoordinator[Any](config, **settings) as here:
        first = here.create_session(data={"count": 0}).id
        changes: list[Callable[[Any], object]] = [
            lambda session: None,
            lambda session: session.data.update(count=1),
            lambda session: session.record_message(),
            lambda session: session.set_timeout(5),
        ]
        assert [check_out(here, first, change) for change in changes] == [(1, 1)] * 4
        second = here.create_session().id
        assert [session.id for session in here.list_sessions()] == [second]
        # To make room, the other one moves out, which is not part of this.
        here.close_session(second)
        assert check_out(here, first, lambda session: session.data.update(count=2)) == (2, 1)
        with SessionCoordinator[Any](config, **settings) as there:
            check_out(there, first, lambda session: session.data.update(count=3))
            assert check_out(here, first, lambda session: session.data.update(count=4)) == (4, 1)
        assert here.get_session(first).data == {"count": 4}
    with SessionCoordinator[Any](replace(config, affinity=True), **settings) as alone:
        # Its joining is not part of this either.
        alone.create_session().touch()
        alone.cleanup_inactive_sessions()
        alone.close_session(alone.list_sessions()[0].id)
        assert check_out(alone, first, lambda session: session.data.update(count=5)) == (3, 1)


def test_closing_a_session_is_one_round_trip(store: RedisStore) -> None:
    """Also one that was touched, or is checked out: its record goes in any case, and with it the activity and the
    lease."""
    with SessionCoordinator[Any](store=store) as coordinator:
        touched, held = coordinator.create_session(), coordinator.create_session()
        touched.touch()
        assert trips(lambda: coordinator.close_session(touched.id)) == 1
        checkout = coordinator.checkout(held.id)
        checkout.__enter__()
        assert trips(checkout.close) == 1
        assert [store.load(session.id) for session in (touched, held)] == [None, None]
        assert trips(coordinator.cleanup_inactive_sessions) == 1


def test_reading_a_session_is_one_round_trip(store: RedisStore) -> None:
    """Whether or not it is in memory, and also while it is checked out."""
    with SessionCoordinator[Any](store=store) as here, SessionCoordinator[Any](store=store) as there:
        session = here.create_session(data={"count": 1})
        # Its joining is not part of this.
        there.cleanup_inactive_sessions()
        with here.checkout(session.id):
            for reader in (here, there):
                assert trips(lambda reader=reader: reader.read_session(session.id)) == 1


def test_nothing_lists_by_keys(store: RedisStore, url: str) -> None:
    """Nothing lists the server's keys. `KEYS` and `SCAN` look at whatever else the server has."""
    with redis.Redis.from_url(url, protocol=2) as client:
        client.config_resetstat()
        test_each_operation_of_the_store_is_one_round_trip(store)
        used = set(client.info("commandstats"))
    assert {"cmdstat_evalsha", "cmdstat_zrangebylex"} <= used
    assert not {"cmdstat_keys", "cmdstat_scan"} & used
