"""Importing finished experiments from elsewhere: a completed run and its units, each stored once."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg.rows import dict_row, scalar_row

from experimentation.runs import store as run_store
from experimentation.runs.audit_trail import audit_run_change
from experimentation.runs.run import ExperimentationError, NewVariant, Run, UnitType
from experimentation.runs.store import runs_of
from foundation.audit import Change

IMPORTED = "experiment.imported"
WAS_IMPORTED = "SELECT 1 FROM exp.audit_log WHERE subject = %s AND action = %s"

# The units in a file, for the session. A unit's first variant counts.
STAGE_UNITS = """
CREATE TEMPORARY TABLE imported_units (unit_id text PRIMARY KEY, variant text NOT NULL, assigned_at timestamptz NOT NULL)
"""
NOTE_UNITS = """
WITH given AS (
    SELECT * FROM json_to_recordset(%(units)s::json) AS given (place int, unit_id text, variant text, assigned_at timestamptz)
),
firsts AS (
    SELECT DISTINCT ON (unit_id) unit_id, variant FROM given ORDER BY unit_id, place
),
known AS (
    SELECT firsts.unit_id, coalesce(staged.variant, variants.name, firsts.variant) AS variant
    FROM firsts
    LEFT JOIN imported_units staged USING (unit_id)
    LEFT JOIN exp.assignments enrolled ON enrolled.experiment_id = %(run)s::uuid AND enrolled.unit_id = firsts.unit_id
    LEFT JOIN exp.variants ON variants.id = enrolled.variant_id
)
INSERT INTO imported_units AS old (unit_id, variant, assigned_at)
SELECT unit_id, variant, min(given.assigned_at) FROM known JOIN given USING (unit_id, variant) GROUP BY unit_id, variant
ON CONFLICT (unit_id) DO UPDATE SET assigned_at = excluded.assigned_at WHERE excluded.assigned_at < old.assigned_at
"""
OTHER_VARIANTS = """
SELECT given.place, coalesce(staged.variant, variants.name) AS variant
FROM json_to_recordset(%(units)s::json) AS given (place int, unit_id text, variant text)
LEFT JOIN imported_units staged USING (unit_id)
LEFT JOIN exp.assignments enrolled ON enrolled.experiment_id = %(run)s::uuid AND enrolled.unit_id = given.unit_id
LEFT JOIN exp.variants ON variants.id = enrolled.variant_id
WHERE staged.variant IS DISTINCT FROM given.variant
"""
STORE_UNITS = """
INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity, assigned_at)
SELECT experiments.id, experiments.unit_type, units.unit_id, variants.id, 1, variants.allocation, units.assigned_at
FROM imported_units units
JOIN exp.variants ON variants.name = units.variant
JOIN exp.experiments ON experiments.id = variants.experiment_id
WHERE experiments.id = %s AND NOT EXISTS (
    SELECT FROM exp.erased_units
    WHERE unit_hash = sha256((SELECT salt FROM exp.erasure_salt) || convert_to(experiments.unit_type || ':' || units.unit_id, 'UTF8'))
      AND units.assigned_at <= erased_at)
ORDER BY units.unit_id
ON CONFLICT (experiment_id, unit_id) DO NOTHING
"""
UNITS_BY_VARIANT = "SELECT variant, count(*) AS units FROM imported_units GROUP BY variant"


class NotedUnit(msgspec.Struct, frozen=True):
    """A unit in a file: its index in the batch, its variant, and when it was assigned."""

    place: int
    unit_id: str
    variant: str
    assigned_at: datetime


class ImportedRunError(ExperimentationError):
    """A run can't be imported because a different run has its name."""


def imported_run(
    connection: psycopg.Connection[Any],
    *,
    name: str,
    unit_type: UnitType,
    variants: Sequence[NewVariant],
    started: datetime,
    ended: datetime,
) -> Run | None:
    """The run that was imported under this name with exactly these variants and times; None if the name is free.

    Raises ImportedRunError if the name belongs to a run that was not imported, or to an imported run that differs.
    """
    runs = runs_of(connection, name)
    if not runs:
        return None
    run = runs[-1]
    if connection.execute(WAS_IMPORTED, (run.label, IMPORTED)).fetchone() is None:
        raise ImportedRunError(
            f"{run.label} ran here and is {run.status}: give the imported experiment another name, or refer to {name} only by its name "
            "to import events without units."
        )
    existing = {(arm.name, arm.role, arm.allocation) for arm in run.variants}
    declared = {(arm.name, arm.role, arm.allocation) for arm in variants}
    if existing != declared or (run.unit_type, run.start_at, run.end_at) != (unit_type, started, ended):
        raise ImportedRunError(
            f"{run.label} was imported with {_describe(run)}: declare the same to add to it, or give the experiment another name."
        )
    return run


def import_run(
    connection: psycopg.Connection[Any],
    *,
    name: str,
    unit_type: UnitType,
    variants: Sequence[NewVariant],
    started: datetime,
    ended: datetime,
    description: str | None,
    change: Change,
) -> Run:
    """The imported run of that name, created as completed and with one epoch if there is none. Raises ImportedRunError.

    The caller checks that allocations sum to 1 and that there is exactly one control.
    """
    with connection.transaction():
        run_store.lock_name(connection, name)
        existing = imported_run(
            connection, name=name, unit_type=unit_type, variants=variants, started=started, ended=ended
        )
        if existing is not None:
            return existing
        run_id = run_store.insert_run(
            connection,
            name=name,
            unit_type=unit_type,
            made_by="file",
            description=description,
            policy_id=None,
            start_at=started,
            end_at=ended,
            targeting=None,
            layer=None,
            overrides={},
        )
        run_store.insert_variants(connection, run_id, variants)
        run_store.open_epoch(connection, run_id, started)
        run_store.set_status(connection, run_id, "completed", None)
        return audit_run_change(connection, None, run_id, IMPORTED, change)


def stage_units(connection: psycopg.Connection[Any]) -> None:
    """Create the table for `note_units`, which lives as long as the connection."""
    connection.execute(STAGE_UNITS)


def note_units(connection: psycopg.Connection[Any], run_id: UUID | None, units: Sequence[NotedUnit]) -> dict[int, str]:
    """Stage a batch of units; returns the indexes of units that have a different variant, with that variant.

    A unit's variant is the one it is enrolled with in `run_id`, otherwise the first one staged; its time is the earliest staged with that
    variant. Staging the same units again changes nothing.
    """
    # One JSON text: psycopg takes longer to adapt arrays of thousands of values than PostgreSQL takes for the query.
    parameters = {"units": msgspec.json.encode(units).decode(), "run": run_id}
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(NOTE_UNITS, parameters)
        return {row["place"]: row["variant"] for row in cursor.execute(OTHER_VARIANTS, parameters)}


def noted_units(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """The number of staged units of each variant."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return {row["variant"]: row["units"] for row in cursor.execute(UNITS_BY_VARIANT)}


def store_units(connection: psycopg.Connection[Any], run_id: UUID) -> int:
    """Enrol the staged units that are neither enrolled nor erased, in epoch 1; returns how many."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        cursor.execute(STORE_UNITS, (run_id,))
        return cursor.rowcount


def _describe(run: Run) -> str:
    arms = ", ".join(f"{arm.name} ({arm.role}) {arm.allocation}" for arm in run.variants)
    times = " to ".join("" if at is None else at.isoformat() for at in (run.start_at, run.end_at))
    return f"units of the type {run.unit_type}, {arms}, {times}"
