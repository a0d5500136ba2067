"""Writing an archived file anew without some of its rows, or with other values in them: the one way in which the archive shrinks."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Any

import psycopg
import pyarrow as pa
from psycopg.rows import scalar_row, tuple_row

from eventlog.archive.archiving import archived_row
from eventlog.archive.counting import Counted, count_in_database, count_table
from eventlog.archive.files import IDENTITY, is_history, open_archive, period_name, period_of
from eventlog.archive.hours import archive_lock, archived_hours
from eventlog.archive.manifest import record_files
from eventlog.archive.period_file import ArchiveError, PeriodFile, rows_without
from eventlog.archive.reader import snapshot
from foundation.object_store import ObjectStore

_STILL_THERE = """
SELECT count(*) FROM exp.events
WHERE "timestamp" >= %s AND "timestamp" < %s AND (id, "timestamp") IN (SELECT * FROM unnest(%s::uuid[], %s::timestamptz[]))
"""
_IDENTITIES = 'SELECT id::text, "timestamp" FROM exp.events WHERE "timestamp" >= %s AND "timestamp" < %s'


@dataclass(frozen=True)
class Rewritten:
    """A file before and after; `written` is False where nothing had to change."""

    key: str
    rows_before: int
    rows_after: int
    written: bool


def rewrite_period(
    connection: psycopg.Connection[Any], store: ObjectStore, key: str, keep: Callable[[pa.Table], pa.Table]
) -> Rewritten:
    """Write the file under `key` anew with what `keep` makes of each of its row groups, counted, then its row and manifest.

    `keep` gets a table of ARCHIVE_SCHEMA and returns rows of it in the same order, with the same ids and times; their other values may
    change. Take the same events out of `exp.events` first, and commit: what leaves the archive must not come back from there. Where
    PostgreSQL has other events that the file lacks, the hour is late. `connection` is idle, and other writers of that day wait. Raises
    ArchiveError, foundation.object_store.MissingObjectError, StoreError.
    """
    start, end = period_of(key)
    with (
        archive_lock(connection, [date.min if is_history(key) else start.date()]),
        open_archive(store, key) as before,
        closing(PeriodFile(store, key, held=False)) as file,
    ):
        counted, changed, removed = Counted(), False, []
        for group in before.groups():
            kept = keep(group)
            changed = changed or not kept.equals(group)
            counted = counted + count_table(kept)
            if kept.num_rows < group.num_rows:
                removed.append(rows_without(group, kept).select(IDENTITY))
            file.add(kept, start, end)
        if not changed:
            with connection.transaction():
                known = archived_hours(connection, start, end).get(start)
            record_files(connection, store, [], [known] if known else [])
            return Rewritten(key, before.rows, before.rows, written=False)
        _require_gone(connection, key, removed)
        done = file.publish(counted)
        in_database, late = _in_database(connection, store, key, counted)
        # The numbers of a late hour agree with no events that PostgreSQL has: whoever compares them archives it.
        row = archived_row(start, key, Counted() if late else in_database, done, datetime.now(UTC))
        record_files(connection, store, [row], late=late)
        return Rewritten(key, before.rows, done.counted.rows, written=True)


def _require_gone(connection: psycopg.Connection[Any], key: str, removed: Sequence[pa.Table]) -> None:
    """What is to leave the archive must have left PostgreSQL."""
    for table in removed:
        columns = [table[name].to_pylist() for name in IDENTITY]
        with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
            still = cursor.execute(_STILL_THERE, (*period_of(key), *columns)).fetchone()
        if still:
            raise ArchiveError(
                f"{period_name(key)}: PostgreSQL still holds {still} of the events that are to leave the file; nothing was published. "
                "Take the events out of PostgreSQL first."
            )


def _in_database(
    connection: psycopg.Connection[Any], store: ObjectStore, key: str, in_file: Counted
) -> tuple[Counted, bool]:
    """What PostgreSQL holds of a file's time, and whether any of it is not in the file; a row group's ids are held at once."""
    start, end = period_of(key)
    with snapshot(connection), open_archive(store, key) as file, connection.cursor(row_factory=tuple_row) as cursor:
        counted = sum(count_in_database(connection, "1 hour", start, end).values(), Counted())
        if not counted.rows or counted == in_file:
            return counted, False
        if counted.rows > in_file.rows:
            return counted, True
        bounds = [start, *file.first_times()[1:], end]
        for span, group in zip(pairwise(bounds), file.groups(IDENTITY), strict=True):
            archived = set(zip(*(group[name].to_pylist() for name in IDENTITY), strict=True))
            if any(event not in archived for event in cursor.execute(_IDENTITIES, span)):
                return counted, True
        return counted, False
