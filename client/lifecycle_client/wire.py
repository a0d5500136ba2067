"""Encodes requests to the service; reads its answers, its refusals and the headers that limit how long an answer is kept."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from lifecycle_client.answers import Assignment, Skipped, Source
from lifecycle_client.exceptions import AssignmentClientError, KeyRefusedError, RequestRefusedError

# The calling program has to change, even if a proxy sends one of these.
REFUSALS = frozenset({400, 401, 403})
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


class UnreadableAnswerError(Exception):
    """The body does not come from the service; another program answers at its address."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No response arrived in time; `why` is the reason."""

    why: str


@dataclass(frozen=True, slots=True)
class Known:
    """One answer as it is cached. Its config stays JSON, so that no caller can change another caller's config."""

    experiment: str
    skipped: str | None
    assignment: "_Assignment | None" = None

    def result(self, unit: tuple[str, str], source: Source) -> Assignment | Skipped:
        """The answer for a caller. `unit` is (type, id)."""
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
    """The service's refusal of a request that it will never answer."""

    status: int
    code: str
    message: str
    details: tuple[tuple[str, str], ...]
    request_id: str | None

    @property
    def about_key(self) -> bool:
        """Whether the service refuses every question with this key."""
        return self.status in {401, 403}

    def error(self) -> AssignmentClientError:
        """A new exception for each caller."""
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
    """The body of a request. `context` is JSON, or empty if there is none. Raises UnicodeEncodeError for a lone surrogate."""
    raw = msgspec.Raw(context) if context else msgspec.UNSET
    return msgspec.json.encode(_Request(unit_type, unit_id, experiments, raw, enroll))


def read_answer(body: bytes) -> dict[str, Known]:
    """Experiment → answer. Raises UnreadableAnswerError."""
    try:
        answer = _answer.decode(body)
        # Copy each config: a slice would keep the whole body in memory.
        assignments = [msgspec.structs.replace(item, config=item.config.copy()) for item in answer.assignments]
        answers = {item.experiment_name: Known(item.experiment_name, None, item) for item in assignments}
        for known in answers.values():
            known.result(("", ""), "service")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableAnswerError(str(error)) from None
    for skipped in answer.skipped_experiments:
        answers[skipped.experiment_name] = Known(skipped.experiment_name, skipped.reason)
    return answers


def read_refusal(reply: Reply) -> Refusal | None:
    """The service's refusal; None if another program answered, such as a proxy that cannot reach the service."""
    body = _object(reply.body)
    code, message, details = body.get("error"), body.get("message"), body.get("details")
    if not isinstance(code, str) and reply.status not in REFUSALS:
        return None
    entries = [entry for entry in details if isinstance(entry, dict)] if isinstance(details, list) else []
    return Refusal(
        reply.status,
        code if isinstance(code, str) else "http_error",
        message if isinstance(message, str) and message else f"The service answered with status {reply.status}.",
        tuple((str(entry.get("field", "")), str(entry.get("error", ""))) for entry in entries),
        reply.headers.get("x-request-id"),
    )


def hold_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds for which an answer may be cached: infinity if the service sets no limit, None if it must not be kept at all."""
    seconds = float("inf")
    for directive in headers.get("cache-control", "").lower().split(","):
        name, _, value = directive.strip().partition("=")
        if name == "no-store":
            return None
        if name == "no-cache":
            seconds = 0.0
        elif name == "max-age":
            seconds = min(seconds, _seconds(value.strip(' "')) or 0.0)
    # A proxy on the way may have kept the answer for a while already.
    return max(0.0, seconds - (_seconds(headers.get("age", "").strip()) or 0.0))


def retry_after(reply: Reply) -> float | None:
    """Seconds after which to try again, from the header or else from the body; None if neither gives seconds."""
    seconds = _seconds(reply.headers.get("retry-after", "").strip())
    if seconds is None:
        in_body = _object(reply.body).get("retry_after")
        if isinstance(in_body, int | float) and not isinstance(in_body, bool) and 0 <= in_body < float("inf"):
            seconds = float(min(in_body, 1e9))
    return seconds


def _seconds(text: str) -> float | None:
    return float(text) if _SECONDS.fullmatch(text) else None


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
