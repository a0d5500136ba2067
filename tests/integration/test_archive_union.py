"""A file archived again after late events is the union of both, wherever the events lie and however small the slices are."""

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from archive_support import FIRST, HOUR, event, insert, prepare
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eventlog.archive import archiving as archive
from eventlog.archive.archiving import PeriodArchive, archive_history, archive_hours
from eventlog.archive.files import IDENTITY, read_archive
from foundation.object_store import ObjectStore

Run = Callable[[psycopg.Connection[Any], ObjectStore], list[PeriodArchive]]
MONTH = (FIRST - timedelta(days=40)).replace(day=1)
IN_THE_HOUR = 3_600_000_000
"""Microseconds of an hour. For a month, a moment is scaled to the same share of its first 28 days."""


def evenly(first: int, step: int, count: int) -> list[int]:
    return [first + step * number for number in range(count)]


dense = st.builds(evenly, st.integers(0, IN_THE_HOUR // 2), st.integers(0, 5_000_000), st.integers(1, 60))
sparse = st.lists(st.integers(0, IN_THE_HOUR - 1), max_size=40)
moments = st.builds(list.__add__, dense, sparse)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url) as opened:
        prepare(opened)
        yield opened


@pytest.mark.parametrize(
    ("start", "span", "run"),
    [
        (FIRST, HOUR, lambda connection, store: archive_hours(connection, store, FIRST, FIRST + HOUR)),
        (MONTH, timedelta(days=28), lambda connection, store: archive_history(connection, store, FIRST.date())),
    ],
    ids=["an hour", "a month of history"],
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(first=moments, late=moments, dropped=st.floats(0, 1), slice_rows=st.integers(1, 30))
@example(first=evenly(3_000, 3_000, 60), late=evenly(1_000, 3_000, 20), dropped=0, slice_rows=10)
def test_file_is_the_union_of_earlier_and_late_events(
    connection: psycopg.Connection[Any],
    tmp_path: Path,
    start: datetime,
    span: timedelta,
    run: Run,
    first: list[int],
    late: list[int],
    dropped: float,
    slice_rows: int,
) -> None:
    store = ObjectStore(str(tmp_path / uuid.uuid4().hex))
    connection.execute("DELETE FROM exp.events")
    connection.execute("DELETE FROM exp.archived_hours")
    rows = [event(start + span * (share / IN_THE_HOUR), number) for number, share in enumerate([*first, *late])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "SLICE_ROWS", slice_rows)
        insert(connection, rows[: len(first)])
        run(connection, store)
        gone = [row[0] for row in rows[: int(dropped * len(first))]]
        connection.execute("DELETE FROM exp.events WHERE id = ANY(%s)", (gone,))
        insert(connection, rows[len(first) :])

        (again,) = run(connection, store)
        (unchanged,) = run(connection, store)
    columns = read_archive(store, again.key, IDENTITY).to_pydict()
    expected = sorted((row[8], str(row[0])) for row in rows)
    assert list(zip(columns["timestamp"], columns["event_id"], strict=True)) == expected
    assert (again.rows, again.archived_only, unchanged.written) == (len(rows), len(gone), False)
