"""The house keeps its order: data folders hold no code, every module says what belongs in it, no file grows into a hall."""

import ast
from pathlib import Path

import pytest

from experimentation.settings import PROJECT_ROOT

PACKAGES = ("orchestration", "assets", "serving", "training", "experimentation", "planner")
MOST_LINES = 400
MODULES = sorted(path for folder in (*PACKAGES, "tests") for path in (PROJECT_ROOT / folder).rglob("*.py"))


def place(path: Path) -> str:
    """A path as a reader of the test's name wants it."""
    return str(path.relative_to(PROJECT_ROOT))


def test_datasets_holds_no_python() -> None:
    # An __init__.py there would shadow Hugging Face `datasets`, which transformers looks for.
    assert list((PROJECT_ROOT / "datasets").rglob("*.py")) == []


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{place(path)} has no docstring: say what belongs in it and what does not."


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_a_module_is_one_room(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES, f"{place(path)} has {lines} lines: split it by what belongs together."


def test_every_package_that_is_installed_is_looked_at() -> None:
    packages = {path.parent.name for path in PROJECT_ROOT.glob("*/__init__.py")}
    assert packages == set(PACKAGES)
