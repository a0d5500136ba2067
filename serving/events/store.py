"""Makes valid events durable: in PostgreSQL, grouped with concurrent requests, or in the spool while PostgreSQL is unavailable."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Literal

import asyncpg
import msgspec
import psycopg

from eventlog.dead_letters import first_line, store_dead_letter
from eventlog.spool import SpoolError, SpoolFullError, SpoolWriter
from eventlog.store import NoPartitionError, insert_events
from eventlog.validation import Event, set_flags
from serving.assignments.experiments_cache import ExperimentsCache
from serving.http.database import NOT_STORABLE, Database, PartitionKeeper
from serving.http.errors import ApiError, service_unavailable, validation_error
from serving.http.grouping import Grouped, OverloadedError

log = logging.getLogger(__name__)

GROUP_EVENTS = 500
# Groups written to the spool with one fsync.
SPOOL_GROUPS = 100
LOG_EVERY_SECONDS = 10.0
SPOOL_FULL = "The database is unavailable and the spool is full. Try again shortly."
UNSTORABLE = "PostgreSQL can't store a value of the event."

# A trigger or a constraint in the database rejects the event. The sender can't fix that, so the event becomes a dead letter.
RULES = (asyncpg.IntegrityConstraintViolationError, asyncpg.PLPGSQLError)
# PostgreSQL rejects the event itself, so an immediate retry is useless.
REFUSED = (*NOT_STORABLE, *RULES)

PARTITION_UNAVAILABLE = "The partition for the day of an event can't be created now. Try again shortly."

Outcome = Literal["accepted", "spooled", "dead_letter", "rejected", "unavailable"]
"""accepted: committed in PostgreSQL. spooled: fsynced on disk. dead_letter: kept for a person to look at.
rejected: PostgreSQL can't store a value. unavailable: the day has no partition now. These two are stored nowhere."""

_encode = msgspec.json.Encoder().encode


class PartitionUnavailableError(Exception):
    """The partition of an event's day can't be created now. Nothing of the group is stored."""


class EventStore:
    """Flags and stores events. They are durable when a method returns."""

    def __init__(
        self,
        database: Database,
        experiments_cache: ExperimentsCache,
        partitions: PartitionKeeper,
        spool: SpoolWriter | None,
    ) -> None:
        """`partitions` creates missing days. Without a `spool`, events are refused while the database is unavailable."""
        self._database, self._experiments, self._partitions, self._spool = (
            database,
            experiments_cache,
            partitions,
            spool,
        )
        # One group at a time: the next one grows meanwhile, and starting a COPY costs as much as twenty events.
        self._singles: Grouped[Event, Outcome] = Grouped(self.store, size=GROUP_EVENTS, in_flight=1)
        self._logged_at = float("-inf")
        self._spooling: Grouped[Sequence[bytes], None] = Grouped(self._append, in_flight=1, size=SPOOL_GROUPS)

    async def store_one(self, event: Event) -> Outcome:
        """Store an event together with concurrent ones. Raises ApiError: 400, or 503 if it can't be stored anywhere."""
        try:
            outcome = await self._singles.ask(event)
        except OverloadedError:
            raise service_unavailable("Too many events are waiting for the database. Try again shortly.") from None
        if outcome == "rejected":
            raise validation_error([], UNSTORABLE)
        if outcome == "unavailable":
            raise service_unavailable(PARTITION_UNAVAILABLE)
        return outcome

    async def store(self, events: Sequence[Event]) -> list[Outcome]:
        """The outcome of each event, in order. Raises ApiError: 503 if they can't be stored anywhere."""
        if self._database.away and self._spool is not None:
            return await self._to_spool(events)
        try:
            await self._database.retrying(lambda: self.insert(events))
        except PartitionUnavailableError:
            return ["unavailable"] if len(events) == 1 else await self._in_halves(events)
        except RULES as error:
            return [await self._dead_letter(events[0], error)] if len(events) == 1 else await self._in_halves(events)
        except ApiError as error:
            if error.status == 400:
                return ["rejected"] if len(events) == 1 else await self._in_halves(events)
            if self._database.away and self._spool is not None:
                return await self._to_spool(events)
            raise
        return ["accepted"] * len(events)

    async def _dead_letter(self, event: Event, error: Exception) -> Outcome:
        log.error("Event %s became a dead letter: %s", event.event_id, first_line(error))

        async def add() -> None:
            async with self._database.acquire() as connection:
                await store_dead_letter(connection, event, first_line(error), 1)

        await self._database.retrying(add)
        return "dead_letter"

    async def _in_halves(self, events: Sequence[Event]) -> list[Outcome]:
        """Store each half separately, so that one rejected event does not affect the others."""
        half = len(events) // 2
        return [*await self.store(events[:half]), *await self.store(events[half:])]

    async def insert(self, events: Sequence[Event]) -> None:
        """Store all events or none, each once. Raises PartitionUnavailableError and asyncpg's errors."""
        experiments = await self._experiments.current()
        set_flags(events, experiments.variants, experiments.by_id.keys())
        try:
            async with self._database.reused_connection() as connection:
                await insert_events(connection, events)
            return
        except NoPartitionError:
            pass
        try:
            await self._partitions.create({event.timestamp.date() for event in events})
            async with self._database.reused_connection() as connection:
                await insert_events(connection, events)
        except (NoPartitionError, psycopg.Error) as error:
            log.warning("Creating the partition for the day of an event failed: %s", first_line(error))
            raise PartitionUnavailableError from error

    async def _to_spool(self, events: Sequence[Event]) -> list[Outcome]:
        try:
            await self._spooling.ask([_encode(event) for event in events])
        except SpoolFullError:
            raise service_unavailable(SPOOL_FULL) from None
        except SpoolError as error:
            # Logged now and then, not for each of thousands of events.
            if time.monotonic() - self._logged_at > LOG_EVERY_SECONDS:
                self._logged_at = time.monotonic()
                log.error("Events are refused because the spool failed: %s", error)
            raise service_unavailable("The database is unavailable. Try again shortly.") from error
        except OverloadedError:
            raise service_unavailable("Too many events are waiting for the disk. Try again shortly.") from None
        return ["spooled"] * len(events)

    async def _append(self, groups: Sequence[Sequence[bytes]]) -> Sequence[None]:
        assert self._spool is not None
        await asyncio.to_thread(self._spool.append, [record for group in groups for record in group])
        return [None] * len(groups)
