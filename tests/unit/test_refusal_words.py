"""The message of a 400 is a sentence for people. Its details have stable codes."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from eventlog.validation import FieldError, InvalidEventError, read_event
from serving.assignments.routes import MAX_REQUESTED, read_request
from serving.http.errors import MAX_DETAILS, ApiError, ErrorBody, validation_error

GOOD: dict[str, Any] = {"unit_type": "user", "unit_id": "u", "requested_experiments": ["x"]}
EVENT: dict[str, Any] = {
    "event_type": "exposure",
    "unit_type": "user",
    "unit_id": "u",
    "timestamp": "2026-01-05T18:00:00Z",
}
THREE = (
    "unit_type must be user, household or session; unit_id must be text of 1 to 255 characters; "
    f"requested_experiments must be a list of at most {MAX_REQUESTED} names"
)


def refused(body: bytes) -> ErrorBody:
    """The error body for an assignment request with this body."""
    with pytest.raises(ApiError) as caught:
        read_request(body)
    assert caught.value.status == 400
    return caught.value.body


def refused_event(body: bytes) -> ErrorBody:
    """The error body for an event with this body."""
    with pytest.raises(InvalidEventError) as caught:
        read_event(body, datetime(2026, 2, 1, tzinfo=UTC))
    return validation_error(caught.value.errors).body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, THREE),
        ({"unit_type": "x", "unit_id": "", "requested_experiments": [1]}, THREE),
        ({"context": 1, "enroll": 1}, f"{THREE}; and 2 more"),
        ({**GOOD, "unit_id": "a\0"}, "unit_id must not contain a NUL character"),
        ({**GOOD, "context": []}, "context must be an object"),
        ({**GOOD, "enroll": None}, "enroll must be true or false"),
        ([GOOD], "body must be a JSON object"),
        ({**GOOD, "enrol": False}, "enrol is not a field of this request: did you mean enroll?"),
        (
            {**GOOD, "zzz": 1},
            "zzz is not a field of this request: its fields are unit_type, unit_id, requested_experiments, context, enroll",
        ),
    ],
)
def test_message_explains_invalid_assignment_requests(body: Any, message: str) -> None:
    assert refused(msgspec.json.encode(body)).message == message


@pytest.mark.parametrize(
    ("body", "explanation"),
    [
        (b"", "is empty: send a JSON object"),
        (b'{"unit_type":', "can't be read: the JSON ends too early (byte 13)"),
        (b'{"unit_type":"user",}', "can't be read: JSON is malformed: trailing comma in object (byte 20)"),
        (b'{"a":"\xff"}', "can't be read: it is not UTF-8 (byte 6)"),
        (b'{"context":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "is nested too deeply"),
    ],
)
def test_message_explains_invalid_json(body: bytes, explanation: str) -> None:
    for error, name in ((refused(body), "body"), (refused_event(body), "event")):
        assert error.message == f"{name} {explanation}"
        assert error.details == [FieldError(name, "invalid_json")]


def test_number_out_of_range_names_its_field() -> None:
    error = refused(b'{"context":{"a":1e400}}')
    assert (error.message, error.details) == (
        "context can't be read: Number out of range",
        [FieldError("context", "invalid_context")],
    )


def test_unknown_field_is_reported_together_with_other_errors() -> None:
    error = refused(msgspec.json.encode({**GOOD, "enrol": False, "unit_type": "x"}))
    assert error.details == [FieldError("unit_type", "invalid_unit_type"), FieldError("enrol", "unknown_field")]
    # The words for the message are not part of the details.
    assert msgspec.to_builtins(error)["details"][1] == {"field": "enrol", "error": "unknown_field"}


def test_many_unknown_fields_are_cheap() -> None:
    body = msgspec.json.encode({f"{'x' * 200}{n}": n for n in range(4000)})
    started = time.process_time()
    error = refused(body)
    assert time.process_time() - started < 2
    assert error.message.endswith("; and 4,000 more")
    assert len(error.details) == MAX_DETAILS and all(len(detail.field) <= 100 for detail in error.details)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit_type": "x", "unit_id": ""}, THREE.rpartition("; ")[0]),
        ({"event_id": "x"}, "event_id must be a UUID"),
        ({"experiments": 1}, "experiments must be a list of objects with experiment_id and variant_id, both UUIDs"),
        (
            {"experiments": [{"experiment_id": "x"}]},
            "experiments[0].experiment_id must be a UUID; experiments[0].variant_id must be a UUID",
        ),
        ({"metrics": {"a": "b"}}, "metrics must be an object of finite numbers"),
        ({"metrics": {"unit_id": int("9" * 400)}}, "metrics.unit_id must be a finite number"),
        (
            {"context": {"a": "\0"}},
            "context must be an object without NUL characters, nested at most 64 levels deep",
        ),
        ({"timestamp": "soon"}, "timestamp must be ISO 8601 with an offset, such as 2026-01-05T18:00:00+00:00"),
        ({"timestamp": "2026-03-01T00:00:00Z"}, "timestamp is more than 5 minutes ahead of the server's clock"),
    ],
)
def test_message_explains_invalid_events(changes: dict[str, Any], message: str) -> None:
    assert refused_event(msgspec.json.encode({**EVENT, **changes})).message == message


def test_given_message_and_foreign_codes_stay_unchanged() -> None:
    details = [FieldError("unit_type", "Input should be 'user'")]
    assert validation_error(details).body.message == "unit_type: Input should be 'user'"
    assert validation_error(details, "A message.").body.message == "A message."
