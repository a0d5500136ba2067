"""Live traffic over HTTP: the sample's households request assignments, get plans, and react to them."""

import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import numpy as np

from foundation.errors import LifecycleError
from planner.prompt import prompt_text
from planner.reactions import react
from planner.world import World

BATCH = 500
# Reactions to a plan take up to a quarter of an hour, and the API refuses events from the future.
STARTED_AGO = timedelta(minutes=20)


class TrafficError(LifecycleError):
    """The API refused the demo's traffic; the message says which request and why."""


@dataclass
class Traffic:
    """Results of the traffic: answers by variant and reason, an example answer, and the number of events sent."""

    answers: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    example: dict[str, Any] | None = None
    events: int = 0


@dataclass(frozen=True)
class Assigned:
    """A unit's answer for the experiment."""

    unit_id: str
    answer: dict[str, Any]


def ask(
    client: httpx.Client, experiment: str, unit_type: str, unit_ids: Iterable[str], traffic: Traffic
) -> list[Assigned]:
    """Request every unit's assignment. Raises TrafficError if the API refuses a request or skips the experiment."""
    assigned = []
    for unit_id in unit_ids:
        body = {"unit_type": unit_type, "unit_id": unit_id, "requested_experiments": [experiment]}
        answer = _post(client, "/api/v1/assignments", body)
        if not answer["assignments"]:
            raise TrafficError(f"The API skipped {experiment} for {unit_id}: {answer['skipped_experiments']}.")
        mine = answer["assignments"][0]
        traffic.answers[mine["variant_name"], mine["reason"]] += 1
        # Prefer an enrolled unit as the example, best of all one in treatment.
        if traffic.example is None or _rank(mine) > _rank(traffic.example):
            traffic.example = {"unit_id": unit_id, **mine}
        assigned.append(Assigned(unit_id, mine))
    return assigned


def play(
    client: httpx.Client,
    world: World,
    assigned: Sequence[Assigned],
    first_assigned_at: datetime,
    load_model: Callable[[str], Any],
    traffic: Traffic,
    on_step: Callable[[str], None],
) -> None:
    """Plan with the model that each answer names, simulate the household's reaction, and send the events.

    `load_model` turns a `models:/…` URI into an object with `predict(rows)`. Event ids are derived from unit and run, and times
    from the experiment's first assignment, so events that are sent again after a kill are stored once. Raises TrafficError.
    """
    import pandas as pd

    at = first_assigned_at - STARTED_AGO
    by_model: dict[str, list[Assigned]] = defaultdict(list)
    for unit in assigned:
        by_model[unit.answer["config"]["mlflow_model_uri"]].append(unit)
    events: list[dict[str, Any]] = []
    for uri, units in sorted(by_model.items()):
        on_step(f"{len(units)} plans by {uri}")
        model = load_model(uri)
        inputs = [world.row_input(unit.unit_id, at) for unit in units]
        started = datetime.now(UTC)
        planned = model.predict(pd.DataFrame(inputs))
        latency_ms = (datetime.now(UTC) - started).total_seconds() * 1000 / len(units)
        for unit, row_input, (_, answer) in zip(units, inputs, planned.iterrows(), strict=True):
            if answer["error"]:
                raise TrafficError(f"{uri} made no plan for {unit.unit_id}: {answer['error']}")
            events += _session(world, unit, row_input, answer, at, latency_ms)
    for first in range(0, len(events), BATCH):
        on_step(f"{first:,} of {len(events):,} events sent")
        _post(client, "/api/v1/events/batch", {"events": events[first : first + BATCH]})
    traffic.events = len(events)


def _session(
    world: World, unit: Assigned, row_input: dict[str, Any], answer: Any, at: datetime, latency_ms: float
) -> list[dict[str, Any]]:
    """Exposure, plan and reaction of a household, as JSON."""
    plan_id = str(uuid.uuid5(uuid.UUID(unit.answer["experiment_id"]), unit.unit_id))
    workflow_type, mode = world.session_habits(unit.unit_id, at)
    context = {
        "policy_version_id": unit.answer["config"]["policy_version_id"],
        "workflow_type": workflow_type,
        "mode": mode,
        "region": world.households[unit.unit_id].region,
        "session_id": plan_id,
    }
    # Only enrolled units belong to the experiment; units of the remainder get the baseline and are not analysed.
    experiments = (
        [{"experiment_id": unit.answer["experiment_id"], "variant_id": unit.answer["variant_id"]}]
        if unit.answer["enrolled"]
        else []
    )
    meals = [
        {"day": int(m["day"]), "recipe_id": str(m["recipe_id"]), "servings": int(m["servings"])}
        for m in answer["meals"]
    ]
    tokens = int(answer["tokens_generated"])
    shown = {
        "unit_type": "household",
        "unit_id": unit.unit_id,
        "experiments": experiments,
        "context": context,
        "timestamp": at,
    }
    first = [
        {
            **shown,
            "event_id": _id(plan_id, "exposure"),
            "event_type": "exposure",
            "metrics": {},
            "payload": {"plan_id": plan_id},
        },
        {
            **shown,
            "event_id": _id(plan_id, "plan_generated"),
            "event_type": "plan_generated",
            "metrics": {
                "latency_ms": round(latency_ms, 3),
                "token_count": tokens,
                "output_tokens": tokens,
                "input_tokens": len(prompt_text(row_input).split()) if tokens else 0,
                "cost_usd": 0.0,
            },
            "payload": {"plan_id": plan_id, "meals": meals},
        },
    ]
    # Seeded by household and day only: the reaction depends on the plan, not on the model that made it.
    rng = np.random.default_rng(
        [world.seed, list(world.households).index(unit.unit_id), math.floor(at.timestamp() // 86_400)]
    )
    reactions = react(
        world,
        unit.unit_id,
        {"meals": meals},
        at + timedelta(seconds=1),
        rng,
        plan_id=plan_id,
        context=context,
        experiments=experiments,
    )
    return [*first, *reactions]


def _id(plan_id: str, kind: str) -> str:
    return str(uuid.uuid5(uuid.UUID(plan_id), kind))


def _rank(answer: dict[str, Any]) -> int:
    return int(answer["enrolled"]) + int(answer["variant_name"] != "control")


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        response = client.post(path, content=msgspec.json.encode(body), headers={"Content-Type": "application/json"})
    except httpx.HTTPError as error:
        raise TrafficError(f"The API at {client.base_url} does not answer {path} ({error}): see its log.") from error
    if response.status_code != httpx.codes.OK:
        raise TrafficError(f"The API answered {response.status_code} to {path}: {response.text[:300]}")
    return dict(response.json())
