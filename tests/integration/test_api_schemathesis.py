"""Schemathesis checks that the API behaves as its OpenAPI document says, for valid and invalid requests."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import httpx
import psycopg
import pytest
from api_support import make_run, running_api
from schemathesis.core.version import SCHEMATHESIS_VERSION

from foundation.api_keys import make_api_key

pytest_plugins = ["api_service"]

CONFIG = Path(__file__).parent.parent / "schemathesis.toml"
SECONDS = 300


def run_schemathesis(url: str, key: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(CONFIG), "run", f"{url}/openapi.json",
        "--header", f"Authorization: Bearer {key}", "--seed", "20250601", "--phases", "examples,coverage,fuzzing",
        "--generation-database", "none", "--no-color", *options,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_api_conforms_to_its_openapi_document(database_url: str) -> None:
    assert version("schemathesis") == SCHEMATHESIS_VERSION
    with psycopg.connect(database_url, autocommit=True) as connection:
        _, key = make_api_key(connection, "schemathesis", ["assign", "ingest", "admin", "read"])
        make_run(connection, "planner", targeting="context.platform == 'ios'")
    unlimited = {"rate_limit_unit_per_minute": 0, "rate_limit_key_per_minute": 0, "experiments_refresh_seconds": 0.5}
    with running_api(database_url, api_key_cache_seconds=5, **unlimited) as url:
        result = run_schemathesis(url, key, "--max-examples", "50")
    assert result.returncode == 0, result.stdout
    assert "12 selected / 12 total" in result.stdout


def test_schemathesis_notices_an_undocumented_response(
    database_url: str, make_client: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.openapi._ALL", ("413",))
    with running_api(database_url) as url:
        key = make_client(url, "assign").headers["authorization"].removeprefix("Bearer ")
        result = run_schemathesis(url, key, "--max-examples", "5", "--include-path", "/api/v1/assignments")
    assert result.returncode == 1
    assert "Undocumented" in result.stdout
