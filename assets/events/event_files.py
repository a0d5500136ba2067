"""The files of the event archive: their keys, their columns, rows of `exp.events` as columns, and reading a file back.

Belongs here: one file. Does not belong here: which files are written when, or the count against PostgreSQL (`archive.py`).

    events/{year}/{month}/{day}/{hour}/events.parquet     an hour without a file was never archived; one without events has an empty file
    events/history/{year}-{month}.parquet                 everything before the lineage's first day
"""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.object_store import ObjectStore

KNOWN_METRICS = ("latency_ms", "token_count", "input_tokens", "output_tokens", "cost_usd", "edit_count", "rating_mean")
"""Metrics with a column of their own beside the map: reading them out of a map (or jsonb) is what aggregation spends its time on."""

SMALL_FILE_ROWS = 1_000
IDENTITY = ["event_id", "timestamp"]
"""What makes an event the same event: the same id at another time is another event."""

_TIME = pa.timestamp("us", tz="UTC")
EVENT_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("event_type", pa.string()),
        ("unit_type", pa.string()),
        ("unit_id", pa.string()),
        ("experiments", pa.list_(pa.struct([("experiment_id", pa.string()), ("variant_id", pa.string())]))),
        ("context", pa.string()),
        ("policy_version_id", pa.string()),
        ("session_id", pa.string()),
        ("metrics", pa.map_(pa.string(), pa.float64())),
        *((name, pa.float64()) for name in KNOWN_METRICS),
        ("payload", pa.string()),
        ("timestamp", _TIME),
        ("created_at", _TIME),
        ("flags", pa.list_(pa.string())),
    ]
)
"""`context` and `payload` stay JSON text: what is in them is the product's. A metric that is no number is null in the map."""


def hour_key(hour: datetime) -> str:
    """Key of an hour's file."""
    return f"events/{hour:%Y/%m/%d/%H}/events.parquet"


def month_key(month: datetime) -> str:
    """Key of a history month's file."""
    return f"events/history/{month:%Y-%m}.parquet"


def period_name(key: str) -> str:
    """`events/2025/01/03/07/events.parquet` → `Hour 2025-01-03 07:00 UTC`."""
    parts = key.split("/")
    if parts[1] == "history":
        return f"History month {parts[2].removesuffix('.parquet')}"
    year, month, day, hour = parts[1:5]
    return f"Hour {year}-{month}-{day} {hour}:00 UTC"


def event_table(rows: list[tuple[Any, ...]]) -> pa.Table:
    """Rows of the archive's query, in the order of its columns, as a table of EVENT_SCHEMA."""
    ids, types, unit_types, units, experiments, contexts, metrics, payloads, times, created, flags = zip(
        *rows, strict=True
    )
    context = [json.loads(text) for text in contexts]
    # parse_int=float: a number of a thousand digits becomes infinite instead of an error.
    numbers = [
        {name: _number(value) for name, value in json.loads(text, parse_int=float).items()} if text != "{}" else {}
        for text in metrics
    ]
    columns = {
        "event_id": ids,
        "event_type": types,
        "unit_type": unit_types,
        "unit_id": units,
        "experiments": [_experiments(text) for text in experiments],
        "context": contexts,
        "policy_version_id": [_text(one, "policy_version_id") for one in context],
        "session_id": [_text(one, "session_id") for one in context],
        "metrics": [list(one.items()) for one in numbers],
        **{name: [one.get(name) for one in numbers] for name in KNOWN_METRICS},
        "payload": payloads,
        "timestamp": times,
        "created_at": created,
        "flags": flags,
    }
    return pa.table([pa.array(columns[field.name], type=field.type) for field in EVENT_SCHEMA], schema=EVENT_SCHEMA)


def _number(value: Any) -> float | None:
    return value if isinstance(value, float) else None


def _text(context: Any, name: str) -> str | None:
    value = context.get(name) if isinstance(context, dict) else None
    return value if isinstance(value, str) else None


def _experiments(text: str) -> list[dict[str, str]]:
    return json.loads(text) if text != "[]" else []


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file; the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    # A dictionary for each column of an hour with ten events takes longer than all the rest.
    pq.write_table(table, sink, compression="zstd", use_dictionary=table.num_rows > SMALL_FILE_ROWS)
    return bytes(sink.getvalue())


def read_parquet(stored: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table in a file's bytes; with `columns` only those."""
    # Not through pq.read_table and its threads: for files this small they take longer than the reading.
    return pq.ParquetFile(pa.BufferReader(stored)).read(columns=columns, use_threads=False)


def read_archive(store: ObjectStore, key: str) -> pa.Table:
    """The events of one file. Raises assets.object_store.MissingObjectError when it was never archived."""
    return read_parquet(store.read(key))


def identities(table: pa.Table) -> list[tuple[str, int]]:
    """(event id, microseconds since 1970) of each row."""
    return list(zip(table["event_id"].to_pylist(), table["timestamp"].cast(pa.int64()).to_pylist(), strict=True))


def id_bits(event_id: str) -> int:
    """120 of an id's 128 bits as a number, to be summed; the archive's query does the same in SQL."""
    digits = uuid.UUID(event_id).hex
    return int(digits[:15], 16) + int(digits[17:], 16)


def moment_of(microseconds: int) -> datetime:
    """Microseconds since 1970 as a moment in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
