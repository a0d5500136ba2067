"""What keeps `python -m serving` from starting: one sentence on stderr, exit code 1, and no password in it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

NOWHERE = "postgresql://u:secret@127.0.0.1:1/x"


def start(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A start that is refused; one that is not runs into the timeout."""
    environment = {**os.environ, "LIFECYCLE_HOME": str(home), **variables}
    return subprocess.run(
        [sys.executable, "-m", "serving"], env=environment, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_taken(home: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(home, DATABASE_URL=NOWHERE, LIFECYCLE_API_HOST=host, LIFECYCLE_API_PORT=str(port))
    assert (done.returncode, done.stderr) == (
        1,
        f"Port {port} of {host} is taken: end what listens there, or set LIFECYCLE_API_PORT.\n",
    )


@pytest.mark.parametrize(("host", "said"), [("nowhere.invalid", "is no address:"), ("192.0.2.1", "of this machine:")])
def test_an_address_that_is_not_ours(home: Path, host: str, said: str) -> None:
    done = start(home, DATABASE_URL=NOWHERE, LIFECYCLE_API_HOST=host)
    assert done.returncode == 1
    assert done.stderr.startswith(f"LIFECYCLE_API_HOST={host} ") and said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://u:secret@h/x",
        "postgresql://u:secret@h:99999/x",
        "postgresql://u:secret@h/x?no_option=1",
        "host=h password=secret",
    ],
)
def test_a_database_url_that_is_none(home: Path, url: str) -> None:
    done = start(home, DATABASE_URL=url)
    assert (done.returncode, done.stderr) == (
        1,
        "DATABASE_URL is no PostgreSQL address: write it as postgresql://user:password@host:port/database.\n",
    )
