"""Dagster assets of the event stage: the archive by hour, retention by day, cleaned events by day, and the same for imported history."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from assets.failures import as_failures
from assets.groups import DATA_TEAM, EVENTS, EVENTS_TABLE
from assets.partitions import DAILY, DAY_KEY, HOUR_KEY, HOURLY
from assets.resources import ArtefactStore, PlatformDatabase
from eventlog.archive.archiving import PeriodArchive, archive_history, archive_hours
from eventlog.archive.cleaning import Cleaned, clean_day, clean_history, day_key
from eventlog.archive.hours import last_arrival, waiting_hours
from eventlog.archive.retention import DayFate, apply_retention
from foundation.settings import settings

MOST_TABLE_ROWS = 60
MOST_SILENCE = timedelta(hours=1)
"""If no event arrives for this long, something is wrong with the API or with the products that send events."""


@dg.asset(
    group_name=EVENTS,
    kinds={"parquet", "python"},
    owners=[DATA_TEAM],
    deps=[EVENTS_TABLE],
    partitions_def=HOURLY,
    # One run per range: a run takes about 3 s to start, an hour of events only milliseconds.
    backfill_policy=dg.BackfillPolicy.single_run(),
    description=(
        "Every event of an hour in one Parquet file. Before the file is visible, it is read back and compared with PostgreSQL (rows, "
        "first and last time, checksum of ids). Archiving an hour again writes the union of both."
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
        "All events before the lineage's first day (imported history), one Parquet file per month, with the guarantees of raw_events."
    ),
)
def history_events(
    context: dg.AssetExecutionContext, database: PlatformDatabase, store: ArtefactStore
) -> dg.MaterializeResult[None]:
    """Archive the history."""
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
    description="A day of archived events without duplicates, typed and flagged. Dropped events are counted by reason.",
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
    description="The archived history without duplicates, typed and flagged; empty if nothing was imported.",
)
def cleaned_history(store: ArtefactStore) -> dg.MaterializeResult[None]:
    """Clean the history."""
    with as_failures():
        cleaned = clean_history(store.open())
    return dg.MaterializeResult(metadata=_counts(cleaned))


@dg.asset(
    group_name=EVENTS,
    kinds={"postgres", "python"},
    owners=[DATA_TEAM],
    deps=[raw_events],
    description=(
        "Drops days of events that are older than `LIFECYCLE_RETENTION_DAYS` from PostgreSQL, but only after all 24 hours of a day are "
        "archived and verified; the archive keeps them. Restored days are kept as long as requested."
    ),
)
def event_retention(
    context: dg.AssetExecutionContext, database: PlatformDatabase, store: ArtefactStore
) -> dg.MaterializeResult[None]:
    """Drop the days that may be dropped, and report what happened to each day."""
    fates: list[DayFate] = []
    with as_failures(), database.connect() as connection:
        connection.autocommit = True
        for fate in apply_retention(connection, store.open(), settings().retention_days, datetime.now(UTC).date()):
            fates.append(fate)
            context.log.info(f"{fate.day}: {_fate(fate)}, {fate.rows:,} events.")
    dropped = [fate for fate in fates if fate.dropped]
    return dg.MaterializeResult(
        metadata={
            "days dropped": len(dropped),
            "events dropped": sum(fate.rows for fate in dropped),
            "days kept": len(fates) - len(dropped),
            "days": _fates(fates),
        }
    )


@dg.asset_check(
    asset=raw_events,
    description="Every full hour of events is archived: none was missed, and none got late events since.",
)
def nothing_waits_for_the_archive(database: PlatformDatabase) -> dg.AssetCheckResult:
    """Count the hours that wait. The severity is WARN, because the sensor `late_events` requests them by itself."""
    with database.connect() as connection:
        waiting = waiting_hours(connection, settings().lineage_start, datetime.now(UTC))
    hours = ", ".join(f"{hour:{HOUR_KEY}}" for hour in waiting[:MOST_TABLE_ROWS])
    return dg.AssetCheckResult(
        passed=not waiting,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"hours in the archive queue": len(waiting), "waiting hours": hours or "none"},
    )


@dg.asset_check(
    asset=EVENTS_TABLE,
    description="An event arrived within the last hour. The sensor `no_events_for_an_hour` checks this every minute.",
)
def events_arrive(database: PlatformDatabase) -> dg.AssetCheckResult:
    """Fails with ERROR if no event arrived for an hour; passes before the first event."""
    now = datetime.now(UTC)
    with database.connect() as connection:
        latest = last_arrival(connection)
    return dg.AssetCheckResult(
        passed=latest is None or now - latest <= MOST_SILENCE,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"last event": "never" if latest is None else f"{latest.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"},
    )


def _counts(cleaned: Cleaned) -> dict[str, dg.MetadataValue | int]:
    return {
        "dagster/row_count": len(cleaned.frame),
        "dropped": dg.MetadataValue.json(cleaned.dropped),
        "flagged": dg.MetadataValue.json(cleaned.flagged),
    }


def _summary(periods: Sequence[PeriodArchive], name: str) -> str:
    rows, written = sum(period.rows for period in periods), sum(period.written for period in periods)
    return f"{rows:,} events in {len(periods):,} {name}s, all compared with PostgreSQL; {written:,} files written, the others unchanged."


def _table(periods: Sequence[PeriodArchive]) -> dg.MetadataValue:
    lines = [f"| {period.start:%Y-%m} | {period.rows:,} | {period.size:,} |" for period in periods[-MOST_TABLE_ROWS:]]
    return dg.MetadataValue.md("\n".join(["| month | events | bytes |", "|---|---:|---:|", *lines]))


def _fate(fate: DayFate) -> str:
    return "dropped" if fate.dropped else f"kept ({fate.reason})"


def _fates(fates: Sequence[DayFate]) -> dg.MetadataValue:
    lines = [f"| {fate.day} | {fate.rows:,} | {_fate(fate)} |" for fate in fates[-MOST_TABLE_ROWS:]]
    return dg.MetadataValue.md("\n".join(["| day | events | result |", "|---|---:|---|", *lines]))
