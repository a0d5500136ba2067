"""Builds the event service: endpoints, spool and background tasks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from eventlog.spool import SpoolWriter
from foundation.settings import Settings
from serving.assignments.experiments_cache import ExperimentsCache
from serving.events.drain import Drainer
from serving.events.queues import watch_queues
from serving.events.routes import BatchEndpoint, EventEndpoint
from serving.events.store import EventStore
from serving.http.auth import KeyRing
from serving.http.body_budget import BodyBudget
from serving.http.database import Database, PartitionKeeper
from serving.http.endpoint import Endpoint
from serving.http.limits import Limits
from serving.http.metrics import Metrics

MAX_CONCURRENT_LARGE_BODIES = 4


class EventService:
    """The endpoints of events, with the spool and the background tasks behind them."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        experiments_cache: ExperimentsCache,
        partitions: PartitionKeeper,
        keys: KeyRing,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        """Creates nothing on disk and starts nothing yet."""
        self._settings, self._database, self._metrics = settings, database, metrics.events
        body_budget = BodyBudget(settings.event_memory_mb * 2**20)
        # Decoded JSON takes many times the memory of its bytes, so only a few large bodies are decoded at the same time.
        slots = asyncio.Semaphore(MAX_CONCURRENT_LARGE_BODIES)
        self._spool = SpoolWriter(settings.spool_root, settings.spool_mb * 2**20) if settings.spool_mb else None
        self._store = EventStore(database, experiments_cache, partitions, self._spool)
        self.endpoints: dict[str, Endpoint] = {
            "/api/v1/events": EventEndpoint(keys, body_budget, slots, self._store, limits, metrics),
            "/api/v1/events/batch": BatchEndpoint(keys, body_budget, slots, self._store, limits, metrics),
        }

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """Coroutines to run until they are cancelled."""
        tasks = [watch_queues(self._database, self._metrics, self._settings.lineage_start)]
        spool = self._spool
        if spool is not None:
            self._metrics.spooled = lambda: spool.records
            tasks.append(Drainer(self._settings.spool_root, spool, self._store, self._database).run())
        return tasks

    def close(self) -> None:
        """Close the spool. The next process stores what is left in it."""
        if self._spool is not None:
            self._spool.close()
