"""The application: routes, lifespan, OpenAPI."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from foundation.settings import Settings
from serving.assignments.catalogue import CatalogueCache, ChangeListener
from serving.assignments.deciding import Assigner
from serving.assignments.ofrep import FlagEndpoint, FlagsEndpoint
from serving.assignments.reads import reads_router
from serving.assignments.routes import AssignmentEndpoint
from serving.assignments.shared_units import SharedUnits
from serving.assignments.unit_cache import UnitCache
from serving.events.service import EventService
from serving.health import health_router
from serving.http.auth import KeyRing
from serving.http.database import Database, PartitionKeeper
from serving.http.endpoint import Endpoint
from serving.http.errors import ApiError, on_api_error, on_http_exception, on_request_validation, on_unexpected
from serving.http.limits import Limits
from serving.http.measures import Measures
from serving.http.middleware import FrontDoor
from serving.http.redis_link import RedisLink
from serving.http.room import Room
from serving.openapi import describe
from serving.pages.api_docs import add_docs

ASSIGNMENT_BYTES = 16 * 2**20
DESCRIPTION = "Which variant a unit is served, and what happened to it: assignments and events of experiments."


class Service(FastAPI):
    """FastAPI behind a front door: hot routes are answered before its middleware and routing, which cost more than their answers."""

    def __init__(self, hot: Mapping[str, Endpoint], **options: Any) -> None:
        """`hot`: path → endpoint of POST requests."""
        super().__init__(**options)
        self._front_door = FrontDoor(super().__call__, hot)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        await self._front_door(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The API over the platform's database; nothing connects before its lifespan starts.

    Raises FileNotFoundError when the embedded server was never started, ValueError when REDIS_URL is no address of a Redis.
    """
    database = Database(settings)
    redis = RedisLink(settings.redis_url) if settings.redis_url else None
    catalogue = CatalogueCache(database, settings.experiments_refresh_seconds)
    limits = Limits(
        settings.rate_limit_unit_per_minute,
        settings.rate_limit_key_per_minute,
        redis,
        settings.rate_limit_unit_events_per_minute,
    )
    keys = KeyRing(database, settings.api_key_cache_seconds, settings.api_key_grace_seconds, limits)
    # Apart, so that events that pile up do not keep a unit from its variant.
    room = Room(ASSIGNMENT_BYTES)
    listener = ChangeListener(database, catalogue, keys.forget, keys.doubt, settings.experiments_refresh_seconds)
    partitions = PartitionKeeper(settings, database.url)
    measures = Measures()
    assigner = Assigner(
        database,
        catalogue,
        UnitCache(settings.assignment_cache_entries, settings.assignment_cache_seconds),
        SharedUnits(redis, settings.assignment_cache_seconds),
        measures.assignments,
    )
    hot: dict[str, Endpoint] = {}
    cold: dict[str, Endpoint] = {}
    if settings.api_services != "events":
        hot["/api/v1/assignments"] = AssignmentEndpoint(
            keys, room, assigner, limits, measures.assignments, settings.assignment_max_age_seconds
        )
        ofrep = (keys, room, database, catalogue, assigner, limits, measures.assignments)
        cold["/ofrep/v1/evaluate/flags"] = FlagsEndpoint(*ofrep)
        cold["/ofrep/v1/evaluate/flags/{key}"] = FlagEndpoint(*ofrep)
    events: EventService | None = None
    if settings.api_services != "assignments":
        events = EventService(settings, database, catalogue, partitions, keys, limits, measures)
        hot.update(events.endpoints)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await database.open()
        # Before the first request: an event must find the partition of its day.
        tasks = [
            asyncio.create_task(partitions.keep(await partitions.try_make())),
            asyncio.create_task(listener.listen()),
        ]
        if events is not None:
            tasks += map(asyncio.create_task, events.background())
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await database.close()
            if events is not None:
                events.close()
            if redis is not None:
                await redis.close()

    app = Service(
        hot,
        title="lifecycle",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        # Traces are tracing.py's.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    add_docs(app)
    app.include_router(health_router(database.url, measures))
    if settings.api_services != "events":
        app.include_router(reads_router(keys, database, catalogue, assigner))
    # Also with the router, which answers other methods with 405.
    app.router.routes += [Route(path, endpoint, methods=["POST"]) for path, endpoint in {**hot, **cold}.items()]
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_request_validation)
    app.add_exception_handler(Exception, on_unexpected)
    app.openapi = lambda: describe(app, {**hot, **cold})  # type: ignore[method-assign]
    return app
