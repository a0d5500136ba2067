"""The measured servers: the API and the floors, each in a child process with its own log."""

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
NEVER_REACHED = "1000000000"
"""A rate limit for servers under load: limits are on, as in production, but never reached."""
# Settings in the caller's shell must not affect a measurement.
_OWN_SETTINGS = ("LIFECYCLE_", "DATABASE_URL", "REDIS_URL", "OTEL_")


class BenchError(LifecycleError):
    """A measurement failed; the message says what is wrong and where to look."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """The processor time of all threads of the process so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def resident_mb(self) -> float:
        """The process's current resident memory, in MB (2^20 bytes)."""
        return float(self.process.memory_info().rss) / 2**20


def environment(home: Path, database_url: str, **settings: str) -> dict[str, str]:
    """The environment of a child process: this process's, with its settings replaced by the given ones (by field name)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
    own = {f"LIFECYCLE_{name.upper()}": value for name, value in settings.items()}
    return {**inherited, "LIFECYCLE_HOME": str(home), "DATABASE_URL": database_url, **own}


@contextmanager
def running(
    name: str, command: Sequence[str], port: int, env: Mapping[str, str], request: str, folder: Path
) -> Iterator[Server]:
    """Run `python -m COMMAND…` for the block, which begins once it answers `request` with 200.

    Raises BenchError, with the end of its log, if it ends or does not answer.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=dict(env), cwd=PROJECT_ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait_for_answer(name, child, Load(port, request, connections=1, count=1), log)
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


def _wait_for_answer(name: str, child: subprocess.Popen[bytes], probe: Load, log: Path) -> None:
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
