"""Shared by tests of the archive: days with partitions, events of every kind, and rows as PostgreSQL returns them."""

import json
import random
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from eventlog.partitions import ensure_event_partitions

FIRST = (datetime.now(UTC) - timedelta(days=60)).replace(hour=0, minute=0, second=0, microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
INSERT = """
INSERT INTO exp.events (id, event_type, unit_type, unit_id, experiments, context, metrics, payload, "timestamp", created_at, flags)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
HOSTILE = (
    "",
    " ",
    "null",
    '"',
    '","',
    "\\",
    "\\N",
    "a\tb\nc\r\n",
    "'; DROP TABLE x; --",
    "{}",
    "Ünïcödé",
    "\u2028",
    "👩‍👩‍👧",
    "\x7f",
    "\\u0000",
    "a, b",
    '": ',
)
NUMBERS = ("0", "-0.0", "1.10", "1e-400", "12345678901234567890123456789.000000001", "9" * 400, "1e5", "0.1", "7")


def prepare(connection: psycopg.Connection[Any]) -> None:
    """Create partitions from FIRST on."""
    ensure_event_partitions(connection, FIRST.date())
    connection.commit()


def event(moment: datetime, number: int, **fields: Any) -> tuple[Any, ...]:
    """A row for `insert`; `fields` replaces its values."""
    values = {
        "id": uuid.uuid5(uuid.NAMESPACE_OID, f"{number}"),
        "type": "plan_generated",
        "unit": f"h{number % 7}",
        "experiments": [{"experiment_id": str(uuid.UUID(int=1)), "variant_id": str(uuid.UUID(int=2))}],
        "context": {"policy_version_id": "v1", "session_id": f"s{number}", "name": "Ünïcödé"},
        "metrics": {"latency_ms": 12.5 + number, "own_metric": 3},
        "payload": {"plan_id": f"p{number}"},
        **fields,
    }
    documents = [json.dumps(values[name]) for name in ("experiments", "context", "metrics", "payload")]
    return (
        values["id"], values["type"], "household", values["unit"], *documents, moment, moment + timedelta(seconds=1), ["a_flag"],
    )  # fmt: skip


def hostile_events(seed: int, count: int, start: datetime, span: timedelta) -> list[tuple[Any, ...]]:
    """Rows with unusual values that PostgreSQL accepts: odd strings, numbers beyond any float, nulls, deep and empty documents."""
    draw = random.Random(seed)

    def document(depth: int = 0) -> str:
        kind = draw.randrange(7 if depth < 3 else 4)
        if kind < 4:
            return (json.dumps(draw.choice(HOSTILE)), draw.choice(NUMBERS), "null", "true")[kind]
        if kind == 4:
            return "[" + ", ".join(document(depth + 1) for _ in range(draw.randrange(4))) + "]"
        return (
            "{"
            + ", ".join(f"{json.dumps(draw.choice(HOSTILE))}: {document(depth + 1)}" for _ in range(draw.randrange(4)))
            + "}"
        )

    def metrics() -> str:
        names = draw.sample(["latency_ms", "cost_usd", "own", *HOSTILE], draw.randrange(5))
        return "{" + ", ".join(f"{json.dumps(name)}: {draw.choice(NUMBERS)}" for name in names) + "}"

    experiments = [
        "[]",
        json.dumps([{"experiment_id": str(uuid.UUID(int=1)), "variant_id": str(uuid.UUID(int=2))}] * 2),
        "[1, null]",
        '{"a": 1}',
    ]
    return [
        (
            uuid.UUID(int=draw.getrandbits(128)), f"custom.{draw.choice(HOSTILE)}"[:100], draw.choice(("user", "household", "session")),
            draw.choice(HOSTILE), draw.choice(experiments), document(), draw.choice((metrics(), metrics(), document())),
            draw.choice((None, document())), start + span * draw.random(), start + timedelta(microseconds=draw.randrange(10**12)),
            draw.sample(HOSTILE, draw.randrange(3)),
        )
        for _ in range(count)
    ]  # fmt: skip


def insert(connection: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows and commit."""
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, rows)
    connection.commit()


def stored_rows(connection: psycopg.Connection[Any], start: datetime, end: datetime) -> list[tuple[Any, ...]]:
    """All columns of all events of [start, end), numbers with all their digits."""
    rows = connection.execute(
        """
        SELECT id, event_type, unit_type, unit_id, experiments::text, context::text, metrics::text, payload::text, flags,
               "timestamp", created_at
        FROM exp.events WHERE "timestamp" >= %s AND "timestamp" < %s ORDER BY "timestamp", id
        """,
        (start, end),
    ).fetchall()
    connection.commit()
    return rows
