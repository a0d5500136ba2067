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
from experimentation.assignments.targeting import TargetingInput
from experimentation.runs.run import UnitType
from serving.assignments.assigner import Answer, Assigner, Question
from serving.http.auth import KeyRing
from serving.http.body_budget import BodyBudget
from serving.http.endpoint import Endpoint, Headers, encode
from serving.http.errors import MAX_EXPLAINED, ApiError, rate_limited, validation_error
from serving.http.limits import Limits
from serving.http.metrics import OTHER, AssignmentMetrics

MAX_REQUESTED = 100
MAX_NAME_SHOWN = 100
UNKNOWN = "unknown_field"
MAX_BODY_BYTES = 1_048_576
# The JSON of each decision is encoded once and kept. More decisions than this are never in use at the same time.
MAX_FRAGMENTS = 10_000
RESPONSE = b'{"assignments":[%b],"skipped_experiments":[%b]}'


class AssignmentRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A unit and the experiments that it asks for. Targeting rules read `context`. Nothing is stored if `enroll` is false."""

    unit_type: UnitType
    unit_id: UnitId
    requested_experiments: Annotated[list[str], msgspec.Meta(max_length=MAX_REQUESTED)]
    context: dict[str, Any] | None = None
    enroll: bool = True


class Assignment(msgspec.Struct):
    """The variant that the unit gets, with its complete config."""

    experiment_id: UUID
    experiment_name: str
    run: int
    variant_id: UUID
    variant_name: str
    enrolled: bool
    reason: Annotated[str, msgspec.Meta(description=", ".join(ANSWERS))]
    config: Mapping[str, Any]


class SkippedExperiment(msgspec.Struct):
    """An experiment that has no variant for the unit."""

    experiment_name: str
    reason: Annotated[str, msgspec.Meta(description=", ".join(SKIPS))]


class AssignmentResponse(msgspec.Struct):
    """Each requested name is in one of the two lists."""

    assignments: list[Assignment]
    skipped_experiments: list[SkippedExperiment]


_request = msgspec.json.Decoder(AssignmentRequest)
_FIELD_IN_MESSAGE = re.compile(r"at `\$\.(\w+)")


class EncodedAnswers:
    """The JSON of answers, encoded once per decision."""

    def __init__(self) -> None:
        """Empty."""
        # Keyed by the decision's identity; the entry keeps it alive. A run has one decision object per variant and reason.
        self._fragments: dict[int, tuple[Decision, bytes, bytes]] = {}

    def response(self, answers: Sequence[Answer]) -> bytes:
        """The response body, an `AssignmentResponse`."""
        if len(answers) == 1:
            _, run, decision, _ = answers[0]
            if run is not None and decision.variant is not None:
                return self._encoded(run, decision)[2]
        assigned = [
            self._encoded(run, decision)[1] for _, run, decision, _ in answers if run is not None and decision.variant
        ]
        skipped = [
            encode(SkippedExperiment(name, decision.reason)) for name, _, decision, _ in answers if not decision.variant
        ]
        return RESPONSE % (b",".join(assigned), b",".join(skipped))

    def _encoded(self, run: ServedRun, decision: Decision) -> tuple[Decision, bytes, bytes]:
        """The decision, its element of `assignments`, and the response body for a request of this one name."""
        encoded = self._fragments.get(id(decision))
        if encoded is not None:
            return encoded
        variant = decision.variant
        assert variant is not None
        if len(self._fragments) >= MAX_FRAGMENTS:
            self._fragments.clear()
        fragment = encode(
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
        encoded = self._fragments[id(decision)] = decision, fragment, RESPONSE % (fragment, b"")
        return encoded


class AssignmentEndpoint(Endpoint):
    """Answers assignment requests. The row of a newly enrolled unit is committed before the answer."""

    scope = "assign"
    limit = MAX_BODY_BYTES

    def __init__(
        self,
        keys: KeyRing,
        body_budget: BodyBudget,
        assigner: Assigner,
        limits: Limits,
        metrics: AssignmentMetrics,
        max_age: int,
    ) -> None:
        """`max_age`: seconds for which a client may cache an answer."""
        super().__init__(keys, body_budget)
        self._assigner, self._limits, self._metrics = assigner, limits, metrics
        self._encoded_answers = EncodedAnswers()
        self._headers = ((b"cache-control", f"max-age={max_age}".encode()),)

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """The assignments. Raises ApiError: 400, 429, or 503 if the database is unavailable."""
        started = time.perf_counter()
        try:
            assignment_request = read_request(body)
            unit_type, unit_id = assignment_request.unit_type, assignment_request.unit_id
            await limit_unit(self._limits, unit_type, unit_id)
            names = assignment_request.requested_experiments
            if len(names) > 1:
                names = list(dict.fromkeys(names))
            question = Question(
                unit_type,
                unit_id,
                names,
                TargetingInput(unit_type, assignment_request.context),
                assignment_request.enroll,
            )
            answers = await self._assigner.answers(question)
        except ApiError as error:
            self._metrics.count_request(error.body.error, OTHER)
            raise
        count_answers(self._metrics, answers, time.perf_counter() - started)
        return 200, self._encoded_answers.response(answers), self._headers


async def limit_unit(limits: Limits, unit_type: str, unit_id: str) -> None:
    """Count a request of the unit. Raises ApiError (429)."""
    limit = limits.unit
    if not limit.on:
        return
    key = limit.key(f"{unit_type}/{unit_id}")
    wait = await limits.wait_shared(limit, key) if limits.shared else limits.wait(limit, key)
    if wait:
        raise rate_limited(f"A {unit_type}", limit.amount, wait)


def count_answers(metrics: AssignmentMetrics, answers: Sequence[Answer], seconds: float) -> None:
    """Count one request's answers for Prometheus."""
    for _, run, decision, created in answers:
        label = OTHER if run is None else run.name
        metrics.count_request(decision.reason, label)
        metrics.observe_latency(label, seconds)
        if created:
            metrics.count_new(label)


def read_request(body: bytes) -> AssignmentRequest:
    """The decoded request. Raises ApiError (400) that lists every invalid field."""
    try:
        request = _request.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise validation_error(_explain(body, str(error))) from None
    if "\0" in request.unit_id:
        raise validation_error([ExplainedError("unit_id", "invalid_unit_id", "must not contain a NUL character")])
    return request


def _explain(body: bytes, decoder_message: str) -> list[FieldError]:
    """All errors of a body that the decoder rejected."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        match = _FIELD_IN_MESSAGE.search(decoder_message)
        field, code = (match[1], f"invalid_{match[1]}") if match else ("body", "invalid_json")
        return [ExplainedError(field, code, why_unreadable(body, str(error)))]
    if not isinstance(request, dict):
        return [FieldError("body", "invalid_body")]
    errors = [
        FieldError(name, f"missing_{name}" if request.get(name) is None else f"invalid_{name}")
        for name, is_valid in _REQUIRED.items()
        if request.get(name) is None or not is_valid(request[name])
    ]
    if not isinstance(request.get("context"), dict | None):
        errors.append(ExplainedError("context", "invalid_context", "must be an object"))
    if not isinstance(request.get("enroll", True), bool):
        errors.append(FieldError("enroll", "invalid_enroll"))
    unknown = [name for name in request if name not in AssignmentRequest.__struct_fields__]
    errors += [_unknown(name) for name in unknown[:MAX_EXPLAINED]]
    errors += [FieldError(name[:MAX_NAME_SHOWN], UNKNOWN) for name in unknown[MAX_EXPLAINED:]]
    return errors or [FieldError("body", "invalid_body")]


def _unknown(name: str) -> FieldError:
    shown = name[:MAX_NAME_SHOWN]
    similar = difflib.get_close_matches(shown, AssignmentRequest.__struct_fields__, n=1)
    hint = (
        f"did you mean {similar[0]}?" if similar else f"its fields are {', '.join(AssignmentRequest.__struct_fields__)}"
    )
    return ExplainedError(shown, UNKNOWN, f"is not a field of this request: {hint}")


_REQUIRED: dict[str, Callable[[Any], bool]] = {
    "unit_type": lambda value: isinstance(value, str) and value in UNIT_TYPES,
    "unit_id": lambda value: isinstance(value, str) and 1 <= len(value) <= MAX_UNIT_ID,
    "requested_experiments": lambda value: (
        isinstance(value, list) and len(value) <= MAX_REQUESTED and all(isinstance(name, str) for name in value)
    ),
}
