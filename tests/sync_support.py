"""For tests of `lifecycle sync`: writes the two configuration files and applies them to the database of the test."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ground_support import (
    config_of,
    every_model_exists,
)

from experimentation.config.sync import SyncReport, sync
from experimentation.runs.lifecycle import runs_of
from foundation.yaml_files import ConfigError

POLICIES = """\
policies:
  - name: planner_policy
    versions:
      - version: 1
        mlflow_model_name: planner_model
        mlflow_model_version: 1
        config_defaults: {temperature: 0.0, exploration_rate: 0.05}
"""
SPLIT = """\
experiments:
  - name: cards
    unit_type: user
    status: active
    variants:
      - name: control
        allocation: 0.5
        config: {feature_enabled: false}
      - name: with_cards
        allocation: 0.5
        config: {feature_enabled: true}
"""
SECOND_VERSION = """\
      - version: 2
        mlflow_model_name: planner_model
        mlflow_model_version: 2
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database of this test's own."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


class Files:
    """Applies texts as the two files, and reports problems without the folder's name."""

    def __init__(self, connection: psycopg.Connection[Any], folder: Path) -> None:
        self.connection, self.folder = connection, folder

    def apply(self, experiments: str = SPLIT, policies: str = POLICIES, **options: Any) -> SyncReport:
        files = config_of(self.folder, experiments, policies)
        return sync(self.connection, files, **{"model_stage": every_model_exists, "by": "test", **options})

    def problems(self, experiments: str = SPLIT, policies: str = POLICIES, **options: Any) -> list[str]:
        state = everything(self.connection)
        with pytest.raises(ConfigError) as caught:
            self.apply(experiments, policies, **options)
        assert everything(self.connection) == state
        return str(caught.value).replace(f"{self.folder}/", "").splitlines()


@pytest.fixture
def files(connection: psycopg.Connection[Any], tmp_path: Path) -> Files:
    """The two files over the database of `connection`."""
    return Files(connection, tmp_path)


def everything(connection: psycopg.Connection[Any]) -> list[Any]:
    return [
        connection.execute(f"SELECT * FROM exp.{table} ORDER BY 1, 2").fetchall()
        for table in (
            "experiments",
            "variants",
            "allocation_epochs",
            "audit_log",
            "policy_versions",
            "policies",
            "layers",
        )
    ]


def allocations(connection: psycopg.Connection[Any], name: str = "cards") -> dict[str, Decimal]:
    return {variant.name: variant.allocation for variant in runs_of(connection, name)[-1].variants}
