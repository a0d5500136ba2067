"""The replay in MLflow: one MLflow run per replay, with scores, table, report and plot. The candidate's training run gets the scores too.

Repeating a replay of the same models and dataset writes the same values into the same MLflow run.
"""

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from experimentation.statistics.intervals import Estimate
from replay.gate import Verdict
from replay.plot import scores_svg
from replay.report import headline, markdown
from replay.result import SCORES, ReplayResult
from training import registry

EVALUATION_TYPE = "offline_replay"


def log_replay(
    result: ReplayResult, verdict: Verdict, *, tracking_uri: str, artefact_root: str, dagster_run_id: str | None = None
) -> str:
    """Log a replay and return the id of its MLflow run. `artefact_root` is used if the MLflow experiment is new.

    Raises mlflow.exceptions.MlflowException when the tracking store cannot be reached.
    """
    client = registry.client(tracking_uri)
    run_id = _run_of(client, result, registry.experiment_id(tracking_uri, registry.REPLAY_EXPERIMENT, artefact_root))
    tags = _tags(result, verdict) | ({"dagster_run_id": dagster_run_id} if dagster_run_id else {})
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    _log_metrics(client, run_id, replay_metrics(result))
    client.log_text(run_id, scores_csv(result), "scores.csv")
    client.log_text(run_id, scores_svg(result), "scores.svg")
    client.log_text(run_id, markdown(result, verdict, plot=False), "report.md")
    client.log_text(
        run_id, json.dumps({"result": result.to_dict(), "verdict": verdict.to_dict()}, indent=2), "replay.json"
    )
    client.set_terminated(run_id, "FINISHED")
    trained_in = registry.get_model_version(tracking_uri, result.model_name, result.model_version).run_id
    if trained_in:
        _log_metrics(client, trained_in, _own_scores(result))
    return run_id


def replay_metrics(result: ReplayResult) -> dict[str, float]:
    """Metric → value: the candidate's scores by their own names, the others behind `baseline/`, `difference/`, a planner's name."""
    return dict(_metrics(result))


def scores_csv(result: ReplayResult) -> str:
    """A line for each planner and score: mean, interval, rows, households."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["planner", "score", "mean", "low", "high", "rows", "households"])
    for planner, name, estimate in _estimates(result):
        writer.writerow([planner, name, estimate.mean, estimate.low, estimate.high, estimate.rows, estimate.units])
    return text.getvalue()


def _run_of(client: Any, result: ReplayResult, experiment_id: str) -> str:
    key = hashlib.sha256(json.dumps(result.key).encode()).hexdigest()
    runs = client.search_runs([experiment_id], f"tags.replay_key = '{key}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    name = f"{result.model} against {result.baseline_version} on {result.dataset_version}"
    return str(client.create_run(experiment_id, tags={"replay_key": key}, run_name=name).info.run_id)


def _tags(result: ReplayResult, verdict: Verdict) -> dict[str, str]:
    return {
        "evaluation_type": EVALUATION_TYPE,
        "model_name": result.model_name,
        "model_version": str(result.model_version),
        "baseline_version": str(result.baseline_version),
        "dataset_version": result.dataset_version,
        "dataset_digest": result.dataset_digest,
        "rows": str(result.rows),
        "verdict": verdict.decision,
        "anchored": str(verdict.anchored).lower(),
        "mlflow.note.content": "\n".join([headline(result), "", *(f"- {reason}" for reason in verdict.reasons)]),
    }


def _log_metrics(client: Any, run_id: str, metrics: Mapping[str, float]) -> None:
    """Log the metrics that the run does not have yet with this value."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    new = [Metric(name, value, now, 0) for name, value in metrics.items() if known.get(name) != value]
    if new:
        client.log_batch(run_id, metrics=new)


def _own_scores(result: ReplayResult) -> dict[str, float]:
    return {
        name: mean
        for name in SCORES
        if name in result.scores and (mean := result.scores[name].candidate.mean) is not None
    }


def _metrics(result: ReplayResult) -> Iterator[tuple[str, float]]:
    for planner, name, estimate in _estimates(result):
        prefix = "" if planner == "candidate" else f"{planner}/"
        for suffix, value in (("", estimate.mean), ("/low", estimate.low), ("/high", estimate.high)):
            if value is not None:
                yield f"{prefix}{name}{suffix}", value
    yield "rows", float(result.rows)
    yield "households", float(result.units)
    yield "failed_rows", float(result.candidate_failed)
    yield "baseline_failed_rows", float(result.baseline_failed)


def _estimates(result: ReplayResult) -> Iterator[tuple[str, str, Estimate]]:
    for name, scores in result.scores.items():
        yield "candidate", name, scores.candidate
        yield "baseline", name, scores.baseline
        yield "difference", name, scores.difference
    for reference in result.references:
        for name, estimate in reference.scores.items():
            yield reference.name, name, estimate
