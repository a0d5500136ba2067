"""How a household reacts to a plan: the validator's repairs, swaps, other servings, acceptance, rejection or silence.

Nothing here reads `context` or `experiments`: they are copied onto the events as given.

People edit what they are shown: a household mostly keeps a shown recipe that it likes moderately, though it would like others better.
Every replay over such logs has to deal with this anchoring.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np

from planner.catalogue import Catalogue
from planner.constraints import plan_cost, violations
from planner.world import World
from product.protocol import Plan, RowInput

EVENT_IDS = uuid5(NAMESPACE_URL, "lifecycle/planner/events")

KEEP_BASE = -1.0
KEEP_SLOPE = 2.0
"""A meal is kept with probability 1 / (1 + exp(−(base + slope · utility)))."""
MODE_KEEP = {"autopilot": 0.4, "exploratory": -0.5, "constrained": 0.0}
BROWSED = 40
"""Recipes that a household looks at when it swaps a meal: it does not search the whole catalogue."""
CHOICE_SHARPNESS = 4.0
REPAIRS_FOR_BUDGET = 2
ABANDONED = 0.02


def event_id(plan_id: str, event_type: str, number: int) -> UUID:
    """The id of a plan's n-th event of a type: the same for the same plan, whatever the time."""
    return uuid5(EVENT_IDS, f"{plan_id}/{event_type}/{number}")


class Reaction:
    """The events of one plan, in order."""

    def __init__(
        self,
        household_id: str,
        plan_id: str,
        at: datetime,
        context: Mapping[str, Any],
        experiments: Sequence[Mapping[str, Any]],
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self._household_id, self._plan_id, self._at = household_id, plan_id, at
        self._context, self._experiments = context, experiments

    def add(
        self, event_type: str, seconds: float, payload: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Append an event, `seconds` after the one before."""
        self._at += timedelta(seconds=round(seconds, 3))
        number = sum(event["event_type"] == event_type for event in self.events)
        self.events.append(
            {
                "event_id": str(event_id(self._plan_id, event_type, number)),
                "event_type": event_type,
                "unit_type": "household",
                "unit_id": self._household_id,
                "experiments": [dict(entry) for entry in self._experiments],
                "context": dict(self._context),
                "metrics": dict(metrics or {}),
                "payload": {"plan_id": self._plan_id, **payload},
                "timestamp": self._at,
            }
        )


def react(
    world: World,
    household_id: str,
    plan: Plan,
    at: datetime,
    rng: np.random.Generator,
    *,
    plan_id: str | None = None,
    context: Mapping[str, Any] | None = None,
    experiments: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The events after a plan was shown at `at`, oldest first. The world does not change (`world.remember` changes it).

    Ends with `plan_accepted`, with `plan_rejected`, or with neither (the household left). `plan_id` defaults to the plan's own, else to
    one derived from household and time. Raises KeyError for a recipe or household that the world does not know.
    """
    plan_id = plan_id or plan.get("plan_id") or str(uuid5(EVENT_IDS, f"{household_id}/{at.isoformat()}"))
    row_input = world.row_input(household_id, at)
    stamp = {"workflow_type": row_input["workflow_type"], "mode": row_input["mode"], **(context or {})}
    reaction = Reaction(household_id, plan_id, at, stamp, experiments)
    meals = [dict(meal) for meal in plan["meals"]]
    utility = world.utility(household_id, at)

    _repair(world.catalogue, row_input, meals, world.legal.allowed(row_input), reaction)
    if rng.random() < ABANDONED:
        return reaction.events
    shown = np.array([utility[world.position[meal["recipe_id"]]] for meal in meals])
    if len(meals) == 0 or rng.random() < 0.5 / (1.0 + np.exp(2.2 * (float(shown.mean()) + 0.75))):
        reaction.add(
            "plan_rejected", rng.uniform(15, 240), {"rejection_reason": _reason(world, row_input, meals, shown)}
        )
        return reaction.events

    swaps = _swap(world, row_input, meals, utility, rng, reaction)
    adjusted = 0
    if rng.random() < 0.08:
        meal = meals[int(rng.integers(len(meals)))]
        meal["servings"] = max(1, int(meal["servings"]) + int(rng.choice([-1, 1, 2, 3])))
        reaction.add(
            "edit_applied",
            rng.uniform(5, 60),
            {"type": "adjust_servings", "day": meal["day"], "servings": meal["servings"]},
        )
        adjusted = 1
    metrics: dict[str, float] = {"edit_count": swaps + adjusted}
    if rng.random() < 0.4:
        liked = float(np.mean([utility[world.position[meal["recipe_id"]]] for meal in meals]))
        metrics["rating_mean"] = round(float(np.clip(3.4 + 0.5 * liked + 0.3 * rng.normal(), 1, 5)), 1)
    reaction.add("plan_accepted", rng.uniform(10, 180), {"meals": meals, "reconstructed": False}, metrics)
    return reaction.events


def _repair(
    catalogue: Catalogue, row_input: RowInput, meals: list[dict[str, Any]], allowed: Sequence[str], reaction: Reaction
) -> None:
    """The product's validator: replaces meals that break a hard rule, then the most expensive ones while over budget."""
    for meal in meals:
        broken = violations(catalogue, row_input, {"meals": [meal]})
        if broken:
            _replace(catalogue, meals, meal, allowed, broken[0].rule, reaction)
    budget = row_input["constraints"]["budget"]
    for _ in range(REPAIRS_FOR_BUDGET):
        cost = plan_cost(catalogue, {"meals": meals})
        if budget is None or cost is None or cost <= budget:
            return
        dearest = max(meals, key=lambda meal: catalogue[meal["recipe_id"]].cost_per_serving or 0.0)
        ceiling = (catalogue[dearest["recipe_id"]].cost_per_serving or 0.0) - (cost - budget) / dearest["servings"]
        cheaper = [item for item in allowed if (catalogue[item].cost_per_serving or 0.0) <= max(ceiling, 1.5)]
        _replace(catalogue, meals, dearest, cheaper, "budget", reaction)


def _replace(
    catalogue: Catalogue,
    meals: list[dict[str, Any]],
    meal: dict[str, Any],
    allowed: Sequence[str],
    rule: str,
    reaction: Reaction,
) -> None:
    """Replace the meal by the allowed recipe most like it; without one the meal stays."""
    taken = {other["recipe_id"] for other in meals}
    labels = set(catalogue[meal["recipe_id"]].labels)
    free = [item for item in allowed if item not in taken]
    if free:
        alike = max(free, key=lambda item: len(labels & set(catalogue[item].labels)))
        payload = {"rule": rule, "day": meal["day"], "recipe_id": meal["recipe_id"], "replacement_id": alike}
        reaction.add("validator_intervention", 0.25, payload)
        meal["recipe_id"] = alike


def _swap(
    world: World,
    row_input: RowInput,
    meals: list[dict[str, Any]],
    utility: np.ndarray,
    rng: np.random.Generator,
    reaction: Reaction,
) -> int:
    """Replace the meals that are not liked enough, each by the best of the recipes browsed. Returns the number of swaps."""
    swaps = 0
    lean = KEEP_BASE + MODE_KEEP.get(row_input["mode"], 0.0)
    allowed = world.legal.allowed(row_input)
    for meal in meals:
        wanted = utility - world.sameness([other["recipe_id"] for other in meals if other is not meal])
        liked = float(wanted[world.position[meal["recipe_id"]]])
        if rng.random() < 1.0 / (1.0 + np.exp(-(lean + KEEP_SLOPE * liked))):
            continue
        taken = {other["recipe_id"] for other in meals}
        free = np.array([world.position[item] for item in allowed if item not in taken])
        if len(free) == 0:
            continue
        # What comes up when browsing: a little more of what everybody likes.
        browsed = np.argsort(-(world.charm[free] + rng.gumbel(size=len(free))), kind="stable")[:BROWSED]
        seen = free[browsed]
        best = int(seen[np.argmax(CHOICE_SHARPNESS * wanted[seen] + rng.gumbel(size=len(seen)))])
        replacement = world.catalogue.ids[best]
        payload = {"day": meal["day"], "from_meal_id": meal["recipe_id"], "to_meal_id": replacement}
        reaction.add("meal_swapped", rng.uniform(8, 150), payload)
        meal["recipe_id"] = replacement
        swaps += 1
    return swaps


def _reason(world: World, row_input: RowInput, meals: Sequence[Mapping[str, Any]], shown: np.ndarray) -> str:
    minutes = [world.catalogue[meal["recipe_id"]].prep_minutes or 0 for meal in meals]
    cost = plan_cost(world.catalogue, {"meals": list(meals)}) if meals else None
    budget = row_input["constraints"]["budget"]
    if not meals:
        return "empty_plan"
    if budget is not None and cost is not None and cost > budget:
        return "too_expensive"
    return "too_much_cooking" if float(np.mean(minutes)) > 60 else "not_our_taste"
