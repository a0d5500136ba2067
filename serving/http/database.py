"""The API's access to PostgreSQL: connection pool, retries, and partitions created ahead of time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from datetime import date
from typing import TypeVar

import asyncpg
import psycopg

from eventlog.store import ensure_partitions
from foundation.settings import Settings
from serving.http.errors import service_unavailable, validation_error

log = logging.getLogger(__name__)
T = TypeVar("T")

PARTITION_DAYS_AHEAD = 2
PARTITIONS_EVERY_SECONDS = 3600
PARTITIONS_RETRY_SECONDS = 5
CONNECT_SECONDS = 2
REUSE_SECONDS = 30.0
MAX_REUSABLE = 2
# The statements never change, and planning them again for each group's arrays took longer than running them.
SESSION = {"plan_cache_mode": "force_generic_plan", "jit": "off", "application_name": "lifecycle-api"}

TRANSIENT = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    # A standby that is not the primary yet.
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
NOT_MIGRATED = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InvalidCatalogNameError,
)
NOT_STORABLE = (asyncpg.DataError, asyncpg.ProgramLimitExceededError)


class Database:
    """A pool that connects on demand, so that the API starts and reports its state even without a database."""

    def __init__(self, settings: Settings) -> None:
        """Does not connect yet. Raises FileNotFoundError if the embedded server was never started."""
        self.url = settings.platform_url
        self._settings = settings
        self._delays = (*(delay / 1000 for delay in settings.api_retry_delays_ms), None)
        self._pool: asyncpg.Pool | None = None
        self.reusable: list[tuple[asyncpg.Connection, float]] = []
        self.away = False
        """Whether the last operation found no database in spite of all retries."""

    async def open(self) -> None:
        """Create the pool. Call it in the event loop that will use it."""
        self._pool = await asyncpg.create_pool(
            self.url,
            min_size=0,
            max_size=self._settings.api_pool_size,
            timeout=CONNECT_SECONDS,
            command_timeout=self._settings.api_database_timeout_seconds,
            reset=_no_reset,
            server_settings=SESSION,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None
            self.reusable.clear()

    def acquire(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A connection from the pool, outside any transaction."""
        connection: AbstractAsyncContextManager[asyncpg.Connection] = self._opened().acquire(
            timeout=self._settings.api_database_timeout_seconds
        )
        return connection

    def reused_connection(self) -> "ReusedConnection":
        """A connection that bypasses the pool between uses, for statements that run thousands of times per second.

        The pool's work per use costs as much as a short statement. A connection that failed goes back to the pool.
        """
        return ReusedConnection(self)

    async def take(self) -> asyncpg.Connection:
        """A connection from the pool. The caller must give it back."""
        return await self._opened().acquire(timeout=self._settings.api_database_timeout_seconds)

    def _opened(self) -> asyncpg.Pool:
        if self._pool is None:
            raise RuntimeError("The database is not open. Run the application's lifespan first.")
        return self._pool

    async def give_back(self, connection: asyncpg.Connection) -> None:
        """Return a connection to the pool."""
        if self._pool is not None:
            await self._pool.release(connection)

    async def connect(self) -> asyncpg.Connection:
        """A dedicated connection outside the pool. The caller must close it."""
        return await asyncpg.connect(
            self.url, timeout=CONNECT_SECONDS, command_timeout=self._settings.api_database_timeout_seconds
        )

    async def retrying(
        self, operation: Callable[[], Awaitable[T]], failed: Exception | None = None, began: float | None = None
    ) -> T:
        """Run an idempotent operation. Wait and retry while the database is unavailable.

        `failed`: the error of a first try that the caller made, which began at `began` (monotonic clock).
        Raises ApiError: 503 if every try failed or the schema is missing, 400 if PostgreSQL can't store a value.
        """
        began = time.monotonic() if began is None else began
        for delay in self._delays:
            try:
                if failed is not None:
                    error, failed = failed, None
                    raise error
                result = await operation()
                self.away = False
                return result
            except TRANSIENT as error:
                # A statement that hung has used up the time for retries.
                if delay is None or time.monotonic() - began >= self._settings.api_database_timeout_seconds:
                    self.away = True
                    log.warning("The database is unavailable: %s: %s", type(error).__name__, error)
                    raise service_unavailable("The database is unavailable. Try again shortly.") from error
                await asyncio.sleep(delay)
            except NOT_MIGRATED as error:
                log.error("The database schema is missing or outdated. Run `lifecycle db migrate`. %s", error)
                raise service_unavailable(
                    "The database schema is missing or outdated. Run `lifecycle db migrate`."
                ) from error
            except NOT_STORABLE as error:
                log.warning("PostgreSQL rejected a value that passed validation: %s", error)
                raise validation_error([], "PostgreSQL can't store a value of the body.") from error
            except asyncpg.InvalidAuthorizationSpecificationError as error:
                log.error("The database rejects the API's user: %s", error)
                raise service_unavailable("The database rejects the API's user. Correct DATABASE_URL.") from error
        raise AssertionError("the last delay is None")


class ReusedConnection:
    """One use of a reusable connection."""

    __slots__ = ("_connection", "_database")

    def __init__(self, database: Database) -> None:
        """Takes no connection yet."""
        self._database = database

    async def __aenter__(self) -> asyncpg.Connection:
        """A reusable connection, or a new one from the pool."""
        reusable = self._database.reusable
        while reusable:
            self._connection, used_at = reusable.pop()
            if time.monotonic() - used_at < REUSE_SECONDS:
                return self._connection
            # The network may silently drop a connection that was idle for long.
            await self._database.give_back(self._connection)
        self._connection = await self._database.take()
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Keep the connection for reuse. Give it back if it failed, or if enough are kept: the pool's users need the others."""
        if kind is None and len(self._database.reusable) < MAX_REUSABLE:
            self._database.reusable.append((self._connection, time.monotonic()))
        else:
            if kind is asyncpg.ReadOnlySQLTransactionError:
                # A session stays read-only. Only a new one notices that the database accepts writes again.
                self._connection.terminate()
            await self._database.give_back(self._connection)


class PartitionKeeper:
    """Creates the partitions of exp.events before events need them."""

    def __init__(self, settings: Settings, url: str) -> None:
        """Creates nothing yet."""
        self._settings, self._url = settings, url

    async def create(self, days: Collection[date] = ()) -> None:
        """Create missing partitions and those of `days`, which may be old. Raises psycopg.Error."""
        created = await asyncio.to_thread(
            ensure_partitions,
            self._url,
            self._settings.lineage_start,
            PARTITION_DAYS_AHEAD,
            days,
            self._settings.retention_days,
        )
        if created:
            log.info("Created %d partitions of exp.events.", created)

    async def try_create(self) -> float:
        """Create missing partitions or log the error. Returns the seconds to wait before the next call."""
        try:
            await self.create()
        except psycopg.Error as error:
            log.warning(
                "Creating partitions failed. Next try in %d s: %s", PARTITIONS_RETRY_SECONDS, str(error).strip()
            )
            return PARTITIONS_RETRY_SECONDS
        return PARTITIONS_EVERY_SECONDS

    async def keep(self, first_wait: float) -> None:
        """Create partitions every hour until cancelled. `first_wait` in seconds."""
        wait = first_wait
        while True:
            await asyncio.sleep(wait)
            wait = await self.try_create()


async def _no_reset(connection: asyncpg.Connection) -> None:
    """Replaces the pool's RESET ALL after each use, which costs a round trip. Our statements never change a session."""
