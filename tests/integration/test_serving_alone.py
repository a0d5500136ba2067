"""The extra `serving` is complete: the wheel with that extra alone, in an empty virtual environment, serves assignments and events."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
from api_support import make_run
from conftest import free_port
from local_support import wait_until

from foundation.api_keys import make_api_key
from foundation.settings import PROJECT_ROOT

OTHER_ROOMS = re.compile(r"torch|transformers|peft|dagster|dbt|mlflow|numpy|pandas|polars|pyarrow")
NO_INDEX = "connection broken by"


@pytest.fixture
def serving_environment(tmp_path: Path) -> Path:
    """A virtual environment with `lifecycle[serving]`, built from a copy so that nothing is written into the repository."""
    source, environment = tmp_path / "source", tmp_path / "environment"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT_ROOT / name, source)
    for package in PROJECT_ROOT.glob("*/__init__.py"):
        shutil.copytree(package.parent, source / package.parent.name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", environment, "--retries", "1"]
    install: list[str | Path] = [
        "install",
        "--quiet",
        "--no-compile",
        f"{source}[serving]",
        "--constraint",
        PROJECT_ROOT / "constraints.txt",
    ]
    installed = subprocess.run([*pip, *install], capture_output=True, text=True, check=False, timeout=300)
    if installed.returncode != 0 and NO_INDEX in installed.stderr:
        pytest.skip(f"pip reaches no package index: {installed.stderr.splitlines()[0]}")
    assert installed.returncode == 0, installed.stderr
    return environment


@contextmanager
def served(environment: Path, database_url: str, home: Path) -> Iterator[httpx.Client]:
    """A client of `python -m serving` in the virtual environment, started without the variables and the folder of this process."""
    home.mkdir()
    port = free_port()
    variables = {
        "PATH": os.defpath,
        "DATABASE_URL": database_url,
        "LIFECYCLE_HOME": str(home),
        "LIFECYCLE_API_PORT": str(port),
        # A first day of today: partitions for nine weeks would take seconds.
        "LIFECYCLE_FIRST_DAY": str(datetime.now(UTC).date()),
    }
    command: list[str | Path] = [environment / "bin" / "python", "-m", "serving"]
    with (
        subprocess.Popen(command, cwd=home, env=variables) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):

        def ready() -> bool:
            assert process.poll() is None, "the process ended; its reason is on stderr"
            try:
                return client.get("/readyz").status_code == 200
            except httpx.ConnectError:
                return False

        try:
            wait_until(ready, "the API", 120)
            yield client
        finally:
            process.terminate()


def test_serving_extra_alone_answers_assignments_and_events(
    serving_environment: Path, database_url: str, tmp_path: Path
) -> None:
    (site_packages,) = serving_environment.glob("lib/python*/site-packages")
    names = {distribution.name for distribution in distributions(path=[str(site_packages)])}
    assert "lifecycle" in names
    assert [name for name in names if OTHER_ROOMS.match(name)] == []

    with psycopg.connect(database_url, autocommit=True) as connection:
        run_id, variants = make_run(connection, "exp")
        _, key = make_api_key(connection, "alone", ["assign", "ingest"])
        event = {
            "event_id": str(uuid4()),
            "event_type": "plan_accepted",
            "unit_type": "household",
            "unit_id": "h1",
            "experiments": [],
            "metrics": {"latency_ms": 41.5},
            "timestamp": "2026-01-05T18:00:00+00:00",
        }
        question = {"unit_type": "household", "unit_id": "h1", "requested_experiments": ["exp"]}
        with served(serving_environment, database_url, tmp_path / "home") as client:
            client.headers["Authorization"] = f"Bearer {key}"
            answer = client.post("/api/v1/assignments", json=question)
            stored = client.post("/api/v1/events", json=event)
            docs = client.get("/docs")
        assert answer.status_code == 200, answer.text
        (assignment,) = answer.json()["assignments"]
        assert assignment["experiment_id"] == str(run_id) and assignment["variant_id"] in map(str, variants.values())
        assert (stored.status_code, stored.json()["event_id"]) == (200, event["event_id"])
        assert docs.status_code == 200
        rows = connection.execute("SELECT variant_id::text, unit_id FROM exp.assignments").fetchall()
        assert rows == [(assignment["variant_id"], "h1")]
        assert connection.execute("SELECT id::text FROM exp.events").fetchall() == [(event["event_id"],)]
