"""The files of the event archive: their keys, their columns, and reading them.

events/{year}/{month}/{day}/{hour}/events.parquet     an archived hour; empty if it has no events, missing if it was never archived
events/{year}/{month}/{day}/manifest.json             the contents of the day's files (`manifest.py`)
events/history/{year}-{month}.parquet                 everything before the lineage's first day
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundation.errors import LifecycleError
from foundation.object_store import ObjectStore

KNOWN_METRICS = ("latency_ms", "token_count", "input_tokens", "output_tokens", "cost_usd", "edit_count", "rating_mean")
"""Metrics that also have a column of their own: extracting them from a map (or jsonb) takes most of an aggregation's time."""

IDENTITY = ["event_id", "timestamp"]
"""The key of an event: the same id at another time is another event."""
ORDER = [("timestamp", "ascending"), ("event_id", "ascending")]
"""Order of the rows in every file."""
HISTORY_FOLDER = "events/history"

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
"""The columns that readers use. `context` and `payload` stay JSON text, because the product defines them. A metric that is not a number
is null."""

EXACT_COLUMNS = ("experiments_json", "metrics_json")
ARCHIVE_SCHEMA = pa.schema([*EVENT_SCHEMA, *((name, pa.string()) for name in EXACT_COLUMNS)])
"""The columns of a file: the typed ones, and the JSON they came from for an exact restore (PostgreSQL's numbers have more digits than a
float64). The JSON columns are null in files of older versions."""


def hour_key(hour: datetime) -> str:
    """The key of an hour's file."""
    return f"events/{hour:%Y/%m/%d/%H}/events.parquet"


def month_key(month: datetime) -> str:
    """The key of a history month's file."""
    return f"{HISTORY_FOLDER}/{month:%Y-%m}.parquet"


def day_folder(day: date) -> str:
    """The folder of a day's hours and its manifest."""
    return f"events/{day:%Y/%m/%d}"


def period_of(key: str) -> tuple[datetime, datetime]:
    """[start, end) of the hour or month that a file holds: the inverse of `hour_key` and `month_key`."""
    if is_history(key):
        start = datetime.strptime(key, f"{HISTORY_FOLDER}/%Y-%m.parquet").replace(tzinfo=UTC)
        return start, (start + timedelta(days=31)).replace(day=1)
    start = datetime.strptime(key, "events/%Y/%m/%d/%H/events.parquet").replace(tzinfo=UTC)
    return start, start + timedelta(hours=1)


def is_history(key: str) -> bool:
    """Whether a key is that of a history month."""
    return key.startswith(f"{HISTORY_FOLDER}/")


def period_name(key: str) -> str:
    """`events/2025/01/03/07/events.parquet` → `Hour 2025-01-03 07:00 UTC`."""
    start, _ = period_of(key)
    return f"History month {start:%Y-%m}" if is_history(key) else f"Hour {start:%Y-%m-%d %H}:00 UTC"


def name_some(names: Sequence[str]) -> str:
    """The first five names and the number of others, for a message: `a, b, c, d, e and 3 more`."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def archived_keys(store: ObjectStore, prefix: str = "events") -> list[str]:
    """The keys of every archived hour and history month under `prefix`, in order. Raises foundation.object_store.StoreError."""
    return [key for key in store.list(prefix) if key.endswith(".parquet")]


def read_archive(store: ObjectStore, key: str, columns: list[str] | None = None) -> pa.Table:
    """All events of a file, with all columns or only `columns`.

    Raises foundation.object_store.MissingObjectError if it was never archived.
    """
    # Not pq.read_table: for small files its threads take longer than the reading.
    return pq.ParquetFile(pa.BufferReader(store.read(key))).read(
        columns=columns or EVENT_SCHEMA.names, use_threads=False
    )


class BrokenFileError(LifecycleError):
    """An archive file can't be read; the message names it."""


@contextmanager
def open_archive(store: ObjectStore, key: str) -> Iterator["ArchivedFile"]:
    """Open an archive file for reading one row group at a time.

    Raises BrokenFileError, foundation.object_store.MissingObjectError, StoreError.
    """
    with store.local_file(key) as path:
        try:
            file = ArchivedFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise BrokenFileError(
                f"{period_name(key)}: {store.uri(key)} is not a complete Parquet file. Restore it from a backup of the store; or, if "
                "PostgreSQL still has all events of that time, remove the file and archive them again."
            ) from error
        with file:
            yield file


class ArchivedFile:
    """A local archive file, read one row group at a time. A context manager that closes it."""

    def __init__(self, path: Path) -> None:
        """Opens the file."""
        self._file = pq.ParquetFile(path)
        self.rows: int = self._file.metadata.num_rows
        self._last: tuple[int, pa.Table] | None = None

    def __enter__(self) -> "ArchivedFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def groups(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every row group in order, with all columns of ARCHIVE_SCHEMA or only `columns`."""
        for index in range(self._file.num_row_groups):
            yield self._read(index, columns)

    def first_times(self) -> list[datetime]:
        """The first time of each row group."""
        return [first for first, _ in self._bounds()]

    def between(self, start: datetime, end: datetime) -> pa.Table:
        """The rows of [start, end). Calls in order of time read every row group once or twice."""
        parts = [ARCHIVE_SCHEMA.empty_table()]
        for index, (first, last) in enumerate(self._bounds()):
            if first < end and last >= start:
                if self._last is None or self._last[0] != index:
                    self._last = (index, self._read(index))
                group = self._last[1]
                times = group["timestamp"].combine_chunks().cast(pa.int64()).to_numpy()
                low, high = times.searchsorted([microseconds(start), microseconds(end)])
                parts.append(group.slice(low, high - low))
        return pa.concat_tables(parts)

    def _bounds(self) -> list[tuple[datetime, datetime]]:
        bounds = []
        for index in range(self._file.num_row_groups):
            group = self._file.metadata.row_group(index)
            timestamp = next(i for i in range(group.num_columns) if group.column(i).path_in_schema == "timestamp")
            if group.num_rows:
                statistics = group.column(timestamp).statistics
                bounds.append((statistics.min, statistics.max))
        return bounds

    def _read(self, index: int, columns: list[str] | None = None) -> pa.Table:
        names = set(self._file.schema_arrow.names)
        fields = [field for field in ARCHIVE_SCHEMA if columns is None or field.name in columns]
        group = self._file.read_row_group(
            index, [field.name for field in fields if field.name in names], use_threads=False
        )
        return pa.table(
            [
                group[field.name].cast(field.type) if field.name in names else pa.nulls(group.num_rows, field.type)
                for field in fields
            ],
            schema=pa.schema(fields),
        )


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def moment_of(since_1970: int) -> datetime:
    """The moment in UTC of a number of microseconds since 1970."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=since_1970)
