"""One replay: candidate and baseline on the same unseen rows, scored and compared."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from experimentation.statistics.intervals import LEVEL
from product.protocol import Row
from replay.answers import BATCH_SIZE, Predicts, Progress, answers, inputs_of
from replay.reference_planners import ReferencePlanner
from replay.result import NEITHER, WEIGHTS, ByProposer, Comparison, FailedRow, Proposer, Reference, ReplayResult
from replay.rows import DatasetRows, Selection
from replay.scoring import (
    Scored,
    answered_with_constraint,
    comparisons,
    differences,
    estimates,
    score_rows,
    units_of,
)

SHOWN = 20
"""Failed rows and violations that a result lists; all of them are counted."""


@dataclass(frozen=True)
class Contestant:
    """A model version with its loaded model, and the policy versions that serve it (their ids are in the rows they proposed)."""

    name: str
    version: int
    model: Predicts = field(repr=False)
    policy_version_ids: frozenset[str] = frozenset()


def replay(
    candidate: Contestant,
    baseline: Contestant,
    dataset: DatasetRows,
    positions: Sequence[int],
    selection: Selection,
    *,
    weights: Mapping[str, float] = WEIGHTS,
    level: float = LEVEL,
    batch_size: int = BATCH_SIZE,
    references: Sequence[ReferencePlanner] = (),
    references_left_out: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> ReplayResult:
    """Run both on the rows at `positions` (see `rows.choose_rows`) and compare. The same input gives the same digits, whatever the batch.

    Raises ReplayError if a model does not answer like a planner model.
    """
    rows = dataset.take(positions)
    units = units_of(rows)
    inputs = inputs_of(rows)
    ours, theirs = (
        score_rows(
            dataset.product,
            rows,
            answers(
                contestant.model,
                inputs,
                name=f"{contestant.name} {contestant.version}",
                batch_size=batch_size,
                on_progress=on_progress,
            ),
            weights,
        )
        for contestant in (candidate, baseline)
    )
    proposers = [proposer_of(row, candidate.policy_version_ids, baseline.policy_version_ids) for row in rows]
    neither = [at for at, (kind, _) in enumerate(proposers) if kind in NEITHER]
    violations = [
        f"{row['metadata']['event_id']}: {message}"
        for row, scored in zip(rows, ours, strict=True)
        for message in scored.violations
    ]
    failures = _failures(rows, ours, theirs)
    return ReplayResult(
        model_name=candidate.name,
        model_version=candidate.version,
        baseline_version=baseline.version,
        dataset_name=dataset.name,
        dataset_version=dataset.version,
        dataset_uri=dataset.uri,
        dataset_digest=dataset.digest,
        selection=selection,
        rows=len(rows),
        units=len(set(units)),
        scores=comparisons(ours, theirs, units, level),
        unanchored=_compare_at(neither, ours, theirs, units, level),
        unanchored_rows=len(neither),
        by_proposer=_by_proposer(proposers, ours, theirs, units, level),
        answered_with_constraint=answered_with_constraint(ours),
        candidate_failed=sum(row.error is not None for row in ours),
        baseline_failed=sum(row.error is not None for row in theirs),
        failures=tuple(failures[:SHOWN]),
        candidate_violations=len(violations),
        violations=tuple(violations[:SHOWN]),
        references=tuple(
            _reference(
                planner,
                dataset,
                rows,
                units,
                ours,
                weights=weights,
                level=level,
                batch_size=batch_size,
                on_progress=on_progress,
            )
            for planner in references
        ),
        references_left_out=tuple(references_left_out),
    )


def proposer_of(row: Row, candidate_ids: frozenset[str], baseline_ids: frozenset[str]) -> tuple[Proposer, str]:
    """Who proposed the plan that the household then edited, and its name in the report."""
    metadata = row["metadata"]
    policy_version_id = metadata.get("policy_version_id")
    if policy_version_id is None:
        kind: Proposer = "nobody (reconstructed)" if metadata.get("reconstructed") else "unknown"
        return kind, kind
    if policy_version_id in candidate_ids:
        return "candidate", policy_version_id
    if policy_version_id in baseline_ids:
        return "baseline", policy_version_id
    return "another policy version", policy_version_id


def _by_proposer(
    proposers: Sequence[tuple[Proposer, str]],
    ours: Sequence[Scored],
    theirs: Sequence[Scored],
    units: Sequence[str],
    level: float,
) -> tuple[ByProposer, ...]:
    places: defaultdict[tuple[Proposer, str], list[int]] = defaultdict(list)
    for at, proposer in enumerate(proposers):
        places[proposer].append(at)
    return tuple(
        ByProposer(
            kind, name, len(at), len({units[place] for place in at}), _compare_at(at, ours, theirs, units, level)
        )
        for (kind, name), at in sorted(places.items())
    )


def _compare_at(
    at: Sequence[int], ours: Sequence[Scored], theirs: Sequence[Scored], units: Sequence[str], level: float
) -> dict[str, Comparison]:
    return comparisons(
        [ours[place] for place in at], [theirs[place] for place in at], [units[place] for place in at], level
    )


def _failures(rows: Sequence[Row], ours: Sequence[Scored], theirs: Sequence[Scored]) -> list[FailedRow]:
    failures: list[FailedRow] = []
    sides: tuple[tuple[Literal["candidate", "baseline"], Sequence[Scored]], ...] = (
        ("candidate", ours),
        ("baseline", theirs),
    )
    for model, scored in sides:
        for row, answer in zip(rows, scored, strict=True):
            if answer.error is not None:
                failures.append(FailedRow(model, str(row["metadata"]["event_id"]), answer.error))
    return failures


def _reference(
    planner: ReferencePlanner,
    dataset: DatasetRows,
    rows: Sequence[Row],
    units: Sequence[str],
    ours: Sequence[Scored],
    *,
    weights: Mapping[str, float],
    level: float,
    batch_size: int,
    on_progress: Progress | None,
) -> Reference:
    given = planner.answers(rows, batch_size=batch_size, on_progress=on_progress)
    scored = score_rows(dataset.product, rows, given, weights)
    return Reference(
        name=planner.name,
        description=planner.description,
        scores=estimates(scored, units, level),
        lead_of_candidate=differences(ours, scored, units, level),
        failed=sum(row.error is not None for row in scored),
    )
