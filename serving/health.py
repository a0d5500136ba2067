"""`/healthz`, `/readyz` and `/metrics`."""

import asyncio
from dataclasses import dataclass

import asyncpg
import psycopg
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from foundation.migrate import schema_state
from serving.http.errors import RETRY_AFTER_SECONDS, ApiError, ErrorBody
from serving.http.measures import Measures
from serving.openapi import refusals

CONNECT_SECONDS = 2
_REFUSES = (
    "database_refuses",
    "The database refuses the user, the password or the name of the database: correct DATABASE_URL.",
)
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
_SCHEMA = {
    "missing": ("not_migrated", "The database has no schema yet: run `lifecycle db migrate`."),
    "behind": ("not_migrated", "The database's schema is older than this code: run `lifecycle db migrate`."),
    "newer": ("schema_newer", "The database's schema is newer than this code: upgrade this installation."),
}


@dataclass(frozen=True)
class Status:
    """A service that is well."""

    status: str


def health_router(url: str, measures: Measures) -> APIRouter:
    """The routes, for the database at `url`."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> Status:
        return Status("ok")

    @router.get(
        "/readyz",
        summary="The database answers and has the schema that this code knows",
        responses={503: {**refusals("503")["503"], "description": "Not ready; `error` says why."}},
    )
    def readyz() -> Status:
        try:
            with psycopg.connect(url, connect_timeout=CONNECT_SECONDS) as connection:
                state = schema_state(connection)
        except psycopg.OperationalError as error:
            # What psycopg says names the host and the user, which are not the caller's business.
            if not isinstance(error, psycopg.errors.ConnectionTimeout) and asyncio.run(_refuses(url)):
                raise _not_ready(*_REFUSES) from None
            raise _not_ready("database_unreachable", "The database does not answer: is it started?") from None
        if state != "current":
            raise _not_ready(*_SCHEMA[state])
        return Status("ready")

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(measures.registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _refuses(url: str) -> bool:
    """Whether it is the database that says no. psycopg tells so in words of any language alone, asyncpg with a code."""
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
    except _REFUSALS:
        return True
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return False
    connection.terminate()
    return False


def _not_ready(error: str, message: str) -> ApiError:
    body = ErrorBody(error, message, retry_after=RETRY_AFTER_SECONDS)
    return ApiError(503, body, {"Retry-After": str(RETRY_AFTER_SECONDS)})
