"""`POST /api/v1/assignments`."""

import difflib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec
from starlette.types import Scope

from eventlog.validation import (
    MAX_UNIT_ID,
    UNIT_TYPES,
    ExplainedError,
    FieldError,
    UnitId,
    why_unreadable,
)
from experimentation.assignments.rules import ANSWERS, SKIPS, Decision, ServedRun
from experimentation.assignments.targeting import Asker
from experimentation.runs.run import UnitType
from serving.assignments.deciding import Answer, Assigner, Question
from serving.http.auth import KeyRing
from serving.http.endpoint import Endpoint, Headers, encode
from serving.http.errors import MAX_TOLD, ApiError, rate_limited, validation_error
from serving.http.limits import Limits
from serving.http.measures import OTHER, AssignmentMeasures
from serving.http.room import Room

MAX_REQUESTED = 100
MAX_NAME_SHOWN = 100
UNKNOWN = "unknown_field"
MAX_BODY_BYTES = 1_048_576
# Answers of variants are encoded once; more than this are never in use at once.
MAX_PIECES = 10_000
WHOLE = b'{"assignments":[%b],"skipped_experiments":[%b]}'


class AssignmentRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Who asks for which experiments. `context` is what targeting rules read; with `enroll` false nothing is stored."""

    unit_type: UnitType
    unit_id: UnitId
    requested_experiments: Annotated[list[str], msgspec.Meta(max_length=MAX_REQUESTED)]
    context: dict[str, Any] | None = None
    enroll: bool = True


class Assignment(msgspec.Struct):
    """The variant that a unit is served, with its complete config."""

    experiment_id: UUID
    experiment_name: str
    run: int
    variant_id: UUID
    variant_name: str
    enrolled: bool
    reason: Annotated[str, msgspec.Meta(description=", ".join(ANSWERS))]
    config: Mapping[str, Any]


class SkippedExperiment(msgspec.Struct):
    """An experiment without an answer for the unit."""

    experiment_name: str
    reason: Annotated[str, msgspec.Meta(description=", ".join(SKIPS))]


class AssignmentResponse(msgspec.Struct):
    """One entry a requested name, in one of the two lists."""

    assignments: list[Assignment]
    skipped_experiments: list[SkippedExperiment]


_request = msgspec.json.Decoder(AssignmentRequest)
_PLACE = re.compile(r"at `\$\.(\w+)")


class Pieces:
    """Parts of answers as JSON, encoded once for each variant and reason."""

    def __init__(self) -> None:
        """Empty."""
        # By the decision's identity, which the entry keeps alive: decisions of stored units are made once for each picture of a run.
        self._pieces: dict[int, tuple[Decision, bytes, bytes]] = {}

    def response(self, answers: Sequence[Answer]) -> bytes:
        """The whole answer, an `AssignmentResponse`."""
        if len(answers) == 1:
            _, run, decision, _ = answers[0]
            if run is not None and decision.variant is not None:
                return self._of(run, decision)[2]
        served = [self._of(run, decision)[1] for _, run, decision, _ in answers if run is not None and decision.variant]
        skipped = [
            encode(SkippedExperiment(name, decision.reason)) for name, _, decision, _ in answers if not decision.variant
        ]
        return WHOLE % (b",".join(served), b",".join(skipped))

    def _of(self, run: ServedRun, decision: Decision) -> tuple[Decision, bytes, bytes]:
        """The decision, its member of `assignments`, and the whole answer where it is the only one."""
        found = self._pieces.get(id(decision))
        if found is not None:
            return found
        variant = decision.variant
        assert variant is not None
        if len(self._pieces) >= MAX_PIECES:
            self._pieces.clear()
        piece = encode(
            Assignment(
                experiment_id=run.id,
                experiment_name=run.name,
                run=run.run,
                variant_id=variant.id,
                variant_name=variant.name,
                enrolled=decision.enrolled,
                reason=decision.reason,
                config=variant.config,
            )
        )
        found = self._pieces[id(decision)] = decision, piece, WHOLE % (piece, b"")
        return found


class AssignmentEndpoint(Endpoint):
    """Answers assignments; a newly enrolled unit is committed before it is answered."""

    scope = "assign"
    limit = MAX_BODY_BYTES

    def __init__(
        self,
        keys: KeyRing,
        room: Room,
        assigner: Assigner,
        limits: Limits,
        measures: AssignmentMeasures,
        max_age: int,
    ) -> None:
        """`max_age`: seconds that a client may hold an answer."""
        super().__init__(keys, room)
        self._assigner, self._limits, self._measures = assigner, limits, measures
        self._pieces = Pieces()
        self._headers = ((b"cache-control", f"max-age={max_age}".encode()),)

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Raises ApiError: 400, 429, or 503 when the database is away."""
        started = time.perf_counter()
        try:
            asked = read_request(body)
            await limit_unit(self._limits, asked.unit_type, asked.unit_id)
            names = asked.requested_experiments
            if len(names) > 1:
                names = list(dict.fromkeys(names))
            question = Question(
                asked.unit_type, asked.unit_id, names, Asker(asked.unit_type, asked.context), asked.enroll
            )
            answers = await self._assigner.answers(question)
        except ApiError as error:
            self._measures.count_request(error.body.error, OTHER)
            raise
        count_answers(self._measures, answers, time.perf_counter() - started)
        return 200, self._pieces.response(answers), self._headers


async def limit_unit(limits: Limits, unit_type: str, unit_id: str) -> None:
    """Count a request for the unit. Raises ApiError (429)."""
    limit = limits.unit
    if not limit.on:
        return
    key = limit.key(f"{unit_type}/{unit_id}")
    wait = await limits.wait_shared(limit, key) if limits.shared else limits.wait(limit, key)
    if wait:
        raise rate_limited(f"A {unit_type}", limit.amount, wait)


def count_answers(measures: AssignmentMeasures, answers: Sequence[Answer], seconds: float) -> None:
    """Tell Prometheus of one request's answers."""
    for _, run, decision, made in answers:
        label = OTHER if run is None else run.name
        measures.count_request(decision.reason, label)
        measures.observe_latency(label, seconds)
        if made:
            measures.count_new(label)


def read_request(body: bytes) -> AssignmentRequest:
    """The request in a body. Raises ApiError (400) with every field that is wrong."""
    try:
        request = _request.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise validation_error(_explain(body, str(error))) from None
    if "\0" in request.unit_id:
        raise validation_error([ExplainedError("unit_id", "invalid_unit_id", "must hold no NUL character")])
    return request


def _explain(body: bytes, said: str) -> list[FieldError]:
    """Every error of a body that has the wrong types; `said` is the decoder's own message."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        place = _PLACE.search(said)
        field, code = (place[1], f"invalid_{place[1]}") if place else ("body", "invalid_json")
        return [ExplainedError(field, code, why_unreadable(body, str(error)))]
    if not isinstance(request, dict):
        return [FieldError("body", "invalid_body")]
    errors = [
        FieldError(name, f"missing_{name}" if request.get(name) is None else f"invalid_{name}")
        for name, holds in _REQUIRED.items()
        if request.get(name) is None or not holds(request[name])
    ]
    if not isinstance(request.get("context"), dict | None):
        errors.append(ExplainedError("context", "invalid_context", "must be an object"))
    if not isinstance(request.get("enroll", True), bool):
        errors.append(FieldError("enroll", "invalid_enroll"))
    unknown = [name for name in request if name not in AssignmentRequest.__struct_fields__]
    errors += [_unknown(name) for name in unknown[:MAX_TOLD]]
    errors += [FieldError(name[:MAX_NAME_SHOWN], UNKNOWN) for name in unknown[MAX_TOLD:]]
    return errors or [FieldError("body", "invalid_body")]


def _unknown(name: str) -> FieldError:
    shown = name[:MAX_NAME_SHOWN]
    near = difflib.get_close_matches(shown, AssignmentRequest.__struct_fields__, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(AssignmentRequest.__struct_fields__)}"
    return ExplainedError(shown, UNKNOWN, f"is no field of this request: {hint}")


_REQUIRED: dict[str, Callable[[Any], bool]] = {
    "unit_type": lambda value: isinstance(value, str) and value in UNIT_TYPES,
    "unit_id": lambda value: isinstance(value, str) and 1 <= len(value) <= MAX_UNIT_ID,
    "requested_experiments": lambda value: (
        isinstance(value, list) and len(value) <= MAX_REQUESTED and all(isinstance(name, str) for name in value)
    ),
}
