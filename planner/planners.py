"""Planners of recipes that need no training: the heuristic baseline, and the exploring legacy planner.

Every planner has `plan(product, row_input, rng) -> chosen items` and chooses among the product's legal items alone. The heuristic
ignores `rng`: the same input gives the same plan.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.meal_planner import MealPlanner
from planner.scores import STAPLES
from product.planners import Rng
from product.protocol import RowInput


@dataclass(frozen=True)
class HeuristicPlanner:
    """The registered baseline: rules over the catalogue and the row alone, without other households' history and without chance.

    Each slot takes the legal recipe with the highest weighted sum; ties go to the first in the catalogue.
    """

    preference_weight: float = 1.0
    """For each preferred label that the recipe carries."""
    pantry_weight: float = 0.1
    """For using any pantry item that no earlier meal of the plan uses."""
    quick_weight: float = 0.5
    """For 0 minutes, falling linearly to 0 at `SLOW_MINUTES`."""
    cheap_weight: float = 0.5
    """For a cost of 0, falling linearly to 0 at `DEAR_SERVING` dollars a serving, or at the budget's share."""
    variety_weight: float = 0.6
    """Subtracted for each label shared with an earlier meal of the plan."""
    recent_weight: float = 2.0
    """Subtracted if the household had the recipe in its previous plan or in `RECENT_DAYS`."""

    SLOW_MINUTES = 90
    DEAR_SERVING = 5.0
    RECENT_DAYS = 15

    def plan(self, product: MealPlanner, row_input: RowInput, rng: Rng | None = None) -> list[str]:
        """As many recipes as the plan needs, or fewer when no more are legal."""
        wanted = {wish.casefold() for wish in row_input["household"].get("preferences") or ()}
        held = {item["name"].casefold() for item in (row_input.get("pantry") or {}).get("items") or ()} - STAPLES
        recent = recent_items(row_input, within_days=self.RECENT_DAYS)
        dear = self._dear_serving(product, row_input)
        chosen: list[str] = []
        seen_labels: list[str] = []
        while len(chosen) < product.slots(row_input) and (legal := product.legal_items(row_input, chosen)):
            best = max(legal, key=lambda item: self._worth(product, item, wanted, held, recent, seen_labels, dear))
            chosen.append(best)
            held -= {name.casefold() for name in product.catalogue[best].ingredients}
            seen_labels += product.catalogue[best].labels
        return chosen

    def _dear_serving(self, product: MealPlanner, row_input: RowInput) -> float:
        budget = row_input["constraints"].get("budget")
        if not budget:
            return self.DEAR_SERVING
        size = max(int(row_input["household"].get("size") or 1), 1)
        return min(self.DEAR_SERVING, float(budget) / (product.slots(row_input) * size))

    def _worth(
        self,
        product: MealPlanner,
        item: str,
        wanted: set[str],
        held: set[str],
        recent: set[str],
        seen_labels: list[str],
        dear: float,
    ) -> float:
        recipe = product.catalogue[item]
        minutes = self.SLOW_MINUTES if recipe.prep_minutes is None else recipe.prep_minutes
        cost = dear if recipe.cost_per_serving is None else recipe.cost_per_serving
        return (
            self.preference_weight * len(wanted.intersection(recipe.labels))
            + self.pantry_weight * any(name.casefold() in held for name in recipe.ingredients)
            + self.quick_weight * max(0.0, 1 - minutes / self.SLOW_MINUTES)
            + self.cheap_weight * max(-1.0, 1 - cost / dear)
            - self.variety_weight * sum(seen_labels.count(label) for label in recipe.labels)
            - self.recent_weight * (item in recent)
        )


@dataclass(frozen=True)
class Proposal:
    """What the legacy planner proposed: per slot the item, the probability with which it was drawn given the slots before it,
    and whether the draw explored."""

    items: list[str]
    propensities: list[float]
    explored: list[bool]


@dataclass(frozen=True)
class LegacyPlanner:
    """The planner from before this platform: it made the sample history, and is neither baseline nor candidate.

    Popularity among all households, a little liking for stated preferences, nothing eaten lately. With probability `exploration` a
    slot is drawn uniformly among the legal items, else by softmax of the score. Both ways can give the same item, so its propensity is
    (1 − exploration) · softmax + exploration ÷ legal items.
    """

    exploration: float = 0.15
    temperature: float = 0.8
    preference_weight: float = 0.4
    recent_penalty: float = 3.0
    recent_days: int = 15

    def propose(self, product: MealPlanner, row_input: RowInput, counts: Mapping[str, float], rng: Rng) -> Proposal:
        """A plan drawn slot by slot. `counts` are the acceptances so far by item."""
        proposal = Proposal([], [], [])
        legal = product.legal_items(row_input, [])
        scores = self._scores(product, row_input, legal, counts)
        free = np.arange(len(legal))
        while len(free) and len(proposal.items) < product.slots(row_input):
            greedy = np.exp((scores[free] - scores[free].max()) / self.temperature)
            greedy /= greedy.sum()
            chances = (1 - self.exploration) * greedy + self.exploration / len(free)
            explored = bool(rng.random() < self.exploration)
            place = int(rng.random() * len(free)) if explored else int(np.searchsorted(np.cumsum(greedy), rng.random()))
            place = min(place, len(free) - 1)
            proposal.items.append(legal[free[place]])
            proposal.propensities.append(float(chances[place]))
            proposal.explored.append(explored)
            free = np.delete(free, place)
        return proposal

    def plan(
        self, product: MealPlanner, row_input: RowInput, rng: Rng, counts: Mapping[str, float] | None = None
    ) -> list[str]:
        """The items of `propose`."""
        return self.propose(product, row_input, counts or {}, rng).items

    def _scores(
        self, product: MealPlanner, row_input: RowInput, legal: Sequence[str], counts: Mapping[str, float]
    ) -> Any:
        recent = recent_items(row_input, within_days=self.recent_days)
        wishes = {wish.casefold() for wish in row_input["household"].get("preferences") or ()}
        liked = Counter(item for wish in wishes for item in product.catalogue.by_label.get(wish, ()))
        return np.array(
            [
                math.log(1.0 + counts.get(item, 0.0))
                + self.preference_weight * liked[item]
                - self.recent_penalty * (item in recent)
                for item in legal
            ]
        )


def recent_items(row_input: RowInput, *, within_days: float) -> set[str]:
    """Recipe ids of the previous plan and of the recent plans not older than `within_days`."""
    previous = row_input.get("previous_plan") or {"meals": []}
    items = {meal["recipe_id"] for meal in previous["meals"]}
    for plan in row_input.get("recent_plans") or ():
        if plan["days_ago"] <= within_days:
            items |= {meal["recipe_id"] for meal in plan["meals"]}
    return items
