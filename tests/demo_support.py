"""For tests of a whole installation: the command line in a process of its own, with a home and ports of its own."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from local_support import unused_ports

from orchestration.local.postgres import EmbeddedPostgres

LIFECYCLE = Path(sys.executable).with_name("lifecycle")
PORTS = ("PG", "API", "DAGSTER", "MLFLOW", "DOCS")
DEMO_SECONDS = 900


@dataclass
class Installation:
    """One home with its ports."""

    home: Path
    environment: dict[str, str]

    def run(self, *arguments: str, seconds: float = DEMO_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [str(LIFECYCLE), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )

    def start(self, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a command in a session of its own; returns it and the file that its output goes to."""
        output = self.home.parent / f"output-{len(list(self.home.parent.glob('output-*')))}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [str(LIFECYCLE), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process, output

    def url(self, service: str) -> str:
        """Address of a service (`API`, `DAGSTER`, …)."""
        return f"http://127.0.0.1:{self.environment[f'LIFECYCLE_{service}_PORT']}"

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the platform's database, starting the server for it when none runs."""
        server = EmbeddedPostgres(self.home / "postgres", int(self.environment["LIFECYCLE_PG_PORT"]))
        running = server.running_port() is not None
        server.start()
        try:
            with psycopg.connect(server.url) as connection:
                return connection.execute(statement).fetchall()
        finally:
            if not running:
                server.stop()


def wait_for(condition: Any, process: subprocess.Popen[bytes], output: Path, seconds: float = DEMO_SECONDS) -> None:
    """Wait until `condition()` holds; fails with the output when the process ends first, or time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(
                f"The command ended or took too long (exit code {process.poll()}): {output.read_text()[-3000:]}"
            )
        time.sleep(0.1)


def new_installation(folder: Path) -> Installation:
    """A home of its own, with free ports and nothing set from outside."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LIFECYCLE_", "DAGSTER_", "MLFLOW_"))
    }
    environment.pop("DATABASE_URL", None)
    environment["LIFECYCLE_HOME"] = str(folder / "home")
    ports = unused_ports(len(PORTS))
    environment.update({f"LIFECYCLE_{name}_PORT": str(port) for name, port in zip(PORTS, ports, strict=True)})
    return Installation(folder / "home", environment)
