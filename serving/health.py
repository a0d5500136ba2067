"""`/healthz`, `/readyz` and `/metrics`."""

import asyncio
from dataclasses import dataclass

import asyncpg
import psycopg
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import Response

from foundation.migrate import schema_state
from serving.http.errors import RETRY_AFTER_SECONDS, ApiError, ErrorBody
from serving.openapi import error_responses

CONNECT_SECONDS = 2
_DATABASE_REJECTS = (
    "database_refuses",
    "The database server rejects the user, the password or the database name. Correct DATABASE_URL.",
)
_REJECTIONS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
_SCHEMA = {
    "missing": ("not_migrated", "The database has no schema yet. Run `lifecycle db migrate`."),
    "behind": ("not_migrated", "The database schema is older than this code. Run `lifecycle db migrate`."),
    "newer": ("schema_newer", "The database schema is newer than this code. Upgrade this installation."),
}


@dataclass(frozen=True)
class Status:
    """The status of a healthy service."""

    status: str


def health_router(database_url: str, registry: CollectorRegistry) -> APIRouter:
    """The routes: readiness of the database, and the metrics of `registry`."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> Status:
        return Status("ok")

    @router.get(
        "/readyz",
        summary="The database is available and has the schema that this code needs",
        responses={503: {**error_responses("503")["503"], "description": "Not ready. `error` says why."}},
    )
    def readyz() -> Status:
        try:
            with psycopg.connect(database_url, connect_timeout=CONNECT_SECONDS) as connection:
                state = schema_state(connection)
        except psycopg.OperationalError as error:
            # psycopg's message names the host and the user, which callers must not see.
            if not isinstance(error, psycopg.errors.ConnectionTimeout) and asyncio.run(_rejects(database_url)):
                raise _not_ready(*_DATABASE_REJECTS) from None
            raise _not_ready("database_unreachable", "The database is unreachable. Check that it is running.") from None
        if state != "current":
            raise _not_ready(*_SCHEMA[state])
        return Status("ready")

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _rejects(database_url: str) -> bool:
    """Whether the server rejects the login. Uses asyncpg, because psycopg has only a localized message and no error code."""
    try:
        connection = await asyncpg.connect(database_url, timeout=CONNECT_SECONDS)
    except _REJECTIONS:
        return True
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return False
    connection.terminate()
    return False


def _not_ready(error: str, message: str) -> ApiError:
    body = ErrorBody(error, message, retry_after=RETRY_AFTER_SECONDS)
    return ApiError(503, body, {"Retry-After": str(RETRY_AFTER_SECONDS)})
