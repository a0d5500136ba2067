"""The message of a 400 is a sentence for people; its details keep their codes."""

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
    """What an assignment request with this body is told."""
    with pytest.raises(ApiError) as caught:
        read_request(body)
    assert caught.value.status == 400
    return caught.value.body


def refused_event(body: bytes) -> ErrorBody:
    """What an event with this body is told."""
    with pytest.raises(InvalidEventError) as caught:
        read_event(body, datetime(2026, 2, 1, tzinfo=UTC))
    return validation_error(caught.value.errors).body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, THREE),
        ({"unit_type": "x", "unit_id": "", "requested_experiments": [1]}, THREE),
        ({"context": 1, "enroll": 1}, f"{THREE}; and 2 more"),
        ({**GOOD, "unit_id": "a\0"}, "unit_id must hold no NUL character"),
        ({**GOOD, "context": []}, "context must be an object"),
        ({**GOOD, "enroll": None}, "enroll must be true or false"),
        ([GOOD], "body must be a JSON object"),
        ({**GOOD, "enrol": False}, "enrol is no field of this request: did you mean enroll?"),
        (
            {**GOOD, "zzz": 1},
            "zzz is no field of this request: there are unit_type, unit_id, requested_experiments, context, enroll",
        ),
    ],
)
def test_assignments(body: Any, message: str) -> None:
    assert refused(msgspec.json.encode(body)).message == message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "is empty: send a JSON object"),
        (b'{"unit_type":', "can't be read: the JSON ends too early (byte 13)"),
        (b'{"unit_type":"user",}', "can't be read: JSON is malformed: trailing comma in object (byte 20)"),
        (b'{"a":"\xff"}', "can't be read: it is not UTF-8 (byte 6)"),
        (b'{"context":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "is nested too deeply"),
    ],
)
def test_what_is_no_json(body: bytes, said: str) -> None:
    for told, name in ((refused(body), "body"), (refused_event(body), "event")):
        assert told.message == f"{name} {said}"
        assert told.details == [FieldError(name, "invalid_json")]


def test_a_number_that_nothing_holds_names_its_field() -> None:
    told = refused(b'{"context":{"a":1e400}}')
    assert (told.message, told.details) == (
        "context can't be read: Number out of range",
        [FieldError("context", "invalid_context")],
    )


def test_an_unknown_field_is_refused_and_told_beside_the_others() -> None:
    told = refused(msgspec.json.encode({**GOOD, "enrol": False, "unit_type": "x"}))
    assert told.details == [FieldError("unit_type", "invalid_unit_type"), FieldError("enrol", "unknown_field")]
    # What is only for the message is not in the answer.
    assert msgspec.to_builtins(told)["details"][1] == {"field": "enrol", "error": "unknown_field"}


def test_very_many_unknown_fields_cost_little() -> None:
    body = msgspec.json.encode({f"{'x' * 200}{n}": n for n in range(4000)})
    started = time.process_time()
    told = refused(body)
    assert time.process_time() - started < 2
    assert told.message.endswith("; and 4,000 more")
    assert len(told.details) == MAX_DETAILS and all(len(detail.field) <= 100 for detail in told.details)


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
            "context must be an object without NUL characters, nested at most 64 deep",
        ),
        ({"timestamp": "soon"}, "timestamp must be ISO 8601 with an offset, such as 2026-01-05T18:00:00+00:00"),
        ({"timestamp": "2026-03-01T00:00:00Z"}, "timestamp is more than 5 minutes ahead of our clock"),
    ],
)
def test_events(changes: dict[str, Any], message: str) -> None:
    assert refused_event(msgspec.json.encode({**EVENT, **changes})).message == message


def test_a_sentence_that_is_given_and_a_code_of_others_stay() -> None:
    details = [FieldError("unit_type", "Input should be 'user'")]
    assert validation_error(details).body.message == "unit_type: Input should be 'user'"
    assert validation_error(details, "So it is.").body.message == "So it is."
