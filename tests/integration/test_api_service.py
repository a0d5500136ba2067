"""What both services share: keys and scopes, health, error bodies, OpenAPI, and the process itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from api_support import Api, make_run, running_api
from conftest import free_port

from foundation.api_keys import list_api_keys, make_api_key, parse_api_key, revoke_api_key
from foundation.errors import LifecycleError
from foundation.migrate import migrate

pytest_plugins = ["api_service"]

ASSIGN = ("/api/v1/assignments", {"unit_type": "user", "unit_id": "u", "requested_experiments": []})
EVENT: tuple[str, dict[str, Any]] = ("/api/v1/events", {})
BATCH: tuple[str, dict[str, Any]] = ("/api/v1/events/batch", {})


def test_each_route_requires_its_scope(api: Api, make_client: Callable[..., httpx.Client]) -> None:
    base = str(api.client.base_url)
    assign_client, ingest_client, read_client = (make_client(base, scope) for scope in ("assign", "ingest", "read"))
    for path, body in (ASSIGN, EVENT, BATCH):
        for headers in (
            {},
            {"Authorization": "Basic abc"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer lc_x_y"},
        ):
            answer = httpx.post(base + path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = read_client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    assert assign_client.post(ASSIGN[0], json=ASSIGN[1]).status_code == 200
    assert assign_client.post(EVENT[0], json=EVENT[1]).status_code == 403
    assert ingest_client.post(ASSIGN[0], json=ASSIGN[1]).status_code == 403
    assert ingest_client.post(EVENT[0], json=EVENT[1]).status_code == 400


def test_key_is_stored_hashed_listed_and_revoked(api: Api) -> None:
    created, plaintext = make_api_key(api.connection, "web", ["ingest", "assign"])
    assert created.scopes == {"assign", "ingest"}
    parsed = parse_api_key(plaintext)
    assert parsed is not None
    assert parsed[0] == created.id
    ((salt, digest),) = api.rows("SELECT salt, hash FROM exp.api_keys WHERE name = 'web'")
    assert parsed[1] not in (bytes(salt), bytes(digest))
    assert plaintext not in str(api.rows("SELECT k::text FROM exp.api_keys k"))
    assert created in list_api_keys(api.connection)

    def ask(key: str) -> int:
        return httpx.post(
            f"{api.client.base_url}{ASSIGN[0]}", json=ASSIGN[1], headers={"Authorization": f"bearer {key}"}
        ).status_code

    swapped = plaintext[:-1] + ("0" if plaintext[-1] != "0" else "1")
    assert (ask(plaintext), ask(swapped), ask(plaintext.replace(created.id.hex, uuid4().hex))) == (200, 401, 401)
    assert revoke_api_key(api.connection, "web") is True
    assert revoke_api_key(api.connection, "web") is False
    assert ask(plaintext) == 401


@pytest.mark.parametrize(
    ("name", "scopes", "words"),
    [("", ["read"], "1 to 255"), ("x" * 256, ["read"], "1 to 255"), ("a", [], "got none"), ("a", ["root"], "got root")],
)
def test_invalid_key_is_not_created(api: Api, name: str, scopes: list[str], words: str) -> None:
    with pytest.raises(LifecycleError, match=words):
        make_api_key(api.connection, name, scopes)


def test_key_name_is_unique(api: Api) -> None:
    make_api_key(api.connection, "twice", ["read"])
    with pytest.raises(LifecycleError, match="named twice already"):
        make_api_key(api.connection, "twice", ["read"])


def test_checked_key_is_trusted_for_the_configured_time(database_url: str) -> None:
    with (
        running_api(database_url, api_key_cache_seconds=0.5) as url,
        psycopg.connect(database_url, autocommit=True) as connection,
    ):
        _, key = make_api_key(connection, "web", ["assign"])
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.post(url + ASSIGN[0], json=ASSIGN[1], headers=headers).status_code == 200
        revoke_api_key(connection, "web")
        deadline = time.monotonic() + 5
        while httpx.post(url + ASSIGN[0], json=ASSIGN[1], headers=headers).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_readiness_distinguishes_a_missing_migration_from_a_missing_database(
    postgres_server: str, database_url: str, make_client: Callable[..., httpx.Client]
) -> None:
    name = f"empty_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_server, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    empty = postgres_server.rsplit("/", 1)[0] + f"/{name}"
    with running_api(empty) as url:
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        answer = httpx.get(f"{url}/readyz")
        assert (answer.status_code, answer.json()["error"]) == (503, "not_migrated")
        assert "lifecycle db migrate" in answer.json()["message"]
        key = "lc_" + "0" * 32 + "_" + "0" * 64
        answer = httpx.post(url + ASSIGN[0], json=ASSIGN[1], headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["error"]) == (503, "service_unavailable")
        migrate(empty)
        assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
        with psycopg.connect(empty, autocommit=True) as connection:
            _, key = make_api_key(connection, "web", ["assign"])
            answer = httpx.post(url + ASSIGN[0], json=ASSIGN[1], headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200
            connection.execute("UPDATE exp.alembic_version SET version_num = '9999'")
        assert httpx.get(f"{url}/readyz").json()["error"] == "schema_newer"
    nowhere = postgres_server.rsplit("/", 1)[0] + "/nowhere"
    with running_api(nowhere) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
        answer = httpx.get(f"{url}/readyz")
        assert (answer.status_code, answer.json()["error"]) == (503, "database_refuses")
    host = postgres_server.partition("@")[2]
    for url_, error in (
        (f"postgresql://nobody_here:wrong@{host}", "database_refuses"),
        (f"postgresql://nobody:wrong@127.0.0.1:{free_port()}/x", "database_unreachable"),
    ):
        with running_api(url_) as url:
            answer = httpx.get(f"{url}/readyz")
        assert (answer.status_code, answer.json()["error"]) == (503, error)
        assert "wrong" not in answer.text and "nobody" not in answer.text


def test_errors_share_one_format(api: Api) -> None:
    for method, path, status, error in (
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/api/v1/assignments", 405, "method_not_allowed"),
        ("PUT", "/api/v1/events/batch", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("POST", "/api/v1/assignments/", 404, "not_found"),
    ):
        answer = api.client.request(method, path)
        assert (answer.status_code, answer.json()["error"]) == (status, error)
        assert answer.json()["message"]
        assert answer.headers["x-request-id"]


def test_internal_error_is_a_500_without_traceback(
    database_url: str, make_client: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr("serving.assignments.assigner.judge_run", broken)
    body = {"unit_type": "user", "unit_id": "u", "requested_experiments": ["any"]}
    with running_api(database_url) as url:
        answer = make_client(url, "assign").post(ASSIGN[0], json=body, headers={"X-Request-ID": "mine-7"})
    assert (answer.status_code, answer.json()["error"], answer.headers["x-request-id"]) == (
        500,
        "internal_error",
        "mine-7",
    )
    assert "mine-7" in answer.json()["message"]
    assert "secret" not in answer.text


def test_openapi_describes_the_hot_routes(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/api/v1/assignments", "/api/v1/events", "/api/v1/events/batch", "/healthz", "/readyz", "/metrics",
        "/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/{key}", "/api/v1/policies/{name}", "/api/v1/experiments",
        "/api/v1/experiments/{name}", "/api/v1/experiments/{name}/assignments/{unit_id}",
    }  # fmt: skip
    for path in ("/api/v1/assignments", "/api/v1/events", "/api/v1/events/batch"):
        post = document["paths"][path]["post"]
        assert {"200", "400", "401", "403", "413", "503"} <= set(post["responses"])
        for media in (post["requestBody"], *post["responses"].values()):
            assert resolved(document, media["content"]["application/json"]["schema"])["properties"]
    request = resolved(
        document,
        document["paths"]["/api/v1/assignments"]["post"]["requestBody"]["content"]["application/json"]["schema"],
    )
    assert sorted(request["required"]) == ["requested_experiments", "unit_id", "unit_type"]
    assert request["additionalProperties"] is False
    assert api.client.get("/docs").status_code == 200


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference points to. Fails if it does not exist."""
    if "$ref" in schema:
        return dict(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
    return schema


def test_all_metrics_of_the_specification_exist(api: Api) -> None:
    text = api.client.get("/metrics").text
    for name in (
        "assignment_requests_total", "assignment_latency_seconds", "cache_hits_total", "cache_misses_total", "new_assignments_total",
        "events_received_total", "events_ingestion_latency_seconds", "events_batch_size", "events_validation_errors_total",
    ):  # fmt: skip
        assert f"# TYPE {name} " in text, name


def test_process_starts_serves_and_ends(database_url: str, home: Path) -> None:
    unused_port = free_port()
    environment = {
        **os.environ, "DATABASE_URL": database_url, "LIFECYCLE_HOME": str(home), "LIFECYCLE_API_PORT": str(unused_port),
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "serving"], env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert httpx.get(f"http://127.0.0.1:{unused_port}/readyz").json() == {"status": "ready"}
                break
            except httpx.ConnectError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(15)
    finally:
        process.kill()
        process.wait()


def test_process_fails_with_one_sentence_without_a_database(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "serving"],
        env={**environment, "LIFECYCLE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "never started" in done.stderr
    assert "Traceback" not in done.stderr


def test_duplicate_keys_and_whitespace_are_valid_json(api: Api) -> None:
    body = b' {"unit_type":"user","unit_id":"a","unit_id":"b","requested_experiments":["x"]} '
    answer = api.client.post(ASSIGN[0], content=body)
    assert answer.status_code == 200
    assert json.loads(answer.text)["skipped_experiments"] == [{"experiment_name": "x", "reason": "not_found"}]


@pytest.mark.parametrize(("services", "present", "absent"), [
    ("assignments", "/api/v1/assignments", "/api/v1/events"),
    ("events", "/api/v1/events", "/api/v1/assignments"),
])  # fmt: skip
def test_services_can_run_separately(
    database_url: str, make_client: Callable[..., httpx.Client], services: str, present: str, absent: str
) -> None:
    with running_api(database_url, api_services=services) as url:
        client = make_client(url, "assign", "ingest")
        assert client.post(present, json={}).status_code == 400
        assert client.post(absent, json={}).status_code == 404
        paths = client.get("/openapi.json").json()["paths"]
        assert present in paths and absent not in paths
        assert client.get("/readyz").status_code == 200


def test_examples_of_the_docs_page_work_unchanged(api: Api) -> None:
    make_run(api.connection, "recipe_cards", unit_type="user")
    document = api.client.get("/docs/openapi.json").json()
    tried = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert "`" not in operation["summary"]
            path_parameters = [parameter for parameter in operation["parameters"] if parameter["in"] == "path"]
            values = {parameter["name"]: parameter["example"] for parameter in path_parameters}
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            body = None if schema is None else resolved(document, schema)["example"]
            answer = api.client.request(method, path.format(**values), json=body)
            # In this test no policy has a version in production.
            assert answer.status_code == (404 if "/policies/" in path else 200), (path, answer.text)
            tried += 1
            if path.endswith("/assignments"):
                assert [assignment["experiment_name"] for assignment in answer.json()["assignments"]] == [
                    "recipe_cards"
                ]
    assert tried == 12
    assert "503" in document["paths"]["/readyz"]["get"]["responses"]
    assert "enrols nobody unless X-Enroll: true" in document["paths"]["/ofrep/v1/evaluate/flags"]["post"]["summary"]
