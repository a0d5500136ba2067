"""Storing events in PostgreSQL, each (event_id, timestamp) once: a single event, a batch or a whole history."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from itertools import islice
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
from psycopg.rows import tuple_row

from eventlog.copy_lines import COLUMNS, copy_lines
from eventlog.credentials import without_credentials
from eventlog.event_ids import new_event_id
from eventlog.partitions import EXISTING_PARTITIONS, HISTORY, ensure_event_days, ensure_event_partitions
from eventlog.validation import Event, ExperimentRef, is_finite, set_flags
from foundation.errors import LifecycleError

_QUOTED = ", ".join(f'"{column}"' for column in COLUMNS)

# For a batch with an event that is stored already. The table lives as long as its connection, so that not every retry creates one.
KEEP_STAGE = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS retried_events ON COMMIT DELETE ROWS AS SELECT {_QUOTED} FROM exp.events WITH NO DATA
"""
INSERT_RETRIED = f"""
INSERT INTO exp.events ({_QUOTED}) SELECT {_QUOTED} FROM retried_events ORDER BY id, "timestamp" ON CONFLICT DO NOTHING
"""
STAGE = f"CREATE TEMPORARY TABLE incoming_events AS SELECT {_QUOTED} FROM exp.events WITH NO DATA"
COPY_STAGED = f"COPY incoming_events ({_QUOTED}) FROM STDIN (ENCODING 'UTF8')"
INSERT_STAGED = f"""
INSERT INTO exp.events ({_QUOTED}) SELECT {_QUOTED} FROM incoming_events ORDER BY id, "timestamp" ON CONFLICT DO NOTHING
"""
UNSTAGE = "DROP TABLE incoming_events"
CHUNK_EVENTS = 1_000
PARTITION_LOCK_TIMEOUT = "2s"
KNOWN_VARIANTS = "SELECT id, experiment_id FROM exp.variants"


class NoPartitionError(LifecycleError):
    """An event's day has no partition, and nothing of the batch is stored: call `ensure_partitions`, then store again."""


async def insert_events(connection: asyncpg.Connection, events: Sequence[Event]) -> None:
    """Store the events that are not stored yet; on return all are committed. Must not run inside a transaction.

    Raises NoPartitionError.
    """
    # A memoryview, because asyncpg would take bytes for a file name.
    lines = memoryview(copy_lines(events))
    try:
        try:
            await connection.copy_to_table("events", schema_name="exp", columns=COLUMNS, source=lines)
        except asyncpg.UniqueViolationError:
            # One event that is stored already fails the whole COPY. Retries are rare, so COPY is tried first: docs/performance.md.
            async with connection.transaction():
                await connection.execute(KEEP_STAGE)
                await connection.copy_to_table("retried_events", columns=COLUMNS, source=lines)
                await connection.execute(INSERT_RETRIED)
    except asyncpg.CheckViolationError as error:
        if error.constraint_name is not None:
            raise
        raise NoPartitionError(str(error)) from error


def store_events(connection: psycopg.Connection[Any], events: Iterable[Mapping[str, Any]]) -> int:
    """Store generated events, tens of thousands a second, in the caller's transaction; returns how many were new.

    Each has the fields of an incoming event: `timestamp` is a datetime with an offset or ISO 8601 text, and a missing `event_id` is
    generated. Credentials are removed, and all flags but `late` are set: history is always late. The partitions must exist. Raises
    ValueError for a timestamp without an offset or a metric that is not a finite number.
    """
    return store_read_events(connection, map(_event_of, events))


def store_read_events(connection: psycopg.Connection[Any], events: Iterable[Event]) -> int:
    """Store validated events in the caller's transaction and set their flags again; returns how many were new."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        # This query opens the caller's transaction: otherwise the block below would be the outermost one and commit.
        variants: dict[UUID, UUID] = dict(cursor.execute(KNOWN_VARIANTS).fetchall())
    runs = frozenset(variants.values())
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(STAGE)
        with cursor.copy(COPY_STAGED) as copy:
            rest = iter(events)
            while chunk := list(islice(rest, CHUNK_EVENTS)):
                set_flags(chunk, variants, runs)
                copy.write(copy_lines(chunk))
        cursor.execute(INSERT_STAGED)
        stored = cursor.rowcount
        cursor.execute(UNSTAGE)
    return stored


def ensure_partitions(
    url: str, first_day: date, days_ahead: int, days: Collection[date] = (), keep_days: int | None = None
) -> int:
    """Create the missing partitions from `keep_days` ago to `days_ahead` days from now, and those of `days`.

    Returns the number created. `first_day` is used only if the database has no history partition yet: otherwise its own first day
    counts. Raises psycopg.errors.LockNotAvailable if another session keeps the table locked for longer than two seconds.
    """
    with psycopg.connect(url, connect_timeout=5) as connection:
        # Inserts of other days queue behind this lock, so it does not wait for long-running holders such as ANALYZE.
        connection.execute(f"SET LOCAL lock_timeout = '{PARTITION_LOCK_TIMEOUT}'")
        first_day = recorded_first_day(connection) or first_day
        created = ensure_event_partitions(connection, first_day, days_ahead, keep_days)
        return created + (ensure_event_days(connection, days) if days else 0)


def recorded_first_day(connection: psycopg.Connection[Any]) -> date | None:
    """The first day after this database's history; None if there is no history partition yet."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        ends: dict[str, datetime] = dict(cursor.execute(EXISTING_PARTITIONS).fetchall())
    return ends[HISTORY].astimezone(UTC).date() if HISTORY in ends else None


def _event_of(mapping: Mapping[str, Any]) -> Event:
    timestamp = mapping["timestamp"]
    if isinstance(timestamp, str):
        timestamp = datetime.fromisoformat(timestamp)
    if timestamp.tzinfo is None:
        raise ValueError(f"The event {mapping.get('event_id')} has the timestamp {timestamp}, which has no UTC offset.")
    metrics = dict(mapping.get("metrics") or {})
    if not all(is_finite(number) for number in metrics.values()):
        raise ValueError(f"The event {mapping.get('event_id')} has a metric that is not a finite number: {metrics}.")
    event_id = mapping.get("event_id")
    payload = mapping.get("payload")
    return Event(
        event_id=UUID(str(event_id)) if event_id is not None else new_event_id(),
        event_type=mapping["event_type"],
        unit_type=mapping["unit_type"],
        unit_id=mapping["unit_id"],
        experiments=[
            ExperimentRef(UUID(str(ref["experiment_id"])), UUID(str(ref["variant_id"])))
            for ref in mapping.get("experiments") or ()
        ],
        context=without_credentials(mapping.get("context") or {}),
        metrics=metrics,
        payload=None if payload is None else without_credentials(payload),
        timestamp=timestamp.astimezone(UTC),
    )
