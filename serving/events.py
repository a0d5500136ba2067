"""`POST /api/v1/events` and `/events/batch`. Belongs here: requests, answers, statuses. Does not belong here: what is valid, SQL."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec
import psycopg
from starlette.types import Scope

from experimentation.assignments import Catalogue
from experimentation.event_validation import (
    MAX_EVENT_BYTES,
    Event,
    ExplainedError,
    FieldError,
    InvalidEventError,
    flags_of,
    read_event,
    why_unreadable,
)
from experimentation.events import NoPartitionError, insert_events
from serving.auth import KeyRing
from serving.catalogue import CatalogueCache
from serving.database import Database, PartitionKeeper
from serving.endpoint import Endpoint, Headers, encode
from serving.errors import ApiError, payload_too_large, service_unavailable, validation_error
from serving.measures import OTHER, Measures, event_label

MAX_BATCH_BYTES = 10 * 1_048_576
MAX_BATCH = 1_000


class EventAccepted(msgspec.Struct):
    """The event is stored, now or by an earlier try."""

    event_id: UUID
    status: str = "accepted"


class BatchError(msgspec.Struct):
    """Why the event at `index` of the batch was refused."""

    index: int
    error: str


class BatchAccepted(msgspec.Struct, omit_defaults=True):
    """Ids of the accepted events, in order; `errors` where some were refused."""

    accepted: int
    rejected: Annotated[int, msgspec.Meta(ge=0)]
    event_ids: list[UUID]
    errors: list[BatchError] = []


class RawBatch(msgspec.Struct):
    """A batch whose events are still to be read, each on its own."""

    events: list[msgspec.Raw]


_batch = msgspec.json.Decoder(RawBatch)


class EventStore:
    """Flags and stores events; what returns is committed."""

    def __init__(self, database: Database, catalogue: CatalogueCache, partitions: PartitionKeeper) -> None:
        """`partitions` is asked for a day that none is ready for."""
        self._database, self._catalogue, self._partitions = database, catalogue, partitions

    async def store(self, events: Sequence[Event], now: datetime) -> None:
        """Raises ApiError: 503 when the database is away."""
        catalogue = await self._database.retrying(self._catalogue.current)
        _flag(events, catalogue, now)
        await self._database.retrying(lambda: self._insert(events))

    async def _insert(self, events: Sequence[Event]) -> None:
        try:
            async with self._database.acquire() as connection:
                await insert_events(connection, events)
            return
        except NoPartitionError:
            pass
        try:
            await self._partitions.make()
            async with self._database.acquire() as connection:
                await insert_events(connection, events)
        except (NoPartitionError, psycopg.Error) as error:
            raise service_unavailable("There is no room yet for the day of an event; try again shortly.") from error


class EventEndpoint(Endpoint):
    """One event."""

    scope = "ingest"
    limit = MAX_EVENT_BYTES

    def __init__(self, keys: KeyRing, store: EventStore, measures: Measures) -> None:
        """Events that `keys` lets through go to `store`."""
        super().__init__(keys)
        self._store, self._measures = store, measures

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Raises ApiError: 400, 413, 503."""
        started, now = time.perf_counter(), datetime.now(UTC)
        try:
            event = read_event(body, now)
        except InvalidEventError as error:
            self._measures.events_received.labels(OTHER, "rejected").inc()
            self._measures.validation_errors.labels(error.errors[0].error).inc()
            raise validation_error(error.errors) from None
        await _store_counted(self._store, [event], now, self._measures, started)
        return 200, encode(EventAccepted(event.event_id)), ()


class BatchEndpoint(Endpoint):
    """Up to a thousand events; the valid ones are stored in one transaction, the others reported one by one."""

    scope = "ingest"
    limit = MAX_BATCH_BYTES

    def __init__(self, keys: KeyRing, store: EventStore, measures: Measures) -> None:
        """Events that `keys` lets through go to `store`."""
        super().__init__(keys)
        self._store, self._measures = store, measures

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Raises ApiError: 400, 413, 503."""
        started, now = time.perf_counter(), datetime.now(UTC)
        raws = read_batch(body)
        self._measures.batch_size.observe(len(raws))
        events: list[Event] = []
        refused: list[tuple[int, InvalidEventError]] = []
        for index, raw in enumerate(raws):
            try:
                events.append(read_event(memoryview(raw), now))
            except InvalidEventError as error:
                refused.append((index, error))
                self._measures.events_received.labels(OTHER, "rejected").inc()
                self._measures.validation_errors.labels(error.errors[0].error).inc()
        errors = [BatchError(index, error.errors[0].error) for index, error in refused]
        if not events:
            raise _all_refused(refused, errors)
        await _store_counted(self._store, events, now, self._measures, started)
        accepted = BatchAccepted(len(events), len(errors), [event.event_id for event in events], errors)
        return 207 if errors else 200, encode(accepted), ()


def read_batch(body: bytes) -> list[msgspec.Raw]:
    """The events of a batch, unread. Raises ApiError (400)."""
    try:
        raws = _batch.decode(body).events
    except msgspec.ValidationError:
        raise validation_error([FieldError("events", "invalid_events")]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise validation_error([ExplainedError("body", "invalid_json", why_unreadable(body, str(error)))]) from None
    if not raws:
        raise validation_error([FieldError("events", "missing_events")])
    if len(raws) > MAX_BATCH:
        raise validation_error(
            [FieldError("events", "too_many_events")], f"A batch holds at most {MAX_BATCH:,} events."
        )
    return raws


def _all_refused(refused: Sequence[tuple[int, InvalidEventError]], errors: Sequence[BatchError]) -> ApiError:
    if all(error.error == "payload_too_large" for error in errors):
        return payload_too_large(MAX_EVENT_BYTES)
    details = [
        FieldError(f"events[{index}].{detail.field}", detail.error)
        for index, error in refused
        for detail in error.errors
    ]
    listed = [msgspec.to_builtins(error) for error in errors]
    return validation_error(details, f"None of the {len(errors)} events is valid.", listed)


async def _store_counted(
    store: EventStore, events: Sequence[Event], now: datetime, measures: Measures, started: float
) -> None:
    labels = Counter(event_label(event.event_type) for event in events)
    try:
        await store.store(events, now)
    except ApiError:
        for label, count in labels.items():
            measures.events_received.labels(label, "failed").inc(count)
        raise
    seconds = time.perf_counter() - started
    for label, count in labels.items():
        measures.events_received.labels(label, "accepted").inc(count)
        measures.ingestion_latency.labels(label).observe(seconds)


def _flag(events: Sequence[Event], catalogue: Catalogue, now: datetime) -> None:
    for event in events:
        event.flags = flags_of(event, catalogue.variants, catalogue.by_id.keys(), now)
