"""Late events are detected and archived by one run per range, a silence is reported once, and the queue counts waiting hours."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from archive_support import FIRST, HOUR, event, insert, prepare
from dagster._core.test_utils import instance_for_test

from eventlog.archive.archiving import archive_hours
from eventlog.archive.files import hour_key, read_archive
from eventlog.archive.hours import archive_queue, mark_late_hours, waiting_hours
from eventlog.archive.retention import apply_retention
from foundation.object_store import ObjectStore
from foundation.settings import settings
from orchestration import sensors
from orchestration.definitions import defs
from orchestration.jobs import archive_job, silence_job
from orchestration.sensors import hour_ranges, late_events, no_events_for_an_hour

END = FIRST + 6 * HOUR
LATE = FIRST + timedelta(minutes=5)


@pytest.fixture
def connection(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    """Six hours with one event each, stored when it happened."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("LIFECYCLE_FIRST_DAY", str(FIRST.date()))
    settings.cache_clear()
    with psycopg.connect(database_url, autocommit=True) as opened:
        prepare(opened)
        insert(opened, [event(FIRST + number * HOUR, number) for number in range(6)])
        yield opened


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with instance_for_test(temp_dir=str(tmp_path / "dagster")) as instance:
        yield instance


def archive(connection: psycopg.Connection[Any], start: datetime = FIRST, end: datetime = END) -> None:
    archive_hours(connection, ObjectStore(settings().store_root), start, end)


def store_now(connection: psycopg.Connection[Any], moment: datetime, number: int) -> None:
    """Store an event of `moment` now."""
    row = list(event(moment, number))
    row[9] = datetime.now(UTC)
    insert(connection, [tuple(row)])


def queue(connection: psycopg.Connection[Any], now: datetime = END) -> int:
    return archive_queue(connection, FIRST.date(), now)


def requested(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    result = late_events(dg.build_sensor_context(instance))
    return list(result.run_requests or ()) if isinstance(result, dg.SensorResult) else []


def skipped(instance: dg.DagsterInstance) -> str:
    result = late_events(dg.build_sensor_context(instance))
    assert isinstance(result, dg.SkipReason)
    return str(result.skip_message)


def run(instance: dg.DagsterInstance, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(archive_job.name).execute_in_process(
        instance=instance, tags=dict(request.tags), raise_on_error=False
    )


def test_queue_counts_hours_with_unarchived_events(connection: psycopg.Connection[Any]) -> None:
    assert queue(connection) == 6
    assert queue(connection, FIRST + timedelta(minutes=150)) == 2  # the current hour is not full
    archive(connection, FIRST, FIRST + 4 * HOUR)
    assert queue(connection) == 2
    store_now(connection, LATE, 100)
    store_now(connection, LATE, 101)
    assert queue(connection) == 3
    mark_late_hours(connection, FIRST.date())
    mark_late_hours(connection, FIRST.date())
    assert queue(connection) == 3
    assert waiting_hours(connection, FIRST.date(), END) == [FIRST, FIRST + 4 * HOUR, FIRST + 5 * HOUR]
    archive(connection)
    assert queue(connection) == 0
    mark_late_hours(connection, FIRST.date())
    assert queue(connection) == 0


def test_an_event_is_late_when_its_transaction_commits_after_the_archive(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    with psycopg.connect(database_url) as slow:
        insert_late = list(event(LATE, 100))
        insert_late[9] = slow.execute("SELECT now()").fetchone()[0]  # type: ignore[index]
        with slow.cursor() as cursor:
            cursor.execute("SELECT 1")
            archive(connection)
            mark_late_hours(connection, FIRST.date())
            assert queue(connection) == 0
            insert(slow, [tuple(insert_late)])
    mark_late_hours(connection, FIRST.date())
    assert waiting_hours(connection, FIRST.date(), END) == [FIRST]


def test_hours_less_than_a_day_apart_share_a_range() -> None:
    hours = [FIRST + number * HOUR for number in (50, 0, 1, 20, 49)]
    assert hour_ranges(hours) == [(FIRST, FIRST + 20 * HOUR), (FIRST + 49 * HOUR, FIRST + 50 * HOUR)]


def test_late_events_are_archived_by_one_run(connection: psycopg.Connection[Any], instance: dg.DagsterInstance) -> None:
    assert "Nothing was archived yet" in skipped(instance)
    archive(connection, FIRST, FIRST + 5 * HOUR)
    (missed,) = requested(instance)  # as after a night without Dagster
    assert run(instance, missed).success
    assert skipped(instance) == "Every full hour of events is archived."

    store_now(connection, LATE, 100)
    store_now(connection, LATE + 3 * HOUR, 101)
    (request,) = requested(instance)
    assert requested(instance)[0].run_key == request.run_key
    result = run(instance, request)
    assert result.success
    assert [check.passed for check in result.get_asset_check_evaluations()] == [True]
    assert skipped(instance) == "Every full hour of events is archived."
    store = ObjectStore(settings().store_root)
    assert read_archive(store, hour_key(FIRST)).num_rows == 2
    # Late events of the same hours start another run.
    store_now(connection, LATE, 102)
    store_now(connection, LATE + 3 * HOUR, 103)
    assert requested(instance)[0].run_key != request.run_key


def test_a_failed_run_is_requested_again_after_a_wait(
    connection: psycopg.Connection[Any], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(connection)
    store_now(connection, LATE, 100)
    (request,) = requested(instance)
    store = ObjectStore(settings().store_root)
    whole = store.read(hour_key(FIRST))
    store.write(hour_key(FIRST), b"rubbish")
    assert not run(instance, request).success
    assert "failed, the next one starts at" in skipped(instance)
    store.write(hour_key(FIRST), whole)
    monkeypatch.setattr(sensors, "FIRST_WAIT", timedelta(0))
    (again,) = requested(instance)
    assert again.run_key == str(request.run_key).replace("#1", "#2")
    assert run(instance, again).success


def test_sensor_requests_no_run_while_an_archive_run_is_in_progress(
    connection: psycopg.Connection[Any], instance: dg.DagsterInstance
) -> None:
    archive(connection)
    store_now(connection, LATE, 100)
    archive_run = instance.create_run_for_job(defs.resolve_job_def(archive_job.name))
    assert skipped(instance) == "1 hours wait for the archive run that is under way."
    instance.delete_run(archive_run.run_id)
    assert len(requested(instance)) == 1


def test_a_late_event_of_a_dropped_day_is_archived_and_the_day_dropped_again(
    connection: psycopg.Connection[Any], instance: dg.DagsterInstance
) -> None:
    archive(connection, FIRST, FIRST + 24 * HOUR)
    store = ObjectStore(settings().store_root)
    today = FIRST.date() + timedelta(days=11)
    assert [fate.dropped for fate in apply_retention(connection, store, 10, today)] == [True]
    prepare(connection)  # makes the day again, as the API does on demand
    store_now(connection, LATE, 100)
    (request,) = requested(instance)
    assert run(instance, request).success
    assert [fate.rows for fate in apply_retention(connection, store, 10, today) if fate.dropped] == [1]
    assert read_archive(store, hour_key(FIRST)).num_rows == 2


def silence(instance: dg.DagsterInstance, cursor: str | None) -> Any:
    return no_events_for_an_hour(dg.build_sensor_context(instance, cursor=cursor))


def test_silence_is_reported_once_and_so_is_its_end(
    connection: psycopg.Connection[Any], instance: dg.DagsterInstance
) -> None:
    connection.execute("UPDATE exp.events SET created_at = now() - interval '61 minutes'")
    silent = silence(instance, None)
    ((request,), (evaluation,)) = silent.run_requests, silent.asset_events
    assert (evaluation.check_name, evaluation.passed, evaluation.severity) == (
        "events_arrive",
        False,
        dg.AssetCheckSeverity.ERROR,
    )
    assert f"No event came since {silent.cursor}; this was reported." in str(
        silence(instance, silent.cursor).skip_message
    )
    failed = defs.resolve_job_def(silence_job.name).execute_in_process(
        run_config=request.run_config, instance=instance, raise_on_error=False
    )
    (failure,) = failed.filter_events(lambda event: event.is_step_failure)
    assert f"No event came since {silent.cursor}" in failure.step_failure_data.error_display_string

    store_now(connection, FIRST, 100)
    ended = silence(instance, silent.cursor)
    assert (ended.cursor, ended.asset_events[0].passed, ended.run_requests) == ("", True, [])
    assert "The last event came at" in str(silence(instance, ended.cursor).skip_message)
    connection.execute("UPDATE exp.events SET created_at = now() - interval '2 hours'")
    assert silence(instance, "").run_requests[0].run_key != request.run_key


def test_silence_is_not_reported_before_the_first_event(
    connection: psycopg.Connection[Any], instance: dg.DagsterInstance
) -> None:
    connection.execute("DELETE FROM exp.events")
    assert silence(instance, None).skip_message == "No event was ever stored."


def test_queue_of_a_big_table_is_counted_in_milliseconds(connection: psycopg.Connection[Any]) -> None:
    archive(connection)
    connection.execute(
        """
        INSERT INTO exp.events (event_type, unit_type, unit_id, "timestamp", created_at)
        SELECT 'exposure', 'user', 'u' || n % 100, %s + n * interval '4 seconds', %s + n * interval '4 seconds'
        FROM generate_series(1, 100000) n
        """.replace("n % 100", "n %% 100"),
        [END, END],
    )
    connection.execute("VACUUM ANALYZE exp.events")
    archive(connection, END, FIRST + 24 * 7 * HOUR)
    started = time.perf_counter()
    assert queue(connection, FIRST + 24 * 7 * HOUR) == 0
    # Scanning the table would take ten times as long as reading a row per hour and probing indexes.
    print(f"queue counted in {1000 * (time.perf_counter() - started):.0f} ms")
