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
from serving.events.store import PARTITION_UNAVAILABLE, EventStore, Outcome
from serving.http.auth import KeyRing
from serving.http.body_budget import BodyBudget
from serving.http.endpoint import Endpoint, Headers, encode
from serving.http.errors import ApiError, payload_too_large, rate_limited, service_unavailable, validation_error
from serving.http.limits import Limit, Limits
from serving.http.metrics import Metrics

MAX_BATCH_BYTES = 10 * 1_048_576
MAX_BATCH = 1_000
LARGE_BYTES = 65_536
RATE_LIMITED = "rate_limited"
# Outcome of an event that is stored nowhere → its error.
UNSTORED = {"rejected": "invalid_event", "unavailable": "service_unavailable"}


class EventAccepted(msgspec.Struct):
    """The event is stored, by this request or an earlier one."""

    event_id: UUID
    status: str = "accepted"


class BatchError(msgspec.Struct):
    """Why the event at `index` of the batch was rejected."""

    index: int
    error: str


class BatchAccepted(msgspec.Struct, omit_defaults=True):
    """Ids of the accepted events, in order, and `errors` if some were rejected."""

    accepted: int
    rejected: Annotated[int, msgspec.Meta(ge=0)]
    event_ids: list[UUID]
    errors: list[BatchError] = []


class RawBatch(msgspec.Struct):
    """A batch whose events are not decoded yet."""

    events: list[msgspec.Raw]


_batch = msgspec.json.Decoder(RawBatch)


class _IngestEndpoint(Endpoint):
    scope = "ingest"

    def __init__(
        self,
        keys: KeyRing,
        body_budget: BodyBudget,
        slots: asyncio.Semaphore,
        store: EventStore,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        """Passes events that `keys` and `limits` allow to `store`. At most `slots` large bodies are decoded at the same time."""
        super().__init__(keys, body_budget)
        self._slots, self._store, self._limits, self._metrics = slots, store, limits, metrics.events


class EventEndpoint(_IngestEndpoint):
    """Stores one event."""

    limit = MAX_EVENT_BYTES

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """The event's id once it is durable. Raises ApiError: 400, 413, 429, 503."""
        if len(body) < LARGE_BYTES:
            return await self._answer(body)
        async with self._slots:
            return await self._answer(body)

    async def _answer(self, body: bytes) -> tuple[int, bytes, Headers]:
        started, now = time.perf_counter(), datetime.now(UTC)
        try:
            event = read_event(body, now)
        except InvalidEventError as error:
            self._metrics.count_refused(error.errors[0].error)
            raise validation_error(error.errors) from None
        limit = self._limits.unit_events
        key = limit.key(_unit(event))
        # Without Redis there is nothing to await, which saves a coroutine.
        if await self._limits.too_many(limit, {key: 1}) if self._limits.shared else limit.count(key, 1):
            self._metrics.count_refused(RATE_LIMITED, event.event_type)
            raise rate_limited("This unit", limit.amount, limit.wait(key), "events")
        try:
            outcome = await self._store.store_one(event)
        except ApiError:
            self._metrics.count_received(event.event_type, "failed")
            raise
        self._metrics.count_received(event.event_type, outcome)
        self._metrics.observe_latency(event.event_type, time.perf_counter() - started)
        return 200, encode(EventAccepted(event.event_id)), ()


class BatchEndpoint(_IngestEndpoint):
    """Stores up to 1,000 events: the valid ones in one transaction. Each invalid one is reported."""

    limit = MAX_BATCH_BYTES

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Which events are stored. Raises ApiError if none is: 400, 413, 429, 503."""
        started = time.perf_counter()
        async with self._slots:
            batch = _Batch(body, datetime.now(UTC))
            self._metrics.batch_size.observe(batch.size)
            limit = self._limits.unit_events
            excess = await self._limits.too_many(limit, batch.units(limit))
            if excess:
                batch.refuse_last(limit, excess)
            for _, errors in batch.refused:
                self._metrics.count_refused(errors[0].error)
            if not batch.events:
                raise batch.all_refused(max(map(limit.wait, excess), default=0), limit.amount)
            await self._store_counted(batch, started)
        return batch.answer()

    async def _store_counted(self, batch: "_Batch", started: float) -> None:
        events = [event for _, event in batch.events]
        metrics = self._metrics
        try:
            outcomes = await self._store.store(events)
        except ApiError:
            for event_type, count in Counter(event.event_type for event in events).items():
                metrics.count_received(event_type, "failed", count)
            raise
        counts = Counter(zip((event.event_type for event in events), outcomes, strict=True))
        seconds = time.perf_counter() - started
        for (event_type, outcome), count in counts.items():
            metrics.count_received(event_type, outcome, count)
            metrics.observe_latency(event_type, seconds, count)
        batch.refuse_unstored(outcomes)


class _Batch:
    """The events of one request, valid and rejected, each with its index."""

    def __init__(self, body: bytes, now: datetime) -> None:
        """Decodes the events. Raises ApiError (400) if `body` is not a batch."""
        raws = read_batch(body)
        no_nul = b"\\u0000" not in body
        self.size = len(raws)
        self.events: list[tuple[int, Event]] = []
        # The errors, not the exceptions: the traceback of each would keep this batch alive until a garbage collection.
        self.refused: list[tuple[int, list[FieldError]]] = []
        for index, raw in enumerate(raws):
            try:
                self.events.append((index, read_event(raw, now, no_nul=no_nul)))
            except InvalidEventError as error:
                self.refused.append((index, error.errors))

    def units(self, limit: Limit) -> dict[str, int]:
        """The number of events per unit, by the unit's key in `limit`."""
        return Counter(limit.key(_unit(event)) for _, event in self.events)

    def refuse_last(self, limit: Limit, excess: Mapping[str, int]) -> None:
        """Reject the last events of each unit; `excess` says how many, by the unit's key."""
        left = dict(excess)
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
        """Reject the events that are stored nowhere. Raises ApiError if none is left: 503 if a retry may help, else 400."""
        if UNSTORED.keys().isdisjoint(outcomes):
            return
        events = list(zip(self.events, outcomes, strict=True))
        self.events = [event for event, outcome in events if outcome not in UNSTORED]
        for (index, _), outcome in events:
            if outcome in UNSTORED:
                self.refused.append((index, [FieldError("event", UNSTORED[outcome])]))
        if not self.events:
            raise service_unavailable(PARTITION_UNAVAILABLE) if "unavailable" in outcomes else self.all_refused(0, 0)

    def answer(self) -> tuple[int, bytes, Headers]:
        """200, or 207 if some events are rejected."""
        errors = self._errors()
        accepted = BatchAccepted(len(self.events), len(errors), [event.event_id for _, event in self.events], errors)
        return 207 if errors else 200, encode(accepted), ()

    def all_refused(self, wait: int, amount: int) -> ApiError:
        """400, or 413 or 429 if that is the error of every event. `wait`: seconds until a unit may send its `amount` again."""
        errors = self._errors()
        if all(error.error == "payload_too_large" for error in errors):
            return payload_too_large(MAX_EVENT_BYTES)
        if all(error.error == RATE_LIMITED for error in errors):
            return rate_limited("Each unit of this batch", amount, wait, "events")
        details = [
            FieldError(f"events[{index}].{detail.field}", detail.error)
            for index, event_errors in self.refused
            for detail in event_errors
        ]
        error_list = [msgspec.to_builtins(error) for error in errors]
        return validation_error(details, f"None of the {len(errors)} events is valid.", error_list)

    def _errors(self) -> list[BatchError]:
        self.refused.sort(key=lambda refused: refused[0])
        return [BatchError(index, errors[0].error) for index, errors in self.refused]


def read_batch(body: bytes) -> list[msgspec.Raw]:
    """The events of a batch, not decoded yet. Raises ApiError (400)."""
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
            [FieldError("events", "too_many_events")], f"A batch can have at most {MAX_BATCH:,} events."
        )
    return raws


def _unit(event: Event) -> str:
    return f"{event.unit_type}:{event.unit_id}"
