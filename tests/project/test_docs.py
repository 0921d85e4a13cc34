"""The README: its examples run, and each of its promises has a test with the same words."""

from __future__ import annotations

import ast
import keyword
import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from ..helpers.redis_server import shared_server
from ..helpers.web import Visitor

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TOKENS = MarkdownIt().parse(README)
EXAMPLES = [token.content for token in TOKENS if token.type == "fence" and token.info == "python"]
REDIS_URL = "redis://localhost:6379/0"
USER_TESTS = [source for source in EXAMPLES if "def test_" in source or "StoreContract" in source]


def test_there_are_examples() -> None:
    """The README has nine examples of use and two files of a user's tests."""
    assert (len(EXAMPLES), len(USER_TESTS)) == (9, 2)


@pytest.mark.parametrize("source", [source for source in EXAMPLES if source not in USER_TESTS])
def test_an_example_runs(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted as it is, an example runs, from its imports on; its assertions hold."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    with shared_server() if REDIS_URL in source else nullcontext("") as url:
        exec(compile(source.replace(REDIS_URL, url), "README.md", "exec"), names)  # noqa: S102  our own example
    application = names.get("application", names.get("app"))
    if application is not None:
        visitor = Visitor(application)
        assert [visitor.text() for _ in range(2)] == ["visit 1", "visit 2"]
        # Else it is closed when the interpreter exits.
        names["coordinator"].close()


def test_the_users_tests_pass(pytester: pytest.Pytester) -> None:
    """The tests that the README shows pass for a user who has sessionkit, pytest and freezegun."""
    users, stores = sorted(USER_TESTS, key=lambda source: "StoreContract" in source)
    pytester.makepyfile(users)
    pytester.runpytest_subprocess("-W", "error::pytest.PytestUnhandledThreadExceptionWarning").assert_outcomes(passed=2)
    pytester.makepyfile(stores)
    outcomes = pytester.runpytest_subprocess("-q").parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] > 20


def promises() -> list[str]:
    sections = [
        README.partition(title)[2].partition("\n## ")[0]
        for title in ("## Keep sessions", "## On many machines", "## In a web server", "## What is promised")
    ]
    bullets = re.findall(r"^\* (.+(?:\n  .+)*)", "\n".join(sections), re.MULTILINE)
    return [" ".join(bullet.split()) for bullet in bullets]


@cache
def docstrings() -> str:
    functions = [
        node
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return "\n".join(" ".join((ast.get_docstring(function) or "").split()) for function in functions)


@pytest.mark.parametrize("promise", promises())
def test_a_promise_has_a_test_with_the_same_words(promise: str) -> None:
    """What is promised stands in the docstring of a test, word for word."""
    assert promise in docstrings()


def test_every_test_says_what_it_shows() -> None:
    """No test is without a docstring."""
    assert "\n\n" not in docstrings()


def test_the_map_names_every_package() -> None:
    """The map of the code, which the README links to, has each package, and each module that stands beside them."""
    page = "docs/architecture.md"
    assert f"({page})" in README.partition("## A map of the code")[2].partition("\n## ")[0]
    picture = (ROOT / page).read_text().partition("```")[2].partition("```")[0]
    for path in (ROOT / "sessionkit").iterdir():
        if path.name not in ("__pycache__", "py.typed"):
            assert path.stem.partition("_")[0] in picture


MAP = (ROOT / "docs/architecture.md").read_text()
CODE = ROOT / "sessionkit"


@cache
def names() -> tuple[set[str], set[str]]:
    """All names that the package defines, and of each class its members too, as `Class.member`."""
    paths = [path.relative_to(CODE) for path in CODE.rglob("*") if path.is_dir() or path.suffix == ".py"]
    found, members = {"sessionkit", *(path.stem for path in paths)}, set()
    for path in paths:
        if path.suffix == ".py":
            for node in ast.walk(ast.parse((CODE / path).read_text())):
                found |= names_of(node)
                if isinstance(node, ast.ClassDef):
                    members |= {f"{node.name}.{name}" for inner in ast.walk(node) for name in names_of(inner)}
    return found, members


def names_of(node: ast.AST) -> set[str]:
    """What one node defines: a function, a class, a parameter, a variable or an attribute that is assigned."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
            return {name}
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return {name}
    return set()


@pytest.mark.parametrize(
    "quoted", sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", MAP, flags=re.DOTALL))))
)
def test_the_map_names_what_there_is(quoted: str) -> None:
    """Each file, class, method and function that the map of the code names is there."""
    if "/" in quoted or quoted.endswith(".py"):
        assert (ROOT / quoted).exists() or list(CODE.rglob(quoted))
    elif re.fullmatch(r"[A-Z]\w+\.\w+", quoted):
        assert quoted in names()[1]
    else:
        assert {name for name in re.findall(r"[A-Za-z_]\w*", quoted) if not keyword.iskeyword(name)} <= names()[0]
