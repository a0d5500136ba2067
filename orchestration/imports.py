"""Bringing a product's data in: the sample that the project makes itself, or a recipe catalogue with a cooking diary.

Belongs here: storing what `planner` made or read, in one transaction, once. Does not belong here: reading files (planner/history.py),
simulating (planner/simulator.py), SQL.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
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
    """What an import found and what of it was new."""

    kind: str
    source: str
    counts: dict[str, int]
    first: datetime | None
    last: datetime | None
    new: bool


def sample(end: date) -> Sample:
    """The demo's history: eight weeks whose last day is `end`."""
    return simulate(sample_catalogue(), seed=SAMPLE_SEED, weeks=SAMPLE_WEEKS, end=end)


def import_sample(connection: psycopg.Connection[Any], made: Sample) -> Imported:
    """Store the sample: domain tables and events, once. The caller owns the transaction; partitions for its days must exist."""
    digest = hashlib.sha256(
        f"sample/{made.world.seed}/{made.start.isoformat()}/{made.end.isoformat()}".encode()
    ).hexdigest()
    return _store(connection, "sample", f"the seeded sample (seed {made.world.seed})", digest, made.tables, made.events)


def import_history(connection: psycopg.Connection[Any], history: History, source: str) -> Imported:
    """Store a diary that was read: recipes, people, reconstructed events, once. `source` is what `exp.imports` calls it.

    The caller owns the transaction; the history partition must exist.
    """
    return _store(connection, "history", source, history.digest, history.tables, history.events)


def what_was_imported(connection: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Every import so far, oldest first: `kind`, `source`, `counts`."""
    rows = connection.execute("SELECT kind, source, counts FROM exp.imports ORDER BY created_at, id").fetchall()
    return [{"kind": kind, "source": source, "counts": counts} for kind, source, counts in rows]


def _store(
    connection: psycopg.Connection[Any],
    kind: str,
    source: str,
    digest: str,
    tables: Mapping[str, pl.DataFrame],
    events: list[dict[str, Any]],
) -> Imported:
    times = [event["timestamp"] for event in events]
    first, last = (min(times), max(times)) if times else (None, None)
    # Two imports of the same thing at once would both find nothing stored yet.
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"import/{digest}",))
    known = connection.execute("SELECT counts FROM exp.imports WHERE digest = %s", (digest,)).fetchone()
    if known is not None:
        return Imported(kind, source, dict(known[0]), first, last, new=False)
    store_tables(connection, tables)
    counts = {name: len(frame) for name, frame in tables.items()}
    counts["events"] = store_events(connection, events)
    connection.execute(
        "INSERT INTO exp.imports (kind, source, digest, counts) VALUES (%s, %s, %s, %s)",
        (kind, source, digest, json.dumps(counts)),
    )
    return Imported(kind, source, counts, first, last, new=True)
