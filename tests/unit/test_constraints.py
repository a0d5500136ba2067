"""The hard rules: two formulations that must agree, and whole-word matching."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalogue import DIETS, Catalogue, Recipe, sample_catalogue
from planner.constraints import LegalRecipes, has_constraint, over_budget, plan_cost, violations

CATALOGUE = sample_catalogue()
LEGAL = LegalRecipes(CATALOGUE)
WORDS = sorted({word for name in CATALOGUE.ingredient_counts for word in (name, *name.split())})


def asked(
    *,
    excluded: list[str] | None = None,
    minutes: int | None = None,
    restrictions: list[str] | None = None,
    budget: float | None = None,
) -> dict[str, Any]:
    return {
        "household": {"id": "h", "size": 2, "preferences": [], "restrictions": restrictions or []},
        "constraints": {"budget": budget, "max_prep_time": minutes, "excluded_ingredients": excluded or []},
    }


def meal(recipe_id: str, day: int = 0, servings: int = 2) -> dict[str, Any]:
    return {"day": day, "recipe_id": recipe_id, "servings": servings}


@st.composite
def terms(draw: st.DrawFn) -> str:
    """An ingredient's word or name, in either number and any case."""
    word = draw(st.sampled_from(WORDS))
    change = draw(st.sampled_from(["", "s", "cut", "es"]))
    word = word[:-1] if change == "cut" and word.endswith("s") else word + change.replace("cut", "")
    return word.upper() if draw(st.booleans()) else word


@settings(max_examples=150, deadline=None)
@given(
    excluded=st.lists(terms(), max_size=3),
    minutes=st.one_of(st.none(), st.integers(10, 120)),
    restrictions=st.lists(st.sampled_from(DIETS), max_size=2),
)
def test_both_formulations_agree_on_every_recipe(
    excluded: list[str], minutes: int | None, restrictions: list[str]
) -> None:
    row_input = asked(excluded=excluded, minutes=minutes, restrictions=restrictions)
    clean = [item for item in CATALOGUE.ids if not violations(CATALOGUE, row_input, {"meals": [meal(item)]})]
    assert LEGAL.legal(row_input, []) == clean


@pytest.mark.parametrize(
    ("term", "ingredient", "hits"),
    [
        ("egg", "eggs", True),
        ("eggs", "egg noodles", True),
        ("egg", "eggplant", False),
        ("ham", "graham crackers", False),
        ("nut", "nutmeg", False),
        ("nuts", "pine nuts", True),
        ("tomato", "cherry tomatoes", True),
        ("Tomatoes", "tomato paste", True),
        ("berry", "Berries", True),
        ("anchovies", "anchovy", True),
        ("cookie", "cookies", True),
        ("radish", "radishes", True),
        ("soy sauce", "low-sodium soy sauce", True),
        ("soy sauce", "soy milk", False),
        ("pepper", "bell peppers", True),
        ("green onion", "green-onions", True),
        ("za'atar", "za'atar", True),
        ("bass", "sea bass fillets", True),
        ("hummus", "hummus", True),
        ("", "eggs", False),
        ("  ", "eggs", False),
        ("jalapeño", "JALAPEÑOS", True),
        (".*", "eggs", False),
    ],
)
def test_an_excluded_ingredient_matches_whole_words(term: str, ingredient: str, hits: bool) -> None:
    catalogue = Catalogue([Recipe("dish", "Dish", ("rice", ingredient), 20, (), 4)])
    row_input = asked(excluded=[term])
    assert bool(violations(catalogue, row_input, {"meals": [meal("dish")]})) is hits
    assert LegalRecipes(catalogue).legal(row_input, []) == ([] if hits else ["dish"])


def test_violations_name_every_broken_rule() -> None:
    plan = {"meals": [meal("beef-tacos"), meal("mushroom-risotto", 1), meal("beef-tacos", 2), meal("nothing", 3)]}
    broken = violations(CATALOGUE, asked(excluded=["garlic"], minutes=40, restrictions=["vegetarian"]), plan)
    assert [(violation.rule, violation.item) for violation in broken] == [
        ("excluded_ingredient", "beef-tacos"),
        ("restriction", "beef-tacos"),
        ("excluded_ingredient", "mushroom-risotto"),
        ("max_prep_time", "mushroom-risotto"),
        ("repeat", "beef-tacos"),
        ("excluded_ingredient", "beef-tacos"),
        ("restriction", "beef-tacos"),
        ("unknown_recipe", "nothing"),
    ]
    assert broken[3].message == "Mushroom Risotto takes 45 minutes, and 40 are allowed."


def test_unknown_minutes_do_not_fit_a_limit() -> None:
    catalogue = Catalogue([Recipe("a", "A", ("rice",), None, (), 4)])
    assert LegalRecipes(catalogue).legal(asked(minutes=60), []) == []
    assert [violation.rule for violation in violations(catalogue, asked(minutes=60), {"meals": [meal("a")]})] == [
        "max_prep_time"
    ]
    assert LegalRecipes(catalogue).legal(asked(), []) == ["a"]


def test_chosen_item_is_not_legal_again() -> None:
    first, second = CATALOGUE.ids[:2]
    assert first not in LEGAL.legal(asked(), [first]) and second in LEGAL.legal(asked(), [first])


@pytest.mark.parametrize(
    ("row_input", "expected"),
    [
        (asked(), False),
        (asked(budget=30.0), False),
        (asked(excluded=[" "]), False),
        (asked(excluded=["egg"]), True),
        (asked(minutes=0), True),
        (asked(restrictions=["vegan"]), True),
        ({"household": {"restrictions": None}, "constraints": {"excluded_ingredients": None}}, False),
    ],
)
def test_has_constraint_ignores_the_budget(row_input: dict[str, Any], expected: bool) -> None:
    assert has_constraint(row_input) is expected


@pytest.mark.parametrize("missing", ["household", "constraints"])
def test_unreadable_rules_raise(missing: str) -> None:
    row_input = {key: value for key, value in asked().items() if key != missing}
    for question in (
        lambda: LEGAL.legal(row_input, []),
        lambda: violations(CATALOGUE, row_input, {"meals": [meal("harira")]}),
    ):
        with pytest.raises(KeyError, match=missing):
            question()


def test_budget_counts_servings_and_is_unknown_without_a_cost() -> None:
    catalogue = Catalogue([Recipe("a", "A", (), 10, (), 4, cost=8.0), Recipe("b", "B", (), 10, (), 2, cost=None)])
    plan = {"meals": [meal("a", servings=3)]}
    assert plan_cost(catalogue, plan) == 6.0
    assert over_budget(catalogue, asked(budget=6.0), plan) is False
    assert over_budget(catalogue, asked(budget=5.99), plan) is True
    assert over_budget(catalogue, asked(), plan) is None
    assert over_budget(catalogue, asked(budget=1.0), {"meals": [meal("b")]}) is None
