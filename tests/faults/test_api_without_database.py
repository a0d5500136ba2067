"""The database stops under a running API: 503 within the retry budget, and normal service soon after it is back."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psycopg
import pytest
from api_support import make_run, running_api
from conftest import free_port

from foundation.api_keys import make_api_key
from foundation.migrate import migrate
from orchestration.local.postgres import EmbeddedPostgres

# 100 + 200 + 400 ms between the tries, plus slack for a slow machine.
RETRY_BUDGET_SECONDS = 0.7
SLACK_SECONDS = 2.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres", free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_api_is_503_while_database_is_stopped_and_recovers(server: EmbeddedPostgres) -> None:
    migrate(server.url)
    with psycopg.connect(server.url, autocommit=True) as connection:
        make_run(connection, "planner")
        _, key = make_api_key(connection, "web", ["assign", "ingest"])
    event = {"event_type": "custom.x", "unit_type": "user", "unit_id": "u", "timestamp": datetime.now(UTC).isoformat()}
    # The key is cached; the unit is not.
    with (
        running_api(server.url, api_key_cache_seconds=60) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client,
    ):

        def ask(unit: str) -> httpx.Response:
            body = {"unit_type": "household", "unit_id": unit, "requested_experiments": ["planner"]}
            return client.post("/api/v1/assignments", json=body)

        assert ask("before").status_code == 200
        server.stop()
        requests: list[Callable[[], httpx.Response]] = [
            lambda: ask("during"),
            lambda: client.post("/api/v1/events", json=event),
        ]
        for send in requests:
            started = time.monotonic()
            answer = send()
            seconds = time.monotonic() - started
            assert (answer.status_code, answer.json()["error"], answer.json()["retry_after"]) == (
                503,
                "service_unavailable",
                5,
            )
            assert answer.headers["retry-after"] == "5"
            assert RETRY_BUDGET_SECONDS <= seconds < RETRY_BUDGET_SECONDS + SLACK_SECONDS
        readiness = client.get("/readyz")
        assert (readiness.status_code, readiness.json()["error"]) == (503, "database_unreachable")
        assert client.get("/healthz").status_code == 200
        server.start()
        restarted_at = time.monotonic()
        while (answer := ask("during")).status_code != 200:
            assert time.monotonic() - restarted_at < 2
        assert answer.json()["assignments"][0]["enrolled"] is True
        assert client.post("/api/v1/events", json=event).status_code == 200
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("refresh", [3600, 0])
def test_hanging_statement_is_not_retried(server: EmbeddedPostgres, refresh: float) -> None:
    migrate(server.url)
    with psycopg.connect(server.url, autocommit=True) as connection:
        run_id, _ = make_run(connection, "planner")
        _, key = make_api_key(connection, "web", ["assign"])
    body = {"unit_type": "household", "unit_id": "h1", "requested_experiments": ["planner"]}
    headers = {"Authorization": f"Bearer {key}"}
    with (
        running_api(
            server.url, api_key_cache_seconds=60, api_database_timeout_seconds=0.5, experiments_refresh_seconds=refresh
        ) as url,
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
        psycopg.connect(server.url) as holder,
    ):
        assert client.post("/api/v1/assignments", json={**body, "unit_id": "before"}).status_code == 200
        holder.execute("LOCK TABLE exp.assignments IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        answer = client.post("/api/v1/assignments", json=body)
        assert (answer.status_code, answer.json()["retry_after"]) == (503, 5)
        assert 0.5 <= time.monotonic() - started < 0.5 + SLACK_SECONDS
        holder.rollback()
        assert client.post("/api/v1/assignments", json=body).json()["assignments"][0]["enrolled"] is True
        assert holder.execute(
            "SELECT count(*) FROM exp.assignments WHERE experiment_id = %s", (run_id,)
        ).fetchone() == (2,)


@pytest.mark.parametrize(("refresh", "statement"), [
    (3600, "ALTER TABLE exp.assignments RENAME TO elsewhere"),
    (0, "ALTER TABLE exp.assignments RENAME TO elsewhere"),
    (3600, "ALTER SYSTEM SET default_transaction_read_only = on"),
    (0, "ALTER SYSTEM SET default_transaction_read_only = on"),
])  # fmt: skip
def test_database_that_cannot_store_is_503(server: EmbeddedPostgres, refresh: float, statement: str) -> None:
    migrate(server.url)
    with psycopg.connect(server.url, autocommit=True) as connection:
        make_run(connection, "planner")
        _, key = make_api_key(connection, "web", ["assign"])
        headers = {"Authorization": f"Bearer {key}"}
        with (
            running_api(server.url, api_key_cache_seconds=60, experiments_refresh_seconds=refresh) as url,
            httpx.Client(base_url=url, headers=headers, timeout=30) as client,
        ):

            def ask(unit: str) -> httpx.Response:
                body = {"unit_type": "household", "unit_id": unit, "requested_experiments": ["planner"]}
                return client.post("/api/v1/assignments", json=body)

            assert ask("before").status_code == 200
            connection.execute(statement)
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lifecycle-api'"
            )
            answer = ask("during")
            assert (answer.status_code, answer.json()["error"], answer.json()["retry_after"]) == (
                503,
                "service_unavailable",
                5,
            )
