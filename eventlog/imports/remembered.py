"""`exp.imports`: what was brought in already, by its digest, so that nothing is imported twice."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from foundation import locks


@dataclass(frozen=True)
class Remembered:
    """An import: what it holds, and whether it was stored now or before."""

    kind: str
    source: str
    counts: dict[str, int]
    new: bool


def remember(
    connection: psycopg.Connection[Any], kind: str, source: str, digest: str, counts: Mapping[str, int]
) -> None:
    """Note that something was imported, so that it is not imported again."""
    connection.execute(
        "INSERT INTO exp.imports (kind, source, digest, counts) VALUES (%s, %s, %s, %s) ON CONFLICT (digest) DO NOTHING",
        (kind, source, digest, json.dumps(counts)),
    )


def is_remembered(connection: psycopg.Connection[Any], digest: str) -> bool:
    """Whether something with this digest was imported."""
    return connection.execute("SELECT 1 FROM exp.imports WHERE digest = %s", (digest,)).fetchone() is not None


def remembered(connection: psycopg.Connection[Any], kind: str, source: str, digest: str) -> Remembered | None:
    """The stored import with this digest, or None.

    Locks the digest until the transaction ends: two imports of the same thing at once would both find nothing stored yet.
    """
    locks.hold_named(connection, locks.IMPORTS, digest)
    row = connection.execute("SELECT counts FROM exp.imports WHERE digest = %s", (digest,)).fetchone()
    return None if row is None else Remembered(kind, source, dict(row[0]), new=False)


def all_remembered(connection: psycopg.Connection[Any]) -> list[Remembered]:
    """Every import so far, oldest first."""
    rows = connection.execute("SELECT kind, source, counts FROM exp.imports ORDER BY created_at, id").fetchall()
    return [Remembered(kind, source, dict(counts), new=False) for kind, source, counts in rows]
