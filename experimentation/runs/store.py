"""Runs and variants in PostgreSQL: reading them as records, writing them row by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, dict_row, scalar_row
from psycopg.types.json import Jsonb

from experimentation.runs.run import (
    ExperimentationError,
    LayerRange,
    MadeBy,
    NewVariant,
    Run,
    RunStatus,
    UnitType,
    Variant,
)
from foundation import locks

_SELECT_RUN = (
    "SELECT e.id, e.name, e.run, e.status, e.unit_type, e.made_by, e.description, e.policy_id, e.shipped_variant_id, e.start_at, "
    "e.end_at, e.targeting, e.overrides, l.name AS layer_name, e.layer_from, e.layer_to "
    "FROM exp.experiments e LEFT JOIN exp.layers l ON l.id = e.layer_id "
)
RUN_BY_ID = _SELECT_RUN + "WHERE e.id = %s"
RUN_BY_ID_FOR_UPDATE = RUN_BY_ID + " FOR UPDATE OF e"
RUNS_OF_NAME = _SELECT_RUN + "WHERE e.name = %s ORDER BY e.run"
NAMES_OF_RUNS = "SELECT DISTINCT name FROM exp.experiments ORDER BY name"
NAMES_OF_OPEN_RUNS = "SELECT name FROM exp.experiments WHERE status <> 'completed' ORDER BY name"
VARIANTS_OF_RUN = """
SELECT id, name, position, role, allocation, config, description, withdrawn_at
FROM exp.variants WHERE experiment_id = %s ORDER BY position
"""
ADD_RUN = """
INSERT INTO exp.experiments (name, run, description, unit_type, made_by, policy_id, start_at, end_at, targeting, layer_id, layer_from,
                             layer_to, overrides)
SELECT %(name)s::varchar, coalesce(max(run), 0) + 1, %(description)s, %(unit_type)s, %(made_by)s, %(policy_id)s::uuid,
       %(start_at)s::timestamptz, %(end_at)s::timestamptz, %(targeting)s, (SELECT id FROM exp.layers WHERE name = %(layer)s::varchar),
       %(layer_from)s::int, %(layer_to)s::int, %(overrides)s::jsonb
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
UPDATE exp.experiments
SET description = %(description)s, unit_type = %(unit_type)s, policy_id = %(policy_id)s, start_at = %(start_at)s, end_at = %(end_at)s,
    targeting = %(targeting)s, layer_id = (SELECT id FROM exp.layers WHERE name = %(layer)s::varchar),
    layer_from = %(layer_from)s::int, layer_to = %(layer_to)s::int, overrides = %(overrides)s::jsonb
WHERE id = %(id)s
"""
OPEN_EPOCH = """
INSERT INTO exp.allocation_epochs (experiment_id, epoch, started_at, allocations, targeting)
SELECT e.id, (SELECT coalesce(max(epoch), 0) + 1 FROM exp.allocation_epochs WHERE experiment_id = e.id),
       coalesce(%(started_at)s::timestamptz, now()), jsonb_object_agg(v.id::text, v.allocation::text), e.targeting
FROM exp.experiments e JOIN exp.variants v ON v.experiment_id = e.id WHERE e.id = %(run_id)s GROUP BY e.id
"""
EPOCHS_OF_RUN = "SELECT epoch, started_at, allocations, targeting FROM exp.allocation_epochs WHERE experiment_id = %s ORDER BY epoch"
ENROLLED = "SELECT variant_id, count(*) AS units FROM exp.assignments WHERE experiment_id = %s GROUP BY variant_id"


@dataclass(frozen=True)
class Epoch:
    """A period of a run in which allocations (by variant id, as text) and targeting stayed as they were."""

    epoch: int
    started_at: datetime
    allocations: Mapping[str, str]
    targeting: str | None


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
    locks.hold_named(connection, locks.EXPERIMENTS, name)


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
    targeting: str | None,
    layer: LayerRange | None,
    overrides: Mapping[str, str],
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
        **_narrowing(targeting, layer, overrides),
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
    """Write what stands beside a run's status: description, unit type, policy, start and end, targeting, layer, overrides."""
    fields = {
        "id": run.id,
        "description": run.description,
        "unit_type": run.unit_type,
        "policy_id": run.policy_id,
        "start_at": run.start_at,
        "end_at": run.end_at,
        **_narrowing(run.targeting, run.layer, run.overrides),
    }
    connection.execute(SET_DETAILS, fields)


def open_epoch(connection: psycopg.Connection[Any], run_id: UUID, started_at: datetime | None = None) -> None:
    """Record the run's allocations and targeting, as they are now, as its next epoch, which begins now unless it is said."""
    connection.execute(OPEN_EPOCH, {"run_id": run_id, "started_at": started_at})


def epochs_of(connection: psycopg.Connection[Any], run_id: UUID) -> list[Epoch]:
    """A run's epochs, the first one first."""
    with connection.cursor(row_factory=class_row(Epoch)) as cursor:
        return cursor.execute(EPOCHS_OF_RUN, (run_id,)).fetchall()


def enrolled_units(connection: psycopg.Connection[Any], run_id: UUID) -> dict[UUID, int]:
    """How many units each variant was given; one without any is left out."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return {row["variant_id"]: row["units"] for row in cursor.execute(ENROLLED, (run_id,))}


def names_of_runs(connection: psycopg.Connection[Any]) -> list[str]:
    """Every name that has a run, in order."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(NAMES_OF_RUNS).fetchall()


def names_of_open_runs(connection: psycopg.Connection[Any]) -> list[str]:
    """Names that have a run which is not completed, in order."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(NAMES_OF_OPEN_RUNS).fetchall()


def _runs(connection: psycopg.Connection[Any], query: str, key: object) -> list[Run]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, (key,)).fetchall()
    with connection.cursor(row_factory=class_row(Variant)) as cursor:
        return [_run(row, tuple(cursor.execute(VARIANTS_OF_RUN, (row["id"],)))) for row in rows]


def _run(row: dict[str, Any], variants: tuple[Variant, ...]) -> Run:
    """From the columns of `_SELECT_RUN`, of which three make the range."""
    layer, first, end = (row.pop(column) for column in ("layer_name", "layer_from", "layer_to"))
    return Run(**row, layer=None if layer is None else LayerRange(layer, first, end), variants=variants)


def _narrowing(targeting: str | None, layer: LayerRange | None, overrides: Mapping[str, str]) -> dict[str, Any]:
    """The columns that say which units a run is for."""
    first, end = (None, None) if layer is None else (layer.first, layer.end)
    return {
        "targeting": targeting,
        "layer": None if layer is None else layer.layer,
        "layer_from": first,
        "layer_to": end,
        "overrides": Jsonb(dict(overrides)),
    }
