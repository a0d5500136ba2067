"""Writing the file of a period: new events merged with those already archived, in order, counted, and published atomically."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eventlog.archive.counting import Counted, NotAnArchiveError, count_file, count_table
from eventlog.archive.files import ARCHIVE_SCHEMA, IDENTITY, ORDER, ArchivedFile, open_archive, period_name
from foundation.errors import LifecycleError
from foundation.object_store import FileFacts, ObjectStore


class ArchiveError(LifecycleError):
    """A period can't be archived, or was never archived; the message names it and what is wrong."""


@dataclass(frozen=True)
class Published:
    """A published file and the counts of its events."""

    facts: FileFacts
    counted: Counted


class PeriodFile:
    """A file being written. Add its events in order of time, then `publish`, and always `close`: an incomplete file is never published."""

    def __init__(self, store: ObjectStore, key: str, *, merge_existing: bool) -> None:
        """`merge_existing`: the events of the existing file under `key` go into the new file too."""
        self.key = key
        self._store = store
        self._stack = ExitStack()
        self._staged: Path = self._stack.enter_context(store.staged_file())
        self._writer = pq.ParquetWriter(
            self._staged, ARCHIVE_SCHEMA, compression="zstd", compression_level=1,
            # Dictionaries made the files a third larger and took longer: zstd finds repetitions by itself.
            # Statistics of all columns took a third of the time, and readers only filter by time.
            use_dictionary=False, write_statistics=["timestamp"],
        )  # fmt: skip
        self._before: ArchivedFile | None = None
        if merge_existing:
            self._before = self._stack.enter_context(open_archive(store, key))
        self._kept = Counted()

    def close(self) -> None:
        """Remove the file if it was not published."""
        self._stack.close()

    def add(self, new: pa.Table, start: datetime, end: datetime) -> None:
        """Write the new events of [start, end) and those that only the archive has."""
        if self._before is not None:
            only_archived = rows_without(self._before.between(start, end), new)
            if only_archived.num_rows:
                self._kept = self._kept + count_table(only_archived)
                new = pa.concat_tables([only_archived, new]).sort_by(ORDER)
        if new.num_rows:
            self._writer.write_table(new)

    def publish(self, expected: Counted) -> Published:
        """Close the file, read it back, compare it with PostgreSQL's counts, and publish it.

        Raises ArchiveError, foundation.object_store.StoreError; then the previous file stays.
        """
        self._writer.close()
        total = expected + self._kept

        def verify(stored: Path) -> None:
            difference = _difference(stored, total)
            if difference is None and self._before is not None and total.rows < self._before.rows:
                difference = (
                    f"the archive holds {self._before.rows} events and the new file {total.rows}; it may only grow"
                )
            if difference is not None:
                raise ArchiveError(
                    f"{period_name(self.key)}: {difference}; nothing was published. "
                    "Archive it again; if it fails again, events changed under the same id and time."
                )

        return Published(self._store.publish_file(self.key, self._staged, verify), total)


def _difference(stored: Path, expected: Counted) -> str | None:
    try:
        return expected.difference(count_file(stored))
    except NotAnArchiveError as error:
        return str(error)


def rows_without(table: pa.Table, excluded: pa.Table) -> pa.Table:
    """The rows of `table` whose id and time are not in `excluded`, in order."""
    if not table.num_rows or not excluded.num_rows:
        return table
    numbered = table.select(IDENTITY).append_column("row", pa.array(range(table.num_rows), pa.int64()))
    rows = numbered.join(excluded.select(IDENTITY), keys=IDENTITY, join_type="left anti", use_threads=False)["row"]
    return table.take(rows.sort())
