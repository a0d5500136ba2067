"""Dagster assets of the replay stage: a model version's scores over held-out rows, and the gate before a candidate."""

from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from assets.failures import as_failures
from assets.groups import BASELINE_MODEL, ML_TEAM, REPLAY
from assets.models.asset import planner_checkpoint
from assets.partitions import MODEL_VERSIONS, parse_model_version_key
from assets.resources import MlflowTracking, PlatformDatabase
from foundation.settings import settings
from replay.evaluate import Replayed, ReplayRequest, evaluate
from replay.gate import GateConfig
from replay.report import markdown


class ReplayConfig(dg.Config):
    """Which rows and planners a replay scores."""

    baseline_version: int | None = Field(
        default=None, description="Version to compare with; unset: the one in production, else the first."
    )
    dataset: str | None = Field(
        default=None, description="Folder of a dataset version; unset: the one the model was trained on."
    )
    sample_size: int | None = Field(default=None, description="Rows at most, drawn with seed 42; unset: the setting.")
    references: bool = Field(
        default=True, description="Score random, popularity and other reference planners on the same rows."
    )


@dg.asset(
    group_name=REPLAY,
    kinds={"mlflow", "postgres"},
    owners=[ML_TEAM],
    partitions_def=MODEL_VERSIONS,
    deps=[dg.AssetDep(planner_checkpoint, partition_mapping=dg.AllPartitionMapping()), BASELINE_MODEL],
    description=(
        "Plans of a model version and of the baseline for rows that neither was trained on, scored and compared with intervals, next to "
        "random, popularity, the heuristic, the untuned base, and a control with shuffled prompts."
    ),
)
def replay_metrics(
    context: dg.AssetExecutionContext, config: ReplayConfig, database: PlatformDatabase, mlflow: MlflowTracking
) -> dg.MaterializeResult[Replayed]:
    """Replay the version of this partition."""
    from training.registry import get_model_version

    name, number = parse_model_version_key(context.partition_key)
    current = settings()
    with as_failures():
        version = get_model_version(current.tracking_uri, name, number)
        dataset = config.dataset or version.dataset_uri
        if dataset is None:
            raise dg.Failure(
                f"{context.partition_key} has no recorded training dataset: name a dataset in the Dagster run's config (`dataset`).",
                allow_retries=False,
            )
        replayed = evaluate(
            ReplayRequest(
                model_name=name,
                model_version=number,
                dataset_uri=dataset,
                baseline_version=config.baseline_version,
                sample_size=config.sample_size or current.replay_sample_size,
                references=config.references,
                gate=GateConfig(allow_unconstrained=current.replay_allow_unconstrained),
            ),
            database.connect,
            tracking_uri=current.tracking_uri,
            artefact_root=mlflow.artefact_root(),
            dagster_run_id=context.run.run_id,
            on_progress=partial(_log_progress, context),
        )
    return dg.MaterializeResult(value=replayed, metadata=_metadata(replayed, mlflow.model_url(name, number)))


def _log_progress(context: dg.AssetExecutionContext, planner: str, done: int, rows: int) -> None:
    context.log.info(f"{planner}: {done:,} of {rows:,} rows")


@dg.asset_check(
    asset=replay_metrics,
    name="acceptance_gate",
    blocking=True,
    # Without it the check would load the records of all versions.
    partitions_def=MODEL_VERSIONS,
    description="Constraint respect exactly 1, no score worse than the baseline's, on rows that neither model proposed.",
)
def acceptance_gate(replay_metrics: Replayed) -> dg.AssetCheckResult:
    """The verdict of this partition's replay. A refusal is a result: the check fails, and nothing downstream is materialised."""
    result, verdict = replay_metrics.result, replay_metrics.verdict
    decision = verdict.decision.replace("_", " ")
    reasons = list(verdict.reasons) or ["Every rule holds."]
    return dg.AssetCheckResult(
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{decision}: {' '.join(reasons)}",
        metadata={
            "verdict": decision,
            "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in reasons)),
            "anchored": verdict.anchored,
            "dataset": result.dataset_version,
            "baseline": result.baseline,
        },
    )


def _metadata(replayed: Replayed, model_page: str) -> dict[str, Any]:
    result = replayed.result
    scores = {name: score.candidate.mean for name, score in result.scores.items() if score.candidate.mean is not None}
    return {
        "report": dg.MetadataValue.md(markdown(result, replayed.verdict, replayed.done)),
        "verdict": replayed.verdict.decision,
        "rows": result.rows,
        "households": result.units,
        "model page": dg.MetadataValue.url(model_page),
        **scores,
    }
