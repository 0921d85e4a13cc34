"""The Redis store, and a coordinator on it, when the server or the network fails: real servers, and a proxy."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from math import inf
from typing import Any

import pytest

from sessionkit import (
    CoordinatorConfig,
    RemovalCause,
    SessionBusyError,
    SessionConflictError,
    SessionCoordinator,
    SessionExistsError,
    SessionExpiredError,
    SessionNotFoundError,
    StoreError,
)
from sessionkit.stores import Changes, Found, Known, RedisStore, Touch
from sessionkit.stores.redis.liveness import THREAD_NAME
from sessionkit.testing.store_contract import NOW, record

from ...helpers.proxy import Mode, Proxy, proxy
from ...helpers.redis_server import Keys, RedisServer, redis_server, wait_for
from ...helpers.support import WAIT, Closings, in_child

CONFIG = CoordinatorConfig(session_timeout=60, cleanup_interval=10)

LONG = 3600.0
"""A term that no test outlives, so that nothing is sent that a test does not send."""

TIMEOUT = 1.0
"""A store's timeout, where a test has to see it pass; all else must take less, on a busy machine too."""

BOUND = 5.0
"""What a call takes at most whose timeout has passed, on a busy machine."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A real server, for those tests of this file that leave it as it was."""
    with redis_server() as found:
        yield found


@pytest.fixture
def line(server: RedisServer) -> Iterator[Proxy]:
    """The line to that server, which can be cut."""
    with proxy(server.port) as found:
        yield found


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that tries again does so at once."""
    monkeypatch.setattr("sessionkit.stores.redis.client.sleep", lambda _: None)


class OpenedStore(RedisStore):
    """A store whose keys can be seen, and changed, past it."""

    def __init__(self, url: str, prefix: str, **settings: Any) -> None:
        super().__init__(url, prefix, **settings)
        self.keys = Keys(url, prefix)


Operation = Callable[[OpenedStore, str, str], Iterator[None]]


@contextmanager
def opened(url: str, prefix: str = "", **settings: Any) -> Iterator[OpenedStore]:
    """A store under a prefix of its own, if none is given, for the length of the block."""
    store = OpenedStore(url, prefix or f"test-{secrets.token_hex(4)}", **{"term": LONG, **settings})
    try:
        yield store
    finally:
        store.close()


def found_in(store: OpenedStore, session_id: str, instance: str | None = None) -> Found:
    found = store.load(session_id, instance)
    assert found is not None
    return found


# ---- What each operation does, exactly once: before the first yield what must be there, then the call, then the check


def _join(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    yield
    joined = store.join(25.0, "second")
    yield
    store.attach(session_id, joined)
    assert found_in(store, session_id) == Found(record(session_id), 25.0, ("first", "second"))
    store.leave(joined)


def _promise(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    second = store.join(25.0, "second")
    store.create(record(session_id), second)
    yield
    store.set_write_interval(second, 35.0)
    yield
    assert found_in(store, session_id).lag == 35.0
    store.leave(second)


def _leave(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    second = store.join(25.0, "second")
    store.create(record(session_id), second)
    store.attach(session_id, second, lease=True)
    yield
    store.leave(second)
    yield
    assert found_in(store, session_id) == Found(record(session_id), 0.0)
    assert store.attach(session_id, instance, lease=True) == Found(record(session_id), 0.0)


def _create(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    yield
    store.create(record(session_id, name=session_id), instance)
    yield
    assert found_in(store, session_id) == Found(record(session_id, name=session_id), 10.0, ("first",))
    assert store.find(session_id) == session_id


def _load(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    yield
    found = store.load(session_id, instance)
    yield
    assert found == Found(record(session_id), 0.0)


def _find(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id, name=session_id), instance)
    yield
    found = store.find(session_id)
    yield
    assert found == session_id


def _attach(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    store.detach([session_id], instance)
    yield
    found = store.attach(session_id, instance)
    yield
    assert found == Found(record(session_id), 0.0)
    assert found_in(store, session_id).elsewhere == ("first",)


def _detach(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    yield
    store.detach([session_id], instance)
    yield
    assert found_in(store, session_id) == Found(record(session_id), 0.0)


def _lease(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    yield
    found = store.attach(session_id, instance, lease=True)
    yield
    assert found == Found(record(session_id), 0.0)
    assert found_in(store, session_id) == Found(record(session_id), inf, ("first",))


def _lease_of_the_dead(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    second = store.join(25.0, "second")
    store.create(record(session_id), second)
    store.attach(session_id, second, lease=True)
    store.keys.let_the_term_run_out(second)
    yield
    found = store.attach(session_id, instance, lease=True)
    yield
    assert found == Found(record(session_id, version=2), 0.0)
    assert found_in(store, session_id) == Found(record(session_id, version=2), inf, ("first",))
    store.leave(second)


def _lease_that_is_taken(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    second = store.join(25.0, "second")
    store.create(record(session_id), instance)
    store.attach(session_id, second, lease=True)
    yield
    with pytest.raises(SessionBusyError):
        store.attach(session_id, instance, lease=True)
    yield
    assert found_in(store, session_id, instance).elsewhere == ("second",)
    store.leave(second)


def _release(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    store.attach(session_id, instance, lease=True)
    yield
    store.release(session_id, instance)
    yield
    assert found_in(store, session_id) == Found(record(session_id), 10.0, ("first",))


def _save(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    yield
    version = store.save(session_id, Changes(1, '{"a":1}', Touch(NOW + 1, 3)))
    yield
    changed = record(session_id, data='{"a":1}', last_active=NOW + 1, message_count=3, version=2)
    assert (version, found_in(store, session_id).record) == (2, changed)


def _give_back(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    store.attach(session_id, instance, lease=True)
    yield
    version = store.release(session_id, instance, Changes(1, '{"a":1}', Touch(NOW + 1, 3)))
    yield
    changed = record(session_id, data='{"a":1}', last_active=NOW + 1, message_count=3, version=2)
    assert (version, found_in(store, session_id)) == (2, Found(changed, 10.0, ("first",)))


def _give_back_unchanged(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    store.attach(session_id, instance, lease=True)
    yield
    version = store.release(session_id, instance, Changes(1, None, Touch(NOW + 1, 3)))
    yield
    changed = record(session_id, last_active=NOW + 1, message_count=3)
    assert (version, found_in(store, session_id)) == (1, Found(changed, 10.0, ("first",)))


def _rename(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id, name=session_id), instance)
    store.attach(session_id, instance, lease=True)
    yield
    was_there = store.rename(session_id, f"{session_id}-new", instance)
    yield
    assert was_there
    assert store.load(session_id) is None
    renamed = record(f"{session_id}-new", name=session_id)
    assert found_in(store, renamed.id) == Found(renamed, inf, ("first",))
    assert store.find(session_id) == renamed.id


def _touch(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    yield
    absent = store.touch({session_id: Touch(NOW + 1, 3, "processing"), "gone": Touch(NOW)})
    also_absent = store.touch({session_id: Touch(NOW + 2, 2)})
    yield
    changed = record(session_id, last_active=NOW + 2, message_count=5, state="processing")
    assert (absent, also_absent, found_in(store, session_id).record) == ({"gone"}, set(), changed)


def _delete(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id, name=session_id), instance)
    yield
    deleted = store.delete({session_id: None, "gone": None})
    yield
    assert deleted == {session_id}
    assert store.load(session_id) is None


def _delete_unless_used(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    store.create(record(f"{session_id}-used", last_active=NOW + 1), instance)
    yield
    deleted = store.delete({session_id: Known(NOW), f"{session_id}-used": Known(NOW)}, instance, NOW)
    yield
    assert deleted == {session_id}
    assert store.load(session_id) is None
    assert found_in(store, f"{session_id}-used").elsewhere == ()


def _delete_expired(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    expired = {f"{session_id}-1", f"{session_id}-2"}
    for each in expired:
        store.create(record(each, session_timeout=0.1), instance)
    store.detach(expired, instance)
    yield
    removed = store.delete_expired(NOW + 1, 10)
    yield
    assert {each.id for each in removed} == expired
    assert store.delete_expired(NOW + 1, 10) == []


def _count_expired(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id, session_timeout=0.1), instance)
    store.detach([session_id], instance)
    yield
    count = store.count_expired(NOW + 1)
    yield
    assert count == 1
    store.delete({session_id: None})


def _page(store: OpenedStore, instance: str, session_id: str) -> Iterator[None]:
    store.create(record(session_id), instance)
    yield
    page = store.page(None, 10)
    yield
    assert page == [record(session_id)]
    store.delete({session_id: None})


OPERATIONS: list[Operation] = [
    _join,
    _promise,
    _leave,
    _create,
    _load,
    _find,
    _attach,
    _detach,
    _lease,
    _lease_of_the_dead,
    _lease_that_is_taken,
    _release,
    _save,
    _give_back,
    _give_back_unchanged,
    _rename,
    _touch,
    _delete,
    _delete_unless_used,
    _delete_expired,
    _count_expired,
    _page,
]


# ---- The connection breaks


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_connection_that_is_cut_anywhere_in_a_reply(line: Proxy, operation: Operation) -> None:
    """A connection that breaks at any byte of a reply loses nothing and does nothing twice. Wherever the connection
    breaks in a reply, the call is heard in the end, and was done exactly once.
    """
    with opened(line.url) as store:
        instance, position = store.join(10.0, "first"), 0
        while True:
            steps = operation(store, instance, f"s-{position:04}")
            next(steps)
            cuts = line.cuts
            line.cut(position)
            next(steps)
            line.pass_on()
            assert next(steps, None) is None
            if line.cuts == cuts:
                break
            position += 1
        assert position > 3


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_connection_that_is_cut_before_the_server_hears_of_it(line: Proxy, operation: Operation) -> None:
    """A request that never arrived is sent again, and was done exactly once."""
    with opened(line.url) as store:
        instance = store.join(10.0, "first")
        steps = operation(store, instance, "s-1")
        next(steps)
        line.cut_request()
        next(steps)
        assert next(steps, None) is None
        assert line.cuts == 1


@pytest.mark.usefixtures("no_pauses")
def test_a_connection_that_is_cut_while_it_is_made(line: Proxy, server: RedisServer) -> None:
    """All that comes before a save may break anywhere too: the greeting, and giving the server a script it has not."""
    with opened(line.url) as store, server.client() as client:
        instance, position = store.join(10.0, "first"), 0
        while True:
            steps = _save(store, instance, f"s-{position:04}")
            next(steps)
            # So that a connection has to be made; no public call does that while there is an instance.
            store._server.close_idle()
            client.script_flush()
            cuts = line.cuts
            line.cut(position)
            next(steps)
            line.pass_on()
            assert next(steps, None) is None
            if line.cuts == cuts:
                break
            position += 1
        assert position > 100


@pytest.mark.usefixtures("no_pauses")
def test_a_connection_that_is_cut_while_the_first_instance_joins(line: Proxy) -> None:
    """The first one also asks the server what it is, which takes long to say; every so often it is cut there."""
    position, cuts = 0, -1
    while cuts != line.cuts:
        with opened(line.url) as store:
            cuts = line.cuts
            line.cut(position)
            instance = store.join(10.0, "first")
            line.pass_on()
            store.create(record(), instance)
            assert found_in(store, "s-1").elsewhere == ("first",)
        position += 97
    assert position > 1000


@pytest.mark.usefixtures("no_pauses")
def test_a_connection_that_is_cut_again_and_again(line: Proxy) -> None:
    """A call is sent three times more, and then fails; what it asked for was done once."""
    with opened(line.url) as store:
        instance = store.join(10.0, "first")
        store.create(record(), instance)
        line.cut(0, times=3)
        assert store.save("s-1", Changes(1, "{}", Touch(NOW, 1))) == 2
        assert line.cuts == 3
        line.cut(0, times=20)
        with pytest.raises(StoreError, match="Check that it runs"):
            store.save("s-1", Changes(2, "{}", Touch(NOW, 1)))
        line.pass_on()
        assert found_in(store, "s-1").record == record(data="{}", message_count=2, version=3)


# ---- The connection stays broken, and nobody hears what was done


@contextmanager
def unheard(line: Proxy) -> Iterator[None]:
    """What is asked in the block is done, and nobody hears of it: it raises `StoreError`, and soon."""
    line.cut(0, then=Mode.REFUSE)
    began = time.monotonic()
    with pytest.raises(StoreError):
        yield
    assert time.monotonic() - began < BOUND
    line.pass_on()


@contextmanager
def undone(line: Proxy) -> Iterator[None]:
    """What is asked in the block never arrives: it raises `StoreError`, and soon."""
    line.cut_request(then=Mode.REFUSE)
    began = time.monotonic()
    with pytest.raises(StoreError):
        yield
    assert time.monotonic() - began < BOUND
    line.pass_on()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("how", [unheard, undone])
def test_a_server_that_cannot_be_reached(line: Proxy, operation: Operation, how: Any) -> None:
    """The call raises `StoreError` in bounded time, and the next one goes through as soon as the server is back."""
    with opened(line.url) as store:
        instance = store.join(10.0, "first")
        steps = operation(store, instance, "s-1")
        next(steps)
        with how(line):
            next(steps)
        store.create(record("s-9"), instance)
        assert found_in(store, "s-9", instance) == Found(record("s-9"), 0.0)


@pytest.fixture
def store(line: Proxy, no_pauses: None) -> Iterator[OpenedStore]:
    """A store on a line that can be cut."""
    with opened(line.url) as found:
        yield found


@pytest.fixture
def instance(store: OpenedStore) -> str:
    return store.join(10.0, "first")


@pytest.fixture
def other(server: RedisServer, store: OpenedStore) -> Iterator[OpenedStore]:
    """The same store, as another process has it, whose line is not cut."""
    with opened(server.url, store.prefix) as found:
        yield found


def test_a_save_that_nobody_heard_of_is_in_no_saves_way(line: Proxy, store: OpenedStore, instance: str) -> None:
    """Whether it was done or not, the next save is no conflict, and what it brings is there; also several in a row.

    Messages that were not heard to be counted come again, and are counted once.
    """
    store.create(record(), instance)
    with unheard(line):
        store.save("s-1", Changes(1, '{"a":1}', Touch(NOW + 1, 2)))
    assert found_in(store, "s-1").record.data == '{"a":1}'
    with undone(line):
        store.save("s-1", Changes(1, '{"a":2}', Touch(NOW + 2, 2)))
    with unheard(line):
        store.save("s-1", Changes(1, '{"a":3}', Touch(NOW + 3, 2)))
    with undone(line):
        store.save("s-1", Changes(1, '{"a":4}', Touch(NOW + 4, 2)))
    version = store.save("s-1", Changes(1, '{"a":5}', Touch(NOW + 5, 2)))
    saved = record(data='{"a":5}', last_active=NOW + 5, message_count=2, version=version)
    assert found_in(store, "s-1").record == saved
    assert store.save("s-1", Changes(version, '{"a":6}', Touch(NOW + 6))) == version + 1
    with pytest.raises(SessionConflictError):
        store.save("s-1", Changes(1, '{"a":7}', Touch(NOW + 7)))


def test_a_give_back_that_nobody_heard_of_is_in_no_saves_way(line: Proxy, store: OpenedStore, instance: str) -> None:
    """As with a save: it can be given back again, and the lease is gone."""
    store.create(record(), instance)
    store.attach("s-1", instance, lease=True)
    with unheard(line):
        store.release("s-1", instance, Changes(1, '{"a":1}', Touch(NOW + 1)))
    store.attach("s-1", instance, lease=True)
    assert store.release("s-1", instance, Changes(1, '{"a":2}', Touch(NOW + 2))) == 3
    assert found_in(store, "s-1").record == record(data='{"a":2}', last_active=NOW + 2, version=3)
    assert found_in(store, "s-1").lag == 10.0


def test_a_save_that_nobody_heard_of_and_another_one_since(
    line: Proxy, store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """What another process has saved since is in the way of the next save, and is not overwritten."""
    store.create(record(), instance)
    with unheard(line):
        store.save("s-1", Changes(1, '{"a":1}', Touch(NOW + 1)))
    assert other.save("s-1", Changes(2, '{"by":"other"}', Touch(NOW + 2))) == 3
    with pytest.raises(SessionConflictError):
        store.save("s-1", Changes(1, '{"a":2}', Touch(NOW + 3)))
    assert found_in(store, "s-1").record.data == '{"by":"other"}'
    with undone(line):
        store.save("s-1", Changes(3, '{"a":3}', Touch(NOW + 3)))
    assert other.save("s-1", Changes(3, '{"by":"other"}', Touch(NOW + 2))) == 4
    with pytest.raises(SessionConflictError):
        store.save("s-1", Changes(3, '{"a":4}', Touch(NOW + 3)))


def test_a_removal_that_nobody_heard_of_is_told_by_nobody(line: Proxy, store: OpenedStore, instance: str) -> None:
    """What was deleted because it had expired is told once at most; what was not deleted, with the next call."""
    ids = [f"s-{number}" for number in range(9)]
    for session_id in ids:
        store.create(record(session_id), instance)
    store.detach(ids, instance)
    with unheard(line):
        store.delete_expired(NOW + 61, 4)
    left = [each.id for each in store.page(None, 10)]
    assert len(left) == 5
    with undone(line):
        store.delete_expired(NOW + 61, 2)
    told = []
    while some := store.delete_expired(NOW + 61, 3):
        told += [each.id for each in some]
    assert sorted(told) == left


def test_a_renaming_that_nobody_heard_of_is_undone(
    line: Proxy, store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """Whoever asks for the session by the id that it had has it again, name and lease and all; the new id is absent."""
    asks: list[Callable[[], object]] = [
        lambda: store.load("s-1", instance),
        lambda: store.attach("s-1", instance),
        lambda: store.attach("s-1", instance, lease=True),
        lambda: store.release("s-1", instance),
        lambda: store.release("s-1", instance, Changes(1, None, Touch(NOW))),
        lambda: store.save("s-1", Changes(1, '{"lang":"en"}', Touch(NOW))),
        lambda: store.touch({"s-1": Touch(NOW)}),
        lambda: store.rename("s-1", "s-3", instance) and store.rename("s-3", "s-1", instance),
    ]
    for ask in asks:
        store.create(record(name="a"), instance)
        store.attach("s-1", instance, lease=True)
        with unheard(line):
            store.rename("s-1", "s-2", instance)
        assert other.load("s-1") is None
        ask()
        assert found_in(other, "s-1").record._replace(version=1) == record(name="a")
        assert found_in(other, "s-1").elsewhere == ("first",)
        assert other.load("s-2") is None
        assert other.find("a") == "s-1"
        store.release("s-1", instance)
        assert found_in(other, "s-1").lag == 10.0
        assert store.delete({"s-1": None}) == {"s-1"}


def test_a_renaming_that_nobody_heard_of_and_the_end_of_the_session(
    line: Proxy, store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """Deleted or let go by the id that it had, nothing of it is left by the new one."""
    ends: list[Callable[[], object]] = [
        lambda: store.delete({"s-1": None}),
        lambda: store.delete({"s-1": Known(NOW)}, instance, NOW),
        lambda: (store.detach(["s-1"], instance), other.delete_expired(NOW + 61, 10)),
        lambda: (store.leave(instance), other.delete({"s-1": None})),
    ]
    for end in ends:
        store.create(record(name="a"), instance)
        with unheard(line):
            store.rename("s-1", "s-2", instance)
        end()
        assert other.page(None, 10) == []
        assert other.find("a") is None


def test_a_creation_that_nobody_heard_of_is_undone(
    line: Proxy, store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """It failed, and so it is not there: for whoever asks for it, creates the same again, lets go of it or leaves."""
    asks: list[Callable[[], object]] = [
        lambda: store.load("s-1"),
        lambda: store.detach(["s-1"], instance),
        lambda: store.create(record(name="a"), instance),
        lambda: store.create(record("s-2", name="a"), instance),
        lambda: store.leave(instance),
    ]
    for ask in asks:
        with unheard(line):
            store.create(record(name="a"), instance)
        assert other.find("a") == "s-1"
        ask()
        assert other.load("s-1") in (None, Found(record(name="a"), 10.0, ("first",)))
        assert other.find("a") in (None, *(each.id for each in other.page(None, 10)))
        other.delete({"s-1": None, "s-2": None})


def test_a_creation_that_nobody_heard_of_and_somebody_has_found_since(
    line: Proxy, store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """Whoever found it by its name, and has it in memory, keeps it."""
    second = other.join(5.0, "second")
    with unheard(line):
        store.create(record(name="a"), instance)
    assert other.attach("s-1", second) is not None
    with pytest.raises(SessionExistsError) as caught:
        store.create(record("s-2", name="a"), instance)
    assert caught.value.session_id == "s-1"
    assert found_in(other, "s-1").record == record(name="a")


def test_a_session_whose_creation_nobody_heard_of_can_be_created_again(line: Proxy, store: OpenedStore) -> None:
    """A caller who tries again gets the session, by the same name or id, and there is one."""
    with SessionCoordinator(CONFIG, store=store) as coordinator:
        for options in ({"name": "support"}, {"session_id": "s-1"}):
            coordinator.close_session(coordinator.create_session().id)
            with unheard(line):
                coordinator.create_session(**options)
            session = coordinator.create_session(**options)
            assert [each.id for each in store.page(None, 10)] == [session.id]
            coordinator.close_session(session.id)


def test_a_renaming_that_was_not_done_is_none(line: Proxy, store: OpenedStore, instance: str) -> None:
    """One that never arrived leaves everything as it was."""
    store.create(record(name="a"), instance)
    with undone(line):
        store.rename("s-1", "s-2", instance)
    assert store.load("s-2") is None
    assert found_in(store, "s-1", instance) == Found(record(name="a"), 0.0)


def test_what_was_removed_before_the_server_was_gone_is_told(line: Proxy, store: OpenedStore, instance: str) -> None:
    """A removal that takes several steps tells those that it has done, whatever becomes of the others."""
    ids = [f"s-{number:03}" for number in range(600)]

    def expire_all() -> None:
        for session_id in ids:
            store.create(record(session_id), instance)
        store.detach(ids, instance)

    expire_all()
    before = line.replied
    assert len(store.delete_expired(NOW + 61, 600)) == 600
    length = line.replied - before
    expire_all()
    line.cut(length - 9, then=Mode.REFUSE)
    told = store.delete_expired(NOW + 61, 600)
    with pytest.raises(StoreError):
        store.delete_expired(NOW + 61, 600)
    line.pass_on()
    assert 0 < len(told) < 600
    assert len({each.id for each in told}) == len(told)
    assert store.delete_expired(NOW + 61, 600) == []
    assert store.page(None, 1) == []


def test_a_server_whose_clock_is_set(store: OpenedStore, instance: str) -> None:
    """No call fails because of that, whichever way it was set, and a heartbeat tells the store."""
    store.create(record(), instance)
    for seconds in (-LONG, LONG):
        # Private, because no test can set the clock of a server.
        store._clock._least += seconds
        store._clock._most += seconds
        assert found_in(store, "s-1", instance) == Found(record(), 0.0)
        store.set_write_interval(instance, 10.0)
        assert abs(store.clock_offset()) < BOUND


# ---- The server is held up


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    """The server does nothing for the length of the block; after it, it has done all that came meanwhile."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)
    # Each answer comes from a new connection, after one look at all the connections there were.
    for _ in range(3):
        server.wait()


def test_what_a_server_comes_to_after_nobody_waits_any_more(server: RedisServer) -> None:
    """A server that was held up comes back with requests that failed long ago, and does them. No creation is there
    for that, no save is in the way, and no message of a save counts twice.
    """
    with opened(server.url, timeout=TIMEOUT) as store:
        instance = store.join(10.0, "first")
        for session_id in ("s-1", "s-2", "expired"):
            store.create(record(session_id), instance)
        store.detach(["expired"], instance)
        calls: list[Callable[[], object]] = [
            lambda: store.create(record("new"), instance),
            lambda: store.save("s-1", Changes(1, '{"a":1}', Touch(NOW + 1, 1))),
            lambda: store.release("s-1", instance, Changes(1, '{"a":2}', Touch(NOW + 1, 1))),
            lambda: store.attach("s-1", instance, lease=True),
            lambda: store.delete({"s-2": None}),
            lambda: store.delete_expired(NOW + 61, 10),
        ]
        for call in calls:
            with stopped(server):
                began = time.monotonic()
                with pytest.raises(StoreError, match="did not answer within the store's timeout"):
                    call()
                assert TIMEOUT / 2 < time.monotonic() - began < BOUND
            # On a connection that there is, the next request reaches the server before it is held up.
            store.load("other")
        assert store.load("new") is None
        assert store.save("s-1", Changes(1, "{}", Touch(NOW + 1, 1))) == 4
        store.release("s-1", instance)
        found = found_in(store, "s-1")
        assert (found.lag, found.record.data, found.record.message_count) == (10.0, "{}", 1)
        assert store.page(None, 10) == [found.record]
        assert store.delete({"s-2": None}) == set()


def test_a_checkout_while_the_server_is_held_up_takes_bounded_time(server: RedisServer) -> None:
    """Looking at a session in memory, and a checkout that is given back, take a few timeouts and no more."""
    with opened(server.url, timeout=TIMEOUT) as store, SessionCoordinator(CONFIG, store=store) as coordinator:
        session = coordinator.create_session("support")
        with stopped(server):
            began = time.monotonic()
            assert coordinator.get_session(session.id) is session
            with coordinator.checkout(session.id) as held:
                assert held is session
            with pytest.raises(StoreError), coordinator.checkout(session.id) as held:
                held.record_message()
            assert time.monotonic() - began < 2 * BOUND
        with coordinator.checkout(session.id, timeout=0) as held:
            held.record_message()
        assert found_in(store, session.id).record.message_count == 2


def test_a_server_that_is_silent_or_dead(line: Proxy) -> None:
    """A call to a server that is dead or silent raises `StoreError` within the timeout, 2 seconds, over all retries. A
    call that got no answer is not sent again; one whose connection is refused is, three times.
    """
    with opened(line.url, timeout=TIMEOUT) as store:
        instance = store.join(10.0, "first")
        store.create(record(), instance)
        connections = line.connections
        # First on the connection that there is, then on a new one.
        for mode, attempts in ((Mode.HOLD, 0), (Mode.HOLD, 1), (Mode.REFUSE, 4)):
            line.turn(mode)
            began = time.monotonic()
            with pytest.raises(StoreError):
                store.save("s-1", Changes(1, "{}", Touch(NOW, 1)))
            assert time.monotonic() - began < BOUND
            assert line.connections == connections + attempts
            connections = line.connections
        line.pass_on()
        assert store.save("s-1", Changes(1, "{}", Touch(NOW, 1))) == 2
        assert found_in(store, "s-1").record.message_count == 1


def test_a_call_is_not_sent_again_when_its_time_is_up(line: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its connection broke: the timeout is for all that."""
    readings = iter([0.0, 0.1, 1.9, 2.0])
    with opened(line.url) as store:
        store.join(10.0, "first")
        line.turn(Mode.REFUSE)
        connections = line.connections
        monkeypatch.setattr("sessionkit.stores.redis.client.stopwatch", lambda: next(readings))
        with pytest.raises(StoreError, match="Check that it runs"):
            store.load("s-1")
        monkeypatch.undo()
        assert line.connections == connections + 3
        assert list(readings) == []
        line.pass_on()


# ---- The server is killed, and comes back


def test_a_server_that_is_killed_and_comes_back_as_it_was(no_pauses: None, caplog: pytest.LogCaptureFixture) -> None:
    """When the server is back, the same processes go on with it. What is in memory stays usable within its process,
    all else raises, what ended stays ended; then all is there.
    """
    closings = Closings()
    with (
        redis_server("--appendonly", "yes", "--appendfsync", "always") as server,
        opened(server.url, "one") as store,
        opened(server.url, "one") as other,
    ):
        with closing(SessionCoordinator(CONFIG, store=other)) as former:
            stored = former.create_session("stored", data={"lang": "en"})
        with SessionCoordinator(CONFIG, store=store, on_close=closings) as coordinator:
            session, ended = coordinator.create_session("support"), coordinator.create_session("ended")
            server.kill()
            assert coordinator.get_session(session.id) is session
            coordinator.touch_session(session.id)
            assert coordinator.switch_session("support") is session
            with coordinator.checkout(session.id) as held:
                assert held is session
            assert "is checked out in this process only" in caplog.text
            checkout = coordinator.checkout(session.id)
            held = checkout.__enter__()
            held.record_message()
            held.data["step"] = 1
            with pytest.raises(StoreError):
                checkout.__exit__()
            assert session.data == {"step": 1}
            coordinator.close_session(ended.id)
            calls: list[Callable[[], object]] = [
                lambda: coordinator.get_session(stored.id),
                lambda: coordinator.checkout(stored.id).__enter__(),
                lambda: coordinator.switch_session("stored"),
                lambda: coordinator.create_session("new"),
                coordinator.cleanup_inactive_sessions,
            ]
            for call in calls:
                began = time.monotonic()
                with pytest.raises(StoreError):
                    call()
                assert time.monotonic() - began < BOUND
            with pytest.raises(SessionExpiredError):
                coordinator.get_session(ended.id)
            assert closings == [("ended", RemovalCause.CLOSED)]

            server.start()
            with pytest.raises(SessionExpiredError):
                coordinator.get_session(ended.id)
            coordinator.cleanup_inactive_sessions()
            assert other.load(ended.id) is None
            with coordinator.checkout(session.id, timeout=0) as held:
                held.record_message()
            saved = found_in(other, session.id).record
            assert (saved.name, saved.data, saved.message_count) == ("support", '{"step":1}', 2)
            assert coordinator.get_session(stored.id).data == {"lang": "en"}
            assert {each.name for each in other.page(None, 10)} == {"stored", "support"}
            coordinator.create_session("new")


def test_a_server_that_is_killed_and_comes_back_empty(no_pauses: None) -> None:
    """What it lost is gone for everybody: nobody gets a fresh session in its place; new ones can be created."""
    closings = Closings()
    with redis_server() as server, opened(server.url, "one") as store, opened(server.url, "one") as other:
        with SessionCoordinator(CONFIG, store=store, on_close=closings) as coordinator:
            looked_at, held = (coordinator.create_session(name) for name in ("looked at", "held"))
            checkout = coordinator.checkout(held.id)
            checkout.__enter__().data["step"] = 1
            server.kill()
            server.start()
            with pytest.raises(SessionNotFoundError):
                coordinator.get_session(looked_at.id)
            with pytest.raises(SessionNotFoundError):
                checkout.__exit__()
            for session in (looked_at, held):
                assert session.id not in coordinator
                with pytest.raises(SessionNotFoundError):
                    coordinator.touch_session(session.id)
            assert closings == [("looked at", RemovalCause.PASSIVATED), ("held", RemovalCause.PASSIVATED)]
            assert store.page(None, 10) == []
            again = coordinator.create_session("held", data={"again": True})
            with coordinator.checkout(again.id) as session:
                session.data["step"] = 1
                with pytest.raises(SessionBusyError):
                    other.attach(again.id, other.join(1.0, "other"), lease=True)
            assert found_in(other, again.id).record.data == '{"again":true,"step":1}'


# ---- The server is out of memory


@contextmanager
def out_of_memory(server: RedisServer) -> Iterator[None]:
    """The server refuses what takes memory, for the length of the block."""
    with server.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


def test_a_store_that_is_out_of_memory(server: RedisServer) -> None:
    """Creating and saving raise, and say what to do; all that takes no more memory works, as does everything after."""
    with opened(server.url) as store:
        instance, other = store.join(10.0, "first"), store.join(20.0, "second")
        ids = ["closed", "due", "expired", "held", "kept", "renamed"]
        for session_id in ids:
            store.create(record(session_id, name=session_id), instance)
        store.detach(["expired"], instance)
        store.attach("held", other, lease=True)
        with out_of_memory(server):
            for call in (
                lambda: store.create(record("new"), instance),
                lambda: store.save("kept", Changes(1, '{"a":1}', Touch(NOW, 1))),
                lambda: store.release("kept", instance, Changes(1, '{"a":1}', Touch(NOW, 1))),
            ):
                with pytest.raises(StoreError, match=r"memory is full: give it more \(maxmemory\)"):
                    call()
            assert store.find("kept") == "kept"
            assert found_in(store, "kept", instance) == Found(record("kept", name="kept"), 0.0)
            assert store.attach("kept", other) is not None
            for _ in range(2):
                assert store.attach("kept", instance, lease=True) is not None
                with pytest.raises(SessionBusyError):
                    store.attach("held", instance, lease=True)
                with pytest.raises(SessionBusyError):
                    store.rename("held", "other", instance)
                store.release("kept", instance)
                store.attach("kept", instance, lease=True)
                assert store.release("kept", instance, Changes(1, None, Touch(NOW + 1, 1, "processing"))) == 1
                assert store.touch({"kept": Touch(NOW + 1, 1, session_timeout=1e6)}) == set()
                with pytest.raises(SessionConflictError):
                    store.save("kept", Changes(7, "{}", Touch(NOW)))
                with pytest.raises(SessionNotFoundError):
                    store.save("gone", Changes(1, "{}", Touch(NOW)))
            store.set_write_interval(other, 30.0)
            third = store.join(40.0, "third")
            store.leave(third)
            store.keys.let_the_term_run_out(instance)
            # A heartbeat comes first.
            assert store.attach("kept", instance) is not None
            assert store.count_expired(NOW + 61) == 1
            assert [each.id for each in store.delete_expired(NOW + 61, 10)] == ["expired"]
            assert store.delete_expired(NOW + 61, 10) == []
            assert store.delete({"closed": None, "gone": None}) == {"closed"}
            assert store.delete({"closed": None}) == set()
            assert store.delete({"due": Known(NOW), "held": Known(NOW)}, instance, NOW) == {"due"}
            store.detach(["kept"], other)
        changed = record("kept", name="kept", last_active=NOW + 1, message_count=4, state="processing")
        changed = changed._replace(session_timeout=1e6)
        assert found_in(store, "kept", other).record == changed
        assert [each.id for each in store.page(None, 10)] == ["held", "kept", "renamed"]
        assert store.save("kept", Changes(1, '{"a":1}', Touch(NOW, 1))) == 2
        store.create(record("new"), instance)


def test_a_coordinator_whose_store_is_out_of_memory(server: RedisServer) -> None:
    """A server that is out of memory refuses new and changed sessions with `StoreError`; looking, checking out,
    closing and expiring go on. Nothing is lost: who is in memory goes on, what cannot be saved is kept, and saved
    when there is room.
    """
    with opened(server.url) as store, SessionCoordinator(CONFIG, store=store) as coordinator:
        session, closed = coordinator.create_session("support"), coordinator.create_session("closed")
        with out_of_memory(server):
            with pytest.raises(StoreError, match="maxmemory"):
                coordinator.create_session("new")
            assert coordinator.get_session(session.id) is session
            with coordinator.checkout(session.id) as held:
                held.record_message()
            checkout = coordinator.checkout(session.id)
            checkout.__enter__().data["step"] = 1
            with pytest.raises(StoreError, match="maxmemory"):
                checkout.__exit__()
            assert session.data == {"step": 1}
            coordinator.close_session(closed.id)
            assert store.load(closed.id) is None
            assert coordinator.cleanup_inactive_sessions() == 0
        with coordinator.checkout(session.id, timeout=0):
            pass
        saved = found_in(store, session.id).record
        assert (saved.data, saved.message_count) == ('{"step":1}', 1)
        coordinator.create_session("new")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_is_warned_about(
    server: RedisServer, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    """A server that may evict live sessions is warned about in the log when the coordinator joins it. A server that
    may throw live sessions away is warned about when the first instance joins, and not again.
    """
    with server.client() as client, opened(server.url) as store:
        client.config_set("maxmemory-policy", policy)
        try:
            for _ in range(2):
                store.join(1.0, "first")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    warnings = [each.getMessage() for each in caplog.records if each.name == "sessionkit"]
    assert len(warnings) == 1
    assert f"maxmemory-policy {policy}" in warnings[0]


def test_a_server_that_does_not_evict_is_not_warned_about(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With noeviction, joining says nothing."""
    with opened(server.url) as store:
        store.join(1.0, "first")
    assert caplog.text == ""


@pytest.mark.parametrize(("info", "shown"), [({"redis_version": "6.0.16"}, "6.0.16"), ({}, "of an unknown version")])
def test_a_server_that_is_too_old(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, info: dict[str, str], shown: str
) -> None:
    """A server that lacks what the store needs is refused when it is first asked, with both versions."""
    with opened(server.url) as store:
        monkeypatch.setattr("redis.Redis.info", lambda _: info)
        with pytest.raises(StoreError, match=f"Redis {shown}, and needs 6.2 or later"):
            store.join(1.0, "first")


# ---- Instances whose terms run out


def test_whose_term_ran_out_overwrites_nothing(store: OpenedStore, instance: str, other: OpenedStore) -> None:
    """A holder that stalled past its term overwrites nothing: what it saves raises `SessionConflictError`. Its lease
    goes to whoever asks, with a new version; what it saves is a conflict; renewed, it has it in memory.
    """
    second = other.join(5.0, "second")
    store.create(record(), instance)
    store.attach("s-1", instance, lease=True)
    with pytest.raises(SessionBusyError):
        other.attach("s-1", second, lease=True)
    store.keys.let_the_term_run_out(instance)
    assert other.attach("s-1", second, lease=True) == Found(record(version=2), 0.0)
    for save in (
        lambda: store.save("s-1", Changes(1, '{"by":"the dead"}', Touch(NOW + 1))),
        lambda: store.release("s-1", instance, Changes(1, '{"by":"the dead"}', Touch(NOW + 1))),
    ):
        with pytest.raises(SessionConflictError):
            save()
    assert found_in(store, "s-1") == Found(record(version=2), inf, ("second",))
    store.attach("nothing", instance)
    assert found_in(other, "s-1", second).elsewhere == ("first",)
    with pytest.raises(SessionBusyError):
        store.attach("s-1", instance, lease=True)
    assert other.release("s-1", second, Changes(2, '{"by":"second"}', Touch(NOW + 2))) == 3
    assert found_in(store, "s-1", instance).stale
    assert found_in(store, "s-1", instance).record.data == '{"by":"second"}'


def test_whose_term_ran_out_and_nobody_noticed(store: OpenedStore, instance: str, other: OpenedStore) -> None:
    """Renewed before anybody wanted it, a lease is what it was: the session has the version that it had."""
    second = other.join(5.0, "second")
    store.create(record(), instance)
    store.attach("s-1", instance, lease=True)
    store.keys.let_the_term_run_out(instance)
    store.attach("nothing", instance)
    with pytest.raises(SessionBusyError):
        other.attach("s-1", second, lease=True)
    assert store.release("s-1", instance, Changes(1, "{}", Touch(NOW))) == 2


def test_whose_term_ran_out_and_who_asks_for_more(store: OpenedStore, instance: str, other: OpenedStore) -> None:
    """What an instance takes before it knows that its term ran out is its own for everybody: it signs on again
    first."""
    second = other.join(5.0, "second")
    for session_id in ("s-1", "s-2"):
        store.create(record(session_id), instance)
    store.keys.let_the_term_run_out(instance)
    assert store.attach("s-1", instance, lease=True) == Found(record(), 0.0)
    with pytest.raises(SessionBusyError):
        other.attach("s-1", second, lease=True)
    assert found_in(other, "s-2", second).elsewhere == ("first",)


def test_whose_term_ran_out_has_nothing_in_memory(store: OpenedStore, instance: str, other: OpenedStore) -> None:
    """A session that only the dead had is counted, and removed once it has expired; its lag counts no more."""
    other.join(5.0, "second")
    store.create(record(), instance)
    assert other.count_expired(NOW + 61) == 0
    assert other.delete_expired(NOW + 61, 10) == []
    store.keys.let_the_term_run_out(instance)
    assert found_in(other, "s-1") == Found(record(), 0.0)
    assert other.count_expired(NOW + 61) == 1
    assert other.delete_expired(NOW + 61, 10) == [record()]
    store.attach("nothing", instance)
    assert other.load("s-1") is None


def test_after_a_server_was_away_for_long_nobody_is_dead_at_once(
    store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """When the server was away, no process is taken for dead that comes back with it. All terms ran out meanwhile, and
    the first heartbeat that comes gives all instances that time back: those that do not come then are dead.
    """
    second = other.join(5.0, "second")
    store.create(record(), instance)
    store.attach("s-1", instance, lease=True)
    store.keys.let_time_pass(3 * LONG)
    # Before any heartbeat has come, too.
    assert found_in(other, "s-1") == Found(record(), inf, ("first",))
    for _ in range(2):
        other.set_write_interval(second, 5.0)
        with pytest.raises(SessionBusyError):
            other.attach("s-1", second, lease=True)
    for _ in range(3):
        store.keys.let_time_pass(0.4 * LONG)
        other.set_write_interval(second, 5.0)
    assert other.attach("s-1", second, lease=True) == Found(record(version=2), 0.0)


def test_after_a_server_was_away_for_less_than_a_term_nobody_is_dead(
    store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """An instance whose heartbeat was due when the server was away, and whose term ran out meanwhile, is alive."""
    second = other.join(5.0, "second")
    store.create(record(), instance)
    store.attach("s-1", instance, lease=True)
    store.keys.let_time_pass(LONG / 3)
    other.set_write_interval(second, 5.0)
    store.keys.let_time_pass(0.9 * LONG)
    other.set_write_interval(second, 5.0)
    with pytest.raises(SessionBusyError):
        other.attach("s-1", second, lease=True)
    store.attach("nothing", instance)
    assert store.release("s-1", instance, Changes(1, "{}", Touch(NOW))) == 2


def test_an_instance_whom_nobody_sees_is_dead_after_ten_terms(
    store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """Where no instance is heard of, much time says that it is not the server that was away."""
    store.create(record(), instance)
    store.keys.let_time_pass(10 * LONG)
    assert found_in(other, "s-1").elsewhere == ("first",)
    store.keys.let_time_pass(2 * LONG)
    assert found_in(other, "s-1").elsewhere == ()


def test_an_instance_who_has_been_dead_for_long_is_forgotten(
    store: OpenedStore, instance: str, other: OpenedStore
) -> None:
    """Whoever joins clears away whom nobody will hear of again; should it come back all the same, it joins again."""
    store.create(record(), instance)
    store.keys.let_time_pass(400 * LONG)
    second = other.join(5.0, "second")
    assert list(store.keys.instances()) == [second]
    assert store.attach("s-1", instance) is not None
    assert found_in(other, "s-1", second).elsewhere == ("first",)


def test_a_heartbeat_that_comes_after_the_instance_left(store: OpenedStore, instance: str, other: OpenedStore) -> None:
    """One that was on its way brings nobody back."""
    second = other.join(5.0, "second")
    store.create(record(), instance)
    store.attach("s-1", instance, lease=True)
    store.leave(instance)
    # As the thread does, when it was just about to.
    store._send_heartbeat(instance)
    store.set_write_interval(instance, 1.0)
    assert other.attach("s-1", second, lease=True) == Found(record(), 0.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_is_killed_frees_what_it_had(server: RedisServer) -> None:
    """The lease of a process that was killed ends once its term, 10 seconds, has run out, and the session is free.
    Its lease is free soon after its term, with a new version; without anybody doing anything for that.
    """
    with opened(server.url, "killed", term=1.0) as store:
        instance = store.join(10.0, "first")
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            with opened(server.url, "killed", term=1.0) as inherited:
                child = inherited.join(10.0, "second")
                inherited.create(record(), child)
                inherited.attach("s-1", child, lease=True)
                os.write(writer, b"!")
                signal.pause()
        assert os.read(reader, 1) == b"!"
        with pytest.raises(SessionBusyError):
            store.attach("s-1", instance, lease=True)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for each in (reader, writer):
            os.close(each)

        def is_free() -> bool:
            with suppress(SessionBusyError):
                return store.attach("s-1", instance, lease=True) == Found(record(version=2), 0.0)
            return False

        wait_for(is_free)


# ---- The thread that renews terms


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_a_thread_renews_terms_while_there_is_an_instance(server: RedisServer) -> None:
    """One daemon thread for all instances of a store; it ends with the last one, and there is a new one with the
    next."""
    with opened(server.url, term=0.2) as store:
        for _ in range(2):
            first, second = (store.join(1.0, name) for name in ("first", "second"))
            (thread,) = _threads()
            assert thread.daemon
            ends = store.keys.ends()
            wait_for(lambda ends=ends: min(store.keys.ends()) > max(ends))
            store.leave(first)
            assert _threads() == [thread]
            store.leave(second)
            assert _threads() == []


def test_a_thread_goes_on_while_the_server_is_away(line: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    """It tries again and again, and says so once each time; instances are alive again when the server is back."""
    with opened(line.url, term=0.2) as store:
        for times in (1, 2):
            store.join(1.0, "first")
            line.turn(Mode.REFUSE)
            wait_for(lambda times=times: caplog.text.count("heartbeats could not be sent") == times)
            connections = line.connections
            wait_for(lambda connections=connections: line.connections > connections + 5)
            line.pass_on()
            ends = store.keys.ends()
            wait_for(lambda ends=ends: min(store.keys.ends()) > max(ends))
        assert caplog.text.count("heartbeats could not be sent") == 2


def test_where_no_thread_is_to_be_had_callers_renew(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever calls the store renews all terms of it that are half over, before anything else."""

    def no_thread(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with opened(server.url) as store:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            store.join(1.0, "first")
            assert "callers will send heartbeats instead" in caplog.text
            ends = store.keys.ends()
            store.load("s-1")
            assert store.keys.ends() == ends
            patch.setattr("sessionkit.stores.redis.liveness.steady_clock", lambda: time.monotonic() + LONG * 0.51)
            store.load("s-1")
            assert min(store.keys.ends()) > max(ends)
        second = store.join(1.0, "second")
        assert len(_threads()) == 1
        store.leave(second)
        assert len(_threads()) == 1


def test_where_no_thread_is_to_be_had_the_last_instance_leaves(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no thread to end."""

    def no_thread(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with opened(server.url) as store:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        store.leave(store.join(1.0, "first"))
        assert store.keys.ends() == []


def test_the_thread_itself_lets_the_last_instance_leave(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a coordinator that was dropped is collected there: the thread does not wait for itself, and ends."""
    with opened(server.url, term=0.2) as store:
        instance = store.join(1.0, "first")
        # Private, because it is about what happens in the thread.
        monkeypatch.setattr(store._heartbeats, "send_all", lambda: store.leave(instance))
        (thread,) = _threads()
        thread.join(WAIT)
        assert not thread.is_alive()
        assert store.keys.ends() == []
        assert not store._heartbeats._fire()


def test_an_instance_who_leaves_while_its_term_is_renewed(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone, whatever the renewal still does."""
    with opened(server.url) as store:
        instance, _ = store.join(1.0, "first"), store.join(1.0, "second")
        store.create(record(), instance)
        # Private, so that it comes just in between.
        run = store._server.run

        def run_and_leave(keys: list[str], operation: str, *arguments: str, **options: Any) -> Any:
            if operation == "attach_again":
                monkeypatch.setattr(store._server, "run", run)
                store.leave(instance)
            return run(keys, operation, *arguments, **options)

        store.keys.let_the_term_run_out(instance)
        monkeypatch.setattr(store._server, "run", run_and_leave)
        store.attach("nothing", instance)
        assert len(store.keys.ends()) == 1
        assert found_in(store, "s-1").elsewhere == ()


def test_who_has_long_had_a_session_in_memory_keeps_its_record(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys go by themselves a day after their session expired; while it is in memory, they are kept now and then."""
    with opened(server.url) as store:
        instance = store.join(1.0, "first")
        store.create(record(), instance)
        key = f"{store.keys.base}:s:s-1"
        with store.keys.client() as client:
            for hours in (5, 24):
                client.expire(key, 100)
                monkeypatch.setattr(
                    "sessionkit.stores.redis.liveness.steady_clock", lambda hours=hours: time.monotonic() + hours * 3600
                )
                # All heartbeats are overdue.
                store.load("other")
                assert (client.ttl(key) > 86_400) is (hours == 24)


# ---- Forks, and the end of a store


def test_a_forked_child_has_instances_and_connections_of_its_own(server: RedisServer) -> None:
    """Nothing of its parent's is changed by what the child does, nor by its end."""
    with opened(server.url) as store:
        instance = store.join(10.0, "first")
        store.create(record(), instance)
        store.attach("s-1", instance, lease=True)

        def child() -> tuple[Any, ...]:
            assert _threads() == []
            own = store.join(5.0, "child")
            store.create(record("s-2"), own)
            found = found_in(store, "s-1", own).elsewhere
            with pytest.raises(SessionBusyError):
                store.attach("s-1", own, lease=True)
            threads = len(_threads())
            store.leave(own)
            store.close()
            return found, threads

        assert in_child(child) == (("first",), 1)
        assert found_in(store, "s-2", instance) == Found(record("s-2"), 0.0)
        assert found_in(store, "s-1") == Found(record(), inf, ("first",))
        assert len(_threads()) == 1


def test_a_store_that_is_dropped_ends_its_thread(server: RedisServer) -> None:
    """Nobody has to close it."""
    store = RedisStore(server.url, f"test-{secrets.token_hex(4)}")
    store.join(1.0, "first")
    (thread,) = _threads()
    # Private, to wait for a heartbeat that may be under way.
    heartbeats = store._heartbeats
    del store
    gc.collect()
    # The thread may be at it just now.
    heartbeats.send_all()
    del heartbeats
    gc.collect()
    thread.join(WAIT)
    assert not thread.is_alive()


def _connections(server: RedisServer) -> int:
    with server.client() as client:
        return len(client.client_list())


def test_no_connection_stays_open(server: RedisServer) -> None:
    """When the last instance leaves, and when the store is closed, however it was used before."""
    wait_for(lambda: _connections(server) == 1)
    with opened(server.url) as store:
        for _ in range(2):
            instance = store.join(1.0, "first")
            assert _connections(server) == 2
            store.leave(instance)
            wait_for(lambda: _connections(server) == 1)
        store.page(None, 1)
        assert _connections(server) == 2
        store.close()
        wait_for(lambda: _connections(server) == 1)


def test_closing_while_the_server_is_away(line: Proxy, no_pauses: None) -> None:
    """It raises nothing and takes bounded time; the thread ends, and any other call raises."""
    with opened(line.url) as store:
        for name in ("first", "second"):
            store.join(1.0, name)
        line.turn(Mode.REFUSE)
        began = time.monotonic()
        store.close()
        store.close()
        assert time.monotonic() - began < BOUND
        assert _threads() == []
        with pytest.raises(StoreError, match="is closed; open it again"):
            store.load("s-1")
