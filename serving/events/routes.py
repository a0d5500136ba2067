"""`POST /api/v1/events` and `/events/batch`."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec
from starlette.types import Scope

from eventlog.validation import (
    MAX_EVENT_BYTES,
    Event,
    ExplainedError,
    FieldError,
    InvalidEventError,
    read_event,
    why_unreadable,
)
from serving.events.store import NO_ROOM, EventStore, Outcome
from serving.http.auth import KeyRing
from serving.http.endpoint import Endpoint, Headers, encode
from serving.http.errors import ApiError, payload_too_large, rate_limited, service_unavailable, validation_error
from serving.http.limits import Limit, Limits
from serving.http.measures import Measures
from serving.http.room import Room

MAX_BATCH_BYTES = 10 * 1_048_576
MAX_BATCH = 1_000
LARGE_BYTES = 65_536
RATE_LIMITED = "rate_limited"
# What became of an event that is stored nowhere → its error.
UNSTORED = {"rejected": "invalid_event", "unavailable": "service_unavailable"}


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


class _IngestEndpoint(Endpoint):
    scope = "ingest"

    def __init__(
        self,
        keys: KeyRing,
        room: Room,
        slots: asyncio.Semaphore,
        store: EventStore,
        limits: Limits,
        measures: Measures,
    ) -> None:
        """Events that `keys` and `limits` let through go to `store`; so many large bodies are read at once as there are `slots`."""
        super().__init__(keys, room)
        self._slots, self._store, self._limits, self._measures = slots, store, limits, measures.events


class EventEndpoint(_IngestEndpoint):
    """One event."""

    limit = MAX_EVENT_BYTES

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Raises ApiError: 400, 413, 429, 503."""
        if len(body) < LARGE_BYTES:
            return await self._answer(body)
        async with self._slots:
            return await self._answer(body)

    async def _answer(self, body: bytes) -> tuple[int, bytes, Headers]:
        started, now = time.perf_counter(), datetime.now(UTC)
        try:
            event = read_event(body, now)
        except InvalidEventError as error:
            self._measures.count_refused(error.errors[0].error)
            raise validation_error(error.errors) from None
        limit = self._limits.unit_events
        key = limit.key(_unit(event))
        # Without Redis nothing is awaited, so nothing need be made for it.
        if await self._limits.too_many(limit, {key: 1}) if self._limits.shared else limit.count(key, 1):
            self._measures.count_refused(RATE_LIMITED, event.event_type)
            raise rate_limited("This unit", limit.amount, limit.wait(key), "events")
        try:
            outcome = await self._store.store_one(event)
        except ApiError:
            self._measures.count_received(event.event_type, "failed")
            raise
        self._measures.count_received(event.event_type, outcome)
        self._measures.observe_latency(event.event_type, time.perf_counter() - started)
        return 200, encode(EventAccepted(event.event_id)), ()


class BatchEndpoint(_IngestEndpoint):
    """Up to a thousand events; the valid ones are stored in one transaction, the others reported one by one."""

    limit = MAX_BATCH_BYTES

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Raises ApiError: 400, 413, 429, 503."""
        started = time.perf_counter()
        async with self._slots:
            batch = _Batch(body, datetime.now(UTC))
            self._measures.batch_size.observe(batch.size)
            limit = self._limits.unit_events
            over = await self._limits.too_many(limit, batch.units(limit))
            if over:
                batch.refuse_last(limit, over)
            for _, errors in batch.refused:
                self._measures.count_refused(errors[0].error)
            if not batch.events:
                raise batch.all_refused(max(map(limit.wait, over), default=0), limit.amount)
            await self._store_counted(batch, started)
        return batch.answer()

    async def _store_counted(self, batch: "_Batch", started: float) -> None:
        events = [event for _, event in batch.events]
        measures = self._measures
        try:
            outcomes = await self._store.store(events)
        except ApiError:
            for event_type, count in Counter(event.event_type for event in events).items():
                measures.count_received(event_type, "failed", count)
            raise
        counts = Counter(zip((event.event_type for event in events), outcomes, strict=True))
        seconds = time.perf_counter() - started
        for (event_type, outcome), count in counts.items():
            measures.count_received(event_type, outcome, count)
            measures.observe_latency(event_type, seconds, count)
        batch.refuse_unstored(outcomes)


class _Batch:
    """The events of one request: those that are valid, and those that are refused, each with its place."""

    def __init__(self, body: bytes, now: datetime) -> None:
        """Raises ApiError (400) for what is no batch."""
        raws = read_batch(body)
        no_nul = b"\\u0000" not in body
        self.size = len(raws)
        self.events: list[tuple[int, Event]] = []
        # Not the exceptions: each would keep this batch, by way of its traceback, until the garbage collector comes.
        self.refused: list[tuple[int, list[FieldError]]] = []
        for index, raw in enumerate(raws):
            try:
                self.events.append((index, read_event(raw, now, no_nul=no_nul)))
            except InvalidEventError as error:
                self.refused.append((index, error.errors))

    def units(self, limit: Limit) -> dict[str, int]:
        """How many events each unit has, by its key."""
        return Counter(limit.key(_unit(event)) for _, event in self.events)

    def refuse_last(self, limit: Limit, over: Mapping[str, int]) -> None:
        """Refuse the last so many events of each unit."""
        left = dict(over)
        kept: list[tuple[int, Event]] = []
        for index, event in reversed(self.events):
            key = limit.key(_unit(event))
            if left.get(key):
                left[key] -= 1
                self.refused.append((index, [FieldError("unit_id", RATE_LIMITED)]))
            else:
                kept.append((index, event))
        self.events = kept[::-1]

    def refuse_unstored(self, outcomes: Sequence[Outcome]) -> None:
        """Refuse those that are stored nowhere. Raises ApiError when none is left: 503 where trying again may help, else 400."""
        if UNSTORED.keys().isdisjoint(outcomes):
            return
        held = list(zip(self.events, outcomes, strict=True))
        self.events = [event for event, outcome in held if outcome not in UNSTORED]
        for (index, _), outcome in held:
            if outcome in UNSTORED:
                self.refused.append((index, [FieldError("event", UNSTORED[outcome])]))
        if not self.events:
            raise service_unavailable(NO_ROOM) if "unavailable" in outcomes else self.all_refused(0, 0)

    def answer(self) -> tuple[int, bytes, Headers]:
        """200, or 207 where some are refused."""
        errors = self._errors()
        accepted = BatchAccepted(len(self.events), len(errors), [event.event_id for _, event in self.events], errors)
        return 207 if errors else 200, encode(accepted), ()

    def all_refused(self, wait: int, amount: int) -> ApiError:
        """400; 413 or 429 where that is what is wrong with each. `wait`: seconds until a unit may send its `amount` again."""
        errors = self._errors()
        if all(error.error == "payload_too_large" for error in errors):
            return payload_too_large(MAX_EVENT_BYTES)
        if all(error.error == RATE_LIMITED for error in errors):
            return rate_limited("Each unit of this batch", amount, wait, "events")
        details = [
            FieldError(f"events[{index}].{detail.field}", detail.error)
            for index, found in self.refused
            for detail in found
        ]
        listed = [msgspec.to_builtins(error) for error in errors]
        return validation_error(details, f"None of the {len(errors)} events is valid.", listed)

    def _errors(self) -> list[BatchError]:
        self.refused.sort(key=lambda one: one[0])
        return [BatchError(index, errors[0].error) for index, errors in self.refused]


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


def _unit(event: Event) -> str:
    return f"{event.unit_type}:{event.unit_id}"
