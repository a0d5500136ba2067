"""The planners that need no training: their plans are legal and have the requested length, and each follows its own rule."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalogue import DIETS, Catalogue, Recipe, sample_catalogue
from planner.meal_planner import MealPlanner
from planner.planners import HeuristicPlanner, LegacyPlanner, recent_items
from product.planners import PopularityPlanner, RandomPlanner

PRODUCT = MealPlanner()


def asked(**changes: Any) -> dict[str, Any]:
    row_input: dict[str, Any] = {
        "household": {"id": "h", "size": 2, "preferences": [], "restrictions": []},
        "pantry": {"items": []},
        "constraints": {"budget": None, "max_prep_time": None, "excluded_ingredients": []},
        "workflow_type": "plan-first",
        "mode": "autopilot",
        "previous_plan": None,
        "recent_plans": [],
    }
    for part, values in changes.items():
        row_input[part] = {**row_input[part], **values} if isinstance(values, dict) and row_input[part] else values
    return row_input


@settings(max_examples=25, deadline=None)
@given(
    excluded=st.lists(st.sampled_from(sorted(PRODUCT.catalogue.ingredient_counts)), max_size=3),
    minutes=st.one_of(st.none(), st.integers(10, 90)),
    restrictions=st.lists(st.sampled_from(DIETS), max_size=2),
    seed=st.integers(0, 2**32 - 1),
)
def test_planners_break_no_rule(excluded: list[str], minutes: int | None, restrictions: list[str], seed: int) -> None:
    row_input = asked(
        constraints={"excluded_ingredients": excluded, "max_prep_time": minutes},
        household={"restrictions": restrictions},
    )
    wanted = min(PRODUCT.slots(row_input), len(PRODUCT.legal_items(row_input, [])))
    popularity = PopularityPlanner.fit(PRODUCT, [(0.0, PRODUCT.items()[:50])])
    for planner in (RandomPlanner(), popularity, HeuristicPlanner(), LegacyPlanner()):
        chosen = planner.plan(PRODUCT, row_input, np.random.default_rng(seed))
        assert len(chosen) == len(set(chosen)) == wanted
        assert PRODUCT.violations(row_input, PRODUCT.plan(row_input, chosen)) == []


def test_random_draws_every_legal_item_equally_often() -> None:
    product = MealPlanner(Catalogue([Recipe(name, name, (), 10, (), 2) for name in "abcd"]), meals=2)
    rng = np.random.default_rng(5)
    drawn = Counter(item for _ in range(2000) for item in RandomPlanner().plan(product, asked(), rng))
    # Each of 4 items is in half of the plans: 1000 expected, spread √(2000 · ½ · ½) = 22.
    assert all(abs(drawn[item] - 1000) < 5 * 22.4 for item in "abcd")


def test_popularity_counts_accepted_items_and_discounts_them_by_half_life() -> None:
    product = MealPlanner(Catalogue([Recipe(name, name, (), 10, (), 2) for name in "abc"]), meals=2)
    accepted = [(100.0, ["a", "unknown"]), (100.0, ["a"]), (100.0, ["a"]), (0.0, ["b"]), (10.0, ["b"])]
    assert PopularityPlanner.fit(product, accepted).plan(product, asked()) == ["a", "b"]
    fading = PopularityPlanner.fit(product, accepted, half_life_days=10)
    # a: 3 · ½^10, b: 1 + ½
    assert fading.counts == pytest.approx({"a": 3 / 1024, "b": 1.5, "c": 0.0})
    assert fading.plan(product, asked()) == ["b", "a"]
    shares = PopularityPlanner.fit(product, accepted).log_shares(product)
    assert shares == pytest.approx({"a": math.log(4 / 8), "b": math.log(3 / 8), "c": math.log(1 / 8)})
    with pytest.raises(ValueError, match="half-life"):
        PopularityPlanner.fit(product, accepted, half_life_days=0)


def kitchen() -> MealPlanner:
    return MealPlanner(
        Catalogue(
            [
                Recipe("base", "Base", ("rice",), 30, ("plain",), 2, cost=4.0),
                Recipe("cheap", "Cheap", ("rice",), 30, ("thrifty",), 2, cost=2.0),
                Recipe("quick", "Quick", ("rice",), 5, ("hasty",), 2, cost=4.0),
                Recipe("thai", "Thai", ("rice",), 30, ("thai",), 2, cost=4.0),
                Recipe("leeks", "Leeks", ("leeks",), 30, ("green",), 2, cost=4.0),
            ]
        ),
        meals=1,
    )


@pytest.mark.parametrize(
    ("weights", "changes", "best"),
    [
        ({"preference_weight": 1.0}, {"household": {"preferences": ["Thai"]}}, "thai"),
        ({"pantry_weight": 1.0}, {"pantry": {"items": [{"name": "Leeks", "quantity": 1.0, "unit": "piece"}]}}, "leeks"),
        ({"quick_weight": 1.0}, {}, "quick"),
        ({"cheap_weight": 1.0}, {}, "cheap"),
        (
            {"recent_weight": 1.0},
            {"previous_plan": {"meals": [{"day": 0, "recipe_id": "base", "servings": 2}]}},
            "cheap",
        ),
        ({}, {}, "base"),
    ],
)
def test_each_weight_of_the_heuristic_decides_when_it_is_the_only_one(
    weights: dict[str, float], changes: dict[str, Any], best: str
) -> None:
    nothing = {f"{name}_weight": 0.0 for name in ("preference", "pantry", "quick", "cheap", "variety", "recent")}
    assert HeuristicPlanner(**{**nothing, **weights}).plan(kitchen(), asked(**changes)) == [best]


def test_heuristic_varies_within_a_plan_and_is_deterministic() -> None:
    row_input = asked(household={"preferences": ["pasta", "italian"]})
    narrow = HeuristicPlanner(variety_weight=0.0).plan(PRODUCT, row_input)
    varied = HeuristicPlanner().plan(PRODUCT, row_input)
    cuisines = [sum("italian" in PRODUCT.catalogue[item].labels for item in plan) for plan in (narrow, varied)]
    assert cuisines[0] > cuisines[1]
    assert varied == HeuristicPlanner().plan(PRODUCT, row_input, np.random.default_rng(3))


def test_legacy_propensities_are_the_true_chances() -> None:
    product = MealPlanner(Catalogue([Recipe(name, name, (), 10, (), 2) for name in "abc"]), meals=2)
    counts = {"a": 20.0, "b": 6.0, "c": 0.0}
    legacy = LegacyPlanner(exploration=0.3, temperature=1.0)
    rng = np.random.default_rng(9)
    proposals = [legacy.propose(product, asked(), counts, rng) for _ in range(4000)]
    first = Counter(proposal.items[0] for proposal in proposals)
    propensities = {proposal.items[0]: proposal.propensities[0] for proposal in proposals}
    # softmax of log(1 + count) is 21 : 7 : 1
    assert propensities == pytest.approx({"a": 0.7 * 21 / 29 + 0.1, "b": 0.7 * 7 / 29 + 0.1, "c": 0.7 / 29 + 0.1})
    for item, chance in propensities.items():
        assert abs(first[item] / 4000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 4000)
    # Given that a came first, the second slot is drawn among b and c alone.
    second = {p.items[1]: p.propensities[1] for p in proposals if p.items[0] == "a"}
    assert second == pytest.approx({"b": 0.7 * 7 / 8 + 0.15, "c": 0.7 / 8 + 0.15})
    explored = sum(flag for proposal in proposals for flag in proposal.explored) / 8000
    assert abs(explored - 0.3) < 0.03


def test_legacy_plans_differ_from_popularity_and_heuristic() -> None:
    counts = {item: float(index % 17) for index, item in enumerate(PRODUCT.items())}
    legacy = LegacyPlanner().plan(PRODUCT, asked(), np.random.default_rng(1), counts)
    assert set(legacy) != set(PopularityPlanner(counts).plan(PRODUCT, asked()))
    assert set(legacy) != set(HeuristicPlanner().plan(PRODUCT, asked()))


def test_recent_items_are_within_the_given_days() -> None:
    plans = [{"days_ago": days, "meals": [{"recipe_id": f"r{days}", "swapped_in": False}]} for days in (21, 14, 7)]
    previous = {"meals": [{"day": 0, "recipe_id": "last", "servings": 1}]}
    assert recent_items(asked(recent_plans=plans, previous_plan=previous), within_days=15) == {"r14", "r7", "last"}


def test_meal_planner_uses_the_sample_catalogue_by_default() -> None:
    assert MealPlanner().catalogue is sample_catalogue()
