"""The daily partitions of `exp.events`, and the one that holds all history before the first day.

Belongs here: making partitions ahead of time. Does not belong here: what is stored in them, or retention.
There is no default partition: rows that fell into one would later keep their day's own partition from being made, and a day
that nobody prepared for should be heard of at once.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from experimentation.records import ExperimentationError

HISTORY = "events_history"
# Any constant will do, as long as every process takes the same one.
_LOCK = 7_236_002

# The end is read back as a point in time: its text depends on the session's time zone.
EXISTING_PARTITIONS = r"""
SELECT c.relname, (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'exp.events'::regclass
"""


def ensure_event_partitions(connection: psycopg.Connection[Any], first_day: date, days_ahead: int = 7) -> int:
    """Make the history partition (all before `first_day`, UTC) and a day each from `first_day` to `days_ahead` days from today.

    Returns how many were made; again makes none, and two processes may call it at once. Inserts go on meanwhile. Raises
    ExperimentationError when the history partition ends on another day than `first_day`: the first day of an installation does not move.
    """
    made = 0
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        ends: dict[str, datetime] = dict(cursor.execute(EXISTING_PARTITIONS).fetchall())
        start = _midnight(first_day)
        if HISTORY not in ends:
            _attach(cursor, HISTORY, None, start)
            made += 1
        elif ends[HISTORY] != start:
            raise ExperimentationError(
                f"This database's history ends on {ends[HISTORY].astimezone(UTC):%Y-%m-%d} and the first day is set to {first_day}: "
                "set LIFECYCLE_FIRST_DAY to that day, or use another database."
            )
        last = _midnight(datetime.now(UTC).date() + timedelta(days=days_ahead))
        while start <= last:
            end = start + timedelta(days=1)
            if (name := f"events_{start:%Y%m%d}") not in ends:
                _attach(cursor, name, start, end)
                made += 1
            start = end
    return made


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
