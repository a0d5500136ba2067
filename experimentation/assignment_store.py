"""Assignments in PostgreSQL: loading what is served, reading stored rows, storing new ones so that racing writers agree.

Belongs here: the hot path's SQL (asyncpg). Does not belong here: the rules (assignments.py), HTTP, pools, grouping, caches (serving/).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from experimentation.assignments import Catalogue, ServedLayer, ServedRun, ServedVariant, complete_config
from experimentation.targeting import Targeting, TargetingError

UnitKey = tuple[UUID, str]
"""(experiment id, unit id): what a stored row is unique by."""

LOAD_CATALOGUE = """
SELECT e.id, e.name, e.run, e.status::text AS status, e.unit_type::text AS unit_type, e.start_at, e.end_at, e.shipped_variant_id,
       (SELECT max(n.epoch) FROM exp.allocation_epochs n WHERE n.experiment_id = e.id) AS epoch,
       e.targeting, e.overrides::text AS overrides, e.layer_id, l.holdout, e.layer_from, e.layer_to,
       v.id AS variant_id, v.name AS variant_name, v.role::text AS role, v.allocation, v.config::text AS config,
       v.withdrawn_at IS NOT NULL AS withdrawn,
       v.config ->> 'policy_version_id' IS NOT NULL AS names_policy, p.id AS policy_version_id,
       p.mlflow_model_name, p.mlflow_model_version, p.config_defaults::text AS config_defaults, p.status::text AS policy_status
FROM exp.experiments e
LEFT JOIN exp.layers l ON l.id = e.layer_id
LEFT JOIN exp.variants v ON v.experiment_id = e.id
LEFT JOIN exp.policy_versions p ON p.id::text = lower(v.config ->> 'policy_version_id')
ORDER BY e.name, e.run, v.position, v.id
"""

READ_STORED = """
SELECT r.experiment_id, r.unit_id,
       (SELECT a.variant_id FROM exp.assignments a WHERE a.experiment_id = r.experiment_id AND a.unit_id = r.unit_id) AS variant_id
FROM unnest($1::uuid[], $2::text[]) AS r (experiment_id, unit_id)
"""

# One round trip for stored and for new units alike. The subselect looks each unit up by the unique index, whatever the planner believes
# of the table's size. Sorted, because two writers with overlapping keys in different orders deadlock. Guarded, because what was decided
# with may be a moment old: a row is stored only while its run is active and its variant, allocation and epoch are the current ones.
READ_OR_STORE = """
WITH asked AS MATERIALIZED (
    SELECT r.*, (SELECT a.variant_id FROM exp.assignments a
                 WHERE a.experiment_id = r.experiment_id AND a.unit_id = r.unit_id) AS stored_id
    FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::int[], $5::numeric[])
         AS r (experiment_id, unit_id, variant_id, epoch, propensity)
), made AS (
    INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity)
    SELECT r.experiment_id, e.unit_type, r.unit_id, r.variant_id, r.epoch, r.propensity
    FROM asked r
    JOIN exp.experiments e ON e.id = r.experiment_id AND e.status = 'active'
    JOIN exp.variants v ON v.id = r.variant_id AND v.allocation = r.propensity AND v.withdrawn_at IS NULL
    WHERE r.stored_id IS NULL
      AND NOT EXISTS (SELECT 1 FROM exp.allocation_epochs n WHERE n.experiment_id = r.experiment_id AND n.epoch > r.epoch)
    ORDER BY r.unit_id, r.experiment_id
    ON CONFLICT (experiment_id, unit_id) DO NOTHING
    RETURNING experiment_id, unit_id, variant_id
)
SELECT experiment_id, unit_id, stored_id AS variant_id, false AS made FROM asked WHERE stored_id IS NOT NULL
UNION ALL
SELECT experiment_id, unit_id, variant_id, true FROM made
"""


FIND_ASSIGNMENT = """
SELECT variant_id, epoch, propensity, assigned_at FROM exp.assignments WHERE experiment_id = $1 AND unit_id = $2
"""

FIND_PRODUCTION_VERSION = """
SELECT v.id, v.version, v.status::text AS status, v.mlflow_model_name, v.mlflow_model_version, v.config_defaults::text AS config_defaults
FROM exp.policies p JOIN exp.policy_versions v ON v.id = p.production_version_id WHERE p.name = $1
"""


@dataclass(frozen=True, slots=True)
class NewRow:
    """A unit to enrol, with the epoch and the propensity (the variant's allocation) that it was decided with."""

    experiment_id: UUID
    unit_id: str
    variant_id: UUID
    epoch: int
    propensity: Decimal

    @property
    def key(self) -> UnitKey:
        """What the row is unique by."""
        return self.experiment_id, self.unit_id


@dataclass(frozen=True, slots=True)
class StoredRow:
    """The variant of a stored unit, and whether the call that returns it stored it."""

    variant_id: UUID
    made: bool = False


async def load_catalogue(connection: asyncpg.Connection, before: Catalogue | None = None) -> Catalogue:
    """Every run with its variants and complete configs, as one consistent picture.

    A run of which nothing changed since `before` is the very same object, so that what is remembered with it stays good.
    """
    rows = await connection.fetch(LOAD_CATALOGUE)
    known = {} if before is None else before.by_id
    return Catalogue.of(_run(list(rows_of_run), known) for _, rows_of_run in groupby(rows, key=lambda row: row["id"]))


async def read_stored(connection: asyncpg.Connection, keys: Iterable[UnitKey]) -> dict[UnitKey, StoredRow]:
    """The row of each of the keys that has one."""
    experiments, units = zip(*keys, strict=True)
    rows = await connection.fetch(READ_STORED, experiments, units)
    return {(row[0], row[1]): StoredRow(row[2]) for row in rows if row[2] is not None}


async def read_or_store(connection: asyncpg.Connection, rows: Sequence[NewRow]) -> dict[UnitKey, StoredRow]:
    """The stored row of each key; a key that has none yet is stored, with what was decided for it.

    Must not run inside a transaction: what it returns is committed. A key that is not in the result was decided with an outdated
    catalogue, and is not stored. Of rows with the same key, the first that is stored counts.
    """
    found = await connection.fetch(
        READ_OR_STORE,
        [row.experiment_id for row in rows],
        [row.unit_id for row in rows],
        [row.variant_id for row in rows],
        [row.epoch for row in rows],
        [row.propensity for row in rows],
    )
    settled = {(row[0], row[1]): StoredRow(row[2], row[3]) for row in found}
    missing = {row.key for row in rows if row.key not in settled}
    if missing:
        # A second statement: the snapshot of the first does not see the row of a writer who won while it ran.
        settled |= await read_stored(connection, missing)
    return settled


async def find_assignment(
    connection: asyncpg.Connection, experiment_id: UUID, unit_id: str
) -> Mapping[str, Any] | None:
    """The unit's row (variant_id, epoch, propensity, assigned_at), where it has one."""
    row = await connection.fetchrow(FIND_ASSIGNMENT, experiment_id, unit_id)
    return None if row is None else dict(row)


async def find_production_version(connection: asyncpg.Connection, policy_name: str) -> Mapping[str, Any] | None:
    """The version of a policy that is in production: id, version, status, model and config_defaults."""
    row = await connection.fetchrow(FIND_PRODUCTION_VERSION, policy_name)
    return None if row is None else {**row, "config_defaults": msgspec.json.decode(row["config_defaults"])}


def _run(rows: Sequence[asyncpg.Record], known: Mapping[UUID, ServedRun]) -> ServedRun:
    first = rows[0]
    fingerprint = hashlib.sha256(repr([tuple(row) for row in rows]).encode()).hexdigest()[:12]
    same = known.get(first["id"])
    if same is not None and same.fingerprint == fingerprint:
        return same
    layer = None
    if first["layer_id"] is not None:
        layer = ServedLayer.of(first["layer_id"], first["holdout"], first["layer_from"], first["layer_to"])
    return ServedRun(
        id=first["id"],
        name=first["name"],
        run=first["run"],
        status=first["status"],
        unit_type=first["unit_type"],
        variants=tuple(_variant(row) for row in rows if row["variant_id"] is not None),
        epoch=first["epoch"] or 0,
        start_at=first["start_at"],
        end_at=first["end_at"],
        shipped_variant_id=first["shipped_variant_id"],
        targeting=_targeting(first["targeting"]),
        layer=layer,
        overrides=msgspec.json.decode(first["overrides"]),
        fingerprint=fingerprint,
    )


def _targeting(rule: str | None) -> Targeting | None:
    """The compiled rule. One that was written past `lifecycle sync` and can't work lets nobody in, rather than everybody."""
    if rule is None:
        return None
    try:
        return Targeting(rule)
    except TargetingError:
        nobody = Targeting("[][0]")
        nobody.rule = rule
        return nobody


def _variant(row: asyncpg.Record) -> ServedVariant:
    config: dict[str, Any] = msgspec.json.decode(row["config"])
    has_policy = row["policy_version_id"] is not None
    if has_policy:
        defaults = msgspec.json.decode(row["config_defaults"])
        config = complete_config(config, defaults, row["mlflow_model_name"], row["mlflow_model_version"])
    return ServedVariant(
        id=row["variant_id"],
        name=row["variant_name"],
        role=row["role"],
        allocation=row["allocation"],
        config=config,
        withdrawn=row["withdrawn"],
        servable=(has_policy and row["policy_status"] != "archived") or not row["names_policy"],
    )
