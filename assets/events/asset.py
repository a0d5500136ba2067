"""Dagster assets of the event stage: the archive and the cleaned events, by hour, by day, and for imported history.

Belongs here: wiring and metadata. Does not belong here: how an hour is archived (`archive.py`) or an event is cleaned (`cleaning.py`).
"""

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from assets.events.archive import PeriodArchive, archive_history, archive_hours
from assets.events.cleaning import Cleaned, clean_day, clean_history, day_key
from assets.failures import as_failures
from assets.groups import DATA_TEAM, EVENTS, EVENTS_TABLE
from assets.partitions import DAILY, HOURLY
from assets.resources import ArtefactStore, PlatformDatabase
from experimentation.settings import settings

MOST_TABLE_ROWS = 60
HOUR_KEY, DAY_KEY = "%Y-%m-%d-%H:%M", "%Y-%m-%d"


@dg.asset(
    group_name=EVENTS,
    kinds={"parquet", "python"},
    owners=[DATA_TEAM],
    deps=[EVENTS_TABLE],
    partitions_def=HOURLY,
    # One run a range: a run costs about 3 s to start, an hour of events milliseconds.
    backfill_policy=dg.BackfillPolicy.single_run(),
    description=(
        "Every event of an hour as one Parquet file: written, read back, and counted against PostgreSQL (rows, first and last time, "
        "checksum of ids) before it shows. Written again, it becomes the union of both."
    ),
)
def raw_events(
    context: dg.AssetExecutionContext, database: PlatformDatabase, store: ArtefactStore
) -> dg.MaterializeResult[None]:
    """Archive the hours of this run."""
    target = store.open()
    start, end = context.partition_time_window
    with as_failures(), database.connect() as connection:
        hours = archive_hours(connection, target, start, end)
    for hour in hours:
        metadata = {
            "dagster/row_count": hour.rows,
            "rows in PostgreSQL": hour.database_rows,
            "file": store.link(target.uri(hour.key)),
        }
        context.add_asset_metadata(metadata, partition_key=hour.start.strftime(HOUR_KEY))
    context.log.info(_summary(hours, "hour"))
    return dg.MaterializeResult(
        metadata={"rows in this run": sum(hour.rows for hour in hours), "hours in this run": len(hours)}
    )


@dg.asset(
    group_name=EVENTS,
    kinds={"parquet", "python"},
    owners=[DATA_TEAM],
    deps=[EVENTS_TABLE],
    description=(
        "Everything from before the lineage's first day (imported history), one Parquet file a month, with the guarantees of raw_events."
    ),
)
def history_events(
    context: dg.AssetExecutionContext, database: PlatformDatabase, store: ArtefactStore
) -> dg.MaterializeResult[None]:
    """Archive the history partition."""
    target = store.open()
    with as_failures(), database.connect() as connection:
        months = archive_history(connection, target, settings().lineage_start)
    context.log.info(_summary(months, "month"))
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(month.rows for month in months),
            "months": len(months),
            "files": _table(months),
        }
    )


@dg.asset(
    group_name=EVENTS,
    kinds={"polars", "parquet"},
    owners=[DATA_TEAM],
    deps=[raw_events],
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    description="A day of archived events, each once, typed and flagged; what was dropped is counted by reason.",
)
def cleaned_events(context: dg.AssetExecutionContext, store: ArtefactStore) -> dg.MaterializeResult[None]:
    """Clean the days of this run."""
    target = store.open()
    start, end = context.partition_time_window
    days = rows = 0
    while start + timedelta(days=days) < end:
        day = (start + timedelta(days=days)).date()
        with as_failures():
            cleaned = clean_day(target, day)
        context.add_asset_metadata(
            {**_counts(cleaned), "file": store.link(target.uri(day_key(day)))}, partition_key=day.strftime(DAY_KEY)
        )
        rows += len(cleaned.frame)
        days += 1
    context.log.info(f"{rows:,} events in {days} days.")
    return dg.MaterializeResult(metadata={"rows in this run": rows, "days in this run": days})


@dg.asset(
    group_name=EVENTS,
    kinds={"polars", "parquet"},
    owners=[DATA_TEAM],
    deps=[history_events],
    description="The archived history, each event once, typed and flagged; empty where nothing was imported.",
)
def cleaned_history(store: ArtefactStore) -> dg.MaterializeResult[None]:
    """Clean the history."""
    with as_failures():
        cleaned = clean_history(store.open())
    return dg.MaterializeResult(metadata=_counts(cleaned))


def _counts(cleaned: Cleaned) -> dict[str, dg.MetadataValue | int]:
    return {
        "dagster/row_count": len(cleaned.frame),
        "dropped": dg.MetadataValue.json(cleaned.dropped),
        "flagged": dg.MetadataValue.json(cleaned.flagged),
    }


def _summary(periods: Sequence[PeriodArchive], name: str) -> str:
    rows, written = sum(one.rows for one in periods), sum(one.written for one in periods)
    return f"{rows:,} events in {len(periods):,} {name}s, all counted against PostgreSQL; {written:,} files written, the rest as they were."


def _table(periods: Sequence[PeriodArchive]) -> dg.MetadataValue:
    lines = [f"| {one.start:%Y-%m} | {one.rows:,} | {one.size:,} |" for one in periods[-MOST_TABLE_ROWS:]]
    return dg.MetadataValue.md("\n".join(["| month | events | bytes |", "|---|---:|---:|", *lines]))
