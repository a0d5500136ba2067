"""Assignments in PostgreSQL: loads the served experiments, reads stored rows, and stores new ones so that concurrent writers agree."""

import hashlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from experimentation.assignments.rules import ServedExperiments, ServedLayer, ServedRun, ServedVariant, complete_config
from experimentation.assignments.targeting import Targeting, TargetingError

LOAD_SERVED_EXPERIMENTS = """
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

# The subselect makes PostgreSQL look each unit up in the unique index, whatever size it estimates for the table.
READ_STORED = """
SELECT (SELECT a.variant_id FROM exp.assignments a WHERE a.experiment_id = r.experiment_id AND a.unit_id = r.unit_id)
FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS r (experiment_id, unit_id, ordinal)
ORDER BY r.ordinal
"""

# Each unit refers to one of a few arms by number. The rows are sorted, because two writers with overlapping keys in different orders
# deadlock. The joins guard against outdated decisions: a row is stored only while its run is active and its variant, allocation and epoch
# are current.
STORE_NEW = """
INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity)
SELECT arm.experiment_id, e.unit_type, r.unit_id, arm.variant_id, arm.epoch, arm.propensity
FROM unnest($5::text[], $6::int[]) AS r (unit_id, n)
JOIN unnest($1::uuid[], $2::uuid[], $3::int[], $4::numeric[])
     WITH ORDINALITY AS arm (experiment_id, variant_id, epoch, propensity, n) ON arm.n = r.n
JOIN exp.experiments e ON e.id = arm.experiment_id AND e.status = 'active'
JOIN exp.variants v ON v.id = arm.variant_id AND v.allocation = arm.propensity AND v.withdrawn_at IS NULL
WHERE NOT EXISTS (SELECT 1 FROM exp.allocation_epochs n WHERE n.experiment_id = arm.experiment_id AND n.epoch > arm.epoch)
ORDER BY r.unit_id, arm.experiment_id
ON CONFLICT (experiment_id, unit_id) DO NOTHING
RETURNING experiment_id, unit_id
"""

# The same for a single unit, without the cost of arrays.
STORE_ONE = """
INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity)
SELECT e.id, e.unit_type, $5, v.id, $3, v.allocation
FROM exp.experiments e
JOIN exp.variants v ON v.id = $2 AND v.allocation = $4 AND v.withdrawn_at IS NULL
WHERE e.id = $1 AND e.status = 'active'
  AND NOT EXISTS (SELECT 1 FROM exp.allocation_epochs n WHERE n.experiment_id = $1 AND n.epoch > $3)
ON CONFLICT (experiment_id, unit_id) DO NOTHING
RETURNING experiment_id, unit_id
"""

FIND_ASSIGNMENT = """
SELECT variant_id, epoch, propensity, assigned_at FROM exp.assignments WHERE experiment_id = $1 AND unit_id = $2
"""

FIND_PRODUCTION_VERSION = """
SELECT v.id, v.version, v.status::text AS status, v.mlflow_model_name, v.mlflow_model_version, v.config_defaults::text AS config_defaults
FROM exp.policies p JOIN exp.policy_versions v ON v.id = p.production_version_id WHERE p.name = $1
"""


class Arm(NamedTuple):
    """The variant to enrol units in, with the epoch and the propensity (the variant's allocation) of the decision.

    Without a variant, units are looked up and not stored.
    """

    experiment_id: UUID
    variant_id: UUID | None
    epoch: int
    propensity: Decimal


class StoredRow(NamedTuple):
    """The variant of a stored unit. `created`: this call stored the row."""

    variant_id: UUID
    created: bool = False


async def load_served_experiments(
    connection: asyncpg.Connection, previous: ServedExperiments | None = None
) -> ServedExperiments:
    """Every run with its variants and complete configs, as one consistent snapshot.

    A run that is unchanged since `previous` is the same object, so caches that refer to it stay valid.
    """
    rows = await connection.fetch(LOAD_SERVED_EXPERIMENTS)
    known = {} if previous is None else previous.by_id
    return ServedExperiments.of(
        _run(list(rows_of_run), known) for _, rows_of_run in groupby(rows, key=lambda row: row["id"])
    )


async def read_or_store(
    connection: asyncpg.Connection, arms: Sequence[Arm], units: Sequence[tuple[str, int]], *, store_first: bool
) -> list[StoredRow | None]:
    """The row of each unit, in the order of `units`. Stores a unit that has no row if its arm has a variant.

    `units`: unit id and the index of its arm in `arms`. A unit may occur only once per run. With `store_first`, new units cost one
    statement; without it, stored units do. Call it outside a transaction: the rows that it returns are committed. A unit without a row
    is None; if its arm has a variant, the decision was based on outdated experiments.
    """
    rows: list[StoredRow | None] = [None] * len(units)
    all_indexes = range(len(units))
    if not store_first:
        await _read(connection, arms, units, all_indexes, rows)
    new = [index for index in all_indexes if rows[index] is None and arms[units[index][1]].variant_id is not None]
    if new:
        await _store(connection, arms, units, new, rows)
    # A separate statement: the insert does not see a row that a concurrent writer stored while it ran.
    missing = [index for index in (all_indexes if store_first else new) if rows[index] is None]
    if missing:
        await _read(connection, arms, units, missing, rows)
    return rows


async def _read(
    connection: asyncpg.Connection,
    arms: Sequence[Arm],
    units: Sequence[tuple[str, int]],
    indexes: Sequence[int],
    rows: list[StoredRow | None],
) -> None:
    experiments = [arms[units[index][1]].experiment_id for index in indexes]
    records = await connection.fetch(READ_STORED, experiments, [units[index][0] for index in indexes])
    for index, (variant_id,) in zip(indexes, records, strict=True):
        rows[index] = None if variant_id is None else StoredRow(variant_id)


async def _store(
    connection: asyncpg.Connection,
    arms: Sequence[Arm],
    units: Sequence[tuple[str, int]],
    indexes: Sequence[int],
    rows: list[StoredRow | None],
) -> None:
    if len(indexes) == 1:
        unit_id, arm_index = units[indexes[0]]
        records = await connection.fetch(STORE_ONE, *arms[arm_index], unit_id)
    else:
        columns = tuple(zip(*arms, strict=True))
        # SQL counts arms from 1.
        unit_ids, ordinals = [units[index][0] for index in indexes], [units[index][1] + 1 for index in indexes]
        records = await connection.fetch(STORE_NEW, *columns, unit_ids, ordinals)
    created = {tuple(record) for record in records}
    for index in indexes:
        unit_id, arm_index = units[index]
        arm = arms[arm_index]
        if arm.variant_id is not None and (arm.experiment_id, unit_id) in created:
            rows[index] = StoredRow(arm.variant_id, True)


async def find_assignment(
    connection: asyncpg.Connection, experiment_id: UUID, unit_id: str
) -> Mapping[str, Any] | None:
    """The unit's row (variant_id, epoch, propensity, assigned_at), or None if it has none."""
    row = await connection.fetchrow(FIND_ASSIGNMENT, experiment_id, unit_id)
    return None if row is None else dict(row)


async def find_production_version(connection: asyncpg.Connection, policy_name: str) -> Mapping[str, Any] | None:
    """The policy's version in production (id, version, status, model, config_defaults), or None if it has none."""
    row = await connection.fetchrow(FIND_PRODUCTION_VERSION, policy_name)
    return None if row is None else {**row, "config_defaults": msgspec.json.decode(row["config_defaults"])}


def _run(rows: Sequence[asyncpg.Record], known: Mapping[UUID, ServedRun]) -> ServedRun:
    first = rows[0]
    fingerprint = hashlib.sha256(repr([tuple(row) for row in rows]).encode()).hexdigest()[:12]
    previous = known.get(first["id"])
    if previous is not None and previous.fingerprint == fingerprint:
        return previous
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
    """The compiled rule. An invalid rule, which only a write that bypasses `lifecycle sync` can store, matches no unit."""
    if rule is None:
        return None
    try:
        return Targeting(rule)
    except TargetingError:
        matches_nobody = Targeting("[][0]")
        matches_nobody.rule = rule
        return matches_nobody


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
