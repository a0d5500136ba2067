"""From valid events to durable ones: in PostgreSQL, grouped with whoever else stores meanwhile; in the spool while it is away."""

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
from serving.assignments.catalogue import CatalogueCache
from serving.http.database import NOT_STORABLE, Database, PartitionKeeper
from serving.http.errors import ApiError, service_unavailable, validation_error
from serving.http.grouping import Grouped, OverloadedError

log = logging.getLogger(__name__)

GROUP_EVENTS = 500
# Groups that are spooled together are fsynced together.
SPOOL_GROUPS = 100
TELL_EVERY_SECONDS = 10.0
FULL = "The database does not answer and the spool is full; try again shortly."
UNSTORABLE = "The event holds something that can't be stored."

# A trigger or constraint of somebody's says no: not the sender's fault, so the event is kept as a dead letter.
RULES = (asyncpg.IntegrityConstraintViolationError, asyncpg.PLPGSQLError)
# What PostgreSQL says of an event itself: trying again at once is of no use.
REFUSED = (*NOT_STORABLE, *RULES)

NO_ROOM = "There is no room yet for the day of an event; try again shortly."

Outcome = Literal["accepted", "spooled", "dead_letter", "rejected", "unavailable"]
"""Committed in PostgreSQL; fsynced in the spool; kept as a dead letter; something that PostgreSQL can't hold; of a day that has no
partition now. The last two are not stored anywhere."""

_encode = msgspec.json.Encoder().encode


class NoRoomError(Exception):
    """The partition of an event's day can't be made now; nothing of the group is stored."""


class EventStore:
    """Flags and stores events; what returns is durable."""

    def __init__(
        self, database: Database, catalogue: CatalogueCache, partitions: PartitionKeeper, spool: SpoolWriter | None
    ) -> None:
        """`partitions` is asked for a day that none is ready for; without a `spool` nothing is acknowledged while the database is away."""
        self._database, self._catalogue, self._partitions, self._spool = database, catalogue, partitions, spool
        # One group at a time: in the meantime the next one grows, and a COPY costs as much to begin as twenty events.
        self._singles: Grouped[Event, Outcome] = Grouped(self.store, size=GROUP_EVENTS, in_flight=1)
        self._told_at = float("-inf")
        self._spooling: Grouped[Sequence[bytes], None] = Grouped(self._append, in_flight=1, size=SPOOL_GROUPS)

    async def store_one(self, event: Event) -> Outcome:
        """Store an event along with others that come meanwhile. Raises ApiError: 400, or 503 when it can go nowhere."""
        try:
            outcome = await self._singles.ask(event)
        except OverloadedError:
            raise service_unavailable("More events wait for the database than it can store soon.") from None
        if outcome == "rejected":
            raise validation_error([], UNSTORABLE)
        if outcome == "unavailable":
            raise service_unavailable(NO_ROOM)
        return outcome

    async def store(self, events: Sequence[Event]) -> list[Outcome]:
        """What became of each event, in order. Raises ApiError: 503 when they can go nowhere."""
        if self._database.away and self._spool is not None:
            return await self._to_spool(events)
        try:
            await self._database.retrying(lambda: self.insert(events))
        except NoRoomError:
            return ["unavailable"] if len(events) == 1 else await self._in_halves(events)
        except RULES as error:
            return [await self._bury(events[0], error)] if len(events) == 1 else await self._in_halves(events)
        except ApiError as error:
            if error.status == 400:
                return ["rejected"] if len(events) == 1 else await self._in_halves(events)
            if self._database.away and self._spool is not None:
                return await self._to_spool(events)
            raise
        return ["accepted"] * len(events)

    async def _bury(self, event: Event, error: Exception) -> Outcome:
        log.error("Event %s is a dead letter now: %s", event.event_id, first_line(error))

        async def keep() -> None:
            async with self._database.acquire() as connection:
                await store_dead_letter(connection, event, first_line(error), 1)

        await self._database.retrying(keep)
        return "dead_letter"

    async def _in_halves(self, events: Sequence[Event]) -> list[Outcome]:
        """After one of a group was refused: the others must not suffer."""
        half = len(events) // 2
        return [*await self.store(events[:half]), *await self.store(events[half:])]

    async def insert(self, events: Sequence[Event]) -> None:
        """Store all of them or none, once. Raises NoRoomError, and what asyncpg raises."""
        catalogue = await self._catalogue.current()
        set_flags(events, catalogue.variants, catalogue.by_id.keys())
        try:
            async with self._database.keeping() as connection:
                await insert_events(connection, events)
            return
        except NoPartitionError:
            pass
        try:
            await self._partitions.make({event.timestamp.date() for event in events})
            async with self._database.keeping() as connection:
                await insert_events(connection, events)
        except (NoPartitionError, psycopg.Error) as error:
            log.warning("No partition could be made for the day of an event: %s", first_line(error))
            raise NoRoomError from error

    async def _to_spool(self, events: Sequence[Event]) -> list[Outcome]:
        try:
            await self._spooling.ask([_encode(event) for event in events])
        except SpoolFullError:
            raise service_unavailable(FULL) from None
        except SpoolError as error:
            # Told now and then, not for each of thousands.
            if time.monotonic() - self._told_at > TELL_EVERY_SECONDS:
                self._told_at = time.monotonic()
                log.error("Events are refused: %s", error)
            raise service_unavailable("The database does not answer; try again shortly.") from error
        except OverloadedError:
            raise service_unavailable("More events wait for the disk than it can take soon.") from None
        return ["spooled"] * len(events)

    async def _append(self, groups: Sequence[Sequence[bytes]]) -> Sequence[None]:
        assert self._spool is not None
        await asyncio.to_thread(self._spool.append, [record for group in groups for record in group])
        return [None] * len(groups)
