"""Common test data: configuration files as text, a database with the project's own configuration, event partitions."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from eventlog.partitions import ensure_event_partitions
from experimentation.config.files import ConfigFiles, read_config
from experimentation.config.sync import SyncReport, sync
from experimentation.policies import add_version, get_version
from experimentation.runs.run import PolicyVersion
from foundation.audit import Change
from foundation.settings import PROJECT_ROOT

BY = Change("test", "Because of the test.")
NO_POLICIES = "policies: []\n"
NO_EXPERIMENTS = "experiments: []\n"


def every_model_exists(name: str, version: int) -> str | None:
    """A model registry in which every version exists and none is archived."""
    return "none"


def config_of(folder: Path, experiments: str = NO_EXPERIMENTS, policies: str = NO_POLICIES) -> ConfigFiles:
    """Write the two configuration files to `folder` and read them."""
    (folder / "experiments.yml").write_text(experiments)
    (folder / "policies.yml").write_text(policies)
    return read_config(folder)


def assert_problem(problems: list[str], place: str, words: str) -> None:
    """One of the problems is at this place, and its rule has these words in this order."""
    pattern = re.escape(place) + ".*" + ".*".join(re.escape(word) for word in words.split())
    assert any(re.match(pattern, problem) for problem in problems), problems


def sync_project_config(connection: psycopg.Connection[Any], **options: Any) -> SyncReport:
    """Apply config/*.yml of this project: `planner_policy@1` in production, `weekly_planner` run 1, the flag `recipe_cards`."""
    return sync(
        connection,
        read_config(PROJECT_ROOT / "config"),
        **{"model_stage": every_model_exists, "by": "test", **options},
    )


def next_planner_version(connection: psycopg.Connection[Any], model_version: int = 2) -> PolicyVersion:
    """Add another version of `planner_policy`, for a candidate."""
    return add_version(
        connection,
        "planner_policy",
        mlflow_model_name="planner_model",
        mlflow_model_version=model_version,
        change=Change("test", "A test needs a candidate."),
    )


def first_planner_version(connection: psycopg.Connection[Any]) -> PolicyVersion:
    """`planner_policy@1`, after `sync_project_config`."""
    version = get_version(connection, "planner_policy", 1)
    assert version is not None
    return version


def make_event_partitions(connection: psycopg.Connection[Any], first_day: date | None = None) -> date:
    """Create partitions for history and for each day from `first_day` (default: two days ago) to tomorrow. Returns the first day."""
    first_day = first_day or (datetime.now(UTC).date() - timedelta(days=2))
    ensure_event_partitions(connection, first_day, days_ahead=1)
    return first_day
