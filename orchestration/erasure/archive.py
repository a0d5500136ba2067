"""A unit in the event archive and in the cleaned events: only the files that contain it are rewritten."""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from functools import partial
from itertools import groupby
from typing import Any

import msgspec
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg.rows import scalar_row

from eventlog.archive.archiving import archive_history, archive_hours
from eventlog.archive.counting import Counted, NotAnArchiveError, count_in_database, count_table
from eventlog.archive.files import ArchivedFile, archived_keys, is_history, period_of
from eventlog.archive.hours import ArchivedHour, archive_lock, archived_hours, record_late
from eventlog.archive.manifest import folder_of, read_manifest, record_files
from eventlog.archive.period_file import ArchiveError
from eventlog.archive.reader import EventReadError
from eventlog.archive.row_removal import rewrite_period
from foundation.object_store import FileFacts, ObjectStore, StoreError
from orchestration.erasure.findings import ErasureError, Found, Mode, Progress, Unit

CLEANED = "cleaned"
_LATE = "SELECT key FROM exp.archived_hours WHERE late ORDER BY hour"
_NAMES = ["unit_type", "unit_id"]
_RECONSTRUCTED = '{"reconstructed": true}'


class _Context(msgspec.Struct):
    policy_version_id: Any = None


class _Payload(msgspec.Struct):
    reconstructed: Any = None


_context = msgspec.json.Decoder(_Context).decode
_payload = msgspec.json.Decoder(_Payload).decode


def wait_for_archive(connection: psycopg.Connection[Any], days: Iterable[datetime], first_day: date) -> None:
    """Wait for archive and restore runs of these days to end: they may have read rows from before the erasure."""
    locks = {date.min if day.date() < first_day else day.date() for day in days}
    for day in sorted(locks):
        with archive_lock(connection, [day]):
            pass


def archived_events(
    connection: psycopg.Connection[Any],
    store: ObjectStore,
    unit: Unit,
    mode: Mode,
    first_day: date,
    on_progress: Progress,
) -> Iterator[Found]:
    """The unit's events in the archive. `connection` is idle.

    Raises ErasureError for files that can't be read or rewritten, and StoreError.
    """
    keys = archived_keys(store)
    if mode.change:
        _complete(connection, store, keys, first_day)
    rewritten = partial(_rewritten, unit=unit, pseudonym=mode.pseudonym)

    def erase_from(key: str) -> int:
        with store.local_file(key) as path, ArchivedFile(path) as file:
            mine = sum(pc.sum(_is_of(group, unit)).as_py() or 0 for group in file.groups(_NAMES))
            if not mine or not mode.change:
                return int(mine)
            kept = sum((count_table(rewritten(group)) for group in file.groups()), Counted())
        # Late events that are missing in the file are archived first: the rewritten file is recorded as holding all of PostgreSQL's.
        if not _holds_all(connection, key, kept):
            _archive(connection, store, key, first_day)
        # After a kill between the file and its row, the hour is archived again: by `_complete`, or by the schedule.
        with connection.transaction():
            record_late(connection, period_of(key)[0])
        rewrite_period(connection, store, key, rewritten)
        return int(mine)

    yield from _through("archived hours", store.uri("events"), keys, erase_from, mode.done, on_progress)


def cleaned_events(store: ObjectStore, unit: Unit, mode: Mode, on_progress: Progress) -> Iterator[Found]:
    """The unit's events in the cleaned days and the cleaned history. Raises ErasureError for files that can't be read, and StoreError."""

    def erase_from(key: str) -> int:
        with store.local_file(key) as path:
            mine = pc.sum(_is_of(pq.ParquetFile(path).read(_NAMES, use_threads=False), unit)).as_py() or 0
        if mine and mode.change:
            sink = io.BytesIO()
            cleaned = pl.read_parquet(io.BytesIO(store.read(key)))
            _rewritten_frame(cleaned, unit, mode.pseudonym).write_parquet(sink, compression="zstd")
            store.write(key, sink.getvalue())
        return int(mine)

    keys = [key for key in store.list(CLEANED) if key.endswith(".parquet")]
    yield from _through("cleaned days", store.uri(CLEANED), keys, erase_from, mode.done, on_progress)


def _through(
    what: str, place: str, keys: list[str], erase_from: Callable[[str], int], done: str, on_progress: Progress
) -> Iterator[Found]:
    """Call `erase_from`, which returns the unit's rows, for every file. A broken file does not stop the others."""
    rows = files = 0
    problems: list[str] = []
    for number, key in enumerate(keys):
        on_progress(what, number, len(keys))
        try:
            mine = erase_from(key)
        except pa.ArrowInvalid as error:
            problems.append(
                f"{place.removesuffix(key.partition('/')[0])}{key} can't be read ({error}): restore it from a backup."
            )
        except (ArchiveError, EventReadError, NotAnArchiveError) as error:
            problems.append(str(error))
        except StoreError as error:  # the next file would wait just as long for the store
            problems.append(str(error))
            break
        else:
            rows, files = rows + mine, files + bool(mine)
    on_progress(what, len(keys), len(keys))
    if rows:
        yield Found(f"{place}, {files:,} file{'s' * (files != 1)}", rows, done)
    if problems:
        more = f" {len(problems) - 1} more files failed too." if len(problems) > 1 else ""
        raise ErasureError(f"{problems[0]}{more}")


def _complete(connection: psycopg.Connection[Any], store: ObjectStore, keys: list[str], first_day: date) -> None:
    """Repair what a killed rewrite left: a file that its row does not describe, or a row that is missing in its manifest."""
    there = set(keys)
    with connection.cursor(row_factory=scalar_row) as cursor:
        marked = [key for key in cursor.execute(_LATE).fetchall() if key in there]
    rows = _rows(connection)
    for key in marked:
        if store.facts(key) != FileFacts(rows[key].bytes, rows[key].sha256):
            _archive(connection, store, key, first_day)
    rows = _rows(connection)
    for folder, inside in groupby(keys, folder_of):
        manifest = {file.key: file.sha256 for file in read_manifest(store, folder)}
        stale = [rows[key] for key in inside if key in rows and manifest.get(key) != rows[key].sha256]
        if stale:
            day = date.min if is_history(stale[0].key) else stale[0].hour.date()
            with archive_lock(connection, [day]):
                record_files(connection, store, [row for row in stale if row == _rows(connection)[row.key]])


def _holds_all(connection: psycopg.Connection[Any], key: str, kept: Counted) -> bool:
    """Whether a file that will hold `kept` contains all events that PostgreSQL has of its period."""
    with connection.transaction():
        counted = sum(count_in_database(connection, "1 hour", *period_of(key)).values(), Counted())
    return not counted.rows or (counted.rows, counted.checksum) == (kept.rows, kept.checksum)


def _archive(connection: psycopg.Connection[Any], store: ObjectStore, key: str, first_day: date) -> None:
    if is_history(key):
        archive_history(connection, store, first_day)
    else:
        archive_hours(connection, store, *period_of(key))


def _rows(connection: psycopg.Connection[Any]) -> dict[str, ArchivedHour]:
    """The row in exp.archived_hours of each file, by key."""
    ever = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    return {row.key: row for row in archived_hours(connection, *ever).values()}


def _is_of(table: pa.Table, unit: Unit) -> pa.ChunkedArray:
    mine = pc.and_(pc.equal(table["unit_type"], unit.unit_type), pc.equal(table["unit_id"], unit.unit_id))
    return pc.fill_null(mine, False)


def _rewritten(group: pa.Table, unit: Unit, pseudonym: str | None) -> pa.Table:
    mine = _is_of(group, unit)
    if pseudonym is None:
        return group.filter(pc.invert(mine))
    rows = mine.to_pylist()
    if not any(rows):
        return group
    changed = {
        "unit_id": pc.if_else(mine, pa.scalar(pseudonym), group["unit_id"]),
        "session_id": pc.if_else(mine, pa.scalar(None, pa.string()), group["session_id"]),
        "context": _where(rows, group["context"], _kept_context),
        "payload": _where(rows, group["payload"], _kept_payload),
    }
    for name, column in changed.items():
        group = group.set_column(group.schema.get_field_index(name), group.schema.field(name), column)
    return group


def _rewritten_frame(frame: pl.DataFrame, unit: Unit, pseudonym: str | None) -> pl.DataFrame:
    mine = (pl.col("unit_type") == unit.unit_type) & (pl.col("unit_id") == unit.unit_id)
    if pseudonym is None:
        return frame.filter(~mine)
    rows = frame.select(mine=mine)["mine"].to_list()
    texts = {
        name: pl.Series(name, _where(rows, frame[name].to_arrow(), change).to_pylist(), pl.String)
        for name, change in (("context", _kept_context), ("payload", _kept_payload))
    }
    nothing = pl.lit(None, pl.String)
    return frame.with_columns(
        pl.when(mine).then(pl.lit(pseudonym)).otherwise("unit_id").alias("unit_id"),
        *(pl.when(mine).then(nothing).otherwise(name).alias(name) for name in ("session_id", "plan_id")),
        *texts.values(),
    )


def _where(rows: list[bool], texts: Any, change: Any) -> pa.Array:
    return pa.array(
        [change(text) if mine else text for mine, text in zip(rows, texts.to_pylist(), strict=True)], pa.string()
    )


def _kept_context(text: str | None) -> str:
    """The same context that PostgreSQL keeps (database.py), formatted as jsonb formats it."""
    try:
        version = _context(text or "{}").policy_version_id
    except (msgspec.MsgspecError, RecursionError):
        version = None
    return json.dumps({"policy_version_id": version} if isinstance(version, str) else {}, ensure_ascii=False)


def _kept_payload(text: str | None) -> str | None:
    try:
        return _RECONSTRUCTED if _payload(text or "{}").reconstructed is True else None
    except (msgspec.MsgspecError, RecursionError):
        return None
