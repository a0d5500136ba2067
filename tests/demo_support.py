"""For tests of a whole installation: the command line in a separate process, with its own home and ports."""

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
    """A home and its ports."""

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
        """Start a command in its own session; returns the process and its output file."""
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
        """The address of a service (`API`, `DAGSTER`, …)."""
        return f"http://127.0.0.1:{self.environment[f'LIFECYCLE_{service}_PORT']}"

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Query the platform's database; the server is started for this if it is not running."""
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
    """Wait until `condition()` holds; fail with the output if the process ends first or takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(
                f"The command ended or took too long (exit code {process.poll()}): {output.read_text()[-3000:]}"
            )
        time.sleep(0.1)


def new_installation(folder: Path) -> Installation:
    """A new home with free ports and no settings from the environment."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LIFECYCLE_", "DAGSTER_", "MLFLOW_"))
    }
    environment.pop("DATABASE_URL", None)
    environment["LIFECYCLE_HOME"] = str(folder / "home")
    ports = unused_ports(len(PORTS))
    environment.update({f"LIFECYCLE_{name}_PORT": str(port) for name, port in zip(PORTS, ports, strict=True)})
    return Installation(folder / "home", environment)
