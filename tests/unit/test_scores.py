"""The scores against numbers worked out by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import scores
from planner.catalogue import Catalogue, Recipe, sample_catalogue

KITCHEN = Catalogue(
    [
        Recipe("a", "A", ("rice", "egg", "leek", "salt"), 10, ("vegetarian",), 2, cost=4.0),
        Recipe("b", "B", ("rice", "leek", "beans"), 20, ("vegetarian", "vegan"), 2, cost=6.0),
        Recipe("c", "C", ("beef", "bread"), 40, (), 2, cost=10.0),
        Recipe("d", "D", ("beans", "bread", "Leek"), 30, ("vegan",), 2, cost=2.0),
    ]
)


def plan(*recipe_ids: str, servings: int = 2) -> dict[str, Any]:
    return {"meals": [{"day": day, "recipe_id": item, "servings": servings} for day, item in enumerate(recipe_ids)]}


def row(accepted: dict[str, Any], *, pantry: tuple[str, ...] = (), **constraints: Any) -> dict[str, Any]:
    rules = {"budget": None, "max_prep_time": None, "excluded_ingredients": [], **constraints}
    return {
        "input": {
            "household": {"id": "h", "size": 2, "preferences": [], "restrictions": []},
            "pantry": {"items": [{"name": name, "quantity": 1.0, "unit": "piece"} for name in pantry]},
            "constraints": rules,
        },
        "target": {"accepted_plan": accepted},
    }


@pytest.mark.parametrize(
    ("predicted", "accepted", "expected"),
    [
        ("abc", "abc", 1.0),
        ("abc", "bcd", 2 / 4),  # shared b c, all a b c d
        ("ab", "cd", 0.0),
        ("", "ab", 0.0),
        ("ba", "ab", 1.0),  # a set has no order
        ("abcde", "abxyz", 2 / 8),
    ],
)
def test_alignment_is_the_jaccard_index(predicted: str, accepted: str, expected: float) -> None:
    assert scores.plan_alignment(predicted, accepted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    # The first two are the worked examples of every textbook on Levenshtein distance.
    [
        ("kitten", "sitting", 3),
        ("saturday", "sunday", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("ab", "ba", 2),
    ],
)
def test_levenshtein(left: str, right: str, distance: int) -> None:
    assert scores.levenshtein(left, right) == distance


@pytest.mark.parametrize(
    ("predicted", "accepted", "expected"),
    [
        ("abcde", "abcde", 1.0),
        ("abcde", "abxde", 4 / 5),  # one meal replaced
        ("abcde", "abxye", 3 / 5),
        ("abcd", "abcde", 4 / 5),  # one meal missing: ÷ the longer plan
        ("abcde", "bcdea", 3 / 5),  # one removed, one added
        ("", "ab", 0.0),
        ("", "", 0.0),
        ("ab", "cd", 0.0),
    ],
)
def test_edit_distance_score(predicted: str, accepted: str, expected: float) -> None:
    assert scores.edit_distance(predicted, accepted) == pytest.approx(expected)


def test_edit_distance_follows_the_days_not_the_list() -> None:
    shuffled = {"meals": list(reversed(plan("a", "b", "c")["meals"]))}
    all_scores = scores.all_scores(KITCHEN, row(plan("a", "b", "c")), shuffled)
    assert all_scores["edit_distance_score"] == 1.0


def test_diversity_is_one_minus_the_mean_jaccard_of_pairs() -> None:
    # a∩b {rice, leek} of {rice, egg, leek, salt, beans} = 2/5; a∩c none; b∩c none → mean (2/5 + 0 + 0) / 3
    assert scores.diversity(KITCHEN, ["a", "b", "c"]) == pytest.approx(1 - (2 / 5) / 3)
    # b∩d {beans, leek} of {rice, leek, beans, bread} = 2/4
    assert scores.diversity(KITCHEN, ["b", "d"]) == pytest.approx(0.5)
    assert scores.diversity(KITCHEN, ["c", "c"]) == 0.0
    assert scores.diversity(KITCHEN, ["a"]) == scores.diversity(KITCHEN, []) == 0.0


def test_leftovers_counts_pantry_and_opened_things() -> None:
    # Held: rice, cream. Opened: leek (two meals), egg, beans (salt keeps). Used up: rice, leek → 2 of 5.
    row_input = row(plan("a"), pantry=("Rice", "cream"))["input"]
    assert scores.leftovers(KITCHEN, row_input, ["a", "b"]) == pytest.approx(2 / 5)
    # Nothing held: opened leek, rice (two meals each), egg, beans → 2 of 4.
    assert scores.leftovers(KITCHEN, row(plan("a"))["input"], ["a", "b"]) == pytest.approx(2 / 4)
    # Held but not used, opened but used once: beef, bread, egg → 0 of 3.
    assert scores.leftovers(KITCHEN, row(plan("a"), pantry=("egg",))["input"], ["c"]) == 0.0
    assert scores.leftovers(KITCHEN, row_input, []) == 0.0


def test_leftovers_do_not_apply_when_only_staples_are_used() -> None:
    salted = Catalogue([Recipe("s", "S", ("salt", "water"), 1, (), 1)])
    assert scores.leftovers(salted, row(plan("s"), pantry=("salt",))["input"], ["s"]) is None


def test_constraint_respect_and_budget() -> None:
    free = row(plan("a"))["input"]
    assert scores.constraint_respect(KITCHEN, free, plan("c")) is None
    quick = row(plan("a"), max_prep_time=20)["input"]
    assert scores.constraint_respect(KITCHEN, quick, plan("a", "b")) == 1.0
    assert scores.constraint_respect(KITCHEN, quick, plan("a", "c")) == 0.0
    assert scores.constraint_respect(KITCHEN, quick, plan("a", "a")) == 1.0
    assert scores.constraint_respect(KITCHEN, quick, plan("a", "unheard-of")) == 0.0
    thrifty = row(plan("a"), budget=10.0)["input"]
    assert scores.constraint_respect(KITCHEN, thrifty, plan("a")) is None
    assert scores.budget_respect(KITCHEN, thrifty, plan("a", "b")) == 1.0
    assert scores.budget_respect(KITCHEN, thrifty, plan("a", "c")) == 0.0
    assert scores.budget_respect(KITCHEN, free, plan("a")) is None


ids = st.lists(st.sampled_from(sample_catalogue().ids), max_size=7, unique=True)


@given(
    predicted=ids,
    accepted=ids.filter(bool),
    pantry=st.lists(st.sampled_from(sorted(sample_catalogue().ingredient_counts)), max_size=8),
)
def test_every_score_is_between_0_and_1(predicted: list[str], accepted: list[str], pantry: list[str]) -> None:
    all_scores = scores.all_scores(
        sample_catalogue(), row(plan(*accepted), pantry=tuple(pantry), max_prep_time=45), plan(*predicted)
    )
    assert set(all_scores) == {
        "plan_alignment_score",
        "constraint_respect_score",
        "edit_distance_score",
        "diversity_score",
        "leftovers_score",
        "budget_respect_score",
    }
    assert all(value is None or 0.0 <= value <= 1.0 for value in all_scores.values())


@given(left=ids, right=ids)
def test_levenshtein_is_a_distance(left: list[str], right: list[str]) -> None:
    assert scores.levenshtein(left, right) == scores.levenshtein(right, left) >= abs(len(left) - len(right))
    assert (scores.levenshtein(left, right) == 0) == (left == right)
