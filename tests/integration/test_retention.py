"""Days leave PostgreSQL when they are old enough and wholly archived; whatever happens meanwhile, no event is lost."""

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
from eventlog.partitions import ensure_event_days, ensure_event_partitions, event_days, leaving_days, take_out
from foundation.object_store import ObjectStore

TODAY = FIRST.date() + timedelta(days=12)
KEEP = 10
"""Of the days from FIRST on, the first two are older than that on TODAY."""


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


def test_old_archived_days_go_and_are_told_of(connection: psycopg.Connection[Any], store: ObjectStore) -> None:
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
    # Days that were dropped are not made again, but for who asks for them by name.
    assert ensure_event_partitions(connection, FIRST.date(), 0, keep_days=20) == 0
    assert ensure_event_days(connection, [day(0), day(0) - DAY]) == 1
    assert archive_queue(connection, FIRST.date(), datetime.now(UTC)) == 0


def test_what_is_not_wholly_archived_stays_with_its_reason(
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
    for number, spoilt in ((3, b"rubbish"), (5, None)):
        key = hour_key(FIRST + number * HOUR)
        store.delete(key) if spoilt is None else store.write(key, spoilt)
    record_restored(connection, day(1), 24, datetime.now(UTC) + HOUR)
    first, second = retain(connection, store)
    assert first.reason.startswith("the file is gone or not the one that was written: hours 03, 05 (UTC)")
    assert second.reason.startswith("restored, and kept until ")
    assert len(stored_rows(connection, FIRST, FIRST + 3 * DAY)) == 73


def test_an_event_that_comes_while_its_day_leaves_is_kept(
    connection: psycopg.Connection[Any], database_url: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_days(connection, store)

    def with_late_ones(own: psycopg.Connection[Any], which: date) -> Any:
        with psycopg.connect(database_url) as other:
            if which == day(0):
                insert(other, [event(FIRST + timedelta(minutes=1), 1000)])  # before it is detached
            leaving = take_out(own, which)
            if which == day(0):
                ensure_event_days(other, [which])
                insert(other, [event(FIRST + timedelta(minutes=2), 1001)])  # and after
        return leaving

    monkeypatch.setattr(retention, "take_out", with_late_ones)
    first, _ = retain(connection, store)
    assert first == DayFate(day(0), 25, dropped=True)
    assert len(set(archived_ids(store))) == 73
    assert [row[9] for row in stored_rows(connection, FIRST, FIRST + DAY)] == [FIRST + timedelta(minutes=2)]
    # The one in the new partition waits for the archive, then goes in its turn.
    monkeypatch.undo()
    assert waiting_hours(connection, FIRST.date(), FIRST + DAY) == [FIRST]
    assert retain(connection, store)[0].reason == "events came since it was archived: hours 00 (UTC)"
    archive_hours(connection, store, FIRST, FIRST + HOUR)
    assert retain(connection, store) == [DayFate(day(0), 1, dropped=True)]
    assert len(set(archived_ids(store))) == len(archived_ids(store)) == 74


@pytest.mark.parametrize("dies_at", ["rename", "detach", "archive", "count", "drop"])
def test_a_run_that_dies_anywhere_is_finished_by_the_next(
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
        place = {"archive": "archive_hours", "count": "_require_everything", "drop": "record_dropped"}[dies_at]
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
    """Leave a partition half detached: detaching waits for a reader, and is cancelled."""
    connection.execute(f"ALTER TABLE exp.events_{day(0):%Y%m%d} RENAME TO events_{day(0):%Y%m%d}_leaving")
    with psycopg.connect(url) as reader:
        reader.execute("SELECT count(*) FROM exp.events")
        connection.execute("SET lock_timeout = '300ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            take_out(connection, day(0))
    connection.execute("RESET lock_timeout")
    assert leaving_days(connection)[0].pending


def test_a_day_in_use_waits_for_the_next_run(
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


def test_a_detached_day_stays_when_it_can_not_be_archived(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    archive_days(connection, store)
    take_out(connection, day(0))
    store.delete(hour_key(FIRST))
    connection.execute(f"DELETE FROM exp.events_{day(0):%Y%m%d}_leaving WHERE timestamp = %s", (FIRST,))
    with pytest.raises(ArchiveError, match="is gone"):
        retain(connection, store)
    assert [leaving.day for leaving in leaving_days(connection)] == [day(0)]


def test_a_day_stays_while_its_manifest_is_behind(
    connection: psycopg.Connection[Any], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_days(connection, store)
    current = store.read(f"{day_folder(day(0))}/manifest.json")
    stale = current.replace(b'"file_rows": 1', b'"file_rows": 0', 1)
    store.write(f"{day_folder(day(0))}/manifest.json", stale)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_write", lambda *_: None)
        with pytest.raises(ArchiveError, match="manifest does not tell of its files as they are"):
            retain(connection, store)
    assert [leaving.day for leaving in leaving_days(connection)] == [day(0)]
    assert retain(connection, store)[0] == DayFate(day(0), 24, dropped=True)
    assert store.read(f"{day_folder(day(0))}/manifest.json") == current


def test_an_hour_without_events_that_nobody_archived_does_not_keep_its_day(
    connection: psycopg.Connection[Any], store: ObjectStore
) -> None:
    """As after a night in which the machine slept: no schedule ran, and nothing asks for an hour in which nothing came."""
    start = datetime.combine(day(0), time(), UTC)
    later = (start + timedelta(hours=5), start + timedelta(days=1))
    connection.execute('DELETE FROM exp.events WHERE "timestamp" >= %s AND "timestamp" < %s', later)
    archive_hours(connection, store, start, start + timedelta(hours=5))
    assert retain(connection, store)[0] == DayFate(day(0), 5, dropped=True)
    assert len(archived_hours(connection, start, start + timedelta(days=1))) == 24
