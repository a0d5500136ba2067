"""A snapshot of the experiments that all requests share, reloaded as soon as PostgreSQL notifies a change.

PostgreSQL notifies every relevant change at its commit (exp.tell_of_change). While the listening connection answers its heartbeats, the
snapshot is valid up to the last heartbeat, but never for longer than MAX_AGE_SECONDS: a connection pooler in between may drop a
notification. While the connection does not answer, the snapshot is reloaded when it is older than the setting allows.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import asyncpg

from experimentation.assignments.rules import ServedExperiments
from experimentation.assignments.store import load_served_experiments
from serving.http.database import NOT_MIGRATED, TRANSIENT, Database

log = logging.getLogger(__name__)

CHANNEL = "exp_changes"
KEYS_TABLE = "api_keys"
# Heartbeats per refresh interval: often enough that the snapshot never expires while the listener is connected.
HEARTBEATS = 3
RECONNECT_SECONDS = 1.0
MAX_AGE_SECONDS = 5.0


class ExperimentsCache:
    """The experiments as of at most `seconds` ago. Requests that need them at the same time share one load."""

    def __init__(self, database: Database, seconds: float) -> None:
        """Loads nothing yet. With 0 seconds, every call loads."""
        self._database, self._seconds = database, seconds
        self._experiments: ServedExperiments | None = None
        self._loaded_at = self._valid_until = self._changed_at = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def fresh(self) -> ServedExperiments | None:
        """The snapshot, or None if it must be reloaded."""
        return self._experiments if time.monotonic() < self._valid_until else None

    async def current(self) -> ServedExperiments:
        """A valid snapshot, loaded if necessary."""
        return self.fresh or await self.newer_than(max(time.monotonic() - self._seconds, self._changed_at))

    async def newer_than(self, moment: float) -> ServedExperiments:
        """A snapshot whose load began at or after `moment` (monotonic clock)."""
        async with self._lock:
            if self._experiments is None or self._loaded_at < moment:
                began = time.monotonic()
                async with self._database.acquire() as connection:
                    self._experiments = await load_served_experiments(connection, self._experiments)
                self._loaded_at = began
                self._valid_until = began + self._seconds if began > self._changed_at else float("-inf")
            return self._experiments

    def changed(self) -> None:
        """Invalidate everything that was loaded before now."""
        self._changed_at = time.monotonic()
        self._valid_until = float("-inf")

    def confirm(self, moment: float) -> None:
        """Extend the snapshot's validity: up to `moment`, every change was reported through `changed`."""
        if self._loaded_at > self._changed_at:
            expires_at = self._loaded_at + max(self._seconds, MAX_AGE_SECONDS)
            self._valid_until = max(self._valid_until, min(moment + self._seconds, expires_at))


class ChangeListener:
    """Listens for changes on a dedicated connection, and reconnects after a loss."""

    def __init__(
        self,
        database: Database,
        experiments: ExperimentsCache,
        forget_keys: Callable[[], None],
        recheck_keys: Callable[[], None],
        seconds: float,
    ) -> None:
        """Calls `forget_keys` when a key changed, `recheck_keys` when one may have. Sends HEARTBEATS heartbeats within `seconds`."""
        self._database, self._experiments = database, experiments
        self._forget_keys, self._recheck_keys = forget_keys, recheck_keys
        self._heartbeat_seconds = max(seconds, 0.05) / HEARTBEATS
        self._loss_logged = False

    async def listen(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen_once()
            except (*TRANSIENT, *NOT_MIGRATED, asyncpg.PostgresError) as error:
                # Log each loss once. Until the connection is back the snapshot is polled: slower, but no request fails.
                if not self._loss_logged:
                    log.warning(
                        "Listening for changes failed, so they are polled (%s: %s).", type(error).__name__, error
                    )
                    self._loss_logged = True
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen_once(self) -> None:
        connection = await self._database.connect()
        try:
            await connection.add_listener(CHANNEL, self._on_change)
            # Something may have changed while nobody listened.
            self._experiments.changed()
            self._recheck_keys()
            if self._loss_logged:
                log.info("Listening for changes again.")
                self._loss_logged = False
            while True:
                sent_at = time.monotonic()
                await connection.execute("SELECT 1")
                self._experiments.confirm(sent_at)
                await asyncio.sleep(self._heartbeat_seconds)
        finally:
            connection.terminate()

    def _on_change(self, connection: object, pid: int, channel: str, payload: object) -> None:
        if payload == KEYS_TABLE:
            self._forget_keys()
        else:
            self._experiments.changed()
