"""The result of a replay, as frozen records that travel as JSON between assets and into the database."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from experimentation.statistics.intervals import Estimate
from product.protocol import ALIGNMENT, CONSTRAINTS, DIVERSITY, EDITS, LEFTOVERS
from replay.rows import Selection

OFFLINE = "offline_eval_score"
SCORES = (ALIGNMENT, CONSTRAINTS, EDITS, DIVERSITY, LEFTOVERS, OFFLINE)
"""The scores that have a column in `exp.offline_replay_results`, in display order."""
WEIGHTS: Mapping[str, float] = MappingProxyType({ALIGNMENT: 0.4, EDITS: 0.3, DIVERSITY: 0.15, LEFTOVERS: 0.15})
"""Weights of the scores in `offline_eval_score`, unless the gate's configuration sets others."""

Proposer = Literal["candidate", "baseline", "another policy version", "nobody (reconstructed)", "unknown"]
NEITHER: frozenset[Proposer] = frozenset({"another policy version", "nobody (reconstructed)"})
"""Proposers of rows that favour neither model. A plan without a recorded proposer may be either model's, so it is not among them."""


class JsonRecord:
    """A frozen dataclass that converts to plain JSON types and back."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        fields: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises pydantic.ValidationError for anything else."""
        # A dataclass inside may carry fields by any mapping; JSON mode turns lists back into tuples.
        return TypeAdapter(cls).validate_python(fields)


@dataclass(frozen=True)
class Comparison:
    """One score of both models over the same rows, and the paired difference (candidate − baseline)."""

    candidate: Estimate
    baseline: Estimate
    difference: Estimate


@dataclass(frozen=True)
class FailedRow:
    """A row on which a model failed: it stays in every mean, scored as an empty plan."""

    model: Literal["candidate", "baseline"]
    event_id: str
    error: str


@dataclass(frozen=True)
class ByProposer:
    """Scores over the rows whose plan one proposer made. `name` is the policy version's id, or the proposer."""

    proposer: Proposer
    name: str
    rows: int
    units: int
    scores: dict[str, Comparison]


@dataclass(frozen=True)
class Reference:
    """Another planner on the same rows, for scale: its scores, and candidate − reference, paired."""

    name: str
    description: str
    scores: dict[str, Estimate]
    lead_of_candidate: dict[str, Estimate]
    failed: int


@dataclass(frozen=True)
class ReplayResult(JsonRecord):
    """One candidate and one baseline, run on the same unseen rows. Everything but the verdict.

    `scores` is over all rows; `unanchored` over those that neither model proposed, with its own count of rows. Both hold every score of
    the product, `offline_eval_score` and `tokens_generated`. `answered_with_constraint` counts rows with a constraint that the
    candidate answered. `failures` and `violations` are the first few; the counts are complete.
    """

    model_name: str
    model_version: int
    baseline_version: int
    dataset_name: str
    dataset_version: str
    dataset_uri: str
    dataset_digest: str
    selection: Selection
    rows: int
    units: int
    scores: dict[str, Comparison]
    unanchored: dict[str, Comparison]
    unanchored_rows: int
    by_proposer: tuple[ByProposer, ...]
    answered_with_constraint: int
    candidate_failed: int
    baseline_failed: int
    failures: tuple[FailedRow, ...]
    candidate_violations: int
    violations: tuple[str, ...]
    references: tuple[Reference, ...]
    references_left_out: tuple[str, ...]
    """Why other reference planners are missing, as sentences."""

    @property
    def model(self) -> str:
        """For display: `planner_model 4`."""
        return f"{self.model_name} {self.model_version}"

    @property
    def baseline(self) -> str:
        """`planner_model 3`."""
        return f"{self.model_name} {self.baseline_version}"

    @property
    def key(self) -> tuple[str, int, str, int]:
        """Identity of a replay: two replays with the same key are the same."""
        return self.model_name, self.model_version, self.dataset_version, self.baseline_version
