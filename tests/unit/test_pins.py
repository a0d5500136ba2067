"""Versions: constraints.txt pins every declared dependency, and related packages have the same version."""

import re
import tomllib

from foundation.settings import PROJECT_ROOT

PYPROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
PINNED = dict(line.split("==") for line in (PROJECT_ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def canonical(requirement: str) -> str:
    """The distribution's name as package indexes compare it, without extras and versions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


def test_every_declared_dependency_is_pinned() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    declared = [
        *PYPROJECT["project"]["dependencies"],
        *(requirement for extra in extras for requirement in extra),
        *PYPROJECT["dependency-groups"]["dev"],
    ]
    names = {canonical(requirement) for requirement in declared} - {"lifecycle"}
    assert len(names) > 50
    assert not names - {canonical(name) for name in PINNED}


def test_makefile_installs_the_pinned_torch() -> None:
    assert f"TORCH ?= torch=={PINNED['torch']}\n" in (PROJECT_ROOT / "Makefile").read_text()


def test_all_dagster_packages_have_the_same_release() -> None:
    core = {
        PINNED[name] for name in ("dagster", "dagster-pipes", "dagster-graphql", "dagster-shared", "dagster-webserver")
    }
    libraries = {PINNED[name] for name in ("dagster-aws", "dagster-dbt", "dagster-mlflow", "dagster-postgres")}
    assert len(core) == len(libraries) == 1
