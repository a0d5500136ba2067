"""May this model version become a candidate? A pure function of the replay's result.

A rule is met, broken, unknown (the numbers are missing) or waived (an option allows it). One broken rule refuses. Without a broken rule,
an unknown one gives no verdict: no data is not a pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experimentation.statistics.intervals import LEVEL, Estimate
from product.protocol import ALIGNMENT, CONSTRAINTS, DIVERSITY, EDITS, LEFTOVERS
from replay.result import OFFLINE, WEIGHTS, Comparison, JsonRecord, ReplayResult
from training.versions import TOKENS

DECIMALS = 6
"""Means are compared with the decimals with which they are stored."""
MARGIN = 0.02
"""How far below 0 the lower bound of a paired difference may lie."""

RuleState = Literal["met", "broken", "unknown", "waived"]
Decision = Literal["passed", "refused", "not_evaluated"]


class GateConfig(BaseModel):
    """What the gate asks for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    margin_alignment: float = Field(
        default=MARGIN,
        ge=0,
        description="Plan alignment: the lower bound of the paired difference must lie above −margin.",
    )
    margin_edit_distance: float = Field(
        default=MARGIN,
        ge=0,
        description="Edit distance score: the lower bound of the paired difference must lie above −margin.",
    )
    margin_offline: float = Field(
        default=MARGIN,
        ge=0,
        description="Offline score: the lower bound of the paired difference must lie above −margin.",
    )
    weight_alignment: float = Field(
        default=WEIGHTS[ALIGNMENT], ge=0, description="Weight of plan alignment in the offline score."
    )
    weight_edit_distance: float = Field(
        default=WEIGHTS[EDITS], ge=0, description="Weight of the edit distance score in the offline score."
    )
    weight_diversity: float = Field(
        default=WEIGHTS[DIVERSITY], ge=0, description="Weight of diversity in the offline score."
    )
    weight_leftovers: float = Field(
        default=WEIGHTS[LEFTOVERS], ge=0, description="Weight of leftovers in the offline score."
    )
    kept_share: float = Field(
        default=0.95, ge=0, le=1, description="Diversity and leftovers must each keep this share of the baseline's."
    )
    most_failed_share: float = Field(
        default=0.01, ge=0, lt=1, description="Largest share of rows on which a model may fail."
    )
    allow_unconstrained: bool = Field(
        default=False,
        description="Let a candidate pass even if no replayed row has a constraint, so that respect was never tested.",
    )
    most_extra_tokens: float = Field(
        default=0.0,
        ge=0,
        description="Tokens a plan that the candidate may generate beyond the baseline before it counts as worse.",
    )
    most_tokens_alone: float = Field(
        default=256.0,
        gt=0,
        description="Most tokens a plan if the baseline generates none (a rule-based planner), so that there is no ratio.",
    )
    least_unanchored_rows: int = Field(
        default=100,
        ge=1,
        description="With at least this many rows proposed by neither model, only those are compared; with fewer, the verdict is anchored.",
    )
    level: float = Field(default=LEVEL, gt=0, lt=1, description="Level of all intervals.")

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "GateConfig":
        if abs(sum(self.weights.values()) - 1) > 1e-9:
            raise ValueError(
                f"The four weights of the offline score must sum to 1, and sum to {sum(self.weights.values()):g}."
            )
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the offline score by score."""
        return {
            ALIGNMENT: self.weight_alignment,
            EDITS: self.weight_edit_distance,
            DIVERSITY: self.weight_diversity,
            LEFTOVERS: self.weight_leftovers,
        }


@dataclass(frozen=True)
class Rule:
    """One rule of the gate: its score (or `failed_rows`, `baseline_failed_rows`), its state, and why."""

    name: str
    state: RuleState
    sentence: str


@dataclass(frozen=True)
class Verdict(JsonRecord):
    """What the gate decides. `reasons`: every broken or unknown rule, or, if it passed, what else a reader should know."""

    decision: Decision
    anchored: bool
    rows_compared: int
    rules: tuple[Rule, ...]
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the candidate may go on."""
        return self.decision == "passed"

    def rule(self, name: str) -> Rule | None:
        """The rule about that score."""
        return next((rule for rule in self.rules if rule.name == name), None)


def judge(result: ReplayResult, config: GateConfig | None = None) -> Verdict:
    """Judge a replay by every rule."""
    config = config or GateConfig()
    anchored = result.unanchored_rows < min(config.least_unanchored_rows, result.rows)
    compared = result.scores if anchored else result.unanchored
    rules = tuple(_rules(result, compared, config))
    states = {rule.state for rule in rules}
    decision: Decision = "refused" if "broken" in states else "not_evaluated" if "unknown" in states else "passed"
    reasons = [rule.sentence for rule in rules if rule.state in ("broken", "unknown", "waived")]
    if anchored:
        reasons.append(
            f"Anchored: only {result.unanchored_rows} of {result.rows} rows were proposed by neither model, and comparing on those alone "
            f"needs {config.least_unanchored_rows}; people edit what they are shown, so the other rows favour the model that proposed them."
        )
    return Verdict(decision, anchored, result.rows if anchored else result.unanchored_rows, rules, tuple(reasons))


def _rules(result: ReplayResult, compared: dict[str, Comparison], config: GateConfig) -> Iterator[Rule]:
    yield _constraints(result, config)
    for name, margin in (
        (ALIGNMENT, config.margin_alignment),
        (EDITS, config.margin_edit_distance),
        (OFFLINE, config.margin_offline),
    ):
        yield _not_worse(name, compared.get(name), margin)
    for name in (DIVERSITY, LEFTOVERS):
        yield _kept(name, compared.get(name), config.kept_share)
    yield _tokens(result.scores.get(TOKENS), config)
    yield _failed(
        "failed_rows", result.model, result.candidate_failed, result.rows, config.most_failed_share, too_many="broken"
    )
    # A baseline that fails makes any candidate look good, so there is no comparison; that is not the candidate's fault.
    yield _failed(
        "baseline_failed_rows", f"the baseline {result.baseline}", result.baseline_failed, result.rows, config.most_failed_share,
        too_many="unknown",
    )  # fmt: skip


def _constraints(result: ReplayResult, config: GateConfig) -> Rule:
    respect = result.scores[CONSTRAINTS].candidate if CONSTRAINTS in result.scores else None
    if respect is None or respect.mean is None or (respect.mean == 1.0 and not result.answered_with_constraint):
        what = f"None of the {result.rows} rows has a constraint and an answer, so constraint respect was not tested"
        if config.allow_unconstrained:
            return Rule(CONSTRAINTS, "waived", f"{what}; this replay allows that.")
        return Rule(CONSTRAINTS, "unknown", f"{what}: allow_unconstrained lets it pass nevertheless.")
    if respect.mean == 1.0:
        return Rule(CONSTRAINTS, "met", f"{CONSTRAINTS} is exactly 1 over {respect.rows} constrained rows.")
    broken = respect.rows - round(respect.mean * respect.rows)
    return Rule(
        CONSTRAINTS,
        "broken",
        f"{CONSTRAINTS} must be exactly 1, and {broken} of {respect.rows} constrained rows break a constraint.",
    )


def _not_worse(name: str, scores: Comparison | None, margin: float) -> Rule:
    if scores is None or scores.candidate.mean is None or scores.baseline.mean is None or scores.difference.low is None:
        return _missing(name, scores)
    ours, theirs = round(scores.candidate.mean, DECIMALS), round(scores.baseline.mean, DECIMALS)
    compared = f"{name} {ours:.6f} against the baseline's {theirs:.6f} (difference {interval(scores.difference)})"
    if ours < theirs:
        return Rule(name, "broken", f"{compared}: the mean is lower.")
    if not scores.difference.low > -margin:
        return Rule(name, "broken", f"{compared}: the lower bound must lie above −{margin:g}.")
    return Rule(name, "met", f"{compared}: not lower, and the lower bound lies above −{margin:g}.")


def _kept(name: str, scores: Comparison | None, share: float) -> Rule:
    if scores is None or scores.candidate.mean is None or scores.baseline.mean is None:
        return _missing(name, scores)
    ours, least = round(scores.candidate.mean, DECIMALS), round(share * scores.baseline.mean, DECIMALS)
    compared = f"{name} {ours:.6f} against {share:g} × the baseline's {scores.baseline.mean:.6f}"
    return (
        Rule(name, "met", f"{compared}: kept.")
        if ours >= least
        else Rule(name, "broken", f"{compared}: less than {least:.6f}.")
    )


def _tokens(scores: Comparison | None, config: GateConfig) -> Rule:
    if scores is None or scores.candidate.mean is None or scores.baseline.mean is None or scores.difference.low is None:
        return _missing(TOKENS, scores)
    compared = f"{TOKENS} {scores.candidate.mean:.2f} a plan against the baseline's {scores.baseline.mean:.2f}"
    if scores.baseline.mean == 0:
        compared += f", which uses no language model, and {config.most_tokens_alone:g} a plan is the most"
        return Rule(TOKENS, "met" if scores.candidate.mean <= config.most_tokens_alone else "broken", f"{compared}.")
    if scores.difference.low > config.most_extra_tokens:
        return Rule(TOKENS, "broken", f"{compared} (difference {interval(scores.difference)}): significantly more.")
    return Rule(TOKENS, "met", f"{compared} (difference {interval(scores.difference)}): not significantly more.")


def _failed(name: str, model: str, failed: int, rows: int, most: float, *, too_many: RuleState) -> Rule:
    if rows == 0:
        return Rule(name, "unknown", "No row was replayed.")
    failures = f"{model} failed on {failed} of {rows} rows ({failed / rows:.2%})"
    if failed / rows > most:
        return Rule(name, too_many, f"{_capital(failures)}, and {most:.2%} is the most.")
    return Rule(name, "met", f"{_capital(failures)}, within {most:.2%}.")


def _missing(name: str, scores: Comparison | None) -> Rule:
    rows = 0 if scores is None else scores.difference.rows
    units = 0 if scores is None else scores.difference.units
    return Rule(
        name,
        "unknown",
        f"{name} was not evaluated: {rows} rows of {units} households have it, which gives no interval.",
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def interval(estimate: Estimate) -> str:
    """`+0.0123 [+0.0010, +0.0236]`, or what is missing."""
    if estimate.mean is None:
        return "none"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.4f} [no interval]"
    return f"{estimate.mean:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"
