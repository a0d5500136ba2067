"""Bytes to and from the service: requests, answers, refusals, and the headers that say how long."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from lifecycle_client.errors import AssignmentClientError, KeyRefusedError, RequestRefusedError
from lifecycle_client.records import Assignment, Skipped, Source

# Whoever says so, the program has to be changed.
REFUSALS = frozenset({400, 401, 403})
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


class UnreadableAnswerError(Exception):
    """The body is not what the service answers; something else stands at its address."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. Names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Nothing came back in time, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Known:
    """One answer as it is kept: its config as JSON, so that no caller can change another's."""

    experiment: str
    skipped: str | None
    assignment: "_Assignment | None" = None

    def result(self, unit: tuple[str, str], source: Source) -> Assignment | Skipped:
        """For a caller; `unit` is the type and id of whom it is about."""
        served = self.assignment
        if served is None:
            return Skipped(self.experiment, self.skipped or "", source)
        return Assignment(
            experiment=self.experiment,
            variant_name=served.variant_name,
            config=_config.decode(served.config),
            enrolled=served.enrolled,
            reason=served.reason,
            experiment_id=served.experiment_id,
            run=served.run,
            variant_id=served.variant_id,
            source=source,
            unit_type=unit[0],
            unit_id=unit[1],
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """The service's own words on a request that it will never answer."""

    status: int
    code: str
    message: str
    details: tuple[tuple[str, str], ...]
    request_id: str | None

    @property
    def about_key(self) -> bool:
        """Whether any question with this key is refused."""
        return self.status in {401, 403}

    def error(self) -> AssignmentClientError:
        """As an exception, a new one for each caller."""
        if self.about_key:
            return KeyRefusedError(self.message, status=self.status, code=self.code, request_id=self.request_id)
        return RequestRefusedError(
            self.message, status=self.status, code=self.code, request_id=self.request_id, details=self.details
        )


class _Request(msgspec.Struct, omit_defaults=True):
    unit_type: str
    unit_id: str
    requested_experiments: list[str]
    context: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    enroll: bool = True


class _Assignment(msgspec.Struct, frozen=True):
    experiment_name: str
    variant_name: str
    config: msgspec.Raw
    enrolled: bool
    reason: str
    experiment_id: str
    run: int
    variant_id: str


class _Skipped(msgspec.Struct):
    experiment_name: str
    reason: str


class _Answer(msgspec.Struct):
    assignments: list[_Assignment]
    skipped_experiments: list[_Skipped]


_answer = msgspec.json.Decoder(_Answer)
_config = msgspec.json.Decoder(dict[str, Any])


def encode_request(unit_type: str, unit_id: str, experiments: list[str], context: bytes, enroll: bool) -> bytes:
    """The body of a request; `context` as JSON, empty for none. Raises UnicodeEncodeError for a lone surrogate."""
    raw = msgspec.Raw(context) if context else msgspec.UNSET
    return msgspec.json.encode(_Request(unit_type, unit_id, experiments, raw, enroll))


def read_answer(body: bytes) -> dict[str, Known]:
    """Experiment → answer. Raises UnreadableAnswerError."""
    try:
        answer = _answer.decode(body)
        # A copy of each config: a slice would keep the whole body in memory.
        served = [msgspec.structs.replace(one, config=one.config.copy()) for one in answer.assignments]
        found = {one.experiment_name: Known(one.experiment_name, None, one) for one in served}
        for known in found.values():
            known.result(("", ""), "service")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableAnswerError(str(error)) from None
    for one in answer.skipped_experiments:
        found[one.experiment_name] = Known(one.experiment_name, one.reason)
    return found


def read_refusal(reply: Reply) -> Refusal | None:
    """What a refused request was told; None where another program answered, such as a proxy that knows no way to the service."""
    body = _object(reply.body)
    code, message, details = body.get("error"), body.get("message"), body.get("details")
    if not isinstance(code, str) and reply.status not in REFUSALS:
        return None
    pairs = [one for one in details if isinstance(one, dict)] if isinstance(details, list) else []
    return Refusal(
        reply.status,
        code if isinstance(code, str) else "http_error",
        message if isinstance(message, str) and message else f"The service answered with status {reply.status}.",
        tuple((str(one.get("field", "")), str(one.get("error", ""))) for one in pairs),
        reply.headers.get("x-request-id"),
    )


def hold_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the service lets an answer be held: infinity where it does not say, None where it must not be kept at all."""
    held = float("inf")
    for directive in headers.get("cache-control", "").lower().split(","):
        name, _, value = directive.strip().partition("=")
        if name == "no-store":
            return None
        if name == "no-cache":
            held = 0.0
        elif name == "max-age":
            held = min(held, _seconds(value.strip(' "')) or 0.0)
    # What a proxy between us and the service held already.
    return max(0.0, held - (_seconds(headers.get("age", "").strip()) or 0.0))


def retry_after(reply: Reply) -> float | None:
    """Seconds after which to come back, by the header or else by the body; None where neither says so in seconds."""
    told = _seconds(reply.headers.get("retry-after", "").strip())
    if told is None:
        in_body = _object(reply.body).get("retry_after")
        if isinstance(in_body, int | float) and not isinstance(in_body, bool) and 0 <= in_body < float("inf"):
            told = float(min(in_body, 1e9))
    return told


def _seconds(text: str) -> float | None:
    return float(text) if _SECONDS.fullmatch(text) else None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
