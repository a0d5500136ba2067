"""Events that were acknowledged and that PostgreSQL refused every time: `exp.dead_letters`, until a person replays or drops them."""

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
    """One event that could not be stored; `event` is its JSON."""

    id: int
    event_id: UUID
    timestamp: datetime
    event: bytes
    error: str
    tries: int
    received_at: datetime
    failed_at: datetime

    def read(self) -> dict[str, Any]:
        """The event as it came, without credentials."""
        return dict(msgspec.json.decode(self.event))


class Replayed(NamedTuple):
    """What became of a letter: `stored`, `known` (stored before), `erased` (its unit was erased), or None with an error."""

    id: int
    outcome: str | None
    error: str | None = None


async def add_dead_letter(connection: asyncpg.Connection, event: Event, error: str, tries: int) -> None:
    """Keep an event that could not be stored."""
    received = event.received_at or datetime.now(UTC)
    values = (event.event_id, event.timestamp, msgspec.json.encode(event), error, tries, received)
    await connection.execute(ADD, *values)


def dead_letters(
    connection: psycopg.Connection[Any], ids: Sequence[int] | None = None, *, after: int = 0, limit: int = 1000
) -> list[DeadLetter]:
    """The oldest `limit` of those with `ids`, or of all, whose number is greater than `after`."""
    asked = {"ids": None if ids is None else list(ids), "after": after, "limit": limit}
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return [DeadLetter(*row) for row in cursor.execute(LIST, asked).fetchall()]


def count_dead_letters(connection: psycopg.Connection[Any]) -> int:
    """How many there are."""
    ((count,),) = connection.execute(COUNT).fetchall()
    return int(count)


def replay(connection: psycopg.Connection[Any], letter: DeadLetter) -> Replayed:
    """Store the event once more, in the caller's transaction; what is stored is no dead letter any more."""
    event = msgspec.json.decode(letter.event, type=Event)
    if erased_units(connection).cover(event.unit_type, event.unit_id, letter.received_at):
        drop(connection, [letter.id])
        return Replayed(letter.id, "erased")
    try:
        with connection.transaction():
            ensure_event_days(connection, [event.timestamp.date()])
            stored = store_read_events(connection, [event])
    except psycopg.Error as error:
        said = first_line(error)
        connection.execute(FAILED_AGAIN, (said, letter.id))
        return Replayed(letter.id, None, said)
    drop(connection, [letter.id])
    return Replayed(letter.id, "stored" if stored else "known")


def drop(connection: psycopg.Connection[Any], ids: Sequence[int]) -> list[int]:
    """Remove letters for good; which of them there were."""
    return [found for (found,) in connection.execute(DELETE, (list(ids),)).fetchall()]


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a table."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:1000]
