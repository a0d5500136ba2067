"""What requests share of experiments and keys: read once for all, read anew at once when PostgreSQL tells of a change.

Every change of what is served is notified at its commit (exp.tell_of_change). While the listening connection answers its heartbeats,
the picture is current as of the last one, yet never older than MAX_AGE_SECONDS, since a notification may be lost on the way (a pooler
between). While it does not answer, the picture is read anew whenever it is older than the setting says.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import asyncpg

from experimentation.assignments.rules import Catalogue
from experimentation.assignments.store import load_catalogue
from serving.http.database import NOT_MIGRATED, TRANSIENT, Database

log = logging.getLogger(__name__)

CHANNEL = "exp_changes"
KEYS_TABLE = "api_keys"
# Heartbeats come often enough that the picture never ages past the setting while the listener is well.
BEATS = 3
RECONNECT_SECONDS = 1.0
MAX_AGE_SECONDS = 5.0


class CatalogueCache:
    """The experiments as they were at most `seconds` ago, read once for all requests that wait for it."""

    def __init__(self, database: Database, seconds: float) -> None:
        """Nothing is read yet; with 0 seconds each call reads."""
        self._database, self._seconds = database, seconds
        self._catalogue: Catalogue | None = None
        self._read_at = self._good_until = self._changed_at = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def fresh(self) -> Catalogue | None:
        """The picture, where it need not be read anew."""
        return self._catalogue if time.monotonic() < self._good_until else None

    async def current(self) -> Catalogue:
        """A fresh enough picture."""
        return self.fresh or await self.newer_than(max(time.monotonic() - self._seconds, self._changed_at))

    async def newer_than(self, moment: float) -> Catalogue:
        """A picture whose reading began at or after `moment` (monotonic clock)."""
        async with self._lock:
            if self._catalogue is None or self._read_at < moment:
                began = time.monotonic()
                async with self._database.acquire() as connection:
                    self._catalogue = await load_catalogue(connection, self._catalogue)
                self._read_at = began
                self._good_until = began + self._seconds if began > self._changed_at else float("-inf")
            return self._catalogue

    def changed(self) -> None:
        """What was read before now is old."""
        self._changed_at = time.monotonic()
        self._good_until = float("-inf")

    def confirm(self, moment: float) -> None:
        """Nothing had changed until `moment` that `changed` was not told of."""
        if self._read_at > self._changed_at:
            oldest = self._read_at + max(self._seconds, MAX_AGE_SECONDS)
            self._good_until = max(self._good_until, min(moment + self._seconds, oldest))


class ChangeListener:
    """Listens on a connection of its own, for ever; a lost connection is made anew."""

    def __init__(
        self,
        database: Database,
        catalogue: CatalogueCache,
        forget_keys: Callable[[], None],
        doubt_keys: Callable[[], None],
        seconds: float,
    ) -> None:
        """`forget_keys` is called when a key changed, `doubt_keys` when one may have; heartbeats are sent a few times in `seconds`."""
        self._database, self._catalogue = database, catalogue
        self._forget_keys, self._doubt_keys = forget_keys, doubt_keys
        self._beat = max(seconds, 0.05) / BEATS
        self._told = False

    async def listen(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._listen_once()
            except (*TRANSIENT, *NOT_MIGRATED, asyncpg.PostgresError) as error:
                # Told once a loss: until it is back the picture is polled, which costs speed and no answer.
                if not self._told:
                    log.warning("Changes are polled: listening for them failed (%s: %s).", type(error).__name__, error)
                    self._told = True
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen_once(self) -> None:
        connection = await self._database.connect()
        try:
            await connection.add_listener(CHANNEL, self._hear)
            # What changed while nobody listened.
            self._catalogue.changed()
            self._doubt_keys()
            if self._told:
                log.info("Changes are heard of again.")
                self._told = False
            while True:
                sent = time.monotonic()
                await connection.execute("SELECT 1")
                self._catalogue.confirm(sent)
                await asyncio.sleep(self._beat)
        finally:
            connection.terminate()

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        if payload == KEYS_TABLE:
            self._forget_keys()
        else:
            self._catalogue.changed()
