"""Faults while the local platform starts and stops: a run in flight, a killed supervisor, two commands on one home.

Uses a real embedded PostgreSQL and a real Dagster, with a code location whose only asset takes minutes.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from local_support import gone, unused_ports, wait_until

from foundation.errors import LifecycleError
from foundation.settings import settings
from orchestration.local import dagster_tables, services
from orchestration.local.databases import embedded_server
from orchestration.local.home import holder, locked, prepare
from orchestration.local.processes import records
from orchestration.local.services import CODE, DAGSTER
from orchestration.local.stack import Stack

TESTS = Path(__file__).parents[1]
LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
RUN = """query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"""
EVENTS = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events { ... on MessageEvent { message } } } } }"""
SLOW_JOB = {"repositoryLocationName": "orchestration", "repositoryName": "__repository__", "jobName": "slow_job"}


@pytest.fixture
def platform(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with free ports and the slow code location. Everything that a test leaves running is stopped."""
    for name, port in zip(("PG", "DAGSTER"), unused_ports(2), strict=True):
        monkeypatch.setenv(f"LIFECYCLE_{name}_PORT", str(port))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(services, "DEFINITIONS_MODULE", "slow_definitions")
    settings.cache_clear()
    yield home
    if home.exists():
        with Stack(settings(), "the end of a test", say=lambda _sentence: None):
            pass


def graphql(query: str, **variables: object) -> dict[str, dict[str, object]]:
    """Query the Dagster UI of this home."""
    url = f"http://127.0.0.1:{settings().dagster_port}/graphql"
    answer = httpx.post(url, json={"query": query, "variables": variables}, timeout=30, trust_env=False)
    return dict(answer.json()["data"])


def launch_slow_run() -> str:
    """Launch the slow job and wait until its step runs."""
    launched = graphql(LAUNCH, params={"selector": SLOW_JOB, "runConfigData": {}})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = str(launched["run"]["runId"])  # type: ignore[index]
    wait_until(lambda: graphql(RUN, id=run_id)["runOrError"]["status"] == "STARTED", "the run's start", 60)
    return run_id


def lifecycle_up() -> subprocess.CompletedProcess[str]:
    """Run `lifecycle up`, which is expected to refuse."""
    command = [sys.executable, "-m", "orchestration.cli", "up"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)


def test_a_run_in_flight_is_cancelled_when_the_platform_stops(platform: Path) -> None:
    with Stack(settings(), "a test", DAGSTER, say=lambda _sentence: None) as stack:
        stack.start()
        stack.wait()
        run_id = launch_slow_run()
        workers = [
            process for record in records(platform) for process in psutil.Process(record.pid).children(recursive=True)
        ]
    assert all(gone(worker) for worker in workers) and len(workers) >= 2
    assert records(platform) == [] and embedded_server(settings()).process() is None and holder(platform) is None

    with Stack(settings(), "a look", DAGSTER, say=lambda _sentence: None) as stack:
        stack.start()
        stack.wait()
        assert graphql(RUN, id=run_id)["runOrError"]["status"] == "CANCELED"


def test_leftovers_of_a_killed_start_are_stopped_and_its_run_is_marked_as_lost(platform: Path) -> None:
    text = f"""
import os, signal, sys
sys.path.insert(0, {str(TESTS / "faults")!r})
from foundation.settings import settings
from orchestration.local import dagster_tables, services
from orchestration.local.stack import Stack
services.DEFINITIONS_MODULE = "slow_definitions"
from test_stack import DAGSTER, launch_slow_run
with Stack(settings(), "lifecycle up", DAGSTER) as stack:
    stack.start()
    stack.wait()
    print(launch_slow_run(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", text], check=False, timeout=180, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_id = killed.stdout.split()[-1]
    left = records(platform)
    assert {record.name for record in left} == set(DAGSTER) and all(record.alive for record in left)
    code = psutil.Process(next(record.pid for record in left if record.name == CODE))
    workers = code.children(recursive=True)
    for process in (code, *workers):
        process.kill()

    messages: list[str] = []
    with Stack(settings(), "lifecycle up", DAGSTER, say=messages.append) as stack:
        assert not any(record.alive for record in left) and all(gone(worker) for worker in workers)
        stack.start()
        stack.wait()
        assert graphql(RUN, id=run_id)["runOrError"]["status"] == "FAILURE"
        log = [event.get("message", "") for event in graphql(EVENTS, id=run_id)["logsForRun"]["events"]]  # type: ignore[attr-defined]
        assert any("its process is gone" in line for line in log)
    assert messages[0].startswith("Stopped ") and "an earlier start had left running" in messages[0]
    assert "Marked 1 run(s) in Dagster as ended" in messages[1]


def test_definitions_that_cannot_be_loaded_are_reported_and_everything_stops(
    platform: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "DEFINITIONS_MODULE", "no_such_module")
    with (
        pytest.raises(LifecycleError, match=r"can't be loaded: .*No module named 'no_such_module'"),
        Stack(settings(), "a test", DAGSTER, say=lambda _sentence: None) as stack,
    ):
        stack.start()
        stack.wait()
    assert records(platform) == [] and embedded_server(settings()).process() is None


def test_a_second_command_on_a_home_is_refused_and_names_the_first(platform: Path) -> None:
    prepare(settings())
    with locked(platform, "lifecycle demo"):
        second = lifecycle_up()
    assert second.returncode == 1
    assert f"is in use by `lifecycle demo` (process {os.getpid()}" in second.stderr and second.stderr.count("\n") == 1


def test_a_port_in_use_is_reported_before_postgresql_starts(platform: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("LIFECYCLE_MLFLOW_PORT", str(port))
        second = lifecycle_up()
    assert second.returncode == 1
    assert second.stderr == (
        f"lifecycle: Port {port} is in use, so MLflow can't start: stop the program that listens there, "
        "or choose another port with LIFECYCLE_MLFLOW_PORT.\n"
    )
    assert not (platform / "postgres").exists()


def test_dagster_tables_exist_before_its_processes_start(platform: Path) -> None:
    """Processes that create them at the same time fail on each other's types, as happened at a first start on a busy machine."""
    with Stack(settings(), "a test", DAGSTER, say=lambda _sentence: None) as stack:
        dagster_url = stack.settings.sibling_url("dagster")
        assert dagster_tables.missing(dagster_url)
        stack.start()
        # `start` returns at once, and the processes take seconds before they use the database.
        assert not dagster_tables.missing(dagster_url)
        stack.wait()
