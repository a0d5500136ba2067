"""The API's way to PostgreSQL: the pool, tries again after a failure, partitions kept ahead."""

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
KEPT_SECONDS = 30.0
MOST_KEPT = 2
# Statements are few and always the same: planning them anew for each group's arrays took longer than running them.
SESSION = {"plan_cache_mode": "force_generic_plan", "jit": "off", "application_name": "lifecycle-api"}

TRANSIENT = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    # A standby that has not taken over yet.
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
    """A pool that opens connections when they are needed, so that the API starts, and says what is wrong, without a database."""

    def __init__(self, settings: Settings) -> None:
        """Nothing connects yet. Raises FileNotFoundError when the embedded server was never started."""
        self.url = settings.platform_url
        self._settings = settings
        self._delays = (*(delay / 1000 for delay in settings.api_retry_delays_ms), None)
        self._pool: asyncpg.Pool | None = None
        self.kept: list[tuple[asyncpg.Connection, float]] = []
        self.away = False
        """Whether the last operation that was tried again and again found no database."""

    async def open(self) -> None:
        """Make the pool; call it in the loop that will use it."""
        self._pool = await asyncpg.create_pool(
            self.url,
            min_size=0,
            max_size=self._settings.api_pool_size,
            timeout=CONNECT_SECONDS,
            command_timeout=self._settings.api_database_timeout_seconds,
            reset=_keep_session,
            server_settings=SESSION,
        )

    async def close(self) -> None:
        """Give every connection back."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None
            self.kept.clear()

    def acquire(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A connection outside of any transaction."""
        acquired: AbstractAsyncContextManager[asyncpg.Connection] = self._opened().acquire(
            timeout=self._settings.api_database_timeout_seconds
        )
        return acquired

    def keeping(self) -> "Kept":
        """A connection that is kept for the next who asks, for what is asked thousands of times a second: the pool's own care for each
        use costs as much as a short statement. One that failed goes back to the pool."""
        return Kept(self)

    async def take(self) -> asyncpg.Connection:
        """From the pool, to be given back."""
        return await self._opened().acquire(timeout=self._settings.api_database_timeout_seconds)

    def _opened(self) -> asyncpg.Pool:
        if self._pool is None:
            raise RuntimeError("The database is not open: run the application's lifespan.")
        return self._pool

    async def give_back(self, connection: asyncpg.Connection) -> None:
        """To the pool."""
        if self._pool is not None:
            await self._pool.release(connection)

    async def connect(self) -> asyncpg.Connection:
        """A connection beside the pool, for who keeps it."""
        return await asyncpg.connect(
            self.url, timeout=CONNECT_SECONDS, command_timeout=self._settings.api_database_timeout_seconds
        )

    async def retrying(
        self, operation: Callable[[], Awaitable[T]], failed: Exception | None = None, began: float | None = None
    ) -> T:
        """Run an operation that may safely run again; wait and repeat while the database is away.

        `failed`: how a first try went, where there was one already, which began at `began` (monotonic clock).
        Raises ApiError: 503 when every try failed or the schema is missing, 400 for what PostgreSQL can't hold.
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
                # A statement that hangs has used up the time for more tries.
                if delay is None or time.monotonic() - began >= self._settings.api_database_timeout_seconds:
                    self.away = True
                    log.warning("The database does not answer: %s: %s", type(error).__name__, error)
                    raise service_unavailable("The database does not answer; try again shortly.") from error
                await asyncio.sleep(delay)
            except NOT_MIGRATED as error:
                log.error("The schema is missing or behind (run `lifecycle db migrate`): %s", error)
                raise service_unavailable("The database is not migrated: run `lifecycle db migrate`.") from error
            except NOT_STORABLE as error:
                log.warning("PostgreSQL refused what validation let pass: %s", error)
                raise validation_error([], "The body holds something that can't be stored.") from error
            except asyncpg.InvalidAuthorizationSpecificationError as error:
                log.error("The database refuses the API's user: %s", error)
                raise service_unavailable("The database refuses the API's user.") from error
        raise AssertionError("the last delay is None")


class Kept:
    """One use of a connection that is kept."""

    __slots__ = ("_connection", "_database")

    def __init__(self, database: Database) -> None:
        """Nothing is taken yet."""
        self._database = database

    async def __aenter__(self) -> asyncpg.Connection:
        """One that is kept, else one of the pool's."""
        kept = self._database.kept
        while kept:
            self._connection, used_at = kept.pop()
            if time.monotonic() - used_at < KEPT_SECONDS:
                return self._connection
            # What lies idle may be cut off on the way without a word.
            await self._database.give_back(self._connection)
        self._connection = await self._database.take()
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Keep it, or give it back where it failed, or where enough are kept: who waits for the pool gets none of those."""
        if kind is None and len(self._database.kept) < MOST_KEPT:
            self._database.kept.append((self._connection, time.monotonic()))
        else:
            if kind is asyncpg.ReadOnlySQLTransactionError:
                # A session keeps what it began with: that the database takes writes again only a new one hears.
                self._connection.terminate()
            await self._database.give_back(self._connection)


class PartitionKeeper:
    """Keeps a partition ready for every day that an event may come for."""

    def __init__(self, settings: Settings, url: str) -> None:
        """Nothing is made yet."""
        self._settings, self._url = settings, url

    async def make(self, days: Collection[date] = ()) -> None:
        """Make what is missing, and `days`, which may be old ones. Raises psycopg.Error."""
        made = await asyncio.to_thread(
            ensure_partitions,
            self._url,
            self._settings.lineage_start,
            PARTITION_DAYS_AHEAD,
            days,
            self._settings.retention_days,
        )
        if made:
            log.info("Made %d partitions of exp.events.", made)

    async def try_make(self) -> float:
        """Make what is missing, or log why not; return the seconds after which to try again."""
        try:
            await self.make()
        except psycopg.Error as error:
            log.warning(
                "No partitions made ahead, trying again in %d s: %s", PARTITIONS_RETRY_SECONDS, str(error).strip()
            )
            return PARTITIONS_RETRY_SECONDS
        return PARTITIONS_EVERY_SECONDS

    async def keep(self, first_wait: float) -> None:
        """Make partitions for ever, hour by hour."""
        wait = first_wait
        while True:
            await asyncio.sleep(wait)
            wait = await self.try_make()


async def _keep_session(connection: asyncpg.Connection) -> None:
    """Instead of the pool's RESET ALL after each use, a round trip: no statement of ours changes a session."""
