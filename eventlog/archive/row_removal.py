"""Rewriting an archived file without some of its rows or with other values: the only way in which the archive shrinks."""

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
    """The rows of a file before and after; `written` is False if nothing had to change."""

    key: str
    rows_before: int
    rows_after: int
    written: bool


def rewrite_period(
    connection: psycopg.Connection[Any], store: ObjectStore, key: str, keep: Callable[[pa.Table], pa.Table]
) -> Rewritten:
    """Replace each row group of the file under `key` by the result of `keep`, then update the file's row and manifest.

    `keep` gets a table of ARCHIVE_SCHEMA and returns some of its rows in the same order, with the same ids and times; other values may
    change. First delete the same events from `exp.events` and commit: otherwise they would be archived again. If PostgreSQL has other
    events that are not in the file, the hour is marked as late. `connection` is idle; other writers of that day wait. Raises
    ArchiveError, foundation.object_store.MissingObjectError, StoreError.
    """
    start, end = period_of(key)
    with (
        archive_lock(connection, [date.min if is_history(key) else start.date()]),
        open_archive(store, key) as before,
        closing(PeriodFile(store, key, merge_existing=False)) as file,
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
        published = file.publish(counted)
        in_database, late = _count_in_database(connection, store, key, counted)
        # A late hour is recorded with zero counts: they never match PostgreSQL's, so that the next run archives it.
        row = archived_row(start, key, Counted() if late else in_database, published, datetime.now(UTC))
        record_files(connection, store, [row], late=late)
        return Rewritten(key, before.rows, published.counted.rows, written=True)


def _require_gone(connection: psycopg.Connection[Any], key: str, removed: Sequence[pa.Table]) -> None:
    """Raise ArchiveError if PostgreSQL still has any of the removed events."""
    for table in removed:
        columns = [table[name].to_pylist() for name in IDENTITY]
        with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
            count = cursor.execute(_STILL_THERE, (*period_of(key), *columns)).fetchone()
        if count:
            raise ArchiveError(
                f"{period_name(key)}: PostgreSQL still has {count} of the events to remove from the file; nothing was published. "
                "Delete the events from PostgreSQL first."
            )


def _count_in_database(
    connection: psycopg.Connection[Any], store: ObjectStore, key: str, in_file: Counted
) -> tuple[Counted, bool]:
    """PostgreSQL's events of a file's period, and whether any is not in the file. Memory holds the ids of one row group at a time."""
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
