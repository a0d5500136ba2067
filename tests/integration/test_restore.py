"""Dropped days are restored exactly, without erased units; an archived file can be rewritten without some of its rows."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from archive_support import DAY, FIRST, HOUR, event, hostile_events, insert, prepare, stored_rows
from typer.testing import CliRunner

from eventlog.archive import archiving as archive
from eventlog.archive.archiving import archive_hours
from eventlog.archive.files import archived_keys, hour_key, read_archive
from eventlog.archive.hours import archived_hours, waiting_hours
from eventlog.archive.manifest import day_manifest
from eventlog.archive.period_file import ArchiveError
from eventlog.archive.restore import restorable, restore_hours
from eventlog.archive.retention import apply_retention
from eventlog.archive.row_removal import Rewritten, rewrite_period
from eventlog.erased_units import record_erased_unit
from eventlog.partitions import ensure_event_days
from foundation.object_store import FileFacts, ObjectStore
from foundation.settings import settings

pytest_plugins = ["s3_service"]

TODAY = FIRST.date() + timedelta(days=12)
TO_DAY_TWO = (FIRST.date(), FIRST.date() + timedelta(days=2))


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as opened:
        prepare(opened)
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "store"))


def drop_days(connection: psycopg.Connection[Any], store: ObjectStore, days: int = 2) -> None:
    archive_hours(connection, store, FIRST, FIRST + days * DAY)
    # Days without events are dropped as well.
    dropped = {fate.day for fate in apply_retention(connection, store, 10, TODAY) if fate.dropped}
    assert dropped >= {FIRST.date() + number * DAY for number in range(days)}


def restore(
    connection: psycopg.Connection[Any], store: ObjectStore, keep_until: datetime | None = None
) -> tuple[int, int]:
    """The number of restored events, and of erased ones."""
    hours = restorable(store, *TO_DAY_TWO)
    restored = list(restore_hours(connection, store, hours, keep_until or datetime.now(UTC) + DAY))
    return sum(hour.new for hour in restored), sum(hour.erased for hour in restored)


@pytest.mark.parametrize(("seed", "where"), [(1, "folder"), (2, "folder"), (3, "s3")])
def test_restore_brings_days_back_exactly(
    connection: psycopg.Connection[Any],
    store: ObjectStore,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    where: str,
) -> None:
    if where == "s3":
        store = ObjectStore(request.getfixturevalue("s3_root"))
    monkeypatch.setattr(archive, "SLICE_ROWS", 40)
    insert(connection, hostile_events(seed, 400, FIRST, 2 * DAY))
    insert(connection, hostile_events(seed + 100, 200, FIRST + 5 * HOUR, timedelta(seconds=1)))
    before = stored_rows(connection, FIRST, FIRST + 2 * DAY)
    assert len(before) == 600
    drop_days(connection, store)
    assert stored_rows(connection, FIRST, FIRST + 2 * DAY) == []

    assert restore(connection, store) == (600, 0)
    assert stored_rows(connection, FIRST, FIRST + 2 * DAY) == before
    assert restore(connection, store) == (0, 0)
    # The archive has nothing to do, and retention keeps the days until the given time.
    assert waiting_hours(connection, FIRST.date(), FIRST + 2 * DAY) == []
    assert not any(hour.written for hour in archive_hours(connection, store, FIRST, FIRST + 2 * DAY))
    fates = list(apply_retention(connection, store, 10, TODAY))
    assert [fate.reason.split(",")[0] for fate in fates][:2] == ["restored"] * 2
    restore(connection, store, keep_until=datetime.now(UTC) - HOUR)
    assert [fate.dropped for fate in apply_retention(connection, store, 10, TODAY)][:2] == [True] * 2
    assert sum(hour.file_rows for day in (FIRST, FIRST + DAY) for hour in day_manifest(store, day.date())) == 600


def test_restore_keeps_existing_events_and_late_ones_wait_for_the_archive(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST + number * HOUR, number) for number in range(48)])
    drop_days(connection, store)
    hours = restorable(store, *TO_DAY_TWO)
    list(restore_hours(connection, store, hours[:2], datetime.now(UTC) + DAY))
    connection.execute("UPDATE exp.events SET unit_id = 'changed' WHERE timestamp = %s", (FIRST,))
    insert(connection, [event(FIRST + HOUR + timedelta(minutes=1), 1000)])
    assert restore(connection, store) == (46, 0)
    rows = stored_rows(connection, FIRST, FIRST + 2 * DAY)
    assert len(rows) == 49 and rows[0][3] == "changed"
    assert waiting_hours(connection, FIRST.date(), FIRST + 2 * DAY) == [FIRST + HOUR]
    archive_hours(connection, store, FIRST, FIRST + DAY)
    assert read_archive(store, hour_key(FIRST + HOUR)).num_rows == 2


def test_restore_fills_a_database_without_archive_records(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, hostile_events(7, 50, FIRST, 2 * DAY))
    before = stored_rows(connection, FIRST, FIRST + 2 * DAY)
    drop_days(connection, store)
    connection.execute("DELETE FROM exp.archived_hours")
    assert restore(connection, store) == (50, 0)
    assert stored_rows(connection, FIRST, FIRST + 2 * DAY) == before
    assert len(archived_hours(connection, FIRST, FIRST + 2 * DAY)) == 48


def test_restore_leaves_erased_units_out(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    insert(connection, [event(FIRST + number * HOUR, number, unit=f"ü:{number % 4}") for number in range(48)])
    drop_days(connection, store)
    record_erased_unit(connection, "household", "ü:1")
    assert restore(connection, store) == (36, 12)
    assert {row[3] for row in stored_rows(connection, FIRST, FIRST + 2 * DAY)} == {"ü:0", "ü:2", "ü:3"}
    assert waiting_hours(connection, FIRST.date(), FIRST + 2 * DAY) == []


def test_restore_uses_typed_columns_when_files_have_no_exact_ones(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST, 1)])
    before = stored_rows(connection, FIRST, FIRST + DAY)
    archive_hours(connection, store, FIRST, FIRST + DAY)
    sink = pa.BufferOutputStream()
    pq.write_table(read_archive(store, hour_key(FIRST)), sink)
    store.write(hour_key(FIRST), bytes(sink.getvalue()))
    connection.execute("DELETE FROM exp.events")
    connection.execute("DELETE FROM exp.archived_hours")
    archive_hours(connection, store, FIRST, FIRST + DAY)
    list(
        restore_hours(
            connection, store, restorable(store, FIRST.date(), FIRST.date() + timedelta(days=1)), datetime.now(UTC)
        )
    )
    (after,) = stored_rows(connection, FIRST, FIRST + DAY)
    documents = {4, 5, 6, 7}
    assert [json.loads(value) if index in documents else value for index, value in enumerate(after)] == [
        json.loads(value) if index in documents else value for index, value in enumerate(before[0])
    ]


def test_restore_is_refused_when_hours_were_never_archived_or_changed(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST + number * HOUR, number) for number in range(48)])
    archive_hours(connection, store, FIRST, FIRST + DAY + 5 * HOUR)
    with pytest.raises(
        ArchiveError, match=f"Never archived completely: {TO_DAY_TWO[0] + timedelta(days=1)}; nothing was restored"
    ):
        restorable(store, *TO_DAY_TWO)
    archive_hours(connection, store, FIRST, FIRST + 2 * DAY)
    store.write(hour_key(FIRST + 3 * HOUR), b"something else")
    with pytest.raises(ArchiveError, match=r"03:00 UTC: .* differs from its manifest"):
        restore(connection, store)


def test_rewrite_removes_a_unit_from_a_file(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "SLICE_ROWS", 10)
    insert(connection, [event(FIRST + timedelta(minutes=number), number) for number in range(60)])
    archive_hours(connection, store, FIRST, FIRST + HOUR)

    def keep(table: pa.Table) -> pa.Table:
        return table.filter(pc.not_equal(table["unit_id"], "h3"))

    with pytest.raises(ArchiveError, match="Delete the events from PostgreSQL first"):
        rewrite_period(connection, store, hour_key(FIRST), keep)
    connection.execute("DELETE FROM exp.events WHERE unit_id = 'h3'")
    assert rewrite_period(connection, store, hour_key(FIRST), keep) == Rewritten(hour_key(FIRST), 60, 51, True)
    assert rewrite_period(connection, store, hour_key(FIRST), keep) == Rewritten(hour_key(FIRST), 51, 51, False)
    assert "h3" not in read_archive(store, hour_key(FIRST))["unit_id"].to_pylist()
    (row,) = archived_hours(connection, FIRST, FIRST + HOUR).values()
    (entry,) = day_manifest(store, FIRST.date())
    assert (row.database_rows, row.file_rows, entry.file_rows, entry.sha256) == (51, 51, 51, row.sha256)
    assert store.facts(row.key) == FileFacts(row.bytes, row.sha256)
    (again,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert not again.written
    assert archived_keys(store) == [hour_key(FIRST)]


def test_events_missing_from_a_rewritten_file_are_late_and_not_lost(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST + timedelta(minutes=number), number) for number in range(10)])
    drop_days(connection, store, 1)
    ensure_event_days(connection, [FIRST.date()])
    # One of the two is in the archive.
    insert(connection, [event(FIRST + timedelta(minutes=number), number) for number in (4, 20)])

    def without(unit: str) -> Rewritten:
        return rewrite_period(
            connection, store, hour_key(FIRST), lambda table: table.filter(pc.not_equal(table["unit_id"], unit))
        )

    assert without("h3") == Rewritten(hour_key(FIRST), 10, 9, True)
    assert waiting_hours(connection, FIRST.date(), FIRST + DAY) == [FIRST]
    fate = next(apply_retention(connection, store, 10, TODAY))
    assert fate.reason == "events came since it was archived: hours 00 (UTC)"
    (hour,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert (hour.rows, hour.database_rows) == (10, 2)
    # PostgreSQL holds two of the events in the file, and no others.
    assert without("h2") == Rewritten(hour_key(FIRST), 10, 8, True)
    assert waiting_hours(connection, FIRST.date(), FIRST + DAY) == []
    assert next(apply_retention(connection, store, 10, TODAY)).dropped
    units = read_archive(store, hour_key(FIRST))["unit_id"].to_pylist()
    assert units == ["h0", "h1", "h4", "h5", "h6", "h0", "h1", "h6"]


def test_hour_is_late_when_postgresql_has_more_events_than_the_rewritten_file(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST, 1)])
    archive_hours(connection, store, FIRST, FIRST + HOUR)
    connection.execute("DELETE FROM exp.events")
    insert(connection, [event(FIRST + HOUR - timedelta(seconds=1), 2)])
    assert rewrite_period(connection, store, hour_key(FIRST), lambda table: table.slice(0, 0)).rows_after == 0
    assert waiting_hours(connection, FIRST.date(), FIRST + DAY) == [FIRST]
    assert [hour.rows for hour in archive_hours(connection, store, FIRST, FIRST + HOUR)] == [1]


def test_restore_command_reports_what_it_restored(
    connection: psycopg.Connection[Any], database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestration.cli import app

    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("LIFECYCLE_FIRST_DAY", str(FIRST.date()))
    settings.cache_clear()
    store = ObjectStore(settings().store_root)
    insert(connection, [event(FIRST + number * HOUR, number) for number in range(48)])
    drop_days(connection, store)
    first, last = str(FIRST.date()), str(FIRST.date() + timedelta(days=1))
    command = ["events", "restore", "--from", first, "--to", last, "--keep-days", "3"]
    output = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "48 events of " in output and "48 were restored, 0 were in PostgreSQL already." in output
    assert (
        "0 were restored, 48 were in PostgreSQL already."
        in CliRunner().invoke(app, command, catch_exceptions=False).output
    )
    backwards = CliRunner().invoke(app, ["events", "restore", "--from", "2025-01-02", "--to", "2025-01-01"])
    assert "give the first and the last day" in str(backwards.exception)
    today = CliRunner().invoke(
        app, ["events", "restore", "--from", str(FIRST.date()), "--to", f"{datetime.now(UTC):%Y-%m-%d}"]
    )
    assert "is not over yet (UTC): its events are still in PostgreSQL." in str(today.exception)
    history = CliRunner().invoke(app, ["events", "restore", "--from", "2001-01-02", "--to", "2001-01-03"])
    assert "history, which never leaves PostgreSQL" in str(history.exception)
