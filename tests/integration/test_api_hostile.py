"""Hostile bodies are rejected with our error body, or accepted as data and stored unchanged. They never cause a 5xx."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from api_support import Api, make_run, running_api
from conftest import SHARED_DATA

from eventlog.credentials import looks_like_credential

pytest_plugins = ["api_service"]

FOLDER = SHARED_DATA / "hostile_input"
PATHS = ("/api/v1/assignments", "/api/v1/events", "/api/v1/events/batch")
ASSIGNMENT = {"unit_type": "user", "unit_id": "u", "context": {}, "requested_experiments": ["x"], "enroll": True}
OFREP = "/ofrep/v1/evaluate/flags"
EVENT = {
    "event_type": "custom.x", "unit_type": "user", "unit_id": "u", "experiments": [], "context": {}, "metrics": {}, "payload": {},
    "timestamp": "2025-01-01T00:00:00Z", "event_id": "0b9a7a3e-5f5b-4b6e-9d0a-5b8d5a0c1f00",
}  # fmt: skip


@pytest.fixture(params=["uncached", "cached"])
def api(request: pytest.FixtureRequest, database_url: str, make_client: Callable[..., httpx.Client]) -> Iterator[Api]:
    """The API without caches, as in other tests, and with cached experiments and keys, as in production."""
    caching = {"experiments_refresh_seconds": 0.5, "api_key_cache_seconds": 60} if request.param == "cached" else {}
    with (
        running_api(database_url, rate_limit_unit_per_minute=0, rate_limit_key_per_minute=0, **caching) as url,
        psycopg.connect(database_url, autocommit=True) as connection,
    ):
        yield Api(make_client(url, "assign", "ingest", "admin", "read"), connection, database_url)


def make_known_run(api: Api, name: str, **columns: Any) -> UUID:
    """Create a run and wait until the API serves it."""
    run_id, _ = make_run(api.connection, name, unit_type="user", **columns)
    began = time.monotonic()
    while api.client.get(f"/api/v1/experiments/{name}").status_code != 200:
        assert time.monotonic() - began < 5, "the API did not notice the run"
    return run_id


@pytest.fixture(scope="module")
def hostile() -> Path:
    if not FOLDER.exists():
        pytest.skip(f"the hostile input is not at {FOLDER}")
    return FOLDER


def is_rejected_cleanly(answer: httpx.Response) -> bool:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        body = answer.json()
        assert set(body) >= {"error", "message"}, body
        assert body["message"] or body["error"]
        return True
    return False


def with_value(base: dict[str, Any], field: str, raw: bytes) -> bytes:
    """The body with raw bytes as the value of one field."""
    return json.dumps({**base, field: "@here@"}).encode().replace(b'"@here@"', raw)


def test_hostile_bodies_are_rejected(api: Api, hostile: Path) -> None:
    for file in sorted((hostile / "json_bodies").iterdir()):
        raw = file.read_bytes()
        for path in PATHS:
            rejected = is_rejected_cleanly(api.client.post(path, content=raw))
            assert rejected, f"{path} must reject {file.name}"
    assert api.rows("SELECT (SELECT count(*) FROM exp.events), (SELECT count(*) FROM exp.assignments)") == [(0, 0)]


def test_hostile_values_of_fields_are_rejected_or_data(api: Api, hostile: Path) -> None:
    for file in sorted((hostile / "json_bodies").iterdir()):
        raw = file.read_bytes()
        for path, base in ((PATHS[0], ASSIGNMENT), (PATHS[1], EVENT)):
            for field in base:
                rejected = is_rejected_cleanly(api.client.post(path, content=with_value(base, field, raw)))
                assert rejected or not file.name.startswith("n_") or b'"' in raw or b"," in raw, (file.name, field)


def test_naughty_strings_are_stored_unchanged(api: Api, hostile: Path) -> None:
    run_id = make_known_run(api, "planner")
    strings = naughty(hostile)
    legal = {text for text in strings if 1 <= len(text) <= 255 and "\0" not in text}
    now = datetime.now(UTC).isoformat()
    for text in strings:
        asked = {**ASSIGNMENT, "unit_id": text, "requested_experiments": ["planner", text]}
        assert is_rejected_cleanly(api.client.post(PATHS[0], json=asked)) is (text not in legal), repr(text)
        payload = {"value": text, text: [text]}
        sent = {**EVENT, "event_id": str(uuid4()), "timestamp": now, "unit_id": text, "payload": payload}
        assert is_rejected_cleanly(api.client.post(PATHS[1], json=sent)) is (text not in legal), repr(text)
    assert {
        text for (text,) in api.rows("SELECT unit_id FROM exp.assignments WHERE experiment_id = %s", run_id)
    } == legal
    stored = api.rows("SELECT unit_id, payload FROM exp.events")
    assert {unit for unit, _ in stored} == legal
    for unit, payload in stored:
        # One string spells /etc/passwd. A key with that name counts as a credential and is removed.
        assert payload == ({"value": unit} if looks_like_credential(unit) else {"value": unit, unit: [unit]})


def test_naughty_strings_in_other_fields_are_rejected(api: Api, hostile: Path) -> None:
    strings = naughty(hostile)
    for field in ("event_type", "unit_type", "timestamp", "event_id", "experiments", "context", "metrics", "payload"):
        answer = api.client.post(PATHS[2], json={"events": [{**EVENT, field: text} for text in strings]})
        assert is_rejected_cleanly(answer)
        assert len(answer.json()["errors"]) == len(strings)


def naughty(folder: Path) -> list[str]:
    return sorted({text for text in json.loads((folder / "naughty_strings.json").read_text()) if isinstance(text, str)})


HOSTILE = {
    "NUL in a value": b'"a\\u0000b"',
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"\\udc00"',
    "swapped surrogates": b'"\\udc00\\ud800"',
    "invalid UTF-8": b'"\xff\xfe"',
    "encoded surrogate": b'"\xed\xa0\x80"',
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "number beyond doubles": b"1e999",
    "5,000 digits": b"9" * 5000,
    "deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "open arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_values_inside_data_are_rejected_and_not_stored(api: Api, raw: bytes) -> None:
    for field in ("context", "payload", "metrics"):
        for nested in (b'{"a":' + raw + b"}", b'{"a":{"b":[' + raw + b"]}}"):
            invalid = with_value(EVENT, field, nested)
            assert api.client.post(PATHS[1], content=invalid).status_code == 400
            batch = api.client.post(
                PATHS[2], content=b'{"events":[' + invalid + b"," + json.dumps(EVENT).encode() + b"]}"
            )
            assert batch.status_code in (207, 400)
            assert is_rejected_cleanly(batch) or batch.json()["rejected"] == 1
    for field in ("unit_id", "unit_type", "event_type", "timestamp"):
        assert api.client.post(PATHS[1], content=with_value(EVENT, field, raw)).status_code == 400
    for field in ("unit_id", "unit_type", "requested_experiments"):
        assert api.client.post(PATHS[0], content=with_value(ASSIGNMENT, field, raw)).status_code == 400
    assert api.rows("SELECT count(DISTINCT id) <= 1 FROM exp.events") == [(True,)]


def is_rejected_cleanly_by_ofrep(answer: httpx.Response) -> bool:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()) >= {"errorCode", "errorDetails"} or set(answer.json()) >= {"error", "message"}
        return True
    return False


def test_ofrep_rejects_hostile_values_or_accepts_them_as_data(api: Api, hostile: Path) -> None:
    run_id = make_known_run(api, "planner", targeting="context.platform != 'none'")
    files = [file.read_bytes() for file in sorted((hostile / "json_bodies").iterdir())]
    for raw in [*files, *HOSTILE.values()]:
        for path in (OFREP, f"{OFREP}/planner"):
            assert is_rejected_cleanly_by_ofrep(api.client.post(path, content=raw))
            for field in ("context", "unitType", "platform"):
                context = {"context": {"targetingKey": "u", "platform": "web", field: "@here@"}}
                body = {"context": "@here@"} if field == "context" else context
                is_rejected_cleanly_by_ofrep(
                    api.client.post(path, content=json.dumps(body).encode().replace(b'"@here@"', raw))
                )
    api.connection.execute("DELETE FROM exp.assignments")
    legal = {text for text in naughty(hostile) if 1 <= len(text) <= 255 and "\0" not in text}
    for text in naughty(hostile):
        body = {"context": {"targetingKey": text, "platform": text}}
        assert is_rejected_cleanly_by_ofrep(api.client.post(f"{OFREP}/planner", json=body)) is (text not in legal), (
            repr(text)
        )
    stored = api.rows("SELECT unit_id FROM exp.assignments WHERE experiment_id = %s", run_id)
    assert {text for (text,) in stored} == legal - {"none"}


def test_targeting_rule_survives_hostile_contexts(api: Api, hostile: Path) -> None:
    make_known_run(api, "planner", targeting="context.a.b == 1 || context.a > 3 || size(context.a) > 1")
    files = [file.read_bytes() for file in sorted((hostile / "json_bodies").iterdir())]
    body = {**ASSIGNMENT, "requested_experiments": ["planner"]}
    for raw in [*files, *HOSTILE.values(), b'{"b":' + b"[" * 400 + b"]" * 400 + b"}", b'"' + b"a" * 900_000 + b'"']:
        answer = api.client.post(PATHS[0], content=with_value(body, "context", b'{"a":' + raw + b"}"))
        if not is_rejected_cleanly(answer):
            assert len(answer.json()["assignments"]) + len(answer.json()["skipped_experiments"]) == 1
    # The last of two equal keys counts, as in other JSON parsers.
    twice = b'{"unit_type":"user","unit_id":"u1","unit_id":"u2","requested_experiments":["planner"],"context":{"a":4}}'
    assert api.client.post(PATHS[0], content=twice).json()["assignments"][0]["enrolled"] is True
    assert ("u2",) in api.rows("SELECT unit_id FROM exp.assignments")
    assert ("u1",) not in api.rows("SELECT unit_id FROM exp.assignments")


def test_ten_megabytes_are_413(api: Api) -> None:
    for path in PATHS:
        answer = api.client.post(path, content=b"[" * (10 * 1_048_576 + 1))
        assert (answer.status_code, answer.json()["error"]) == (413, "payload_too_large")
