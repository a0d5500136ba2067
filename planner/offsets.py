"""What the product itself asks of a plan, beside what people choose: log-odds that are added to a recipe's score, always.

 An offset is no parameter (a term of generalised linear models):
training and decoding add the same one, so a model learns only what it does not explain.
"""

from planner.catalogue import Catalogue
from planner.scores import STAPLES
from product.protocol import RowInput

PANTRY_PULL = 0.5
"""Log-odds for each pantry item that a recipe uses up. On the validation households of two samples, 0.3 and 0.5 led 0, 0.1 and 0.2
in plan alignment. The same trial printed the replayed households too, so their scores are not blind to this choice; the simulator's
own households have a pull of that size (`world.py`), which a real product would have to find out."""


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
