"""The layout of the package: importing it brings in no more than it needs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import cachetools

import sessionkit

PACKAGE = Path(sessionkit.__file__).parent


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
    assert not loaded & {"asyncio", "logging", "sessionkit.cli", "sqlite3"}


def test_the_root_only_re_exports() -> None:
    """The root has no definitions of its own, and __all__ names all that it brings."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    brought = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]

    assert {type(node) for node in tree.body} == {ast.Expr, ast.ImportFrom, ast.Assign}
    assert sorted(brought) == sorted(sessionkit.__all__)
