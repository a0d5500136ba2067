"""From valid events to durable ones: in PostgreSQL, grouped with whoever else stores meanwhile; in the spool while it is away.

Belongs here: where an event goes, and what is said when it can go nowhere. Does not belong here: HTTP, SQL (experimentation/events.py),
the spool's files (experimentation/spool.py) and draining them (event_drain.py).
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Literal

import asyncpg
import msgspec
import psycopg

from experimentation.event_validation import Event, flags_of
from experimentation.events import NoPartitionError, insert_events
from experimentation.spool import SpoolError, SpoolFullError, SpoolWriter
from serving.catalogue import CatalogueCache
from serving.database import NOT_STORABLE, Database, PartitionKeeper
from serving.errors import ApiError, service_unavailable, validation_error
from serving.grouping import Grouped, OverloadedError

log = logging.getLogger(__name__)

GROUP_EVENTS = 500
# Groups that are spooled together are fsynced together.
SPOOL_GROUPS = 100
TELL_EVERY_SECONDS = 10.0
FULL = "The database does not answer and the spool is full; try again shortly."
UNSTORABLE = "The event holds something that can't be stored."

# What PostgreSQL says of an event itself, a trigger's or constraint's word among it: trying again later is of no use.
REFUSED = (*NOT_STORABLE, asyncpg.IntegrityConstraintViolationError, asyncpg.PLPGSQLError)

Outcome = Literal["accepted", "spooled", "rejected"]
"""Committed in PostgreSQL, fsynced in the spool, or something that PostgreSQL can't hold: the last is not stored anywhere."""

_encode = msgspec.json.Encoder().encode


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
        return outcome

    async def store(self, events: Sequence[Event]) -> list[Outcome]:
        """What became of each event, in order. Raises ApiError: 503 when they can go nowhere."""
        if self._database.away and self._spool is not None:
            return await self._to_spool(events)
        try:
            await self._database.retrying(lambda: self.insert(events))
        except REFUSED:
            return await self._one_by_one(events)
        except ApiError as error:
            if error.status == 400:
                return await self._one_by_one(events)
            if self._database.away and self._spool is not None:
                return await self._to_spool(events)
            raise
        return ["accepted"] * len(events)

    async def insert(self, events: Sequence[Event]) -> None:
        """Store all of them or none, once. Raises what asyncpg raises, and ApiError where a day's partition can't be made."""
        catalogue = await self._catalogue.current()
        variants, runs = catalogue.variants, catalogue.by_id.keys()
        for event in events:
            event.flags = flags_of(event, variants, runs)
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
            raise service_unavailable("There is no room yet for the day of an event; try again shortly.") from error

    async def _one_by_one(self, events: Sequence[Event]) -> list[Outcome]:
        """After PostgreSQL refused one of a group: the others must not suffer."""
        outcomes: list[Outcome] = []
        for event in events:
            try:
                await self._database.retrying(lambda event=event: self.insert([event]))  # type: ignore[misc]
                outcomes.append("accepted")
            except REFUSED:
                outcomes.append("rejected")
            except ApiError as error:
                if error.status != 400:
                    raise
                outcomes.append("rejected")
        return outcomes

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
