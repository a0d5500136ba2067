"""Replay results, stored once per candidate, baseline and dataset."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from ground_support import next_planner_version, sync_project_config

from replay.result import SCORES
from replay.stored_results import (
    StoredReplay,
    find_replay,
    link_policy_version,
    replays_of_model,
    save_replay,
    settled_model_versions,
)

SCORED = {name: 0.1234567 for name in SCORES}
RESULT = StoredReplay(
    mlflow_model_name="planner_model",
    mlflow_model_version=2,
    dataset_version="2025-01-03",
    baseline_model_version=1,
    status="completed",
    scores={**SCORED, "leftovers_score": None},
    is_better_than_baseline=False,
    verdict="refused",
    anchored=True,
    reasons=("The plan alignment is lower.", "Too few rows."),
    details={"table": [{"score": "plan_alignment_score", "interval": [0.1, 0.2]}]},
    mlflow_run_id="run-1",
)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to this test's own database."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


def test_stored_result_is_found_unchanged(connection: psycopg.Connection[Any]) -> None:
    stored = save_replay(connection, RESULT)
    assert stored.id is not None and stored.created_at is not None
    assert replace(stored, id=None, created_at=None) == replace(
        RESULT, scores={**{name: 0.123457 for name in SCORES}, "leftovers_score": None}
    )
    assert find_replay(connection, "planner_model", 2, "2025-01-03", 1) == stored
    assert find_replay(connection, "planner_model", 2, "2025-01-04", 1) is None


def test_result_is_replaced_when_the_same_replay_is_stored_again(connection: psycopg.Connection[Any]) -> None:
    running = save_replay(connection, replace(RESULT, status="running", verdict=None, scores={}))
    assert settled_model_versions(connection) == set()
    save_replay(connection, replace(RESULT, status="failed", verdict=None, scores={}, error_message="Out of memory."))
    assert settled_model_versions(connection) == set()
    completed = save_replay(connection, RESULT)
    assert (completed.id, completed.error_message) == (running.id, None)
    assert settled_model_versions(connection) == {("planner_model", "2")}
    again = save_replay(connection, replace(RESULT, verdict="passed", is_better_than_baseline=True))
    assert (again.id, again.verdict) == (running.id, "passed")
    assert len(replays_of_model(connection, "planner_model", 2)) == 1


@pytest.mark.parametrize("status", ["running", "failed"])
def test_completed_result_stays_when_the_replay_starts_again(connection: psycopg.Connection[Any], status: Any) -> None:
    completed = save_replay(connection, RESULT)
    assert save_replay(connection, replace(RESULT, status=status, verdict=None, scores={})) == completed


def test_policy_version_is_linked_to_existing_and_later_results(connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    save_replay(connection, RESULT)
    save_replay(connection, replace(RESULT, dataset_version="2025-01-04"))
    save_replay(connection, replace(RESULT, mlflow_model_version=3))
    version = next_planner_version(connection)
    assert link_policy_version(connection, "planner_model", 2, version.id) == 2
    assert link_policy_version(connection, "planner_model", 2, version.id) == 0
    assert save_replay(connection, RESULT).policy_version_id == version.id
    # Stored again just now, so it is the newest: a gate reads the last replay, not the last dataset.
    assert [replay.dataset_version for replay in replays_of_model(connection, "planner_model", 2)] == [
        "2025-01-03",
        "2025-01-04",
    ]
    assert {replay.policy_version_id for replay in replays_of_model(connection, "planner_model", 3)} == {None}


def test_result_is_rejected_when_a_score_has_no_column(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(ValueError, match="has no column luck_score: put it into `details`"):
        save_replay(connection, replace(RESULT, scores={"luck_score": 1.0}))
