"""Cleaned events: deduplicated, typed and flagged; one file per day and one for all history.

cleaned/{year}/{month}/{day}.parquet     the 24 archived hours of a day
cleaned/history.parquet                  everything before the lineage's first day
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from eventlog.archive.files import (
    EVENT_SCHEMA,
    HISTORY_FOLDER,
    KNOWN_METRICS,
    archived_keys,
    day_folder,
    hour_key,
    name_some,
    read_archive,
)
from eventlog.archive.period_file import ArchiveError
from eventlog.validation import FUTURE_TOLERANCE, LATE_AFTER
from foundation.object_store import ObjectStore

HISTORY_KEY = "cleaned/history.parquet"
MUST_HAVE = ("event_id", "event_type", "unit_type", "unit_id", "timestamp")
PLAN_EVENTS = ("plan_generated", "plan_accepted", "plan_rejected", "meal_swapped", "edit_applied")
"""Event types that concern one plan (docs/data-model.md)."""

_RAW = pl.DataFrame(EVENT_SCHEMA.empty_table())
CLEANED_SCHEMA: dict[str, Any] = {**_RAW.schema, "plan_id": pl.String, "reconstructed": pl.Boolean}
"""The archive's columns, the payload's `plan_id`, and whether the event was reconstructed from a diary: such events count nowhere."""

FLAGS: dict[str, pl.Expr] = {
    "ahead_of_clock": pl.col("timestamp") > pl.col("created_at") + FUTURE_TOLERANCE,
    "late": (pl.col("created_at") > pl.col("timestamp") + LATE_AFTER) & ~pl.col("reconstructed"),
    "no_plan_id": pl.col("event_type").is_in(PLAN_EVENTS) & pl.col("plan_id").is_null(),
    "metric_not_a_number": pl.any_horizontal(~pl.col(name).is_finite() for name in KNOWN_METRICS)
    | pl.col("metrics").list.eval(pl.element().struct.field("value").is_finite().fill_null(False)).list.all().not_(),
}
"""Flags that cleaning adds to those of the event service; flagged events stay."""


@dataclass(frozen=True)
class Cleaned:
    """Cleaned events in order of (timestamp, event_id), with the number `dropped` by reason and `flagged` by flag."""

    frame: pl.DataFrame
    dropped: dict[str, int]
    flagged: dict[str, int]


def clean(frame: pl.DataFrame) -> Cleaned:
    """Deduplicate, type and flag archived events (columns of EVENT_SCHEMA, rows in any order).

    Drops events without one of MUST_HAVE (`malformed`) and repetitions of an (event_id, timestamp) (`duplicate`). A metric that is not a
    finite number becomes null. Raises polars.exceptions.ColumnNotFoundError for a missing column.
    """
    typed = frame.select([pl.col(name).cast(kind) for name, kind in _RAW.schema.items()])
    complete = typed.drop_nulls(MUST_HAVE)
    unique = complete.sort("timestamp", "event_id", "created_at").unique(
        ["event_id", "timestamp"], keep="first", maintain_order=True
    )
    payload = pl.col("payload")
    with_payload_columns = unique.with_columns(
        plan_id=payload.str.json_path_match("$.plan_id"),
        reconstructed=(payload.str.json_path_match("$.reconstructed") == "true").fill_null(False),
    )
    flags = pl.concat_list(
        pl.col("flags").fill_null(pl.lit([], dtype=pl.List(pl.String))),
        pl.concat_list(
            [pl.when(applies.fill_null(False)).then(pl.lit(name)) for name, applies in FLAGS.items()]
        ).list.drop_nulls(),
    )
    finite = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in KNOWN_METRICS]
    cleaned = (
        with_payload_columns.with_columns(flags=flags.list.unique(maintain_order=True))
        .with_columns(finite)
        .cast(pl.Schema(CLEANED_SCHEMA))
    )
    dropped = {"malformed": typed.height - complete.height, "duplicate": complete.height - unique.height}
    counted = cleaned["flags"].explode(empty_as_null=False).value_counts(sort=True).rows() if cleaned.height else []
    return Cleaned(
        cleaned.select(list(CLEANED_SCHEMA)),
        {reason: count for reason, count in dropped.items() if count},
        {flag: count for flag, count in sorted(counted) if flag is not None},
    )


def day_key(day: date) -> str:
    """Key of a cleaned day."""
    return f"cleaned/{day:%Y/%m/%d}.parquet"


def clean_day(store: ObjectStore, day: date) -> Cleaned:
    """Clean the 24 archived hours of a day (UTC) and write the day's file; the same hours give the same bytes.

    Raises ArchiveError if an hour was never archived, foundation.object_store.StoreError.
    """
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    keys = [hour_key(start + timedelta(hours=hour)) for hour in range(24)]
    stored = set(store.list(day_folder(day)))
    missing = [key.split("/")[-2] for key in keys if key not in stored]
    if missing:
        raise ArchiveError(
            f"Can't clean {day}: its hours {', '.join(missing)} (UTC) were never archived. Materialise raw_events for them."
        )
    return _write(store, day_key(day), keys)


def clean_history(store: ObjectStore) -> Cleaned:
    """Clean all archived months of history into one file, empty if there are none. Raises foundation.object_store.StoreError."""
    return _write(store, HISTORY_KEY, archived_keys(store, HISTORY_FOLDER))


def read_cleaned(store: ObjectStore, start: date, end: date, *, history: bool = False) -> pl.DataFrame:
    """Cleaned events of the days [start, end), and of history if `history`, in order of (timestamp, event_id).

    Raises ArchiveError with the days (or history) that were never cleaned.
    """
    days = [start + timedelta(days=index) for index in range(max(0, (end - start).days))]
    stored = set(store.list("cleaned"))
    missing = [str(day) for day in days if day_key(day) not in stored]
    if history and HISTORY_KEY not in stored:
        missing.insert(0, "history")
    if missing:
        raise ArchiveError(f"Never cleaned: {name_some(missing)}. Materialise cleaned_events for them.")
    keys = ([HISTORY_KEY] if history else []) + [day_key(day) for day in days]
    frames = [pl.read_parquet(io.BytesIO(store.read(key))) for key in keys]
    if not frames:
        return pl.DataFrame(schema=CLEANED_SCHEMA)
    return pl.concat(frames).sort("timestamp", "event_id")


def _write(store: ObjectStore, key: str, keys: Iterable[str]) -> Cleaned:
    frames = [pl.DataFrame(read_archive(store, hour)) for hour in keys]
    cleaned = clean(pl.concat([_RAW, *frames]))
    sink = io.BytesIO()
    cleaned.frame.write_parquet(sink, compression="zstd")
    store.write(key, sink.getvalue())
    return cleaned
