"""Bringing spooled events into PostgreSQL once it is back: this process's, and those that dead processes left behind."""

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
from serving.events.store import REFUSED, EventStore, NoRoomError
from serving.http.database import TRANSIENT, Database
from serving.http.errors import ApiError

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.5
ORPHANS_EVERY_SECONDS = 5.0
GROUP_EVENTS = 1_000
TRIES = 3
WAIT_SECONDS = 0.2
# Of an event, or of its day: it is tried a few times, and kept as a dead letter then.
FOR_GOOD = (*REFUSED, NoRoomError)
# Of the database: what is spooled waits.
AWAY = (*TRANSIENT, asyncpg.PostgresError, ApiError)

_decode = msgspec.json.Decoder(Event).decode


class Drainer:
    """Drains for ever."""

    def __init__(self, root: Path, spool: SpoolWriter, store: EventStore, database: Database) -> None:
        """`root` is the folder that `spool` has a part in."""
        self._root, self._spool, self._store, self._database = root, spool, store, database
        self._told = False

    async def run(self) -> None:
        """Until cancelled."""
        next_orphans = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            try:
                await self.drain_own()
                if clock() >= next_orphans and not self._database.away:
                    await self.drain_orphans()
                    next_orphans = clock() + ORPHANS_EVERY_SECONDS
                self._told = False
            except AWAY as error:
                if not self._told:
                    log.warning("Spooled events wait: %s: %s", type(error).__name__, first_line(error))
                    self._told = True
            except OSError as error:
                log.error("The spool %s can't be drained: %s", self._root, error)
                await asyncio.sleep(ORPHANS_EVERY_SECONDS)
            except Exception:  # nobody waits for this task, so it must not end unheard
                log.exception("A defect: the spool %s could not be drained; it is tried again.", self._root)
                await asyncio.sleep(ORPHANS_EVERY_SECONDS)
            await asyncio.sleep(EVERY_SECONDS)

    async def drain_own(self) -> None:
        """Store what this process has spooled, and find out whether the database is back. Raises what `AWAY` names, OSError."""
        if self._database.away:
            async with self._database.acquire() as connection:
                await connection.execute("SELECT 1")
            self._database.away = False
            log.info("The database answers again.")
        for path in await asyncio.to_thread(self._spool.seal):
            try:
                segment = await self._drained(path)
            except FileNotFoundError:
                log.error("%s is gone: somebody else removed events that were acknowledged and not stored.", path)
                self._spool.forget(path)
                continue
            # This process wrote to its end: nothing is torn there, so it was damaged since.
            segment.damaged += segment.torn
            await asyncio.to_thread(self._spool.remove, segment)

    async def drain_orphans(self) -> None:
        """Store what processes left that are gone. Raises what `AWAY` names, OSError."""
        for folder in await asyncio.to_thread(writer_folders, self._root):
            with ExitStack() as stack:
                for path in stack.enter_context(take_over(folder)) or ():
                    await asyncio.to_thread(remove_segment, self._root, await self._drained(path))

    async def _drained(self, path: Path) -> Segment:
        """The segment, all of its events stored, known before, erased since, or dead letters."""
        segment = await asyncio.to_thread(read_segment, path)
        if segment.torn:
            log.warning("%s ends in %d bytes of a record that was never acknowledged.", path, segment.torn)
        async with self._database.acquire() as connection:
            erased = await read_erased_units(connection)
        for group in _groups(segment.records):
            events = [event for event in _read(group, segment) if not _is_erased(event, erased)]
            if events:
                await self._store_or_bury(events)
        if segment.damaged:
            log.error(
                "%s holds %d bytes that can't be read: it is kept in %s/damaged.", path, segment.damaged, self._root
            )
        return segment

    async def _store_or_bury(self, events: Sequence[Event]) -> None:
        """Store all; where one of them is refused, each half for itself, down to the one."""
        try:
            await self._store.insert(events)
        except FOR_GOOD as error:
            if len(events) == 1:
                await self._try_again_or_bury(events[0], error)
                return
            half = len(events) // 2
            await self._store_or_bury(events[:half])
            await self._store_or_bury(events[half:])

    async def _try_again_or_bury(self, event: Event, error: Exception) -> None:
        for tried in range(1, TRIES):
            await asyncio.sleep(WAIT_SECONDS * tried)
            try:
                await self._store.insert([event])
                return
            except FOR_GOOD as again:
                error = again
        said = first_line(error.__cause__ or error)
        log.error("Event %s is a dead letter now: %s", event.event_id, said)
        async with self._database.acquire() as connection:
            await store_dead_letter(connection, event, said, TRIES)


def _read(records: Sequence[bytes], segment: Segment) -> Iterator[Event]:
    """The events of records; one that is none counts as damage, so that a person finds it."""
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
