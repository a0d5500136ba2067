"""Child processes: each starts in its own session, is recorded and watched, and is stopped together with everything it started.

A record in `run/NAME.json` outlives a killed supervisor, so that the next start can stop what it left running. Process numbers are
reused, and processes can leave a session. So each start has its own token, which all its processes inherit in their environment; a
process is ours if it has the token.
"""

import json
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from foundation.errors import LifecycleError
from orchestration.local.home import cannot_write, write_atomically
from orchestration.local.ports import require_free
from orchestration.local.probes import Probe
from orchestration.local.signals import uninterrupted

POLL_SECONDS = 0.1
STOP_SECONDS = 20.0
TOKEN_VARIABLE = "LIFECYCLE_START"
MOST_RESTARTS = 3
_TAIL_LINES = 6
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Service:
    """A process to run. `after` names the services that must be ready first; `port_setting` is the setting that chooses `port`."""

    name: str
    title: str
    command: tuple[str, ...]
    ready: Probe
    url: str | None = None
    port: int | None = None
    port_setting: str = ""
    after: tuple[str, ...] = ()
    deadline_seconds: float = 180.0


@dataclass(frozen=True)
class Record:
    """The content of `run/NAME.json` for a started process. It and all its children have `token` in `LIFECYCLE_START`."""

    name: str
    title: str
    pid: int
    token: str
    since: str
    url: str | None
    log: str

    @property
    def alive(self) -> bool:
        """Whether the recorded process itself is still running."""
        try:
            return _token(psutil.Process(self.pid)) == self.token
        except psutil.Error:
            return False


@dataclass
class _Child:
    service: Service
    process: subprocess.Popen[bytes] | None = None
    record: Record | None = None
    started: float = 0.0
    ready_after: float | None = None
    restarts: int = 0


@dataclass
class Supervisor:
    """The child processes of one command on one home."""

    home: Path
    environment: Mapping[str, str]
    say: Callable[[str], None] = print
    _children: dict[str, _Child] = field(default_factory=dict)

    def launch(self, services: Iterable[Service]) -> None:
        """Start the services whose predecessors are ready, and remember the others. Returns at once.

        Raises LifecycleError, before anything is started, if a port is in use.
        """
        new = list(services)
        for service in new:
            if service.port is not None:
                require_free(service.port, service.title, service.port_setting)
        self._children.update({service.name: _Child(service) for service in new})
        self.advance()

    def advance(self) -> bool:
        """Check every child once: start those that can start and note those that are ready. Returns whether all are ready.

        Raises LifecycleError, with the end of the log, if a child died or missed its deadline.
        """
        for child in self._children.values():
            if child.process is None:
                if all(self.ready(name) for name in child.service.after):
                    self._spawn(child)
                continue
            code = child.process.poll()
            if code is not None:
                raise LifecycleError(
                    _with_log(f"{child.service.title} ended {_how(code)}.", self.log_file(child.service.name))
                )
            if child.ready_after is None:
                self._look(child)
        return all(child.ready_after is not None for child in self._children.values())

    def wait_ready(self, names: Sequence[str] = (), on_tick: Callable[[], None] = lambda: None) -> None:
        """Wait until the named services (by default all) are ready.

        Each service has a deadline, so this ends. Raises LifecycleError, also if another service dies meanwhile.
        """
        wanted = list(names) or list(self._children)
        while True:
            self.advance()
            on_tick()
            if all(self.ready(name) for name in wanted):
                return
            time.sleep(POLL_SECONDS)

    def tend(self) -> None:
        """Check running children once. A dead one is reported and restarted, up to three times.

        Raises LifecycleError after that.
        """
        for child in self._children.values():
            code = child.process.poll() if child.process is not None else None
            if code is None:
                if child.ready_after is None:
                    self._look(child)
                continue
            message = _with_log(f"{child.service.title} ended {_how(code)}.", self.log_file(child.service.name))
            if child.restarts >= MOST_RESTARTS:
                raise LifecycleError(f"{message}\nIt was started {MOST_RESTARTS + 1} times, so everything is stopped.")
            child.restarts += 1
            self.say(f"{message}\nStarting it again ({child.restarts} of {MOST_RESTARTS}).")
            if child.record is not None:
                end_processes([child.record])
            child.ready_after = None
            self._spawn(child)

    def stop(self) -> None:
        """Stop every child and everything it started. Their records are kept until `forget`."""
        end_processes([child.record for child in self._children.values() if child.record is not None])
        for child in self._children.values():
            if child.process is not None:
                child.process.wait()

    def forget(self) -> None:
        """Remove the records of stopped children, after which the next start has nothing to clean up."""
        forget([child.record for child in self._children.values() if child.record is not None], self.home)
        self._children.clear()

    def ready(self, name: str) -> bool:
        """Whether a service is ready. A service that was never launched counts as ready."""
        child = self._children.get(name)
        return child is None or child.ready_after is not None

    def seconds(self, name: str) -> float | None:
        """How many seconds a service took to become ready; None while it is not ready."""
        child = self._children.get(name)
        return None if child is None else child.ready_after

    def log_file(self, name: str) -> Path:
        """The file for a service's output."""
        return self.home / "logs" / f"{name}.log"

    def _look(self, child: _Child) -> None:
        waited = time.monotonic() - child.started
        if child.service.ready():
            child.ready_after = waited
        elif waited > child.service.deadline_seconds:
            message = f"{child.service.title} was not ready within {child.service.deadline_seconds:.0f} s."
            raise LifecycleError(_with_log(message, self.log_file(child.service.name)))

    def _spawn(self, child: _Child) -> None:
        service, log = child.service, self.log_file(child.service.name)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            if log.exists():
                log.replace(log.with_suffix(".log.1"))
            since = datetime.now(UTC).isoformat(timespec="seconds")
            record = Record(service.name, service.title, 0, uuid.uuid4().hex, since, service.url, str(log))
            # Recorded with its token before it starts, and again with its number: a kill in between leaves no unknown process.
            write_record(self.home, record)
            with uninterrupted(), log.open("wb") as output:
                child.process = subprocess.Popen(
                    service.command,
                    cwd=self.home,
                    env={**self.environment, TOKEN_VARIABLE: record.token},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                child.started = time.monotonic()
                child.record = replace(record, pid=child.process.pid)
                write_record(self.home, child.record)
        except OSError as error:
            raise cannot_write(self.home, error) from error


def write_record(home: Path, record: Record) -> None:
    """Write a record to `run/`."""
    write_atomically(home / "run" / f"{record.name}.json", json.dumps(asdict(record), indent=1))


def records(home: Path) -> list[Record]:
    """Every record in `run/`, whether or not its process is alive. Files that are not valid records are removed."""
    valid = []
    for file in sorted((home / "run").glob("*.json")):
        try:
            valid.append(Record(**json.loads(file.read_text())))
        except (json.JSONDecodeError, TypeError):
            file.unlink(missing_ok=True)
    return valid


def end_processes(ended: Sequence[Record], seconds: float = STOP_SECONDS) -> int:
    """Terminate all processes of the recorded starts, and kill them after `seconds`; returns how many were running."""
    tokens = {record.token for record in ended}
    running = _members(tokens)
    for process in running:
        _signal(process, process.terminate)
    _wait_gone(running, seconds)
    # Search again: a process may have been forked while its parent was terminated.
    left = _members(tokens)
    for process in left:
        _signal(process, process.kill)
    _wait_gone(left, seconds)
    return len(running)


def forget(ended: Sequence[Record], home: Path) -> None:
    """Remove records from `run/`."""
    for record in ended:
        (home / "run" / f"{record.name}.json").unlink(missing_ok=True)


def log_tail(file: Path, lines: int = _TAIL_LINES) -> list[str]:
    """The last lines of a log, without colours and empty lines."""
    if not file.exists():
        return []
    kept = [_COLOURS.sub("", line).rstrip() for line in file.read_text(errors="replace").splitlines()]
    return [line for line in kept if line][-lines:]


def _members(tokens: set[str]) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        try:
            if _token(process) in tokens:
                members.append(process)
        except psutil.Error:
            # It ended meanwhile, or belongs to another user.
            continue
    return members


def _token(process: psutil.Process) -> str | None:
    """The token of a process; None for a zombie, which has ended."""
    return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(TOKEN_VARIABLE)


def _wait_gone(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until all have ended, at most `seconds`. A zombie has ended: where nothing reaps orphans, it stays listed for ever."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_runs(process) for process in processes):
        time.sleep(POLL_SECONDS / 2)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _how(code: int) -> str:
    return f"with exit code {code}" if code >= 0 else f"by signal {-code}"


def _with_log(sentence: str, log: Path) -> str:
    tail = log_tail(log)
    return (
        "\n".join([f"{sentence} Its full log: {log}", *(f"  | {line}" for line in tail)])
        if tail
        else f"{sentence} Its log {log} is empty."
    )
