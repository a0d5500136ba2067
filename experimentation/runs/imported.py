"""Finished experiments that ran elsewhere: their run, made completed, and its units, each stored once."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg.rows import dict_row, scalar_row

from experimentation.runs import store as run_store
from experimentation.runs.audit_trail import audited
from experimentation.runs.run import ExperimentationError, NewVariant, Run, UnitType
from experimentation.runs.store import runs_of
from foundation.audit import Change

IMPORTED = "experiment.imported"
WAS_IMPORTED = "SELECT 1 FROM exp.audit_log WHERE subject = %s AND action = %s"

# Of the session: what a file says of its units, whose first variant is the one that counts.
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
    """A unit as a file shows it: at which place of those told at once, with which variant, since when."""

    place: int
    unit_id: str
    variant: str
    assigned_at: datetime


class ImportedRunError(ExperimentationError):
    """A run of this name can't be imported: there is another one."""


def imported_run(
    connection: psycopg.Connection[Any],
    *,
    name: str,
    unit_type: UnitType,
    variants: Sequence[NewVariant],
    started: datetime,
    ended: datetime,
) -> Run | None:
    """The run that was imported under this name with just these variants and times, or None where the name is free.

    Raises ImportedRunError when the name belongs to a run that was not imported, or to an imported one that differs.
    """
    runs = runs_of(connection, name)
    if not runs:
        return None
    run = runs[-1]
    if connection.execute(WAS_IMPORTED, (run.label, IMPORTED)).fetchone() is None:
        raise ImportedRunError(
            f"{run.label} ran here and is {run.status}: give the imported experiment another name, or refer to {name} by its name alone "
            "to bring in events without units."
        )
    here = {(arm.name, arm.role, arm.allocation) for arm in run.variants}
    said = {(arm.name, arm.role, arm.allocation) for arm in variants}
    if here != said or (run.unit_type, run.start_at, run.end_at) != (unit_type, started, ended):
        raise ImportedRunError(
            f"{run.label} was imported with {_told(run)}: declare it so again to add to it, or give the experiment another name."
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
    """The run of that name, made completed with one epoch unless it was imported before. Raises ImportedRunError.

    The caller answers for allocations that sum to 1 and for one control.
    """
    with connection.transaction():
        run_store.lock_name(connection, name)
        known = imported_run(
            connection, name=name, unit_type=unit_type, variants=variants, started=started, ended=ended
        )
        if known is not None:
            return known
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
        return audited(connection, None, run_id, IMPORTED, change)


def stage_units(connection: psycopg.Connection[Any]) -> None:
    """Begin to note units, for as long as the connection lasts."""
    connection.execute(STAGE_UNITS)


def note_units(connection: psycopg.Connection[Any], run_id: UUID | None, units: Sequence[NotedUnit]) -> dict[int, str]:
    """Note units; return the places of those that have another variant, and that variant.

    A unit's variant is the one that `run_id` enrolled it with, or else the first one noted; since when is the earliest that was noted
    with it. Noting the same again changes nothing.
    """
    # As one JSON text: arrays of thousands of values take psycopg longer than PostgreSQL.
    given = {"units": msgspec.json.encode(units).decode(), "run": run_id}
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(NOTE_UNITS, given)
        return {row["place"]: row["variant"] for row in cursor.execute(OTHER_VARIANTS, given)}


def noted_units(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """How many units each variant has, of those noted."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return {row["variant"]: row["units"] for row in cursor.execute(UNITS_BY_VARIANT)}


def store_units(connection: psycopg.Connection[Any], run_id: UUID) -> int:
    """Enrol the units that were noted and are neither enrolled yet nor erased, in epoch 1; return how many were new."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        cursor.execute(STORE_UNITS, (run_id,))
        return cursor.rowcount


def _told(run: Run) -> str:
    arms = ", ".join(f"{arm.name} ({arm.role}) {arm.allocation}" for arm in run.variants)
    times = " to ".join("" if at is None else at.isoformat() for at in (run.start_at, run.end_at))
    return f"units of the type {run.unit_type}, {arms}, {times}"
