"""Assignments in PostgreSQL: loading what is served, reading stored rows, storing new ones so that racing writers agree.

Belongs here: the hot path's SQL (asyncpg), and the order of reading, storing and answering. Does not belong here: the rules
(assignments.py), HTTP, pools and retries (serving/).
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from experimentation.assignments import (
    Catalogue,
    Decision,
    ServedRun,
    ServedVariant,
    StaleCatalogueError,
    complete_config,
    judge_run,
    judge_unit,
)

UnitKey = tuple[UUID, str]
"""(experiment id, unit id): what a stored row is unique by."""

LOAD_CATALOGUE = """
SELECT e.id, e.name, e.run, e.status::text AS status, e.unit_type::text AS unit_type, e.start_at, e.end_at, e.shipped_variant_id,
       (SELECT max(n.epoch) FROM exp.allocation_epochs n WHERE n.experiment_id = e.id) AS epoch,
       v.id AS variant_id, v.name AS variant_name, v.role::text AS role, v.allocation, v.config::text AS config,
       v.withdrawn_at IS NOT NULL AS withdrawn,
       v.config ->> 'policy_version_id' IS NOT NULL AS names_policy, p.id AS policy_version_id,
       p.mlflow_model_name, p.mlflow_model_version, p.config_defaults::text AS config_defaults, p.status::text AS policy_status
FROM exp.experiments e
LEFT JOIN exp.variants v ON v.experiment_id = e.id
LEFT JOIN exp.policy_versions p ON p.id::text = lower(v.config ->> 'policy_version_id')
ORDER BY e.name, e.run, v.position, v.id
"""

READ_STORED = """
SELECT a.experiment_id, a.unit_id, a.variant_id
FROM exp.assignments a
JOIN unnest($1::uuid[], $2::text[]) AS asked (experiment_id, unit_id)
  ON a.experiment_id = asked.experiment_id AND a.unit_id = asked.unit_id
"""

# Sorted, because two writers with overlapping keys in different orders deadlock. Guarded, because what was decided with may be a
# moment old: a row is stored only while its run is active and its variant, allocation and epoch are still the current ones.
STORE_NEW = """
INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity)
SELECT r.experiment_id, e.unit_type, r.unit_id, r.variant_id, r.epoch, r.propensity
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::int[], $5::numeric[])
     AS r (experiment_id, unit_id, variant_id, epoch, propensity)
JOIN exp.experiments e ON e.id = r.experiment_id AND e.status = 'active'
JOIN exp.variants v ON v.id = r.variant_id AND v.allocation = r.propensity AND v.withdrawn_at IS NULL
WHERE NOT EXISTS (SELECT 1 FROM exp.allocation_epochs n WHERE n.experiment_id = r.experiment_id AND n.epoch > r.epoch)
ORDER BY r.unit_id, r.experiment_id
ON CONFLICT (experiment_id, unit_id) DO NOTHING
RETURNING experiment_id, unit_id, variant_id
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
class Answer:
    """What one requested name is answered."""

    name: str
    run: ServedRun | None
    decision: Decision
    stored_now: bool = False


class StoredUnits:
    """The variants of units seen lately, least recent out first. Rows never change, so an entry can't be wrong, only old."""

    def __init__(self, entries: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `entries` (0: none) for `seconds` each."""
        self._entries, self._seconds, self._clock = entries, seconds, clock
        self._units: OrderedDict[UnitKey, tuple[UUID, float]] = OrderedDict()
        self._hits = self._misses = 0

    def __len__(self) -> int:
        """How many units are held."""
        return len(self._units)

    def get(self, key: UnitKey) -> UUID | None:
        """The stored variant, or None when the database has to be asked."""
        found = self._units.get(key)
        if found is None or found[1] < self._clock():
            self._misses += 1
            return None
        self._hits += 1
        self._units.move_to_end(key)
        return found[0]

    def put(self, key: UnitKey, variant_id: UUID) -> None:
        """Remember a row. Only what is committed may be put here."""
        if self._entries == 0:
            return
        self._units[key] = variant_id, self._clock() + self._seconds
        self._units.move_to_end(key)
        if len(self._units) > self._entries:
            self._units.popitem(last=False)

    def take_counts(self) -> tuple[int, int]:
        """Hits and misses since the last call."""
        counts = self._hits, self._misses
        self._hits = self._misses = 0
        return counts


async def load_catalogue(connection: asyncpg.Connection) -> Catalogue:
    """Every run with its variants and complete configs, as one consistent picture."""
    rows = await connection.fetch(LOAD_CATALOGUE)
    return Catalogue.of(_run(list(rows_of_run)) for _, rows_of_run in groupby(rows, key=lambda row: row["id"]))


async def read_stored(connection: asyncpg.Connection, keys: Iterable[UnitKey]) -> dict[UnitKey, UUID]:
    """The stored variant of each of the keys that has a row."""
    experiments, units = zip(*keys, strict=True)
    rows = await connection.fetch(READ_STORED, experiments, units)
    return {(row["experiment_id"], row["unit_id"]): row["variant_id"] for row in rows}


async def store_new(
    connection: asyncpg.Connection, rows: Sequence[NewRow]
) -> tuple[dict[UnitKey, UUID], dict[UnitKey, UUID]]:
    """Store the rows; return the variants that this call stored, and those of keys that another writer stored first.

    Must not run inside a transaction: what it returns is committed. A key that is in neither result was decided with an outdated
    catalogue, and is not stored.
    """
    stored = await connection.fetch(
        STORE_NEW,
        [row.experiment_id for row in rows],
        [row.unit_id for row in rows],
        [row.variant_id for row in rows],
        [row.epoch for row in rows],
        [row.propensity for row in rows],
    )
    mine = {(row["experiment_id"], row["unit_id"]): row["variant_id"] for row in stored}
    missing = [row.key for row in rows if row.key not in mine]
    # A second statement: the snapshot of the first does not see the row of a writer who won while it ran.
    return mine, await read_stored(connection, missing) if missing else {}


async def assign(
    acquire: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]],
    catalogue: Catalogue,
    stored_units: StoredUnits,
    unit_type: str,
    unit_id: str,
    names: Sequence[str],
    now: datetime,
) -> list[Answer]:
    """Answer each name, in order; newly enrolled units are committed when this returns. The database is asked only where it must be.

    Raises StaleCatalogueError when the database has moved on: load the catalogue again and call again.
    """
    answers: list[Answer | None] = []
    open_runs: dict[int, ServedRun] = {}
    for name in names:
        run = catalogue.runs.get(name)
        decision = judge_run(run, unit_type, now)
        if decision is None and run is not None:
            variant_id = stored_units.get((run.id, unit_id))
            decision = None if variant_id is None else judge_unit(run, unit_id, variant_id)
        if decision is None and run is not None:
            open_runs[len(answers)] = run
            answers.append(None)
        elif decision is not None:
            answers.append(Answer(name, run, decision))
    if open_runs:
        async with acquire() as connection:
            judged = await _judge_with_rows(connection, stored_units, unit_id, list(open_runs.values()))
        for index, run in open_runs.items():
            answers[index] = Answer(names[index], run, *judged[run.id])
    return [answer for answer in answers if answer is not None]


async def _judge_with_rows(
    connection: asyncpg.Connection, stored_units: StoredUnits, unit_id: str, runs: Sequence[ServedRun]
) -> dict[UUID, tuple[Decision, bool]]:
    """By run id: the decision from the stored row, new units being stored first, and whether this call stored it."""
    rows = await read_stored(connection, [(run.id, unit_id) for run in runs])
    decisions = {run.id: judge_unit(run, unit_id, rows.get((run.id, unit_id))) for run in runs}
    new = [
        NewRow(run.id, unit_id, decision.variant.id, run.epoch, decision.variant.allocation)
        for run in runs
        if (decision := decisions[run.id]).new and decision.variant is not None
    ]
    mine: dict[UnitKey, UUID] = {}
    if new:
        mine, others = await store_new(connection, new)
        rows |= mine | others
    for row in new:
        if row.key not in rows:
            raise StaleCatalogueError(f"Experiment {row.experiment_id} changed while a unit was being enrolled.")
    for key, variant_id in rows.items():
        stored_units.put(key, variant_id)
    return {
        run.id: (
            judge_unit(run, unit_id, rows[run.id, unit_id]) if decisions[run.id].new else decisions[run.id],
            (run.id, unit_id) in mine,
        )
        for run in runs
    }


def _run(rows: Sequence[asyncpg.Record]) -> ServedRun:
    first = rows[0]
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
    )


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
