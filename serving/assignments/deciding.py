"""Deciding for a unit: from what is known in memory at once, else with the database, grouped with whoever else asks meanwhile."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from experimentation.assignments.rules import (
    Catalogue,
    Decision,
    ServedRun,
    StaleCatalogueError,
    judge_new,
    judge_run,
    judge_stored,
    peeked,
)
from experimentation.assignments.store import Arm, StoredRow, read_or_store
from experimentation.assignments.targeting import Asker
from serving.assignments.catalogue import CatalogueCache
from serving.assignments.shared_units import SharedUnits
from serving.assignments.unit_cache import UnitCache
from serving.http.database import NOT_STORABLE, Database
from serving.http.errors import service_unavailable
from serving.http.grouping import Grouped, OverloadedError
from serving.http.measures import AssignmentMeasures

# Each try reads the experiments anew, so a second is rare and a third means that they change all the time.
MAX_DECISIONS = 5
ZERO = Decimal(0)


class Answer(NamedTuple):
    """What one requested name is answered; `made` when its row was stored for this very answer."""

    name: str
    run: ServedRun | None
    decision: Decision
    made: bool = False


class Question(NamedTuple):
    """Who asks for which experiments, each name once. With `enroll` false nothing is stored."""

    unit_type: str
    unit_id: str
    names: Sequence[str]
    asker: Asker
    enroll: bool = True


class _Ask(NamedTuple):
    """A unit to look up in a run, by its cache key; `decision` is what to store where it has no row."""

    key: str
    run: ServedRun
    unit_id: str
    decision: Decision | None


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
        # As the last group was, so is the next one, most of the time; a wrong guess costs a second statement.
        self._mostly_new = True

    async def answers(self, question: Question) -> list[Answer]:
        """One answer a name, in order. Nothing is awaited where memory has them all. Raises ApiError (503, 400)."""
        failed: Exception | None = None
        began = time.monotonic()
        catalogue = self._catalogue.fresh
        if catalogue is not None:
            known = self._known(catalogue, question)
            if None not in known:
                return known  # type: ignore[return-value]  # mypy does not see that no None is left
            try:
                return await self._completed(catalogue, question, known)
            except StaleCatalogueError:
                pass
            except Exception as error:  # noqa: BLE001 - what is to be done about it is `retrying`'s
                failed = error
        return await self._database.retrying(lambda: self._decide(question), failed, began)

    async def _decide(self, question: Question) -> list[Answer]:
        catalogue = await self._catalogue.current()
        for _ in range(MAX_DECISIONS):
            decided_at = time.monotonic()
            try:
                return await self._completed(catalogue, question, self._known(catalogue, question))
            except StaleCatalogueError:
                catalogue = await self._catalogue.newer_than(decided_at)
        raise service_unavailable("The experiments are changing too fast to decide; try again shortly.")

    def _known(self, catalogue: Catalogue, question: Question) -> list[Answer | None]:
        """What memory knows, None for the rest."""
        unit_type, unit_id, names, _, _ = question
        now = datetime.now(UTC)
        known: list[Answer | None] = []
        for name in names:
            run = catalogue.runs.get(name)
            decision = judge_run(run, unit_type, unit_id, now)
            if decision is None and run is not None:
                decision = self._units.get(run.cache_key + unit_id, run)
                if decision is None:
                    known.append(None)
                    continue
                self._measures.hits += 1
            known.append(Answer(name, run, decision))  # type: ignore[arg-type]  # no run means a decision
        return known

    async def _completed(
        self, catalogue: Catalogue, question: Question, known: Sequence[Answer | None]
    ) -> list[Answer]:
        """Every answer, what is not known being looked up, or stored. Raises StaleCatalogueError."""
        if len(known) == 1 and known[0] is None:
            # One name is what most ask for, and needs no task.
            return [await self._settled(catalogue, question.names[0], question)]
        asked = [
            self._settled(catalogue, name, question)
            for name, answer in zip(question.names, known, strict=True)
            if answer is None
        ]
        found = iter(await asyncio.gather(*asked))
        return [next(found) if answer is None else answer for answer in known]

    async def _settled(self, catalogue: Catalogue, name: str, question: Question) -> Answer:
        """The answer for a unit that may have a row. Raises StaleCatalogueError."""
        run = catalogue.runs[name]
        _, unit_id, _, asker, enroll = question
        unseen = judge_new(run, unit_id, asker)
        new = unseen if unseen.new and enroll else None
        try:
            row = await self._group.ask(_Ask(run.cache_key + unit_id, run, unit_id, new))
        except OverloadedError:
            raise service_unavailable("More requests wait for the database than it can answer soon.") from None
        if row is None:
            if new is not None:
                raise StaleCatalogueError(f"{run.name} run {run.run} changed while a unit was being enrolled.")
            return Answer(name, run, unseen if enroll else peeked(run, unseen))
        if isinstance(row, Exception):
            raise row
        return Answer(name, run, judge_stored(run, row.variant_id), row.made)

    async def _look_up(self, asks: Sequence[_Ask]) -> list[_Row | None]:
        """The rows of a group of asks, new units being stored."""
        # A unit that is asked for twice at once is one row, which counts as made for the first who asked.
        first: dict[str, _Ask] = {}
        for ask in asks:
            found = first.get(ask.key)
            if found is None or found.decision is None:
                first[ask.key] = ask
        once = list(first.values())
        rows = await self._from_database(once) if self._shared.off else await self._through_redis(once)
        if len(once) == len(asks):
            return rows
        by_key: dict[str, _Row | None] = dict(zip(first, rows, strict=True))
        replies: list[_Row | None] = []
        for ask in asks:
            row = by_key[ask.key]
            replies.append(row)
            if isinstance(row, StoredRow) and row.made:
                by_key[ask.key] = StoredRow(row.variant_id)
        return replies

    async def _through_redis(self, asks: Sequence[_Ask]) -> list[_Row | None]:
        """What Redis knows, and for the rest what the database says, which Redis is then told."""
        rows: list[_Row | None] = []
        for ask, place in zip(asks, await self._shared.get([(ask.key, ask.run) for ask in asks]), strict=True):
            rows.append(None if place is None else StoredRow(ask.run.variants[place].id))
            if place is not None:
                self._units.put(ask.key, ask.run, place)
                self._measures.hits += 1
        rest = [place for place, row in enumerate(rows) if row is None]
        kept = []
        if rest:
            for place, row in zip(rest, await self._from_database([asks[place] for place in rest]), strict=True):
                rows[place] = row
                if isinstance(row, StoredRow):
                    kept.append((asks[place].key, asks[place].run, row.variant_id))
        if kept:
            # Nobody waits for it: the rows are committed.
            task = asyncio.create_task(self._shared.put(kept))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)
        return rows

    async def _from_database(self, asks: Sequence[_Ask]) -> list[_Row | None]:
        self._measures.misses += len(asks)
        try:
            return await self._query(asks)
        except NOT_STORABLE:
            if len(asks) == 1:
                raise
        # One of them can't be stored: the others don't suffer for it.
        rows: list[_Row | None] = []
        for ask in asks:
            try:
                rows += await self._query([ask])
            except NOT_STORABLE as error:
                rows.append(error)
        return rows

    async def _query(self, asks: Sequence[_Ask]) -> list[_Row | None]:
        arms: dict[tuple[int, int], int] = {}
        described: list[Arm] = []
        units: list[tuple[str, int]] = []
        for _, run, unit_id, decision in asks:
            variant = None if decision is None else decision.variant
            # By identity, which costs nothing to compare: the asks keep both alive.
            which = (id(run), id(variant))
            place = arms.get(which)
            if place is None:
                place = arms[which] = len(described)
                described.append(
                    Arm(run.id, None, 0, ZERO) if variant is None else Arm(run.id, variant.id, run.epoch, variant.allocation)
                )  # fmt: skip
            units.append((unit_id, place))
        async with self._database.keeping() as connection:
            found = await read_or_store(connection, described, units, store_first=self._mostly_new)
        made = 0
        rows: list[_Row | None] = list(found)
        for ask, row in zip(asks, found, strict=True):
            if row is not None:
                made += row.made
                place = ask.run.places.get(row.variant_id)
                if place is not None:
                    self._units.put(ask.key, ask.run, place)
        self._mostly_new = made * 2 >= len(asks)
        return rows
