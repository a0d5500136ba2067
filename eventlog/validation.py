"""What a valid event is: fields, limits and error codes, and the flags of accepted events."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from eventlog.credentials import is_harmless, without_credentials
from eventlog.event_ids import new_event_id

EVENT_TYPES = frozenset(
    {
        "plan_generated",
        "plan_accepted",
        "plan_rejected",
        "meal_swapped",
        "edit_applied",
        "validator_intervention",
        "exposure",
    }
)
UNIT_TYPES = frozenset({"user", "household", "session"})
MAX_EVENT_BYTES = 1_048_576
MAX_UNIT_ID = 255
MAX_EVENT_TYPE = 100
MAX_DEPTH = 64
PLAIN_DEPTH = 16
"""Data that is nested deeper than this goes through the slower check for MAX_DEPTH."""
_SURELY_FINITE = 2**63
FUTURE_TOLERANCE = timedelta(minutes=5)
LATE_AFTER = timedelta(days=7)

# PostgreSQL can't store NUL. The pattern only documents it: validating with it would slow down every request.
NO_NUL = r"[^\u0000]"
UnitId = Annotated[
    str, msgspec.Meta(min_length=1, max_length=MAX_UNIT_ID, extra_json_schema={"pattern": f"^{NO_NUL}+$"})
]

# What an event of this type usually has, in its payload or its context; it is flagged if that is missing.
USUAL_CONTEXT: Mapping[str, tuple[str, ...]] = {
    "plan_generated": ("plan_id", "meals"),
    "plan_accepted": ("plan_id",),
    "plan_rejected": ("plan_id", "rejection_reason"),
    "meal_swapped": ("plan_id", "from_meal_id", "to_meal_id"),
    "edit_applied": ("plan_id",),
    "validator_intervention": ("plan_id",),
}

_USUAL_FLAGS = {event_type: [(key, f"no_{key}") for key in keys] for event_type, keys in USUAL_CONTEXT.items()}

_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)

# The field of a wrong value in msgspec's error message.
_PLACE = re.compile(r"at `\$\.(\w+)")


class ExperimentRef(msgspec.Struct, frozen=True, gc=False):
    """A run and a variant that an event belongs to."""

    experiment_id: UUID
    variant_id: UUID


class IncomingEvent(msgspec.Struct, gc=False):
    """An event as clients send it; other fields are ignored."""

    event_type: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            max_length=MAX_EVENT_TYPE,
            description="A known type, or `custom.` and a name.",
            extra_json_schema={"pattern": rf"^({'|'.join(sorted(EVENT_TYPES))}|custom\.{NO_NUL}+)$"},
        ),
    ]
    unit_type: Literal["user", "household", "session"]
    unit_id: UnitId
    timestamp: Annotated[
        str, msgspec.Meta(description="ISO 8601 with an offset.", extra_json_schema={"format": "date-time"})
    ]
    event_id: UUID | None = None
    experiments: list[ExperimentRef] | None = None
    context: dict[str, Any] | None = None
    metrics: dict[str, int | float] | None = None
    payload: dict[str, Any] | None = None


class Event(msgspec.Struct, gc=False):
    """An accepted event as it is stored: timestamp in UTC, credentials removed, flagged."""

    # gc=False: data from JSON has no reference cycles for the garbage collector to find.

    event_id: UUID
    event_type: str
    unit_type: str
    unit_id: str
    experiments: list[ExperimentRef]
    context: dict[str, Any]
    metrics: dict[str, Any]
    payload: dict[str, Any] | None
    timestamp: datetime
    flags: list[str] = []
    received_at: datetime | None = None
    """When the API accepted it; None for history, which never counts as late."""


class FieldError(msgspec.Struct, frozen=True):
    """A field and what is wrong with it; `error` is one of the documented codes."""

    field: str
    error: str


class ExplainedError(FieldError, frozen=True):
    """An error that needs more than its code: `words` follow the field's name in a sentence, and are not part of the details."""

    words: str


class InvalidEventError(ValueError):
    """The event is invalid; `errors` says why. The first is the one to report where only one can be."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__(", ".join(f"{error.field}: {error.error}" for error in errors))
        self.errors = errors


class _Unread(IncomingEvent, gc=False):
    """An event whose experiments are not decoded yet."""

    experiments: msgspec.Raw = msgspec.Raw(b"null")  # type: ignore[assignment]  # raw until decoded


_incoming = msgspec.json.Decoder(_Unread)
_read_refs = msgspec.json.Decoder(list[ExperimentRef] | None)
# A cache, because most events name the same few runs and variants in the same bytes: at most this many entries, none longer than this.
_known_refs: dict[bytes, list[ExperimentRef]] = {}
_REMEMBERED_REFS, _REMEMBERED_BYTES = 4096, 512


def read_event(raw: bytes | memoryview, now: datetime, *, no_nul: bool = False) -> Event:
    """The event in `raw` (JSON), without flags. Raises InvalidEventError with all errors.

    `no_nul`: the caller has checked that `raw` has no escaped NUL character, for a whole batch at once.
    """
    if len(raw) > MAX_EVENT_BYTES:
        raise InvalidEventError([FieldError("event", "payload_too_large")])
    try:
        incoming = _incoming.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEventError(_explain(raw, str(error))) from None
    try:
        experiments = _experiments(bytes(incoming.experiments))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEventError(_explain(raw, f"{error} - at `$.experiments`")) from None
    context, payload = incoming.context or {}, incoming.payload
    plain = is_harmless(context, PLAIN_DEPTH) and (payload is None or is_harmless(payload, PLAIN_DEPTH))
    # Only an event that may hold NUL or is deeply nested needs a walk through all its data.
    careful = not plain or not (no_nul or b"\\u0000" not in bytes(raw))
    errors = _check_beyond_types(incoming, careful)
    timestamp = _utc(incoming.timestamp)
    if timestamp is None:
        errors.append(FieldError("timestamp", "invalid_timestamp"))
    elif timestamp > now + FUTURE_TOLERANCE:
        errors.append(FieldError("timestamp", "timestamp_in_future"))
    if errors or timestamp is None:
        raise InvalidEventError(errors)
    if not plain:
        context, payload = without_credentials(context), without_credentials(payload)
    # Positional arguments, because keyword arguments take twice as long.
    return Event(
        incoming.event_id or new_event_id(),
        incoming.event_type,
        incoming.unit_type,
        incoming.unit_id,
        experiments,
        context,
        incoming.metrics or {},
        payload,
        timestamp,
        [],
        now,
    )


def set_flags(events: Iterable[Event], variants: Mapping[UUID, UUID], runs: Collection[UUID]) -> None:
    """Set the flags of accepted events. History is never flagged as late.

    `variants`: the run of each known variant; `runs`: the known runs.
    """
    # Events share their lists of references (see `_experiments`), so each list is checked once.
    flags_by_refs: dict[int, list[str]] = {}
    for event in events:
        refs = event.experiments
        flags = flags_by_refs.get(id(refs))
        if flags is None:
            flags = flags_by_refs[id(refs)] = _flags_of_refs(refs, variants, runs)
        event.flags = _flags_of_data(event) + flags


def _flags_of_data(event: Event) -> list[str]:
    flags = []
    context, payload = event.context, event.payload or {}
    if not event.experiments:
        flags.append("no_experiment_context")
    if not context.get("policy_version_id"):
        flags.append("no_policy_version_id")
    if event.received_at is not None and event.timestamp < event.received_at - LATE_AFTER:
        flags.append("late")
    for key, flag in _USUAL_FLAGS.get(event.event_type, ()):
        if payload.get(key) is None and context.get(key) is None:
            flags.append(flag)
    return flags


def _flags_of_refs(refs: list[ExperimentRef], variants: Mapping[UUID, UUID], runs: Collection[UUID]) -> list[str]:
    unknown = ["unknown_experiment"] if any(ref.experiment_id not in runs for ref in refs) else []
    if any(variants.get(ref.variant_id) != ref.experiment_id for ref in refs):
        unknown.append("unknown_variant")
    return unknown


def is_unstorable(value: Any) -> bool:
    """Whether JSON-like data contains a NUL character, which PostgreSQL can't store, or is nested deeper than `MAX_DEPTH`."""
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for item in layer:
            if isinstance(item, str):
                if "\0" in item:
                    return True
            elif isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
        if not deeper:
            return False
        layer = deeper
    return True


def is_finite(value: Any) -> bool:
    """Whether a value is a number that fits a double; an integer of 400 digits would overflow later readers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _experiments(raw: bytes) -> list[ExperimentRef]:
    """Decode the references; events with the same bytes share one list. Raises msgspec.DecodeError."""
    refs = _known_refs.get(raw)
    if refs is None:
        refs = _read_refs.decode(raw) or []
        if len(raw) <= _REMEMBERED_BYTES:
            if len(_known_refs) >= _REMEMBERED_REFS:
                _known_refs.clear()
            _known_refs[raw] = refs
    return refs


def _check_beyond_types(incoming: IncomingEvent, careful: bool) -> list[FieldError]:
    """Check the rules that types can't express; `careful` if the event may hold data that can't be stored."""
    errors = []
    if incoming.event_type not in EVENT_TYPES and not _is_event_type(incoming.event_type):
        errors.append(FieldError("event_type", "invalid_event_type"))
    if incoming.metrics:
        for name, number in incoming.metrics.items():
            # A float from JSON is always finite, but an integer may have any number of digits.
            if number.__class__ is int and not -_SURELY_FINITE < number < _SURELY_FINITE and not is_finite(number):
                errors.append(FieldError(f"metrics.{name}"[:MAX_UNIT_ID], "invalid_metric"))
    if careful:
        values = {
            "event_type": incoming.event_type, "unit_id": incoming.unit_id, "context": incoming.context,
            "metrics": incoming.metrics, "payload": incoming.payload,
        }  # fmt: skip
        errors += [FieldError(name, _code(name)) for name, value in values.items() if is_unstorable(value)]
    return errors


def _explain(raw: bytes | memoryview, message: str) -> list[FieldError]:
    """All errors of an event with values of wrong types; `message` is the decoder's own."""
    try:
        event = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # A number too large for a double can't be decoded even without types, but its field is known.
        place = _PLACE.search(message)
        field, code = (place[1], _code(place[1])) if place else ("event", "invalid_json")
        return [ExplainedError(field, code, why_unreadable(raw, str(error)))]
    if not isinstance(event, dict):
        return [FieldError("event", "invalid_event")]
    errors = [
        FieldError(name, f"missing_{name}" if event.get(name) is None else _code(name))
        for name, is_valid in _REQUIRED.items()
        if event.get(name) is None or not is_valid(event[name])
    ]
    for name, is_valid in _OPTIONAL.items():
        if event.get(name) is not None and not is_valid(event[name]):
            errors.append(FieldError(name, _code(name)))
    errors += _explain_experiments(event.get("experiments"))
    return errors or [FieldError("event", "invalid_event")]


def why_unreadable(raw: bytes | memoryview, message: str) -> str:
    """Why JSON can't be read, as the rest of a sentence that begins with its name; `message` is the decoder's own."""
    body = bytes(raw)
    if not body.strip():
        return "is empty: send a JSON object"
    if "recursion" in message:
        return "is nested too deeply"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"can't be read: it is not UTF-8 (byte {error.start})"
    if "truncated" in message:
        return f"can't be read: the JSON ends too early (byte {len(body)})"
    return f"can't be read: {message.partition(' - at ')[0]}"


def _explain_experiments(refs: Any) -> list[FieldError]:
    if not isinstance(refs, list):
        return []
    return [
        FieldError(f"experiments[{index}].{name}", f"invalid_{name}")
        for index, ref in enumerate(refs)
        for name in ("experiment_id", "variant_id")
        if not isinstance(ref, dict) or not _is_uuid(ref.get(name))
    ]


def _code(field: str) -> str:
    return {"metrics": "invalid_metric", "experiments": "invalid_experiment_id"}.get(field, f"invalid_{field}")


def _is_event_type(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return value in EVENT_TYPES or (value.startswith("custom.") and 7 < len(value) <= MAX_EVENT_TYPE)


def _is_uuid(value: Any) -> bool:
    try:
        msgspec.convert(value, UUID)
    except msgspec.ValidationError:
        return False
    return True


def _utc(text: str) -> datetime | None:
    """The moment that an ISO 8601 text with an offset names; None if it is anything else."""
    if len(text) < 11 or (text[10] not in "Tt " and text[8] not in "Tt"):
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not UTC:
            if moment.tzinfo is None:
                return None
            moment = moment.astimezone(UTC)
        # The first moment is the zero of time in many languages; drivers store it as -infinity, which is not a time.
        return moment if moment > _FIRST_MOMENT else None
    except (ValueError, OverflowError):
        return None


_REQUIRED: dict[str, Callable[[Any], bool]] = {
    "event_type": _is_event_type,
    "unit_type": lambda value: isinstance(value, str) and value in UNIT_TYPES,
    "unit_id": lambda value: isinstance(value, str) and 1 <= len(value) <= MAX_UNIT_ID,
    "timestamp": lambda value: isinstance(value, str) and _utc(value) is not None,
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "event_id": _is_uuid,
    "experiments": lambda value: isinstance(value, list),
    "context": lambda value: isinstance(value, dict),
    "metrics": lambda value: isinstance(value, dict) and all(is_finite(number) for number in value.values()),
    "payload": lambda value: isinstance(value, dict),
}
