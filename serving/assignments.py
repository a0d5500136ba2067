"""`POST /api/v1/assignments`. Belongs here: reading the request, shaping the answer. Does not belong here: rules, SQL."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from experimentation.assignment_store import Answer, StoredUnits, assign
from experimentation.assignments import StaleCatalogueError
from experimentation.event_validation import MAX_UNIT_ID, UNIT_TYPES, FieldError
from serving.auth import KeyRing
from serving.database import CatalogueCache, Database
from serving.endpoint import Endpoint
from serving.errors import ApiError, service_unavailable, validation_error
from serving.measures import OTHER, Measures

MAX_REQUESTED = 100
MAX_BODY_BYTES = 1_048_576
# Each try reads the experiments anew, so a second is rare and a third means that they change all the time.
MAX_DECISIONS = 5


class AssignmentRequest(msgspec.Struct):
    """Who asks for which experiments."""

    unit_type: Literal["user", "household", "session"]
    unit_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_UNIT_ID)]
    requested_experiments: Annotated[list[str], msgspec.Meta(max_length=MAX_REQUESTED)]
    context: dict[str, Any] | None = None


class Assignment(msgspec.Struct):
    """The variant that a unit is served, with its complete config."""

    experiment_id: UUID
    experiment_name: str
    run: int
    variant_id: UUID
    variant_name: str
    enrolled: bool
    reason: Annotated[str, msgspec.Meta(description="assigned, remainder, shipped or withdrawn")]
    config: Mapping[str, Any]


class SkippedExperiment(msgspec.Struct):
    """An experiment without an answer for the unit."""

    experiment_name: str
    reason: Annotated[
        str, msgspec.Meta(description="not_found, unit_type_mismatch, not_active, not_started, ended or paused")
    ]


class AssignmentResponse(msgspec.Struct):
    """One entry a requested name, in one of the two lists."""

    assignments: list[Assignment]
    skipped_experiments: list[SkippedExperiment]


_request = msgspec.json.Decoder(AssignmentRequest)
_PLACE = re.compile(r"at `\$\.(\w+)")


class AssignmentEndpoint(Endpoint):
    """Answers assignments; a newly enrolled unit is committed before it is answered."""

    scope = "assign"
    limit = MAX_BODY_BYTES

    def __init__(
        self,
        keys: KeyRing,
        database: Database,
        catalogue: CatalogueCache,
        stored_units: StoredUnits,
        measures: Measures,
        max_age: int,
    ) -> None:
        """`max_age`: seconds that a client may hold an answer."""
        super().__init__(keys)
        self._database, self._catalogue, self._stored_units, self._measures = (
            database,
            catalogue,
            stored_units,
            measures,
        )
        self._headers = ((b"cache-control", f"max-age={max_age}".encode()),)

    async def answer(self, body: bytes) -> tuple[int, Any, tuple[tuple[bytes, bytes], ...]]:
        """Raises ApiError: 400, or 503 when the database is away."""
        started = time.perf_counter()
        try:
            request = read_request(body)
            names = list(dict.fromkeys(request.requested_experiments))
            answers = await self._database.retrying(lambda: self._decide(request, names))
        except ApiError as error:
            self._measures.assignment_requests.labels(error.body.error, OTHER).inc()
            raise
        self._count(answers, time.perf_counter() - started)
        return 200, _response(answers), self._headers

    async def _decide(self, request: AssignmentRequest, names: list[str]) -> list[Answer]:
        catalogue = await self._catalogue.current()
        for _ in range(MAX_DECISIONS):
            decided_at = time.monotonic()
            try:
                return await assign(
                    self._database.acquire,
                    catalogue,
                    self._stored_units,
                    request.unit_type,
                    request.unit_id,
                    names,
                    datetime.now(UTC),
                )
            except StaleCatalogueError:
                catalogue = await self._catalogue.newer_than(decided_at)
        raise service_unavailable("The experiments are changing too fast to decide; try again shortly.")

    def _count(self, answers: list[Answer], seconds: float) -> None:
        measures = self._measures
        for answer in answers:
            label = OTHER if answer.run is None else answer.run.name
            measures.assignment_requests.labels(answer.decision.reason, label).inc()
            measures.assignment_latency.labels(label).observe(seconds)
            if answer.stored_now:
                measures.new_assignments.labels(label).inc()
        hits, misses = self._stored_units.take_counts()
        measures.cache_hits.inc(hits)
        measures.cache_misses.inc(misses)


def read_request(body: bytes) -> AssignmentRequest:
    """The request in a body. Raises ApiError (400) with every field that is wrong."""
    try:
        request = _request.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise validation_error(_explain(body, str(error))) from None
    if "\0" in request.unit_id:
        raise validation_error([FieldError("unit_id", "invalid_unit_id")])
    return request


def _response(answers: list[Answer]) -> AssignmentResponse:
    response = AssignmentResponse([], [])
    for answer in answers:
        run, variant = answer.run, answer.decision.variant
        if run is None or variant is None:
            response.skipped_experiments.append(SkippedExperiment(answer.name, answer.decision.reason))
        else:
            response.assignments.append(
                Assignment(
                    experiment_id=run.id,
                    experiment_name=run.name,
                    run=run.run,
                    variant_id=variant.id,
                    variant_name=variant.name,
                    enrolled=answer.decision.enrolled,
                    reason=answer.decision.reason,
                    config=variant.config,
                )
            )
    return response


def _explain(body: bytes, said: str) -> list[FieldError]:
    """Every error of a body that has the wrong types; `said` is the decoder's own message."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        place = _PLACE.search(said)
        return [FieldError(place[1], f"invalid_{place[1]}") if place else FieldError("body", "invalid_json")]
    if not isinstance(request, dict):
        return [FieldError("body", "invalid_body")]
    errors = [
        FieldError(name, f"missing_{name}" if request.get(name) is None else f"invalid_{name}")
        for name, holds in _REQUIRED.items()
        if request.get(name) is None or not holds(request[name])
    ]
    if not isinstance(request.get("context"), dict | None):
        errors.append(FieldError("context", "invalid_context"))
    return errors or [FieldError("body", "invalid_body")]


_REQUIRED = {
    "unit_type": lambda value: isinstance(value, str) and value in UNIT_TYPES,
    "unit_id": lambda value: isinstance(value, str) and 1 <= len(value) <= MAX_UNIT_ID,
    "requested_experiments": lambda value: (
        isinstance(value, list) and len(value) <= MAX_REQUESTED and all(isinstance(name, str) for name in value)
    ),
}
