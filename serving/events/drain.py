"""Moves spooled events into PostgreSQL once it is back: this process's own events, and those of processes that died."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import msgspec

from eventlog.dead_letters import first_line, store_dead_letter
from eventlog.erased_units import ErasedUnits, read_erased_units
from eventlog.spool import Segment, SpoolWriter, read_segment, remove_segment, take_over, writer_folders
from eventlog.validation import Event
from serving.events.store import REFUSED, EventStore, PartitionUnavailableError
from serving.http.database import TRANSIENT, Database
from serving.http.errors import ApiError

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.5
ORPHANS_EVERY_SECONDS = 5.0
GROUP_EVENTS = 1_000
TRIES = 3
WAIT_SECONDS = 0.2
# Errors of one event or its day: retried a few times, then the event becomes a dead letter.
EVENT_ERRORS = (*REFUSED, PartitionUnavailableError)
# Errors of the database: spooled events wait.
DATABASE_ERRORS = (*TRANSIENT, asyncpg.PostgresError, ApiError)

_decode = msgspec.json.Decoder(Event).decode


class Drainer:
    """Drains the spool until cancelled."""

    def __init__(self, root: Path, spool: SpoolWriter, store: EventStore, database: Database) -> None:
        """`root`: the folder in which every process, `spool` included, has a subfolder."""
        self._root, self._spool, self._store, self._database = root, spool, store, database
        self._failure_logged = False

    async def run(self) -> None:
        """Drain until cancelled."""
        next_orphans = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            try:
                await self.drain_own()
                if clock() >= next_orphans and not self._database.away:
                    await self.drain_orphans()
                    next_orphans = clock() + ORPHANS_EVERY_SECONDS
                self._failure_logged = False
            except DATABASE_ERRORS as error:
                if not self._failure_logged:
                    log.warning(
                        "The database is unavailable, so spooled events wait: %s: %s",
                        type(error).__name__,
                        first_line(error),
                    )
                    self._failure_logged = True
            except OSError as error:
                log.error("The spool %s can't be drained: %s", self._root, error)
                await asyncio.sleep(ORPHANS_EVERY_SECONDS)
            except Exception:  # nothing awaits this task, so an exception must neither end it nor get lost
                log.exception("Defect: draining the spool %s failed. It will be retried.", self._root)
                await asyncio.sleep(ORPHANS_EVERY_SECONDS)
            await asyncio.sleep(EVERY_SECONDS)

    async def drain_own(self) -> None:
        """Check whether the database is back, and store what this process spooled. Raises DATABASE_ERRORS, OSError."""
        if self._database.away:
            async with self._database.acquire() as connection:
                await connection.execute("SELECT 1")
            self._database.away = False
            log.info("The database is available again.")
        for path in await asyncio.to_thread(self._spool.seal):
            try:
                segment = await self._drained(path)
            except FileNotFoundError:
                log.error("%s is missing: acknowledged events were removed before they were stored.", path)
                self._spool.forget(path)
                continue
            # This process completed its writes, so an incomplete record at the end is later damage.
            segment.damaged += segment.torn
            await asyncio.to_thread(self._spool.remove, segment)

    async def drain_orphans(self) -> None:
        """Store what dead processes left behind. Raises DATABASE_ERRORS, OSError."""
        for folder in await asyncio.to_thread(writer_folders, self._root):
            with ExitStack() as stack:
                for path in stack.enter_context(take_over(folder)) or ():
                    await asyncio.to_thread(remove_segment, self._root, await self._drained(path))

    async def _drained(self, path: Path) -> Segment:
        """The segment, once each of its events is stored, was stored before, belongs to an erased unit, or is a dead letter."""
        segment = await asyncio.to_thread(read_segment, path)
        if segment.torn:
            log.warning(
                "%s ends with %d bytes of an incomplete record, which was never acknowledged.", path, segment.torn
            )
        async with self._database.acquire() as connection:
            erased = await read_erased_units(connection)
        for group in _groups(segment.records):
            events = [event for event in _read(group, segment) if not _is_erased(event, erased)]
            if events:
                await self._store_or_dead_letter(events)
        if segment.damaged:
            log.error("%s contains %d unreadable bytes. It is kept in %s/damaged.", path, segment.damaged, self._root)
        return segment

    async def _store_or_dead_letter(self, events: Sequence[Event]) -> None:
        """Store the events. If PostgreSQL rejects one, split the group in halves until that event is alone."""
        try:
            await self._store.insert(events)
        except EVENT_ERRORS as error:
            if len(events) == 1:
                await self._retry_or_dead_letter(events[0], error)
                return
            half = len(events) // 2
            await self._store_or_dead_letter(events[:half])
            await self._store_or_dead_letter(events[half:])

    async def _retry_or_dead_letter(self, event: Event, error: Exception) -> None:
        for attempt in range(1, TRIES):
            await asyncio.sleep(WAIT_SECONDS * attempt)
            try:
                await self._store.insert([event])
                return
            except EVENT_ERRORS as latest:
                error = latest
        reason = first_line(error.__cause__ or error)
        log.error("Event %s became a dead letter: %s", event.event_id, reason)
        async with self._database.acquire() as connection:
            await store_dead_letter(connection, event, reason, TRIES)


def _read(records: Sequence[bytes], segment: Segment) -> Iterator[Event]:
    """The events of records. An unreadable record counts as damage, so that it is reported."""
    for record in records:
        try:
            yield _decode(record)
        except (msgspec.DecodeError, UnicodeDecodeError):
            segment.damaged += len(record)


def _is_erased(event: Event, erased: ErasedUnits) -> bool:
    return erased.cover(event.unit_type, event.unit_id, event.received_at or event.timestamp)


def _groups(records: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(records), GROUP_EVENTS):
        yield records[start : start + GROUP_EVENTS]
