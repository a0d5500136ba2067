"""Watches what waits behind the API: hours that are not archived yet, and dead letters."""

import asyncio
import logging
from datetime import UTC, date, datetime

import psycopg

from eventlog.archive.hours import archive_queue
from eventlog.dead_letters import count_dead_letters, first_line
from serving.http.database import Database
from serving.http.metrics import EventMetrics

log = logging.getLogger(__name__)

EVERY_SECONDS = 60.0


async def watch_queues(database: Database, metrics: EventMetrics, first_day: date) -> None:
    """Update the metrics until cancelled. If a count fails, the metric is unknown, not zero."""
    while True:
        try:
            metrics.archive_queue, metrics.dead_letters = await asyncio.to_thread(_count, database.url, first_day)
        except (psycopg.Error, OSError) as error:
            metrics.archive_queue = metrics.dead_letters = None
            log.warning("Counting hours to archive and dead letters failed: %s", first_line(error))
        await asyncio.sleep(EVERY_SECONDS)


def _count(url: str, first_day: date) -> tuple[int, int]:
    with psycopg.connect(url, connect_timeout=5) as connection:
        return archive_queue(connection, first_day, datetime.now(UTC)), count_dead_letters(connection)
