"""The gate's rules one by one: each can refuse by itself and gives its numbers; missing numbers never pass."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from replay_support import GOOD, comparison, result_with

from product.protocol import ALIGNMENT, CONSTRAINTS, DIVERSITY, EDITS, LEFTOVERS
from replay.gate import GateConfig, Verdict, judge
from replay.result import OFFLINE, ReplayResult
from training.versions import TOKENS


def states(verdict: Verdict) -> dict[str, str]:
    return {rule.name: rule.state for rule in verdict.rules if rule.state != "met"}


def test_a_candidate_that_meets_every_rule_passes() -> None:
    verdict = judge(result_with())
    assert (verdict.decision, verdict.anchored, verdict.reasons) == ("passed", False, ())
    assert verdict.passed
    assert [rule.name for rule in verdict.rules] == [
        CONSTRAINTS,
        ALIGNMENT,
        EDITS,
        OFFLINE,
        DIVERSITY,
        LEFTOVERS,
        TOKENS,
        "failed_rows",
        "baseline_failed_rows",
    ]


REFUSALS: dict[str, tuple[ReplayResult, str, str]] = {
    "one constrained row in a million is not respected": (
        result_with({CONSTRAINTS: comparison(1 - 1e-9, 1.0)}),
        CONSTRAINTS,
        "must be exactly 1",
    ),
    "alignment is lower on average": (
        result_with({ALIGNMENT: comparison(0.2099, 0.21, 0.001)}),
        ALIGNMENT,
        "the mean is lower",
    ),
    "alignment is equal, but may well be worse": (
        result_with({ALIGNMENT: comparison(0.21, 0.21, 0.03)}),
        ALIGNMENT,
        "lower bound must lie above −0.02",
    ),
    "edit distance score is lower": (result_with({EDITS: comparison(0.29, 0.30)}), EDITS, "the mean is lower"),
    "edit distance score may well be worse": (result_with({EDITS: comparison(0.30, 0.30, 0.05)}), EDITS, "lower bound"),
    "offline score is lower": (result_with({OFFLINE: comparison(0.36, 0.37)}), OFFLINE, "the mean is lower"),
    "offline score may well be worse": (result_with({OFFLINE: comparison(0.38, 0.37, 0.05)}), OFFLINE, "lower bound"),
    "diversity is lost": (result_with({DIVERSITY: comparison(0.85, 0.90)}), DIVERSITY, "less than 0.855000"),
    "leftovers are lost": (result_with({LEFTOVERS: comparison(0.38, 0.41)}), LEFTOVERS, "less than 0.389500"),
    "more tokens than the baseline": (result_with({TOKENS: comparison(5.2, 5.0, 0.1)}), TOKENS, "significantly more"),
    "too many tokens beside a planner of rules": (
        result_with({TOKENS: comparison(300.0, 0.0, 1.0)}),
        TOKENS,
        "no language model",
    ),
    "too many failed rows": (
        result_with(candidate_failed=5),
        "failed_rows",
        "Planner_model 2 failed on 5 of 400 rows (1.25%)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_rule_can_refuse_by_itself(case: str) -> None:
    result, rule, words = REFUSALS[case]
    verdict = judge(result)
    assert verdict.decision == "refused" and not verdict.passed
    assert states(verdict) == {rule: "broken"}
    assert len(verdict.reasons) == 1 and words in verdict.reasons[0]


UNKNOWNS: dict[str, tuple[ReplayResult, str]] = {
    "no row has a constraint": (
        result_with({CONSTRAINTS: comparison(None, None)}, answered_with_constraint=0),
        CONSTRAINTS,
    ),
    "every constrained row failed, so nothing was respected": (result_with(answered_with_constraint=0), CONSTRAINTS),
    "alignment has no interval (one household)": (result_with({ALIGNMENT: comparison(0.25, 0.21, None)}), ALIGNMENT),
    "no alignment at all": (result_with({ALIGNMENT: comparison(None, None)}), ALIGNMENT),
    "no edit distance score": (result_with({EDITS: comparison(None, None)}), EDITS),
    "no offline score": (result_with({OFFLINE: comparison(None, None)}), OFFLINE),
    "no diversity": (result_with({DIVERSITY: comparison(None, None)}), DIVERSITY),
    "no leftovers": (result_with({LEFTOVERS: comparison(None, None)}), LEFTOVERS),
    "tokens were not counted": (result_with({TOKENS: comparison(None, None)}), TOKENS),
    "the baseline fails, so anything would beat it": (result_with(baseline_failed=5), "baseline_failed_rows"),
}


@pytest.mark.parametrize("case", UNKNOWNS)
def test_missing_numbers_neither_pass_nor_refuse(case: str) -> None:
    result, rule = UNKNOWNS[case]
    verdict = judge(result)
    assert verdict.decision == "not_evaluated" and not verdict.passed
    assert states(verdict) == {rule: "unknown"}
    assert len(verdict.reasons) == 1


def test_gate_does_not_evaluate_when_a_score_is_missing() -> None:
    scores = {name: score for name, score in GOOD.items() if name != LEFTOVERS}
    assert judge(result_with(unanchored=scores)).decision == "not_evaluated"


def test_gate_does_not_evaluate_without_rows() -> None:
    empty = {name: comparison(None, None) for name in GOOD}
    verdict = judge(result_with(empty, rows=0, units=0, unanchored_rows=0, answered_with_constraint=0))
    assert verdict.decision == "not_evaluated"
    assert all(rule.state == "unknown" for rule in verdict.rules)


def test_unconstrained_rows_pass_when_allowed_and_the_verdict_names_the_waiver() -> None:
    result = result_with({CONSTRAINTS: comparison(None, None)}, answered_with_constraint=0)
    verdict = judge(result, GateConfig(allow_unconstrained=True))
    assert verdict.decision == "passed"
    assert states(verdict) == {CONSTRAINTS: "waived"}
    assert "this replay allows that" in verdict.reasons[0]


def test_allowing_unconstrained_rows_does_not_excuse_a_broken_constraint() -> None:
    result = result_with({CONSTRAINTS: comparison(0.99, 1.0)})
    assert judge(result, GateConfig(allow_unconstrained=True)).decision == "refused"


def test_broken_rule_outweighs_an_unknown_rule_and_both_are_reported() -> None:
    result = result_with({ALIGNMENT: comparison(0.2, 0.21), LEFTOVERS: comparison(None, None)})
    verdict = judge(result)
    assert verdict.decision == "refused"
    assert states(verdict) == {ALIGNMENT: "broken", LEFTOVERS: "unknown"}
    assert len(verdict.reasons) == 2


def test_means_are_compared_at_six_decimals() -> None:
    assert judge(result_with({ALIGNMENT: comparison(0.2099999, 0.21, 0.001)})).passed
    assert not judge(result_with({ALIGNMENT: comparison(0.2099989, 0.21, 0.001)})).passed


@pytest.mark.parametrize(("kept", "decision"), [(0.855, "passed"), (0.854998, "refused")])
def test_limit_of_the_kept_share_is_inclusive(kept: float, decision: str) -> None:
    assert judge(result_with({DIVERSITY: comparison(kept, 0.90)})).decision == decision


@pytest.mark.parametrize(("failed", "decision"), [(4, "passed"), (5, "refused")])
def test_limit_of_the_failed_share_is_inclusive(failed: int, decision: str) -> None:
    assert judge(result_with(candidate_failed=failed)).decision == decision


def test_margin_allows_extra_tokens() -> None:
    more = result_with({TOKENS: comparison(5.2, 5.0, 0.1)})
    assert judge(more, GateConfig(most_extra_tokens=1.0)).passed


def test_verdict_is_anchored_on_all_rows_when_too_few_are_by_neither_model() -> None:
    worse_there = {**GOOD, ALIGNMENT: comparison(0.1, 0.2)}
    verdict = judge(result_with(unanchored=worse_there, unanchored_rows=99))
    assert (verdict.anchored, verdict.decision, verdict.rows_compared) == (True, "passed", 400)
    assert "only 99 of 400 rows" in verdict.reasons[0]


def test_small_replay_is_not_anchored_when_neither_model_proposed_a_row() -> None:
    verdict = judge(result_with(rows=36, unanchored_rows=36))
    assert (verdict.anchored, verdict.rows_compared, verdict.reasons) == (False, 36, ())


def test_only_rows_by_neither_model_are_compared_when_there_are_enough() -> None:
    worse_there = {**GOOD, ALIGNMENT: comparison(0.1, 0.2)}
    verdict = judge(result_with(unanchored=worse_there, unanchored_rows=100))
    assert (verdict.anchored, verdict.decision, verdict.rows_compared) == (False, "refused", 100)


def test_constraints_count_on_the_rows_of_every_proposer() -> None:
    verdict = judge(result_with({CONSTRAINTS: comparison(0.99, 1.0)}, unanchored=GOOD))
    assert states(verdict) == {CONSTRAINTS: "broken"}


@pytest.mark.parametrize(
    "changes", [{"weight_alignment": 0.5}, {"kept_share": 1.2}, {"margin_offline": -0.1}, {"most_failed": 0.1}]
)
def test_an_invalid_gate_configuration_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GateConfig(**changes)


def test_gate_fields_are_described_and_weights_match_the_offline_score() -> None:
    assert all(field.description for field in GateConfig.model_fields.values())
    assert GateConfig().weights == {ALIGNMENT: 0.4, EDITS: 0.3, DIVERSITY: 0.15, LEFTOVERS: 0.15}


def test_verdict_survives_a_json_round_trip() -> None:
    verdict = judge(result_with({ALIGNMENT: comparison(0.2, 0.21)}))
    assert Verdict.from_dict(verdict.to_dict()) == verdict


shares = st.floats(0, 1)


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(st.sampled_from(list(GOOD)), st.tuples(shares, shares, st.floats(0, 0.2)), max_size=7))
def test_raising_the_candidates_scores_never_turns_a_pass_into_a_refusal(
    changed: dict[str, tuple[float, float, float]],
) -> None:
    def verdict(lift: float) -> Verdict:
        scores = {
            name: comparison(ours if name == TOKENS else min(ours + lift, 1.0), theirs, reach)
            for name, (ours, theirs, reach) in changed.items()
        }
        return judge(result_with(scores))

    if verdict(0.0).passed:
        assert verdict(0.1).passed
