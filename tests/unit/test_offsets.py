"""Offsets of the product: recipes that use up the pantry are preferred."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest

from planner.catalogue import sample_catalogue
from planner.meal_planner import MealPlanner
from planner.offsets import PANTRY_PULL
from planner.scores import STAPLES
from product.protocol import HasOffsets
from replay.reference_planners import reference_planners

PRODUCT = MealPlanner()


class Nobody:
    """A model that is never asked."""

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        raise AssertionError("The reference planners of rules ask no model.")


def household(*pantry: str) -> dict[str, Any]:
    return {
        "household": {"id": "h", "size": 2, "preferences": [], "restrictions": []},
        "pantry": {"items": [{"name": name, "quantity": 1.0, "unit": "piece"} for name in pantry]},
        "constraints": {"budget": None, "max_prep_time": None, "excluded_ingredients": []},
        "recent_plans": [],
        "previous_plan": None,
    }


def test_meal_planner_has_offsets() -> None:
    assert isinstance(PRODUCT, HasOffsets)


def test_each_pantry_item_that_a_recipe_uses_adds_to_it() -> None:
    first, second = [name for name in next(iter(sample_catalogue())).ingredients if name not in STAPLES][:2]
    offsets = PRODUCT.offsets(household(first, second.upper()))
    for recipe in sample_catalogue():
        used = len({first, second} & set(recipe.ingredients))
        assert offsets.get(recipe.id, 0.0) == pytest.approx(PANTRY_PULL * used)


@pytest.mark.parametrize("pantry", [None, {}, {"items": None}, {"items": []}])
def test_offsets_are_empty_when_the_pantry_is_empty_or_unknown(pantry: Any) -> None:
    assert PRODUCT.offsets({**household(), "pantry": pantry}) == {}


def test_offsets_ignore_staples_and_unknown_items() -> None:
    assert PRODUCT.offsets(household(*STAPLES, "a jar of buttons")) == {}


def test_prior_planner_prefers_recipes_that_use_the_pantry() -> None:
    """The reference planner beside a model: with equal popularity, the pantry decides."""
    items = list(PRODUCT.items())
    taught = {
        "target": {"accepted_plan": PRODUCT.plan(household(), items)},
        "metadata": {"timestamp": datetime(2025, 1, 5, tzinfo=UTC)},
    }
    planners, _ = reference_planners(PRODUCT, [taught], Nobody(), fine_tuned=False, borrows=False, households=2)
    prior = next(planner for planner in planners if planner.name == "popularity and offsets")
    ingredient = next(name for name in PRODUCT.catalogue.ingredient_counts if name not in STAPLES)
    row = {"input": household(ingredient), "metadata": {"event_id": "e"}}
    answer = prior.answers([row], batch_size=1)[0]
    assert answer.error is None
    users = [recipe.id for recipe in PRODUCT.catalogue if ingredient in recipe.ingredients]
    assert set(PRODUCT.chosen(answer.plan)) >= set(users[: PRODUCT.meals])
