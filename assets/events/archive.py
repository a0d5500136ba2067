"""The archive of `exp.events`: one Parquet file an hour, one a month for history; each counted against PostgreSQL before it shows.

Belongs here: the one query, the union with what the archive holds, and the count. Does not belong here: a file's columns and keys
(`event_files.py`), cleaning, retention (which may drop a day only once this says that it is archived), or Dagster.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
from psycopg.pq import TransactionStatus

from assets.events.event_files import (
    EVENT_SCHEMA,
    IDENTITY,
    event_table,
    hour_key,
    id_bits,
    identities,
    moment_of,
    month_key,
    parquet_bytes,
    period_name,
    read_archive,
    read_parquet,
)
from assets.object_store import ObjectStore

HOUR = timedelta(hours=1)
FETCH_ROWS = 10_000
WRITERS = 8
"""Files written at once: a file is mostly waiting (fsync, S3), an hour of events small."""

# One ordered pass over the whole range; the planner merges the day partitions by their time index.
_ROWS = """
SELECT id::text, event_type, unit_type, unit_id, experiments::text, context::text, metrics::text, payload::text,
       "timestamp", created_at, flags
FROM exp.events
WHERE "timestamp" >= %(start)s::timestamptz AND "timestamp" < %(end)s
ORDER BY "timestamp", id
"""
# 120 of an id's 128 bits, summed: independent of order, and of anything that Python did with the rows.
_COUNTS = """
SELECT date_trunc(%(unit)s, "timestamp" AT TIME ZONE 'UTC') AS period, count(*), min("timestamp"), max("timestamp"),
       sum(('x' || substr(replace(id::text, '-', ''), 1, 15))::bit(60)::bigint::numeric
         + ('x' || substr(replace(id::text, '-', ''), 18, 15))::bit(60)::bigint::numeric)
FROM exp.events
WHERE "timestamp" >= %(start)s::timestamptz AND "timestamp" < %(end)s
GROUP BY 1
"""


class ArchiveError(Exception):
    """An hour or month could not be archived, or was never archived; the message names it and the difference."""


@dataclass(frozen=True)
class PeriodArchive:
    """One archived hour, or month of history. `database_rows` stood in PostgreSQL, `rows` are in the file: the union of both."""

    start: datetime
    key: str
    rows: int
    database_rows: int
    size: int
    written: bool
    """False when the file held exactly this already."""

    @property
    def archived_only(self) -> int:
        """Rows that PostgreSQL no longer holds."""
        return self.rows - self.database_rows


HourArchive = PeriodArchive


@dataclass(frozen=True)
class _Counted:
    """What must agree on both sides."""

    rows: int = 0
    first: datetime | None = None
    last: datetime | None = None
    checksum: int = 0

    def difference(self, file: "_Counted") -> str | None:
        """A clause that says how the file differs from PostgreSQL, or None."""
        if self.rows != file.rows:
            less = "fewer" if file.rows < self.rows else "more"
            return f"PostgreSQL counts {self.rows} events and the file {file.rows}, {abs(self.rows - file.rows)} {less}"
        if (self.first, self.last) != (file.first, file.last):
            return f"PostgreSQL's times run from {self.first} to {self.last} and the file's from {file.first} to {file.last}"
        if self.checksum != file.checksum:
            return f"both count {self.rows} events, but the checksums of their ids differ ({self.checksum} and {file.checksum})"
        return None


def archive_hours(
    connection: psycopg.Connection[Any], store: ObjectStore, start: datetime, end: datetime
) -> list[PeriodArchive]:
    """Archive every hour of [start, end), in one query for the whole range; empty hours too. In order of time.

    `start` and `end` are whole hours with a time zone. On an idle connection rows and counts are read in one snapshot. Each hour is
    published by itself: what was published before a failure stays. Raises ArchiveError, assets.object_store.StoreError.
    """
    for moment in (start, end):
        if moment.utcoffset() is None or moment.astimezone(UTC) != _hour_of(moment):
            raise ValueError(f"{moment} is no whole hour with a time zone.")
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    hours = [start + HOUR * index for index in range(max(0, (end - start) // HOUR))]
    days = sorted({f"events/{hour:%Y/%m/%d}" for hour in hours})
    held = {key for day in days for key in store.list(day)}
    store.sweep()
    with _snapshot(connection):
        counts = _counts(connection, "hour", start, end)
        batches = _periods(connection, start, end, _hour_of)
        return _publish_all(store, _with_empty(batches, hours), counts, hour_key, held)


def archive_history(connection: psycopg.Connection[Any], store: ObjectStore, first_day: date) -> list[PeriodArchive]:
    """Archive everything before `first_day` (UTC), one file a month; months without events get none. In order of time.

    The same guarantees as `archive_hours`. Raises ArchiveError, assets.object_store.StoreError.
    """
    end = datetime(first_day.year, first_day.month, first_day.day, tzinfo=UTC)
    held = set(store.list("events/history"))
    with _snapshot(connection):
        counts = _counts(connection, "month", None, end)
        batches = _periods(connection, None, end, _month_of)
        return _publish_all(store, batches, counts, month_key, held)


@contextmanager
def _snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction in which rows and counts see the same events; inside a caller's transaction, a part of that one."""
    idle = connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction():
        if idle:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def _counts(
    connection: psycopg.Connection[Any], unit: str, start: datetime | None, end: datetime
) -> Mapping[datetime, _Counted]:
    rows = connection.execute(_COUNTS, {"unit": unit, "start": start or "-infinity", "end": end})
    return {
        period.replace(tzinfo=UTC): _Counted(count, first.astimezone(UTC), last.astimezone(UTC), int(checksum))
        for period, count, first, last, checksum in rows
    }


def _periods(
    connection: psycopg.Connection[Any],
    start: datetime | None,
    end: datetime,
    period_of: Callable[[datetime], datetime],
) -> Iterator[tuple[datetime, pa.Table]]:
    """Non-empty periods in order, each with its events; one server-side cursor, never more than a period in memory."""
    with connection.cursor(name="archive_events") as cursor:
        cursor.execute(_ROWS, {"start": start or "-infinity", "end": end})
        current: datetime | None = None
        tables: list[pa.Table] = []
        while rows := cursor.fetchmany(FETCH_ROWS):
            first = 0
            periods = [period_of(row[8]) for row in rows]
            for index in range(1, len(rows) + 1):
                if index < len(rows) and periods[index] == periods[first]:
                    continue
                if current is not None and periods[first] != current:
                    yield current, pa.concat_tables(tables)
                    tables = []
                current = periods[first]
                tables.append(event_table(rows[first:index]))
                first = index
        if current is not None:
            yield current, pa.concat_tables(tables)


def _with_empty(
    batches: Iterator[tuple[datetime, pa.Table]], hours: list[datetime]
) -> Iterator[tuple[datetime, pa.Table]]:
    empty = EVENT_SCHEMA.empty_table()
    upcoming = next(batches, None)
    for hour in hours:
        if upcoming is not None and upcoming[0] == hour:
            yield upcoming
            upcoming = next(batches, None)
        else:
            yield hour, empty


def _publish_all(
    store: ObjectStore,
    periods: Iterator[tuple[datetime, pa.Table]],
    counts: Mapping[datetime, _Counted],
    key_of: Callable[[datetime], str],
    held: set[str],
) -> list[PeriodArchive]:
    """Publish every period, some at once, and never hold more than a few in memory."""
    done: list[PeriodArchive] = []
    pending: list[Future[PeriodArchive]] = []
    with ThreadPoolExecutor(WRITERS) as pool:
        try:
            for start, table in periods:
                counted = counts.get(start, _Counted())
                key = key_of(start)
                pending.append(pool.submit(_publish, store, start, key, table, counted, key in held))
                if len(pending) > 4 * WRITERS:
                    done.append(pending.pop(0).result())
            done.extend(future.result() for future in pending)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    missing = sorted(set(counts) - {one.start for one in done})
    if missing:
        raise ArchiveError(f"{period_name(key_of(missing[0]))}: PostgreSQL counts events, and its query returned none.")
    return done


def _publish(
    store: ObjectStore, start: datetime, key: str, fresh: pa.Table, counted: _Counted, held: bool
) -> PeriodArchive:
    """Write the union of `fresh` and what the archive holds, unless that is what lies there."""
    table, only_archived, before = fresh, frozenset[tuple[str, int]](), None
    if held:
        before = read_archive(store, key)
        known = set(identities(fresh))
        keep = [identity not in known for identity in identities(before)]
        only_archived = frozenset(identity for identity in identities(before) if identity not in known)
        if any(keep):
            table = pa.concat_tables([before.filter(pa.array(keep)), fresh])
            table = table.sort_by([("timestamp", "ascending"), ("event_id", "ascending")])
    table = table.combine_chunks()

    def verify(stored: bytes) -> None:
        _compare(key, read_parquet(stored, IDENTITY), counted, only_archived, before)

    if before is not None and before.combine_chunks().equals(table):
        _compare(key, before, counted, only_archived, before)
        return PeriodArchive(start, key, table.num_rows, counted.rows, store.size(key) or 0, written=False)
    data = parquet_bytes(table)
    store.write(key, data, verify=verify)
    return PeriodArchive(start, key, table.num_rows, counted.rows, len(data), written=True)


def _compare(
    key: str, file: pa.Table, counted: _Counted, only_archived: frozenset[tuple[str, int]], before: pa.Table | None
) -> None:
    """Raise ArchiveError unless the file holds PostgreSQL's events, all that the archive had besides, and no row twice."""
    held = identities(file)
    twice = len(held) - len(set(held))
    if twice:
        raise ArchiveError(f"{period_name(key)}: {twice} events stand in the file twice; nothing was published.")
    if before is not None and file.num_rows < before.num_rows:
        raise ArchiveError(
            f"{period_name(key)}: the archive holds {before.num_rows} events and the new file {file.num_rows}; "
            "it may only grow, so nothing was published."
        )
    ours = [identity for identity in held if identity not in only_archived]
    times = [time for _, time in ours]
    in_file = _Counted(
        len(ours),
        moment_of(min(times)) if times else None,
        moment_of(max(times)) if times else None,
        sum(id_bits(event_id) for event_id, _ in ours),
    )
    difference = counted.difference(in_file)
    if difference is not None:
        raise ArchiveError(
            f"{period_name(key)}: {difference}; nothing was published. "
            "Archive it again; if it stays, the events changed under the same key."
        )


def _hour_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _month_of(moment: datetime) -> datetime:
    return _hour_of(moment).replace(day=1, hour=0)
