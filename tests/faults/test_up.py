"""`lifecycle up` in the background and without a terminal: every service answers, and one signal stops everything."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from local_support import gone, unused_ports, wait_until

from foundation.settings import settings
from orchestration.local.home import holder
from orchestration.local.processes import records

CLI = [sys.executable, "-m", "orchestration.cli"]
PORTS = ("PG", "DAGSTER", "MLFLOW", "API", "DOCS")
START_SECONDS = 240


@pytest.fixture
def ports(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free ports for every service, as settings of the test's home."""
    ports = dict(zip(PORTS, unused_ports(len(PORTS)), strict=True))
    for name, port in ports.items():
        monkeypatch.setenv(f"LIFECYCLE_{name}_PORT", str(port))
    settings.cache_clear()
    return ports


def lifecycle(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*CLI, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=180
    )


@contextmanager
def running_up(home: Path) -> Iterator[subprocess.Popen[str]]:
    """`lifecycle up` in the background, ready. It starts with SIGINT ignored, as in a shell without job control."""
    home.mkdir(exist_ok=True)
    output = home / "up.out"
    with output.open("w") as stream:
        process = subprocess.Popen(
            ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *CLI, "up"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        wait_until(
            lambda: process.poll() is not None or "Everything is running." in output.read_text(),
            "the whole platform",
            START_SECONDS,
        )
        assert process.poll() is None, output.read_text()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def everything_of(home: Path) -> list[psutil.Process]:
    """Every process of the home: services, their children, PostgreSQL."""
    roots = [psutil.Process(record.pid) for record in records(home)]
    postgres = psutil.Process(int((home / "postgres" / "data" / "postmaster.pid").read_text().split()[0]))
    return [process for root in (*roots, postgres) for process in (root, *root.children(recursive=True))]


def get(port: int, path: str = "/") -> httpx.Response:
    """Send a GET request to a service."""
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=30, trust_env=False, follow_redirects=True)


def test_up_serves_everything_and_one_signal_stops_it(home: Path, ports: dict[str, int]) -> None:
    with running_up(home) as up:
        assert get(ports["DAGSTER"], "/server_info").json()["dagster_webserver_version"]
        assert get(ports["MLFLOW"], "/health").text == "OK"
        assert get(ports["API"], "/readyz").status_code == 200
        assert "<title>dbt Docs</title>" in get(ports["DOCS"]).text

        shown = json.loads(lifecycle("status", "--json").stdout)
        assert shown["held_by"]["pid"] == up.pid
        assert {service["name"]: service["state"] for service in shown["services"]} == dict.fromkeys(
            ("postgres", "webserver", "mlflow", "api", "docs", "code", "daemon"), "running"
        )
        assert all(service["since"] for service in shown["services"])
        assert "password" not in json.dumps([process.cmdline() for process in everything_of(home)])

        everything = everything_of(home)
        assert len(everything) > len(PORTS)
        with psycopg.connect(settings().platform_url) as connection:
            connection.execute(
                "INSERT INTO exp.policies (id, name, description) VALUES (gen_random_uuid(), 'kept', 'by the test')"
            )
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 0
        assert [process for process in everything if not gone(process)] == []
    assert records(home) == [] and holder(home) is None

    started = lifecycle("db", "start")
    assert started.returncode == 0, started.stderr
    try:
        with psycopg.connect(settings().platform_url) as connection:
            assert connection.execute("SELECT description FROM exp.policies WHERE name = 'kept'").fetchall() == [
                ("by the test",)
            ]
    finally:
        assert lifecycle("db", "stop").returncode == 0


def test_down_stops_a_killed_up_and_a_running_one(home: Path, ports: dict[str, int]) -> None:
    with running_up(home) as up:
        everything = everything_of(home)
        up.kill()
        up.wait()
        assert all(record.alive for record in records(home)), (
            "the services ended with their supervisor, so this test shows nothing"
        )
        shown = json.loads(lifecycle("status", "--json").stdout)
        assert shown["held_by"] is None and shown["services"][0]["state"] == "running"

        ended = lifecycle("down")
        assert ended.returncode == 0, ended.stderr
        assert "that an earlier start had left running" in ended.stdout
        assert [process for process in everything if not gone(process)] == []

    with running_up(home) as up:
        everything = everything_of(home)
        ended = lifecycle("down")
        assert ended.returncode == 0 and f"process {up.pid}" in ended.stdout
        assert up.wait(5) == 0
        assert [process for process in everything if not gone(process)] == []
    assert os.path.exists(home / "settings.env")
