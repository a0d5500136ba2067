"""`lifecycle events dead-letters …` as a person runs it."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import psycopg
import pytest

from eventlog.dead_letters import store_dead_letter
from eventlog.erased_units import record_erased_unit
from eventlog.store import ensure_partitions
from eventlog.validation import Event

TODAY = datetime.now(UTC).date()


def letter(unit: str, at: datetime) -> Event:
    return Event(
        event_id=uuid4(), event_type="custom.x", unit_type="user", unit_id=unit, experiments=[], context={"mood": "Ω[bold]"},
        metrics={"latency_ms": 1.5}, payload={"plan_id": "p"}, timestamp=at, received_at=at,
    )  # fmt: skip


@pytest.fixture
def lifecycle(home: Path, database_url: str) -> Any:
    """Runs a command on a database with three letters: one of an old day, one of an erased unit, and one that is stored already."""
    ensure_partitions(database_url, TODAY - timedelta(days=30), 1, keep_days=1)
    now = datetime.now(UTC)
    letters = [letter("old", now - timedelta(days=20)), letter("gone", now), letter("known", now)]

    async def add() -> None:
        connection = await asyncpg.connect(database_url)
        for event in letters:
            await store_dead_letter(connection, event, "value too long", 3)
        await connection.close()

    asyncio.run(add())
    with psycopg.connect(database_url) as connection:
        record_erased_unit(connection, "user", "gone")
        known = letters[2]
        connection.execute(
            'INSERT INTO exp.events (id, event_type, unit_type, unit_id, "timestamp") VALUES (%s, %s, %s, %s, %s)',
            (known.event_id, known.event_type, known.unit_type, known.unit_id, known.timestamp),
        )

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "orchestration.cli", "events", "dead-letters", *arguments], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, env={**os.environ, "DATABASE_URL": database_url}, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_letters_are_listed_shown_replayed_and_dropped(lifecycle: Any, database_url: str) -> None:
    listed = lifecycle("list")
    assert [word in listed for word in ("user:old", "user:gone", "user:known", "value too long")] == [True] * 4
    assert "2 more are not shown" in lifecycle("list", "--limit", "1")
    shown = [json.loads(line) for line in lifecycle("show", "1", "3").splitlines()]
    numbers_units_tries = [(line["number"], line["event"]["unit_id"], line["tries"]) for line in shown]
    assert numbers_units_tries == [(1, "old", 3), (3, "known", 3)]
    assert shown[0]["event"]["context"] == {"mood": "Ω[bold]"}

    assert lifecycle("replay", "--all").strip() == "1 stored; 1 stored before; 1 dropped, since their unit was erased."
    assert lifecycle("list").strip() == "There are no dead letters."
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT unit_id, flags, payload FROM exp.events ORDER BY unit_id").fetchall()
    # The old event's day had no partition. The event was not late when it was received.
    assert rows == [
        ("known", [], None),
        ("old", ["no_experiment_context", "no_policy_version_id"], {"plan_id": "p"}),
    ]
    assert lifecycle("replay", "--all").strip() == "There are no dead letters."


def test_unknown_numbers_and_missing_arguments_are_errors(lifecycle: Any) -> None:
    assert "There is no dead letter 7, 9:" in lifecycle("replay", "1", "9", "7", code=1)
    assert "There is no dead letter 9:" in lifecycle("show", "9", code=1)
    assert "Give either the numbers of dead letters or --all" in lifecycle("replay", code=1)
    assert "Give either the numbers of dead letters or --all" in lifecycle("drop", "1", "--all", "--yes", code=1)
    assert lifecycle("drop", "1", "--yes").strip() == "1 dead letters are removed."
    assert "user:old" not in lifecycle("list") and "user:known" in lifecycle("list")
    assert msgspec.json.decode(lifecycle("show", "3"))["event"]["unit_id"] == "known"
