"""Writing one period's file: fresh events and what the archive held besides, merged in order, counted, and published whole."""

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
    """A period could not be archived, or was never archived; the message names it and the difference."""


@dataclass(frozen=True)
class Published:
    """A file as it was published, and what is in it."""

    facts: FileFacts
    counted: Counted


class PeriodFile:
    """A file in the making. Add its events in order of time, `publish`, and `close` in any case: nothing half written shows."""

    def __init__(self, store: ObjectStore, key: str, *, held: bool) -> None:
        """`held`: something lies under `key`, whose events go into the new file too."""
        self.key = key
        self._store = store
        self._stack = ExitStack()
        self._staged: Path = self._stack.enter_context(store.staged_file())
        self._writer = pq.ParquetWriter(
            self._staged, ARCHIVE_SCHEMA, compression="zstd", compression_level=1,
            # Dictionaries made the files a third bigger and took longer: zstd finds the repetitions by itself.
            # Statistics of everything else took a third of the time, and only time is ever looked for.
            use_dictionary=False, write_statistics=["timestamp"],
        )  # fmt: skip
        self._before: ArchivedFile | None = None
        if held:
            self._before = self._stack.enter_context(open_archive(store, key))
        self._kept = Counted()

    def close(self) -> None:
        """Take away what was not published."""
        self._stack.close()

    def add(self, fresh: pa.Table, start: datetime, end: datetime) -> None:
        """Write the fresh events of [start, end), and those that only the archive has."""
        if self._before is not None:
            only_archived = rows_without(self._before.between(start, end), fresh)
            if only_archived.num_rows:
                self._kept = self._kept + count_table(only_archived)
                fresh = pa.concat_tables([only_archived, fresh]).sort_by(ORDER)
        if fresh.num_rows:
            self._writer.write_table(fresh)

    def publish(self, expected: Counted) -> Published:
        """Close the file, read it back and hold it against what PostgreSQL counted; then it shows.

        Raises ArchiveError, foundation.object_store.StoreError; what was there before then stays.
        """
        self._writer.close()
        whole = expected + self._kept

        def verify(stored: Path) -> None:
            difference = _difference(stored, whole)
            if difference is None and self._before is not None and whole.rows < self._before.rows:
                difference = (
                    f"the archive holds {self._before.rows} events and the new file {whole.rows}; it may only grow"
                )
            if difference is not None:
                raise ArchiveError(
                    f"{period_name(self.key)}: {difference}; nothing was published. "
                    "Archive it again; if it stays, the events changed under the same key."
                )

        return Published(self._store.publish_file(self.key, self._staged, verify), whole)


def _difference(stored: Path, expected: Counted) -> str | None:
    try:
        return expected.difference(count_file(stored))
    except NotAnArchiveError as error:
        return str(error)


def rows_without(held: pa.Table, fresh: pa.Table) -> pa.Table:
    """The rows of `held` that are not among `fresh`, in order; an event is its id and time."""
    if not held.num_rows or not fresh.num_rows:
        return held
    numbered = held.select(IDENTITY).append_column("row", pa.array(range(held.num_rows), pa.int64()))
    rows = numbered.join(fresh.select(IDENTITY), keys=IDENTITY, join_type="left anti", use_threads=False)["row"]
    return held.take(rows.sort())
