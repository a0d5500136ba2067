"""The measurements of storing and archiving events, each beside the least that PostgreSQL itself needs for the same rows.

Belongs here: made-up events, their floors. Does not belong here: requests over HTTP (assignments.py), the table (figures.py).
"""

import io
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from orchestration.bench.figures import Figure

EVENTS_DAY = date(2026, 1, 5)
COLUMNS = "id, event_type, unit_type, unit_id, experiments, context, metrics, payload, timestamp"


def measure_events(url: str, folder: Path, count: int, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Store and archive `count` made-up events of one day in the empty, migrated database at `url`; medians of `rounds`."""
    from experimentation.partitions import ensure_event_partitions

    with psycopg.connect(url) as connection:
        ensure_event_partitions(connection, EVENTS_DAY, 0)
        connection.commit()
        return _measure(connection, made_up_events(count), folder / "store", rounds, say)


def made_up_events(count: int) -> list[dict[str, Any]]:
    """Events of about 500 bytes over one day, the same each time."""
    start = datetime(EVENTS_DAY.year, EVENTS_DAY.month, EVENTS_DAY.day, tzinfo=UTC)
    return [
        {
            "event_id": f"00000000-0000-4000-8000-{number:012x}",
            "event_type": "plan_generated",
            "unit_type": "household",
            "unit_id": f"h{number % 5000}",
            "experiments": [],
            "context": {
                "policy_version_id": "00000000-0000-4000-8000-000000000001",
                "mode": "autopilot",
                "region": "north",
            },
            "metrics": {"latency_ms": number % 977, "token_count": number % 13, "cost_usd": 0.0},
            "payload": {
                "plan_id": f"p{number}",
                "meals": [{"day": day, "recipe_id": f"r{number % 97 + day}", "servings": 2} for day in range(5)],
            },
            "timestamp": start + timedelta(seconds=86_400 * number / count),
        }
        for number in range(count)
    ]


def _measure(
    connection: psycopg.Connection[Any],
    events: list[dict[str, Any]],
    store: Path,
    rounds: int,
    say: Callable[[str], None],
) -> list[Figure]:
    from assets.events.archive import archive_hours
    from assets.object_store import ObjectStore
    from experimentation.events import store_events

    day = datetime(EVENTS_DAY.year, EVENTS_DAY.month, EVENTS_DAY.day, tzinfo=UTC)
    lines = _copy_text(events)

    def empty() -> None:
        connection.execute("TRUNCATE exp.events")
        connection.commit()

    def ours_store() -> None:
        store_events(connection, events)
        connection.commit()

    def floor_store() -> None:
        with connection.cursor().copy(f"COPY exp.events ({COLUMNS}) FROM STDIN") as copy:
            copy.write(lines)
        connection.commit()

    def floor_read() -> None:
        with connection.cursor().copy(
            f"COPY (SELECT {COLUMNS} FROM exp.events ORDER BY timestamp, id) TO STDOUT"
        ) as copy:
            for _ in copy:
                pass
        connection.commit()

    archive = iter(range(rounds))

    def ours_archive() -> None:
        archive_hours(connection, ObjectStore(str(store / str(next(archive)))), day, day + timedelta(days=1))
        connection.commit()

    count = len(events)
    say(f"storing {count:,} events {rounds} times, ours and COPY")
    stored, floor = _median(rounds, ours_store, empty), _median(rounds, floor_store, empty)
    say(f"archiving {count:,} events {rounds} times, ours and COPY")
    archived, read = _median(rounds, ours_archive), _median(rounds, floor_read)
    return [
        Figure(
            path="store a batch: flags, idempotent, committed",
            what="events",
            per_second=count / stored,
            floor="COPY of the same rows in",
            floor_per_second=count / floor,
        ),
        Figure(
            path="archive a day: Parquet, read back, counted",
            what="events",
            per_second=count / archived,
            floor="COPY of the same rows out",
            floor_per_second=count / read,
        ),
    ]


def _median(rounds: int, work: Callable[[], None], before: Callable[[], None] = lambda: None) -> float:
    seconds = []
    for _ in range(rounds):
        before()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _copy_text(events: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    for event in events:
        values = [
            event["event_id"], event["event_type"], event["unit_type"], event["unit_id"], json.dumps(event["experiments"]),
            json.dumps(event["context"]), json.dumps(event["metrics"]), json.dumps(event["payload"]), event["timestamp"].isoformat(),
        ]  # fmt: skip
        text.write("\t".join(values) + "\n")
    return text.getvalue().encode()
