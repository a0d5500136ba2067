"""The OpenFeature Remote Evaluation Protocol 0.3.0: an experiment is a flag, its name the key, `targetingKey` the unit's id.

A flag's value is the `value` of its variant's config, else the whole config. Where an experiment has no answer for the unit, the flag has
no value, which tells the provider to take the default of the code.
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
from experimentation.assignments.targeting import Asker
from serving.assignments.catalogue import CatalogueCache
from serving.assignments.deciding import Answer, Assigner, Question
from serving.assignments.routes import MAX_BODY_BYTES, count_answers, limit_unit
from serving.http.auth import KeyRing
from serving.http.database import Database
from serving.http.endpoint import Endpoint, Headers, encode
from serving.http.errors import ApiError
from serving.http.limits import Limits
from serving.http.measures import OTHER, AssignmentMeasures
from serving.http.room import Room

ENROLL_HEADER = b"x-enroll"
UNIT_TYPE = "unitType"
REASONS = {ASSIGNED: "SPLIT", NOT_ENROLLED: "SPLIT", REMAINDER: "SPLIT", SHIPPED: "STATIC", OVERRIDE: "TARGETING_MATCH"}
DISABLED = "DISABLED"
REFUSED = {400: "validation_error", 404: NOT_FOUND}


class FlagMetadata(msgspec.Struct, omit_defaults=True):
    """What the platform says of the answer, for events: `reason` is the one of `POST /api/v1/assignments`."""

    reason: str
    enrolled: bool
    experiment_id: str | None = None
    run: int | None = None
    variant_id: str | None = None


class Evaluation(msgspec.Struct):
    """A flag as evaluated. Without `value` the provider takes the default of the code."""

    key: str
    reason: str
    variant: str
    metadata: FlagMetadata
    value: Any | msgspec.UnsetType = msgspec.UNSET


class EvaluationFailure(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Why a flag, or (without `key`) a whole request, can't be evaluated."""

    error_code: str
    error_details: str
    key: str | None = None


class BulkEvaluation(msgspec.Struct):
    """Every flag that there is for the unit: an `Evaluation` or an `EvaluationFailure` each."""

    flags: list[Any]


class _InvalidError(Exception):
    """A body that OFREP has an error code for."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code


class _OfrepEndpoint(Endpoint):
    scope = "assign"
    limit = MAX_BODY_BYTES

    def __init__(
        self,
        keys: KeyRing,
        room: Room,
        database: Database,
        catalogue: CatalogueCache,
        assigner: Assigner,
        limits: Limits,
        measures: AssignmentMeasures,
    ) -> None:
        """What `POST /api/v1/assignments` is answered with, too."""
        super().__init__(keys, room)
        self._database, self._catalogue, self._assigner = database, catalogue, assigner
        self._limits, self._measures = limits, measures

    def credentials(self, headers: dict[bytes, bytes]) -> bytes:
        """OFREP's `X-API-Key` is taken as well as the bearer key."""
        given = headers.get(b"authorization")
        return b"Bearer " + headers.get(b"x-api-key", b"") if given is None else given

    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Raises ApiError: 429, 503."""
        try:
            status, content, headers = await self.evaluate(body, request)
        except ApiError as error:
            self._measures.count_request(error.body.error, OTHER)
            raise
        if status in REFUSED:
            self._measures.count_request(REFUSED[status], OTHER)
        return status, content, headers

    @abstractmethod
    async def evaluate(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """The answer, refusals of OFREP's own included. Raises ApiError."""

    async def _answers(self, question: Question) -> list[Answer]:
        started = time.perf_counter()
        answers = await self._assigner.answers(question)
        count_answers(self._measures, answers, time.perf_counter() - started)
        return answers


class FlagEndpoint(_OfrepEndpoint):
    """`POST /ofrep/v1/evaluate/flags/{key}`. It enrols the unit, unless the header `X-Enroll: false` asks not to."""

    async def evaluate(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Raises ApiError: 429, 503."""
        key = request["path_params"]["key"]
        try:
            enroll = enrolling(request, by_default=True)
            unit_id, unit_type, context = read_context(body)
            run = (await self._database.retrying(self._catalogue.current)).runs.get(key)
            if run is None:
                return 404, encode(EvaluationFailure("FLAG_NOT_FOUND", f"There is no experiment {key[:255]}.", key)), ()
            if unit_type not in (None, run.unit_type):
                raise _InvalidError("INVALID_CONTEXT", f"{key} is for a {run.unit_type}, not for a {unit_type}.")
            await limit_unit(self._limits, run.unit_type, unit_id)
            question = Question(run.unit_type, unit_id, [key], Asker(run.unit_type, context), enroll)
            (answer,) = await self._answers(question)
            if answer.decision.reason == TARGETING_ERROR:
                raise _InvalidError("INVALID_CONTEXT", f"The targeting of {key} can't judge this context.")
        except _InvalidError as error:
            return 400, encode(EvaluationFailure(error.code, str(error), key)), ()
        if answer.decision.reason == NOT_FOUND:
            return 404, encode(EvaluationFailure("FLAG_NOT_FOUND", f"There is no experiment {key[:255]}.", key)), ()
        return 200, encode(evaluation(answer)), ()


class FlagsEndpoint(_OfrepEndpoint):
    """`POST /ofrep/v1/evaluate/flags`. It enrols nobody, unless the header `X-Enroll: true` asks for it."""

    async def evaluate(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Raises ApiError: 429, 503."""
        try:
            enroll = enrolling(request, by_default=False)
            unit_id, unit_type, context = read_context(body)
            if enroll and unit_type is None:
                raise _InvalidError(
                    "INVALID_CONTEXT", f"To enrol in every experiment, say in `{UNIT_TYPE}` what the unit is."
                )
        except _InvalidError as error:
            return 400, encode(EvaluationFailure(error.code, str(error))), ()
        await limit_unit(self._limits, unit_type or "unit", unit_id)
        catalogue = await self._database.retrying(self._catalogue.current)
        answers: list[Answer] = []
        for each in UNIT_TYPES if unit_type is None else (unit_type,):
            names = [name for name, run in catalogue.runs.items() if run.unit_type == each and run.status != "draft"]
            if names:
                answers += await self._answers(Question(each, unit_id, names, Asker(each, context), enroll))
        content = encode(BulkEvaluation([_flag(answer) for answer in sorted(answers, key=lambda answer: answer.name)]))
        etag = b'"%b"' % hashlib.sha256(content).hexdigest()[:32].encode()
        headers: Headers = ((b"etag", etag), (b"cache-control", b"no-cache"))
        return (304, b"", headers) if _matches(request, etag) else (200, content, headers)


def evaluation(answer: Answer) -> Evaluation:
    """A flag as OFREP shows it."""
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
        details = f"The targeting of {answer.name} can't judge this context."
        return EvaluationFailure("INVALID_CONTEXT", details, answer.name)
    return evaluation(answer)


def read_context(body: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """Unit id, unit type (where `unitType` says it) and the whole context. Raises _InvalidError."""
    try:
        sent = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _InvalidError("PARSE_ERROR", "The body is not JSON.") from None
    context = sent.get("context") if isinstance(sent, dict) else None
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


def enrolling(request: Scope, *, by_default: bool) -> bool:
    """What the header `X-Enroll` says: true or false. Raises _InvalidError for anything else."""
    said = dict(request["headers"]).get(ENROLL_HEADER)
    if said is None:
        return by_default
    enroll = {b"true": True, b"false": False}.get(said.strip().lower())
    if enroll is None:
        raise _InvalidError("INVALID_CONTEXT", "The header X-Enroll must be true or false.")
    return enroll


def _matches(request: Scope, etag: bytes) -> bool:
    asked: Sequence[bytes] = dict(request["headers"]).get(b"if-none-match", b"").split(b",")
    return any(each.strip().removeprefix(b"W/") in (etag, etag.strip(b'"'), b"*") for each in asked)
