"""Old days are dropped from PostgreSQL once they are completely archived; no event is lost, whatever happens meanwhile."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from archive_support import DAY, FIRST, HOUR, event, insert, prepare, stored_rows

from eventlog import partitions
from eventlog.archive import manifest, retention
from eventlog.archive.archiving import archive_hours
from eventlog.archive.files import archived_keys, day_folder, hour_key, read_archive
from eventlog.archive.hours import archive_queue, archived_hours, record_restored, waiting_hours
from eventlog.archive.period_file import ArchiveError
from eventlog.archive.retention import DayFate, apply_retention
from eventlog.partitions import detach_day, ensure_event_days, ensure_event_partitions, event_days, leaving_days
from foundation.object_store import ObjectStore

TODAY = FIRST.date() + timedelta(days=12)
KEEP = 10
"""On TODAY, the first two days from FIRST on are older than this."""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as opened:
        prepare(opened)
        insert(opened, [event(FIRST + number * HOUR, number) for number in range(72)])
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "store"))


def retain(connection: psycopg.Connection[Any], store: ObjectStore) -> list[DayFate]:
    return list(apply_retention(connection, store, KEEP, TODAY))


def archive_days(connection: psycopg.Connection[Any], store: ObjectStore, days: int = 3) -> None:
    archive_hours(connection, store, FIRST, FIRST + days * DAY)


def archived_ids(store: ObjectStore) -> list[str]:
    return [event_id for key in archived_keys(store) for event_id in read_archive(store, key)["event_id"].to_pylist()]


def day(number: int) -> date:
    return FIRST.date() + timedelta(days=number)


def test_retention_drops_and_audits_old_archived_days(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    archive_days(connection, store)
    assert retain(connection, store) == [DayFate(day(0), 24, dropped=True), DayFate(day(1), 24, dropped=True)]
    assert stored_rows(connection, FIRST, FIRST + 2 * DAY) == []
    assert len(stored_rows(connection, FIRST, FIRST + 9 * DAY)) == 24
    assert event_days(connection)[0] == day(2)
    assert len(set(archived_ids(store))) == 72
    audit = connection.execute("SELECT actor, action, subject, before, after FROM exp.audit_log ORDER BY id").fetchall()
    assert audit == [
        ("event_retention", "events.day_dropped", f"events of {day(number)}", {"rows": 24}, {"archived": 24})
        for number in (0, 1)
    ]
    assert retain(connection, store) == []
    # Partitions of dropped days are created again only when asked for by name.
    assert ensure_event_partitions(connection, FIRST.date(), 0, keep_days=20) == 0
    assert ensure_event_days(connection, [day(0), day(0) - DAY]) == 1
    assert archive_queue(connection, FIRST.date(), datetime.now(UTC)) == 0


def test_retention_keeps_days_that_are_not_completely_archived(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    archive_hours(connection, store, FIRST, FIRST + 23 * HOUR)
    archive_hours(connection, store, FIRST + DAY, FIRST + 2 * DAY)
    insert(connection, [event(FIRST + 30 * HOUR, 1000)])
    assert retain(connection, store) == [
        DayFate(day(0), 24, False, "never archived: hours 23 (UTC)"),
        DayFate(day(1), 25, False, "events came since it was archived: hours 06 (UTC)"),
    ]
    archive_days(connection, store)
    for number, content in ((3, b"rubbish"), (5, None)):
        key = hour_key(FIRST + number * HOUR)
        store.delete(key) if content is None else store.write(key, content)
    record_restored(connection, day(1), 24, datetime.now(UTC) + HOUR)
    first, second = retain(connection, store)
    assert first.reason.startswith("the file is missing or was changed: hours 03, 05 (UTC)")
    assert second.reason.startswith("restored, and kept until ")
    assert len(stored_rows(connection, FIRST, FIRST + 3 * DAY)) == 73


def test_event_is_kept_when_it_comes_while_its_day_is_detached(
    connection: psycopg.Connection[Any], database_url: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_days(connection, store)

    def detach_between_inserts(own: psycopg.Connection[Any], detached: date) -> Any:
        with psycopg.connect(database_url) as other:
            if detached == day(0):
                insert(other, [event(FIRST + timedelta(minutes=1), 1000)])
            leaving = detach_day(own, detached)
            if detached == day(0):
                ensure_event_days(other, [detached])
                insert(other, [event(FIRST + timedelta(minutes=2), 1001)])
        return leaving

    monkeypatch.setattr(retention, "detach_day", detach_between_inserts)
    first, _ = retain(connection, store)
    assert first == DayFate(day(0), 25, dropped=True)
    assert len(set(archived_ids(store))) == 73
    assert [row[9] for row in stored_rows(connection, FIRST, FIRST + DAY)] == [FIRST + timedelta(minutes=2)]
    # The event in the new partition waits for the archive and is then dropped as well.
    monkeypatch.undo()
    assert waiting_hours(connection, FIRST.date(), FIRST + DAY) == [FIRST]
    assert retain(connection, store)[0].reason == "events came since it was archived: hours 00 (UTC)"
    archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert retain(connection, store) == [DayFate(day(0), 1, dropped=True)]
    assert len(set(archived_ids(store))) == len(archived_ids(store)) == 74


@pytest.mark.parametrize("dies_at", ["rename", "detach", "archive", "count", "drop"])
def test_next_run_finishes_when_a_run_was_killed_at_any_step(
    connection: psycopg.Connection[Any],
    database_url: str,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    dies_at: str,
) -> None:
    archive_days(connection, store)

    def die(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    if dies_at == "rename":
        connection.execute(f"ALTER TABLE exp.events_{day(0):%Y%m%d} RENAME TO events_{day(0):%Y%m%d}_leaving")
    elif dies_at == "detach":
        interrupt_detaching(connection, database_url)
    else:
        place = {"archive": "archive_hours", "count": "_require_all_archived", "drop": "record_dropped"}[dies_at]
        monkeypatch.setattr(retention, place, die)
        with pytest.raises(KeyboardInterrupt):
            retain(connection, store)
        monkeypatch.undo()
    assert [leaving.day for leaving in leaving_days(connection)] == [day(0)]
    assert len(set(archived_ids(store))) == 72
    with psycopg.connect(database_url, autocommit=True) as after:
        if dies_at != "rename":
            ensure_event_days(after, [day(0)])
        insert(after, [event(FIRST + timedelta(minutes=1), 1000)])
        fates = retain(after, store)
        assert fates[0] == DayFate(day(0), 25 if dies_at == "rename" else 24, dropped=True)
        archive_days(after, store)
        retain(after, store)
        assert leaving_days(after) == []
        assert stored_rows(after, FIRST, FIRST + 2 * DAY) == []
    assert len(set(archived_ids(store))) == len(archived_ids(store)) == 73


def interrupt_detaching(connection: psycopg.Connection[Any], url: str) -> None:
    """Leave a partition half detached: detaching waits for a reader and times out."""
    connection.execute(f"ALTER TABLE exp.events_{day(0):%Y%m%d} RENAME TO events_{day(0):%Y%m%d}_leaving")
    with psycopg.connect(url) as reader:
        reader.execute("SELECT count(*) FROM exp.events")
        connection.execute("SET lock_timeout = '300ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            detach_day(connection, day(0))
    connection.execute("RESET lock_timeout")
    assert leaving_days(connection)[0].pending


def test_retention_leaves_a_day_for_the_next_run_when_it_is_in_use(
    connection: psycopg.Connection[Any], database_url: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_days(connection, store)
    monkeypatch.setattr(partitions, "RENAME_TIMEOUT", "300ms")
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM exp.events")
        assert (
            retain(connection, store)[0].reason == "in use by a transaction that stays open; the next run tries again"
        )
    assert {fate.day for fate in retain(connection, store) if fate.dropped} == {day(0), day(1)}
    assert len(set(archived_ids(store))) == 72


def test_detached_day_stays_when_it_cannot_be_archived(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
    archive_days(connection, store)
    detach_day(connection, day(0))
    store.delete(hour_key(FIRST))
    connection.execute(f"DELETE FROM exp.events_{day(0):%Y%m%d}_leaving WHERE timestamp = %s", (FIRST,))
    with pytest.raises(ArchiveError, match="is missing"):
        retain(connection, store)
    assert [leaving.day for leaving in leaving_days(connection)] == [day(0)]


def test_day_stays_when_its_manifest_is_out_of_date(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_days(connection, store)
    current = store.read(f"{day_folder(day(0))}/manifest.json")
    stale = current.replace(b'"file_rows": 1', b'"file_rows": 0', 1)
    store.write(f"{day_folder(day(0))}/manifest.json", stale)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_write", lambda *_: None)
        with pytest.raises(ArchiveError, match="manifest does not match its files"):
            retain(connection, store)
    assert [leaving.day for leaving in leaving_days(connection)] == [day(0)]
    assert retain(connection, store)[0] == DayFate(day(0), 24, dropped=True)
    assert store.read(f"{day_folder(day(0))}/manifest.json") == current


def test_retention_archives_empty_hours_that_the_schedule_missed(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    """For example while the machine slept: no schedule ran, and an hour without events is not queued."""
    start = datetime.combine(day(0), time(), UTC)
    later = (start + timedelta(hours=5), start + timedelta(days=1))
    connection.execute('DELETE FROM exp.events WHERE "timestamp" >= %s AND "timestamp" < %s', later)
    archive_hours(connection, store, start, start + timedelta(hours=5))
    assert retain(connection, store)[0] == DayFate(day(0), 5, dropped=True)
    assert len(archived_hours(connection, start, start + timedelta(days=1))) == 24
