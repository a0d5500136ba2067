"""For tests of `lifecycle events import`: judges or stores a file by its mapping, as the command does."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from eventlog.imports.mapping import EventMapping
from eventlog.imports.mapping_file import read_mapping
from eventlog.imports.storing import EventImport, Imported, Progress
from eventlog.store import ensure_partitions
from foundation.table_files import open_table

FIRST_DAY = datetime.now(UTC).date() - timedelta(days=6)
CLICKS = """
event_type: custom.click
unit_type: user
unit_id: {column: user}
timestamp: {column: at}
"""
TRIAL = """
experiment:
  name: trial
  unit_type: user
  started: 2020-01-01T00:00:00Z
  ended: 2020-02-01T00:00:00Z
  variants:
    a: {role: control, allocation: 0.5}
    b: {role: treatment, allocation: 0.5}
variant: {column: variant}
event_type: custom.click
unit_id: {column: user}
timestamp: {column: at}
"""


def written(folder: Path, name: str, content: str | bytes) -> Path:
    """Write a file with this content into the folder; returns its path."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def mapping_of(folder: Path, text: str) -> EventMapping:
    """The mapping in this text."""
    return read_mapping(written(folder, "mapping.yml", text))


def judge(url: str, path: Path, mapping: EventMapping, rejects: Path | None = None) -> Imported:
    """Judge a file and store nothing."""
    return _with_import(url, path, mapping, lambda work: _judged(work, rejects))


def store(url: str, path: Path, mapping: EventMapping) -> Imported:
    """Judge a file, create its partitions and store it."""
    return judge_and_store(url, path, mapping, lambda doing, share: None)


def judge_and_store(url: str, path: Path, mapping: EventMapping, progress: Progress) -> Imported:
    """The same, and report progress."""

    def work_on(work: EventImport) -> Imported:
        judged = work.judge()
        ensure_partitions(url, FIRST_DAY, 1, judged.tally.days)
        return work.store(judged, actor="test")

    return _with_import(url, path, mapping, work_on, progress)


def rows(url: str, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """The rows that a query returns, with times in UTC."""
    with psycopg.connect(url, row_factory=tuple_row) as connection:
        connection.execute("SET timezone = 'UTC'")
        return connection.execute(query, values).fetchall()


def _judged(work: EventImport, rejects: Path | None) -> Imported:
    if rejects is None:
        return work.judge()
    with rejects.open("w", encoding="utf-8") as file:
        return work.judge(file)


def _with_import(
    url: str,
    path: Path,
    mapping: EventMapping,
    use: Callable[[EventImport], Imported],
    progress: Progress = lambda doing, share: None,
) -> Imported:
    with psycopg.connect(url, autocommit=True) as connection:
        table = open_table(path, mapping.header)
        return use(EventImport(connection, table, mapping, progress))
