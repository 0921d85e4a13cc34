"""Data as JSON text: what can be stored, and what is wrong with what cannot."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, UserList, defaultdict
from datetime import timedelta
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from sessionkit import InvalidSessionError, StoreError
from sessionkit.stores import SQLiteStore
from sessionkit.testing.pytest_plugin import CoordinatorFactory

from ..helpers.moments import interruptions
from ..helpers.processes import Restart, config
from ..helpers.support import EVERYTHING, WatchedStore


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"b": [1, {2: 3}]}}, r"data\['a'\]\['b'\]\[1\] .* the key 2 is of type int"),
        ({"a": [1.0, float("nan")]}, r"data\['a'\]\[1\] .* nan is a number that JSON does not have"),
        ({"when": timedelta(1)}, r"data\['when'\] .* is of type timedelta, and JSON has only dict"),
        ({"text": "\ud800"}, r"data\['text'\] .* half of a surrogate pair"),
        ({"\ud800": 1}, "the key .* half of a surrogate pair"),
        ({"large": "x" * 90, "small": 1}, r"takes 112 bytes .* max_data_bytes is 100 .*part is data\['large'\]"),
        ({"euros": "\u20ac" * 40}, "takes 132 bytes"),
    ],
)
def test_data_that_cannot_be_stored_is_refused(restart: Restart, data: dict[str, Any], message: str) -> None:
    """At creation, and when a checkout is given back; the error names the path, and the session stays usable."""
    coordinator = restart(config(max_data_bytes=100))
    with pytest.raises(InvalidSessionError, match=message):
        coordinator.create_session("support", data=data)
    session = coordinator.create_session("support")
    with pytest.raises(InvalidSessionError, match=message), coordinator.checkout(session.id) as held:
        held.data.update(data)
    with coordinator.checkout(session.id) as held:
        assert held.data == data or data != data
        held.data.clear()
        held.data["fine"] = True
    assert restart().get_session(session.id).data == {"fine": True}


def test_data_that_contains_itself_is_refused(restart: Restart) -> None:
    """Also what is nested too deep for Python's own recursion."""
    coordinator = restart()
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(InvalidSessionError, match=r"data\['a'\]\[0\].* contains itself, or is nested too deep"):
            coordinator.create_session(data={"a": value})
    with pytest.raises(InvalidSessionError, match="limit"):
        coordinator.create_session(data={"a": 10**5000})


class Text(str):
    """A subclass that equals its parent, as Markup does."""


class Level(IntEnum):
    LOW = 1


class Pair(NamedTuple):
    left: int
    right: int


class Weight(float):
    """Another one."""


CHANGED = [
    ((1, 2), "is of type tuple"),
    ((), "is of type tuple"),
    (Pair(1, 2), "is of type Pair"),
    (Text("a"), "is of type Text"),
    (Level.LOW, "is of type Level"),
    (Weight(1), "is of type Weight"),
    (Counter("a"), "is of type Counter"),
    (OrderedDict(), "is of type OrderedDict"),
    (defaultdict(list), "is of type defaultdict"),
    (MappingProxyType({}), "is of type mappingproxy"),
    (UserList([1]), "is of type UserList"),
    ({1, 2}, "is of type set"),
    (b"a", "is of type bytes"),
    (bytearray(b"a"), "is of type bytearray"),
    (Decimal(1), "is of type Decimal"),
    (1j, "is of type complex"),
    (..., "is of type ellipsis"),
    ({1: "a"}, "the key 1 is of type int"),
    ({None: "a"}, "the key None is of type NoneType"),
    ({True: "a"}, "the key True is of type bool"),
    ({1.5: "a"}, "the key 1.5 is of type float"),
    ({Text("a"): 1}, "the key 'a' is of type Text"),
    ({(1, 2): "a"}, "the key .* is of type tuple"),
    (math.nan, "nan is a number that JSON does not have"),
    (-math.inf, "-inf is a number"),
]


@pytest.mark.parametrize(("value", "message"), CHANGED)
def test_what_json_would_give_back_as_something_else_is_refused(restart: Restart, value: Any, message: str) -> None:
    """By its exact type, and with its path, wherever it is: at creation, in the middle of a checkout, and when that is
    given back; also where the data that are there equal it."""
    coordinator = restart()
    path = r"data\['here'\]\[1\] of session .* cannot be stored: .*"
    with pytest.raises(InvalidSessionError, match=path + message):
        coordinator.create_session(data={"here": [0, value]})
    before = {"a": 1, "top": "a", "here": [0, {}]}
    session = coordinator.create_session(data=before)
    checkout = coordinator.checkout(session.id)
    checkout.__enter__().data["here"] = [0, value]
    for call in (lambda: coordinator.save_session(session.id), checkout.__exit__):
        with pytest.raises(InvalidSessionError, match=path + message):
            call()
    checkout = coordinator.checkout(session.id)
    with checkout as held:
        checkout.revert()
        assert held.data == before
    with pytest.raises(InvalidSessionError, match=r"data\['top'\].*|the key"), coordinator.checkout(session.id) as held:
        held.data["top"] = value
    with coordinator.checkout(session.id) as held:
        held.data["top"] = "a"
    assert restart().get_session(session.id).data == before


def test_what_json_can_say_comes_back_as_it_was(restart: Restart) -> None:
    """The same values, of the same types, in the same order."""
    data = {
        "text": "\u20ac\n\x00\U0001f388",
        "number": [1e300, 1.0, -0.0, 10**100, -1, 0],
        "truth": [True, False, None],
        "": {"empty": [{}, []]},
    }
    made = restart().create_session(data=data)
    assert repr(restart().get_session(made.id).data) == repr(data)


def test_data_that_was_refused_does_not_keep_its_session_in_memory(
    restart: Restart, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller that gave it back was told; when the session leaves memory, the last good data is what is kept."""
    coordinator = restart(config(max_active_sessions=1, on_full="passivate"))
    first = coordinator.create_session(data={"good": 1})
    with pytest.raises(InvalidSessionError), coordinator.checkout(first.id) as held:
        held.data["bad"] = {1}
    coordinator.create_session()
    assert f"the last changes of session {first.id!r} are not in the store" in caplog.text
    assert coordinator.get_session(first.id).data == {"good": 1}


def test_data_that_another_thread_changes_can_be_searched(restart: Restart) -> None:
    """As those of a shared session: what comes in meanwhile may be missed, and no other error comes of it."""
    coordinator = restart()
    session = coordinator.create_session()
    data = session.data

    def meddle() -> None:
        data["b"].clear()
        data["c"] = object()

    message = r"data\['(b|c)'\].* of session .* cannot be stored|data of session .* not JSON serializable"
    for interruption in interruptions():
        data.clear()
        data.update({"a": "text", "b": {"c": [1], "d": object()}})
        with interruption.anywhere(meddle), pytest.raises(InvalidSessionError, match=message):
            coordinator.save_session(session.id)
    data.clear()


def test_what_is_saved_was_there_at_some_moment(restart: Restart) -> None:
    """Also if another thread changes the data while they are saved."""
    coordinator, saved = restart(), []
    session = coordinator.create_session()
    for interruption in interruptions():
        session.data["b"] = {"c": [1]}
        with interruption.anywhere(lambda: session.data["b"].update(c=[2])):
            coordinator.save_session(session.id)
        checkout = coordinator.checkout(session.id)
        with checkout as held:
            checkout.revert()
            saved.append(held.data["b"])
    assert [{"c": [n]} for n in (1, 2) if {"c": [n]} not in saved] == []
    assert [each for each in saved if each not in ({"c": [1]}, {"c": [2]})] == []


@pytest.mark.parametrize("before", [{}, {"list": ["user"], "other": 1}])
def test_data_belong_to_the_session(restart: Restart, before: dict[str, Any]) -> None:
    """What was put in, and what was read, is not part of them any more once the last checkout is given back: also where
    the record has had the same before, and where one list was put in twice."""
    coordinator = restart()
    theirs: list[Any] = ["user"]
    created = coordinator.create_session(data={**before, "list": theirs})
    kept = created.data
    with coordinator.checkout(created.id) as held:
        with coordinator.checkout(created.id):
            held.data.update(list=theirs, twice=[theirs, theirs])
        # The inner one was not the last.
        theirs.append("b")
        assert held.data["list"] is theirs
    theirs.append("c")
    held.data["twice"][0].append("d")
    assert created.data is kept
    assert created.data == {**before, "list": ["user", "b"], "twice": [["user", "b", "d"], ["user", "b"]]}
    with coordinator.checkout(created.id):
        pass
    assert restart().get_session(created.id).data == created.data


def test_data_that_could_not_be_saved_belong_to_the_session(
    session_coordinator: CoordinatorFactory, tmp_path: Path
) -> None:
    """They are in memory only, and nobody else's all the same."""
    store = WatchedStore(SQLiteStore(tmp_path / "sessions.db"))
    coordinator = session_coordinator(store=store)
    session = coordinator.create_session()
    theirs = ["user"]
    store.failing.add(EVERYTHING)
    with pytest.raises(StoreError), coordinator.checkout(session.id) as held:
        held.data["list"] = theirs
    theirs.append("admin")
    assert session.data == {"list": ["user"]}
    store.failing.clear()
