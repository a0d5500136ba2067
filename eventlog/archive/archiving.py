"""The archive of `exp.events`: one Parquet file an hour, one a month for history; each counted against PostgreSQL before it shows."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
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
from eventlog.archive.hours import HOUR, ArchivedHour, archive_lock, archived_hours
from eventlog.archive.manifest import record_files
from eventlog.archive.period_file import ArchiveError, PeriodFile, Published
from eventlog.archive.reader import Slice, read_slices, snapshot
from foundation.object_store import FileFacts, ObjectStore

SLICE_ROWS = 32_768
"""Events held at once by each reader. What shares a minute (in history: a day) is never cut."""
WRITERS = 8
"""Files finished at once: finishing is mostly waiting (fsync, S3), an hour of events small."""
DAYS_AT_ONCE = 7
"""Days archived in one snapshot: longer ones would keep PostgreSQL from cleaning up."""


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


@dataclass(frozen=True)
class _Period:
    """What is to be archived under one key. `cuts`: where to cut besides, as the file that is there is big."""

    start: datetime
    end: datetime
    key: str
    counted: Counted
    held: bool
    cuts: tuple[datetime, ...] = ()


def archive_hours(
    connection: psycopg.Connection[Any],
    store: ObjectStore,
    start: datetime,
    end: datetime,
    source: sql.Identifier = EVENTS,
) -> list[PeriodArchive]:
    """Archive every hour of [start, end); empty hours too. In order of time.

    `start` and `end` are whole hours with a time zone, `connection` is idle, `source` a table of events. Rows and counts are read in one
    snapshot; an hour that is archived as it stands is only looked at. Each hour is published by itself: what was published before a
    failure stays. Raises ArchiveError, EventReadError, foundation.object_store.StoreError.
    """
    for moment in (start, end):
        if moment.utcoffset() is None or moment.astimezone(UTC) != _hour_of(moment):
            raise ValueError(f"{moment} is no whole hour with a time zone.")
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    store.sweep()
    done: list[PeriodArchive] = []
    while start < end:
        until = min(end, start.replace(hour=0) + timedelta(days=DAYS_AT_ONCE))
        hours = [start + HOUR * index for index in range((until - start) // HOUR)]
        days = sorted({hour.date() for hour in hours})
        with archive_lock(connection, days):
            held = {key for day in days for key in archived_keys(store, day_folder(day))}

            def periods(
                counts: Mapping[datetime, Counted], hours: list[datetime] = hours, held: set[str] = held
            ) -> list[_Period]:
                totals = _totals(counts, _hour_of)
                return [
                    _Period(hour, hour + HOUR, key, totals.get(hour, Counted()), key in held)
                    for hour in hours
                    for key in [hour_key(hour)]
                ]

            done += _archive(connection, store, source, (start, until, "1 minute"), periods)
        start = until
    return done


def archive_history(connection: psycopg.Connection[Any], store: ObjectStore, first_day: date) -> list[PeriodArchive]:
    """Archive everything before `first_day` (UTC), one file a month; months without events get none. In order of time.

    The same guarantees as `archive_hours`. Raises ArchiveError, EventReadError, foundation.object_store.StoreError.
    """
    end = datetime.combine(first_day, time(), UTC)
    with archive_lock(connection, [date.min]):
        held = set(archived_keys(store, HISTORY_FOLDER))

        def periods(counts: Mapping[datetime, Counted]) -> list[_Period]:
            return [
                _Period(
                    month, min(end, period_of(month_key(month))[1]), month_key(month), counted, month_key(month) in held
                )
                for month, counted in _totals(counts, _month_of).items()
            ]

        return _archive(connection, store, EVENTS, (None, end, "1 day"), periods)


def _archive(
    connection: psycopg.Connection[Any],
    store: ObjectStore,
    source: sql.Identifier,
    span: tuple[datetime | None, datetime, str],
    periods_of: Callable[[Mapping[datetime, Counted]], list[_Period]],
) -> list[PeriodArchive]:
    """Count, read what changed, publish it, and note it even when a later period fails."""
    start, end, width = span
    published: list[ArchivedHour] = []
    try:
        with snapshot(connection) as shared, connection.cursor(row_factory=tuple_row) as cursor:
            ((now,),) = cursor.execute("SELECT now()").fetchall()
            counts = count_in_database(connection, width, start, end, source)
            periods = periods_of(counts)
            known = archived_hours(connection, periods[0].start, periods[-1].end) if periods else {}
            as_before = {
                one.key: known[one.start] for one in periods if _is_as_before(store, one, known.get(one.start))
            }
            todo = [_with_cuts(store, one, known.get(one.start)) for one in periods if one.key not in as_before]
            slices = _slices(todo, counts)
            _publish_all(store, todo, read_slices(connection, shared, source, slices), now, published)
    except BaseException:
        if not connection.closed:
            record_files(connection, store, published)
        raise
    record_files(connection, store, published, list(as_before.values()))
    written = {one.key: one for one in published}
    return [_result(written.get(one.key) or as_before[one.key], one.key in written) for one in periods]


def _is_as_before(store: ObjectStore, period: _Period, known: ArchivedHour | None) -> bool:
    """Whether the file holds what PostgreSQL has, by both counts and by the file's own digest."""
    if known is None:
        return False
    if not period.held and known.file_rows > period.counted.rows:
        raise ArchiveError(
            f"{period_name(period.key)}: {known.file_rows} events were archived, and their file {store.uri(period.key)} is gone. "
            "Bring it back from a backup of the store, or correct LIFECYCLE_STORE."
        )
    same = (known.database_rows, known.checksum) == (period.counted.rows, period.counted.checksum)
    return same and store.facts(period.key) == FileFacts(known.bytes, known.sha256)


def _with_cuts(store: ObjectStore, period: _Period, known: ArchivedHour | None) -> _Period:
    if not period.held or (known is not None and known.file_rows <= SLICE_ROWS):
        return period
    with open_archive(store, period.key) as file:
        return replace(period, cuts=tuple(file.first_times())) if file.rows > SLICE_ROWS else period


def _slices(periods: Sequence[_Period], counts: Mapping[datetime, Counted]) -> list[Slice]:
    """The periods' time in slices of at most SLICE_ROWS events, as far as they can be cut; small periods share one."""
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
    """`moment`, or the beginning of the counted span that it would cut: of a part of one, nobody knows how many events it has."""
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
    """Write every period and finish some at once; each is appended to `published` once it shows."""
    pending: list[Future[None]] = []
    file: PeriodFile | None = None
    upcoming = iter(periods)
    period = next(upcoming, None)
    with closing(parts), ThreadPoolExecutor(WRITERS) as pool:  # type: ignore[type-var]  # it is a generator
        try:
            for part, table in parts:
                while period is not None and period.start < part.end:
                    file = file or PeriodFile(store, period.key, held=period.held)
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
        done = file.publish(period.counted)
    published.append(archived_row(period.start, period.key, period.counted, done, now))


def archived_row(start: datetime, key: str, in_database: Counted, done: Published, now: datetime) -> ArchivedHour:
    """What is noted of a file that was published, and of the events that PostgreSQL held at `now`."""
    return ArchivedHour(
        hour=start,
        key=key,
        database_rows=in_database.rows,
        checksum=in_database.checksum,
        file_rows=done.counted.rows,
        file_checksum=done.counted.checksum,
        first_event=done.counted.first,
        last_event=done.counted.last,
        bytes=done.facts.size,
        sha256=done.facts.sha256,
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


def _hour_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _month_of(moment: datetime) -> datetime:
    return _hour_of(moment).replace(day=1, hour=0)
