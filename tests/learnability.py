"""Is there anything to learn in a sample? Plans of simple planners and of the true taste, scored against what was accepted."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from planner import scores
from planner.meal_planner import MealPlanner
from planner.planners import HeuristicPlanner
from planner.simulator import Sample
from product.planners import PopularityPlanner, RandomPlanner
from product.protocol import RowInput

Guess = Callable[[str, datetime, RowInput], list[str]]


def learnability(sample: Sample, *, held_out_share: float = 0.2, seed: int = 0) -> pl.DataFrame:
    """Mean scores over the accepted plans of held-out households, one row a planner.

    `oracle` plans by the households' true taste; `profile` by likeness to what the household swapped in and kept before, plus
    popularity; `popularity` and `profile` count the other households' acceptances alone. Columns: planner, plans, alignment,
    edit_distance, diversity, leftovers, constraint_respect.
    """
    product = MealPlanner(sample.world.catalogue)
    accepted = [event for event in sample.events if event["event_type"] == "plan_accepted"]
    rng = np.random.default_rng(seed)
    households = sorted(sample.world.households)
    held_out = set(rng.permutation(households)[: max(1, int(len(households) * held_out_share))].tolist())
    taught = [(0.0, product.chosen(event["payload"])) for event in accepted if event["unit_id"] not in held_out]
    popularity = PopularityPlanner.fit(product, taught)
    heuristic, chance = HeuristicPlanner(), RandomPlanner()
    profile = _Profile(product, popularity)

    guesses: dict[str, Guess] = {
        "random": lambda household_id, at, row_input: chance.plan(product, row_input, rng),
        "popularity": lambda household_id, at, row_input: popularity.plan(product, row_input),
        "heuristic": lambda household_id, at, row_input: heuristic.plan(product, row_input),
        "profile": lambda household_id, at, row_input: profile.plan(row_input),
        "oracle": lambda household_id, at, row_input: _oracle(sample, product, household_id, at, row_input),
    }
    asked = _asked(sample, [event for event in accepted if event["unit_id"] in held_out])
    rows = []
    for name, guess in guesses.items():
        scored = [
            _scores(product, row_input, guess(unit, at, row_input), meals) for unit, at, row_input, meals in asked
        ]
        rows.append({"planner": name, "plans": len(scored), **_means(scored)})
    logged = [_scores(product, row_input, meals, meals) for _, _, row_input, meals in asked]
    rows.append({"planner": "accepted", "plans": len(logged), **_means(logged)})
    return pl.DataFrame(rows)


class _Profile:
    """Likeness to the household's own history and stated preferences, by labels and ingredients, on top of popularity."""

    def __init__(self, product: MealPlanner, popularity: PopularityPlanner) -> None:
        self._product = product
        words = [set(recipe.labels) | set(recipe.ingredients) for recipe in product.catalogue]
        known = sorted(set().union(*words))
        matrix = np.array([[word in own for word in known] for own in words], dtype=float)
        matrix *= np.log(len(words) / matrix.sum(axis=0))
        matrix -= matrix.mean(axis=0)
        self._features = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        self._position = {item: index for index, item in enumerate(product.items())}
        log_shares = popularity.log_shares(product)
        self._prior = np.array([log_shares[item] for item in product.items()])

    def plan(self, row_input: RowInput) -> list[str]:
        wanted = set(row_input["household"]["preferences"])
        stated = np.array(
            [sum(label in wanted for label in recipe.labels) for recipe in self._product.catalogue], dtype=float
        )
        taste = np.zeros(self._features.shape[1])
        lately = []
        for plan in row_input["recent_plans"]:
            for meal in plan["meals"]:
                place = self._position[meal["recipe_id"]]
                taste += self._features[place] * (1.5 if meal["swapped_in"] else 0.5)
                if plan["days_ago"] <= 15:
                    lately.append(place)
        worth = self._prior + 0.5 * stated + 1.2 * self._features @ taste
        worth[lately] -= 3.0
        legal = self._product.legal_items(row_input, [])
        return sorted(legal, key=lambda item: -worth[self._position[item]])[: self._product.slots(row_input)]


def _oracle(sample: Sample, product: MealPlanner, household_id: str, at: datetime, row_input: RowInput) -> list[str]:
    """Slot by slot, what the household itself would like best after the meals chosen so far."""
    world = sample.world
    utility = world.utility(household_id, at)
    chosen: list[str] = []
    while len(chosen) < product.slots(row_input) and (legal := product.legal_items(row_input, chosen)):
        wanted = utility - world.sameness(chosen)
        chosen.append(max(legal, key=lambda item: wanted[world.position[item]]))
    return chosen


def _asked(sample: Sample, accepted: list[dict[str, Any]]) -> list[tuple[str, datetime, RowInput, list[str]]]:
    """What was known when each accepted plan was made, and what was accepted."""
    generated_at = {
        event["payload"]["plan_id"]: event["timestamp"]
        for event in sample.events
        if event["event_type"] == "plan_generated"
    }
    asked = []
    for event in accepted:
        at = generated_at[event["payload"]["plan_id"]]
        meals = [meal["recipe_id"] for meal in event["payload"]["meals"]]
        asked.append((event["unit_id"], at, sample.world.row_input(event["unit_id"], at), meals))
    return asked


def _scores(product: MealPlanner, row_input: RowInput, guess: list[str], meals: list[str]) -> dict[str, float | None]:
    row = {"input": row_input, "target": {"accepted_plan": product.plan(row_input, meals)}}
    return scores.all_scores(product.catalogue, row, product.plan(row_input, guess))


def _means(scored: list[dict[str, float | None]]) -> dict[str, float]:
    frame = pl.DataFrame(scored, schema=dict.fromkeys(scored[0], pl.Float64))
    return {name.removesuffix("_score"): value for name, value in frame.mean().row(0, named=True).items()}
