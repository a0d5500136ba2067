"""`lifecycle events import` as a user runs it: killed and run again, its output and exit codes."""

import hashlib
import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import psycopg
import pytest
from demo_support import LIFECYCLE
from import_support import CLICKS, FIRST_DAY, TRIAL, rows, written

from eventlog.imports.judging import ROWS_AT_ONCE
from eventlog.imports.rows import EVENT_IDS
from eventlog.store import ensure_partitions

WAITS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
UNITS = 2 * ROWS_AT_ONCE + 500
SECONDS = 120


@pytest.fixture
def environment(database_url: str, home: Path) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": database_url, "LIFECYCLE_FIRST_DAY": FIRST_DAY.isoformat()}


def lifecycle(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(LIFECYCLE), "events", "import", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS)


def test_killed_import_is_completed_when_it_runs_again(
    database_url: str, environment: dict[str, str], tmp_path: Path
) -> None:
    content = "user,variant,at\n" + "".join(
        f"u{number},{'ab'[number % 2]},2020-01-02T00:00:00Z\n" for number in range(UNITS)
    )
    path, mapping = written(tmp_path, "log.csv", content), written(tmp_path, "mapping.yml", TRIAL)
    ensure_partitions(database_url, FIRST_DAY, 1)
    # An event of the second chunk that another, open transaction has stored: the import has to wait for it there.
    digest = hashlib.sha256(content.encode()).hexdigest()
    held = uuid.uuid5(EVENT_IDS, f"{digest}/0/{ROWS_AT_ONCE + 10}")
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as watcher:
        holder.execute(
            "INSERT INTO exp.events (id, event_type, unit_type, unit_id, timestamp) VALUES (%s, 'exposure', 'user', 'u', '2020-01-02Z')",
            (held,),
        )
        command = [str(LIFECYCLE), "events", "import", str(path), "--mapping", str(mapping)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + SECONDS
        while watcher.execute(WAITS).fetchone() is None:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        holder.rollback()
    assert rows(database_url, "SELECT count(*) FROM exp.events") == [(ROWS_AT_ONCE,)]
    assert rows(database_url, "SELECT count(*) FROM exp.imports") == [(0,)]

    done = lifecycle(environment, path, "--mapping", mapping)
    assert done.returncode == 0, done.stderr
    once = "SELECT count(*), count(DISTINCT id), count(DISTINCT unit_id) FROM exp.events"
    assert rows(database_url, once) == [(UNITS, UNITS, UNITS)]
    assert rows(database_url, "SELECT count(*), count(DISTINCT unit_id) FROM exp.assignments") == [(UNITS, UNITS)]
    assert rows(database_url, "SELECT counts ->> 'events' FROM exp.imports") == [(str(UNITS),)]
    assert "trial run 1 is completed" in done.stdout and "history_events" in done.stdout


def test_rejects_are_listed_and_stop_the_import_when_there_are_too_many(
    database_url: str, environment: dict[str, str], tmp_path: Path
) -> None:
    content = "user,at\nu1,2020-01-02T00:00:00Z\n,2020-01-02T00:00:00Z\n\xff,yesterday\n".encode("latin-1")
    path, mapping = written(tmp_path, "log.csv", content), written(tmp_path, "mapping.yml", CLICKS)
    listed = tmp_path / "rejects.jsonl"
    refused = lifecycle(environment, path, "--mapping", mapping, "--rejects", listed)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith(
        f"lifecycle: 2 of 3 rows of {path} are rejected, more than --max-rejects 0.01:"
    )
    assert rows(database_url, "SELECT count(*) FROM exp.audit_log") == [(0,)]
    records = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [(reject["line"], reject["reason"]) for reject in records] == [
        (3, "missing_unit_id"),
        (4, "invalid_timestamp"),
    ]
    assert records[0]["row"] == {"user": "", "at": "2020-01-02T00:00:00Z"} and records[1]["row"]["user"] == "\ufffd"

    checked = lifecycle(environment, path, "--mapping", mapping, "--max-rejects", "1", "--check")
    assert checked.returncode == 0 and "Nothing was stored" in checked.stdout
    assert rows(database_url, "SELECT count(*) FROM exp.events") == [(0,)]
    stored = lifecycle(environment, path, "--mapping", mapping, "--max-rejects", "1")
    assert stored.returncode == 0 and "missing_unit_id" in stored.stdout
    assert rows(database_url, "SELECT unit_id FROM exp.events") == [("u1",)]


def test_grown_log_is_reported(environment: dict[str, str], tmp_path: Path) -> None:
    content, mapping = "user,at\nu,2020-01-02T00:00:00Z\n", written(tmp_path, "mapping.yml", CLICKS)
    first = lifecycle(environment, written(tmp_path, "log.csv", content), "--mapping", mapping)
    assert first.returncode == 0 and "other content" not in first.stdout
    path = written(tmp_path, "log.csv", content + "v,2020-01-03T00:00:00Z\n")
    output = lifecycle(environment, path, "--mapping", mapping, "--check").stdout
    assert f"{path} was imported with other content on " in output and "without an `event_id` in the mapping" in output


@pytest.mark.parametrize(
    ("content", "mapping", "words"),
    [
        (b"", CLICKS, "is empty"),
        (b"user,at\n", CLICKS, "has no rows"),
        (b"usr,at\nu,2020-01-02T00:00:00Z\n", CLICKS, "has no column user: did you mean usr? It has usr, at."),
        (b"user,at\n", "event_type: click", "mapping.yml:1: The mapping needs unit_type and unit_id and timestamp."),
    ],
    ids=["empty", "no rows", "missing column", "wrong mapping"],
)
def test_user_error_is_reported_without_a_traceback(
    environment: dict[str, str], tmp_path: Path, content: bytes, mapping: str, words: str
) -> None:
    path = written(tmp_path, "log.csv", content)
    done = lifecycle(environment, path, "--mapping", written(tmp_path, "mapping.yml", mapping))
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
