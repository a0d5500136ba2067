"""The sample history: weeks of a seeded world whose plans the exploring legacy planner proposed.

There are no experiments here: the sample is from before the platform.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import uuid5

import numpy as np
import polars as pl

from planner.catalogue import Catalogue
from planner.meal_planner import MealPlanner
from planner.planners import LegacyPlanner, Proposal
from planner.reactions import EVENT_IDS, Reaction, react
from planner.tables import domain_frame
from planner.world import World
from product.protocol import Plan, RowInput

LEGACY_POLICY_VERSION_ID = str(uuid5(EVENT_IDS, "legacy_planner"))
"""`context.policy_version_id` of the sample's events: a version from before the platform, which is in no table."""

ACTIVE = 0.96
"""Share of weeks in which a household plans at all."""
TRY_AGAIN = 0.7
"""Share of rejected plans after which the household asks for another at once."""
LEGACY_SEES_RULES_OF = timedelta(days=3)
"""The legacy planner reads constraints from a cache this old: the validator has to repair what changed since."""


@dataclass(frozen=True)
class Sample:
    """A finished history: domain tables by name, events oldest first (shape: docs/data-model.md), and the world to go on with."""

    tables: dict[str, pl.DataFrame]
    events: list[dict[str, Any]]
    world: World
    start: datetime
    end: datetime
    """First moment after the history."""


def simulate(
    catalogue: Catalogue, *, seed: int, households: int = 400, weeks: int = 8, end: date, meals: int = 5
) -> Sample:
    """`weeks` weeks of plans whose last day is `end` (UTC).

    The same arguments give the same sample. Another `end` shifts every time by whole days and changes nothing else, ids included.
    Raises ValueError if there are no households or no weeks.
    """
    if households < 1 or weeks < 1:
        raise ValueError(f"A sample needs at least one household and one week, not {households} and {weeks}.")
    after = datetime.combine(end + timedelta(days=1), time(), tzinfo=UTC)
    start = after - timedelta(weeks=weeks)
    product = MealPlanner(catalogue, meals=meals)
    world = World(catalogue, seed=seed, households=households, start=start, weeks=weeks)
    counts = {item: float(round(12 * np.exp(world.charm[world.position[item]]))) for item in catalogue.ids}
    events: list[dict[str, Any]] = []
    for week in range(weeks):
        # The legacy planner counts at the turn of the week, so that the order of households within it does not matter.
        accepted: list[str] = []
        for number, household_id in enumerate(world.households):
            happened = _one_week(
                product, world, household_id, week, counts, np.random.default_rng([seed, 4, number, week])
            )
            events += happened
            accepted += [meal["recipe_id"] for event in happened[-1:] for meal in _accepted_meals(event)]
        for item in accepted:
            counts[item] += 1.0
    events.sort(key=lambda event: (event["timestamp"], event["event_id"]))
    return Sample(_tables(world), events, world, start, after)


def _one_week(
    product: MealPlanner, world: World, household_id: str, week: int, counts: dict[str, float], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """One household's events of one week, and what it remembers of them."""
    day = world.start + timedelta(weeks=week, days=world.households[household_id].weekday)
    at = day + timedelta(seconds=int(rng.integers(8 * 3600, 21 * 3600)))
    world.stock(household_id, at - timedelta(minutes=int(rng.integers(10, 300))), rng)
    if rng.random() >= ACTIVE:
        return []
    events: list[dict[str, Any]] = []
    for attempt in range(2):
        plan_id = str(uuid5(EVENT_IDS, f"{world.seed}/{household_id}/{week}/{attempt}"))
        context = _context(world, household_id, at, plan_id, rng)
        seen = _as_legacy_sees(world, household_id, at)
        proposal = LegacyPlanner().propose(product, seen, counts, rng)
        plan = product.plan(seen, proposal.items)
        events += _generated(household_id, plan_id, at, context, plan, proposal, rng)
        events += react(world, household_id, plan, at + timedelta(seconds=1), rng, plan_id=plan_id, context=context)
        last = events[-1]
        if last["event_type"] == "plan_accepted":
            swapped_in = {
                event["payload"]["to_meal_id"]
                for event in events
                if event["event_type"] == "meal_swapped" and event["payload"]["plan_id"] == plan_id
            }
            world.remember(household_id, last["timestamp"], last["payload"]["meals"], swapped_in)
        if last["event_type"] != "plan_rejected" or rng.random() >= TRY_AGAIN:
            break
        at = last["timestamp"] + timedelta(seconds=int(rng.integers(5, 90)))
    return events


def _as_legacy_sees(world: World, household_id: str, at: datetime) -> RowInput:
    row_input = world.row_input(household_id, at)
    return {**row_input, "constraints": world.constraints_at(household_id, max(at - LEGACY_SEES_RULES_OF, world.start))}


def _context(world: World, household_id: str, at: datetime, plan_id: str, rng: np.random.Generator) -> dict[str, Any]:
    workflow_type, mode = world.session_habits(household_id, at)
    return {
        "policy_version_id": LEGACY_POLICY_VERSION_ID,
        "plan_source": "legacy_planner",
        "workflow_type": workflow_type,
        "mode": mode,
        "region": world.households[household_id].region,
        "session_id": str(uuid5(EVENT_IDS, f"{plan_id}/session")),
        "platform": ("ios", "android", "web")[int(rng.choice(3, p=[0.4, 0.38, 0.22]))],
        "app_version": "2.8.1",
    }


def _generated(
    household_id: str,
    plan_id: str,
    at: datetime,
    context: dict[str, Any],
    plan: Plan,
    proposal: Proposal,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """`plan_generated`. The legacy planner is not a language model: it costs time but no tokens."""
    reaction = Reaction(household_id, plan_id, at, context, ())
    metrics = {
        "latency_ms": round(float(rng.lognormal(3.6, 0.35)), 1),
        "token_count": 0.0,
        "input_tokens": 0.0,
        "output_tokens": 0.0,
        "cost_usd": 0.0,
    }
    payload = {"meals": plan["meals"], "slot_propensities": proposal.propensities, "slot_explored": proposal.explored}
    reaction.add("plan_generated", 0.0, payload, metrics)
    return reaction.events


def _accepted_meals(event: dict[str, Any]) -> list[dict[str, Any]]:
    return list(event["payload"]["meals"]) if event["event_type"] == "plan_accepted" else []


def _tables(world: World) -> dict[str, pl.DataFrame]:
    people = world.households.values()
    visible = ("id", "size", "preferences", "restrictions", "region", "created_at")
    return {
        "recipes": domain_frame("recipes", [vars(recipe) for recipe in world.catalogue]),
        "households": domain_frame(
            "households", [{name: getattr(person, name) for name in visible} for person in people]
        ),
        "household_constraints": domain_frame(
            "household_constraints", [row for person in people for row in person.constraints]
        ),
        "pantry_snapshots": domain_frame("pantry_snapshots", [row for person in people for row in person.pantry]),
    }
