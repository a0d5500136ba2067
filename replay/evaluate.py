"""A whole replay: choose rows, load both models, run, judge, and store the result.

Repeating a replay (same candidate, baseline and dataset version) ends with the same row in the database, the same MLflow run and the
same tags. A killed replay leaves a row with the status `running`, which the next one replaces.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from experimentation.policies import version_ids_of_model
from foundation.errors import LifecycleError
from product.protocol import Row
from replay import model_versions as versions
from replay.answers import BATCH_SIZE, Progress
from replay.gate import GateConfig, Verdict, judge
from replay.mlflow_run import log_replay
from replay.reference_planners import reference_planners
from replay.replaying import Contestant, replay
from replay.result import SCORES, JsonRecord, ReplayResult
from replay.rows import SAMPLE_SEED, SAMPLE_SIZE, DatasetRows, ReplayError, RowChoice, TrainedOn, choose_rows, read_rows
from replay.stored_results import StoredReplay, save_replay
from training.dataset import HELD_OUT

Connect = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]
"""Opens a database connection in its own transaction: committed at the end, rolled back on an exception."""


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay. Without a baseline it is the production version, else the heuristic planner."""

    model_name: str
    model_version: int
    dataset_uri: str
    baseline_version: int | None = None
    dataset_digest: str | None = None
    sample_size: int | None = SAMPLE_SIZE
    seed: int = SAMPLE_SEED
    rows: RowChoice = "unseen"
    batch_size: int = BATCH_SIZE
    references: bool = True
    gate: GateConfig = field(default_factory=GateConfig)


@dataclass(frozen=True)
class Replayed(JsonRecord):
    """A finished replay: its result, the verdict, the MLflow run it is logged in, and what was done, as sentences."""

    result: ReplayResult
    verdict: Verdict
    mlflow_run_id: str
    done: tuple[str, ...]


def evaluate(
    request: ReplayRequest,
    connect: Connect,
    *,
    tracking_uri: str,
    artefact_root: str,
    dagster_run_id: str | None = None,
    on_progress: Progress | None = None,
) -> Replayed:
    """Replay, judge, log to MLflow, store in `exp.offline_replay_results`, and tag the version `stage=candidate` if it passed.

    Raises LifecycleError if the replay cannot be done; the stored row is then `failed` with the reason. A refused gate is not an error.
    """
    versions.check_reachable(tracking_uri)
    baseline = request.baseline_version or versions.default_baseline(
        tracking_uri, request.model_name, request.model_version
    )
    if baseline == request.model_version:
        raise ReplayError(
            f"{request.model_name} {baseline} cannot be its own baseline: give another version with --baseline-version."
        )
    dataset = read_rows(request.dataset_uri, request.dataset_digest)
    empty = StoredReplay(request.model_name, request.model_version, dataset.version, baseline, "running")
    with connect() as connection:
        ours, theirs = (
            version_ids_of_model(connection, request.model_name, version)
            for version in (request.model_version, baseline)
        )
        save_replay(connection, empty)
    try:
        result = _replay(
            request,
            baseline,
            dataset,
            frozenset(map(str, ours)),
            frozenset(map(str, theirs)),
            tracking_uri,
            on_progress,
        )
        verdict = judge(result, request.gate)
        run_id = log_replay(
            result, verdict, tracking_uri=tracking_uri, artefact_root=artefact_root, dagster_run_id=dagster_run_id
        )
    except Exception as error:
        message = str(error) if isinstance(error, LifecycleError) else f"{type(error).__name__}: {error}"
        with connect() as connection:
            save_replay(
                connection,
                StoredReplay(
                    request.model_name,
                    request.model_version,
                    dataset.version,
                    baseline,
                    "failed",
                    error_message=message,
                ),
            )
        raise
    # Tagged before the result is stored: after a kill in between, the replay is repeated with the same outcome.
    outcome = (
        versions.mark_candidate(tracking_uri, request.model_name, request.model_version)
        if verdict.passed
        else f"{result.model} goes no further."
    )
    with connect() as connection:
        save_replay(
            connection,
            StoredReplay(
                request.model_name,
                request.model_version,
                dataset.version,
                baseline,
                "completed",
                scores={name: result.scores[name].candidate.mean for name in SCORES if name in result.scores},
                is_better_than_baseline=verdict.passed,
                verdict=verdict.decision,
                anchored=verdict.anchored,
                reasons=verdict.reasons,
                details={"result": result.to_dict(), "verdict": verdict.to_dict()},
                mlflow_run_id=run_id,
                policy_version_id=ours[0] if ours else None,
                baseline_version_id=theirs[0] if theirs else None,
            ),
        )
    logged = f"Logged as MLflow run {run_id}, stored in exp.offline_replay_results."
    return Replayed(result, verdict, run_id, (logged, outcome))


def _replay(
    request: ReplayRequest,
    baseline: int,
    dataset: DatasetRows,
    candidate_ids: frozenset[str],
    baseline_ids: frozenset[str],
    tracking_uri: str,
    on_progress: Progress | None,
) -> ReplayResult:
    """Choose the rows before loading any model, so that a refusal is quick."""
    name = request.model_name
    keys = dataset.keys()
    trained = [versions.trained_on(tracking_uri, name, version) for version in (request.model_version, baseline)]
    positions, selection = choose_rows(
        keys, trained, choice=request.rows, sample_size=request.sample_size, seed=request.seed
    )
    candidate = Contestant(
        name, request.model_version, versions.load(tracking_uri, name, request.model_version), candidate_ids
    )
    incumbent = Contestant(name, baseline, versions.load(tracking_uri, name, baseline), baseline_ids)
    references, left_out = (
        reference_planners(
            dataset.product,
            _taught(request, dataset, trained[0], positions, tracking_uri),
            candidate.model,
            fine_tuned=versions.is_fine_tuned(tracking_uri, name, request.model_version),
            borrows=versions.borrows_prompts(candidate.model),
            households=len({keys[at].household for at in positions}),
        )
        if request.references
        else ([], ["references: this replay left them out."])
    )
    return replay(
        candidate,
        incumbent,
        dataset,
        positions,
        selection,
        weights=request.gate.weights,
        level=request.gate.level,
        batch_size=request.batch_size,
        references=references,
        references_left_out=left_out,
        on_progress=on_progress,
    )


def _taught(
    request: ReplayRequest, dataset: DatasetRows, learnt: TrainedOn, scored: Sequence[int], tracking_uri: str
) -> list[Row]:
    """Rows to count popularity on: those that the candidate learnt from; for a rule-based planner, those neither scored nor held out."""
    home = versions.dataset_uri(tracking_uri, request.model_name, request.model_version)
    if learnt.event_ids and home is not None:
        source = dataset if home.rstrip("/") == dataset.uri else read_rows(home)
        return source.take([at for at, key in enumerate(source.keys()) if key.event_id in learnt.event_ids])
    excluded = set(scored)
    return dataset.take([at for at, key in enumerate(dataset.keys()) if at not in excluded and key.split != HELD_OUT])
