"""The table `exp.offline_replay_results`: the result of replaying a model version against a baseline."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import Jsonb

from replay.result import SCORES

# A repeated replay does not hide the stored result; only another completed result replaces it.
SAVE = """
INSERT INTO exp.offline_replay_results AS old (
    policy_version_id, mlflow_model_name, mlflow_model_version, dataset_version, mlflow_run_id,
    plan_alignment_score, constraint_respect_score, edit_distance_score, diversity_score, leftovers_score, offline_eval_score,
    baseline_version_id, baseline_model_version, is_better_than_baseline, verdict, anchored, reasons, details, status, error_message)
VALUES (
    %(policy_version_id)s, %(mlflow_model_name)s, %(mlflow_model_version)s, %(dataset_version)s, %(mlflow_run_id)s,
    %(plan_alignment_score)s, %(constraint_respect_score)s, %(edit_distance_score)s, %(diversity_score)s, %(leftovers_score)s,
    %(offline_eval_score)s, %(baseline_version_id)s, %(baseline_model_version)s, %(is_better_than_baseline)s, %(verdict)s,
    %(anchored)s, %(reasons)s, %(details)s, %(status)s, %(error_message)s)
ON CONFLICT (mlflow_model_name, mlflow_model_version, dataset_version, baseline_model_version) DO UPDATE SET
    policy_version_id = coalesce(excluded.policy_version_id, old.policy_version_id),
    mlflow_run_id = excluded.mlflow_run_id,
    plan_alignment_score = excluded.plan_alignment_score,
    constraint_respect_score = excluded.constraint_respect_score,
    edit_distance_score = excluded.edit_distance_score,
    diversity_score = excluded.diversity_score,
    leftovers_score = excluded.leftovers_score,
    offline_eval_score = excluded.offline_eval_score,
    baseline_version_id = excluded.baseline_version_id,
    is_better_than_baseline = excluded.is_better_than_baseline,
    verdict = excluded.verdict,
    anchored = excluded.anchored,
    reasons = excluded.reasons,
    details = excluded.details,
    status = excluded.status,
    error_message = excluded.error_message,
    created_at = now()
WHERE old.status <> 'completed' OR excluded.status = 'completed'
"""
_SELECT = (
    "SELECT id, policy_version_id, mlflow_model_name, mlflow_model_version, dataset_version, mlflow_run_id, plan_alignment_score, "
    "constraint_respect_score, edit_distance_score, diversity_score, leftovers_score, offline_eval_score, baseline_version_id, "
    "baseline_model_version, is_better_than_baseline, verdict, anchored, reasons, details, status, error_message, created_at "
    "FROM exp.offline_replay_results "
)
ONE = (
    _SELECT + "WHERE mlflow_model_name = %(mlflow_model_name)s AND mlflow_model_version = %(mlflow_model_version)s "
    "AND dataset_version = %(dataset_version)s AND baseline_model_version = %(baseline_model_version)s"
)
OF_MODEL = _SELECT + "WHERE mlflow_model_name = %s AND mlflow_model_version = %s ORDER BY created_at DESC, id"
SETTLED = (
    # Passed, and no policy version yet: the Dagster run ended between the replay and the candidate, which is still missing.
    "SELECT DISTINCT mlflow_model_name, mlflow_model_version FROM exp.offline_replay_results "
    "WHERE status = 'completed' AND (verdict IS DISTINCT FROM 'passed' OR policy_version_id IS NOT NULL)"
)
LINK = """
UPDATE exp.offline_replay_results SET policy_version_id = %s
WHERE mlflow_model_name = %s AND mlflow_model_version = %s AND policy_version_id IS DISTINCT FROM %s
"""


@dataclass(frozen=True)
class StoredReplay:
    """One row. `scores` are the candidate's means by the names in `SCORES`, None where a score applied to no row, kept to 6
    decimals; `details` holds the score tables of both models with their intervals; `reasons` are sentences. `id` and `created_at`
    are set by the database.
    """

    mlflow_model_name: str
    mlflow_model_version: int
    dataset_version: str
    baseline_model_version: int
    status: Literal["running", "completed", "failed"]
    scores: Mapping[str, float | None] = field(default_factory=dict)
    is_better_than_baseline: bool | None = None
    verdict: Literal["passed", "refused", "not_evaluated"] | None = None
    anchored: bool | None = None
    reasons: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    policy_version_id: UUID | None = None
    baseline_version_id: UUID | None = None
    error_message: str | None = None
    id: UUID | None = None
    created_at: datetime | None = None


def save_replay(connection: psycopg.Connection[Any], replay: StoredReplay) -> StoredReplay:
    """Store a replay, replacing an earlier one of the same models and dataset. Returns the stored row.

    Only a completed result replaces a completed one. Raises ValueError for a score that has no column.
    """
    if unknown := set(replay.scores) - set(SCORES):
        raise ValueError(
            f"exp.offline_replay_results has no column {', '.join(sorted(unknown))}: put it into `details`."
        )
    fields = {
        **{name: getattr(replay, name) for name in replay.__dataclass_fields__ if name != "scores"},
        **{name: replay.scores.get(name) for name in SCORES},
        "mlflow_model_version": str(replay.mlflow_model_version),
        "baseline_model_version": str(replay.baseline_model_version),
        "reasons": Jsonb(list(replay.reasons)),
        "details": Jsonb(dict(replay.details)),
    }
    connection.execute(SAVE, fields)
    with connection.cursor(row_factory=dict_row) as cursor:
        return _record(cursor.execute(ONE, fields).fetchone() or {})


def find_replay(
    connection: psycopg.Connection[Any],
    mlflow_model_name: str,
    mlflow_model_version: int,
    dataset_version: str,
    baseline_model_version: int,
) -> StoredReplay | None:
    """The replay of these two model versions over this dataset, or None."""
    fields = {
        "mlflow_model_name": mlflow_model_name,
        "mlflow_model_version": str(mlflow_model_version),
        "dataset_version": dataset_version,
        "baseline_model_version": str(baseline_model_version),
    }
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(ONE, fields).fetchone()
    return None if row is None else _record(row)


def replays_of_model(
    connection: psycopg.Connection[Any], mlflow_model_name: str, mlflow_model_version: int
) -> list[StoredReplay]:
    """Every replay of a model version as the candidate, the newest first."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return [_record(row) for row in cursor.execute(OF_MODEL, (mlflow_model_name, str(mlflow_model_version)))]


def settled_model_versions(connection: psycopg.Connection[Any]) -> set[tuple[str, str]]:
    """(model name, version) of every version that needs no further replay: refused, or passed and with a policy version."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return {(name, version) for name, version in cursor.execute(SETTLED)}


def link_policy_version(
    connection: psycopg.Connection[Any], mlflow_model_name: str, mlflow_model_version: int, policy_version_id: UUID
) -> int:
    """Fill in the policy version of a replayed model. Returns how many rows were changed."""
    fields = (policy_version_id, mlflow_model_name, str(mlflow_model_version), policy_version_id)
    return connection.execute(LINK, fields).rowcount


def _record(row: Mapping[str, Any]) -> StoredReplay:
    fields = {name: value for name, value in row.items() if name not in SCORES}
    scores = {name: None if row[name] is None else float(row[name]) for name in SCORES}
    numbers = {name: int(row[name]) for name in ("mlflow_model_version", "baseline_model_version")}
    return StoredReplay(**{**fields, **numbers, "reasons": tuple(row["reasons"])}, scores=scores)
