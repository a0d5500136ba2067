"""Servers to be measured: the API and the floors, each as a child process with a log of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load import Load, LoadError, run
from foundation.errors import LifecycleError
from foundation.settings import PROJECT_ROOT
from orchestration.local.processes import log_tail

START_SECONDS = 60.0
STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
# A measurement is of the settings it names, not of what the caller's shell happens to hold.
_OWN_SETTINGS = ("LIFECYCLE_", "DATABASE_URL", "REDIS_URL", "OTEL_")


class BenchError(LifecycleError):
    """A measurement can't be made; the message is one sentence: what is wrong, and where to look."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Processor time of the process so far, all threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def resident_mb(self) -> float:
        """What the process holds in memory now."""
        return float(self.process.memory_info().rss) / 2**20


def environment(home: Path, database_url: str, **settings: str) -> dict[str, str]:
    """A child's environment: this process's without its settings, and those given, by their field's name."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
    own = {f"LIFECYCLE_{name.upper()}": value for name, value in settings.items()}
    return {**kept, "LIFECYCLE_HOME": str(home), "DATABASE_URL": database_url, **own}


@contextmanager
def running(
    name: str, command: Sequence[str], port: int, given: Mapping[str, str], request: str, folder: Path
) -> Iterator[Server]:
    """Run `python -m COMMAND…` until the block ends; entered when it has answered `request` with 200.

    Raises BenchError, with the end of its log, when it ends or does not answer.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=dict(given), cwd=PROJECT_ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait(name, child, Load(port, request, connections=1, count=1), log)
        yield Server(name, port, psutil.Process(child.pid))
        if child.poll() is not None:
            raise BenchError(f"{name} ended with {child.returncode} while it was measured.{_end_of(log)}")
    finally:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait(name: str, child: subprocess.Popen[bytes], probe: Load, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if child.poll() is not None:
            raise BenchError(f"{name} ended with {child.returncode} before it answered.{_end_of(log)}")
        try:
            run(probe)
            return
        except LoadError as error:
            if time.monotonic() > deadline:
                raise BenchError(f"{name} does not answer: {error}{_end_of(log)}") from error
        time.sleep(_POLL_SECONDS)


def _end_of(log: Path) -> str:
    return "".join(f"\n  | {line}" for line in log_tail(log, 15))
