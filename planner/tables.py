"""The domain tables as frames: their names, columns and types (schema `planner` in the database has the same)."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

UTC_TIME = pl.Datetime("us", "UTC")

PANTRY_ITEMS = pl.List(pl.Struct({"name": pl.String, "quantity": pl.Float64, "unit": pl.String}))

DOMAIN_SCHEMAS: dict[str, dict[str, Any]] = {
    "recipes": {
        "id": pl.String,
        "title": pl.String,
        "ingredients": pl.List(pl.String),
        "prep_minutes": pl.Int64,
        "dietary_tags": pl.List(pl.String),
        "servings": pl.Int64,
        "cost": pl.Float64,
        "submitted": pl.Date,
    },
    "households": {
        "id": pl.String,
        "size": pl.Int64,
        "preferences": pl.List(pl.String),
        "restrictions": pl.List(pl.String),
        "region": pl.String,
        "created_at": UTC_TIME,
    },
    "household_constraints": {
        "household_id": pl.String,
        "valid_from": UTC_TIME,
        "budget": pl.Float64,
        "max_prep_time": pl.Int64,
        "excluded_ingredients": pl.List(pl.String),
    },
    "pantry_snapshots": {
        "household_id": pl.String,
        "snapshot_time": UTC_TIME,
        "items": PANTRY_ITEMS,
    },
}
"""Table → column → polars type. Times are aware, in UTC; cost and budget are US dollars."""

KEYS: dict[str, tuple[str, ...]] = {
    "recipes": ("id",),
    "households": ("id",),
    "household_constraints": ("household_id", "valid_from"),
    "pantry_snapshots": ("household_id", "snapshot_time"),
}
"""Table → its primary key, which is also the order of its rows."""


def domain_frame(table: str, records: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Records as a frame of that table's shape, ordered by its key; fields that the table does not have are left out."""
    schema = DOMAIN_SCHEMAS[table]
    rows = [{column: record.get(column) for column in schema} for record in records]
    return pl.DataFrame(rows, schema=schema, orient="row").sort(KEYS[table])
