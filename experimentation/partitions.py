"""The daily partitions of `exp.events`, and the one that holds all history before the first day.

Belongs here: making partitions ahead of time. Does not belong here: what is stored in them, or retention.
There is no default partition: rows that fell into one would later keep their day's own partition from being made.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from psycopg import sql

HISTORY = "events_history"
_LOCK = 7_236_002


def ensure_event_partitions(connection: psycopg.Connection[Any], first_day: date, days_ahead: int = 7) -> int:
    """Make the history partition (all before `first_day`, UTC) and a day each from `first_day` to `days_ahead` days from now.

    Returns how many were made; two processes may call it at once. Raises ValueError when the history partition ends on another day
    than `first_day`: the first day of an installation does not move.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    bounds = _existing(connection)
    made = 0
    if HISTORY not in bounds:
        _make(connection, HISTORY, "MINVALUE", _midnight(first_day))
        made += 1
    elif _midnight(first_day) not in bounds[HISTORY]:
        _, end, _ = bounds[HISTORY].split("'")
        raise ValueError(
            f"This database's history ends at {end}, and the first day is set to {first_day}: "
            "set LIFECYCLE_FIRST_DAY to that day, or use another database."
        )
    last = datetime.now(UTC).date() + timedelta(days=days_ahead)
    for offset in range((last - first_day).days + 1):
        day = first_day + timedelta(days=offset)
        name = f"events_{day:%Y%m%d}"
        if name not in bounds:
            _make(connection, name, _midnight(day), _midnight(day + timedelta(days=1)))
            made += 1
    return made


def _midnight(day: date) -> str:
    return datetime.combine(day, time(), UTC).strftime("%Y-%m-%d %H:%M:%S+00")


def _existing(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Partition name → its bounds as PostgreSQL prints them, in UTC."""
    connection.execute("SET LOCAL timezone = 'UTC'")
    rows = connection.execute(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'exp.events'::regclass"
    )
    return {str(name): str(bounds) for name, bounds in rows}


def _make(connection: psycopg.Connection[Any], name: str, start: str, end: str) -> None:
    lower = sql.SQL("MINVALUE") if start == "MINVALUE" else sql.Literal(start)
    connection.execute(
        sql.SQL("CREATE TABLE {} PARTITION OF exp.events FOR VALUES FROM ({}) TO ({})").format(
            sql.Identifier("exp", name), lower, sql.Literal(end)
        )
    )
