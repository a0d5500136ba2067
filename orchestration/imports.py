"""Bringing a product's data in: the sample that the project makes itself, or a recipe catalogue with a cooking diary.

Belongs here: storing what `planner` made or read, in one transaction, once. Does not belong here: reading files (planner/history.py),
simulating (planner/simulator.py), SQL of events and domain tables.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl
import psycopg

from experimentation.events import store_events
from planner.catalogue import sample_catalogue
from planner.history import History
from planner.simulator import Sample, simulate
from planner.store import store_tables

SAMPLE_SEED, SAMPLE_WEEKS = 7, 8


@dataclass(frozen=True)
class Imported:
    """What an import holds, and whether it was stored now or before."""

    kind: str
    source: str
    counts: dict[str, int]
    new: bool


def sample(end: date) -> Sample:
    """The demo's history: eight weeks whose last day is `end`."""
    return simulate(sample_catalogue(), seed=SAMPLE_SEED, weeks=SAMPLE_WEEKS, end=end)


def import_sample(connection: psycopg.Connection[Any], end: date, make: Callable[[date], Sample] = sample) -> Imported:
    """Store the sample whose last day is `end`: domain tables and events, once; a stored one is not simulated again.

    The caller owns the transaction; partitions for its days must exist.
    """
    digest = hashlib.sha256(f"sample/{SAMPLE_SEED}/{SAMPLE_WEEKS}/{end.isoformat()}".encode()).hexdigest()
    source = f"the seeded sample (seed {SAMPLE_SEED})"
    known = _known(connection, "sample", source, digest)
    if known is not None:
        return known
    made = make(end)
    return _store(connection, "sample", source, digest, made.tables, made.events)


def import_history(connection: psycopg.Connection[Any], history: History, source: str) -> Imported:
    """Store a diary that was read: recipes, people, reconstructed events, once. `source` is what `exp.imports` calls it.

    The caller owns the transaction; the history partition must exist.
    """
    known = _known(connection, "history", source, history.digest)
    return known or _store(connection, "history", source, history.digest, history.tables, history.events)


def what_was_imported(connection: psycopg.Connection[Any]) -> list[Imported]:
    """Every import so far, oldest first."""
    rows = connection.execute("SELECT kind, source, counts FROM exp.imports ORDER BY created_at, id").fetchall()
    return [Imported(kind, source, dict(counts), new=False) for kind, source, counts in rows]


def remember(
    connection: psycopg.Connection[Any], kind: str, source: str, digest: str, counts: Mapping[str, int]
) -> None:
    """Note that something was brought in, so that it is not brought in again."""
    connection.execute(
        "INSERT INTO exp.imports (kind, source, digest, counts) VALUES (%s, %s, %s, %s) ON CONFLICT (digest) DO NOTHING",
        (kind, source, digest, json.dumps(counts)),
    )


def is_remembered(connection: psycopg.Connection[Any], digest: str) -> bool:
    """Whether something with this digest was brought in."""
    return connection.execute("SELECT 1 FROM exp.imports WHERE digest = %s", (digest,)).fetchone() is not None


def _known(connection: psycopg.Connection[Any], kind: str, source: str, digest: str) -> Imported | None:
    # Held until the transaction ends: two imports of the same thing at once would both find nothing stored yet.
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"import/{digest}",))
    row = connection.execute("SELECT counts FROM exp.imports WHERE digest = %s", (digest,)).fetchone()
    return None if row is None else Imported(kind, source, dict(row[0]), new=False)


def _store(
    connection: psycopg.Connection[Any],
    kind: str,
    source: str,
    digest: str,
    tables: Mapping[str, pl.DataFrame],
    events: list[dict[str, Any]],
) -> Imported:
    store_tables(connection, tables)
    counts = {name: len(frame) for name, frame in tables.items()}
    counts["events"] = store_events(connection, events)
    remember(connection, kind, source, digest, counts)
    return Imported(kind, source, counts, new=True)
