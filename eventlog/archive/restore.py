"""Restoring archived days into PostgreSQL with every column as it was, including `created_at`.

Events of erased units are not restored; events that PostgreSQL still has are not changed.
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from eventlog.archive.counting import Counted, count_in_database
from eventlog.archive.files import name_some, open_archive, period_name
from eventlog.archive.hours import ArchivedHour, archive_lock, record_archived, record_late, record_restored
from eventlog.archive.manifest import day_manifest
from eventlog.archive.period_file import ArchiveError
from eventlog.partitions import ensure_event_days
from foundation.object_store import FileFacts, ObjectStore

DAY = timedelta(days=1)

_STAGE = """
CREATE TEMPORARY TABLE IF NOT EXISTS restored_events (
    id uuid, event_type text, unit_type text, unit_id text, experiments jsonb, context jsonb, metrics jsonb, payload jsonb,
    "timestamp" timestamptz, created_at timestamptz, flags jsonb
) ON COMMIT DELETE ROWS
"""
_COPY = "COPY restored_events FROM STDIN (FORMAT csv, ENCODING 'UTF8')"
_ERASED = """
DELETE FROM restored_events USING exp.erased_units, exp.erasure_salt
WHERE unit_hash = sha256(salt || convert_to(unit_type || ':' || unit_id, 'UTF8')) AND created_at <= erased_at
"""
_INSERT = """
INSERT INTO exp.events (id, event_type, unit_type, unit_id, experiments, context, metrics, payload, "timestamp", created_at, flags)
SELECT id, event_type, unit_type, unit_id, experiments, context, metrics, payload, "timestamp", created_at,
       ARRAY(SELECT jsonb_array_elements_text(flags))
FROM restored_events ORDER BY "timestamp", id
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class RestoredHour:
    """A restored hour: the `rows` in its file, how many of them were `new` to PostgreSQL, and how many `erased`."""

    hour: datetime
    rows: int
    new: int
    erased: int


def restorable(store: ObjectStore, start: date, end: date) -> list[ArchivedHour]:
    """The archived hours of the days [start, end) as their manifests describe them, in order.

    Raises ArchiveError with the days that were never archived completely, foundation.object_store.StoreError.
    """
    days = [start + DAY * index for index in range((end - start).days)]
    manifests = {day: day_manifest(store, day) for day in days}
    missing = [str(day) for day, files in manifests.items() if len(files) < 24]
    if missing:
        raise ArchiveError(
            f"Never archived completely: {name_some(missing)}; nothing was restored. "
            "Choose other days, or materialise raw_events for these if PostgreSQL still has them."
        )
    return [file for files in manifests.values() for file in files]


def restore_hours(
    connection: psycopg.Connection[Any], store: ObjectStore, hours: Sequence[ArchivedHour], keep_until: datetime
) -> Iterator[RestoredHour]:
    """Restore the events of archived hours, one transaction per hour, and yield the counts of each.

    The days are recorded, so that retention keeps them until `keep_until`. Running it again restores only what is missing. `connection`
    is idle. Raises ArchiveError if a file differs from its manifest, foundation.object_store.StoreError.
    """
    for day in sorted({hour.hour.date() for hour in hours}):
        day_hours = [hour for hour in hours if hour.hour.date() == day]
        # Retention and archiving wait until the rows of the hours agree with what PostgreSQL holds.
        with archive_lock(connection, [day]):
            ensure_event_days(connection, [day])
            with connection.transaction():
                record_restored(connection, day, sum(hour.file_rows for hour in day_hours), keep_until)
            for hour in day_hours:
                yield _restore(connection, store, hour)


def _restore(connection: psycopg.Connection[Any], store: ObjectStore, hour: ArchivedHour) -> RestoredHour:
    new = erased = 0
    if store.facts(hour.key) != FileFacts(hour.bytes, hour.sha256):
        raise ArchiveError(
            f"{period_name(hour.key)}: {store.uri(hour.key)} differs from its manifest, and was not restored. "
            "Materialise raw_events for it, then run the restore again."
        )
    with open_archive(store, hour.key) as file, connection.transaction():
        for group in file.groups():
            connection.execute(_STAGE)
            with connection.cursor() as cursor:
                with cursor.copy(_COPY) as copy:
                    copy.write(_csv(group))
                erased += cursor.execute(_ERASED).rowcount
                new += cursor.execute(_INSERT).rowcount
                cursor.execute("TRUNCATE restored_events")
        _record(connection, hour, hour.file_rows - erased)
    return RestoredHour(hour.hour, hour.file_rows, new, erased)


def _record(connection: psycopg.Connection[Any], hour: ArchivedHour, expected: int) -> None:
    """Record the hour as archived if PostgreSQL holds exactly the `expected` restored events, otherwise as late."""
    counts = count_in_database(connection, "1 hour", hour.hour, hour.hour + timedelta(hours=1))
    counted = counts.get(hour.hour, Counted())
    if counted.rows == expected:
        record_archived(connection, [replace(hour, database_rows=counted.rows, checksum=counted.checksum)])
    else:
        record_late(connection, hour.hour)


def _csv(group: pa.Table) -> bytes:
    """Rows of an archive as CSV for `_COPY`: text is quoted, and an empty field is NULL."""
    columns = [
        group["event_id"], group["event_type"], group["unit_type"], group["unit_id"],
        _exact(group["experiments_json"], group["experiments"]), group["context"],
        _exact(group["metrics_json"], group["metrics"]), group["payload"],
        group["timestamp"].cast(pa.string()), group["created_at"].cast(pa.string()), _as_json(group["flags"]),
    ]  # fmt: skip
    sink = io.BytesIO()
    pyarrow.csv.write_csv(
        pa.table(columns, names=[str(index) for index in range(len(columns))]),
        sink,
        pyarrow.csv.WriteOptions(include_header=False),
    )
    return sink.getvalue()


def _exact(texts: pa.ChunkedArray, typed: pa.ChunkedArray) -> pa.ChunkedArray:
    """The archived JSON; in files of older versions, which have none, the typed column as JSON."""
    return pc.coalesce(texts, _as_json(typed)) if texts.null_count else texts


def _as_json(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_map(column.type):
        values: list[Any] = [{name: _finite(number) for name, number in pairs} for pairs in column.to_pylist()]
    else:
        values = column.to_pylist()
    return pa.array(map(json.dumps, values), pa.string())


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
