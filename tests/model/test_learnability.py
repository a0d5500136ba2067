"""The simulated history contains something to learn: true taste scores clearly higher than popularity. Nothing is trained here."""

from datetime import date

import polars as pl
import pytest
from learnability import learnability

from planner.catalogue import sample_catalogue
from planner.simulator import Sample, simulate


@pytest.fixture(scope="module")
def sample() -> Sample:
    return simulate(sample_catalogue(), seed=7, end=date(2025, 1, 5))


@pytest.fixture(scope="module")
def scores(sample: Sample) -> dict[str, dict[str, float]]:
    table = learnability(sample)
    assert table["plans"].n_unique() == 1 and table["plans"][0] > 400
    return {row["planner"]: row for row in table.to_dicts()}


def test_sample_has_enough_plans_to_train_on(sample: Sample) -> None:
    kinds = pl.DataFrame({"kind": [event["event_type"] for event in sample.events]})["kind"].value_counts()
    count = dict(kinds.iter_rows())
    assert count["plan_accepted"] > 2800
    assert 1.5 < count["meal_swapped"] / count["plan_accepted"] < 3


def test_taste_beats_popularity_beats_chance(scores: dict[str, dict[str, float]]) -> None:
    alignment = {name: row["plan_alignment"] for name, row in scores.items()}
    assert alignment["oracle"] > 1.6 * alignment["popularity"]
    assert alignment["popularity"] > 2.5 * alignment["random"]
    assert alignment["heuristic"] > 1.5 * alignment["random"]
    # What a household chose before says what it will choose: a model can learn this from the prompt alone.
    assert alignment["profile"] > 1.2 * alignment["popularity"]


def test_accepted_plans_resemble_the_shown_plans_more_than_true_taste(
    sample: Sample, scores: dict[str, dict[str, float]]
) -> None:
    # Anchoring: the logged proposals look better than true taste, though they are not.
    shown = {
        event["payload"]["plan_id"]: {meal["recipe_id"] for meal in event["payload"]["meals"]}
        for event in sample.events
        if event["event_type"] == "plan_generated"
    }
    likeness = []
    for event in sample.events:
        if event["event_type"] == "plan_accepted":
            kept = {meal["recipe_id"] for meal in event["payload"]["meals"]}
            likeness.append(
                len(kept & shown[event["payload"]["plan_id"]]) / len(kept | shown[event["payload"]["plan_id"]])
            )
    assert sum(likeness) / len(likeness) > scores["oracle"]["plan_alignment"]


def test_plans_keep_the_rules_and_the_heuristic_is_a_fair_baseline(scores: dict[str, dict[str, float]]) -> None:
    for name in ("random", "popularity", "heuristic", "profile", "oracle"):
        assert scores[name]["constraint_respect"] == 1.0
    assert scores["heuristic"]["leftovers"] > scores["random"]["leftovers"]
    assert scores["heuristic"]["diversity"] > 0.97 * scores["accepted"]["diversity"]
