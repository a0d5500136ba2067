"""Policies on a real database: version numbers without gaps, the version in production, and archiving."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from ground_support import BY, first_planner_version, next_planner_version, sync_project_config

from experimentation.policies import (
    add_version,
    ensure_policy,
    ensure_version_of_model,
    get_version,
    production_version,
    set_production,
    set_version_status,
    version_of_model,
    version_uses,
)
from experimentation.promotion.candidates import open_candidate_run
from experimentation.runs.lifecycle import complete_run
from experimentation.runs.run import ExperimentationError


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database with the project's own configuration."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        sync_project_config(opened)
        yield opened


def test_only_the_first_version_goes_into_production_automatically(connection: psycopg.Connection[Any]) -> None:
    ensure_policy(connection, "other", "Another policy.", change=BY)
    assert production_version(connection, "other") is None
    versions = [
        add_version(connection, "other", mlflow_model_name="m", mlflow_model_version=number, change=BY).version
        for number in (7, 8)
    ]
    assert versions == [1, 2]
    production = production_version(connection, "other")
    assert production is not None
    assert (production.label, production.model_uri, production.status) == ("other@1", "models:/m/7", "active")


def test_config_defaults_are_stored_unchanged(connection: psycopg.Connection[Any]) -> None:
    defaults = {"temperature": 0.0, "nested": {"list": [1, None, "ü"]}, "on": True}
    added = add_version(
        connection,
        "planner_policy",
        mlflow_model_name="m",
        mlflow_model_version=1,
        config_defaults=defaults,
        change=BY,
    )
    assert get_version(connection, "planner_policy", added.version) == added
    assert added.config_defaults == defaults


def test_ensure_policy_does_not_change_an_existing_policy(connection: psycopg.Connection[Any]) -> None:
    before = ensure_policy(connection, "planner_policy", "Another description.", change=BY)
    assert before.description == "Makes a household's plan for the week."
    assert connection.execute("SELECT count(*) FROM exp.audit_log WHERE action = 'policy.created'").fetchone() == (1,)


def test_versions_get_different_numbers_when_added_in_parallel(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    def add(number: int) -> int:
        with psycopg.connect(database_url) as own:
            return add_version(
                own, "planner_policy", mlflow_model_name="m", mlflow_model_version=number, change=BY
            ).version

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(add, range(6))) == [2, 3, 4, 5, 6, 7]


def test_model_version_gets_one_policy_version_when_ensured_in_parallel(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    def ensure(_: int) -> int:
        with psycopg.connect(database_url) as own:
            version = ensure_version_of_model(
                own, "planner_policy", mlflow_model_name="planner_model", mlflow_model_version=2, change=BY
            )
            return version.version

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ensure, range(4))) == [2, 2, 2, 2]
    version = version_of_model(connection, "planner_policy", "planner_model", 2)
    assert version is not None and version.version == 2
    assert version_of_model(connection, "planner_policy", "planner_model", 3) is None


def test_version_is_refused_when_its_number_is_taken_or_the_policy_unknown(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(ExperimentationError, match="planner_policy@1 exists already: a version never changes"):
        add_version(connection, "planner_policy", mlflow_model_name="m", mlflow_model_version=9, version=1, change=BY)
    with pytest.raises(ExperimentationError, match=r"No policy is called nobody: add it to config/policies\.yml"):
        add_version(connection, "nobody", mlflow_model_name="m", mlflow_model_version=9, change=BY)


def test_archiving_is_refused_while_a_version_is_served(connection: psycopg.Connection[Any]) -> None:
    first, candidate = first_planner_version(connection), next_planner_version(connection)
    assert version_uses(connection, first.id) == [
        "planner_policy has it in production",
        "weekly_planner run 1 serves it as control",
    ]
    run = open_candidate_run(
        connection,
        experiment_name="weekly_planner",
        policy_version_id=candidate.id,
        treatment_name="candidate_v2",
        change=BY,
    ).run
    with pytest.raises(
        ExperimentationError,
        match=r"planner_policy@2 can't be archived while weekly_planner run 2 serves it as candidate_v2\.",
    ):
        set_version_status(connection, candidate, "archived", change=BY)

    complete_run(connection, run.id, shipped="candidate_v2", change=BY)
    set_production(connection, candidate, change=BY)
    # Run 1 shipped version 1, but run 2 is the experiment's latest run now.
    assert version_uses(connection, first.id) == []
    assert version_uses(connection, candidate.id) == [
        "planner_policy has it in production",
        "weekly_planner run 2 serves it as candidate_v2",
    ]
    set_version_status(connection, first, "archived", change=BY)
    archived = get_version(connection, "planner_policy", 1)
    assert archived is not None and archived.status == "archived"
    with pytest.raises(ExperimentationError, match="planner_policy@1 is archived, so it can't be in production"):
        set_production(connection, archived, change=BY)


def test_changes_of_status_and_production_are_audited(connection: psycopg.Connection[Any]) -> None:
    candidate = next_planner_version(connection)
    set_version_status(connection, candidate, "deprecated", change=BY)
    set_production(connection, candidate, change=BY)
    rows = connection.execute(
        "SELECT action, subject, before, after FROM exp.audit_log ORDER BY id DESC LIMIT 2"
    ).fetchall()
    assert rows == [
        ("policy.production_changed", "planner_policy", {"version": 1}, {"version": 2}),
        ("policy_version.status_changed", "planner_policy@2", {"status": "active"}, {"status": "deprecated"}),
    ]
