"""What waits behind the API: hours that are not archived, dead letters."""

import asyncio
import logging
from datetime import UTC, date, datetime

import psycopg

from eventlog.archive.hours import archive_queue
from eventlog.dead_letters import count_dead_letters, first_line
from serving.http.database import Database
from serving.http.measures import EventMeasures

log = logging.getLogger(__name__)

EVERY_SECONDS = 60.0


async def watch_queues(database: Database, measures: EventMeasures, first_day: date) -> None:
    """Until cancelled. What could not be asked for is unknown, not zero."""
    while True:
        try:
            measures.archive_queue, measures.dead_letters = await asyncio.to_thread(_ask, database.url, first_day)
        except (psycopg.Error, OSError) as error:
            measures.archive_queue = measures.dead_letters = None
            log.warning("What waits to be archived is not known now: %s", first_line(error))
        await asyncio.sleep(EVERY_SECONDS)


def _ask(url: str, first_day: date) -> tuple[int, int]:
    with psycopg.connect(url, connect_timeout=5) as connection:
        return archive_queue(connection, first_day, datetime.now(UTC)), count_dead_letters(connection)
