"""The erased units, as salted hashes: their events in a spool, a backup or a dead letter must not be stored again."""

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

import asyncpg
import psycopg
from psycopg.rows import scalar_row, tuple_row

SALT = "SELECT salt FROM exp.erasure_salt"
HASHES = "SELECT unit_hash, erased_at FROM exp.erased_units"
RECORD = """
INSERT INTO exp.erased_units (unit_hash) VALUES (%s) ON CONFLICT (unit_hash) DO UPDATE SET erased_at = excluded.erased_at
"""


class ErasedUnits:
    """The erased units at the time of reading. A unit that comes back after its erasure is treated like any other."""

    def __init__(self, salt: bytes, erased_at: Mapping[bytes, datetime]) -> None:
        """`erased_at`: the time of each erasure, by the unit's `unit_hash` with `salt`."""
        self._salt, self._erased_at = salt, erased_at

    def cover(self, unit_type: str, unit_id: str, at: datetime) -> bool:
        """Whether data of this time was erased with its unit."""
        if not self._erased_at:
            return False
        erased_at = self._erased_at.get(unit_hash(self._salt, unit_type, unit_id))
        return erased_at is not None and at <= erased_at


def unit_hash(salt: bytes, unit_type: str, unit_id: str) -> bytes:
    """The hash that stands for a unit in `exp.erased_units`."""
    return sha256(salt + f"{unit_type}:{unit_id}".encode()).digest()


async def read_erased_units(connection: asyncpg.Connection) -> ErasedUnits:
    """Read all erased units; for the service that drains the spool."""
    return ErasedUnits(await connection.fetchval(SALT), dict(await connection.fetch(HASHES)))


def erased_units(connection: psycopg.Connection[Any]) -> ErasedUnits:
    """Read all erased units; for commands."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        salt = _salt(cursor)
    with connection.cursor(row_factory=tuple_row) as rows:
        return ErasedUnits(salt, dict(rows.execute(HASHES).fetchall()))


def record_erased_unit(connection: psycopg.Connection[Any], unit_type: str, unit_id: str) -> None:
    """Record that a unit is erased now, in the caller's transaction."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        cursor.execute(RECORD, (unit_hash(_salt(cursor), unit_type, unit_id),))


def _salt(cursor: psycopg.Cursor[bytes]) -> bytes:
    (salt,) = cursor.execute(SALT).fetchall()
    return salt
