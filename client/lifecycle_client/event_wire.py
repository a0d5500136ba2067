"""Encodes events and batches as JSON, and reads what the service says about a batch."""

import math
import numbers
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from lifecycle_client.answers import Assignment, Assignments
from lifecycle_client.wire import Reply, Unreachable, read_refusal, retry_after

Experiments = Assignment | Assignments | Iterable[Assignment | Mapping[str, str]] | None
"""What an event counts for: assignments from the assignment client, or mappings with `experiment_id` and `variant_id` as strings."""

# The service's limit for one event.
MAX_EVENT_BYTES = 1_048_576
# The service accepts 10 MB, but many proxies allow only 1 MB.
MAX_BATCH_BYTES = 1_000_000
MAX_BATCH = 1_000
# The only code of an event that may still be stored later: its unit sent too many within a minute.
RATE_LIMITED = "rate_limited"
# These describe the service, never the batch, so sending a part of the batch would not help.
_ABOUT_THE_SERVICE = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Taken:
    """The service stored the batch, except for the events in `refused`: index → code."""

    refused: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Unacceptable:
    """The service refuses the whole batch without naming an event; parts of it may be fine. `code` applies to a batch of one event."""

    code: str


@dataclass(frozen=True, slots=True)
class Away:
    """Nothing was stored; it may be later. `may_be_an_event`: an event of the batch could be the cause."""

    why: str
    retry_after: float | None = None
    may_be_an_event: bool = False


class _Event(msgspec.Struct, omit_defaults=True):
    event_id: str
    event_type: str
    unit_type: str
    unit_id: str
    timestamp: datetime | str
    experiments: list[dict[str, str]] = []
    context: Mapping[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    payload: Mapping[str, Any] | None = None


class _Error(msgspec.Struct):
    index: int
    error: str


class _Answer(msgspec.Struct):
    accepted: int
    rejected: int
    errors: list[_Error] = []


class _Refused(msgspec.Struct):
    errors: list[_Error]


class _Named(msgspec.Struct):
    event_id: str
    event_type: Any = ""


def _plain(value: Any) -> Any:
    """Converts what msgspec cannot encode: numpy's numbers, and mappings other than dict."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded as JSON")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
_answer = msgspec.json.Decoder(_Answer)
_refused = msgspec.json.Decoder(_Refused)
_named = msgspec.json.Decoder(_Named)


def new_event_id() -> str:
    """A UUID of version 7 (RFC 9562). The ids of one process grow with time, so the service writes to one end of its index."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    value = milliseconds << 80 | 7 << 76 | (rest << 12) // 1_000_000 << 64
    # Not from `random`: a product may seed it with the same value in each of its processes.
    text = f"{value | 2 << 62 | int.from_bytes(os.urandom(8), 'big') >> 2:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def encode_event(
    event_id: str,
    event_type: str,
    unit_type: str,
    unit_id: str,
    experiments: Experiments,
    context: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    payload: Mapping[str, Any] | None,
    timestamp: datetime | str | None,
) -> bytes:
    """One event as JSON, with the current time if `timestamp` is None. Raises ValueError or any other error that its values cause."""
    if isinstance(timestamp, datetime) and timestamp.tzinfo is None:
        raise ValueError(f"the timestamp {timestamp} has no UTC offset")
    return _encode(
        _Event(
            event_id,
            event_type,
            unit_type,
            unit_id,
            datetime.now(UTC) if timestamp is None else timestamp,
            [_reference(experiment) for experiment in _listed(experiments)],
            context,
            None if metrics is None else {name: _number(name, value) for name, value in metrics.items()},
            payload,
        )
    )


def encode_batch(events: Sequence[bytes]) -> bytes:
    """The body of a request."""
    return b'{"events":[' + b",".join(events) + b"]}"


def name_of(event: bytes) -> tuple[str, str]:
    """Id and type of an encoded event."""
    decoded = _named.decode(event)
    return decoded.event_id, str(decoded.event_type)


def read_outcome(reply: Reply | Unreachable, count: int) -> Taken | Unacceptable | Away:
    """What became of a batch of `count` events."""
    if isinstance(reply, Unreachable):
        return Away(reply.why)
    if reply.status in {200, 207}:
        return _read_answer(reply.body, count)
    if reply.status == 413:
        # A proxy in front of the service may say so, too: it has its own limit.
        return Unacceptable("payload_too_large")
    refusal = read_refusal(reply) if reply.status < 500 else None
    # A 400 from another program does not count: a proxy's error page must not cost events.
    if refusal is not None and refusal.code != "http_error":
        if refusal.about_key:
            return Away(f"it refuses the key: {refusal.message}")
        if reply.status == 400:
            return _read_refused(reply.body, count) or Unacceptable(
                refusal.details[0][1] if refusal.details else refusal.code
            )
    return Away(f"status {reply.status}", retry_after(reply), reply.status not in _ABOUT_THE_SERVICE)


def _read_answer(body: bytes, count: int) -> Taken | Away:
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Away(f"an answer that cannot be read: {error}")
    refused = {refusal.index: refusal.error for refusal in answer.errors}
    if answer.accepted + answer.rejected != count or answer.rejected != len(refused) or not _inside(refused, count):
        return Away("an answer that does not count the events that were sent")
    return Taken(refused)


def _read_refused(body: bytes, count: int) -> Taken | None:
    """The outcome if a 400 says what is wrong with each event, else None."""
    try:
        refused = {refusal.index: refusal.error for refusal in _refused.decode(body).errors}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Taken(refused) if len(refused) == count and _inside(refused, count) else None


def _inside(refused: Mapping[int, str], count: int) -> bool:
    return all(0 <= index < count for index in refused)


def _listed(experiments: Experiments) -> Iterable[Assignment | Mapping[str, str]]:
    if experiments is None:
        return ()
    if isinstance(experiments, Assignment):
        return (experiments,)
    return experiments.assigned.values() if isinstance(experiments, Assignments) else experiments


def _reference(experiment: Assignment | Mapping[str, str]) -> dict[str, str]:
    if isinstance(experiment, Assignment):
        return {"experiment_id": experiment.experiment_id, "variant_id": experiment.variant_id}
    return dict(experiment)


def _number(name: str, value: Any) -> Any:
    """A metric as a number. Raises ValueError if it is not finite, since JSON would turn it into null."""
    number = float(value) if isinstance(value, Decimal) else value
    if not math.isfinite(number):
        raise ValueError(f"the metric {name!r} must be a finite number, not {value}")
    return number
