"""The recipe catalogue: what a recipe is, the sample catalogue, and reading catalogues from plain records.

The sample catalogue (`catalogue.csv`) lists what a household shops for: salt, pepper, cooking oil, sugar by the pinch and water are
assumed to be there. Cost is a rough grocery price in US dollars for the recipe's `servings`.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

DIETS = ("vegan", "vegetarian", "pescatarian", "gluten-free", "dairy-free", "nut-free")
"""Tags that a household may require (`restrictions`). Every other tag is descriptive: cuisine, main protein, kind of dish."""

SAMPLE_FILE = Path(__file__).with_name("catalogue.csv")
_LIST_SEPARATOR = ";"


@dataclass(frozen=True)
class Recipe:
    """One dish. `prep_minutes` and `cost` (US dollars for `servings` people) are None where the source does not say.

    Tags are words in lower case; those of `DIETS` may restrict, the others describe.
    """

    id: str
    title: str
    ingredients: tuple[str, ...]
    prep_minutes: int | None
    dietary_tags: tuple[str, ...]
    servings: int
    cost: float | None = None
    submitted: date | None = None

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The tags that describe rather than restrict: cuisine, main protein, kind of dish."""
        return tuple(tag for tag in self.dietary_tags if tag not in DIETS)

    @property
    def cost_per_serving(self) -> float | None:
        """US dollars for one person, or None where the cost is unknown."""
        return None if self.cost is None else self.cost / self.servings

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Recipe":
        """A recipe from a record of plain values (a CSV line's lists are one text, separated by `;`).

        Raises ValueError with the recipe and the field if a value is invalid.
        """
        recipe_id = _text(record.get("id"))
        if not recipe_id or any(character.isspace() for character in recipe_id):
            raise ValueError(f"A recipe id must be one word without spaces, and {record.get('id')!r} is not.")
        try:
            return cls(
                id=recipe_id,
                title=_text(record.get("title")) or recipe_id,
                ingredients=_texts(record.get("ingredients")),
                prep_minutes=_whole(record.get("prep_minutes"), "prep_minutes", least=0),
                dietary_tags=tuple(dict.fromkeys(tag.casefold() for tag in _texts(record.get("dietary_tags")))),
                servings=_whole(record.get("servings"), "servings", least=1) or 4,
                cost=_amount(record.get("cost")),
                submitted=_day(record.get("submitted")),
            )
        except ValueError as error:
            raise ValueError(f"Recipe {recipe_id}: {error}") from error

    def to_record(self) -> dict[str, Any]:
        """Inverse of `from_record`, in JSON's types."""
        return {
            "id": self.id,
            "title": self.title,
            "ingredients": list(self.ingredients),
            "prep_minutes": self.prep_minutes,
            "dietary_tags": list(self.dietary_tags),
            "servings": self.servings,
            "cost": self.cost,
            "submitted": None if self.submitted is None else self.submitted.isoformat(),
        }


class Catalogue:
    """Recipes by id, always in the order of their ids, so that equal catalogues behave equally, wherever they were read from."""

    def __init__(self, recipes: Iterable[Recipe]) -> None:
        """Raises ValueError if there is no recipe, or if an id occurs twice."""
        ordered = sorted(recipes, key=lambda recipe: recipe.id)
        self._recipes = {recipe.id: recipe for recipe in ordered}
        if not ordered:
            raise ValueError("The recipe catalogue is empty: it needs at least one recipe.")
        if len(self._recipes) < len(ordered):
            repeated = next(recipe.id for recipe, following in pairwise(ordered) if recipe.id == following.id)
            raise ValueError(f"The recipe catalogue has the id {repeated} twice: ids must be unique.")

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> "Catalogue":
        """A catalogue from records such as rows of `planner.recipes`, CSV lines, or `to_records`."""
        return cls(Recipe.from_record(record) for record in records)

    def to_records(self) -> list[dict[str, Any]]:
        """Every recipe as a JSON-able record, in order."""
        return [recipe.to_record() for recipe in self]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Recipe ids in order."""
        return tuple(self._recipes)

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self._recipes.values())

    def __len__(self) -> int:
        return len(self._recipes)

    def __contains__(self, recipe_id: object) -> bool:
        return recipe_id in self._recipes

    def __getitem__(self, recipe_id: str) -> Recipe:
        return self._recipes[recipe_id]

    def get(self, recipe_id: str) -> Recipe | None:
        """The recipe of this id, or None."""
        return self._recipes.get(recipe_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Catalogue) and self._recipes == other._recipes

    def __hash__(self) -> int:
        return hash(self.ids)

    @cached_property
    def ingredient_counts(self) -> dict[str, int]:
        """Ingredient → how many recipes use it, by name."""
        counts: dict[str, int] = {}
        for recipe in self:
            for ingredient in set(recipe.ingredients):
                counts[ingredient] = counts.get(ingredient, 0) + 1
        return dict(sorted(counts.items()))

    @cached_property
    def by_label(self) -> dict[str, tuple[str, ...]]:
        """Describing tag → ids of the recipes that carry it, both in order."""
        labels = sorted({label for recipe in self for label in recipe.labels})
        return {label: tuple(recipe.id for recipe in self if label in recipe.labels) for label in labels}


@lru_cache(maxsize=1)
def sample_catalogue() -> Catalogue:
    """The catalogue that ships with the project."""
    with SAMPLE_FILE.open(encoding="utf-8", newline="") as file:
        return Catalogue.from_records(csv.DictReader(file))


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts, or one text with `;` between the parts, without empty parts and repeats."""
    parts = value.split(_LIST_SEPARATOR) if isinstance(value, str) else list(value if value is not None else ())
    return tuple(dict.fromkeys(part for part in (_text(part) for part in parts) if part))


def _whole(value: Any, field: str, *, least: int) -> int | None:
    if value is None or value == "":
        return None
    number = int(value)
    if number < least:
        raise ValueError(f"{field} must be a whole number of at least {least}, and {value!r} is not.")
    return number


def _amount(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"cost must be a number of at least 0, and {value!r} is not.")
    return number


def _day(value: Any) -> date | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, date) else date.fromisoformat(str(value))
