"""The event half of the application, put together."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from eventlog.spool import SpoolWriter
from foundation.settings import Settings
from serving.assignments.catalogue import CatalogueCache
from serving.events.drain import Drainer
from serving.events.queues import watch_queues
from serving.events.routes import BatchEndpoint, EventEndpoint
from serving.events.store import EventStore
from serving.http.auth import KeyRing
from serving.http.database import Database, PartitionKeeper
from serving.http.endpoint import Endpoint
from serving.http.limits import Limits
from serving.http.measures import Measures
from serving.http.room import Room

READ_AT_ONCE = 4


class EventService:
    """The endpoints, the spool, and what runs beside them."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        catalogue: CatalogueCache,
        partitions: PartitionKeeper,
        keys: KeyRing,
        limits: Limits,
        measures: Measures,
    ) -> None:
        """Nothing is made on disk, and nothing runs yet."""
        self._settings, self._database, self._measures = settings, database, measures.events
        room = Room(settings.event_memory_mb * 2**20)
        # Data that is read takes many times its bytes: so few batches, and large single events, are read at once.
        slots = asyncio.Semaphore(READ_AT_ONCE)
        self._spool = SpoolWriter(settings.spool_root, settings.spool_mb * 2**20) if settings.spool_mb else None
        self._store = EventStore(database, catalogue, partitions, self._spool)
        self.endpoints: dict[str, Endpoint] = {
            "/api/v1/events": EventEndpoint(keys, room, slots, self._store, limits, measures),
            "/api/v1/events/batch": BatchEndpoint(keys, room, slots, self._store, limits, measures),
        }

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run until it is cancelled."""
        running = [watch_queues(self._database, self._measures, self._settings.lineage_start)]
        spool = self._spool
        if spool is not None:
            self._measures.spooled = lambda: spool.records
            running.append(Drainer(self._settings.spool_root, spool, self._store, self._database).run())
        return running

    def close(self) -> None:
        """Leave what is spooled to the next process."""
        if self._spool is not None:
            self._spool.close()
