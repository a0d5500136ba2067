"""The archive against a real PostgreSQL, in a folder and over S3: nothing lost, nothing twice, nothing shown before it is counted."""

import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

from assets.events import archive
from assets.events.archive import ArchiveError, archive_history, archive_hours
from assets.events.cleaning import clean_day, clean_history, read_cleaned
from assets.events.event_files import hour_key, month_key, read_archive
from assets.object_store import ObjectStore
from experimentation.partitions import ensure_event_partitions

pytest_plugins = ["s3_service"]

FIRST = (datetime.now(UTC) - timedelta(days=60)).replace(hour=0, minute=0, second=0, microsecond=0)
HOUR = timedelta(hours=1)
INSERT = """
INSERT INTO exp.events (id, event_type, unit_type, unit_id, experiments, context, metrics, payload, "timestamp", created_at, flags)
VALUES (%s, %s, 'household', %s, %s, %s, %s, %s, %s, %s, %s)
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url) as opened:
        ensure_event_partitions(opened, FIRST.date())
        opened.commit()
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "store"))


def event(moment: datetime, number: int, **fields: Any) -> tuple[Any, ...]:
    values = {
        "id": uuid.uuid5(uuid.NAMESPACE_OID, f"{number}"),
        "type": "plan_generated",
        "unit": f"h{number % 7}",
        "experiments": [{"experiment_id": str(uuid.UUID(int=1)), "variant_id": str(uuid.UUID(int=2))}],
        "context": {"policy_version_id": "v1", "session_id": f"s{number}", "name": "Ünïcödé"},
        "metrics": {"latency_ms": 12.5 + number, "own_metric": 3},
        "payload": {"plan_id": f"p{number}"},
        **fields,
    }
    documents = [json.dumps(values[name]) for name in ("experiments", "context", "metrics", "payload")]
    return (values["id"], values["type"], values["unit"], *documents, moment, moment + timedelta(seconds=1), ["a_flag"])


def insert(connection: psycopg.Connection[Any], rows: list[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, rows)
    connection.commit()


def test_every_hour_gets_a_file_that_holds_its_events(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FETCH_ROWS", 7)  # hours then stretch over fetches
    rows = [event(FIRST + timedelta(minutes=13 * number), number) for number in range(60)]
    rows += [event(FIRST + 20 * HOUR, 1000), event(FIRST + 24 * HOUR - timedelta(microseconds=1), 1001)]
    insert(connection, [*rows, event(FIRST + 24 * HOUR, 1002), event(FIRST - timedelta(microseconds=1), 1003)])

    hours = archive_hours(connection, store, FIRST, FIRST + 24 * HOUR)

    assert [hour.start for hour in hours] == [FIRST + index * HOUR for index in range(24)]
    assert sum(hour.rows for hour in hours) == 62
    expected = [sum(FIRST + index * HOUR <= row[7] < FIRST + (index + 1) * HOUR for row in rows) for index in range(24)]
    assert [hour.database_rows for hour in hours] == expected
    assert 0 in expected
    assert store.list("events") == [hour_key(hour.start) for hour in hours]
    assert store.list("events/.staging") == []
    stored = pl.concat(pl.DataFrame(read_archive(store, hour.key)) for hour in hours)
    assert stored["event_id"].to_list() == [str(row[0]) for row in sorted(rows, key=lambda row: row[7])]
    first = stored.row(0, named=True)
    assert first["timestamp"] == FIRST
    assert json.loads(first["context"]) == {"policy_version_id": "v1", "session_id": "s0", "name": "Ünïcödé"}
    assert (first["policy_version_id"], first["session_id"], first["flags"]) == ("v1", "s0", ["a_flag"])
    assert first["metrics"] == [{"key": "latency_ms", "value": 12.5}, {"key": "own_metric", "value": 3.0}]
    assert (first["latency_ms"], first["cost_usd"]) == (12.5, None)
    assert first["experiments"] == [
        {"experiment_id": str(uuid.UUID(int=1)), "variant_id": str(uuid.UUID(int=2))},
    ]


def test_again_changes_nothing_and_late_events_join(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    insert(connection, [event(FIRST, 1), event(FIRST + HOUR, 2)])
    archive_hours(connection, store, FIRST, FIRST + 3 * HOUR)
    before = {key: store.read(key) for key in store.list()}

    again = archive_hours(connection, store, FIRST, FIRST + 3 * HOUR)
    assert [hour.written for hour in again] == [False, False, False]
    assert {key: store.read(key) for key in store.list()} == before

    insert(connection, [event(FIRST + timedelta(seconds=1), 3)])
    late = archive_hours(connection, store, FIRST, FIRST + 3 * HOUR)
    assert [(hour.rows, hour.written) for hour in late] == [(2, True), (1, False), (0, False)]


def test_what_postgresql_dropped_stays_in_the_archive(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
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
    (hour,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert (hour.rows, hour.database_rows, hour.written) == (3, 0, False)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lambda rows: rows[1:], "PostgreSQL counts 3 events and the file 2, 1 fewer"),
        (lambda rows: [*rows[:1], rows[0], *rows[2:]], "1 events stand in the file twice"),
        (lambda rows: [(str(uuid.UUID(int=9)), *rows[0][1:]), *rows[1:]], "checksums of their ids differ"),
        (lambda rows: [*rows[:2], (*rows[2][:8], rows[2][8] + timedelta(seconds=1), *rows[2][9:])], "times run from"),
    ],
)
def test_a_wrong_count_names_the_hour_and_shows_nothing(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch, lie: Any, says: str
) -> None:
    insert(connection, [event(FIRST + HOUR + timedelta(minutes=number), number) for number in range(3)])
    honest = archive.event_table
    monkeypatch.setattr(archive, "event_table", lambda rows: honest(lie(rows)))
    with pytest.raises(ArchiveError, match=says) as refused:
        archive_hours(connection, store, FIRST, FIRST + 2 * HOUR)
    assert str(refused.value).startswith(f"Hour {FIRST:%Y-%m-%d} 01:00 UTC: ")
    assert not store.exists(hour_key(FIRST + HOUR))
    assert store.sweep(older_than_s=-1) == 0


def test_rows_and_counts_are_one_snapshot(
    connection: psycopg.Connection[Any], database_url: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(connection, [event(FIRST, 1)])
    count = archive._counts

    def then_another_arrives(*arguments: Any) -> Any:
        counted = count(*arguments)
        with psycopg.connect(database_url) as other:
            insert(other, [event(FIRST + timedelta(minutes=1), 2)])
        return counted

    monkeypatch.setattr(archive, "_counts", then_another_arrives)
    assert [hour.rows for hour in archive_hours(connection, store, FIRST, FIRST + HOUR)] == [1]
    monkeypatch.undo()
    assert [hour.rows for hour in archive_hours(connection, store, FIRST, FIRST + HOUR)] == [2]


def test_odd_values_are_archived_all_the_same(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    odd = event(
        FIRST, 1, metrics={"latency_ms": "fast", "token_count": 10**400, "b": True}, context=["a list"], payload=None
    )
    insert(connection, [odd])
    (hour,) = archive_hours(connection, store, FIRST, FIRST + HOUR)
    row = pl.DataFrame(read_archive(store, hour.key)).row(0, named=True)
    assert {pair["key"]: pair["value"] for pair in row["metrics"]} == {
        "latency_ms": None,
        "token_count": float("inf"),
        "b": None,
    }
    assert (row["payload"], row["session_id"]) == ("null", None)


def test_half_hours_and_local_times_are_refused(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="no whole hour"):
        archive_hours(connection, store, FIRST + timedelta(minutes=30), FIRST + 2 * HOUR)
    with pytest.raises(ValueError, match="no whole hour"):
        archive_hours(connection, store, FIRST.replace(tzinfo=None), FIRST + 2 * HOUR)
    assert archive_hours(connection, store, FIRST, FIRST) == []


def test_history_is_a_file_a_month(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
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
    assert store.list("events/history") == [month_key(month.start) for month in months]
    assert not any(month.written for month in archive_history(connection, store, FIRST.date()))
    assert clean_history(store).frame.height == 4


def test_cleaned_days_come_from_whole_archived_days(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
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


def test_the_archive_goes_to_s3_through_the_same_code(connection: psycopg.Connection[Any], s3_root: str) -> None:
    store = ObjectStore(s3_root)
    insert(connection, [event(FIRST + number * HOUR, number) for number in range(24)])
    archive_hours(connection, store, FIRST, FIRST + 24 * HOUR)
    insert(connection, [event(FIRST + timedelta(minutes=1), 100)])
    hours = archive_hours(connection, store, FIRST, FIRST + 24 * HOUR)
    assert [hour.written for hour in hours] == [True] + [False] * 23
    assert clean_day(store, FIRST.date()).frame.height == 25
    assert len(store.list()) == 25


def test_eight_weeks_of_hours_take_seconds(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
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
    took = time.perf_counter() - started
    assert [hour.rows for hour in hours] == [10] * 1344
    # A few seconds on two idle cores; the bound only tells a query (or a wait) per hour from one for all.
    assert took < 30
    print(f"1,344 hours archived in {took:.1f} s")
