"""Runs and variants in PostgreSQL: reading them as records, writing them row by row.

Belongs here: the SQL of `exp.experiments`, `exp.variants` and `exp.allocation_epochs`. Does not belong here: what is allowed
(experiments.py), the hot path that serves assignments (assignment_store.py).
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, dict_row, scalar_row
from psycopg.types.json import Jsonb

from experimentation.records import ExperimentationError, MadeBy, NewVariant, Run, RunStatus, UnitType, Variant

_SELECT_RUN = (
    "SELECT id, name, run, status, unit_type, made_by, description, policy_id, shipped_variant_id, start_at, end_at "
    "FROM exp.experiments "
)
RUN_BY_ID = _SELECT_RUN + "WHERE id = %s"
RUN_BY_ID_FOR_UPDATE = RUN_BY_ID + " FOR UPDATE"
RUNS_OF_NAME = _SELECT_RUN + "WHERE name = %s ORDER BY run"
NAMES_OF_OPEN_RUNS = "SELECT name FROM exp.experiments WHERE status <> 'completed' ORDER BY name"
VARIANTS_OF_RUN = """
SELECT id, name, position, role, allocation, config, description, withdrawn_at
FROM exp.variants WHERE experiment_id = %s ORDER BY position
"""
ADD_RUN = """
INSERT INTO exp.experiments (name, run, description, unit_type, made_by, policy_id, start_at, end_at)
SELECT %(name)s::varchar, coalesce(max(run), 0) + 1, %(description)s, %(unit_type)s, %(made_by)s, %(policy_id)s::uuid,
       %(start_at)s::timestamptz, %(end_at)s::timestamptz
FROM exp.experiments WHERE name = %(name)s::varchar
RETURNING id
"""
ADD_VARIANT = """
INSERT INTO exp.variants (experiment_id, name, position, role, description, allocation, config) VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
SET_ALLOCATION = "UPDATE exp.variants SET allocation = %s WHERE id = %s"
DESCRIBE_VARIANT = "UPDATE exp.variants SET description = %s WHERE id = %s"
REMOVE_VARIANTS = "DELETE FROM exp.variants WHERE experiment_id = %s"
SET_STATUS = "UPDATE exp.experiments SET status = %s, shipped_variant_id = %s WHERE id = %s"
# `updated_at` moves even when nothing else does: it tells readers that the experiment's variants changed.
SET_DETAILS = """
UPDATE exp.experiments SET description = %s, unit_type = %s, policy_id = %s, start_at = %s, end_at = %s WHERE id = %s
"""
OPEN_EPOCH = """
INSERT INTO exp.allocation_epochs (experiment_id, epoch, allocations)
SELECT v.experiment_id, (SELECT coalesce(max(epoch), 0) + 1 FROM exp.allocation_epochs WHERE experiment_id = v.experiment_id),
       jsonb_object_agg(v.id::text, v.allocation::text)
FROM exp.variants v WHERE v.experiment_id = %s GROUP BY v.experiment_id
"""
LOCK_NAME = "SELECT pg_advisory_xact_lock(hashtextextended('exp.experiments ' || %s, 0))"


def load_run(connection: psycopg.Connection[Any], run_id: UUID, *, hold: bool = False) -> Run:
    """The run with its variants; with `hold`, what is decided from it stays true until the transaction ends.

    Raises ExperimentationError when there is none.
    """
    found = _runs(connection, RUN_BY_ID_FOR_UPDATE if hold else RUN_BY_ID, run_id)
    if not found:
        raise ExperimentationError(f"No experiment run has the id {run_id}: `exp.experiments` lists them.")
    return found[0]


def runs_of(connection: psycopg.Connection[Any], name: str) -> list[Run]:
    """Every run of that name with its variants, the first run first."""
    return _runs(connection, RUNS_OF_NAME, name)


def lock_name(connection: psycopg.Connection[Any], name: str) -> None:
    """Keep others from opening a run of this name until the transaction ends: two must not both find that there is none."""
    connection.execute(LOCK_NAME, (name,))


def insert_run(
    connection: psycopg.Connection[Any],
    *,
    name: str,
    unit_type: UnitType,
    made_by: MadeBy,
    description: str | None,
    policy_id: UUID | None,
    start_at: datetime | None,
    end_at: datetime | None,
) -> UUID:
    """Add the next run of a name, as a draft without variants. Returns its id."""
    fields = {
        "name": name,
        "unit_type": unit_type,
        "made_by": made_by,
        "description": description,
        "policy_id": policy_id,
        "start_at": start_at,
        "end_at": end_at,
    }
    with connection.cursor(row_factory=scalar_row) as cursor:
        (run_id,) = cursor.execute(ADD_RUN, fields).fetchall()
    return UUID(str(run_id))


def insert_variants(
    connection: psycopg.Connection[Any], run_id: UUID, variants: Sequence[NewVariant], first_position: int = 0
) -> None:
    """Add variants, in this order, at positions from `first_position` on."""
    for position, variant in enumerate(variants, first_position):
        place = (run_id, variant.name, position, variant.role, variant.description)
        connection.execute(ADD_VARIANT, (*place, variant.allocation, Jsonb(dict(variant.config))))


def delete_variants(connection: psycopg.Connection[Any], run_id: UUID) -> None:
    """Remove every variant of a run."""
    connection.execute(REMOVE_VARIANTS, (run_id,))


def set_allocation(connection: psycopg.Connection[Any], variant_id: UUID, allocation: Decimal) -> None:
    """Change a variant's share. Whoever does so in a started run opens an epoch in the same transaction."""
    connection.execute(SET_ALLOCATION, (allocation, variant_id))


def describe_variant(connection: psycopg.Connection[Any], variant_id: UUID, description: str | None) -> None:
    """Change a variant's description."""
    connection.execute(DESCRIBE_VARIANT, (description, variant_id))


def set_status(
    connection: psycopg.Connection[Any], run_id: UUID, status: RunStatus, shipped_variant_id: UUID | None
) -> None:
    """Change a run's status and what it shipped."""
    connection.execute(SET_STATUS, (status, shipped_variant_id, run_id))


def set_details(connection: psycopg.Connection[Any], run: Run) -> None:
    """Write what stands beside a run's status: description, unit type, policy, start and end."""
    fields = (run.description, run.unit_type, run.policy_id, run.start_at, run.end_at)
    connection.execute(SET_DETAILS, (*fields, run.id))


def open_epoch(connection: psycopg.Connection[Any], run_id: UUID) -> None:
    """Record the run's allocations, as they are now, as its next epoch."""
    connection.execute(OPEN_EPOCH, (run_id,))


def names_of_open_runs(connection: psycopg.Connection[Any]) -> list[str]:
    """Names that have a run which is not completed, in order."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(NAMES_OF_OPEN_RUNS).fetchall()


def _runs(connection: psycopg.Connection[Any], query: str, key: object) -> list[Run]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, (key,)).fetchall()
    with connection.cursor(row_factory=class_row(Variant)) as cursor:
        return [Run(**row, variants=tuple(cursor.execute(VARIANTS_OF_RUN, (row["id"],)))) for row in rows]
