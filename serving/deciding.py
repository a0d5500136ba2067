"""Deciding for a unit: from what is known in memory at once, else with the database, grouped with whoever else asks meanwhile.

Belongs here: the order of looking up, storing and answering. Does not belong here: the rules and SQL (experimentation), HTTP.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from experimentation.assignment_store import NewRow, StoredRow, UnitKey, read_or_store, read_stored
from experimentation.assignments import (
    Catalogue,
    Decision,
    ServedRun,
    StaleCatalogueError,
    judge_new,
    judge_run,
    judge_stored,
    peeked,
)
from serving.catalogue import CatalogueCache
from serving.database import NOT_STORABLE, Database
from serving.errors import service_unavailable
from serving.grouping import Grouped
from serving.measures import AssignmentMeasures
from serving.shared_units import SharedUnits
from serving.unit_cache import UnitCache

# Each try reads the experiments anew, so a second is rare and a third means that they change all the time.
MAX_DECISIONS = 5


class Answer(NamedTuple):
    """What one requested name is answered; `made` when its row was stored for this very answer."""

    name: str
    run: ServedRun | None
    decision: Decision
    made: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks for which experiments, each name once. With `enroll` false nothing is stored."""

    unit_type: str
    unit_id: str
    names: Sequence[str]
    context: Mapping[str, Any] | None = None
    enroll: bool = True


class _Ask(NamedTuple):
    """A unit to look up in a run; `new` is what to store where it has no row."""

    run: ServedRun
    unit_id: str
    new: NewRow | None


_Row = StoredRow | Exception
"""What became of an ask: its row, or why PostgreSQL can't hold it."""


class Assigner:
    """Answers questions; what it says of an enrolled unit is committed."""

    def __init__(
        self,
        database: Database,
        catalogue: CatalogueCache,
        unit_cache: UnitCache,
        shared_units: SharedUnits,
        measures: AssignmentMeasures,
    ) -> None:
        """`shared_units` is asked before the database."""
        self._database, self._catalogue, self._units, self._shared = database, catalogue, unit_cache, shared_units
        self._group: Grouped[_Ask, _Row | None] = Grouped(self._look_up)
        self._keeping: set[asyncio.Task[None]] = set()
        self._measures = measures

    def at_once(self, question: Question) -> list[Answer] | None:
        """The answers, where memory has them all; nothing is awaited."""
        catalogue = self._catalogue.fresh
        if catalogue is None:
            return None
        known = self._known(catalogue, question)
        return None if None in known else known  # type: ignore[return-value]  # mypy does not see that no None is left

    async def answers(self, question: Question) -> list[Answer]:
        """One answer a name, in order. Raises ApiError (503, 400)."""
        return await self._database.retrying(lambda: self._decide(question))

    async def _decide(self, question: Question) -> list[Answer]:
        catalogue = await self._catalogue.current()
        for _ in range(MAX_DECISIONS):
            decided_at = time.monotonic()
            try:
                known = self._known(catalogue, question)
                asks = [
                    self._settled(catalogue, name, question) for name, answer in zip(question.names, known, strict=True)
                    if answer is None
                ]  # fmt: skip
                found = iter([await asks[0]] if len(asks) == 1 else await asyncio.gather(*asks))
                return [next(found) if answer is None else answer for answer in known]
            except StaleCatalogueError:
                catalogue = await self._catalogue.newer_than(decided_at)
        raise service_unavailable("The experiments are changing too fast to decide; try again shortly.")

    def _known(self, catalogue: Catalogue, question: Question) -> list[Answer | None]:
        now = datetime.now(UTC)
        known: list[Answer | None] = []
        for name in question.names:
            run = catalogue.runs.get(name)
            decision = judge_run(run, question.unit_type, question.unit_id, now)
            if decision is None and run is not None:
                decision = self._units.get(run, question.unit_id)
                if decision is None:
                    known.append(None)
                    continue
                self._measures.hits += 1
            known.append(Answer(name, run, decision))  # type: ignore[arg-type]  # no run means a decision
        return known

    async def _settled(self, catalogue: Catalogue, name: str, question: Question) -> Answer:
        """The answer for a unit that may have a row. Raises StaleCatalogueError."""
        run = catalogue.runs[name]
        unseen = judge_new(run, question.unit_type, question.unit_id, question.context)
        new = None
        if unseen.new and question.enroll and unseen.variant is not None:
            new = NewRow(run.id, question.unit_id, unseen.variant.id, run.epoch, unseen.variant.allocation)
        row = await self._group.ask(_Ask(run, question.unit_id, new))
        if isinstance(row, Exception):
            raise row
        if row is not None:
            return Answer(name, run, judge_stored(run, row.variant_id), row.made)
        if new is not None:
            raise StaleCatalogueError(f"{run.name} run {run.run} changed while a unit was being enrolled.")
        return Answer(name, run, unseen if question.enroll else peeked(unseen))

    async def _look_up(self, asks: Sequence[_Ask]) -> list[_Row | None]:
        """The rows of a group of asks, new units being stored."""
        # A unit that is asked for twice at once is one row, which counts as made for the first who asked.
        first: dict[str, _Ask] = {}
        for ask in asks:
            key = ask.run.cache_key + ask.unit_id
            if key not in first or first[key].new is None:
                first[key] = ask
        rows: dict[str, _Row] = await self._from_redis(first)
        rest = [ask for key, ask in first.items() if key not in rows]
        if rest:
            rows |= await self._from_database(rest)
        told: set[str] = set()
        replies: list[_Row | None] = []
        for ask in asks:
            key = ask.run.cache_key + ask.unit_id
            row = rows.get(key)
            replies.append(StoredRow(row.variant_id) if isinstance(row, StoredRow) and key in told else row)
            told.add(key)
        return replies

    async def _from_redis(self, asks: Mapping[str, _Ask]) -> dict[str, _Row]:
        rows: dict[str, _Row] = {}
        if self._shared.off:
            return rows
        found = await self._shared.get([(ask.run, ask.unit_id) for ask in asks.values()])
        for (key, ask), variant_id in zip(asks.items(), found, strict=True):
            if variant_id is not None and variant_id in ask.run.as_stored:
                rows[key] = StoredRow(variant_id)
                self._units.put(ask.run, ask.unit_id, ask.run.as_stored[variant_id])
                self._measures.hits += 1
        return rows

    async def _from_database(self, asks: Sequence[_Ask]) -> dict[str, _Row]:
        self._measures.misses += len(asks)
        found: dict[UnitKey, _Row]
        try:
            found = await self._query(asks)
        except NOT_STORABLE:
            if len(asks) == 1:
                raise
            # One of them can't be stored: the others don't suffer for it.
            found = {}
            for ask in asks:
                try:
                    found |= await self._query([ask])
                except NOT_STORABLE as error:
                    found[ask.run.id, ask.unit_id] = error
        rows: dict[str, _Row] = {}
        kept = []
        for ask in asks:
            row = found.get((ask.run.id, ask.unit_id))
            if row is None:
                continue
            rows[ask.run.cache_key + ask.unit_id] = row
            if isinstance(row, Exception):
                continue
            decision = ask.run.as_stored.get(row.variant_id)
            if decision is not None:
                self._units.put(ask.run, ask.unit_id, decision)
                kept.append((ask.run, ask.unit_id, row.variant_id))
        if kept and not self._shared.off:
            # Nobody waits for it: the rows are committed.
            task = asyncio.create_task(self._shared.put(kept))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)
        return rows

    async def _query(self, asks: Sequence[_Ask]) -> dict[UnitKey, _Row]:
        new = [ask.new for ask in asks if ask.new is not None]
        seen = [(ask.run.id, ask.unit_id) for ask in asks if ask.new is None]
        rows: dict[UnitKey, _Row] = {}
        async with self._database.acquire() as connection:
            if new:
                rows |= await read_or_store(connection, new)
            if seen:
                rows |= await read_stored(connection, seen)
        return rows
