"""A seeded world of households: what can be seen of them, and the hidden tastes that only their choices show.

A taste is linear in the recipe's features (labels, common ingredients, minutes, cost), plus a charm of the recipe that all households
share, plus a whim for single recipes. Stated preferences follow from it, with noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from planner.catalogue import Catalogue
from planner.constraints import LegalRecipes
from planner.groceries import bought, taste_features
from planner.scores import STAPLES
from product.protocol import RowInput

REGIONS = ("north", "south", "east", "west")
WORKFLOWS = {"plan-first": 0.6, "meal-first": 0.22, "pantry-first": 0.18}
MODES = {"autopilot": 0.5, "exploratory": 0.3, "constrained": 0.2}
SIZES = {1: 0.18, 2: 0.32, 3: 0.18, 4: 0.2, 5: 0.08, 6: 0.04}
RESTRICTIONS = {
    (): 0.66,
    ("vegetarian",): 0.1,
    ("gluten-free",): 0.07,
    ("dairy-free",): 0.06,
    ("nut-free",): 0.05,
    ("pescatarian",): 0.03,
    ("vegan", "vegetarian"): 0.03,
}
DISLIKED = (
    *(
        "mushrooms",
        "olives",
        "anchovies",
        "eggplant",
        "cilantro",
        "blue cheese",
        "capers",
        "shrimp",
        "tofu",
        "coconut milk",
    ),
    *("okra", "beets", "brussels sprouts", "peanuts", "lamb", "squid", "mussels", "pork", "fennel", "celery"),
)
FEWEST_LEGAL = 25
"""A household whose rules leave fewer recipes than this loosens them."""

FEWEST_STATED = 4
"""Only labels of at least this many recipes are stated as preferences."""

CHARM = 0.55
TASTE = 1.0
WHIM = 0.25
PANTRY_PULL = 0.5
"""Utility of each pantry item that a recipe uses up (more for households that plan from the pantry)."""
SAMENESS = 0.15
"""Utility lost for each label that a recipe shares with another meal of the same plan."""
EATEN_LATELY = 2.0
"""Utility lost when a recipe was eaten in the last `LATELY`."""
LEFT_OVER = 0.12
"""Share of a plan's ingredients of which something stays in the pantry."""
LATELY = timedelta(days=15)
LOOKBACK = timedelta(days=28)


@dataclass(frozen=True)
class EatenPlan:
    """A plan that a household accepted: when, and per meal the recipe and whether the household swapped it in itself."""

    at: datetime
    meals: tuple[tuple[str, bool], ...]
    servings: tuple[int, ...]


@dataclass
class Household:
    """What the product may know of a household, and its history so far."""

    id: str
    size: int
    preferences: list[str]
    restrictions: list[str]
    region: str
    created_at: datetime
    workflow_type: str
    mode: str
    weekday: int
    """Day of the week, 0–6 from the week's first day, on which it likes to plan."""
    constraints: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `household_constraints`, oldest first."""
    pantry: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `pantry_snapshots`, oldest first."""
    eaten: list[EatenPlan] = field(default_factory=list)
    """Accepted plans, oldest first."""


class World:
    """Households by id, with their hidden tastes. The same arguments make the same world, shifted with `start`."""

    def __init__(self, catalogue: Catalogue, *, seed: int, households: int, start: datetime, weeks: int) -> None:
        self.catalogue = catalogue
        self.seed = seed
        self.start = start
        self.legal = LegalRecipes(catalogue)
        self.position = {recipe_id: index for index, recipe_id in enumerate(catalogue.ids)}
        self.ingredients = [name for name in catalogue.ingredient_counts if name not in STAPLES]
        self._ingredient = {name: index for index, name in enumerate(self.ingredients)}
        self._uses = np.zeros((len(catalogue), len(self.ingredients)))
        for recipe in catalogue:
            held = [self._ingredient[name] for name in recipe.ingredients if name in self._ingredient]
            self._uses[self.position[recipe.id], held] = 1.0
        self._log_bought = 0.5 * np.log(self._uses.sum(axis=0))
        self._labels = np.array(
            [[float(label in recipe.labels) for label in catalogue.by_label] for recipe in catalogue]
        )
        self._labelled = {
            label: [self.position[recipe_id] for recipe_id in carriers]
            for label, carriers in catalogue.by_label.items()
            if len(carriers) >= FEWEST_STATED
        }
        self._habits: dict[tuple[str, int], tuple[str, str]] = {}
        rng = np.random.default_rng([seed, 1])
        self.charm = CHARM * rng.normal(size=len(catalogue))
        self._tastes = self._hidden_tastes(rng, households)
        self._index = {f"h{number:04d}": number for number in range(households)}
        self.households = {
            household_id: self._household(household_id, np.random.default_rng([seed, 2, number]), weeks)
            for household_id, number in self._index.items()
        }

    # --- what anyone may see ---

    def row_input(
        self, household_id: str, at: datetime, *, recent: Sequence[Mapping[str, Any]] | None = None
    ) -> RowInput:
        """The household as a dataset row's `input` at that time; `recent` replaces the remembered accepted plans.

        Raises KeyError for an unknown household.
        """
        household = self.households[household_id]
        eaten = [plan for plan in household.eaten if at - LOOKBACK <= plan.at < at]
        remembered = [
            {
                "days_ago": (at - plan.at).days,
                "meals": [{"recipe_id": item, "swapped_in": swapped} for item, swapped in plan.meals],
            }
            for plan in eaten
        ]
        previous = None
        if eaten:
            days = zip(eaten[-1].meals, eaten[-1].servings, strict=True)
            previous = {"meals": [{"day": day, "recipe_id": m[0], "servings": s} for day, (m, s) in enumerate(days)]}
        workflow_type, mode = self.session_habits(household_id, at)
        return {
            "household": {
                "id": household.id,
                "size": household.size,
                "preferences": list(household.preferences),
                "restrictions": list(household.restrictions),
            },
            "pantry": {"items": self.pantry_at(household_id, at)},
            "constraints": self.constraints_at(household_id, at),
            "workflow_type": workflow_type,
            "mode": mode,
            "previous_plan": previous,
            "recent_plans": remembered if recent is None else [dict(plan) for plan in recent],
        }

    def constraints_at(self, household_id: str, at: datetime) -> dict[str, Any]:
        """The constraints valid at that time (`budget`, `max_prep_time`, `excluded_ingredients`)."""
        valid = [row for row in self.households[household_id].constraints if row["valid_from"] <= at][-1]
        return {key: valid[key] for key in ("budget", "max_prep_time", "excluded_ingredients")}

    def pantry_at(self, household_id: str, at: datetime) -> list[dict[str, Any]]:
        """Items of the last pantry snapshot not after that time."""
        taken = [row for row in self.households[household_id].pantry if row["snapshot_time"] <= at]
        return [dict(item) for item in taken[-1]["items"]] if taken else []

    def session_habits(self, household_id: str, at: datetime) -> tuple[str, str]:
        """Workflow type and mode of the week: mostly the household's habit."""
        week = (at - self.start).days // 7
        if (household_id, week) not in self._habits:
            household = self.households[household_id]
            rng = np.random.default_rng([self.seed, 3, self._index[household_id], week % 10_000])
            workflow_type = household.workflow_type if rng.random() < 0.75 else _draw(rng, WORKFLOWS)
            mode = household.mode if rng.random() < 0.75 else _draw(rng, MODES)
            self._habits[household_id, week] = workflow_type, mode
        return self._habits[household_id, week]

    # --- what only choices show ---

    def utility(self, household_id: str, at: datetime) -> np.ndarray:
        """How much the household would like each recipe now, in the catalogue's order: taste, pantry, what was eaten lately.

        In units of the spread of taste over recipes; 0 is an average recipe.
        """
        household = self.households[household_id]
        in_pantry = np.zeros(len(self.ingredients))
        in_pantry[
            [
                self._ingredient[item["name"]]
                for item in self.pantry_at(household_id, at)
                if item["name"] in self._ingredient
            ]
        ] = 1.0
        pull = PANTRY_PULL * (1.6 if self.session_habits(household_id, at)[0] == "pantry-first" else 1.0)
        utility = self._tastes[self._index[household_id]] + pull * np.minimum(self._uses @ in_pantry, 4.0)
        lately = [
            self.position[item] for plan in household.eaten if at - LATELY <= plan.at < at for item, _ in plan.meals
        ]
        utility[lately] -= EATEN_LATELY
        return np.asarray(utility)

    def sameness(self, others: Sequence[str]) -> np.ndarray:
        """Utility that each recipe loses because of the plan's other meals: nobody wants five curries a week."""
        labels = self._labels[[self.position[item] for item in others]].sum(axis=0)
        return np.asarray(SAMENESS * (self._labels @ labels))

    def remember(
        self, household_id: str, at: datetime, meals: Sequence[Mapping[str, Any]], swapped_in: set[str]
    ) -> None:
        """The household accepted these meals (`recipe_id`, `servings`) at that time."""
        eaten = tuple((meal["recipe_id"], meal["recipe_id"] in swapped_in) for meal in meals)
        self.households[household_id].eaten.append(EatenPlan(at, eaten, tuple(int(meal["servings"]) for meal in meals)))

    def stock(self, household_id: str, at: datetime, rng: np.random.Generator) -> None:
        """Take a pantry snapshot: remains of the last plan, and things bought without a plan."""
        household = self.households[household_id]
        left: list[str] = []
        if household.eaten:
            used = [
                name
                for item, _ in household.eaten[-1].meals
                for name in self.catalogue[item].ingredients
                if name in self._ingredient
            ]
            left = [name for name, chance in zip(used, rng.random(len(used)), strict=True) if chance < LEFT_OVER]
        # The Gumbel trick: the largest noisy log weights are a weighted draw without replacement.
        extra = np.argsort(-(self._log_bought + rng.gumbel(size=len(self.ingredients))), kind="stable")[
            : int(rng.integers(3, 7))
        ]
        names = {*left, *(self.ingredients[index] for index in extra)}
        items = [bought(name, rng) for name in sorted(names)]
        household.pantry.append({"household_id": household_id, "snapshot_time": at, "items": items})

    # --- making a world ---

    def _hidden_tastes(self, rng: np.random.Generator, households: int) -> np.ndarray:
        """(households, recipes) utilities: linear taste, shared charm, whims; each household's spread of taste is 1."""
        features = taste_features(self.catalogue)
        taste = rng.normal(size=(households, features.shape[1])) @ features.T
        taste = (taste - taste.mean(axis=1, keepdims=True)) / np.maximum(taste.std(axis=1, keepdims=True), 1e-9)
        return np.asarray(TASTE * taste + self.charm + WHIM * rng.normal(size=taste.shape))

    def _household(self, household_id: str, rng: np.random.Generator, weeks: int) -> Household:
        taste = self._tastes[self._index[household_id]]
        size = _draw(rng, SIZES)
        household = Household(
            id=household_id,
            size=size,
            preferences=self._stated_preferences(taste, rng),
            restrictions=list(_draw(rng, RESTRICTIONS)),
            region=REGIONS[int(rng.integers(len(REGIONS)))],
            created_at=self.start - timedelta(days=int(rng.integers(10, 400)), minutes=int(rng.integers(1440))),
            workflow_type=_draw(rng, WORKFLOWS),
            mode=_draw(rng, MODES),
            weekday=int(rng.choice(7, p=[0.14, 0.1, 0.1, 0.12, 0.16, 0.2, 0.18])),
        )
        changes = sorted(rng.uniform(4, 7 * weeks, size=int(rng.choice(3, p=[0.55, 0.35, 0.1]))))
        for moment in [-8.0, *changes]:
            valid_from = self.start + timedelta(minutes=int(moment * 1440))
            household.constraints.append(
                {"household_id": household_id, "valid_from": valid_from, **self._rules(household, taste, rng)}
            )
        return household

    def _rules(self, household: Household, taste: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Budget, minutes and excluded ingredients, loosened until enough recipes remain."""
        excluded = []
        if rng.random() < 0.4:
            every_recipe = self.legal.legal({"household": {}, "constraints": {}}, [])
            liking = {}
            for word in DISLIKED:
                left = set(self.legal.allowed({"household": {}, "constraints": {"excluded_ingredients": [word]}}))
                having = [self.position[item] for item in every_recipe if item not in left]
                liking[word] = float(taste[having].mean()) + 0.3 * rng.normal() if having else 9.0
            excluded = sorted(sorted(liking, key=lambda word: liking[word])[: int(rng.integers(1, 4))])
        rules: dict[str, Any] = {
            "budget": float(round(household.size * 5 * rng.uniform(2.6, 4.6))) if rng.random() < 0.5 else None,
            "max_prep_time": int(rng.choice([30, 45, 60, 90], p=[0.15, 0.4, 0.3, 0.15]))
            if rng.random() < 0.5
            else None,
            "excluded_ingredients": excluded,
        }
        known = {"household": {"restrictions": household.restrictions}, "constraints": rules}
        while len(self.legal.allowed(known)) < FEWEST_LEGAL and (
            rules["max_prep_time"] or rules["excluded_ingredients"]
        ):
            limit = rules["max_prep_time"]
            if limit is not None:
                rules["max_prep_time"] = limit + 15 if limit < 90 else None
            else:
                rules["excluded_ingredients"] = rules["excluded_ingredients"][1:]
        return rules

    def _stated_preferences(self, taste: np.ndarray, rng: np.random.Generator) -> list[str]:
        """Up to three labels that the household likes more than others, as far as it knows itself."""
        liking = [float(taste[having].mean()) + 0.25 * rng.normal() for having in self._labelled.values()]
        best = np.argsort(-np.array(liking), kind="stable")[: int(rng.choice([1, 2, 3]))]
        labels = list(self._labelled)
        return sorted(labels[index] for index in best)


def _draw(rng: np.random.Generator, shares: Mapping[Any, float]) -> Any:
    options = list(shares)
    return options[int(rng.choice(len(options), p=np.array([shares[option] for option in options])))]
