"""Cleaned events: every event once, typed, flagged where something about it is odd; a file a day and one for all history.

cleaned/{year}/{month}/{day}.parquet     the 24 archived hours of a day
cleaned/history.parquet                  everything before the lineage's first day
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from eventlog.archive.files import EVENT_SCHEMA, HISTORY_FOLDER, KNOWN_METRICS, archived_keys, hour_key, read_archive
from eventlog.archive.period_file import ArchiveError
from foundation.object_store import ObjectStore

HISTORY_KEY = "cleaned/history.parquet"
AHEAD = timedelta(minutes=5)
LATE = timedelta(days=7)
MUST_HAVE = ("event_id", "event_type", "unit_type", "unit_id", "timestamp")
PLAN_EVENTS = ("plan_generated", "plan_accepted", "plan_rejected", "meal_swapped", "edit_applied")
"""Event types of the platform that are about one plan (docs/data-model.md)."""

_RAW = pl.DataFrame(EVENT_SCHEMA.empty_table())
CLEANED_SCHEMA: dict[str, Any] = {**_RAW.schema, "plan_id": pl.String, "reconstructed": pl.Boolean}
"""The archive's columns, `plan_id` out of the payload, and whether the event was reconstructed from a diary: those count nowhere."""

FLAGS: dict[str, pl.Expr] = {
    "ahead_of_clock": pl.col("timestamp") > pl.col("created_at") + AHEAD,
    "late": (pl.col("created_at") > pl.col("timestamp") + LATE) & ~pl.col("reconstructed"),
    "no_plan_id": pl.col("event_type").is_in(PLAN_EVENTS) & pl.col("plan_id").is_null(),
    "metric_not_a_number": pl.any_horizontal(~pl.col(name).is_finite() for name in KNOWN_METRICS)
    | pl.col("metrics").list.eval(pl.element().struct.field("value").is_finite().fill_null(False)).list.all().not_(),
}
"""Flags that cleaning adds to those that the event service set; a flagged event stays."""


@dataclass(frozen=True)
class Cleaned:
    """Cleaned events in order of (timestamp, event_id). `dropped` and `flagged`: how many, by reason; `flagged` has every flag."""

    frame: pl.DataFrame
    dropped: dict[str, int]
    flagged: dict[str, int]


def clean(frame: pl.DataFrame) -> Cleaned:
    """Archived events (columns of EVENT_SCHEMA, in any order of rows) → each once, typed and flagged.

    Dropped: `malformed`, without one of MUST_HAVE; `duplicate`, the same (event_id, timestamp) again. A metric that is no finite
    number becomes null. Raises polars.exceptions.ColumnNotFoundError for a missing column.
    """
    typed = frame.select([pl.col(name).cast(kind) for name, kind in _RAW.schema.items()])
    whole = typed.drop_nulls(MUST_HAVE)
    once = whole.sort("timestamp", "event_id", "created_at").unique(
        ["event_id", "timestamp"], keep="first", maintain_order=True
    )
    payload = pl.col("payload")
    marked = once.with_columns(
        plan_id=payload.str.json_path_match("$.plan_id"),
        reconstructed=(payload.str.json_path_match("$.reconstructed") == "true").fill_null(False),
    )
    flags = pl.concat_list(
        pl.col("flags").fill_null(pl.lit([], dtype=pl.List(pl.String))),
        pl.concat_list(
            [pl.when(odd.fill_null(False)).then(pl.lit(name)) for name, odd in FLAGS.items()]
        ).list.drop_nulls(),
    )
    finite = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in KNOWN_METRICS]
    cleaned = (
        marked.with_columns(flags=flags.list.unique(maintain_order=True))
        .with_columns(finite)
        .cast(pl.Schema(CLEANED_SCHEMA))
    )
    dropped = {"malformed": typed.height - whole.height, "duplicate": whole.height - once.height}
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
    """Clean the 24 archived hours of a day (UTC) and write its file; the same hours give the same bytes.

    Raises ArchiveError when an hour was never archived, foundation.object_store.StoreError.
    """
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    keys = [hour_key(start + timedelta(hours=hour)) for hour in range(24)]
    held = set(store.list(f"events/{day:%Y/%m/%d}"))
    missing = [key.split("/")[-2] for key in keys if key not in held]
    if missing:
        raise ArchiveError(
            f"{day} can't be cleaned: its hours {', '.join(missing)} (UTC) were never archived. Materialise raw_events for them."
        )
    return _write(store, day_key(day), keys)


def clean_history(store: ObjectStore) -> Cleaned:
    """Clean every archived month of history into one file; without any it is empty. Raises foundation.object_store.StoreError."""
    return _write(store, HISTORY_KEY, archived_keys(store, HISTORY_FOLDER))


def read_cleaned(store: ObjectStore, start: date, end: date, *, history: bool = False) -> pl.DataFrame:
    """Cleaned events of the days [start, end), after those of history where asked for; in order of (timestamp, event_id).

    Raises ArchiveError naming the days (or history) that were never cleaned.
    """
    days = [start + timedelta(days=index) for index in range(max(0, (end - start).days))]
    held = set(store.list("cleaned"))
    missing = [str(day) for day in days if day_key(day) not in held]
    if history and HISTORY_KEY not in held:
        missing.insert(0, "history")
    if missing:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ArchiveError(f"Never cleaned: {named}. Materialise cleaned_events for them.")
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
