"""Plan sessions out of events: what was proposed, what was edited, what was accepted, as typed frames.

Payloads come from outside and may contain anything. A payload that does not fit is left out and counted, never guessed at.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import polars as pl

UTC_TIME = pl.Datetime("us", "UTC")
MEALS = pl.List(pl.Struct({"day": pl.Int64, "recipe_id": pl.String, "servings": pl.Int64}))
EDITS = pl.List(
    pl.Struct(
        {
            "type": pl.String,
            "day": pl.Int64,
            "from_recipe_id": pl.String,
            "to_recipe_id": pl.String,
            "servings": pl.Int64,
        }
    )
)
REMEMBERED_MEALS = pl.List(pl.Struct({"recipe_id": pl.String, "swapped_in": pl.Boolean}))

EVENT_COLUMNS: dict[str, Any] = {
    "event_id": pl.String,
    "event_type": pl.String,
    "unit_type": pl.String,
    "unit_id": pl.String,
    "context": pl.String,
    "payload": pl.String,
    "timestamp": UTC_TIME,
}
"""What sessions need of an events frame; `context` and `payload` are JSON text. Other columns are ignored."""

_Day = Annotated[int, msgspec.Meta(ge=0, le=6)]
_Servings = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class _Meal(msgspec.Struct):
    day: _Day
    recipe_id: _Id
    servings: _Servings


_Meals = Annotated[list[_Meal], msgspec.Meta(min_length=1, max_length=7)]


class _Generated(msgspec.Struct):
    plan_id: _Id
    meals: _Meals
    slot_propensities: list[Annotated[float, msgspec.Meta(gt=0, le=1)]] | None = None
    slot_explored: list[bool] | None = None


class _Accepted(msgspec.Struct):
    plan_id: _Id
    meals: _Meals
    reconstructed: bool = False
    started_at: datetime | None = None


class _Swap(msgspec.Struct):
    plan_id: _Id
    day: _Day
    from_meal_id: _Id
    to_meal_id: _Id


class _Edit(msgspec.Struct):
    plan_id: _Id
    type: _Id
    day: _Day | None = None
    servings: _Servings | None = None


class _Context(msgspec.Struct):
    policy_version_id: str | None = None
    workflow_type: Literal["plan-first", "meal-first", "pantry-first"] = "plan-first"
    mode: Literal["autopilot", "exploratory", "constrained"] = "autopilot"
    region: str | None = None


_Payload = TypeVar("_Payload", bound=msgspec.Struct)


@dataclass(frozen=True)
class Sessions:
    """`generated` and `accepted`: one row a plan, by household. `malformed`: events left out, by event type.

    generated: household_id, plan_id, made_at, proposed (MEALS), slot_propensities, slot_explored, policy_version_id, workflow_type,
    mode, region. accepted: household_id, plan_id, event_id, accepted_at, started_at (of reconstructed plans, else null), meals,
    remembered (its recipes, and whether each was swapped in), edits, reconstructed, and the context's workflow_type, mode, region.
    """

    generated: pl.DataFrame
    accepted: pl.DataFrame
    malformed: dict[str, int]
    repeated: int
    """Acceptances of a plan that was accepted before: the first one counts."""


def events_frame(events: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Events as dicts (docs/data-model.md; `timestamp` a datetime or ISO text) in the shape of cleaned events."""
    rows = [
        {
            "event_id": str(event["event_id"]),
            "event_type": event["event_type"],
            "unit_type": event["unit_type"],
            "unit_id": event["unit_id"],
            "context": msgspec.json.encode(event.get("context") or {}).decode(),
            "payload": msgspec.json.encode(event["payload"]).decode() if event.get("payload") is not None else None,
            "timestamp": _moment(event["timestamp"]),
        }
        for event in events
    ]
    return pl.DataFrame(rows, schema=EVENT_COLUMNS, orient="row")


def read_sessions(events: pl.DataFrame) -> Sessions:
    """The households' sessions in `events` (columns: EVENT_COLUMNS), which may be in any order."""
    events = (
        events.select([pl.col(name).cast(kind) for name, kind in EVENT_COLUMNS.items()])
        .filter(pl.col("unit_type") == "household")
        .sort("timestamp", "event_id")
    )
    malformed: Counter[str] = Counter()
    generated: dict[tuple[str, str, datetime], dict[str, Any]] = {}
    for event, plan, context in _decoded(events, "plan_generated", _Generated, malformed):
        if any(
            logged is not None and len(logged) != len(plan.meals)
            for logged in (plan.slot_propensities, plan.slot_explored)
        ):
            malformed["plan_generated"] += 1
            continue
        generated[event["unit_id"], plan.plan_id, event["timestamp"]] = {
            "household_id": event["unit_id"],
            "plan_id": plan.plan_id,
            "made_at": event["timestamp"],
            "proposed": _meals(plan.meals),
            "slot_propensities": plan.slot_propensities,
            "slot_explored": plan.slot_explored,
            "policy_version_id": context.policy_version_id,
            "workflow_type": context.workflow_type,
            "mode": context.mode,
            "region": context.region,
        }
    edits = _edits(events, malformed)
    accepted: dict[tuple[str, str], dict[str, Any]] = {}
    repeated = 0
    for event, final, context in _decoded(events, "plan_accepted", _Accepted, malformed):
        key = (event["unit_id"], final.plan_id)
        if key in accepted:
            repeated += 1
            continue
        before = [edit for moment, edit in edits.get(key, ()) if moment <= event["timestamp"]]
        swapped_in = {edit["to_recipe_id"] for edit in before if edit["type"] == "swap_meal"}
        meals = _meals(final.meals)
        accepted[key] = {
            "household_id": event["unit_id"],
            "plan_id": final.plan_id,
            "event_id": event["event_id"],
            "accepted_at": event["timestamp"],
            "started_at": _started(final, event["timestamp"]),
            "meals": meals,
            "remembered": [
                {"recipe_id": meal["recipe_id"], "swapped_in": meal["recipe_id"] in swapped_in} for meal in meals
            ],
            "edits": before,
            "reconstructed": final.reconstructed,
            "accepted_workflow_type": context.workflow_type,
            "accepted_mode": context.mode,
            "accepted_region": context.region,
        }
    return Sessions(
        pl.DataFrame(list(generated.values()), schema=_GENERATED, orient="row"),
        pl.DataFrame(list(accepted.values()), schema=_ACCEPTED, orient="row"),
        dict(malformed),
        repeated,
    )


_CONTEXT_OF_ACCEPTANCE = {
    "accepted_workflow_type": pl.String,
    "accepted_mode": pl.String,
    "accepted_region": pl.String,
}
_GENERATED: dict[str, Any] = {
    "household_id": pl.String,
    "plan_id": pl.String,
    "made_at": UTC_TIME,
    "proposed": MEALS,
    "slot_propensities": pl.List(pl.Float64),
    "slot_explored": pl.List(pl.Boolean),
    "policy_version_id": pl.String,
    "workflow_type": pl.String,
    "mode": pl.String,
    "region": pl.String,
}
_ACCEPTED: dict[str, Any] = {
    "household_id": pl.String,
    "plan_id": pl.String,
    "event_id": pl.String,
    "accepted_at": UTC_TIME,
    "started_at": UTC_TIME,
    "meals": MEALS,
    "remembered": REMEMBERED_MEALS,
    "edits": EDITS,
    "reconstructed": pl.Boolean,
    **_CONTEXT_OF_ACCEPTANCE,
}


def _decoded(
    events: pl.DataFrame, event_type: str, shape: type[_Payload], malformed: Counter[str]
) -> Iterator[tuple[dict[str, Any], _Payload, _Context]]:
    payloads, contexts = msgspec.json.Decoder(shape), msgspec.json.Decoder(_Context)
    chosen = events.filter(pl.col("event_type") == event_type)
    for event in chosen.iter_rows(named=True):
        try:
            payload = payloads.decode(event["payload"] or "null")
            context = contexts.decode(event["context"] or "{}")
        except (msgspec.DecodeError, UnicodeEncodeError):
            malformed[event_type] += 1
            continue
        yield event, payload, context


def _edits(
    events: pl.DataFrame, malformed: Counter[str]
) -> dict[tuple[str, str], list[tuple[datetime, dict[str, Any]]]]:
    """(household, plan) → its edits with their times, in order."""
    dated: list[tuple[datetime, str, tuple[str, str], dict[str, Any]]] = []
    for event, swap, _ in _decoded(events, "meal_swapped", _Swap, malformed):
        edit = {
            "type": "swap_meal",
            "day": swap.day,
            "from_recipe_id": swap.from_meal_id,
            "to_recipe_id": swap.to_meal_id,
            "servings": None,
        }
        dated.append((event["timestamp"], event["event_id"], (event["unit_id"], swap.plan_id), edit))
    for event, change, _ in _decoded(events, "edit_applied", _Edit, malformed):
        edit = {
            "type": change.type,
            "day": change.day,
            "from_recipe_id": None,
            "to_recipe_id": None,
            "servings": change.servings,
        }
        dated.append((event["timestamp"], event["event_id"], (event["unit_id"], change.plan_id), edit))
    dated.sort(key=lambda entry: entry[:2])
    edits: dict[tuple[str, str], list[tuple[datetime, dict[str, Any]]]] = defaultdict(list)
    for moment, _, key, edit in dated:
        edits[key].append((moment, edit))
    return edits


def _meals(meals: Iterable[_Meal]) -> list[dict[str, Any]]:
    ordered = sorted(meals, key=lambda meal: meal.day)
    return [{"day": meal.day, "recipe_id": meal.recipe_id, "servings": meal.servings} for meal in ordered]


def _started(plan: _Accepted, accepted_at: datetime) -> datetime | None:
    """When a reconstructed plan began; None for any other plan."""
    if not plan.reconstructed or plan.started_at is None:
        return None
    return min(plan.started_at if plan.started_at.tzinfo else plan.started_at.replace(tzinfo=UTC), accepted_at)


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if moment.tzinfo is None:
        raise ValueError(f"The event time {value} has no time zone.")
    return moment.astimezone(UTC)
