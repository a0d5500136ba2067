"""`exp.imports`: what has been imported, by digest, so that nothing is imported twice."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from foundation import locks


@dataclass(frozen=True)
class Remembered:
    """An import: its counts, and whether it is new or was stored before."""

    kind: str
    source: str
    counts: dict[str, int]
    new: bool


def remember(
    connection: psycopg.Connection[Any], kind: str, source: str, digest: str, counts: Mapping[str, int]
) -> None:
    """Note an import, so that it is not repeated."""
    connection.execute(
        "INSERT INTO exp.imports (kind, source, digest, counts) VALUES (%s, %s, %s, %s) ON CONFLICT (digest) DO NOTHING",
        (kind, source, digest, json.dumps(counts)),
    )


def is_remembered(connection: psycopg.Connection[Any], digest: str) -> bool:
    """Whether content with this digest has been imported."""
    return connection.execute("SELECT 1 FROM exp.imports WHERE digest = %s", (digest,)).fetchone() is not None


def remembered(connection: psycopg.Connection[Any], kind: str, source: str, digest: str) -> Remembered | None:
    """The stored import with this digest, or None.

    Locks the digest until the transaction ends: otherwise two imports at the same time would both find nothing stored yet.
    """
    locks.hold_named(connection, locks.IMPORTS, digest)
    row = connection.execute("SELECT counts FROM exp.imports WHERE digest = %s", (digest,)).fetchone()
    return None if row is None else Remembered(kind, source, dict(row[0]), new=False)


def all_remembered(connection: psycopg.Connection[Any]) -> list[Remembered]:
    """All imports, oldest first."""
    rows = connection.execute("SELECT kind, source, counts FROM exp.imports ORDER BY created_at, id").fetchall()
    return [Remembered(kind, source, dict(counts), new=False) for kind, source, counts in rows]
