"""The daily partitions of `exp.events`, and the one that holds all history before the first day.

There is no default partition: rows that fell into one would later keep their day's own partition from being made, and a day
that nobody prepared for should be heard of at once.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from experimentation.runs.run import ExperimentationError
from foundation import locks

HISTORY = "events_history"
LEAVING = "_leaving"
RENAME_TIMEOUT = "2s"
"""Whoever waits to rename a partition holds up everyone who reads it after, so the wait is short."""
# Any constant will do, as long as every process takes the same one.

# Bounds are read back as points in time: their text depends on the session's time zone. One that is being detached counts no more.
EXISTING_PARTITIONS = r"""
SELECT c.relname, (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'exp.events'::regclass AND NOT i.inhdetachpending
"""
_LEFT_BEHIND = r"""
SELECT c.relname, i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE n.nspname = 'exp' AND c.relkind = 'r' AND c.relname ~ '^events_\d{8}_leaving$' ORDER BY 1
"""


@dataclass(frozen=True)
class LeavingDay:
    """A day's partition on its way out: a table of its own once it is not `attached`; `pending` when its detaching was interrupted."""

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
    """Make the history partition (all before `first_day`, UTC) and a day each from `first_day` to `days_ahead` days from today.

    With `keep_days`, days longer ago are left out: retention may have dropped them. Returns how many were made; again makes none, and
    two processes may call it at once. Inserts go on meanwhile. Raises ExperimentationError when the history partition ends on another day
    than `first_day`: the first day of an installation does not move.
    """
    today = datetime.now(UTC).date()
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        ends = _existing(cursor)
        start = _midnight(first_day)
        made = 0
        if HISTORY not in ends:
            _attach(cursor, HISTORY, None, start)
            made = 1
        elif ends[HISTORY] != start:
            raise ExperimentationError(
                f"This database's history ends on {ends[HISTORY].astimezone(UTC):%Y-%m-%d} and the first day is set to {first_day}: "
                "set LIFECYCLE_FIRST_DAY to that day, or use another database."
            )
        begin = first_day if keep_days is None else max(first_day, today - timedelta(days=keep_days))
        count = (today + timedelta(days=days_ahead) - begin).days + 1
        return made + _make(cursor, ends, [begin + timedelta(days=index) for index in range(count)])


def ensure_event_days(connection: psycopg.Connection[Any], days: Collection[date]) -> int:
    """Make the partitions of exactly these days (UTC), for late events and for restores; those of history are there already.

    Returns how many were made; two processes may call it at once. Raises ExperimentationError before there is a history partition.
    """
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        ends = _existing(cursor)
        if HISTORY not in ends:
            raise ExperimentationError(
                "This database has no partitions of events yet: start the platform once with `lifecycle up`."
            )
        first_day = ends[HISTORY].astimezone(UTC).date()
        return _make(cursor, ends, [day for day in sorted(set(days)) if day >= first_day])


def event_days(connection: psycopg.Connection[Any]) -> list[date]:
    """The days that have a partition, in order."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(EXISTING_PARTITIONS).fetchall()
    return sorted((end.astimezone(UTC) - timedelta(days=1)).date() for name, end in rows if name != HISTORY)


def leaving_days(connection: psycopg.Connection[Any]) -> list[LeavingDay]:
    """The days that an earlier `take_out` began with and that are not dropped yet."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return [LeavingDay(*row) for row in cursor.execute(_LEFT_BEHIND)]


def take_out(connection: psycopg.Connection[Any], day: date) -> LeavingDay:
    """Make a day's partition a table of its own, which takes part in nothing any more. May be interrupted, and called again.

    `connection` is in autocommit mode. It is renamed first, so that a late event of that day can get a new partition at once. Raises
    psycopg.errors.LockNotAvailable when transactions that use it stay open longer than the session's `lock_timeout`.
    """
    name = f"events_{day:%Y%m%d}{LEAVING}"
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        ends = _existing(cursor)
        end = _midnight(day) + timedelta(days=1)
        attached = [existing for existing, its_end in ends.items() if its_end == end]
        if not any(leaving.name == name for leaving in leaving_days(connection)):
            cursor.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(RENAME_TIMEOUT)))
            cursor.execute(
                sql.SQL("ALTER TABLE {} RENAME TO {}").format(sql.Identifier("exp", attached[0]), sql.Identifier(name))
            )
    for leaving in leaving_days(connection):
        if leaving.name == name and leaving.attached:
            how = sql.SQL("FINALIZE" if leaving.pending else "CONCURRENTLY")
            connection.execute(sql.SQL("ALTER TABLE exp.events DETACH PARTITION {} {}").format(leaving.table, how))
    return LeavingDay(name, attached=False, pending=False)


def _existing(cursor: psycopg.Cursor[Any]) -> dict[str, datetime]:
    """The partitions and where each ends, with the right to change them until the transaction ends."""
    locks.hold(cursor, locks.PARTITIONS)
    return dict(cursor.execute(EXISTING_PARTITIONS).fetchall())


def _make(cursor: psycopg.Cursor[Any], ends: dict[str, datetime], days: Collection[date]) -> int:
    made = 0
    there = set(ends.values())
    for start in map(_midnight, days):
        end = start + timedelta(days=1)
        if end not in there:
            _finish_detaching(cursor, start.date())
            _attach(cursor, _free_name(cursor, f"events_{start:%Y%m%d}"), start, end)
            made += 1
    return made


def _free_name(cursor: psycopg.Cursor[Any], name: str) -> str:
    """The name, or the first with a number after it that no table has: somebody may have put a day's table aside by hand."""
    free, number = name, 1
    while cursor.execute("SELECT to_regclass(%s)", (f"exp.{free}",)).fetchone() != (None,):
        number += 1
        free = f"{name}_{number}"
    return free


def _finish_detaching(cursor: psycopg.Cursor[Any], day: date) -> None:
    """A partition whose detaching was interrupted keeps its days until that is finished."""
    for leaving in leaving_days(cursor.connection):
        if leaving.pending and leaving.day == day:
            cursor.execute(sql.SQL("ALTER TABLE exp.events DETACH PARTITION {} FINALIZE").format(leaving.table))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _attach(cursor: psycopg.Cursor[Any], name: str, start: datetime | None, end: datetime) -> None:
    """Made apart and then attached: `PARTITION OF` would lock out everyone who reads or writes events, attaching does not."""
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
