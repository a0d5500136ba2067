"""From answers to numbers: one row's scores, and estimates over rows with intervals clustered by household.

A failed row has an empty plan, and is scored as one: nothing aligned, every meal to be added, no variety. It broke no constraint, since
nothing was proposed, but it is not evidence of respect either: the gate asks for constrained rows that were answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experimentation.statistics.intervals import LEVEL, Estimate, mean_where_known, paired_difference
from product.protocol import CONSTRAINTS, Product, Row
from replay.answers import Answer
from replay.result import OFFLINE, WEIGHTS, Comparison
from training.dataset import unit_of
from training.versions import TOKENS

SCORE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Scored:
    """One row of one model: its scores by name (None: does not apply), why it failed, and which hard rules its plan broke."""

    scores: dict[str, float | None]
    error: str | None
    violations: tuple[str, ...]


def score_rows(
    product: Product, rows: Sequence[Row], given: Sequence[Answer], weights: Mapping[str, float] = WEIGHTS
) -> list[Scored]:
    """Each row's scores. A row whose plan the product cannot score (an unknown shape) counts as failed."""
    return [_score(product, row, answer, weights) for row, answer in zip(rows, given, strict=True)]


def estimates(scored: Sequence[Scored], units: Sequence[str], level: float = LEVEL) -> dict[str, Estimate]:
    """Each score's mean over the rows to which it applies."""
    return {name: mean_where_known((row.scores[name] for row in scored), units, level) for name in _names(scored)}


def comparisons(
    candidate: Sequence[Scored], baseline: Sequence[Scored], units: Sequence[str], level: float = LEVEL
) -> dict[str, Comparison]:
    """Every score of both models over the rows to which it applies for both, so that both means are over the same rows."""
    compared = {}
    for name in _names(candidate):
        left, right, owners = _pairs(candidate, baseline, units, name)
        compared[name] = Comparison(
            mean_where_known(left, owners, level),
            mean_where_known(right, owners, level),
            paired_difference(left, right, owners, level),
        )
    return compared


def differences(
    left: Sequence[Scored], right: Sequence[Scored], units: Sequence[str], level: float = LEVEL
) -> dict[str, Estimate]:
    """left − right of every score, paired by row."""
    return {name: comparison.difference for name, comparison in comparisons(left, right, units, level).items()}


def units_of(rows: Sequence[Row]) -> list[str]:
    """The household of each row, by which intervals are clustered."""
    return [unit_of(row) for row in rows]


def offline_score(scores: Mapping[str, float | None], weights: Mapping[str, float] = WEIGHTS) -> float | None:
    """Weighted mean of those weighted scores that apply to the row; None where none does."""
    known = {name: score for name, weight in weights.items() if weight and (score := scores.get(name)) is not None}
    if not known:
        return None
    return sum(weights[name] * score for name, score in known.items()) / sum(weights[name] for name in known)


def _score(product: Product, row: Row, answer: Answer, weights: Mapping[str, float]) -> Scored:
    error, plan = answer.error, answer.plan
    try:
        scores = product.scores(row, plan)
        broken = product.violations(row["input"], plan)
    except SCORE_ERRORS as unreadable:
        error = f"The plan cannot be scored: {type(unreadable).__name__}: {unreadable}"
        # The row itself is sound (it came out of a checked dataset), so the empty plan can be scored; if not, the dataset is at fault.
        scores, broken = product.scores(row, {"meals": []}), []
    scores = {
        **scores,
        OFFLINE: offline_score(scores, weights),
        TOKENS: None if answer.tokens is None else float(answer.tokens),
    }
    return Scored(scores, error, tuple(violation.message for violation in broken))


def _names(scored: Sequence[Scored]) -> list[str]:
    return list(dict.fromkeys(name for row in scored for name in row.scores))


def _pairs(
    left: Sequence[Scored], right: Sequence[Scored], units: Sequence[str], name: str
) -> tuple[list[float], list[float], list[str]]:
    both = [
        (ours, theirs, unit)
        for row, other, unit in zip(left, right, units, strict=True)
        if (ours := row.scores.get(name)) is not None and (theirs := other.scores.get(name)) is not None
    ]
    return [pair[0] for pair in both], [pair[1] for pair in both], [pair[2] for pair in both]


def answered_with_constraint(scored: Sequence[Scored]) -> int:
    """Rows that have a constraint and were answered: the evidence behind a constraint respect of 1."""
    return sum(row.error is None and row.scores.get(CONSTRAINTS) is not None for row in scored)
