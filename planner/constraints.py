"""May this household eat this? The hard rules of a plan, in two formulations that verify each other.

The rules: no excluded ingredient, no more minutes than `max_prep_time`, every restriction among the tags, known recipes, none twice.
`legal` builds the set of allowed recipes from sets of word sequences and tags, and planners choose within it. `violations` checks a
finished plan, meal by meal, as plain text. They share only the singular of a word, so that a mistake in one shows in the other.

An excluded ingredient matches an ingredient that contains its words in order: `egg` matches `eggs` and `egg noodles`, never
`eggplant`; `milk` matches `coconut milk` too, since refusing too much harms less than serving an allergen. Budget is not a hard rule
(prices are rough): `over_budget` reports it separately.

A row without `household` or `constraints` raises KeyError everywhere here: rules that cannot be read are not rules that do not exist.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from planner.catalogue import Catalogue, Recipe
from product.protocol import Plan, RowInput, Violation

REMEMBERED = 10_000
"""Sets of rules whose allowed recipes are kept: households share few, and a long-lived process must not grow without end."""

_WORD = re.compile(r"[^\W_]+")


def has_constraint(row_input: RowInput) -> bool:
    """Whether any hard rule about recipes applies to this household (budget is not one)."""
    constraints = row_input["constraints"]
    return bool(
        any(singular_words(term) for term in constraints.get("excluded_ingredients") or ())
        or constraints.get("max_prep_time") is not None
        or row_input["household"].get("restrictions")
    )


# --- words: all that the two formulations share ---


def _singular(word: str) -> str:
    """One spelling for a word's singular and plural; not always a real word (`cookie` and `cookies` → `cooky`)."""
    if len(word) <= 2:
        return word
    if word.endswith(("ie", "ies")):
        return word.removesuffix("s")[:-2] + "y"
    if word.endswith(("oes", "ches", "shes", "xes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us")):
        return word[:-1]
    return word


@lru_cache(maxsize=4096)
def singular_words(text: str) -> tuple[str, ...]:
    """The text's words in lower case and in the singular; none for a text without letters or digits."""
    return tuple(_singular(word) for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


# --- first formulation: which recipes are allowed (sets of word sequences) ---


class LegalRecipes:
    """The allowed recipes of a catalogue for any household, remembering the answer per set of rules."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._phrases = {recipe.id: _phrases(recipe.ingredients) for recipe in catalogue}
        self._tags = {recipe.id: {tag.casefold() for tag in recipe.dietary_tags} for recipe in catalogue}
        self._known: dict[tuple[frozenset[tuple[str, ...]], int | None, frozenset[str]], tuple[str, ...]] = {}

    def allowed(self, row_input: RowInput) -> tuple[str, ...]:
        """Ids of the recipes that break no rule of this household, in catalogue order."""
        constraints = row_input["constraints"]
        excluded = frozenset(
            words for term in constraints.get("excluded_ingredients") or () if (words := singular_words(term))
        )
        limit = constraints.get("max_prep_time")
        required = frozenset(word.casefold() for word in row_input["household"].get("restrictions") or ())
        key = (excluded, limit, required)
        if len(self._known) > REMEMBERED:
            self._known.clear()
        if key not in self._known:
            self._known[key] = tuple(
                recipe.id
                for recipe in self._catalogue
                if required <= self._tags[recipe.id]
                and not (excluded & self._phrases[recipe.id])
                # A recipe of unknown minutes may not fit.
                and (limit is None or (recipe.prep_minutes is not None and recipe.prep_minutes <= limit))
            )
        return self._known[key]

    def legal(self, row_input: RowInput, chosen: Sequence[str]) -> list[str]:
        """The allowed recipes that were not chosen before."""
        taken = set(chosen)
        return [recipe_id for recipe_id in self.allowed(row_input) if recipe_id not in taken]


def _phrases(ingredients: Iterable[str]) -> set[tuple[str, ...]]:
    """Every run of consecutive words in any of the ingredients."""
    phrases: set[tuple[str, ...]] = set()
    for ingredient in ingredients:
        words = singular_words(ingredient)
        phrases.update(words[start:end] for start in range(len(words)) for end in range(start + 1, len(words) + 1))
    return phrases


# --- second formulation: what a finished plan breaks (meal by meal) ---


def violations(catalogue: Catalogue, row_input: RowInput, plan: Plan) -> list[Violation]:
    """Every hard rule that the plan breaks, meal by meal."""
    household = row_input["household"]
    constraints = row_input["constraints"]
    broken: list[Violation] = []
    seen: set[str] = set()
    for meal in plan["meals"]:
        recipe_id = meal["recipe_id"]
        recipe = catalogue.get(recipe_id)
        if recipe_id in seen:
            broken.append(Violation("repeat", recipe_id, f"{recipe_id} is in the plan twice."))
        seen.add(recipe_id)
        if recipe is None:
            broken.append(Violation("unknown_recipe", recipe_id, f"{recipe_id} is not in the catalogue."))
        else:
            broken += _of_recipe(recipe, constraints, household.get("restrictions") or ())
    return broken


def _of_recipe(recipe: Recipe, constraints: Mapping[str, Any], restrictions: Iterable[str]) -> list[Violation]:
    broken = []
    for term in constraints.get("excluded_ingredients") or ():
        hit = next((item for item in recipe.ingredients if _mentions(item, term)), None)
        if hit is not None:
            broken.append(
                Violation("excluded_ingredient", recipe.id, f"{recipe.title} has {hit}, and {term} is excluded.")
            )
    limit = constraints.get("max_prep_time")
    if limit is not None and recipe.prep_minutes is None:
        broken.append(
            Violation("max_prep_time", recipe.id, f"{recipe.title} does not say its minutes, and {limit} are allowed.")
        )
    elif limit is not None and recipe.prep_minutes is not None and recipe.prep_minutes > limit:
        broken.append(
            Violation(
                "max_prep_time",
                recipe.id,
                f"{recipe.title} takes {recipe.prep_minutes} minutes, and {limit} are allowed.",
            )
        )
    for restriction in restrictions:
        if not any(tag.casefold() == restriction.casefold() for tag in recipe.dietary_tags):
            broken.append(Violation("restriction", recipe.id, f"{recipe.title} is not tagged {restriction}."))
    return broken


def _mentions(ingredient: str, term: str) -> bool:
    """Whether the ingredient contains the term as whole words."""
    words = " ".join(singular_words(term))
    return bool(words) and f" {words} " in f" {' '.join(singular_words(ingredient))} "


# --- apart from the hard rules ---


def plan_cost(catalogue: Catalogue, plan: Plan) -> float | None:
    """US dollars for the plan's servings; None where a meal's cost is unknown."""
    total = 0.0
    for meal in plan["meals"]:
        recipe = catalogue.get(meal["recipe_id"])
        if recipe is None or recipe.cost_per_serving is None:
            return None
        total += recipe.cost_per_serving * meal["servings"]
    return total


def over_budget(catalogue: Catalogue, row_input: RowInput, plan: Plan) -> bool | None:
    """Whether the plan costs more than the household's budget for it; None without a budget or a known cost."""
    budget = row_input["constraints"].get("budget")
    cost = plan_cost(catalogue, plan)
    return None if budget is None or cost is None else cost > budget + 1e-9
