"""`python -m serving` fails with one sentence on stderr and exit code 1, without a password, if it can't start."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

NOWHERE = "postgresql://u:secret@127.0.0.1:1/x"


def start(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A start that fails. If it succeeds, the timeout ends it."""
    environment = {**os.environ, "LIFECYCLE_HOME": str(home), **variables}
    return subprocess.run(
        [sys.executable, "-m", "serving"], env=environment, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_start_fails_when_the_port_is_in_use(home: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(home, DATABASE_URL=NOWHERE, LIFECYCLE_API_HOST=host, LIFECYCLE_API_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Port {port} of {host} is already in use.") and "LIFECYCLE_API_PORT" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "words"), [("nowhere.invalid", "not a valid address"), ("192.0.2.1", "not an address of this machine")]
)
def test_start_fails_when_the_host_is_not_an_address_of_this_machine(home: Path, host: str, words: str) -> None:
    done = start(home, DATABASE_URL=NOWHERE, LIFECYCLE_API_HOST=host)
    assert done.returncode == 1
    assert done.stderr.startswith(f"LIFECYCLE_API_HOST={host} ") and words in done.stderr
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
def test_start_fails_when_the_database_url_is_invalid(home: Path, url: str) -> None:
    done = start(home, DATABASE_URL=url)
    assert done.returncode == 1
    assert done.stderr.startswith("DATABASE_URL is not a valid PostgreSQL URL.")
    assert done.stderr.count("\n") == 1 and "secret" not in done.stderr
