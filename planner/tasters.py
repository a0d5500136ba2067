"""Made-up tasters, to give the built-in base model an idea of recipes before it sees a real household.

A taster likes a few directions among the recipes' ingredients, tags, minutes and cost, states some of that, uses up what it has, and
does not eat the same twice within two weeks. Its next plan is the target. Without this structure (plans drawn at random) fine-tuning
never passed popularity: docs/training.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.catalogue import DIETS
from product.protocol import Product, Row

WEEKS = (0.05, 0.1, 0.1, 0.15, 0.6)
"""Share of tasters with 0, 1, … weeks of history."""
DIRECTIONS = 32
"""Main directions of the recipes' features that tastes live in; a recipe's own charm comes on top."""
TASTE, CHARM, CHANCE = 1.0, 0.5, 0.5
"""Spread over recipes of a taster's taste and of its whims, and scale of the chance in each choice."""
PANTRY_PULL = 0.3
EATEN_LATELY = 4.0
LATELY_DAYS = 15


@dataclass(frozen=True)
class _Shelf:
    """The catalogue as arrays: recipes' ids and features, and which tags and ingredients each has."""

    ids: list[str]
    features: np.ndarray
    tags: list[str]
    tagged: np.ndarray
    ingredients: list[str]
    holds: np.ndarray


def synthetic_rows(product: Product, recipes: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Row]:
    """`count` rows (`input`, `target`; no metadata) of made-up tasters, fewer where no recipe is legal for some of them.

    `recipes` are dicts with `id`, `ingredients`, `dietary_tags`, `prep_minutes`, `cost`, `servings`; the target obeys the product's own
    rules. The same arguments give the same rows.
    """
    random = np.random.default_rng(seed)
    shelf = _shelf(recipes)
    position = {item: number for number, item in enumerate(shelf.ids)}
    rows = []
    for number in range(count):
        taste = shelf.features @ random.normal(size=shelf.features.shape[1])
        liking = TASTE * taste / max(float(taste.std()), 1e-9) + CHARM * random.normal(size=len(shelf.ids))
        row_input = _input(random, number, liking, shelf)
        slots = product.slots(row_input)
        _eat(random, row_input, shelf, liking, slots)
        legal = np.array([position[item] for item in product.legal_items(row_input, [])], dtype=int)
        if len(legal):
            held = [shelf.ingredients.index(item["name"]) for item in row_input["pantry"]["items"]]
            wanted = liking + PANTRY_PULL * shelf.holds[:, held].sum(axis=1)
            for plan in row_input["recent_plans"]:
                if plan["days_ago"] <= LATELY_DAYS:
                    wanted[[position[meal["recipe_id"]] for meal in plan["meals"]]] -= EATEN_LATELY
            chosen = [shelf.ids[legal[index]] for index in _draw(random, wanted[legal], slots)]
            chances = np.exp((wanted[legal] - wanted[legal].max()) / CHANCE)
            weights = dict(zip([shelf.ids[index] for index in legal], chances.tolist(), strict=True))
            target = {"accepted_plan": product.plan(row_input, chosen), "item_weights": weights}
            rows.append({"input": row_input, "target": target, "metadata": {}})
    return rows


def _shelf(recipes: Sequence[Mapping[str, Any]]) -> _Shelf:
    tags = sorted({tag for recipe in recipes for tag in recipe["dietary_tags"]})
    ingredients = sorted({name for recipe in recipes for name in recipe["ingredients"]})
    tagged = np.array([[tag in recipe["dietary_tags"] for tag in tags] for recipe in recipes], dtype=float)
    holds = np.array([[name in recipe["ingredients"] for name in ingredients] for recipe in recipes], dtype=float)
    described = tagged[:, [tag not in DIETS for tag in tags]]
    minutes = np.log1p([float(recipe.get("prep_minutes") or 0) for recipe in recipes])
    price = [float(recipe.get("cost") or 0) / max(int(recipe.get("servings") or 1), 1) for recipe in recipes]
    common = holds[:, holds.sum(axis=0) > 1]
    matrix = np.column_stack([_spread(described), 0.5 * _spread(common), _spread(np.column_stack([minutes, price]))])
    left, strengths, _ = np.linalg.svd(matrix, full_matrices=False)
    features = left[:, :DIRECTIONS] * strengths[:DIRECTIONS]
    return _Shelf([str(recipe["id"]) for recipe in recipes], features, tags, tagged, ingredients, holds)


def _spread(columns: np.ndarray) -> np.ndarray:
    """Centred, and scaled by the square root of the spread: rare words count for less than common ones."""
    centred = columns - columns.mean(axis=0)
    return np.asarray(centred / np.sqrt(np.maximum(centred.std(axis=0), 1e-9)))


def _draw(random: np.random.Generator, wanted: np.ndarray, count: int) -> list[int]:
    """`count` different positions, each drawn by softmax (the Gumbel trick)."""
    noisy = wanted + random.gumbel(scale=CHANCE, size=len(wanted))
    return [int(index) for index in np.argsort(-noisy, kind="stable")[:count]]


def _input(random: np.random.Generator, number: int, liking: np.ndarray, shelf: _Shelf) -> dict[str, Any]:
    """An input without history. What a taster says of itself agrees with its taste, with noise."""
    diets = [tag for tag in shelf.tags if tag in DIETS]
    agreement = (liking @ shelf.tagged) / np.maximum(shelf.tagged.sum(axis=0), 1.0) + random.normal(
        scale=0.25, size=len(shelf.tags)
    )
    labels = [index for index in np.argsort(-agreement) if shelf.tags[index] not in diets]
    pantry = _some(random, len(shelf.ingredients), int(random.integers(0, 10)))
    avoided = _some(random, len(shelf.ingredients), int(random.random() < 0.3))
    return {
        "household": {
            "id": f"taster-{number}",
            "size": int(random.integers(1, 9)),
            "preferences": [shelf.tags[index] for index in labels[: random.integers(0, 4)]],
            "restrictions": [diets[int(random.integers(len(diets)))]] if diets and random.random() < 0.3 else [],
        },
        "pantry": {"items": [{"name": shelf.ingredients[index], "quantity": 1.0, "unit": "piece"} for index in pantry]},
        "constraints": {
            "budget": float(random.integers(3, 16) * 10) if random.random() < 0.4 else None,
            "max_prep_time": int(random.integers(2, 9) * 15) if random.random() < 0.4 else None,
            "excluded_ingredients": [shelf.ingredients[index] for index in avoided],
        },
        "workflow_type": ("plan-first", "meal-first", "pantry-first")[int(random.integers(3))],
        "mode": ("autopilot", "exploratory", "constrained")[int(random.integers(3))],
        "previous_plan": None,
        "recent_plans": [],
    }


def _some(random: np.random.Generator, among: int, count: int) -> list[int]:
    """Different positions; a repeat is dropped rather than drawn again."""
    return sorted({int(index) for index in random.integers(among, size=count)})


def _eat(random: np.random.Generator, row_input: dict[str, Any], shelf: _Shelf, liking: np.ndarray, slots: int) -> None:
    """Live through some weeks: each plan half to the taste, then edited, so that what was swapped in suits the taster best."""
    weeks = int(random.choice(len(WEEKS), p=WEEKS))
    eaten: list[list[int]] = []
    for week in range(weeks, 0, -1):
        lately = [index for plan in eaten[-2:] for index in plan]
        wanted = liking.copy()
        wanted[lately] -= EATEN_LATELY
        taken: list[int] = []
        swaps: list[bool] = []
        shown = _draw(random, 0.5 * wanted, slots)
        for index in shown:
            swapped_in = bool(random.random() > 1 / (1 + np.exp(-1.5 * liking[index])))
            better = _draw(random, wanted, 2 * slots) if swapped_in else []
            taken.append(next((other for other in better if other not in shown and other not in taken), index))
            swaps.append(swapped_in)
        meals = [{"recipe_id": shelf.ids[index], "swapped_in": swap} for index, swap in zip(taken, swaps, strict=True)]
        eaten.append(taken)
        row_input["recent_plans"].append({"days_ago": 7 * week, "meals": meals})
    if eaten:
        last = [{"day": day, "recipe_id": shelf.ids[index], "servings": 2} for day, index in enumerate(eaten[-1])]
        row_input["previous_plan"] = {"meals": last}
