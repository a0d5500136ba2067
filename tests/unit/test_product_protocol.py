"""Both products are used through the protocol alone, by code that knows neither of them."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_product import Playlists, sample_playlists

from planner.catalogue import sample_catalogue
from planner.meal_planner import MealPlanner
from planner.sessions import events_frame
from planner.simulator import simulate
from product.planners import PopularityPlanner, RandomPlanner
from product.protocol import Product, RowWindow

END = date(2025, 3, 2)
WINDOW = RowWindow(datetime(2025, 2, 17, tzinfo=UTC), datetime(2025, 3, 3, tzinfo=UTC), 28)


def meal_rows() -> tuple[Product, pl.DataFrame]:
    sample = simulate(sample_catalogue(), seed=3, households=12, weeks=2, end=END)
    product = MealPlanner(sample_catalogue())
    return product, product.rows(events_frame(sample.events), sample.tables, WINDOW)


def song_rows() -> tuple[Product, pl.DataFrame]:
    product = sample_playlists()
    listeners = pl.DataFrame({"id": ["ann", "bob"], "clean_only": [True, False], "length": [2, 4]})
    chosen = {"ann": ["s1", "s2"], "bob": ["s0", "s1", "s2", "s3"]}
    events = pl.DataFrame(
        {
            "event_id": f"e-{name}",
            "event_type": "plan_accepted",
            "unit_id": name,
            "timestamp": WINDOW.start + timedelta(days=1),
            "payload": json.dumps(product.plan({}, songs)),
        }
        for name, songs in chosen.items()
    )
    return product, product.rows(events, {"listeners": listeners}, WINDOW)


@pytest.mark.parametrize("make", [meal_rows, song_rows])
def test_product_provides_everything_that_the_platform_uses(make: Any) -> None:
    product, rows = make()
    assert isinstance(product, Product)
    assert rows.columns == ["input", "target", "metadata"] and len(rows) > 0
    copy = type(product).from_reference(json.loads(json.dumps(product.reference())))
    assert copy.items() == product.items()
    words = [product.item_text(item) for item in product.items()]
    assert len(set(words)) == len(words) and all(word and not any(c.isspace() for c in word) for word in words)

    popularity = PopularityPlanner.fit(
        product, [(0.0, product.chosen(row["target"]["accepted_plan"])) for row in rows.to_dicts()]
    )
    for row in rows.to_dicts():
        row_input = row["input"]
        assert isinstance(product.prompt(row_input), str) and product.prompt(row_input) == copy.prompt(row_input)
        chosen = RandomPlanner().plan(product, row_input, np.random.default_rng(1))
        plan = product.plan(row_input, chosen)
        assert len(chosen) == product.slots(row_input) and product.chosen(plan) == chosen
        assert product.violations(row_input, plan) == []
        assert copy.legal_items(row_input, chosen) == product.legal_items(row_input, chosen)
        scores = product.scores(row, plan)
        assert all(value is None or 0 <= value <= 1 for value in scores.values())
        assert product.scores(row, row["target"]["accepted_plan"])["plan_alignment_score"] == 1.0
        popular = popularity.plan(product, row_input)
        assert (
            len(popular) == product.slots(row_input)
            and product.violations(row_input, product.plan(row_input, popular)) == []
        )


def test_an_incomplete_class_is_not_a_product() -> None:
    half = type("Half", (), {"name": "half", "items": lambda self: ()})
    assert not isinstance(half(), Product)
    assert isinstance(Playlists({}), Product)


def test_reference_data_contains_the_number_of_meals() -> None:
    product = MealPlanner(meals=3)
    copy = MealPlanner.from_reference(product.reference())
    assert copy == product and copy.slots({}) == 3
    with pytest.raises(ValueError, match="1 to 7 meals"):
        MealPlanner(meals=8)


def test_plan_has_one_meal_per_day_with_servings_for_the_household() -> None:
    product = MealPlanner()
    plan = product.plan({"household": {"size": 3}}, ["beef-tacos", "harira"])
    assert plan == {
        "meals": [
            {"day": 0, "recipe_id": "beef-tacos", "servings": 3},
            {"day": 1, "recipe_id": "harira", "servings": 3},
        ]
    }
    assert product.chosen({"meals": list(reversed(plan["meals"]))}) == ["beef-tacos", "harira"]
