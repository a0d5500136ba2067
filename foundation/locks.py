"""PostgreSQL's advisory locks in one place, so that no two of them are the same by accident."""

from typing import Any

import psycopg

MIGRATIONS = 7_236_001
"""One process migrates at a time."""
PARTITIONS = 7_236_002
"""One process makes or detaches partitions of events at a time."""
SYNC = 7_236_003
"""One `lifecycle sync` at a time."""
ARCHIVE = 7_236_004
"""First half of a two-number lock; the second is the ordinal of the day whose files are written."""

EXPERIMENTS, LAYERS, IMPORTS = "exp.experiments", "exp.layers", "exp.imports"
"""Kinds of things that are locked by name."""

_HOLD = "SELECT pg_advisory_xact_lock(%s)"
_HOLD_NAMED = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"


def hold(connection: psycopg.Connection[Any] | psycopg.Cursor[Any], lock: int) -> None:
    """Wait for the lock and keep it until the transaction ends."""
    connection.execute(_HOLD, (lock,))


def hold_named(connection: psycopg.Connection[Any], kind: str, name: str) -> None:
    """Wait for the lock of one experiment, layer or import, and keep it until the transaction ends."""
    connection.execute(_HOLD_NAMED, (f"{kind} {name}",))
