"""What the product itself asks of a plan, beside what people choose: log-odds that are added to a recipe's score, always.

Belongs here: the offset of each recipe for one row. Does not belong here: what may be eaten (`constraints.py`), how good a plan is
(`scores.py`), anything that is learnt. An offset is no parameter (McCullagh and Nelder, Generalized Linear Models, 1989, section 6.2.3):
training and decoding add the same one, so a model learns only what it does not explain.
"""

from planner.catalogue import Catalogue
from planner.product import RowInput
from planner.scores import STAPLES

PANTRY_PULL = 0.5
"""Log-odds for each pantry item that a recipe uses up. Chosen on the validation households of two samples (0.3 and 0.5 led 0, 0.1 and
0.2 there in plan alignment); the replayed households were not asked."""


class PantryOffsets:
    """Offsets over one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._users: dict[str, list[str]] = {}
        for recipe in catalogue:
            for name in {ingredient.strip().casefold() for ingredient in recipe.ingredients} - STAPLES:
                self._users.setdefault(name, []).append(recipe.id)

    def offsets(self, row_input: RowInput) -> dict[str, float]:
        """Recipe id → log-odds, for the recipes that use up something that the pantry holds; all others have none."""
        held = {item["name"].strip().casefold() for item in (row_input.get("pantry") or {}).get("items") or ()}
        found: dict[str, float] = {}
        for name in held:
            for recipe_id in self._users.get(name, ()):
                found[recipe_id] = found.get(recipe_id, 0.0) + PANTRY_PULL
        return found
