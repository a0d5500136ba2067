"""PostgreSQL's advisory locks in one place, so that no two of them collide by accident."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import psycopg
from psycopg.rows import scalar_row

MIGRATIONS = 7_236_001
"""One process migrates at a time."""
PARTITIONS = 7_236_002
"""One process creates or detaches partitions of events at a time."""
SYNC = 7_236_003
"""One `lifecycle sync` at a time."""
_ARCHIVE = 7_236_004
"""First half of a two-number lock; the second is the ordinal of the day whose archive files are written."""

EXPERIMENTS, LAYERS, IMPORTS = "exp.experiments", "exp.layers", "exp.imports"
"""Kinds of things that are locked by name."""

_HOLD = "SELECT pg_advisory_xact_lock(%s)"
_HOLD_NAMED = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_TRY_NAMED = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
_UNLOCK_NAMED = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"
_HOLD_DAY = "SELECT pg_advisory_xact_lock(%s, %s)"
_LOCK_DAY = "SELECT pg_advisory_lock(%s, %s)"
_UNLOCK_DAY = "SELECT pg_advisory_unlock(%s, %s)"


def hold(connection: psycopg.Connection[Any] | psycopg.Cursor[Any], lock: int) -> None:
    """Wait for the lock and keep it until the transaction ends."""
    connection.execute(_HOLD, (lock,))


def hold_named(connection: psycopg.Connection[Any], kind: str, name: str) -> None:
    """Wait for the lock of one experiment, layer or import, and keep it until the transaction ends."""
    connection.execute(_HOLD_NAMED, (f"{kind} {name}",))


@contextmanager
def try_named(connection: psycopg.Connection[Any], kind: str, name: str) -> Iterator[bool]:
    """Try to take the lock of one experiment, layer or import for the block; yields False at once if another session has it.

    `connection` is in autocommit mode.
    """
    key = (f"{kind} {name}",)
    with connection.cursor(row_factory=scalar_row) as cursor:
        is_locked = bool(cursor.execute(_TRY_NAMED, key).fetchone())
        try:
            yield is_locked
        finally:
            if is_locked and not connection.closed:
                cursor.execute(_UNLOCK_NAMED, key)


def hold_archive_day(connection: psycopg.Connection[Any], day: date) -> None:
    """Wait for the lock of a day's archive files, and keep it until the transaction ends."""
    connection.execute(_HOLD_DAY, (_ARCHIVE, day.toordinal()))


def lock_archive_day(connection: psycopg.Connection[Any], day: date) -> None:
    """Wait for the lock of a day's archive files, and keep it until `unlock_archive_day` or the session's end."""
    connection.execute(_LOCK_DAY, (_ARCHIVE, day.toordinal()))


def unlock_archive_day(connection: psycopg.Connection[Any], day: date) -> None:
    """Release what `lock_archive_day` took."""
    connection.execute(_UNLOCK_DAY, (_ARCHIVE, day.toordinal()))
