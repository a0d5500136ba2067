"""The files of the event archive: their keys, their columns, and reading one back.

events/{year}/{month}/{day}/{hour}/events.parquet     an hour without a file was never archived; one without events has an empty file
events/{year}/{month}/{day}/manifest.json             what the day's files hold (`manifest.py`)
events/history/{year}-{month}.parquet                 everything before the lineage's first day
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundation.errors import LifecycleError
from foundation.object_store import ObjectStore

KNOWN_METRICS = ("latency_ms", "token_count", "input_tokens", "output_tokens", "cost_usd", "edit_count", "rating_mean")
"""Metrics with a column of their own beside the map: reading them out of a map (or jsonb) is what aggregation spends its time on."""

IDENTITY = ["event_id", "timestamp"]
"""What makes an event the same event: the same id at another time is another event."""
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
"""What readers use. `context` and `payload` stay JSON text: what is in them is the product's. A metric that is no number is null."""

EXACT_COLUMNS = ("experiments_json", "metrics_json")
ARCHIVE_SCHEMA = pa.schema([*EVENT_SCHEMA, *((name, pa.string()) for name in EXACT_COLUMNS)])
"""What a file holds: beside the typed columns the JSON that they came from, for a restore that is exact (PostgreSQL's numbers have more
digits than a float64). Null in files of older versions."""


def hour_key(hour: datetime) -> str:
    """Key of an hour's file."""
    return f"events/{hour:%Y/%m/%d/%H}/events.parquet"


def month_key(month: datetime) -> str:
    """Key of a history month's file."""
    return f"{HISTORY_FOLDER}/{month:%Y-%m}.parquet"


def day_folder(day: date) -> str:
    """Where a day's hours and its manifest lie."""
    return f"events/{day:%Y/%m/%d}"


def period_of(key: str) -> tuple[datetime, datetime]:
    """[start, end) of the hour or month that a file holds: the inverse of `hour_key` and `month_key`."""
    if key.startswith(f"{HISTORY_FOLDER}/"):
        start = datetime.strptime(key, f"{HISTORY_FOLDER}/%Y-%m.parquet").replace(tzinfo=UTC)
        return start, (start + timedelta(days=31)).replace(day=1)
    start = datetime.strptime(key, "events/%Y/%m/%d/%H/events.parquet").replace(tzinfo=UTC)
    return start, start + timedelta(hours=1)


def is_history(key: str) -> bool:
    """Whether a key is one of a history month."""
    return key.startswith(f"{HISTORY_FOLDER}/")


def period_name(key: str) -> str:
    """`events/2025/01/03/07/events.parquet` → `Hour 2025-01-03 07:00 UTC`."""
    start, _ = period_of(key)
    return f"History month {start:%Y-%m}" if is_history(key) else f"Hour {start:%Y-%m-%d %H}:00 UTC"


def archived_keys(store: ObjectStore, prefix: str = "events") -> list[str]:
    """The keys of every archived hour and history month under `prefix`, in order. Raises foundation.object_store.StoreError."""
    return [key for key in store.list(prefix) if key.endswith(".parquet")]


def read_archive(store: ObjectStore, key: str, columns: list[str] | None = None) -> pa.Table:
    """The events of one file, whole; with `columns` only those.

    Raises foundation.object_store.MissingObjectError when it was never archived.
    """
    # Not through pq.read_table and its threads: for small files they take longer than the reading.
    return pq.ParquetFile(pa.BufferReader(store.read(key))).read(
        columns=columns or EVENT_SCHEMA.names, use_threads=False
    )


class BrokenFileError(LifecycleError):
    """What lies under an archive's key can't be read; the message names it."""


@contextmanager
def open_archive(store: ObjectStore, key: str) -> Iterator["ArchivedFile"]:
    """One file of the archive, to be read a row group at a time.

    Raises BrokenFileError, foundation.object_store.MissingObjectError, StoreError.
    """
    with store.local_file(key) as path:
        try:
            file = ArchivedFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise BrokenFileError(
                f"{period_name(key)}: {store.uri(key)} is no whole Parquet file. Bring it back from a backup of the store; or, if "
                "PostgreSQL still has all events of that time, remove it and archive them again."
            ) from error
        with file:
            yield file


class ArchivedFile:
    """A file on this machine, read a row group at a time."""

    def __init__(self, path: Path) -> None:
        """Opens it; `close` when done."""
        self._file = pq.ParquetFile(path)
        self.rows: int = self._file.metadata.num_rows
        self._last: tuple[int, pa.Table] | None = None

    def __enter__(self) -> "ArchivedFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def groups(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every row group in order, with the columns of ARCHIVE_SCHEMA (or `columns`)."""
        for index in range(self._file.num_row_groups):
            yield self._read(index, columns)

    def first_times(self) -> list[datetime]:
        """Where each row group begins."""
        return [first for first, _ in self._bounds()]

    def between(self, start: datetime, end: datetime) -> pa.Table:
        """The rows of [start, end). Asked for in order of time, every row group is read once or twice."""
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
            leaf = next(i for i in range(group.num_columns) if group.column(i).path_in_schema == "timestamp")
            if group.num_rows:
                statistics = group.column(leaf).statistics
                bounds.append((statistics.min, statistics.max))
        return bounds

    def _read(self, index: int, columns: list[str] | None = None) -> pa.Table:
        names = set(self._file.schema_arrow.names)
        wanted = [field for field in ARCHIVE_SCHEMA if columns is None or field.name in columns]
        group = self._file.read_row_group(
            index, [field.name for field in wanted if field.name in names], use_threads=False
        )
        return pa.table(
            [
                group[field.name].cast(field.type) if field.name in names else pa.nulls(group.num_rows, field.type)
                for field in wanted
            ],
            schema=pa.schema(wanted),
        )


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def moment_of(since_1970: int) -> datetime:
    """Microseconds since 1970 as a moment in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=since_1970)
