"""Data as JSON text: what can be stored, and what is wrong with what cannot."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sessionkit import (
    InvalidSessionError,
)

from ..helpers.processes import (
    Restart,
    config,
)


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


def test_a_tuple_comes_back_as_a_list(restart: Restart) -> None:
    """JSON has no tuples; what else JSON can say comes back as it was."""
    data = {"tuple": (1, (2,)), "text": "\u20ac\n\x00", "number": 1e300, "big": 10**100, "none": None, "": {}}
    made = restart().create_session(data=data)
    assert restart().get_session(made.id).data == {**data, "tuple": [1, [2]]}


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
    """As those of a shared session: what comes in meanwhile may be missed, and what is wrong with the rest is told."""

    class Meddling(str):
        """Text that does what another thread could do, while it is looked at."""

        def encode(self, *arguments: Any) -> bytes:
            data["c"] = object()
            if self == "inner":
                data["b"].clear()
            return super().encode(*arguments)

    coordinator = restart()
    session = coordinator.create_session()
    data = session.data
    with pytest.raises(InvalidSessionError, match=r"data\['b'\]\[1\]"), coordinator.checkout(session.id):
        data.update({"a": Meddling("outer"), "b": [Meddling("inner"), object()]})
    with coordinator.checkout(session.id):
        data.clear()
