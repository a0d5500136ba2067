"""One replay: every row counts, failed rows too; scores are identical for any batch size and are reported by proposer."""

from functools import cache
from typing import Any

import pandas as pd
import pytest
from replay_support import LEGACY, PRODUCT, RuleModel, dataset_in_memory, first_legal, sample_rows, telling

from planner.meal_planner import MealPlanner
from product.protocol import ALIGNMENT, CONSTRAINTS, DIVERSITY, EDITS, LEFTOVERS, Row
from replay.answers import answers, inputs_of
from replay.reference_planners import reference_planners, shuffled_inputs
from replay.replaying import Contestant, replay
from replay.result import OFFLINE, ReplayResult
from replay.rows import ReplayError, choose_rows
from replay.scoring import offline_score
from training.versions import TOKENS

ROWS = sample_rows()
TAUGHT = [row for row in ROWS if row["metadata"]["split"] == "train"]


def replayed(candidate: Any, baseline: Any = None, *, rows: list[Row] | None = None, **options: Any) -> ReplayResult:
    dataset = dataset_in_memory(rows or ROWS)
    positions, selection = choose_rows(dataset.keys(), [])
    return replay(
        Contestant("planner_model", 2, candidate, options.pop("candidate_ids", frozenset())),
        Contestant(
            "planner_model", 1, baseline or RuleModel(first_legal, tokens=0), options.pop("baseline_ids", frozenset())
        ),
        dataset,
        positions,
        selection,
        **options,
    )


def test_perfect_model_scores_1_and_beats_an_ignorant_model() -> None:
    result = replayed(RuleModel(telling(ROWS)))
    assert result.scores[ALIGNMENT].candidate.mean == 1.0
    assert result.scores[EDITS].candidate.mean == 1.0
    baseline = result.scores[ALIGNMENT].baseline.mean
    assert baseline is not None and baseline < 0.2
    gap = result.scores[ALIGNMENT].difference
    assert gap.low is not None and gap.low > 0
    assert (result.rows, result.units, gap.units) == (36, 12, 12)


def test_means_agree_with_scoring_every_row_by_hand() -> None:
    product = PRODUCT
    plans = [{"meals": first_legal(row["input"], 7)} for row in ROWS]
    by_hand = [product.scores(row, plan) for row, plan in zip(ROWS, plans, strict=True)]
    result = replayed(RuleModel(lambda row_input: first_legal(row_input, 7)))
    for name in (ALIGNMENT, CONSTRAINTS, EDITS, DIVERSITY, LEFTOVERS, "budget_respect_score"):
        known = [score for scores in by_hand if (score := scores[name]) is not None]
        assert result.scores[name].candidate.mean == pytest.approx(sum(known) / len(known), abs=1e-12), name
        assert result.scores[name].candidate.rows == len(known), name
    means = {name: result.scores[name].candidate.mean or 0.0 for name in (ALIGNMENT, EDITS, DIVERSITY, LEFTOVERS)}
    expected = 0.4 * means[ALIGNMENT] + 0.3 * means[EDITS] + 0.15 * means[DIVERSITY] + 0.15 * means[LEFTOVERS]
    assert result.scores[OFFLINE].candidate.mean == pytest.approx(expected, abs=1e-12)
    assert result.scores[TOKENS].candidate.mean == 5.0 and result.scores[TOKENS].baseline.mean == 0.0


def test_offline_score_ignores_scores_that_do_not_apply() -> None:
    assert offline_score({ALIGNMENT: 0.5, EDITS: 0.5, DIVERSITY: 1.0, LEFTOVERS: None}) == pytest.approx(0.5 / 0.85)
    assert offline_score({ALIGNMENT: None}) is None


@cache
def replayed_in_batches(size: int) -> ReplayResult:
    candidate = RuleModel(telling(ROWS, 0.6))
    references, left_out = reference_planners(
        PRODUCT, TAUGHT, candidate, fine_tuned=False, borrows=False, households=12
    )
    return replayed(candidate, batch_size=size, references=references, references_left_out=left_out)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_any_batch_size_gives_the_same_digits(batch_size: int) -> None:
    assert replayed_in_batches(batch_size).to_dict() == replayed_in_batches(36).to_dict()


def test_result_survives_a_json_round_trip() -> None:
    result = replayed(RuleModel(telling(ROWS, 0.6)))
    assert ReplayResult.from_dict(result.to_dict()) == result


def breaking_on(household: str) -> Any:
    def rule(row_input: Any) -> Any:
        if row_input["household"]["id"] == household:
            raise ValueError("no such household")
        return first_legal(row_input)

    return rule


def test_failing_row_is_counted_reported_and_scored_as_an_empty_plan() -> None:
    result = replayed(RuleModel(breaking_on("h03")))
    whole = replayed(RuleModel(first_legal))
    assert (result.candidate_failed, result.baseline_failed) == (3, 0)
    assert {(failed.model, failed.error) for failed in result.failures} == {
        ("candidate", "ValueError: no such household")
    }
    assert result.scores[DIVERSITY].candidate.rows == whole.scores[DIVERSITY].candidate.rows == 36
    lost = (whole.scores[DIVERSITY].candidate.mean or 0) - (result.scores[DIVERSITY].candidate.mean or 0)
    assert lost > 0.04, "three empty plans of 36 must show in the mean"


def test_only_the_broken_row_of_a_batch_fails() -> None:
    model = RuleModel(breaking_on("h03"))
    answered = answers(model, inputs_of(ROWS), name="m", batch_size=64)
    assert [row["input"]["household"]["id"] for row, answer in zip(ROWS, answered, strict=True) if answer.error] == [
        "h03"
    ] * 3
    assert model.calls[0] == 36 and set(model.calls[1:]) == {1}


def test_row_fails_when_the_model_reports_an_error() -> None:
    result = replayed(RuleModel(lambda row_input: {"meals": [], "error": "No item is legal for this row."}))
    assert result.candidate_failed == 36
    assert result.failures[0].error == "No item is legal for this row."
    assert result.answered_with_constraint == 0, "rows without an answer are no evidence of respect"


@pytest.mark.parametrize("meals", [None, 5, [{"day": 0}], [{"day": "x", "recipe_id": "a", "servings": 1}]])
def test_a_row_fails_when_its_answer_is_not_a_plan(meals: Any) -> None:
    result = replayed(RuleModel(lambda row_input: {"meals": meals, "error": None}))
    assert result.candidate_failed == 36
    assert result.failures[0].error.startswith("The answer is not a plan")


def test_an_unknown_recipe_is_a_violation() -> None:
    made_up = [{"day": 0, "recipe_id": "unicorn", "servings": 2}]
    result = replayed(RuleModel(lambda row_input: made_up))
    assert result.candidate_violations == 36
    assert "unicorn is not in the catalogue" in result.violations[0]
    assert result.scores[CONSTRAINTS].candidate.mean == 0.0


def test_tokens_that_were_not_counted_are_unknown_not_zero() -> None:
    assert replayed(RuleModel(first_legal, tokens=None)).scores[TOKENS].candidate.mean is None


class Wrong:
    """Answers in a shape of its own."""

    def __init__(self, output: pd.DataFrame) -> None:
        self.output = output

    def predict(self, data: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        return self.output


@pytest.mark.parametrize(
    "output", [pd.DataFrame({"plan": [1]}), pd.DataFrame({"meals": [], "tokens_generated": [], "error": []})]
)
def test_a_replay_is_refused_when_the_model_is_not_a_planner_model(output: pd.DataFrame) -> None:
    with pytest.raises(ReplayError, match="does not answer like a planner model"):
        replayed(Wrong(output))


def test_scores_are_reported_by_proposer() -> None:
    rows = sample_rows()
    for row, proposer in zip(rows, [*["new"] * 10, *["old"] * 8, *[None] * 4, *[LEGACY] * 14], strict=True):
        row["metadata"]["policy_version_id"] = proposer
    for row in rows[18:20]:
        row["metadata"]["reconstructed"] = True
    result = replayed(
        RuleModel(telling(rows, 0.6)), rows=rows, candidate_ids=frozenset({"new"}), baseline_ids=frozenset({"old"})
    )
    counts = {(group.proposer, group.name): group.rows for group in result.by_proposer}
    assert counts == {
        ("candidate", "new"): 10,
        ("baseline", "old"): 8,
        ("unknown", "unknown"): 2,
        ("nobody (reconstructed)", "nobody (reconstructed)"): 2,
        ("another policy version", LEGACY): 14,
    }
    assert result.unanchored_rows == 16, "legacy and reconstructed; an unknown proposer may be one of the two"
    assert result.unanchored[ALIGNMENT].candidate.rows == 16


def test_references_are_scored_on_the_same_rows_with_intervals() -> None:
    dataset = dataset_in_memory(ROWS)
    candidate = RuleModel(telling(ROWS))
    references, left_out = reference_planners(
        dataset.product, TAUGHT, candidate, fine_tuned=False, borrows=False, households=12
    )
    result = replayed(candidate, references=references, references_left_out=left_out)
    assert [reference.name for reference in result.references] == [
        "random",
        "popularity",
        "popularity and offsets",
        "heuristic",
    ]
    assert "not a fine-tuned language model" in result.references_left_out[0]
    for reference in result.references:
        assert reference.scores[ALIGNMENT].rows == 36 and reference.scores[ALIGNMENT].low is not None
        assert reference.scores[CONSTRAINTS].mean == 1.0
        lead = reference.lead_of_candidate[ALIGNMENT]
        assert lead.low is not None and lead.low > 0


def test_a_fine_tuned_candidate_gets_both_controls() -> None:
    asked: list[Any] = []

    class Tuned(RuleModel):
        def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
            asked.append((params, data))
            return super().predict(data)

    candidate = Tuned(first_legal)
    references, left_out = reference_planners(
        MealPlanner(), [], candidate, fine_tuned=True, borrows=True, households=12
    )
    assert "popularity" in left_out[0]
    result = replayed(candidate, references=references)
    assert [reference.name for reference in result.references] == [
        "random",
        "heuristic",
        "untuned base",
        "shuffled prompts",
    ]
    assert [params for params, _ in asked] == [None, {"adapter": False}, None]


def test_shuffled_prompts_come_from_another_household_and_keep_the_legal_items() -> None:
    mixed = shuffled_inputs(ROWS)
    lent = [row_input.pop("prompt_from") for row_input in mixed]
    assert mixed == inputs_of(ROWS)
    assert all(
        other["household"]["id"] != row["input"]["household"]["id"] for other, row in zip(lent, ROWS, strict=True)
    )
    assert [row_input["prompt_from"] for row_input in shuffled_inputs(ROWS)] == lent
    assert len({str(other) for other in lent}) > len(ROWS) / 2, "many lend, not one to all"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fine_tuned": False, "borrows": False}, "not a fine-tuned language model"),
        ({"borrows": False}, "cannot be shown another row's prompt"),
        ({"households": 1}, "all rows are of one household"),
    ],
)
def test_control_is_left_out_with_a_reason_when_it_does_not_apply(changes: dict[str, Any], words: str) -> None:
    options = {"fine_tuned": True, "borrows": True, "households": 12, **changes}
    planners, left_out = reference_planners(PRODUCT, TAUGHT, RuleModel(first_legal), **options)
    assert "shuffled prompts" not in [planner.name for planner in planners]
    assert words in left_out[-1]


def test_shuffled_prompts_are_refused_for_a_single_household() -> None:
    with pytest.raises(ValueError, match="at least two households"):
        shuffled_inputs(sample_rows(households=1, plans=3))
