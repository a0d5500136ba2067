"""Acknowledged events that PostgreSQL kept refusing: they stay in `exp.dead_letters` until a person replays or deletes them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import psycopg
from psycopg.rows import namedtuple_row

from eventlog.erased_units import erased_units
from eventlog.partitions import ensure_event_days
from eventlog.store import store_read_events
from eventlog.validation import Event

ADD = """
INSERT INTO exp.dead_letters (event_id, "timestamp", event, error, tries, received_at) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (event_id, "timestamp") DO UPDATE SET error = EXCLUDED.error, tries = dead_letters.tries + EXCLUDED.tries, failed_at = now()
"""
SHOW = 'SELECT id, event_id, "timestamp", event, error, tries, received_at, failed_at FROM exp.dead_letters'
LIST = f"{SHOW} WHERE id > %(after)s AND (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s)) ORDER BY id LIMIT %(limit)s"
COUNT = "SELECT count(*) FROM exp.dead_letters"
DELETE = "DELETE FROM exp.dead_letters WHERE id = ANY (%s) RETURNING id"
FAILED_AGAIN = "UPDATE exp.dead_letters SET error = %s, tries = tries + 1, failed_at = now() WHERE id = %s"


class DeadLetter(NamedTuple):
    """An event that could not be stored; `event` is its JSON."""

    id: int
    event_id: UUID
    timestamp: datetime
    event: bytes
    error: str
    tries: int
    received_at: datetime
    failed_at: datetime

    def read(self) -> dict[str, Any]:
        """The event as the client sent it, without credentials."""
        return dict(msgspec.json.decode(self.event))


class Replayed(NamedTuple):
    """The outcome of a replay: `stored`, `known` (already stored), `erased` (its unit was erased), or None with an error."""

    id: int
    outcome: str | None
    error: str | None = None


async def store_dead_letter(connection: asyncpg.Connection, event: Event, error: str, tries: int) -> None:
    """Store an event that PostgreSQL refused as a dead letter."""
    received = event.received_at or datetime.now(UTC)
    values = (event.event_id, event.timestamp, msgspec.json.encode(event), error, tries, received)
    await connection.execute(ADD, *values)


def list_dead_letters(
    connection: psycopg.Connection[Any], ids: Sequence[int] | None = None, *, after: int = 0, limit: int = 1000
) -> list[DeadLetter]:
    """The `limit` oldest dead letters with an id greater than `after`, restricted to `ids` if given."""
    parameters = {"ids": None if ids is None else list(ids), "after": after, "limit": limit}
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return [DeadLetter(*row) for row in cursor.execute(LIST, parameters).fetchall()]


def count_dead_letters(connection: psycopg.Connection[Any]) -> int:
    """The number of dead letters."""
    ((count,),) = connection.execute(COUNT).fetchall()
    return int(count)


def replay_dead_letter(connection: psycopg.Connection[Any], letter: DeadLetter) -> Replayed:
    """Try again to store the event, in the caller's transaction; on success the dead letter is deleted."""
    event = msgspec.json.decode(letter.event, type=Event)
    if erased_units(connection).cover(event.unit_type, event.unit_id, letter.received_at):
        delete_dead_letters(connection, [letter.id])
        return Replayed(letter.id, "erased")
    try:
        with connection.transaction():
            ensure_event_days(connection, [event.timestamp.date()])
            stored = store_read_events(connection, [event])
    except psycopg.Error as error:
        message = first_line(error)
        connection.execute(FAILED_AGAIN, (message, letter.id))
        return Replayed(letter.id, None, message)
    delete_dead_letters(connection, [letter.id])
    return Replayed(letter.id, "stored" if stored else "known")


def delete_dead_letters(connection: psycopg.Connection[Any], ids: Sequence[int]) -> list[int]:
    """Delete dead letters for good; returns the ids that existed."""
    return [deleted for (deleted,) in connection.execute(DELETE, (list(ids),)).fetchall()]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, short enough for a table; the class name if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:1000]
