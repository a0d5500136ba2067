"""The archive with a real PostgreSQL, in a folder and on S3: nothing is lost or duplicated, or published before it is counted."""

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_support import DAY, FIRST, HOUR, event, hostile_events, insert, prepare

from eventlog.archive import archiving as archive
from eventlog.archive import manifest
from eventlog.archive import reader as event_reader
from eventlog.archive import rows as event_rows
from eventlog.archive.archiving import archive_history, archive_hours
from eventlog.archive.cleaning import clean_day, clean_history, read_cleaned
from eventlog.archive.counting import count_in_database
from eventlog.archive.files import HISTORY_FOLDER, archived_keys, hour_key, month_key, read_archive
from eventlog.archive.hours import mark_late_hours, waiting_hours
from eventlog.archive.manifest import day_manifest
from eventlog.archive.period_file import ArchiveError
from foundation.object_store import FileFacts, ObjectStore

pytest_plugins = ["s3_service"]


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url) as opened:
        prepare(opened)
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "store"))


def test_archive_writes_a_file_with_the_events_of_every_hour(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "SLICE_ROWS", 7)  # then hours span slices, and slices span hours
    rows = [event(FIRST + timedelta(minutes=13 * number), number) for number in range(60)]
    rows += [event(FIRST + 20 * HOUR, 1000), event(FIRST + 24 * HOUR - timedelta(microseconds=1), 1001)]
    insert(connection, [*rows, event(FIRST + 24 * HOUR, 1002), event(FIRST - timedelta(microseconds=1), 1003)])

    hours = archive_hours(connection, store, FIRST, FIRST + 24 * HOUR)

    assert [hour.start for hour in hours] == [FIRST + index * HOUR for index in range(24)]
    assert sum(hour.rows for hour in hours) == 62
    expected = [sum(FIRST + index * HOUR <= row[8] < FIRST + (index + 1) * HOUR for row in rows) for index in range(24)]
    assert [hour.database_rows for hour in hours] == expected
    assert 0 in expected
    assert archived_keys(store) == [hour_key(hour.start) for hour in hours]
    assert store.list("events/.staging") == []
    stored = pl.concat(pl.DataFrame(read_archive(store, hour.key)) for hour in hours)
    assert stored["event_id"].to_list() == [str(row[0]) for row in sorted(rows, key=lambda row: row[8])]
    first = stored.row(0, named=True)
    assert first["timestamp"] == FIRST
    assert json.loads(first["context"]) == {"policy_version_id": "v1", "session_id": "s0", "name": "Ünïcödé"}
    assert (first["policy_version_id"], first["session_id"], first["flags"]) == ("v1", "s0", ["a_flag"])
    assert first["metrics"] == [{"key": "latency_ms", "value": 12.5}, {"key": "own_metric", "value": 3.0}]
    assert (first["latency_ms"], first["cost_usd"]) == (12.5, None)
    assert first["experiments"] == [
        {"experiment_id": str(uuid.UUID(int=1)), "variant_id": str(uuid.UUID(int=2))},
    ]


def test_archiving_again_changes_nothing_but_adds_late_events(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST, 1), event(FIRST + HOUR, 2)])
    archive_hours(connection, store, FIRST, FIRST + 3 * HOUR)
    before = {key: store.read(key) for key in store.list()}

    again = archive_hours(connection, store, FIRST, FIRST + 3 * HOUR)
    assert [hour.written for hour in again] == [False, False, False]
    assert {key: store.read(key) for key in store.list()} == before

    insert(connection, [event(FIRST + timedelta(seconds=1), 3)])
    late = archive_hours(connection, store, FIRST, FIRST + 3 * HOUR)
    assert [(hour.rows, hour.written) for hour in late] == [(2, True), (1, False), (0, False)]


def test_archive_keeps_events_when_postgresql_dropped_them(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST, 1), event(FIRST + timedelta(minutes=1), 2)])
    archive_hours(connection, store, FIRST, FIRST + HOUR)
    connection.execute("DELETE FROM exp.events")
    # The same id at another time is another event.
    insert(connection, [event(FIRST + timedelta(minutes=2), 2)])

    (hour,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert (hour.rows, hour.database_rows, hour.archived_only, hour.written) == (3, 1, 2, True)
    minutes = read_archive(store, hour.key)["timestamp"].to_pylist()
    assert [moment.minute for moment in minutes] == [0, 1, 2]

    connection.execute("DELETE FROM exp.events")
    connection.commit()
    (hour,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert (hour.rows, hour.database_rows, hour.written) == (3, 0, True)


def replaced(table: pa.Table, column: str, value: Any) -> pa.Table:
    changed = [value, *table[column].to_pylist()[1:]]
    return table.set_column(
        table.schema.get_field_index(column),
        table.schema.field(column),
        pa.array(changed, table.schema.field(column).type),
    )


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda table: table.slice(1), "3 events were counted and the file holds 2, 1 fewer"),
        (lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, 2)]), "1 events are in the file twice"),
        (lambda table: table.take([1, 0, 2]), "the file's events are not in order"),
        (lambda table: replaced(table, "event_id", str(uuid.UUID(int=9))), "checksums of their ids differ"),
        (lambda table: replaced(table, "event_id", "9" * 35 + "G"), "not a lower-case hexadecimal digit"),
        (lambda table: replaced(table, "event_id", "9"), "does not have 36 characters"),
        (lambda table: replaced(table, "timestamp", FIRST + HOUR + timedelta(seconds=1)), "the counted times run from"),
    ],
)
def test_archive_fails_with_the_hour_and_publishes_nothing_when_counts_differ(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch, corrupt: Any, message: str
) -> None:
    insert(connection, [event(FIRST + HOUR + timedelta(minutes=number), number) for number in range(3)])
    event_table = event_rows.event_table
    monkeypatch.setattr(event_reader, "event_table", lambda raw: corrupt(event_table(raw)))
    with pytest.raises(ArchiveError, match=message) as raised:
        archive_hours(connection, store, FIRST, FIRST + 2 * HOUR)
    assert str(raised.value).startswith(f"Hour {FIRST:%Y-%m-%d} 01:00 UTC: ")
    assert not store.exists(hour_key(FIRST + HOUR))
    assert store.sweep(older_than_s=-1) == 0
    # The hour published before is recorded.
    assert [hour.key for hour in day_manifest(store, FIRST.date())] == [hour_key(FIRST)]


def test_archive_reads_rows_and_counts_in_one_snapshot_when_an_event_arrives(
    connection: psycopg.Connection[Any], database_url: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(connection, [event(FIRST, 1)])
    count = count_in_database

    def count_and_insert(*arguments: Any) -> Any:
        counted = count(*arguments)
        with psycopg.connect(database_url) as other:
            insert(other, [event(FIRST + timedelta(minutes=1), 2)])
        return counted

    monkeypatch.setattr(archive, "count_in_database", count_and_insert)
    assert [hour.rows for hour in archive_hours(connection, store, FIRST, FIRST + HOUR)] == [1]
    monkeypatch.undo()
    assert [hour.rows for hour in archive_hours(connection, store, FIRST, FIRST + HOUR)] == [2]


def test_archive_keeps_events_with_odd_values(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    odd = event(
        FIRST, 1, metrics={"latency_ms": "fast", "token_count": 10**400, "b": True}, context=["a list"], payload=None
    )
    deep: Any = None
    for _ in range(900):  # about as deep as json.dumps can write
        deep = {"a": deep}
    insert(
        connection,
        [
            odd,
            event(FIRST + timedelta(minutes=1), 2),
            event(FIRST + 2 * timedelta(minutes=1), 3, metrics=deep, context=deep),
        ],
    )
    (hour,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    row, usual, _ = pl.DataFrame(read_archive(store, hour.key)).rows(named=True)
    assert {pair["key"]: pair["value"] for pair in row["metrics"]} == {
        "latency_ms": None,
        "token_count": float("inf"),
        "b": None,
    }
    assert (row["payload"], row["session_id"]) == ("null", None)
    assert (usual["session_id"], usual["latency_ms"]) == ("s2", 14.5)


def test_archive_is_the_same_when_metrics_are_parsed_in_python(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = hostile_events(1, 300, FIRST, HOUR)
    for part in range(0, 300, 3):  # so that some slices have no odd values
        rows[part] = event(
            FIRST + HOUR + timedelta(seconds=part), part, metrics={"latency_ms": part, "x": 1e-7, "cost_usd": 0.1}
        )
        rows[part + 1] = event(FIRST + 2 * HOUR + timedelta(seconds=part), part, metrics={}, context={})
    insert(connection, rows)
    monkeypatch.setattr(archive, "SLICE_ROWS", 1)
    keys = [hour.key for hour in archive_hours(connection, store, FIRST, FIRST + 3 * HOUR)]
    by_arrow = [read_archive(store, key) for key in keys]
    connection.execute("DELETE FROM exp.archived_hours")
    connection.commit()
    store.delete_prefix("events")
    monkeypatch.setattr(event_rows, "_pairs_of_numbers", lambda texts: None)
    archive_hours(connection, store, FIRST, FIRST + 3 * HOUR)
    assert [read_archive(store, key) for key in keys] == by_arrow


def test_archive_fails_when_an_archived_file_is_missing(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST, 1)])
    archive_hours(connection, store, FIRST, FIRST + HOUR)
    connection.execute("DELETE FROM exp.events")
    connection.commit()
    store.delete(hour_key(FIRST))
    with pytest.raises(ArchiveError, match=r"1 events were archived, but their file .* is missing"):
        archive_hours(connection, store, FIRST, FIRST + HOUR)


def test_parallel_runs_of_a_day_lose_nothing(
    connection: psycopg.Connection[Any], database_url: str, store: ObjectStore
) -> None:
    insert(connection, [event(FIRST + number * timedelta(minutes=6), number) for number in range(240)])

    def run(hours: range) -> None:
        with psycopg.connect(database_url) as own:
            for hour in hours:
                archive_hours(own, store, FIRST + hour * HOUR, FIRST + (hour + 1) * HOUR)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, (range(0, 24, 2), range(23, 0, -2), range(6, 12))))
    hours_in_manifest = day_manifest(store, FIRST.date())
    assert [hour.key for hour in hours_in_manifest] == [hour_key(FIRST + hour * HOUR) for hour in range(24)]
    assert all(store.facts(hour.key) == FileFacts(hour.bytes, hour.sha256) for hour in hours_in_manifest)
    assert sum(hour.file_rows for hour in hours_in_manifest) == 240


def test_manifest_keeps_files_that_are_older_than_the_database(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    insert(connection, [event(FIRST + number * HOUR, number) for number in range(24)])
    archive_hours(connection, store, FIRST, FIRST + DAY)
    connection.execute("DELETE FROM exp.archived_hours")
    connection.execute("DELETE FROM exp.events")
    insert(connection, [event(FIRST + timedelta(minutes=5), 99)])
    (hour,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert (hour.rows, hour.database_rows) == (2, 1)
    assert [hour.file_rows for hour in day_manifest(store, FIRST.date())] == [2] + [1] * 23


def test_archive_merges_files_of_older_versions(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    insert(connection, [event(FIRST + timedelta(minutes=number), number) for number in range(4)])
    archive_hours(connection, store, FIRST, FIRST + HOUR)
    old = read_archive(store, hour_key(FIRST))  # without the exact columns
    sink = pa.BufferOutputStream()
    pq.write_table(old.slice(0, 3), sink)
    store.write(hour_key(FIRST), bytes(sink.getvalue()))
    connection.execute("DELETE FROM exp.archived_hours")
    connection.execute("DELETE FROM exp.events WHERE id = %s", (uuid.uuid5(uuid.NAMESPACE_OID, "0"),))
    connection.commit()
    (hour,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert (hour.rows, hour.archived_only) == (4, 1)
    assert read_archive(store, hour.key) == old
    exact = read_archive(store, hour.key, ["metrics_json"])["metrics_json"].to_pylist()
    assert exact[0] is None and json.loads(exact[1]) == {"latency_ms": 13.5, "own_metric": 3}


def test_archive_rejects_half_hours_and_local_times(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="not a whole hour"):
        archive_hours(connection, store, FIRST + timedelta(minutes=30), FIRST + 2 * HOUR)
    with pytest.raises(ValueError, match="not a whole hour"):
        archive_hours(connection, store, FIRST.replace(tzinfo=None), FIRST + 2 * HOUR)
    assert archive_hours(connection, store, FIRST, FIRST) == []


def test_history_is_archived_as_one_file_per_month(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    moments = [
        datetime(2003, 7, 1, tzinfo=UTC),
        datetime(2003, 7, 31, 23, 59, tzinfo=UTC),
        datetime(2008, 1, 1, tzinfo=UTC),
    ]
    moments += [FIRST - timedelta(seconds=1), FIRST]
    insert(connection, [event(moment, number) for number, moment in enumerate(moments)])
    months = archive_history(connection, store, FIRST.date())
    assert [(f"{month.start:%Y-%m}", month.rows) for month in months] == [
        ("2003-07", 2),
        ("2008-01", 1),
        (f"{FIRST - timedelta(seconds=1):%Y-%m}", 1),
    ]
    assert archived_keys(store, "events/history") == [month_key(month.start) for month in months]
    assert not any(month.written for month in archive_history(connection, store, FIRST.date()))
    assert clean_history(store).frame.height == 4


def test_cleaning_needs_completely_archived_days(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    insert(connection, [event(FIRST + number * HOUR, number) for number in range(30)])
    archive_hours(connection, store, FIRST, FIRST + 23 * HOUR)
    with pytest.raises(ArchiveError, match=r"its hours 23 \(UTC\) were never archived"):
        clean_day(store, FIRST.date())
    archive_hours(connection, store, FIRST, FIRST + 48 * HOUR)
    assert clean_day(store, FIRST.date()).frame.height == 24
    with pytest.raises(ArchiveError, match=f"Never cleaned: history, {FIRST.date() + timedelta(days=1)}"):
        read_cleaned(store, FIRST.date(), FIRST.date() + timedelta(days=2), history=True)
    bytes_before = store.read(store.list("cleaned")[0])
    clean_day(store, FIRST.date())
    assert store.read(store.list("cleaned")[0]) == bytes_before
    clean_day(store, FIRST.date() + timedelta(days=1))
    clean_history(store)
    both = read_cleaned(store, FIRST.date(), FIRST.date() + timedelta(days=2), history=True)
    assert both["timestamp"].to_list() == [FIRST + number * HOUR for number in range(30)]
    assert both["plan_id"].to_list() == [f"p{number}" for number in range(30)]


def test_archive_works_on_s3(connection: psycopg.Connection[Any], s3_root: str) -> None:
    store = ObjectStore(s3_root)
    insert(connection, [event(FIRST + number * HOUR, number) for number in range(24)])
    archive_hours(connection, store, FIRST, FIRST + 24 * HOUR)
    insert(connection, [event(FIRST + timedelta(minutes=1), 100)])
    hours = archive_hours(connection, store, FIRST, FIRST + 24 * HOUR)
    assert [hour.written for hour in hours] == [True] + [False] * 23
    assert clean_day(store, FIRST.date()).frame.height == 25
    assert len(archived_keys(store)) == 24


def test_archiving_eight_weeks_of_hours_takes_seconds(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    connection.execute(
        """
        INSERT INTO exp.events (id, event_type, unit_type, unit_id, experiments, context, metrics, payload, "timestamp")
        SELECT md5(n::text)::uuid, 'plan_generated', 'household', 'h' || n %% 400, '[]', '{"session_id": "s"}',
               '{"latency_ms": 1}', '{"plan_id": "p"}', %s + n * interval '6 minutes'
        FROM generate_series(0, 13439) n
        """,
        [FIRST],
    )
    connection.commit()
    started = time.perf_counter()
    hours = archive_hours(connection, store, FIRST, FIRST + 1344 * HOUR)
    seconds = time.perf_counter() - started
    assert [hour.rows for hour in hours] == [10] * 1344
    # It takes a few seconds on two idle cores; the bound only fails if there is a query (or a wait) per hour.
    assert seconds < 30
    print(f"1,344 hours archived in {seconds:.1f} s")


def test_next_run_corrects_the_manifest_when_a_run_was_killed(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(connection, [event(FIRST + timedelta(minutes=1), 1), event(FIRST - DAY, 2)])
    archive_hours(connection, store, FIRST, FIRST + 2 * HOUR)
    archive_history(connection, store, FIRST.date())
    insert(connection, [event(FIRST + timedelta(minutes=2), 3), event(FIRST - DAY, 4)])

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "_write", die)
    with pytest.raises(KeyboardInterrupt):
        archive_hours(connection, store, FIRST, FIRST + HOUR)
    with pytest.raises(KeyboardInterrupt):
        archive_history(connection, store, FIRST.date())
    monkeypatch.undo()
    assert day_manifest(store, FIRST.date())[0].file_rows == 1
    again = archive_hours(connection, store, FIRST + HOUR, FIRST + 2 * HOUR)  # another hour of that day
    again += archive_history(connection, store, FIRST.date())
    assert not any(period.written for period in again)
    files = [*day_manifest(store, FIRST.date()), *manifest.read_manifest(store, HISTORY_FOLDER)]
    assert [file.file_rows for file in files] == [2, 0, 2]
    assert all(store.facts(file.key) == FileFacts(file.bytes, file.sha256) for file in files)


def test_hour_stays_late_when_it_is_marked_while_being_archived(
    connection: psycopg.Connection[Any], database_url: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(connection, [event(FIRST, 1)])
    archive_hours(connection, store, FIRST, FIRST + HOUR)
    insert(connection, [event(FIRST + timedelta(minutes=1), 2)])
    count = count_in_database

    def count_insert_and_mark(*arguments: Any) -> Any:
        counted = count(*arguments)
        with psycopg.connect(database_url) as other:
            insert(other, [event(FIRST + timedelta(minutes=2), 3)])
            other.execute("UPDATE exp.events SET created_at = now()")
            other.commit()
            mark_late_hours(other, FIRST.date())
        return counted

    monkeypatch.setattr(archive, "count_in_database", count_insert_and_mark)
    archive_hours(connection, store, FIRST, FIRST + HOUR)
    monkeypatch.undo()
    assert waiting_hours(connection, FIRST.date(), FIRST + HOUR) == [FIRST]
    connection.execute("DELETE FROM exp.events WHERE id = %s", (uuid.uuid5(uuid.NAMESPACE_OID, "3"),))
    connection.commit()
    # Nothing is left to archive, and the mark is removed.
    assert [hour.written for hour in archive_hours(connection, store, FIRST, FIRST + HOUR)] == [False]
    assert waiting_hours(connection, FIRST.date(), FIRST + HOUR) == []
