"""The measurements of storing and archiving events, each beside the least that PostgreSQL itself needs for the same rows.

Belongs here: floors, ratios, the table. Does not belong here: limits that a test would fail on.
"""

import io
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from rich.table import Table

from orchestration.commands.console import console

ROUNDS = 3
EVENTS_DAY = date(2026, 1, 5)
COLUMNS = "id, event_type, unit_type, unit_id, experiments, context, metrics, payload, timestamp"


def bench(
    events: Annotated[int, typer.Option(min=1000, max=200_000, help="Events of each measurement.")] = 20_000,
    output: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Measure storing and archiving events against bare PostgreSQL, as ratios in one run, on a database of its own."""
    import tempfile

    from experimentation.migrate import migrate
    from experimentation.partitions import ensure_event_partitions
    from orchestration.local.ports import free_port
    from orchestration.local.postgres import EmbeddedPostgres

    out = console()
    with tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres", free_port())
        server.start()
        try:
            migrate(server.url)
            with psycopg.connect(server.url) as connection:
                ensure_event_partitions(connection, EVENTS_DAY, 0)
                connection.commit()
                figures = _measure(connection, made_up_events(events), Path(folder) / "store")
        finally:
            server.stop()
    table = Table("path", "events/s", "floor", "floor's events/s", "ratio")
    for figure in figures:
        table.add_row(
            figure["path"],
            f"{figure['per_second']:,.0f}",
            figure["floor"],
            f"{figure['floor_per_second']:,.0f}",
            f"{figure['ratio']:.2f}",
        )
    out.print(table)
    out.print(f"{events:,} events a round, median of {ROUNDS} rounds.", highlight=False)
    if output is not None:
        output.write_text(json.dumps(figures, indent=2) + "\n")


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


def _measure(connection: psycopg.Connection[Any], events: list[dict[str, Any]], store: Path) -> list[dict[str, Any]]:
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

    rounds = iter(range(100))

    def ours_archive() -> None:
        archive_hours(connection, ObjectStore(str(store / str(next(rounds)))), day, day + timedelta(days=1))
        connection.commit()

    count = len(events)
    stored, floor = _median(ours_store, empty), _median(floor_store, empty)
    archived, read = _median(ours_archive), _median(floor_read)
    return [
        _figure(
            "store a batch: flags, idempotent, committed",
            stored,
            "COPY of the same rows into the same table",
            floor,
            count,
        ),
        _figure(
            "archive a day: Parquet, read back, counted",
            archived,
            "COPY of the same rows out of the table",
            read,
            count,
        ),
    ]


def _median(work: Callable[[], None], before: Callable[[], None] = lambda: None) -> float:
    seconds = []
    for _ in range(ROUNDS):
        before()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _figure(path: str, ours: float, floor: str, floor_seconds: float, count: int) -> dict[str, Any]:
    return {
        "path": path,
        "per_second": count / ours,
        "floor": floor,
        "floor_per_second": count / floor_seconds,
        "ratio": floor_seconds / ours,
    }


def _copy_text(events: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    for event in events:
        values = [
            event["event_id"], event["event_type"], event["unit_type"], event["unit_id"], json.dumps(event["experiments"]),
            json.dumps(event["context"]), json.dumps(event["metrics"]), json.dumps(event["payload"]), event["timestamp"].isoformat(),
        ]  # fmt: skip
        text.write("\t".join(values) + "\n")
    return text.getvalue().encode()
