"""The prompt: the input of a row as text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.prompt import HISTORY_ITEMS, item_text, prompt_text


def row_input(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "household": {"id": "h1", "size": 3, "preferences": ["Thai food", "soup"], "restrictions": ["vegan"]},
        "pantry": {"items": [{"name": "brown rice", "quantity": 1.0, "unit": "kg"}]},
        "constraints": {"budget": 41.5, "max_prep_time": 40, "excluded_ingredients": ["shrimp"]},
        "workflow_type": "plan-first",
        "mode": "autopilot",
        "previous_plan": None,
        "recent_plans": [
            {"days_ago": 14, "meals": [{"recipe_id": "a", "swapped_in": False}]},
            {
                "days_ago": 7,
                "meals": [{"recipe_id": "b", "swapped_in": True}, {"recipe_id": "c d", "swapped_in": False}],
            },
        ],
    }
    return {**base, **changes}


def test_prompt_contains_all_inputs_with_the_oldest_history_first() -> None:
    assert prompt_text(row_input()).split() == [
        *("weeks-ago:2", "r:a", "weeks-ago:1", "chosen", "r:b", "r:c%20d"),
        *("household", "people:3", "likes:soup", "likes:thai_food", "needs:vegan", "without:shrimp"),
        *("minutes:45", "budget:50", "has:brown_rice", "plan-first", "autopilot", "plan"),
    ]


def test_prompt_omits_missing_limits_pantry_and_history() -> None:
    bare = row_input(
        recent_plans=[],
        constraints={"budget": None, "max_prep_time": None, "excluded_ingredients": []},
        pantry={"items": []},
    )
    words = prompt_text(bare).split()
    assert not [word for word in words if word.startswith(("budget", "minutes", "without", "weeks-ago", "has"))]


def test_prompt_shows_the_previous_plan_when_there_are_no_recent_plans() -> None:
    previous = {"meals": [{"day": 0, "recipe_id": "x", "servings": 2}]}
    assert prompt_text(row_input(recent_plans=[], previous_plan=previous)).startswith("weeks-ago:1 r:x household")


def test_prompt_keeps_the_newest_meals_of_a_long_history() -> None:
    plans = [
        {"days_ago": 7 * week, "meals": [{"recipe_id": f"{week}-{day}", "swapped_in": False} for day in range(7)]}
        for week in range(20, 0, -1)
    ]
    words = prompt_text(row_input(recent_plans=plans)).split()
    assert sum(word.startswith("r:") for word in words) == HISTORY_ITEMS
    assert "r:1-0" in words and "r:20-0" not in words


def test_prompt_omits_the_household_id() -> None:
    other = row_input()
    other["household"] = {**other["household"], "id": "another"}
    assert prompt_text(other) == prompt_text(row_input())


def test_prompt_raises_when_the_row_is_broken() -> None:
    with pytest.raises(TypeError):
        prompt_text(row_input(household=None))


@given(st.text(min_size=1), st.text(min_size=1))
def test_item_texts_are_distinct_single_words(one: str, other: str) -> None:
    assert len(item_text(one).split()) == 1
    assert (item_text(one) == item_text(other)) == (one == other)
