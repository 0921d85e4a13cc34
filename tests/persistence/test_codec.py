"""What is wrong with data that cannot be stored."""

from __future__ import annotations

from typing import Any

from sessionkit.persistence.codec import _faults


def test_data_that_another_thread_changes_can_be_searched() -> None:
    """As those of a shared session: what comes in meanwhile may be missed, and nothing is raised."""
    data: dict[str, Any] = {"a": object(), "b": [object(), object()]}
    faults = _faults(data, "data", 0)
    found = [next(faults)]
    data["c"] = object()
    found.append(next(faults))
    data["b"].clear()
    found += faults
    assert [path for path, _ in found] == ["data['a']", "data['b'][0]", "data['b'][1]"]
