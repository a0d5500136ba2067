"""The OpenFeature Remote Evaluation Protocol 0.3.0. An experiment is a flag, its name the key, and `targetingKey` the unit's id.

A flag's value is the `value` of its variant's config, else the whole config. If the experiment has no variant for the unit, the flag has
no value, and the OpenFeature provider uses the default from the code.
"""

import hashlib
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.types import Scope

from eventlog.validation import MAX_UNIT_ID, UNIT_TYPES
from experimentation.assignments.rules import (
    ASSIGNED,
    NOT_ENROLLED,
    NOT_FOUND,
    OVERRIDE,
    REMAINDER,
    SHIPPED,
    TARGETING_ERROR,
)
from experimentation.assignments.targeting import TargetingInput
from serving.assignments.assigner import Answer, Assigner, Question
from serving.assignments.experiments_cache import ExperimentsCache
from serving.assignments.routes import MAX_BODY_BYTES, count_answers, limit_unit
from serving.http.auth import KeyRing
from serving.http.body_budget import BodyBudget
from serving.http.database import Database
from serving.http.endpoint import Endpoint, Headers, encode
from serving.http.errors import ApiError
from serving.http.limits import Limits
from serving.http.metrics import OTHER, AssignmentMetrics

ENROLL_HEADER = b"x-enroll"
UNIT_TYPE = "unitType"
REASONS = {ASSIGNED: "SPLIT", NOT_ENROLLED: "SPLIT", REMAINDER: "SPLIT", SHIPPED: "STATIC", OVERRIDE: "TARGETING_MATCH"}
DISABLED = "DISABLED"
REFUSED = {400: "validation_error", 404: NOT_FOUND}


class FlagMetadata(msgspec.Struct, omit_defaults=True):
    """Our data about the answer, to put into events. `reason` is the same as in `POST /api/v1/assignments`."""

    reason: str
    enrolled: bool
    experiment_id: str | None = None
    run: int | None = None
    variant_id: str | None = None


class Evaluation(msgspec.Struct):
    """An evaluated flag. Without `value`, the provider uses the default from the code."""

    key: str
    reason: str
    variant: str
    metadata: FlagMetadata
    value: Any | msgspec.UnsetType = msgspec.UNSET


class EvaluationFailure(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Why a flag can't be evaluated or, without `key`, the whole request."""

    error_code: str
    error_details: str
    key: str | None = None


class BulkEvaluation(msgspec.Struct):
    """All flags for the unit, each an `Evaluation` or an `EvaluationFailure`."""

    flags: list[Any]


class _InvalidError(Exception):
    """A request error for which OFREP has an error code."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code


class _OfrepEndpoint(Endpoint):
    scope = "assign"
    limit = MAX_BODY_BYTES

    def __init__(
        self,
        keys: KeyRing,
        body_budget: BodyBudget,
        database: Database,
        experiments_cache: ExperimentsCache,
        assigner: Assigner,
        limits: Limits,
        metrics: AssignmentMetrics,
    ) -> None:
        """Takes the same parts as the endpoint of `POST /api/v1/assignments`."""
        super().__init__(keys, body_budget)
        self._database, self._experiments, self._assigner = database, experiments_cache, assigner
        self._limits, self._metrics = limits, metrics

    def credentials(self, headers: dict[bytes, bytes]) -> bytes:
        """The bearer key, or else the key in OFREP's header `X-API-Key`."""
        authorization = headers.get(b"authorization")
        return b"Bearer " + headers.get(b"x-api-key", b"") if authorization is None else authorization

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """The evaluation. Counts requests that fail. Raises ApiError: 429, 503."""
        try:
            status, content, headers = await self.evaluate(body, request)
        except ApiError as error:
            self._metrics.count_request(error.body.error, OTHER)
            raise
        if status in REFUSED:
            self._metrics.count_request(REFUSED[status], OTHER)
        return status, content, headers

    @abstractmethod
    async def evaluate(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """The answer, including OFREP's own errors. Raises ApiError."""

    async def _answers(self, question: Question) -> list[Answer]:
        started = time.perf_counter()
        answers = await self._assigner.answers(question)
        count_answers(self._metrics, answers, time.perf_counter() - started)
        return answers


class FlagEndpoint(_OfrepEndpoint):
    """`POST /ofrep/v1/evaluate/flags/{key}`. Enrols the unit unless the header is `X-Enroll: false`."""

    async def evaluate(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """One flag, or OFREP's error. Raises ApiError: 429, 503."""
        key = request["path_params"]["key"]
        try:
            enroll = wants_enrolment(request, default=True)
            unit_id, unit_type, context = read_context(body)
            run = (await self._database.retrying(self._experiments.current)).runs.get(key)
            if run is None:
                return 404, encode(EvaluationFailure("FLAG_NOT_FOUND", f"There is no experiment {key[:255]}.", key)), ()
            if unit_type not in (None, run.unit_type):
                raise _InvalidError("INVALID_CONTEXT", f"{key} is for units of type {run.unit_type}, not {unit_type}.")
            await limit_unit(self._limits, run.unit_type, unit_id)
            question = Question(run.unit_type, unit_id, [key], TargetingInput(run.unit_type, context), enroll)
            (answer,) = await self._answers(question)
            if answer.decision.reason == TARGETING_ERROR:
                raise _InvalidError(
                    "INVALID_CONTEXT", f"The targeting rule of {key} can't be evaluated on this context."
                )
        except _InvalidError as error:
            return 400, encode(EvaluationFailure(error.code, str(error), key)), ()
        if answer.decision.reason == NOT_FOUND:
            return 404, encode(EvaluationFailure("FLAG_NOT_FOUND", f"There is no experiment {key[:255]}.", key)), ()
        return 200, encode(evaluation(answer)), ()


class FlagsEndpoint(_OfrepEndpoint):
    """`POST /ofrep/v1/evaluate/flags`. Enrols the unit only if the header is `X-Enroll: true`."""

    async def evaluate(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """All flags, or OFREP's error. Raises ApiError: 429, 503."""
        try:
            enroll = wants_enrolment(request, default=False)
            unit_id, unit_type, context = read_context(body)
            if enroll and unit_type is None:
                raise _InvalidError(
                    "INVALID_CONTEXT", f"To enrol in every experiment, set `{UNIT_TYPE}` to the type of the unit."
                )
        except _InvalidError as error:
            return 400, encode(EvaluationFailure(error.code, str(error))), ()
        await limit_unit(self._limits, unit_type or "unit", unit_id)
        experiments = await self._database.retrying(self._experiments.current)
        answers: list[Answer] = []
        for kind in UNIT_TYPES if unit_type is None else (unit_type,):
            names = [name for name, run in experiments.runs.items() if run.unit_type == kind and run.status != "draft"]
            if names:
                answers += await self._answers(Question(kind, unit_id, names, TargetingInput(kind, context), enroll))
        content = encode(BulkEvaluation([_flag(answer) for answer in sorted(answers, key=lambda answer: answer.name)]))
        etag = b'"%b"' % hashlib.sha256(content).hexdigest()[:32].encode()
        headers: Headers = ((b"etag", etag), (b"cache-control", b"no-cache"))
        return (304, b"", headers) if _matches(request, etag) else (200, content, headers)


def evaluation(answer: Answer) -> Evaluation:
    """The answer as an OFREP flag."""
    _, run, decision, _ = answer
    variant = decision.variant
    metadata = FlagMetadata(decision.reason, decision.enrolled)
    if run is not None:
        metadata.experiment_id, metadata.run = str(run.id), run.run
    if variant is None:
        return Evaluation(answer.name, DISABLED, "", metadata)
    metadata.variant_id = str(variant.id)
    value = variant.config.get("value", variant.config)
    return Evaluation(answer.name, REASONS.get(decision.reason, DISABLED), variant.name, metadata, value)


def _flag(answer: Answer) -> Evaluation | EvaluationFailure:
    if answer.decision.reason == TARGETING_ERROR:
        details = f"The targeting rule of {answer.name} can't be evaluated on this context."
        return EvaluationFailure("INVALID_CONTEXT", details, answer.name)
    return evaluation(answer)


def read_context(body: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """Unit id, unit type (None without `unitType`) and the whole context. Raises _InvalidError."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _InvalidError("PARSE_ERROR", "The body is not JSON.") from None
    context = decoded.get("context") if isinstance(decoded, dict) else None
    if context is None:
        raise _InvalidError("TARGETING_KEY_MISSING", "The body needs a `context` with a `targetingKey`.")
    if not isinstance(context, dict):
        raise _InvalidError("INVALID_CONTEXT", "The `context` must be an object.")
    unit_id = context.get("targetingKey")
    if unit_id in (None, ""):
        raise _InvalidError("TARGETING_KEY_MISSING", "The `context` needs a `targetingKey`, the unit's id.")
    if not isinstance(unit_id, str) or len(unit_id) > MAX_UNIT_ID or "\0" in unit_id:
        raise _InvalidError("INVALID_CONTEXT", f"The `targetingKey` must be text of 1 to {MAX_UNIT_ID} characters.")
    unit_type = context.get(UNIT_TYPE)
    if unit_type is not None and (not isinstance(unit_type, str) or unit_type not in UNIT_TYPES):
        raise _InvalidError("INVALID_CONTEXT", f"The `{UNIT_TYPE}` must be one of {', '.join(UNIT_TYPES)}.")
    return unit_id, unit_type, context


def wants_enrolment(request: Scope, *, default: bool) -> bool:
    """The value of the header `X-Enroll`, or `default` without it. Raises _InvalidError if it is neither true nor false."""
    value = dict(request["headers"]).get(ENROLL_HEADER)
    if value is None:
        return default
    enroll = {b"true": True, b"false": False}.get(value.strip().lower())
    if enroll is None:
        raise _InvalidError("INVALID_CONTEXT", "The header X-Enroll must be true or false.")
    return enroll


def _matches(request: Scope, etag: bytes) -> bool:
    candidates: Sequence[bytes] = dict(request["headers"]).get(b"if-none-match", b"").split(b",")
    return any(candidate.strip().removeprefix(b"W/") in (etag, etag.strip(b'"'), b"*") for candidate in candidates)
