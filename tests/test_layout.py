"""The layout of the package: imports only point down, and importing it brings in no more than it needs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import cachetools
import pytest

import sessionkit

PACKAGE = Path(sessionkit.__file__).parent

# From the bottom to the top; the modules of one line know nothing of each other.
LAYERS = [
    ["ending", "clock", "hold", "log"],
    ["errors", "stats", "pulse"],
    ["checks"],
    ["config", "session", "events"],
    [
        *("line", "tombstones", "cleanup", "finaliser", "fork", "data"),
        *("stores.base", "stores.partitions", "stores.deadline", "stores.servertime"),
    ],
    [
        *("table", "ownership", "written", "stores.database", "stores.lifeline", "stores.refusals", "stores.packing"),
        *("stores.address", "stores.terms"),
    ],
    ["active", "directory", "deletions", "stored", "stores.sqlite", "stores.crossing", "stores.server"],
    ["departures", "records", "stores.script"],
    ["stores.redis"],
    ["stores.__init__"],
    ["loans", "stores.opening"],
    ["roster"],
    ["sweep"],
    ["parts"],
    ["creation", "standing"],
    ["leases", "upkeep"],
    ["archive"],
    ["checkout", "engine"],
    ["coordinator", "tokens", "body"],
    ["cookie", "serving", "tenure"],
    ["visit"],
    ["websession"],
    ["wsgi"],
    ["contract", "accesslog", "population"],
    ["testing"],
    ["pytest_plugin", "replay"],
    ["report", "output"],
    ["durations", "listing"],
    ["operate"],
    ["cli", "flask_cli"],
    ["flask"],
    ["__main__", "__init__"],
]
HEIGHTS = {module: height for height, layer in enumerate(LAYERS) for module in layer}


def imported_by(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    package = [] if "." not in module else ["stores"]
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return {
        ".".join([*(package if node.level == 1 else []), name])
        for node in found
        for name in ([node.module] if node.module else [alias.name for alias in node.names])
    }


def test_every_module_has_its_place() -> None:
    """A new file is given a layer here, so that a reader's map is complete."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    assert {".".join(path.parts) for path in paths} == set(HEIGHTS)


@pytest.mark.parametrize("module", sorted(HEIGHTS))
def test_imports_only_point_down(module: str) -> None:
    """No module imports one of its own layer or of a higher one."""
    for name in imported_by(module):
        imported = name if name in HEIGHTS else f"{name}.__init__"
        assert HEIGHTS[imported] < HEIGHTS[module], f"{module} imports {imported}"


def test_importing_the_package_brings_in_cachetools_and_no_extra() -> None:
    """`import sessionkit` needs neither pytest nor what the command line needs."""
    program = "import sys, sessionkit; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603  our own program
    loaded = set(output.stdout.split())

    assert "cachetools" in loaded
    assert not loaded & {
        "pytest",
        "_pytest",
        "click",
        "rich",
        "plotext",
        "freezegun",
        "hypothesis",
        "werkzeug",
        "flask",
        "redis",
    }


def test_importing_the_package_leaves_slow_imports_for_later() -> None:
    """What takes long to import, and is not needed by every program, is imported when it is."""
    program = "import sys; before = set(sys.modules); import sessionkit; print(*set(sys.modules) - before)"
    # Isolated from what measures the coverage of child processes, which imports them itself.
    environment = {"PYTHONPATH": str(PACKAGE.parent) + os.pathsep + str(Path(cachetools.__file__).parent.parent)}
    output = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(output.stdout.split())

    assert {"sessionkit.coordinator", "cachetools"} <= loaded
    assert not loaded & {"asyncio", "dataclasses", "inspect", "logging", "sessionkit.replay", "sqlite3"}


def test_the_root_only_re_exports() -> None:
    """The root has no definitions of its own, and __all__ names all that it brings."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    brought = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]

    assert {type(node) for node in tree.body} == {ast.Expr, ast.ImportFrom, ast.Assign}
    assert sorted(brought) == sorted(sessionkit.__all__)
