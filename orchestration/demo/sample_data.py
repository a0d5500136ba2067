"""Importing data: the simulated sample, or a recipe catalogue with a cooking diary."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import polars as pl
import psycopg

from eventlog.imports.remembered import Remembered, remember, remembered
from eventlog.store import store_events
from planner.catalogue import sample_catalogue
from planner.history import History
from planner.simulator import Sample, simulate
from planner.store import store_tables

SAMPLE_SEED, SAMPLE_WEEKS = 7, 8


def sample(end: date) -> Sample:
    """The demo's history: eight weeks whose last day is `end`."""
    return simulate(sample_catalogue(), seed=SAMPLE_SEED, weeks=SAMPLE_WEEKS, end=end)


def import_sample(
    connection: psycopg.Connection[Any], end: date, simulate_until: Callable[[date], Sample] = sample
) -> Remembered:
    """Store the domain tables and events of the sample whose last day is `end`, once. A stored sample is not simulated again.

    The caller owns the transaction; partitions for the sample's days must exist.
    """
    digest = hashlib.sha256(f"sample/{SAMPLE_SEED}/{SAMPLE_WEEKS}/{end.isoformat()}".encode()).hexdigest()
    source = f"the seeded sample (seed {SAMPLE_SEED})"
    known = remembered(connection, "sample", source, digest)
    if known is not None:
        return known
    simulated = simulate_until(end)
    return _store(connection, "sample", source, digest, simulated.tables, simulated.events)


def import_history(connection: psycopg.Connection[Any], history: History, source: str) -> Remembered:
    """Store a diary's recipes, people and reconstructed events, once. `source` is its name in `exp.imports`.

    The caller owns the transaction; the history partition must exist.
    """
    known = remembered(connection, "history", source, history.digest)
    return known or _store(connection, "history", source, history.digest, history.tables, history.events)


def _store(
    connection: psycopg.Connection[Any],
    kind: str,
    source: str,
    digest: str,
    tables: Mapping[str, pl.DataFrame],
    events: list[dict[str, Any]],
) -> Remembered:
    store_tables(connection, tables)
    counts = {name: len(frame) for name, frame in tables.items()}
    counts["events"] = store_events(connection, events)
    remember(connection, kind, source, digest, counts)
    return Remembered(kind, source, counts, new=True)
