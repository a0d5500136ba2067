"""OFREP 0.3.0: the official OpenFeature provider works unchanged, and every answer conforms to the protocol's OpenAPI document."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import yaml
from api_support import Api, Variants, make_run, running_api
from conftest import SHARED_DATA
from openfeature import api as openfeature
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

pytest_plugins = ["api_service"]

ROWS = "SELECT unit_id FROM exp.assignments ORDER BY unit_id"
FLAG, FLAGS = "/ofrep/v1/evaluate/flags/", "/ofrep/v1/evaluate/flags"


def always(config: dict[str, Any]) -> Variants:
    return {"on": ("control", "1", config)}


@pytest.fixture(scope="module")
def protocol() -> dict[str, Any]:
    path = SHARED_DATA / "ofrep" / "openapi.yaml"
    if not Path(path).exists():
        pytest.skip(f"OFREP's OpenAPI document is not at {path}")
    document = dict(yaml.safe_load(path.read_text()))
    # `codeDefaultFlag` matches everything, so `oneOf` rejects the document's own examples. `anyOf` accepts them.
    alternatives = document["components"]["schemas"]["evaluationSuccess"]["allOf"][1]
    alternatives["anyOf"] = alternatives.pop("oneOf")
    return document


def conforms(protocol: dict[str, Any], name: str, body: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": protocol["components"]}
    jsonschema_rs.validator_for(schema).validate(body)


@pytest.fixture
def client(api: Api) -> Iterator[OpenFeatureClient]:
    headers = {"Authorization": api.client.headers["authorization"]}
    openfeature.set_provider(OFREPProvider(str(api.client.base_url), headers_factory=lambda: headers))
    yield openfeature.get_client()
    openfeature.clear_providers()


CONTEXT = EvaluationContext("h1", {"platform": "ios"})


def test_provider_gets_values_of_every_type(api: Api, client: OpenFeatureClient) -> None:
    for name, value in {
        "boolean": True, "string": "blue", "integer": 7, "float": 0.25, "object": {"a": [1, None]}, "list": [1, "two"],
    }.items():  # fmt: skip
        make_run(api.connection, name, variants=always({"value": value}))
    make_run(api.connection, "config", variants=always({"feature_enabled": True, "size": 3}))
    assert client.get_boolean_value("boolean", False, CONTEXT) is True
    assert client.get_string_value("string", "red", CONTEXT) == "blue"
    assert client.get_integer_value("integer", 0, CONTEXT) == 7
    assert client.get_float_value("float", 0.0, CONTEXT) == 0.25
    assert client.get_object_value("object", {}, CONTEXT) == {"a": [1, None]}
    assert client.get_object_value("list", [], CONTEXT) == [1, "two"]
    assert client.get_object_value("config", {}, CONTEXT) == {"feature_enabled": True, "size": 3}


def test_provider_gets_reason_variant_and_metadata(api: Api, client: OpenFeatureClient) -> None:
    run_id, variants = make_run(api.connection, "cards", overrides={"qa": "treatment"})
    details = client.get_object_details("cards", {}, CONTEXT)
    assert (details.reason, details.error_code) == (Reason.SPLIT, None)
    assert details.flag_metadata == {
        "reason": "assigned", "enrolled": True, "experiment_id": str(run_id), "run": 1, "variant_id": str(variants[details.variant]),
    }  # fmt: skip
    assert api.rows(ROWS) == [("h1",)]
    assert client.get_object_details("cards", {}, EvaluationContext("qa")).reason == Reason.TARGETING_MATCH
    api.connection.execute(
        "UPDATE exp.experiments SET status = 'completed', shipped_variant_id = %s", (variants["control"],)
    )
    shipped = client.get_object_details("cards", {}, CONTEXT)
    assert (shipped.reason, shipped.variant, shipped.value) == (Reason.STATIC, "control", {"blue": True})


def test_provider_uses_the_default_when_there_is_no_variant(api: Api, client: OpenFeatureClient) -> None:
    make_run(api.connection, "paused", status="paused", variants=always({"value": "new"}))
    make_run(api.connection, "targeted", variants=always({"value": "new"}), targeting="context.platform == 'web'")
    for name, reason in (("paused", "paused"), ("targeted", "not_targeted")):
        details = client.get_string_details(name, "of the code", CONTEXT)
        assert (details.value, details.reason, details.error_code) == ("of the code", Reason.DISABLED, None)
        assert details.flag_metadata["reason"] == reason


def test_provider_gets_the_right_error_codes(api: Api, client: OpenFeatureClient) -> None:
    make_run(api.connection, "cards", variants=always({"value": "new"}))
    make_run(api.connection, "old", variants=always({"value": "new"}), targeting="context.platform > 3")

    def code(name: str, context: EvaluationContext) -> ErrorCode | None:
        details = client.get_string_details(name, "default", context)
        assert details.value == "default"
        return details.error_code

    assert code("nobody", CONTEXT) == ErrorCode.FLAG_NOT_FOUND
    assert code("cards", EvaluationContext(None, {"platform": "ios"})) == ErrorCode.TARGETING_KEY_MISSING
    assert code("cards", EvaluationContext("x" * 256)) == ErrorCode.INVALID_CONTEXT
    assert code("cards", EvaluationContext("u1", {"unitType": "user"})) == ErrorCode.INVALID_CONTEXT
    assert code("old", CONTEXT) == ErrorCode.INVALID_CONTEXT
    assert client.get_boolean_details("cards", False, CONTEXT).error_code == ErrorCode.TYPE_MISMATCH
    openfeature.set_provider(OFREPProvider(str(api.client.base_url)))
    assert client.get_string_details("cards", "default", CONTEXT).error_code == ErrorCode.GENERAL
    assert api.rows(ROWS) == [("h1",)]


def test_answers_conform_to_the_protocol(api: Api, protocol: dict[str, Any]) -> None:
    make_run(api.connection, "cards")
    make_run(api.connection, "paused", status="paused")
    make_run(api.connection, "broken", targeting="context.platform > 3")
    body = {"context": {"targetingKey": "h1", "platform": "ios"}}
    for name, status, schema in (
        ("cards", 200, "serverEvaluationSuccess"),
        ("paused", 200, "serverEvaluationSuccess"),
        ("broken", 400, "evaluationFailure"),
        ("nobody", 404, "flagNotFound"),
    ):
        answer = api.client.post(FLAG + name, json=body)
        assert answer.status_code == status, answer.text
        conforms(protocol, schema, answer.json())
    answer = api.client.post(FLAGS, json=body)
    assert answer.status_code == 200
    conforms(protocol, "bulkEvaluationSuccess", answer.json())
    assert [flag["key"] for flag in answer.json()["flags"]] == ["broken", "cards", "paused"]
    with pytest.raises(jsonschema_rs.ValidationError):
        conforms(protocol, "bulkEvaluationSuccess", {"flags": [{"key": "x"}]})


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "PARSE_ERROR"),
        (b"{", "PARSE_ERROR"),
        (b"[]", "TARGETING_KEY_MISSING"),
        (b"{}", "TARGETING_KEY_MISSING"),
        (b'{"context": []}', "INVALID_CONTEXT"),
        (b'{"context": {}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"targetingKey": ""}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"targetingKey": 7}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "a\\u0000b"}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "h1", "unitType": ["user"]}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "h1", "unitType": "planet"}}', "INVALID_CONTEXT"),
    ],
)
def test_invalid_body_is_400_with_the_error_code_of_the_protocol(
    api: Api, protocol: dict[str, Any], content: bytes, code: str
) -> None:
    make_run(api.connection, "cards")
    for path, schema in ((FLAG + "cards", "evaluationFailure"), (FLAGS, "bulkEvaluationFailure")):
        answer = api.client.post(path, content=content)
        assert (answer.status_code, answer.json()["errorCode"]) == (400, code)
        conforms(protocol, schema, answer.json())
    assert api.rows(ROWS) == []


def test_evaluating_all_flags_enrols_only_with_the_header(api: Api) -> None:
    make_run(api.connection, "cards")
    make_run(api.connection, "theme", unit_type="user")
    make_run(api.connection, "draft", status="draft")
    body = {"context": {"targetingKey": "h1"}}
    flags = api.client.post(FLAGS, json=body).json()["flags"]
    assert [(flag["key"], flag["metadata"]["enrolled"]) for flag in flags] == [("cards", False), ("theme", False)]
    assert api.rows(ROWS) == []
    refused = api.client.post(FLAGS, json=body, headers={"X-Enroll": "true"})
    assert (refused.status_code, refused.json()["errorCode"]) == (400, "INVALID_CONTEXT")
    body["context"]["unitType"] = "household"
    flags = api.client.post(FLAGS, json=body, headers={"X-Enroll": "true"}).json()["flags"]
    assert [(flag["key"], flag["metadata"]["enrolled"]) for flag in flags] == [("cards", True)]
    assert api.rows(ROWS) == [("h1",)]
    api.client.post(FLAG + "cards", json={"context": {"targetingKey": "h2"}}, headers={"X-Enroll": "false"})
    assert api.rows(ROWS) == [("h1",)]


def test_unchanged_answer_is_304(api: Api) -> None:
    make_run(api.connection, "cards")
    body = {"context": {"targetingKey": "h1"}}
    first = api.client.post(FLAGS, json=body)
    for if_none_match in (first.headers["etag"], f"W/{first.headers['etag']}", f'"x", {first.headers["etag"]}'):
        again = api.client.post(FLAGS, json=body, headers={"If-None-Match": if_none_match})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    api.connection.execute("UPDATE exp.experiments SET status = 'paused'")
    changed = api.client.post(FLAGS, json=body, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]


def test_keys_and_limits_apply_to_ofrep(database_url: str, api: Api, make_client: Callable[..., httpx.Client]) -> None:
    make_run(api.connection, "cards")
    body = {"context": {"targetingKey": "h1"}}
    key = api.client.headers["authorization"].removeprefix("Bearer ")
    url = str(api.client.base_url)
    refused = httpx.post(url + FLAG + "cards", json=body)
    assert (refused.status_code, len(refused.headers.get_list("x-request-id"))) == (401, 1)
    assert httpx.post(url + FLAG + "cards", json=body, headers={"X-API-Key": key}).status_code == 200
    assert make_client(url, "ingest").post(FLAGS, json=body).status_code == 403
    with running_api(database_url, rate_limit_unit_per_minute=2) as limited:
        client = make_client(limited, "assign")
        assert [client.post(FLAG + "cards", json=body).status_code for _ in range(3)] == [200, 200, 429]
        assert json.loads(client.post(FLAG + "cards", json=body).content)["error"] == "rate_limited"


def test_failed_requests_are_counted(api: Api) -> None:
    for path in (FLAG + "nobody", FLAGS):
        api.client.post(path, json={"context": {"targetingKey": "h1" if path != FLAGS else ""}})
    assert api.metric('assignment_requests_total{experiment="other",status="not_found"}') == 1
    assert api.metric('assignment_requests_total{experiment="other",status="validation_error"}') == 1
