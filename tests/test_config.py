"""The settings of a coordinator: their defaults, their checks, and what can be done with them."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import FrozenInstanceError, asdict, replace
from datetime import timedelta
from typing import Any

import pytest

from sessionkit import CoordinatorConfig

DEFAULTS = {
    "session_timeout": 3600.0,
    "cleanup_interval": 300.0,
    "max_active_sessions": 1000,
    "max_lifetime": None,
    "on_full": "reject",
    "event_capacity": 100,
    "max_data_bytes": 1_048_576,
    "affinity": False,
    "close_workers": 1,
    "checkout_warning": None,
    "instance_name": None,
}


def test_every_setting_has_its_default() -> None:
    """Without arguments, a config holds what the docstrings of its fields say."""
    assert asdict(CoordinatorConfig()) == DEFAULTS


def test_settings_are_given_by_name() -> None:
    """Which number is which is said where it is written; nothing is taken by position."""
    with pytest.raises(TypeError, match="positional"):
        CoordinatorConfig(60)  # type: ignore[misc]  # that is what is tried
    given = CoordinatorConfig(
        session_timeout=timedelta(hours=2),
        cleanup_interval=60,
        max_active_sessions=None,
        max_lifetime=timedelta(days=1),
        on_full="evict",
        event_capacity=5,
        max_data_bytes=100,
        affinity=True,
        close_workers=8,
        checkout_warning=timedelta(minutes=1),
        instance_name="http://10.0.0.7:8000",
    )
    expected = [7200.0, 60.0, None, 86400.0, "evict", 5, 100, True, 8, 60.0, "http://10.0.0.7:8000"]
    assert list(asdict(given).values()) == expected
    assert type(given.cleanup_interval) is float


def test_a_config_does_not_change() -> None:
    """No setting can be set or deleted, and none can be added."""
    config = CoordinatorConfig()
    for name in ("session_timeout", "session_timeuot"):
        with pytest.raises((FrozenInstanceError, TypeError)):
            setattr(config, name, 5)
    with pytest.raises(FrozenInstanceError):
        del config.affinity
    assert not hasattr(config, "__dict__")
    assert config == CoordinatorConfig()


def test_configs_with_the_same_settings_are_equal() -> None:
    """However the durations were written; equal ones have one hash, and a copy of whatever kind is equal."""
    config = CoordinatorConfig(session_timeout=timedelta(minutes=30), on_full="evict")
    assert config == CoordinatorConfig(session_timeout=1800, on_full="evict")
    assert {config: "found"}[CoordinatorConfig(session_timeout=1800.0, on_full="evict")] == "found"
    assert config != CoordinatorConfig(session_timeout=1800)
    assert copy.copy(config) == copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config  # noqa: S301  our own pickle
    assert eval(repr(config)) == config  # noqa: S307  our own repr


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"session_timeout": -1}, ValueError, "session_timeout must be above 0"),
        ({"max_active_sessions": 0}, ValueError, "max_active_sessions must be at least 1, not 0"),
        ({"max_data_bytes": "1"}, TypeError, "max_data_bytes must be a whole number, not '1'"),
        ({"affinity": 1}, TypeError, "affinity must be True or False, not 1"),
        ({"on_full": "explode"}, ValueError, "on_full must be one of"),
        ({"instance_name": ""}, ValueError, "instance_name ''"),
        ({"timeout": 5}, TypeError, "timeout"),
    ],
)
def test_a_changed_copy_passes_the_same_checks(change: Any, error: type[Exception], message: str) -> None:
    """`dataclasses.replace` refuses what the config itself refuses, in the same words."""
    for make in (lambda: replace(CoordinatorConfig(), **change), lambda: CoordinatorConfig(**change)):
        with pytest.raises(error, match=message):
            make()


def test_a_changed_copy_keeps_the_rest() -> None:
    """`dataclasses.replace` changes what it is given, and takes durations in both forms."""
    config = CoordinatorConfig(max_active_sessions=5, affinity=True)
    changed = replace(config, max_lifetime=timedelta(hours=2))  # type: ignore[arg-type]  # mypy goes by the field
    assert asdict(changed) == DEFAULTS | {"max_active_sessions": 5, "affinity": True, "max_lifetime": 7200.0}
    assert config.max_lifetime is None


def test_an_interval_above_the_timeout_warns_where_the_config_is_made() -> None:
    """The warning names the caller's line, also that of `dataclasses.replace`; an equal interval does not warn."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CoordinatorConfig(session_timeout=60)
        replace(CoordinatorConfig(), session_timeout=60)
        CoordinatorConfig(session_timeout=300)
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert caught[1].lineno == caught[0].lineno + 1
    assert "cleanup_interval=300.0 is longer than session_timeout=60.0" in str(caught[0].message)
