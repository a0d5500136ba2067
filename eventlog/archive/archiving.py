"""Archiving `exp.events`: a Parquet file per hour, per month for history; each is checked against PostgreSQL before it is published."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.rows import tuple_row

from eventlog.archive.counting import EVENTS, Counted, count_in_database
from eventlog.archive.files import (
    HISTORY_FOLDER,
    archived_keys,
    day_folder,
    hour_key,
    microseconds,
    month_key,
    open_archive,
    period_name,
    period_of,
)
from eventlog.archive.hours import HOUR, ArchivedHour, archive_lock, archived_hours, hour_of
from eventlog.archive.manifest import record_files
from eventlog.archive.period_file import ArchiveError, PeriodFile, Published
from eventlog.archive.reader import Slice, read_slices, snapshot
from eventlog.partitions import midnight
from foundation.object_store import FileFacts, ObjectStore

SLICE_ROWS = 32_768
"""The most events that a reader has in memory. Events of the same minute (in history: day) are never split."""
WRITERS = 8
"""Files finished in parallel: finishing is mostly waiting (fsync, S3), and an hour of events is small."""
DAYS_AT_ONCE = 7
"""Days archived in one snapshot: a longer snapshot would keep PostgreSQL from cleaning up."""


@dataclass(frozen=True)
class PeriodArchive:
    """An archived hour or month of history. The file's `rows` are PostgreSQL's `database_rows` and those already archived."""

    start: datetime
    key: str
    rows: int
    database_rows: int
    size: int
    written: bool
    """False if the existing file was up to date."""

    @property
    def archived_only(self) -> int:
        """The number of rows that PostgreSQL no longer holds."""
        return self.rows - self.database_rows


@dataclass(frozen=True)
class _Period:
    """An hour or month to archive. `exists`: there is a file already; `cuts`: where to split the period because that file is large."""

    start: datetime
    end: datetime
    key: str
    counted: Counted
    exists: bool
    cuts: tuple[datetime, ...] = ()


def archive_hours(
    connection: psycopg.Connection[Any],
    store: ObjectStore,
    start: datetime,
    end: datetime,
    source: sql.Identifier = EVENTS,
) -> list[PeriodArchive]:
    """Archive every hour of [start, end), including empty ones. Returns them in order of time.

    `start` and `end` are whole hours with a time zone, `connection` is idle, `source` is a table of events. Rows and counts are read in
    one snapshot; an hour whose file is up to date is not written again. Each hour is published separately: hours published before a
    failure stay. Raises ArchiveError, EventReadError, foundation.object_store.StoreError.
    """
    for moment in (start, end):
        if moment.utcoffset() is None or moment.astimezone(UTC) != hour_of(moment):
            raise ValueError(f"{moment} is not a whole hour with a time zone.")
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    store.sweep()
    archives: list[PeriodArchive] = []
    while start < end:
        until = min(end, start.replace(hour=0) + timedelta(days=DAYS_AT_ONCE))
        hours = [start + HOUR * index for index in range((until - start) // HOUR)]
        days = sorted({hour.date() for hour in hours})
        with archive_lock(connection, days):
            existing = {key for day in days for key in archived_keys(store, day_folder(day))}

            def periods(
                counts: Mapping[datetime, Counted], hours: list[datetime] = hours, existing: set[str] = existing
            ) -> list[_Period]:
                totals = _totals(counts, hour_of)
                return [
                    _Period(hour, hour + HOUR, key, totals.get(hour, Counted()), key in existing)
                    for hour in hours
                    for key in [hour_key(hour)]
                ]

            archives += _archive(connection, store, source, (start, until, "1 minute"), periods)
        start = until
    return archives


def archive_history(connection: psycopg.Connection[Any], store: ObjectStore, first_day: date) -> list[PeriodArchive]:
    """Archive all events before `first_day` (UTC), one file per month with events. Returns the months in order of time.

    The same guarantees as `archive_hours`. Raises ArchiveError, EventReadError, foundation.object_store.StoreError.
    """
    end = midnight(first_day)
    with archive_lock(connection, [date.min]):
        existing = set(archived_keys(store, HISTORY_FOLDER))

        def periods(counts: Mapping[datetime, Counted]) -> list[_Period]:
            return [
                _Period(month, min(end, period_of(key)[1]), key, counted, key in existing)
                for month, counted in _totals(counts, _month_of).items()
                for key in [month_key(month)]
            ]

        return _archive(connection, store, EVENTS, (None, end, "1 day"), periods)


def _archive(
    connection: psycopg.Connection[Any],
    store: ObjectStore,
    source: sql.Identifier,
    span: tuple[datetime | None, datetime, str],
    periods_of: Callable[[Mapping[datetime, Counted]], list[_Period]],
) -> list[PeriodArchive]:
    """Count, read the periods that changed and publish them. What was published is recorded even if a later period fails."""
    start, end, width = span
    published: list[ArchivedHour] = []
    try:
        with snapshot(connection) as shared, connection.cursor(row_factory=tuple_row) as cursor:
            ((now,),) = cursor.execute("SELECT now()").fetchall()
            counts = count_in_database(connection, width, start, end, source)
            periods = periods_of(counts)
            rows = archived_hours(connection, periods[0].start, periods[-1].end) if periods else {}
            unchanged = {
                period.key: rows[period.start]
                for period in periods
                if _is_up_to_date(store, period, rows.get(period.start))
            }
            changed = [
                _with_cuts(store, period, rows.get(period.start)) for period in periods if period.key not in unchanged
            ]
            slices = _slices(changed, counts)
            _publish_all(store, changed, read_slices(connection, shared, source, slices), now, published)
    except BaseException:
        if not connection.closed:
            record_files(connection, store, published)
        raise
    record_files(connection, store, published, list(unchanged.values()))
    written = {row.key: row for row in published}
    return [_result(written.get(period.key) or unchanged[period.key], period.key in written) for period in periods]


def _is_up_to_date(store: ObjectStore, period: _Period, row: ArchivedHour | None) -> bool:
    """Whether the file holds what PostgreSQL has, by both counts and by the file's digest. Raises ArchiveError if it is lost."""
    if row is None:
        return False
    if not period.exists and row.file_rows > period.counted.rows:
        raise ArchiveError(
            f"{period_name(period.key)}: {row.file_rows} events were archived, but their file {store.uri(period.key)} is missing. "
            "Restore it from a backup of the store, or correct LIFECYCLE_STORE."
        )
    same = (row.database_rows, row.checksum) == (period.counted.rows, period.counted.checksum)
    return same and store.facts(period.key) == FileFacts(row.bytes, row.sha256)


def _with_cuts(store: ObjectStore, period: _Period, row: ArchivedHour | None) -> _Period:
    if not period.exists or (row is not None and row.file_rows <= SLICE_ROWS):
        return period
    with open_archive(store, period.key) as file:
        return replace(period, cuts=tuple(file.first_times())) if file.rows > SLICE_ROWS else period


def _slices(periods: Sequence[_Period], counts: Mapping[datetime, Counted]) -> list[Slice]:
    """Split the periods into slices of at most SLICE_ROWS events, where they can be split; small periods share a slice."""
    slices: list[Slice] = []
    spans = sorted(counts)
    start: datetime | None = None
    rows = 0
    for index, period in enumerate(periods):
        start = start or period.start
        inside = spans[bisect_left(spans, period.start) : bisect_left(spans, period.end)]
        cuts = {_between_spans(cut, spans, counts) for cut in period.cuts}
        for point in sorted({*inside, *cuts}):
            more = counts[point].rows if point in counts else 0
            if point > start and (point in cuts or rows + more > SLICE_ROWS):
                slices.append(Slice(start, point, rows))
                start, rows = point, 0
            rows += more
        if index + 1 == len(periods) or periods[index + 1].start != period.end:
            slices.append(Slice(start, period.end, rows))
            start, rows = None, 0
    return slices


def _between_spans(moment: datetime, spans: Sequence[datetime], counts: Mapping[datetime, Counted]) -> datetime:
    """`moment`, or the beginning of the counted span that it would split: the count of a part of a span is unknown."""
    index = bisect_right(spans, moment) - 1
    last = counts[spans[index]].last if index >= 0 else None
    return moment if last is None or last < moment else spans[index]


def _publish_all(
    store: ObjectStore,
    periods: Sequence[_Period],
    parts: Iterator[tuple[Slice, pa.Table]],
    now: datetime,
    published: list[ArchivedHour],
) -> None:
    """Write every period and finish several in parallel; each is appended to `published` once it is published."""
    pending: list[Future[None]] = []
    file: PeriodFile | None = None
    upcoming = iter(periods)
    period = next(upcoming, None)
    with closing(parts), ThreadPoolExecutor(WRITERS) as pool:  # type: ignore[type-var]  # it is a generator
        try:
            for part, table in parts:
                while period is not None and period.start < part.end:
                    file = file or PeriodFile(store, period.key, merge_existing=period.exists)
                    start, end = max(period.start, part.start), min(period.end, part.end)
                    file.add(_between(table, start, end), start, end)
                    if end < period.end:
                        break
                    pending.append(pool.submit(_finish, file, period, now, published))
                    file, period = None, next(upcoming, None)
                    if len(pending) > 4 * WRITERS:
                        pending.pop(0).result()
            for future in pending:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            if file is not None:
                file.close()


def _finish(file: PeriodFile, period: _Period, now: datetime, published: list[ArchivedHour]) -> None:
    with closing(file):
        result = file.publish(period.counted)
    published.append(archived_row(period.start, period.key, period.counted, result, now))


def archived_row(start: datetime, key: str, in_database: Counted, published: Published, now: datetime) -> ArchivedHour:
    """The row for a published file and the events that PostgreSQL held at `now`."""
    return ArchivedHour(
        hour=start,
        key=key,
        database_rows=in_database.rows,
        checksum=in_database.checksum,
        file_rows=published.counted.rows,
        file_checksum=published.counted.checksum,
        first_event=published.counted.first,
        last_event=published.counted.last,
        bytes=published.facts.size,
        sha256=published.facts.sha256,
        archived_at=now,
    )


def _result(hour: ArchivedHour, written: bool) -> PeriodArchive:
    return PeriodArchive(hour.hour, hour.key, hour.file_rows, hour.database_rows, hour.bytes, written)


def _between(table: pa.Table, start: datetime, end: datetime) -> pa.Table:
    if not table.num_rows:
        return table
    times = table["timestamp"].combine_chunks().cast(pa.int64()).to_numpy()
    low, high = times.searchsorted([microseconds(start), microseconds(end)])
    return table.slice(low, high - low)


def _totals(
    counts: Mapping[datetime, Counted], period_of_moment: Callable[[datetime], datetime]
) -> dict[datetime, Counted]:
    totals: dict[datetime, Counted] = {}
    for span, counted in counts.items():
        period = period_of_moment(span)
        totals[period] = totals.get(period, Counted()) + counted
    return totals


def _month_of(moment: datetime) -> datetime:
    return hour_of(moment).replace(day=1, hour=0)
