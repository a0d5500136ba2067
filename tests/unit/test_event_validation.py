"""Validation of events: every field's rule and error code, the flags, and the removal of credentials."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.credentials import looks_like_credential, without_credentials
from eventlog.validation import (
    MAX_EVENT_BYTES,
    Event,
    InvalidEventError,
    read_event,
    set_flags,
)

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
RUN, VARIANT = uuid4(), uuid4()
GOOD: dict[str, Any] = {
    "event_type": "plan_accepted",
    "unit_type": "household",
    "unit_id": "h1",
    "experiments": [{"experiment_id": str(RUN), "variant_id": str(VARIANT)}],
    "context": {"policy_version_id": "p1", "session_id": "s"},
    "metrics": {"latency_ms": 12.5, "token_count": 7},
    "payload": {"plan_id": "x", "meals": []},
    "timestamp": "2025-06-01T11:00:00Z",
    "event_id": "0b9a7a3e-5f5b-4b6e-9d0a-5b8d5a0c1f00",
}


def read(**changes: Any) -> Event:
    return read_event(json.dumps({**GOOD, **changes}).encode(), NOW)


def codes(**changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidEventError) as raised:
        read(**changes)
    return [(error.field, error.error) for error in raised.value.errors]


def test_valid_event_is_read_completely() -> None:
    event = read()
    assert event.event_id == UUID(GOOD["event_id"])
    assert (event.experiments[0].experiment_id, event.experiments[0].variant_id) == (RUN, VARIANT)
    assert (event.context, event.metrics, event.payload) == (GOOD["context"], GOOD["metrics"], GOOD["payload"])
    assert event.timestamp == NOW - timedelta(hours=1)


def test_optional_fields_may_be_absent_or_null() -> None:
    optional = ("experiments", "context", "metrics", "payload", "event_id")
    bare = read_event(json.dumps({key: value for key, value in GOOD.items() if key not in optional}).encode(), NOW)
    nulls = read(**dict.fromkeys(optional))
    for event in (bare, nulls):
        assert (event.experiments, event.context, event.metrics, event.payload) == ([], {}, {}, None)
    assert bare.event_id != nulls.event_id


@pytest.mark.parametrize("field", ["event_type", "unit_type", "unit_id", "timestamp"])
def test_event_is_rejected_when_a_required_field_is_missing(field: str) -> None:
    assert codes(**{field: None}) == [(field, f"missing_{field}")]
    absent = {key: value for key, value in GOOD.items() if key != field}
    with pytest.raises(InvalidEventError, match=f"missing_{field}"):
        read_event(json.dumps(absent).encode(), NOW)


WRONG = [
    ("event_type", "plan_invented", "invalid_event_type"),
    ("event_type", "model_promoted", "invalid_event_type"),
    ("event_type", "custom.", "invalid_event_type"),
    ("event_type", "custom." + "x" * 94, "invalid_event_type"),
    ("event_type", "custom.a\0b", "invalid_event_type"),
    ("event_type", 7, "invalid_event_type"),
    ("unit_type", "planet", "invalid_unit_type"),
    ("unit_id", "", "invalid_unit_id"),
    ("unit_id", "x" * 256, "invalid_unit_id"),
    ("unit_id", "a\0b", "invalid_unit_id"),
    ("unit_id", 5, "invalid_unit_id"),
    ("event_id", "not-a-uuid", "invalid_event_id"),
    ("event_id", 5, "invalid_event_id"),
    ("experiments", {}, "invalid_experiment_id"),
    ("context", [], "invalid_context"),
    ("context", {"a": "\0"}, "invalid_context"),
    ("context", {"\0": 1}, "invalid_context"),
    ("payload", "text", "invalid_payload"),
    ("payload", {"a": [{"b": "x\0"}]}, "invalid_payload"),
    ("payload", json.loads('{"a":' * 70 + "1" + "}" * 70), "invalid_payload"),
    ("metrics", [1], "invalid_metric"),
    ("metrics", {"a": "1"}, "invalid_metric"),
    ("metrics", {"a": True}, "invalid_metric"),
    ("metrics", {"a": None}, "invalid_metric"),
    ("metrics", {"a": int("9" * 400)}, "invalid_metric"),
    ("metrics", {"a": float("inf")}, "invalid_json"),
    ("timestamp", "yesterday", "invalid_timestamp"),
    ("timestamp", "2025-06-01", "invalid_timestamp"),
    ("timestamp", "2025-06-01T11:00:00", "invalid_timestamp"),
    ("timestamp", "2025-06-31T11:00:00Z", "invalid_timestamp"),
    ("timestamp", "0001-01-01T00:00:00+05:00", "invalid_timestamp"),
    ("timestamp", "0001-01-01T00:00:00Z", "invalid_timestamp"),
    ("timestamp", 1748775600, "invalid_timestamp"),
    ("timestamp", "2025-06-01T12:05:01Z", "timestamp_in_future"),
    ("timestamp", "9999-12-31T23:59:59Z", "timestamp_in_future"),
]


@pytest.mark.parametrize(
    ("field", "value", "code"), WRONG, ids=[f"{row[0]}-{index}" for index, row in enumerate(WRONG)]
)
def test_event_is_rejected_with_a_code_when_a_value_is_invalid(field: str, value: Any, code: str) -> None:
    assert code in [error for _, error in codes(**{field: value})]


def test_error_names_the_field_when_a_number_exceeds_a_double() -> None:
    body = json.dumps({**GOOD, "metrics": {"a": 1}}).replace('{"a": 1}', '{"a": 1e400}')
    with pytest.raises(InvalidEventError, match="metrics: invalid_metric"):
        read_event(body.encode(), NOW)


@pytest.mark.parametrize("refs", [b"[1e400]", b'[{"experiment_id":"\xff"}]', b"[7]"])
def test_error_names_the_field_when_experiments_cannot_be_read(refs: bytes) -> None:
    raw = json.dumps({**GOOD, "experiments": None}).encode().replace(b'"experiments": null', b'"experiments": ' + refs)
    with pytest.raises(InvalidEventError, match=r"experiments.*: invalid_experiment_id"):
        read_event(raw, NOW)


def test_last_value_counts_when_a_key_is_repeated() -> None:
    for key, value in (("experiments", []), ("context", {}), ("unit_id", "h2")):
        raw = json.dumps(GOOD)[:-1] + f', "{key}": {json.dumps(value)}}}'
        assert getattr(read_event(raw.encode(), NOW), key) == value


def test_events_share_their_references_only_when_they_are_the_same() -> None:
    first, again = read(), read()
    assert first.experiments is again.experiments
    other = read(experiments=[{"experiment_id": str(RUN), "variant_id": str(RUN)}])
    assert other.experiments[0].variant_id == RUN and first.experiments[0].variant_id == VARIANT


def test_all_errors_of_an_event_are_reported() -> None:
    errors = codes(event_type="no", unit_type=None, experiments=[{"experiment_id": "x"}, 7], metrics={"a": "b"})
    assert errors == [
        ("event_type", "invalid_event_type"),
        ("unit_type", "missing_unit_type"),
        ("metrics", "invalid_metric"),
        ("experiments[0].experiment_id", "invalid_experiment_id"),
        ("experiments[0].variant_id", "invalid_variant_id"),
        ("experiments[1].experiment_id", "invalid_experiment_id"),
        ("experiments[1].variant_id", "invalid_variant_id"),
    ]


def test_values_at_their_limits_are_accepted_and_beyond_are_rejected() -> None:
    assert read(unit_id="é" * 255).unit_id == "é" * 255
    assert read(event_type="custom." + "x" * 93).event_type.endswith("x")
    assert read(timestamp="2025-06-01T12:05:00Z").timestamp == NOW + timedelta(minutes=5)
    room = MAX_EVENT_BYTES - len(json.dumps({**GOOD, "payload": {"a": ""}}))
    assert read(payload={"a": "x" * room}).payload == {"a": "x" * room}
    assert codes(payload={"a": "x" * (room + 1)}) == [("event", "payload_too_large")]


@settings(deadline=None)  # a busy machine is no failure
@given(st.datetimes(datetime(1970, 1, 2), datetime(2025, 6, 1)), st.integers(-14 * 60, 14 * 60))
def test_timestamp_is_the_same_moment_in_any_offset(moment: datetime, minutes: int) -> None:
    zoned = moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=minutes)))
    assert read(timestamp=zoned.isoformat()).timestamp == zoned


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.recursive(
        st.none() | st.booleans() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_any_json_is_accepted_or_rejected_with_errors(value: Any) -> None:
    for raw in (msgspec.json.encode(value), *(msgspec.json.encode({**GOOD, field: value}) for field in GOOD)):
        try:
            read_event(raw, NOW)
        except InvalidEventError as error:
            assert error.errors


def test_text_is_not_changed() -> None:
    text = "Ω≈ç√ \u202e 表ポ 👩‍👩‍👧 ' OR 1=1 -- \\u0000 \\ud800"
    event = read(unit_id=text[:50], payload={"plan_id": text})
    assert (event.unit_id, event.payload) == (text[:50], {"plan_id": text})


CREDENTIALS = [
    "password", "Password", "user_password", "passwordHash", "token", "access_token", "accessToken", "accesstoken", "X-Auth-Token",
    "secret", "client_secret", "clientSecret", "secret-key", "Authorization", "authorization_header", "api_key", "apiKey", "api__key",
]  # fmt: skip
HARMLESS = [
    "token_count",
    "input_tokens",
    "output_tokens",
    "tokens",
    "tokenizer",
    "secretary",
    "passenger",
    "author",
    "session_id",
]


@pytest.mark.parametrize("key", CREDENTIALS)
def test_credentials_are_removed_at_any_depth(key: str) -> None:
    assert looks_like_credential(key)
    data = {"keep": [{"deep": {key: "s3cret", "kept": 1}}], key: {"nested": True}}
    event = read(context=data, payload={"list": [data]})
    remaining = {"keep": [{"deep": {"kept": 1}}]}
    assert (event.context, event.payload) == (remaining, {"list": [remaining]})


def test_credential_is_removed_when_its_key_is_escaped() -> None:
    raw = json.dumps({**GOOD, "context": {"password": "s3cret"}}).replace('"password"', '"\\u0070assword"')
    assert read_event(raw.encode(), NOW).context == {}


@pytest.mark.parametrize("key", HARMLESS)
def test_keys_that_only_resemble_credentials_are_kept(key: str) -> None:
    assert without_credentials({key: 1}) == {key: 1}


FLAGS = [
    ({}, []),
    ({"experiments": []}, ["no_experiment_context"]),
    ({"context": {}}, ["no_policy_version_id"]),
    ({"timestamp": "2025-05-25T11:59:59Z"}, ["late"]),
    ({"timestamp": "2025-05-25T12:00:00Z"}, []),
    ({"payload": None}, ["no_plan_id"]),
    ({"event_type": "plan_rejected"}, ["no_rejection_reason"]),
    ({"event_type": "meal_swapped"}, ["no_from_meal_id", "no_to_meal_id"]),
    ({"payload": None, "context": {"policy_version_id": "p", "plan_id": "in context"}}, []),
    ({"experiments": [{"experiment_id": str(RUN), "variant_id": str(uuid4())}]}, ["unknown_variant"]),
    (
        {"experiments": [{"experiment_id": str(uuid4()), "variant_id": str(VARIANT)}]},
        ["unknown_experiment", "unknown_variant"],
    ),
]


@pytest.mark.parametrize(("changes", "flags"), FLAGS)
def test_event_is_flagged_for_each_deficiency(changes: dict[str, Any], flags: list[str]) -> None:
    event = read(**changes)
    other = read(unit_id="another", timestamp=NOW.isoformat(), event_type="exposure")
    set_flags([event, other, event], {VARIANT: RUN}, {RUN})
    assert event.flags == flags
    assert other.flags == []
    event.received_at = None
    set_flags([event], {VARIANT: RUN}, {RUN})
    assert event.flags == [flag for flag in flags if flag != "late"]
