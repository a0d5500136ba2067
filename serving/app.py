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
from serving.assignments.assigner import Assigner
from serving.assignments.experiments_cache import ChangeListener, ExperimentsCache
from serving.assignments.ofrep import FlagEndpoint, FlagsEndpoint
from serving.assignments.read_routes import read_router
from serving.assignments.routes import AssignmentEndpoint
from serving.assignments.shared_units import SharedUnits
from serving.assignments.unit_cache import UnitCache
from serving.events.service import EventService
from serving.health import health_router
from serving.http.auth import KeyRing
from serving.http.best_effort_redis import BestEffortRedis
from serving.http.body_budget import BodyBudget
from serving.http.database import Database, PartitionKeeper
from serving.http.endpoint import Endpoint
from serving.http.errors import ApiError, on_api_error, on_http_exception, on_request_validation, on_unexpected
from serving.http.limits import Limits
from serving.http.metrics import Metrics
from serving.http.middleware import FrontDoor
from serving.openapi import describe
from serving.pages.api_docs import add_docs

ASSIGNMENT_BYTES = 16 * 2**20
DESCRIPTION = "Assignments and events of experiments: which variant a unit gets, and what happened to it."


class Service(FastAPI):
    """FastAPI behind a FrontDoor, which answers hot routes before FastAPI's middleware and routing: those cost more than the answers."""

    def __init__(self, hot: Mapping[str, Endpoint], **options: Any) -> None:
        """`hot`: path → endpoint of POST requests."""
        super().__init__(**options)
        self._front_door = FrontDoor(super().__call__, hot)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        await self._front_door(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The API over the platform's database. It connects when its lifespan starts.

    Raises FileNotFoundError if the embedded server was never started, and ValueError if REDIS_URL is not a valid Redis URL.
    """
    database = Database(settings)
    redis = BestEffortRedis(settings.redis_url) if settings.redis_url else None
    experiments = ExperimentsCache(database, settings.experiments_refresh_seconds)
    limits = Limits(
        settings.rate_limit_unit_per_minute,
        settings.rate_limit_key_per_minute,
        redis,
        settings.rate_limit_unit_events_per_minute,
    )
    keys = KeyRing(database, settings.api_key_cache_seconds, settings.api_key_grace_seconds, limits)
    # Separate from the budget of events, so that many events do not block assignments.
    body_budget = BodyBudget(ASSIGNMENT_BYTES)
    listener = ChangeListener(database, experiments, keys.forget, keys.recheck, settings.experiments_refresh_seconds)
    partitions = PartitionKeeper(settings, database.url)
    metrics = Metrics()
    assigner = Assigner(
        database,
        experiments,
        UnitCache(settings.assignment_cache_entries, settings.assignment_cache_seconds),
        SharedUnits(redis, settings.assignment_cache_seconds),
        metrics.assignments,
    )
    hot: dict[str, Endpoint] = {}
    cold: dict[str, Endpoint] = {}
    if settings.api_services != "events":
        hot["/api/v1/assignments"] = AssignmentEndpoint(
            keys, body_budget, assigner, limits, metrics.assignments, settings.assignment_max_age_seconds
        )
        ofrep = (keys, body_budget, database, experiments, assigner, limits, metrics.assignments)
        cold["/ofrep/v1/evaluate/flags"] = FlagsEndpoint(*ofrep)
        cold["/ofrep/v1/evaluate/flags/{key}"] = FlagEndpoint(*ofrep)
    events: EventService | None = None
    if settings.api_services != "assignments":
        events = EventService(settings, database, experiments, partitions, keys, limits, metrics)
        hot.update(events.endpoints)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await database.open()
        # Before the first request, because an event needs the partition of its day.
        tasks = [
            asyncio.create_task(partitions.keep(await partitions.try_create())),
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
        # tracing.py makes the traces.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    add_docs(app)
    app.include_router(health_router(database.url, metrics.registry))
    if settings.api_services != "events":
        app.include_router(read_router(keys, database, experiments, assigner))
    # The router needs the hot routes too, to answer other methods with 405.
    app.router.routes += [Route(path, endpoint, methods=["POST"]) for path, endpoint in {**hot, **cold}.items()]
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_request_validation)
    app.add_exception_handler(Exception, on_unexpected)
    app.openapi = lambda: describe(app, {**hot, **cold})  # type: ignore[method-assign]
    return app
