"""Writing an archived file anew without some of its rows, or with other values in them: the one way in which the archive shrinks.

Belongs here: the file, its row and its manifest together. Does not belong here: which rows, or PostgreSQL's own events.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pyarrow as pa

from assets.events.archive import archived_row
from assets.events.counting import Counted, count_in_database, count_table
from assets.events.event_files import is_history, open_archive, period_name, period_of
from assets.events.manifest import record_files
from assets.events.period_file import ArchiveError, PeriodFile
from assets.object_store import ObjectStore
from experimentation.archived_hours import archive_lock


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
    change. Take the same events out of `exp.events` first, and commit: the archive never holds fewer events than PostgreSQL. `connection`
    is idle, and other writers of that day wait. Raises ArchiveError, assets.object_store.MissingObjectError, StoreError.
    """
    start, end = period_of(key)
    with (
        archive_lock(connection, [date.min if is_history(key) else start.date()]),
        open_archive(store, key) as before,
        closing(PeriodFile(store, key, held=False)) as file,
    ):
        counted, changed = Counted(), False
        for group in before.groups():
            kept = keep(group)
            changed = changed or not kept.equals(group)
            counted = counted + count_table(kept)
            file.add(kept, start, end)
        if not changed:
            return Rewritten(key, before.rows, before.rows, written=False)
        with connection.transaction():
            spans = count_in_database(connection, "1 hour", start, end)
        in_database = sum(spans.values(), Counted())
        if in_database.rows > counted.rows:
            raise ArchiveError(
                f"{period_name(key)}: PostgreSQL holds {in_database.rows} events and the file would hold {counted.rows}; "
                "nothing was published. Take the events out of PostgreSQL first."
            )
        done = file.publish(counted)
        record_files(connection, store, [archived_row(start, key, in_database, done, datetime.now(UTC))])
        return Rewritten(key, before.rows, done.counted.rows, written=True)
