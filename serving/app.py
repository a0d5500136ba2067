"""The application: routes, lifespan, OpenAPI. Belongs here: putting the parts together. Does not belong here: rules, SQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from experimentation.assignment_store import StoredUnits
from experimentation.settings import Settings
from serving.assignments import AssignmentEndpoint
from serving.auth import KeyRing
from serving.database import CatalogueCache, Database, PartitionKeeper
from serving.endpoint import Endpoint
from serving.errors import ApiError, on_api_error, on_http_exception, on_request_validation, on_unexpected
from serving.events import BatchEndpoint, EventEndpoint, EventStore
from serving.health import health_router
from serving.measures import Measures
from serving.middleware import FrontDoor
from serving.openapi import describe

DESCRIPTION = "Which variant a unit is served, and what happened to it: assignments and events of experiments."


def create_app(settings: Settings) -> FastAPI:
    """The API over the platform's database; nothing connects before its lifespan starts.

    Raises FileNotFoundError when the embedded server was never started.
    """
    database = Database(settings)
    catalogue = CatalogueCache(database, settings.experiments_refresh_seconds)
    keys = KeyRing(database, settings.api_key_cache_seconds)
    partitions = PartitionKeeper(settings, database.url)
    measures = Measures()
    stored_units = StoredUnits(settings.assignment_cache_entries, settings.assignment_cache_seconds)
    events = EventStore(database, catalogue, partitions)
    hot: dict[str, Endpoint] = {
        "/api/v1/assignments": AssignmentEndpoint(
            keys, database, catalogue, stored_units, measures, settings.assignment_max_age_seconds
        ),
        "/api/v1/events": EventEndpoint(keys, events, measures),
        "/api/v1/events/batch": BatchEndpoint(keys, events, measures),
    }

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await database.open()
        # Before the first request: an event must find the partition of its day.
        keeper = asyncio.create_task(partitions.keep(await partitions.try_make()))
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await database.close()

    app = FastAPI(
        title="lifecycle", version="0.1.0", description=DESCRIPTION, lifespan=lifespan, redirect_slashes=False
    )
    app.include_router(health_router(database.url, measures))
    # Also with the router, which answers other methods with 405.
    app.router.routes += [Route(path, endpoint, methods=["POST"]) for path, endpoint in hot.items()]
    app.add_middleware(FrontDoor, hot_routes={("POST", path): endpoint for path, endpoint in hot.items()})
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_request_validation)
    app.add_exception_handler(Exception, on_unexpected)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app
