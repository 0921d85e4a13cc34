"""The layout of the package: who may import what, and that importing it brings in no more than it needs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cachetools
import pytest

import sessionkit

PACKAGE = Path(sessionkit.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))

FLOORS = {"errors": 0, "util": 1, "config": 2, "core": 3, "stores": 3, "persistence": 4, "coordinator": 5, "": 6}
"""The floor of each package, and of the public names (""): it imports what is on the floors below."""

ABOVE = {
    "web": (),
    "cli": (),
    "testing": (),
    "wsgi": ("web",),
    "flask": ("web", "cli"),
    "aio": (),
    "__main__": ("cli",),
}
"""What stands on the public names, and on `stores` and `util`; and which of the others each may import."""

PUBLIC = {"", "stores", "stores.open"}
EXCEPTIONS = {("testing.pytest_plugin", "web.service")}


NAMES = {".".join(("sessionkit", *path.parts)) for module in MODULES for path in (module, module.parent)}
"""Of all modules and packages."""


def name_of(module: Path) -> str:
    """The name below `sessionkit`, such as `core.session`; of the package itself it is empty."""
    return ".".join(part for part in module.parts if part != "__init__")


def imports_of(module: Path) -> Iterator[str]:
    """The names below `sessionkit` that a module imports anywhere in its text, also in functions and for types only."""
    for node in ast.walk(ast.parse((PACKAGE / module).with_suffix(".py").read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = [*("sessionkit", *module.parts)[: -node.level], *([node.module] if node.module else [])]
            base = ".".join(package) if node.level else str(node.module)
            # `from .. import stores` imports a module, `from .. import StoreError` a name of the package.
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in NAMES else base for alias in node.names]
        else:
            continue
        yield from (name.partition(".")[2] for name in names if name.partition(".")[0] == "sessionkit")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_what_is_below_it(module: Path) -> None:
    """A package imports itself and what is below; core and stores do not know each other; what is on top imports the
    public names.
    """
    name = name_of(module)
    package = name.partition(".")[0]
    assert package in (*FLOORS, *ABOVE), "it has no place yet"

    def is_below(other: str) -> bool:
        if package in ABOVE:
            return other in PUBLIC or other.partition(".")[0] in ("util", *ABOVE[package])
        return FLOORS.get(other.partition(".")[0], 99) < FLOORS[package]

    imported = {other for other in imports_of(module) if other.partition(".")[0] != package}
    assert not {other for other in imported if not is_below(other) and (name, other) not in EXCEPTIONS}


def test_there_are_few_modules_at_the_root() -> None:
    """Only what users import is at the root, and what starts the command: 12 modules at most."""
    assert len([module for module in MODULES if module.parent == Path()]) <= 12


@pytest.mark.parametrize("module", [module for module in MODULES if module.parts[0] != "core"], ids=str)
def test_a_sessions_private_attributes_belong_to_core(module: Path) -> None:
    """Outside of core, no module uses a private attribute of a session."""
    assert not re.findall(r".*session\._\w.*", (PACKAGE / module).with_suffix(".py").read_text())


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
