"""Training rows: accepted plans joined with the domain as it was when each plan was made, and split by household.

The most important rule: a plan is *made* when it is generated (a reconstructed one: at its first meal), and nothing that happens
after that moment reaches its `input`.
"""

import hashlib
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import polars as pl

from planner.sessions import EDITS, MEALS, REMEMBERED_MEALS, UTC_TIME, read_sessions
from planner.tables import DOMAIN_SCHEMAS, PANTRY_ITEMS
from product.protocol import DatasetRows, RowWindow

SPLIT_SALT = "planner-split"
HELD_OUT = 0.2
"""Share of households whose rows are never trained on, so that a replay has households that no model saw."""
VALIDATION = 0.1
"""Share of the other households that training validates on."""

PLAN = pl.Struct({"meals": MEALS})
_ROW: dict[str, Any] = {
    "input": pl.Struct(
        {
            "household": pl.Struct(
                {
                    "id": pl.String,
                    "size": pl.Int64,
                    "preferences": pl.List(pl.String),
                    "restrictions": pl.List(pl.String),
                }
            ),
            "pantry": pl.Struct({"items": PANTRY_ITEMS}),
            "constraints": pl.Struct(
                {"budget": pl.Float64, "max_prep_time": pl.Int64, "excluded_ingredients": pl.List(pl.String)}
            ),
            "workflow_type": pl.String,
            "mode": pl.String,
            "previous_plan": PLAN,
            "recent_plans": pl.List(pl.Struct({"days_ago": pl.Int64, "meals": REMEMBERED_MEALS})),
        }
    ),
    "target": pl.Struct({"accepted_plan": PLAN, "user_edits": EDITS}),
    "metadata": pl.Struct(
        {
            "timestamp": UTC_TIME,
            "plan_id": pl.String,
            "event_id": pl.String,
            "policy_version_id": pl.String,
            "proposed_plan": PLAN,
            "slot_propensities": pl.List(pl.Float64),
            "slot_explored": pl.List(pl.Boolean),
            "region": pl.String,
            "household_size": pl.Int64,
            "reconstructed": pl.Boolean,
            "split": pl.String,
        }
    ),
}
ROW_SCHEMA = pl.Schema(_ROW)
"""Columns of a dataset, exactly these three (docs/data-model.md)."""

NULLABLE = frozenset(
    {
        "input.constraints.budget",
        "input.constraints.max_prep_time",
        "input.previous_plan",
        "target.user_edits.day",
        "target.user_edits.from_recipe_id",
        "target.user_edits.to_recipe_id",
        "target.user_edits.servings",
        "metadata.policy_version_id",
        "metadata.proposed_plan",
        "metadata.slot_propensities",
        "metadata.slot_explored",
        "metadata.region",
    }
)
"""Fields that may be null, as dotted paths; every other field never is."""


def planner_rows(
    events: pl.DataFrame,
    domain: Mapping[str, pl.DataFrame],
    window: RowWindow,
    *,
    replay_from: date | None = None,
    salt: str = SPLIT_SALT,
) -> pl.DataFrame:
    """The rows of `build_rows`, without the counts."""
    return build_rows(events, domain, window, replay_from=replay_from, salt=salt).frame


def build_rows(
    events: pl.DataFrame,
    domain: Mapping[str, pl.DataFrame],
    window: RowWindow,
    *,
    replay_from: date | None = None,
    salt: str = SPLIT_SALT,
) -> DatasetRows:
    """A row (ROW_SCHEMA) for every plan accepted in the window, ordered by (timestamp, event id).

    `events` are cleaned events that reach `window.lookback_days` back before the window; `domain` holds the four tables of
    `tables.DOMAIN_SCHEMAS`. Left out and counted: acceptances without meals or otherwise malformed, without the plan_generated
    before them (unless reconstructed), repeated, of unknown households, with unknown recipes. Raises KeyError for a missing table.
    """
    sessions = read_sessions(events.filter(pl.col("timestamp") < window.end))
    in_window = pl.col("accepted_at").is_between(window.start, window.end, closed="left")
    recipes, households = _table(domain, "recipes"), _table(domain, "households")

    known = pl.col("meals").list.eval(pl.element().struct.field("recipe_id").is_in(recipes["id"].implode())).list.all()
    accepted = sessions.accepted.filter(known).sort("accepted_at", "event_id")
    made = (
        accepted.join_asof(
            sessions.generated.sort("made_at"),
            left_on="accepted_at",
            right_on="made_at",
            by=["household_id", "plan_id"],
            strategy="backward",
            check_sortedness=False,
        )
        .with_columns(
            *(
                _unless_reconstructed(name)
                for name in ("proposed", "slot_propensities", "slot_explored", "policy_version_id")
            ),
            *(
                pl.coalesce(_unless_reconstructed(name), f"accepted_{name}").alias(name)
                for name in ("workflow_type", "mode", "region")
            ),
            made_at=pl.when("reconstructed").then(pl.coalesce("started_at", "accepted_at")).otherwise("made_at"),
        )
        .filter(in_window)
    )
    complete = made.filter(pl.col("made_at").is_not_null())
    rows = complete.join(
        households.select(pl.col("id").alias("household_id"), "size", "preferences", "restrictions", home="region"),
        on="household_id",
    )
    rows = _with_history(
        _as_of_made(rows.with_row_index("row"), domain), accepted, timedelta(days=window.lookback_days)
    )
    frame = assign_split(_assemble(rows), replay_from=replay_from, salt=salt)
    in_time = sessions.accepted.filter(in_window).height
    excluded = {
        "malformed_event": sum(sessions.malformed.values()),
        "accepted_again": sessions.repeated,
        "unknown_recipe": in_time - made.height,
        "no_plan_generated": made.height - complete.height,
        "unknown_household": complete.height - rows.height,
    }
    return DatasetRows(frame, {reason: count for reason, count in excluded.items() if count})


def split_of(household_id: str, salt: str = SPLIT_SALT) -> tuple[bool, bool]:
    """(held out for replay, validation if not held out): two independent draws from the household's salted SHA-256."""
    return _draw(f"{salt}:held-out:{household_id}") < HELD_OUT, _draw(f"{salt}:validation:{household_id}") < VALIDATION


def assign_split(rows: pl.DataFrame, *, replay_from: date | None = None, salt: str = SPLIT_SALT) -> pl.DataFrame:
    """The rows with `metadata.split` set by household: "train", "validation" or "replay".

    With `replay_from` (UTC) time decides what is replayed: rows from that day on are "replay", earlier ones never.
    """
    households = rows.select(id=pl.col("input").struct.field("household").struct.field("id"))["id"]
    names = households.unique().to_list()
    draws = [split_of(name, salt) for name in names]
    held_out = pl.lit(replay_from is None) & households.is_in([n for n, d in zip(names, draws, strict=True) if d[0]])
    validation = households.is_in([n for n, d in zip(names, draws, strict=True) if d[1]])
    replayed = (
        held_out if replay_from is None else pl.col("metadata").struct.field("timestamp").dt.date() >= replay_from
    )
    split = (
        pl.when(replayed).then(pl.lit("replay")).when(validation).then(pl.lit("validation")).otherwise(pl.lit("train"))
    )
    return rows.with_columns(pl.col("metadata").struct.with_fields(split=split)).cast(ROW_SCHEMA)


def _draw(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _table(domain: Mapping[str, pl.DataFrame], name: str) -> pl.DataFrame:
    return domain[name].select([pl.col(column).cast(kind) for column, kind in DOMAIN_SCHEMAS[name].items()])


def _unless_reconstructed(name: str) -> pl.Expr:
    return pl.when(~pl.col("reconstructed")).then(pl.col(name)).alias(name)


def _as_of_made(rows: pl.DataFrame, domain: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Add the last pantry snapshot and the last constraints that are not after the plan was made."""
    rows = rows.sort("made_at")
    for name, moment in (("pantry_snapshots", "snapshot_time"), ("household_constraints", "valid_from")):
        rows = rows.join_asof(
            _table(domain, name).sort(moment),
            left_on="made_at",
            right_on=moment,
            by="household_id",
            strategy="backward",
            check_sortedness=False,
        )
    return rows


def _with_history(rows: pl.DataFrame, accepted: pl.DataFrame, lookback: timedelta) -> pl.DataFrame:
    """Add `recent` (oldest first) and `previous`: the household's plans that were accepted before this one was made."""
    earlier = accepted.select(
        "household_id", pl.col("accepted_at").alias("then"), pl.col("event_id").alias("then_id"), "remembered",
        pl.col("meals").alias("then_meals"),
    )  # fmt: skip
    pairs = (
        rows.select("row", "household_id", "made_at")
        .join(earlier, on="household_id")
        .filter(pl.col("then") < pl.col("made_at"), pl.col("then") >= pl.col("made_at") - lookback)
        .sort("row", "then", "then_id")
        .with_columns(days_ago=(pl.col("made_at") - pl.col("then")).dt.total_days())
    )
    history = pairs.group_by("row").agg(
        recent=pl.struct("days_ago", meals="remembered"), previous=pl.col("then_meals").last()
    )
    return rows.join(history, on="row", how="left")


def _assemble(rows: pl.DataFrame) -> pl.DataFrame:
    """The three structs, in order of (timestamp, event id); `metadata.split` is still empty."""

    def plan(meals: str) -> pl.Expr:
        return pl.when(pl.col(meals).is_not_null()).then(pl.struct(meals=meals))

    def listed(name: str, kind: Any) -> pl.Expr:
        return pl.col(name).fill_null(pl.lit([], dtype=kind)).alias(name)

    texts = pl.List(pl.String)
    household = pl.struct(
        pl.col("household_id").alias("id"), "size", listed("preferences", texts), listed("restrictions", texts)
    )
    recent = _ROW["input"].fields[-1].dtype
    return (
        rows.sort("accepted_at", "event_id")
        .select(
            input=pl.struct(
                household.alias("household"),
                pl.struct(listed("items", PANTRY_ITEMS)).alias("pantry"),
                pl.struct("budget", "max_prep_time", listed("excluded_ingredients", texts)).alias("constraints"),
                "workflow_type",
                "mode",
                plan("previous").alias("previous_plan"),
                listed("recent", recent).alias("recent_plans"),
            ),
            target=pl.struct(plan("meals").alias("accepted_plan"), pl.col("edits").alias("user_edits")),
            metadata=pl.struct(
                pl.col("accepted_at").alias("timestamp"),
                "plan_id",
                "event_id",
                "policy_version_id",
                plan("proposed").alias("proposed_plan"),
                "slot_propensities",
                "slot_explored",
                pl.coalesce("home", "region").alias("region"),
                pl.col("size").alias("household_size"),
                "reconstructed",
                pl.lit(None, dtype=pl.String).alias("split"),
            ),
        )
        .cast(ROW_SCHEMA)
    )
