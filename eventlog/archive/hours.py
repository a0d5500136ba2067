"""`exp.archived_hours` and `exp.restored_days`: what the archive holds of each hour, which hours wait for it, which days are restored.

An hour's row describes its file and PostgreSQL's events at the same moment, so that a count shows whether more events have come since.
A month of history has a row too, at its first hour.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, scalar_row, tuple_row

from eventlog.partitions import midnight
from foundation import locks

HOUR = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class ArchivedHour:
    """An hour or a month of history, as last archived; the fields are the table's columns."""

    hour: datetime
    key: str
    database_rows: int
    checksum: int
    file_rows: int
    file_checksum: int
    first_event: datetime | None
    last_event: datetime | None
    bytes: int
    sha256: str
    archived_at: datetime


_COLUMNS = tuple(ArchivedHour.__dataclass_fields__)
_LISTED = ", ".join(_COLUMNS)
_READ = f"SELECT {_LISTED} FROM exp.archived_hours WHERE hour >= %s AND hour < %s ORDER BY hour"
_RECORD = f"""
INSERT INTO exp.archived_hours ({_LISTED}) VALUES ({", ".join(f"%({name})s" for name in _COLUMNS)})
ON CONFLICT (hour) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])}
"""
# An hour stays late if an event came, and was marked, after the archive counted. Months of history are never queued.
_SETTLE = """
UPDATE exp.archived_hours AS archived SET late = false
WHERE late AND hour = ANY(%s) AND (key LIKE 'events/history/%%' OR database_rows = (
    SELECT count(*) FROM exp.events
    WHERE "timestamp" >= archived.hour AND "timestamp" < archived.hour + interval '1 hour'))
"""
_DROPPED = """
UPDATE exp.archived_hours SET database_rows = 0, checksum = 0, late = EXISTS (
    SELECT FROM exp.events WHERE "timestamp" >= hour AND "timestamp" < hour + interval '1 hour')
WHERE hour >= %s AND hour < %s
"""

# `EXISTS` stops at an hour's first event, and PostgreSQL reads only the partition of that day.
_MISSING = """
SELECT missing.hour
FROM generate_series(%(start)s::timestamptz, %(end)s::timestamptz - interval '1 hour', interval '1 hour') AS missing (hour)
WHERE NOT EXISTS (SELECT FROM exp.archived_hours AS archived WHERE archived.hour = missing.hour)
  AND EXISTS (SELECT FROM exp.events WHERE "timestamp" >= missing.hour AND "timestamp" < missing.hour + interval '1 hour')
"""
_LATE = "SELECT hour FROM exp.archived_hours WHERE late AND hour >= %(start)s AND hour < %(end)s"
# An event's `created_at` is the start of its transaction, and it is visible once that ends: all events created before the start of the
# oldest open transaction have been seen.
_EDGE = """
SELECT least(clock_timestamp(), min(xact_start)) - interval '1 second'
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_ARRIVED_FOR = """
SELECT date_trunc('hour', "timestamp", 'UTC') AS hour, max(created_at) AS latest
FROM exp.events WHERE created_at >= (SELECT seen_until FROM exp.archive_watch) AND "timestamp" >= %(start)s GROUP BY 1
"""
_MARK = f"""
UPDATE exp.archived_hours AS archived SET late = true
FROM ({_ARRIVED_FOR}) AS arrived
WHERE archived.hour = arrived.hour AND NOT archived.late AND archived.database_rows <> (
    SELECT count(*) FROM exp.events
    WHERE "timestamp" >= archived.hour AND "timestamp" < archived.hour + interval '1 hour')
"""
_JUST_ARRIVED = f"""
SELECT archived.hour FROM exp.archived_hours AS archived JOIN ({_ARRIVED_FOR}) AS arrived USING (hour)
WHERE NOT archived.late AND arrived.latest > archived.archived_at AND archived.hour < %(end)s
"""
_RESTORED = """
INSERT INTO exp.restored_days (day, rows, keep_until) VALUES (%s, %s, %s)
ON CONFLICT (day) DO UPDATE SET rows = excluded.rows, restored_at = now(), keep_until = excluded.keep_until
"""


@contextmanager
def archive_lock(connection: psycopg.Connection[Any], days: Iterable[date]) -> Iterator[None]:
    """Lock the files of these days for the block, across transactions; other writers wait. History uses `date.min`.

    Raises ValueError unless the connection is idle: an open transaction could read data older than the lock.
    """
    if connection.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("The archive needs a connection without an open transaction: commit first.")
    # In order: otherwise two writers with overlapping days would deadlock.
    ordered = sorted(set(days))
    with connection.transaction():
        for day in ordered:
            locks.lock_archive_day(connection, day)
    try:
        yield
    finally:
        if not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE:
            with connection.transaction():
                for day in ordered:
                    locks.unlock_archive_day(connection, day)


def hold_archive(connection: psycopg.Connection[Any], days: Iterable[date]) -> None:
    """Lock the files of these days until the caller's transaction ends. Call it before taking locks that the archive may wait for."""
    for day in sorted(set(days)):
        locks.hold_archive_day(connection, day)


def archived_hours(connection: psycopg.Connection[Any], start: datetime, end: datetime) -> dict[datetime, ArchivedHour]:
    """The archived hours (or history months) that begin in [start, end), by their beginning in UTC, in order."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = [_from_row(columns) for columns in cursor.execute(_READ, (start, end))]
    return {row.hour: row for row in rows}


def _from_row(columns: dict[str, Any]) -> ArchivedHour:
    moments = {name: value.astimezone(UTC) for name, value in columns.items() if isinstance(value, datetime)}
    sums = {name: int(columns[name]) for name in ("checksum", "file_checksum")}
    return ArchivedHour(**{**columns, **moments, **sums})


def record_archived(
    connection: psycopg.Connection[Any], hours: Sequence[ArchivedHour], unchanged: Sequence[ArchivedHour] = ()
) -> None:
    """Record archived hours in the caller's transaction; the archive of `unchanged` hours was up to date already.

    None of them is late any more, unless more events came since it was counted.
    """
    with connection.cursor() as cursor:
        # Keeps `mark_late_hours` from running meanwhile: otherwise its new marks could be removed here.
        cursor.execute("SELECT FROM exp.archive_watch FOR SHARE")
        cursor.executemany(_RECORD, [asdict(hour) for hour in hours])
        cursor.execute(_SETTLE, ([hour.hour for hour in (*hours, *unchanged)],))


def record_dropped(connection: psycopg.Connection[Any], day: date) -> None:
    """Record in the caller's transaction that PostgreSQL's events of the day are dropped; any it holds now are late."""
    start = midnight(day)
    connection.execute(_DROPPED, (start, start + timedelta(days=1)))


def record_late(connection: psycopg.Connection[Any], hour: datetime) -> None:
    """Record in the caller's transaction that an archived hour has events that are not in its file."""
    connection.execute("UPDATE exp.archived_hours SET late = true WHERE hour = %s", (hour,))


def mark_late_hours(connection: psycopg.Connection[Any], first_day: date) -> None:
    """Mark archived hours that have received events since as late, in a separate transaction; archiving removes the mark.

    Reads the events created since its last call (an index scan), and counts the events of their hours.
    """
    with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        cursor.execute("SELECT seen_until FROM exp.archive_watch FOR UPDATE")
        edge = cursor.execute(_EDGE).fetchone()
        cursor.execute(_MARK, {"start": midnight(first_day)})
        cursor.execute("UPDATE exp.archive_watch SET seen_until = greatest(seen_until, %s)", (edge,))


def waiting_hours(connection: psycopg.Connection[Any], first_day: date, now: datetime) -> list[datetime]:
    """The full hours since `first_day` with events that are not archived, in order: hours never archived, or marked as late."""
    bounds = _bounds(first_day, now)
    with connection.cursor(row_factory=scalar_row) as cursor:
        hours = [*cursor.execute(_MISSING, bounds), *cursor.execute(_LATE, bounds)]
    return sorted(hour.astimezone(UTC) for hour in hours)


def anything_archived(connection: psycopg.Connection[Any]) -> bool:
    """Whether any hour was ever archived."""
    return connection.execute("SELECT 1 FROM exp.archived_hours LIMIT 1").fetchone() is not None


def archive_queue(connection: psycopg.Connection[Any], first_day: date, now: datetime) -> int:
    """The number of full hours since `first_day` with events that are not archived.

    Cheap enough to run every minute: it reads the rows of `exp.archived_hours`, looks for a first event in each hour without a row, and
    scans by index the events created since the last call of `mark_late_hours`.
    """
    bounds = _bounds(first_day, now)
    with connection.cursor(row_factory=scalar_row) as cursor:
        just_arrived = cursor.execute(_JUST_ARRIVED, bounds).fetchall()
    return len(waiting_hours(connection, first_day, now)) + len(just_arrived)


def hour_of(moment: datetime) -> datetime:
    """The beginning of a moment's hour, in UTC."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _bounds(first_day: date, now: datetime) -> dict[str, datetime]:
    return {
        "start": midnight(first_day),
        "end": hour_of(now),
    }


def last_arrival(connection: psycopg.Connection[Any]) -> datetime | None:
    """When the latest event was stored; None if there are no events."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute("SELECT max(created_at) FROM exp.events").fetchone()


def record_restored(connection: psycopg.Connection[Any], day: date, rows: int, keep_until: datetime) -> None:
    """Record a restored day in the caller's transaction."""
    connection.execute(_RESTORED, (day, rows, keep_until))


def kept_until(connection: psycopg.Connection[Any]) -> dict[date, datetime]:
    """The restored days, and until when retention must keep each."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return dict(cursor.execute("SELECT day, keep_until FROM exp.restored_days").fetchall())


def forget_restored(connection: psycopg.Connection[Any], day: date) -> None:
    """Record in the caller's transaction that a restored day is dropped again."""
    connection.execute("DELETE FROM exp.restored_days WHERE day = %s", (day,))
