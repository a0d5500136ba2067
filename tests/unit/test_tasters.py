"""Synthetic tasters: repeatable, within the rules, and with preferences that a model can learn."""

import numpy as np
from training_support import small_product

from planner.meal_planner import NO_REPEAT_DAYS

PRODUCT = small_product(60)
ROWS = PRODUCT.synthetic_rows(150, 5)


def test_rows_are_repeatable_and_change_with_the_seed() -> None:
    assert PRODUCT.synthetic_rows(20, 5) == ROWS[:20]
    assert PRODUCT.synthetic_rows(20, 6) != ROWS[:20]


def test_targets_keep_the_rules_and_only_legal_recipes_have_weights() -> None:
    for row in ROWS:
        assert PRODUCT.violations(row["input"], row["target"]["accepted_plan"]) == []
        legal = PRODUCT.legal_items(row["input"], [])
        assert set(PRODUCT.chosen(row["target"]["accepted_plan"])) <= set(legal)
        assert set(row["target"]["item_weights"]) == set(legal)


def test_tasters_rarely_repeat_a_recipe_within_the_window() -> None:
    for row in ROWS:
        for early, late in zip(row["input"]["recent_plans"], row["input"]["recent_plans"][1:], strict=False):
            assert early["days_ago"] - late["days_ago"] <= NO_REPEAT_DAYS
            meals = [[meal["recipe_id"] for meal in plan["meals"]] for plan in (early, late)]
            assert len(set(meals[1])) == len(meals[1])
            assert len(set(meals[0]) & set(meals[1])) <= 1


def test_tasters_prefer_recipes_of_their_history() -> None:
    """What a taster ate before is wanted more than other recipes: without that there is nothing to learn from a prompt."""
    wanted_of_eaten: list[float] = []
    wanted_of_others: list[float] = []
    for row in ROWS:
        weights = row["target"]["item_weights"]
        total = sum(weights.values())
        eaten = {meal["recipe_id"] for plan in row["input"]["recent_plans"] for meal in plan["meals"]}
        for item, weight in weights.items():
            (wanted_of_eaten if item in eaten else wanted_of_others).append(weight / total)
    assert np.mean(wanted_of_eaten) > 1.5 * np.mean(wanted_of_others)
