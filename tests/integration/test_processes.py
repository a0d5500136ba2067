"""The supervisor, with real processes: startup, crashes, timeouts, ending children, and processes left behind by a killed supervisor."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from local_support import gone, unused_ports, wait_until

from foundation.errors import LifecycleError
from foundation.settings import settings
from orchestration.local.home import prepare
from orchestration.local.probes import answers, logged
from orchestration.local.processes import Record, Service, Supervisor, end_processes, log_tail, records, write_record

# A server that has a child in its own session, like a run that starts a training.
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
IGNORES_SIGNALS = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
print("ignoring signals", flush=True)
time.sleep(600)
"""


def server(port: int, name: str = "server", **options: object) -> Service:
    """A service that listens on a port."""
    command = (sys.executable, "-c", SERVER, str(port))
    url = f"http://127.0.0.1:{port}/"
    return Service(name, "The server", command, answers(url), url, port, "LIFECYCLE_API_PORT", **options)  # type: ignore[arg-type]


def script(text: str, ready: Callable[[], bool] = lambda: False, **options: object) -> Service:
    """A service from a few lines of Python."""
    return Service("script", "The script", (sys.executable, "-c", text), ready, **options)  # type: ignore[arg-type]


@pytest.fixture
def free_tcp_port() -> int:
    """A free port."""
    return unused_ports(1)[0]


@pytest.fixture
def supervisor(home: Path) -> Iterator[Supervisor]:
    """A supervisor whose children end with the test."""
    prepare(settings())
    supervisor = Supervisor(home, {**os.environ, "LIFECYCLE_HOME": str(home)}, say=lambda _sentence: None)
    yield supervisor
    supervisor.stop()
    supervisor.forget()


def child_of(supervisor: Supervisor, name: str = "server") -> psutil.Process:
    """The child process of the server."""
    wait_until(lambda: bool(log_tail(supervisor.log_file(name))), "the server's log")
    return psutil.Process(int(log_tail(supervisor.log_file(name))[0].split()[1]))


def test_service_is_ready_recorded_and_ended_with_its_child(
    supervisor: Supervisor, home: Path, free_tcp_port: int
) -> None:
    supervisor.launch([server(free_tcp_port)])
    supervisor.wait_ready()
    [record] = records(home)
    child = child_of(supervisor)

    assert record.alive and record.url == f"http://127.0.0.1:{free_tcp_port}/"
    assert os.getsid(record.pid) == record.pid != os.getsid(0)

    supervisor.stop()
    assert not record.alive and gone(child)
    assert records(home) == [record], "the record stays until forget() removes it"
    supervisor.forget()
    assert records(home) == []


def test_launch_fails_with_the_setting_when_the_port_is_in_use(supervisor: Supervisor, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            LifecycleError, match=rf"^Port {port} is in use, so The server can't start: .* LIFECYCLE_API_PORT\.$"
        ):
            supervisor.launch([server(port)])
    assert records(home) == []


def test_dead_service_is_reported_with_the_end_of_its_log(supervisor: Supervisor) -> None:
    supervisor.launch([script("import sys; print('a word'); sys.exit('the reason')")])
    with pytest.raises(
        LifecycleError, match=r"^The script ended with exit code 1\. Its full log: .*script\.log"
    ) as raised:
        supervisor.wait_ready()
    assert str(raised.value).endswith("  | a word\n  | the reason")


def test_service_that_is_never_ready_fails_at_its_deadline(supervisor: Supervisor) -> None:
    supervisor.launch([script("import time; time.sleep(600)", deadline_seconds=0.3)])
    with pytest.raises(LifecycleError, match=r"^The script was not ready within 0 s\."):
        supervisor.wait_ready()


def test_service_waits_for_its_predecessor(supervisor: Supervisor, home: Path, free_tcp_port: int) -> None:
    first = script(
        "import time; time.sleep(0.5); print('up', flush=True); time.sleep(600)",
        logged(home / "logs" / "script.log", "up"),
    )
    supervisor.launch([server(free_tcp_port, after=("script", "not launched")), first])
    assert [record.name for record in records(home)] == ["script"]
    supervisor.wait_ready(["server"])
    assert supervisor.ready("script")


def test_service_that_ignores_signals_is_killed(supervisor: Supervisor, home: Path) -> None:
    supervisor.launch([script(IGNORES_SIGNALS, logged(home / "logs" / "script.log", "ignoring signals"))])
    supervisor.wait_ready()
    [record] = records(home)
    started = time.monotonic()
    assert end_processes([record], seconds=0.5) == 1
    assert not record.alive and time.monotonic() - started < 5


def test_dead_service_is_restarted_three_times(supervisor: Supervisor, home: Path, free_tcp_port: int) -> None:
    messages: list[str] = []
    supervisor.say = messages.append
    supervisor.launch([server(free_tcp_port)])
    supervisor.wait_ready()

    def tended() -> bool:
        supervisor.tend()
        return True

    for attempt in (1, 2, 3):
        [before] = records(home)
        child = child_of(supervisor)
        os.kill(before.pid, signal.SIGKILL)
        wait_until(lambda: tended() and records(home)[0].pid != before.pid, "a new process")  # noqa: B023
        assert gone(child), "the dead server's child is still running"
        assert "The server ended by signal 9." in messages[-1] and f"({attempt} of 3)" in messages[-1]
        supervisor.wait_ready()

    os.kill(records(home)[0].pid, signal.SIGKILL)
    with pytest.raises(LifecycleError, match="started 4 times"):
        wait_until(lambda: not tended(), "giving up")


def test_processes_of_a_killed_supervisor_are_found_and_ended(home: Path, free_tcp_port: int) -> None:
    prepare(settings())
    record = _left_behind(home, free_tcp_port)
    assert record.alive
    children = psutil.Process(record.pid).children()

    assert end_processes(records(home)) == 2
    assert not record.alive and all(gone(child) for child in children) and len(children) == 1


def test_session_is_ended_when_its_leader_is_dead(home: Path, free_tcp_port: int) -> None:
    prepare(settings())
    record = _left_behind(home, free_tcp_port)
    [child] = psutil.Process(record.pid).children()
    os.kill(record.pid, signal.SIGKILL)
    wait_until(lambda: not record.alive, "the leader's end")

    assert end_processes(records(home)) == 1
    assert gone(child)


def test_process_with_a_reused_pid_is_left_alone(home: Path) -> None:
    prepare(settings())
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as stranger:
        record = Record("server", "The server", stranger.pid, "a token", "2026-01-05T00:00:00+00:00", None, "")
        write_record(home, record)
        assert records(home) == [record] and not record.alive
        assert end_processes([record]) == 0
        assert stranger.poll() is None
        stranger.kill()


def test_broken_record_is_removed(home: Path) -> None:
    prepare(settings())
    (home / "run" / "server.json").write_text('{"name": "ser')
    assert records(home) == []
    assert not (home / "run" / "server.json").exists()


def _left_behind(home: Path, port: int) -> Record:
    """Start a server from a process that is then killed. Returns the server's record."""
    text = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from test_processes import server
from orchestration.local.processes import Supervisor
home = Path({str(home)!r})
supervisor = Supervisor(home, {{**os.environ, "LIFECYCLE_HOME": str(home)}})
supervisor.launch([server({port})])
supervisor.wait_ready()
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", text], check=False, timeout=60, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [record] = records(home)
    return record
