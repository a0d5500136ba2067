"""What must agree between PostgreSQL and a file: the number of events, their first and last time, and a checksum of their ids.

The checksum is the sum of both 64-bit halves of every id: it does not depend on the order or on how the rows were processed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from psycopg.rows import tuple_row

from eventlog.archive.files import IDENTITY, ArchivedFile, microseconds, moment_of
from eventlog.archive.rows import ID_PARTS

EVENTS = sql.Identifier("exp", "events")

_COUNTS = sql.SQL(
    """
SELECT date_bin({width}, "timestamp", timestamptz '2000-01-01 00:00Z'), count(*), min("timestamp"), max("timestamp"),
       sum(('x' || encode(substring(uuid_send(id) FROM 1 FOR 8), 'hex'))::bit(64)::bigint)
     + sum(('x' || encode(substring(uuid_send(id) FROM 9 FOR 8), 'hex'))::bit(64)::bigint)
FROM {source}
WHERE "timestamp" >= {start} AND "timestamp" < {end}
GROUP BY 1
"""
)
_NIBBLES = np.array(["0123456789abcdef".find(chr(byte)) % 256 for byte in range(256)], np.uint8)


class NotAnArchiveError(Exception):
    """A file does not hold events in order; the message is a clause that says what is wrong."""


@dataclass(frozen=True)
class Counted:
    """Counts of a set of events: their number, first and last time, and the checksum of their ids."""

    rows: int = 0
    first: datetime | None = None
    last: datetime | None = None
    checksum: int = 0

    def __add__(self, other: "Counted") -> "Counted":
        """The counts of both sets together, if they share no event."""
        firsts = [moment for moment in (self.first, other.first) if moment is not None]
        lasts = [moment for moment in (self.last, other.last) if moment is not None]
        return Counted(
            self.rows + other.rows,
            min(firsts, default=None),
            max(lasts, default=None),
            self.checksum + other.checksum,
        )

    def difference(self, file: "Counted") -> str | None:
        """A clause that says how a file differs from these counts; None if it does not."""
        if self.rows != file.rows:
            comparison = "fewer" if file.rows < self.rows else "more"
            return (
                f"{self.rows} events were counted and the file holds {file.rows}, "
                f"{abs(self.rows - file.rows)} {comparison}"
            )
        if (self.first, self.last) != (file.first, file.last):
            return (
                f"the counted times run from {self.first} to {self.last}, the file's from {file.first} to {file.last}"
            )
        if self.checksum != file.checksum:
            return f"both have {self.rows} events, but the checksums of their ids differ ({self.checksum} and {file.checksum})"
        return None


def count_in_database(
    connection: psycopg.Connection[Any],
    width: str,
    start: datetime | None,
    end: datetime,
    source: sql.Identifier = EVENTS,
) -> dict[datetime, Counted]:
    """Count the events of `source` in [start, end), or before `end` if there is no `start`.

    Returns counts by the beginning of each span of `width` (`1 minute`, `1 day`, …), in order; spans without events are left out.
    """
    query = _COUNTS.format(
        width=sql.Literal(width), source=source, start=sql.Literal(start or "-infinity"), end=sql.Literal(end)
    )
    with connection.cursor(row_factory=tuple_row) as cursor:
        counts = {
            span.astimezone(UTC): Counted(rows, first.astimezone(UTC), last.astimezone(UTC), int(checksum))
            for span, rows, first, last, checksum in cursor.execute(query)
        }
    # Sorted here: with ORDER BY, PostgreSQL expects many spans, sorts the events and takes 50 % longer.
    return dict(sorted(counts.items(), key=itemgetter(0)))


def count_table(table: pa.Table) -> Counted:
    """Count the events of a table whose rows are in the archive's order. Raises NotAnArchiveError for an invalid id."""
    if not table.num_rows:
        return Counted()
    times = table["timestamp"]
    first, last = microseconds_at(times, 0), microseconds_at(times, -1)
    halves = _id_halves(table["event_id"].combine_chunks())
    return Counted(table.num_rows, moment_of(first), moment_of(last), _exact_sum(halves))


def count_file(path: Path) -> Counted:
    """Count the events of a file; reads only ids and times, one row group at a time.

    Raises NotAnArchiveError if an event is in the file twice or out of order.
    """
    with ArchivedFile(path) as file:
        return count_groups(file.groups(IDENTITY))


def count_groups(groups: Iterable[pa.Table]) -> Counted:
    """Count the events of consecutive tables. Raises NotAnArchiveError as `count_file` does."""
    total, before = Counted(), None
    for group in groups:
        if not group.num_rows:
            continue
        times = group["timestamp"].cast(pa.int64()).combine_chunks()
        ids = group["event_id"].combine_chunks()
        if before is not None and before >= (times[0].as_py(), ids[0].as_py()):
            raise NotAnArchiveError(_out_of_order(before == (times[0].as_py(), ids[0].as_py()), 1))
        earlier, later = times[:-1], times[1:]
        same = pc.equal(earlier, later)
        unordered = pc.or_(pc.greater(earlier, later), pc.and_(same, pc.greater_equal(ids[:-1], ids[1:])))
        if pc.any(unordered).as_py():
            twice = pc.sum(pc.and_(same, pc.equal(ids[:-1], ids[1:]))).as_py()
            raise NotAnArchiveError(_out_of_order(bool(twice), twice))
        total = total + count_table(group)
        before = (times[-1].as_py(), ids[-1].as_py())
    return total


def _out_of_order(twice: bool, count: int) -> str:
    return f"{count} events are in the file twice" if twice else "the file's events are not in order"


def microseconds_at(times: pa.ChunkedArray, index: int) -> int:
    """One of a column's times, as microseconds since 1970."""
    return microseconds(times[index].as_py())


def _id_halves(texts: pa.Array) -> np.ndarray[Any, Any]:
    """Both halves of each id as signed 64-bit numbers, as PostgreSQL's `bit(64)::bigint` computes them."""
    count = len(texts)
    if pc.any(pc.not_equal(pc.binary_length(texts), 36)).as_py() or texts.null_count:
        raise NotAnArchiveError("an event id in the file does not have 36 characters")
    start = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset]
    characters = np.frombuffer(texts.buffers()[2], np.uint8)[start : start + 36 * count]
    values = np.take(_NIBBLES, characters).reshape(count, 36)
    nibbles = np.empty((count, 32), np.uint8)
    for (begin, end), at in ID_PARTS:
        nibbles[:, at : at + end - begin] = values[:, begin:end]
    if nibbles.max() > 15:
        raise NotAnArchiveError("an event id in the file has a character that is not a lower-case hexadecimal digit")
    return np.ascontiguousarray((nibbles[:, 0::2] << 4) | nibbles[:, 1::2]).view(">i8").astype(np.int64)


def _exact_sum(numbers: np.ndarray[Any, Any]) -> int:
    """The sum of 64-bit numbers, which may itself need more than 64 bits."""
    return (int((numbers >> 32).sum()) << 32) + int((numbers & 0xFFFFFFFF).sum())
