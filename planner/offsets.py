"""What the product itself asks of a plan, apart from what people choose: log-odds that are always added to a recipe's score.

An offset (the term is from generalised linear models) is not a parameter: training and decoding add the same one, so a model learns
only what the offset does not explain.
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
        """Recipe id → log-odds, for the recipes that use up something in the pantry; the others have none."""
        pantry = {item["name"].strip().casefold() for item in (row_input.get("pantry") or {}).get("items") or ()}
        odds: dict[str, float] = {}
        for name in pantry:
            for recipe_id in self._users.get(name, ()):
                odds[recipe_id] = odds.get(recipe_id, 0.0) + PANTRY_PULL
        return odds
