"""`exp.archived_hours` and `exp.restored_days`: what the archive holds of each hour, which hours wait for it, which days came back.

An hour's row tells of its file and of PostgreSQL's events at the same moment, so a count tells whether more came since. A month of
history has a row too, at its first hour.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, scalar_row, tuple_row

from foundation import locks

HOUR = timedelta(hours=1)
# Any constant will do, as long as every process takes the same one.


@dataclass(frozen=True, kw_only=True)
class ArchivedHour:
    """One hour, or month of history, as it was last archived; the fields are the table's columns."""

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
# An event may have come, and been marked, after the archive counted: then the hour stays late. A month of history is nobody's queue.
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

# `EXISTS` stops at an hour's first event, and PostgreSQL looks into that hour's day only.
_MISSING = """
SELECT missing.hour
FROM generate_series(%(start)s::timestamptz, %(end)s::timestamptz - interval '1 hour', interval '1 hour') AS missing (hour)
WHERE NOT EXISTS (SELECT FROM exp.archived_hours AS archived WHERE archived.hour = missing.hour)
  AND EXISTS (SELECT FROM exp.events WHERE "timestamp" >= missing.hour AND "timestamp" < missing.hour + interval '1 hour')
"""
_LATE = "SELECT hour FROM exp.archived_hours WHERE late AND hour >= %(start)s AND hour < %(end)s"
# An event is visible once its transaction ends, and has the time at which that began: up to the oldest open transaction all were seen.
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
    """The right to write these days' files (a history month's is its first day): others wait, whatever their connection does.

    The connection must be idle: what is read inside must not be older than the lock. Raises ValueError where it is not.
    """
    if connection.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("The archive needs a connection without an open transaction: commit first.")
    # In order: two writers with overlapping days would wait for each other.
    keys = [(locks.ARCHIVE, day.toordinal()) for day in sorted(set(days))]
    with connection.transaction():
        for key in keys:
            connection.execute("SELECT pg_advisory_lock(%s, %s)", key)
    try:
        yield
    finally:
        if not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE:
            with connection.transaction():
                for key in keys:
                    connection.execute("SELECT pg_advisory_unlock(%s, %s)", key)


def hold_archive(connection: psycopg.Connection[Any], days: Iterable[date]) -> None:
    """The same right until the caller's transaction ends. Take it before what the archive may wait for."""
    for day in sorted(set(days)):
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (locks.ARCHIVE, day.toordinal()))


def archived_hours(connection: psycopg.Connection[Any], start: datetime, end: datetime) -> dict[datetime, ArchivedHour]:
    """What is known of the hours (or history months) that begin in [start, end), by their beginning in UTC, in order."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = [_archived(columns) for columns in cursor.execute(_READ, (start, end))]
    return {row.hour: row for row in rows}


def _archived(columns: dict[str, Any]) -> ArchivedHour:
    moments = {name: value.astimezone(UTC) for name, value in columns.items() if isinstance(value, datetime)}
    sums = {name: int(columns[name]) for name in ("checksum", "file_checksum")}
    return ArchivedHour(**{**columns, **moments, **sums})


def record_archived(
    connection: psycopg.Connection[Any], hours: Sequence[ArchivedHour], unchanged: Sequence[ArchivedHour] = ()
) -> None:
    """Note what was archived, in the caller's transaction; `unchanged` hours were found to be archived as they stand.

    What was late before is not any more, unless more came since it was counted.
    """
    with connection.cursor() as cursor:
        # `mark_late_hours` waits, or is through: else its marks could be taken away unseen.
        cursor.execute("SELECT FROM exp.archive_watch FOR SHARE")
        cursor.executemany(_RECORD, [asdict(hour) for hour in hours])
        cursor.execute(_SETTLE, ([hour.hour for hour in (*hours, *unchanged)],))


def record_dropped(connection: psycopg.Connection[Any], day: date) -> None:
    """Note that what PostgreSQL held of the day is gone, in the caller's transaction: whatever it holds now is late."""
    start = datetime.combine(day, time(), UTC)
    connection.execute(_DROPPED, (start, start + timedelta(days=1)))


def record_late(connection: psycopg.Connection[Any], hour: datetime) -> None:
    """Note that an archived hour has events that are not in its file, in the caller's transaction."""
    connection.execute("UPDATE exp.archived_hours SET late = true WHERE hour = %s", (hour,))


def mark_late_hours(connection: psycopg.Connection[Any], first_day: date) -> None:
    """Mark the archived hours that got events since, in a transaction of its own; archiving them again takes the mark away.

    Looks at events that came since it was last called (an index scan), and counts the archived hours among theirs.
    """
    with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        cursor.execute("SELECT seen_until FROM exp.archive_watch FOR UPDATE")
        edge = cursor.execute(_EDGE).fetchone()
        cursor.execute(_MARK, {"start": datetime.combine(first_day, time(), UTC)})
        cursor.execute("UPDATE exp.archive_watch SET seen_until = greatest(seen_until, %s)", (edge,))


def waiting_hours(connection: psycopg.Connection[Any], first_day: date, now: datetime) -> list[datetime]:
    """The full hours since `first_day` that have events which are not archived, in order: never archived, or late as marked."""
    bounds = _bounds(first_day, now)
    with connection.cursor(row_factory=scalar_row) as cursor:
        found = [*cursor.execute(_MISSING, bounds), *cursor.execute(_LATE, bounds)]
    return sorted(hour.astimezone(UTC) for hour in found)


def anything_archived(connection: psycopg.Connection[Any]) -> bool:
    """Whether any hour was ever archived."""
    return connection.execute("SELECT 1 FROM exp.archived_hours LIMIT 1").fetchone() is not None


def archive_queue(connection: psycopg.Connection[Any], first_day: date, now: datetime) -> int:
    """How many full hours since `first_day` have events that are not archived.

    Cheap enough for every minute: it reads the rows of `exp.archived_hours`, looks for a first event in the hours without a row, and
    scans by index what came since `mark_late_hours` was last called.
    """
    bounds = _bounds(first_day, now)
    with connection.cursor(row_factory=scalar_row) as cursor:
        just_arrived = cursor.execute(_JUST_ARRIVED, bounds).fetchall()
    return len(waiting_hours(connection, first_day, now)) + len(just_arrived)


def _bounds(first_day: date, now: datetime) -> dict[str, datetime]:
    return {
        "start": datetime.combine(first_day, time(), UTC),
        "end": now.astimezone(UTC).replace(minute=0, second=0, microsecond=0),
    }


def last_arrival(connection: psycopg.Connection[Any]) -> datetime | None:
    """When the latest event was stored, or None where there is none."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute("SELECT max(created_at) FROM exp.events").fetchone()


def record_restored(connection: psycopg.Connection[Any], day: date, rows: int, keep_until: datetime) -> None:
    """Note a day that came back from the archive, in the caller's transaction."""
    connection.execute(_RESTORED, (day, rows, keep_until))


def kept_until(connection: psycopg.Connection[Any]) -> dict[date, datetime]:
    """Restored days, and until when retention leaves each alone."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return dict(cursor.execute("SELECT day, keep_until FROM exp.restored_days").fetchall())


def forget_restored(connection: psycopg.Connection[Any], day: date) -> None:
    """Note that a restored day is gone again, in the caller's transaction."""
    connection.execute("DELETE FROM exp.restored_days WHERE day = %s", (day,))
