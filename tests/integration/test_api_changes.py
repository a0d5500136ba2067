"""A change of the served experiments reaches every instance, each in its own process, within a second."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from api_support import make_run, running_api
from conftest import free_port

from foundation.api_keys import make_api_key, revoke_api_key
from foundation.settings import PROJECT_ROOT

pytest_plugins = ["api_service"]

WITHIN_SECONDS = 1.0
# So long that only a notification can make an instance notice a change.
NEVER = {
    "LIFECYCLE_EXPERIMENTS_REFRESH_SECONDS": "3600",
    "LIFECYCLE_API_KEY_CACHE_SECONDS": "3600",
    "LIFECYCLE_RATE_LIMIT_UNIT_PER_MINUTE": "0",
}


@contextlib.contextmanager
def instance(database_url: str, home: Path, **environment: str) -> Iterator[str]:
    """The base URL of a new process `python -m serving`."""
    port = free_port()
    variables = {"DATABASE_URL": database_url, "LIFECYCLE_API_PORT": str(port), "LIFECYCLE_HOME": str(home)}
    child = subprocess.Popen(
        [sys.executable, "-m", "serving"],
        cwd=PROJECT_ROOT,
        env={**os.environ, **variables, **environment},
        stderr=subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url), 30)
        yield url
    finally:
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=30)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], seconds: float) -> float:
    """The seconds until the condition is true. Fails if that takes longer than `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "the condition did not become true in time"
    return time.monotonic() - began


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def ask(client: httpx.Client, unit: str, name: str = "planner") -> str:
    body = {"unit_type": "household", "unit_id": unit, "requested_experiments": [name]}
    answer = client.post("/api/v1/assignments", json=body)
    if answer.status_code != 200:
        return str(answer.json()["error"])
    body = answer.json()
    return str((body["assignments"] or body["skipped_experiments"])[0]["reason"])


async def distinct_answers(urls: list[str], headers: dict[str, str]) -> set[str]:
    """The distinct answers to a hundred concurrent requests for one new unit, half of them to each URL."""
    body = {"unit_type": "household", "unit_id": "raced", "requested_experiments": ["planner"]}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(headers=headers, timeout=30, limits=limits) as client:
        requests = (client.post(f"{urls[n % 2]}/api/v1/assignments", json=body) for n in range(100))
        return {answer.text for answer in await asyncio.gather(*requests)}


def test_two_processes_agree_and_notice_every_change(
    database_url: str, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    _run_id, variants = make_run(connection, "planner")
    _, key = make_api_key(connection, "web", ["assign"])
    headers = {"Authorization": f"Bearer {key}"}
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(instance(database_url, tmp_path / name, **NEVER)) for name in ("one", "two")]
        clients = [stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=30)) for url in urls]
        assert len(asyncio.run(distinct_answers(urls, headers))) == 1
        stored = connection.execute("SELECT count(*) FROM exp.assignments WHERE unit_id = 'raced'").fetchone()
        assert stored == (1,)

        def everywhere(unit: str, reason: str) -> Callable[[], bool]:
            return lambda: all(ask(client, unit) == reason for client in clients)

        for statement, unit, reason in (
            ("UPDATE exp.experiments SET status = 'paused'", "new", "paused"),
            ("UPDATE exp.experiments SET status = 'active'", "new", "assigned"),
            (f"UPDATE exp.experiments SET shipped_variant_id = '{variants['control']}', status = 'completed'", "raced", "shipped"),
            ("UPDATE exp.experiments SET shipped_variant_id = NULL", "raced", "not_active"),
        ):  # fmt: skip
            connection.execute(statement)
            assert until(everywhere(unit, reason), WITHIN_SECONDS) < WITHIN_SECONDS, statement
        revoke_api_key(connection, "web")
        until(everywhere("raced", "unauthorized"), WITHIN_SECONDS)


def test_changes_are_polled_while_the_listening_connection_is_lost(
    database_url: str, connection: psycopg.Connection[Any], make_client: Callable[..., httpx.Client]
) -> None:
    make_run(connection, "planner")
    with running_api(database_url, experiments_refresh_seconds=0.5, rate_limit_unit_per_minute=0) as url:
        client = make_client(url, "assign")
        assert ask(client, "u1") == "assigned"
        listening = (
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND query IN ('SELECT 1', 'LISTEN exp_changes') AND pid <> pg_backend_pid()"
        )
        until(lambda: bool(connection.execute(listening).fetchall()), 5)
        for (pid,) in connection.execute(listening).fetchall():
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        # The API polls, and listens again after a second.
        connection.execute("UPDATE exp.experiments SET status = 'paused'")
        assert until(lambda: ask(client, "u2") == "paused", WITHIN_SECONDS) < WITHIN_SECONDS
        until(lambda: bool(connection.execute(listening).fetchall()), 5)
        connection.execute("UPDATE exp.experiments SET status = 'active'")
        assert until(lambda: ask(client, "u3") == "assigned", WITHIN_SECONDS) < WITHIN_SECONDS


def test_change_is_noticed_even_if_its_notification_is_lost(
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.assignments.experiments_cache.MAX_AGE_SECONDS", 1.0)
    make_run(connection, "planner")
    with running_api(database_url, experiments_refresh_seconds=0.5, rate_limit_unit_per_minute=0) as url:
        client = make_client(url, "assign")
        assert ask(client, "u1") == "assigned"
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE exp.experiments SET status = 'completed'")
        until(lambda: ask(client, "u1") == "not_active", 5)


def test_changed_config_reaches_units_that_are_cached_in_memory(
    database_url: str, connection: psycopg.Connection[Any], make_client: Callable[..., httpx.Client]
) -> None:
    make_run(connection, "planner", variants={"only": ("control", "1", {"colour": "blue"})})
    body = {"unit_type": "household", "unit_id": "u1", "requested_experiments": ["planner"]}
    with running_api(
        database_url, experiments_refresh_seconds=3600, api_key_cache_seconds=3600, rate_limit_unit_per_minute=0
    ) as url:
        client = make_client(url, "assign")

        def colour() -> str:
            return str(client.post("/api/v1/assignments", json=body).json()["assignments"][0]["config"]["colour"])

        assert [colour(), colour()] == ["blue", "blue"]
        connection.execute("""UPDATE exp.variants SET config = '{"colour": "green"}'""")
        until(lambda: colour() == "green", WITHIN_SECONDS)
