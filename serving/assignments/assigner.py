"""Decides for a unit: from memory if possible, else from Redis or the database, grouped with concurrent requests."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from experimentation.assignments.rules import (
    Decision,
    ServedExperiments,
    ServedRun,
    StaleExperimentsError,
    judge_new,
    judge_run,
    judge_stored,
    peeked,
)
from experimentation.assignments.store import Arm, StoredRow, read_or_store
from experimentation.assignments.targeting import TargetingInput
from serving.assignments.experiments_cache import ExperimentsCache
from serving.assignments.shared_units import SharedUnits
from serving.assignments.unit_cache import UnitCache
from serving.http.database import NOT_STORABLE, Database
from serving.http.errors import service_unavailable
from serving.http.grouping import Grouped, OverloadedError
from serving.http.metrics import AssignmentMetrics

# Each attempt reloads the experiments. A second attempt is rare; a third means that they change continuously.
MAX_DECISIONS = 5
ZERO = Decimal(0)


class Answer(NamedTuple):
    """The answer for one requested name. `created`: this answer stored the unit's row."""

    name: str
    run: ServedRun | None
    decision: Decision
    created: bool = False


class Question(NamedTuple):
    """A unit and the experiments that it asks for, each name once. Stores nothing if `enroll` is false."""

    unit_type: str
    unit_id: str
    names: Sequence[str]
    targeting_input: TargetingInput
    enroll: bool = True


class _Lookup(NamedTuple):
    """A unit to look up in a run, by its cache key. Without a row, `decision` is stored."""

    key: str
    run: ServedRun
    unit_id: str
    decision: Decision | None


_Row = StoredRow | Exception
"""The result of a lookup: the row, or the error if PostgreSQL can't store it."""


class Assigner:
    """Answers questions. The row of an enrolled unit is committed before its answer."""

    def __init__(
        self,
        database: Database,
        experiments: ExperimentsCache,
        unit_cache: UnitCache,
        shared_units: SharedUnits,
        metrics: AssignmentMetrics,
    ) -> None:
        """`shared_units` is read before the database."""
        self._database, self._experiments, self._units, self._shared = database, experiments, unit_cache, shared_units
        self._lookups: Grouped[_Lookup, _Row | None] = Grouped(self._look_up)
        self._redis_writes: set[asyncio.Task[None]] = set()
        self._metrics = metrics
        # The next group usually resembles the last one. A wrong guess costs a second statement.
        self._mostly_new = True

    async def answers(self, question: Question) -> list[Answer]:
        """One answer per name, in order. Awaits nothing if memory has them all. Raises ApiError (503, 400)."""
        failed: Exception | None = None
        began = time.monotonic()
        experiments = self._experiments.fresh
        if experiments is not None:
            known = self._known(experiments, question)
            if None not in known:
                return known  # type: ignore[return-value]  # mypy does not see that no None is left
            try:
                return await self._completed(experiments, question, known)
            except StaleExperimentsError:
                pass
            except Exception as error:  # noqa: BLE001 - `retrying` decides what to do about it
                failed = error
        return await self._database.retrying(lambda: self._decide(question), failed, began)

    async def _decide(self, question: Question) -> list[Answer]:
        experiments = await self._experiments.current()
        for _ in range(MAX_DECISIONS):
            decided_at = time.monotonic()
            try:
                return await self._completed(experiments, question, self._known(experiments, question))
            except StaleExperimentsError:
                experiments = await self._experiments.newer_than(decided_at)
        raise service_unavailable("The experiments are changing too fast to decide. Try again shortly.")

    def _known(self, experiments: ServedExperiments, question: Question) -> list[Answer | None]:
        """The answers that memory has, and None for the others."""
        unit_type, unit_id, names, _, _ = question
        now = datetime.now(UTC)
        known: list[Answer | None] = []
        for name in names:
            run = experiments.runs.get(name)
            decision = judge_run(run, unit_type, unit_id, now)
            if decision is None and run is not None:
                decision = self._units.get(run.cache_key + unit_id, run)
                if decision is None:
                    known.append(None)
                    continue
                self._metrics.hits += 1
            known.append(Answer(name, run, decision))  # type: ignore[arg-type]  # no run means a decision
        return known

    async def _completed(
        self, experiments: ServedExperiments, question: Question, known: Sequence[Answer | None]
    ) -> list[Answer]:
        """All answers: looks up or stores the ones that are not known. Raises StaleExperimentsError."""
        if len(known) == 1 and known[0] is None:
            # Most requests have one name, which needs no task.
            return [await self._looked_up(experiments, question.names[0], question)]
        pending = [
            self._looked_up(experiments, name, question)
            for name, answer in zip(question.names, known, strict=True)
            if answer is None
        ]
        answers = iter(await asyncio.gather(*pending))
        return [next(answers) if answer is None else answer for answer in known]

    async def _looked_up(self, experiments: ServedExperiments, name: str, question: Question) -> Answer:
        """The answer for a unit that may have a row. Raises StaleExperimentsError."""
        run = experiments.runs[name]
        _, unit_id, _, targeting_input, enroll = question
        without_row = judge_new(run, unit_id, targeting_input)
        new = without_row if without_row.new and enroll else None
        try:
            row = await self._lookups.ask(_Lookup(run.cache_key + unit_id, run, unit_id, new))
        except OverloadedError:
            raise service_unavailable("Too many requests are waiting for the database. Try again shortly.") from None
        if row is None:
            if new is not None:
                raise StaleExperimentsError(f"{run.name} run {run.run} changed while a unit was being enrolled.")
            return Answer(name, run, without_row if enroll else peeked(run, without_row))
        if isinstance(row, Exception):
            raise row
        return Answer(name, run, judge_stored(run, row.variant_id), row.created)

    async def _look_up(self, lookups: Sequence[_Lookup]) -> list[_Row | None]:
        """The rows of a group of lookups. Stores new units."""
        # Concurrent lookups of one unit share one row. Only the first of them counts as having created it.
        by_unit: dict[str, _Lookup] = {}
        for lookup in lookups:
            earlier = by_unit.get(lookup.key)
            if earlier is None or earlier.decision is None:
                by_unit[lookup.key] = lookup
        distinct = list(by_unit.values())
        rows = await self._from_database(distinct) if self._shared.off else await self._through_redis(distinct)
        if len(distinct) == len(lookups):
            return rows
        row_of: dict[str, _Row | None] = dict(zip(by_unit, rows, strict=True))
        replies: list[_Row | None] = []
        for lookup in lookups:
            row = row_of[lookup.key]
            replies.append(row)
            if isinstance(row, StoredRow) and row.created:
                row_of[lookup.key] = StoredRow(row.variant_id)
        return replies

    async def _through_redis(self, lookups: Sequence[_Lookup]) -> list[_Row | None]:
        """The rows that Redis has, and the others from the database, which are then written to Redis."""
        rows: list[_Row | None] = []
        variant_indexes = await self._shared.get([(lookup.key, lookup.run) for lookup in lookups])
        for lookup, variant_index in zip(lookups, variant_indexes, strict=True):
            rows.append(None if variant_index is None else StoredRow(lookup.run.variants[variant_index].id))
            if variant_index is not None:
                self._units.put(lookup.key, lookup.run, variant_index)
                self._metrics.hits += 1
        missing = [index for index, row in enumerate(rows) if row is None]
        to_share = []
        if missing:
            from_database = await self._from_database([lookups[index] for index in missing])
            for index, row in zip(missing, from_database, strict=True):
                rows[index] = row
                if isinstance(row, StoredRow):
                    to_share.append((lookups[index].key, lookups[index].run, row.variant_id))
        if to_share:
            # The answer does not wait for this: the rows are committed.
            task = asyncio.create_task(self._shared.put(to_share))
            self._redis_writes.add(task)
            task.add_done_callback(self._redis_writes.discard)
        return rows

    async def _from_database(self, lookups: Sequence[_Lookup]) -> list[_Row | None]:
        self._metrics.misses += len(lookups)
        try:
            return await self._query(lookups)
        except NOT_STORABLE:
            if len(lookups) == 1:
                raise
        # One unit can't be stored. Repeat one by one, so that only its own request fails.
        rows: list[_Row | None] = []
        for lookup in lookups:
            try:
                rows += await self._query([lookup])
            except NOT_STORABLE as error:
                rows.append(error)
        return rows

    async def _query(self, lookups: Sequence[_Lookup]) -> list[_Row | None]:
        arm_indexes: dict[tuple[int, int], int] = {}
        arms: list[Arm] = []
        units: list[tuple[str, int]] = []
        for _, run, unit_id, decision in lookups:
            variant = None if decision is None else decision.variant
            # By identity, which is cheap to compare. The lookups keep both objects alive.
            identity = (id(run), id(variant))
            arm_index = arm_indexes.get(identity)
            if arm_index is None:
                arm_index = arm_indexes[identity] = len(arms)
                arms.append(
                    Arm(run.id, None, 0, ZERO) if variant is None else Arm(run.id, variant.id, run.epoch, variant.allocation)
                )  # fmt: skip
            units.append((unit_id, arm_index))
        async with self._database.reused_connection() as connection:
            stored_rows = await read_or_store(connection, arms, units, store_first=self._mostly_new)
        created = 0
        rows: list[_Row | None] = list(stored_rows)
        for lookup, row in zip(lookups, stored_rows, strict=True):
            if row is not None:
                created += row.created
                variant_index = lookup.run.index_of.get(row.variant_id)
                if variant_index is not None:
                    self._units.put(lookup.key, lookup.run, variant_index)
        self._mostly_new = created * 2 >= len(lookups)
        return rows
