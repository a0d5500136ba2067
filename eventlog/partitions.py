"""The daily partitions of `exp.events`, and the one that holds all history before the first day.

There is no default partition: rows in it would later block the creation of their day's own partition, and an event of a day without
a partition should fail at once.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from foundation import locks
from foundation.errors import LifecycleError

HISTORY = "events_history"
LEAVING = "_leaving"
RENAME_TIMEOUT = "2s"
"""While a rename waits for its lock, every later reader of the partition waits too, so the wait is short."""

# Bounds are cast to points in time, because their text depends on the session's time zone. Partitions being detached do not count.
EXISTING_PARTITIONS = r"""
SELECT c.relname, (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'exp.events'::regclass AND NOT i.inhdetachpending
"""
_LEAVING_DAYS = r"""
SELECT c.relname, i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE n.nspname = 'exp' AND c.relkind = 'r' AND c.relname ~ '^events_\d{8}_leaving$' ORDER BY 1
"""


@dataclass(frozen=True)
class LeavingDay:
    """A day's partition on its way out: a separate table once it is not `attached`; `pending` if its detaching was interrupted."""

    name: str
    attached: bool
    pending: bool

    @property
    def day(self) -> date:
        """The day whose events it holds."""
        return datetime.strptime(self.name, f"events_%Y%m%d{LEAVING}").date()

    @property
    def table(self) -> sql.Identifier:
        """Its table."""
        return sql.Identifier("exp", self.name)


def ensure_event_partitions(
    connection: psycopg.Connection[Any], first_day: date, days_ahead: int = 7, keep_days: int | None = None
) -> int:
    """Create the history partition (before `first_day`, UTC) and a partition for each day up to `days_ahead` days from today.

    Days more than `keep_days` ago are left out, because retention may have dropped them. Returns the number of partitions created: 0 if
    all exist. Processes may call it at the same time, and inserts continue meanwhile. Raises LifecycleError if the history partition
    ends on a day other than `first_day`: the first day of an installation never changes.
    """
    today = datetime.now(UTC).date()
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        ends = _lock_and_list_ends(cursor)
        start = midnight(first_day)
        created = 0
        if HISTORY not in ends:
            _create_and_attach(cursor, HISTORY, None, start)
            created = 1
        elif ends[HISTORY] != start:
            history_end = f"{ends[HISTORY].astimezone(UTC):%Y-%m-%d}"
            raise LifecycleError(
                f"This database's history ends on {history_end}, but LIFECYCLE_FIRST_DAY is {first_day}: "
                f"set it to {history_end}, or use another database."
            )
        begin = first_day if keep_days is None else max(first_day, today - timedelta(days=keep_days))
        count = (today + timedelta(days=days_ahead) - begin).days + 1
        return created + _create_missing(cursor, ends, [begin + timedelta(days=index) for index in range(count)])


def ensure_event_days(connection: psycopg.Connection[Any], days: Collection[date]) -> int:
    """Create the missing partitions of exactly these days (UTC), for late events and restores; days of history need none.

    Returns the number created; processes may call it at the same time. Raises LifecycleError if there is no history partition yet.
    """
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        ends = _lock_and_list_ends(cursor)
        if HISTORY not in ends:
            raise LifecycleError(
                "This database has no partitions of events yet: start the platform once with `lifecycle up`."
            )
        first_day = ends[HISTORY].astimezone(UTC).date()
        return _create_missing(cursor, ends, [day for day in sorted(set(days)) if day >= first_day])


def event_days(connection: psycopg.Connection[Any]) -> list[date]:
    """The days that have a partition, in order."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(EXISTING_PARTITIONS).fetchall()
    return sorted((end.astimezone(UTC) - timedelta(days=1)).date() for name, end in rows if name != HISTORY)


def leaving_days(connection: psycopg.Connection[Any]) -> list[LeavingDay]:
    """The days that `detach_day` has begun to detach and that are not dropped yet."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return [LeavingDay(*row) for row in cursor.execute(_LEAVING_DAYS)]


def detach_day(connection: psycopg.Connection[Any], day: date) -> LeavingDay:
    """Detach a day's partition from `exp.events`, which leaves a separate table. If interrupted, call it again.

    `connection` is in autocommit mode. The partition is renamed first, so that a late event of that day can get a new one at once.
    Raises psycopg.errors.LockNotAvailable if transactions that use it stay open longer than the session's `lock_timeout`.
    """
    name = f"events_{day:%Y%m%d}{LEAVING}"
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        ends = _lock_and_list_ends(cursor)
        end = midnight(day) + timedelta(days=1)
        attached = [partition for partition, partition_end in ends.items() if partition_end == end]
        if not any(leaving.name == name for leaving in leaving_days(connection)):
            cursor.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(RENAME_TIMEOUT)))
            cursor.execute(
                sql.SQL("ALTER TABLE {} RENAME TO {}").format(sql.Identifier("exp", attached[0]), sql.Identifier(name))
            )
    for leaving in leaving_days(connection):
        if leaving.name == name and leaving.attached:
            mode = sql.SQL("FINALIZE" if leaving.pending else "CONCURRENTLY")
            connection.execute(sql.SQL("ALTER TABLE exp.events DETACH PARTITION {} {}").format(leaving.table, mode))
    return LeavingDay(name, attached=False, pending=False)


def midnight(day: date) -> datetime:
    """The first moment of a day in UTC."""
    return datetime.combine(day, time(), UTC)


def _lock_and_list_ends(cursor: psycopg.Cursor[Any]) -> dict[str, datetime]:
    """The end of each partition, by name. No other process can change partitions until the transaction ends."""
    locks.hold(cursor, locks.PARTITIONS)
    return dict(cursor.execute(EXISTING_PARTITIONS).fetchall())


def _create_missing(cursor: psycopg.Cursor[Any], ends: dict[str, datetime], days: Collection[date]) -> int:
    created = 0
    existing_ends = set(ends.values())
    for start in map(midnight, days):
        end = start + timedelta(days=1)
        if end not in existing_ends:
            _finish_detaching(cursor, start.date())
            _create_and_attach(cursor, _free_name(cursor, f"events_{start:%Y%m%d}"), start, end)
            created += 1
    return created


def _free_name(cursor: psycopg.Cursor[Any], name: str) -> str:
    """`name`, with a number appended if a table has that name already: someone may have set a day's table aside by hand."""
    free, number = name, 1
    while cursor.execute("SELECT to_regclass(%s)", (f"exp.{free}",)).fetchone() != (None,):
        number += 1
        free = f"{name}_{number}"
    return free


def _finish_detaching(cursor: psycopg.Cursor[Any], day: date) -> None:
    """Finish an interrupted detach: until then the old partition still claims its day."""
    for leaving in leaving_days(cursor.connection):
        if leaving.pending and leaving.day == day:
            cursor.execute(sql.SQL("ALTER TABLE exp.events DETACH PARTITION {} FINALIZE").format(leaving.table))


def _create_and_attach(cursor: psycopg.Cursor[Any], name: str, start: datetime | None, end: datetime) -> None:
    """Create the table first and then attach it: `PARTITION OF` would block all readers and writers of events."""
    partition = sql.Identifier("exp", name)
    lower = sql.SQL("MINVALUE") if start is None else sql.Literal(start)
    cursor.execute(
        sql.SQL("CREATE TABLE {} (LIKE exp.events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)").format(partition)
    )
    cursor.execute(
        sql.SQL("ALTER TABLE exp.events ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            partition, lower, sql.Literal(end)
        )
    )
