"""Retention: old days that are completely archived are dropped from PostgreSQL; the archive keeps them forever.

The steps: rename the partition, detach it, archive it once more, verify, drop. A process that is killed in between leaves a table
`…_leaving`, from which the next run continues; nothing is lost before the drop is committed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import errors, sql

from eventlog.archive.archiving import archive_hours
from eventlog.archive.counting import Counted, count_in_database
from eventlog.archive.hours import (
    HOUR,
    ArchivedHour,
    archive_lock,
    archived_hours,
    forget_restored,
    kept_until,
    record_dropped,
)
from eventlog.archive.manifest import manifest_matches
from eventlog.archive.period_file import ArchiveError
from eventlog.partitions import detach_day, event_days, leaving_days, midnight
from foundation.audit import Change, write_audit
from foundation.object_store import FileFacts, ObjectStore

DAY = timedelta(days=1)
LOCK_TIMEOUT = "60s"
"""Detaching waits for all transactions that use events; if one stays open this long, the day waits for the next run."""
CHANGE = Change("event_retention", "The day is older than the retention and completely archived.")


@dataclass(frozen=True)
class DayFate:
    """What happened to a day older than the retention; `reason` says why it was kept, and is empty if it was dropped."""

    day: date
    rows: int
    dropped: bool
    reason: str = ""


def apply_retention(
    connection: psycopg.Connection[Any], store: ObjectStore, keep_days: int, today: date
) -> Iterator[DayFate]:
    """Drop all days before `today` - `keep_days` that are completely archived, oldest first; yields what happened to each.

    `connection` is in autocommit mode. Events before the first day (history) stay. A day is dropped only if its 24 hours are archived,
    their files are unchanged and match the manifest, and, once the day is detached, they count every event that it holds. Raises
    ArchiveError if a detached day can't be archived (it stays), EventReadError, foundation.object_store.StoreError.
    """
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
    archive_errors: list[ArchiveError] = []
    due = [day for day in event_days(connection) if day < today - DAY * keep_days]
    # Days that an earlier run began to detach come first.
    for day in dict.fromkeys([*(leaving.day for leaving in leaving_days(connection)), *due]):
        try:
            yield _process_day(connection, store, day)
        except errors.LockNotAvailable:
            yield _kept(connection, day, "in use by a transaction that stays open; the next run tries again")
        except ArchiveError as error:
            # A day that can't be archived must not block the other days.
            archive_errors.append(error)
    if archive_errors:
        raise ArchiveError(" ".join(map(str, archive_errors)))


def _process_day(connection: psycopg.Connection[Any], store: ObjectStore, day: date) -> DayFate:
    if any(leaving.day == day for leaving in leaving_days(connection)):
        return _detach_and_drop(connection, store, day)
    _archive_empty_hours(connection, store, day)
    # A restore that starts now waits for this lock, and this waits for a running restore.
    with archive_lock(connection, [day]):
        until = kept_until(connection).get(day)
        if until is not None and until > datetime.now(UTC):
            return _kept(connection, day, f"restored, and kept until {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
        if (reason := _why_not_archived(connection, store, day)) is not None:
            return _kept(connection, day, reason)
        return _detach_and_drop(connection, store, day)


def _archive_empty_hours(connection: psycopg.Connection[Any], store: ObjectStore, day: date) -> None:
    """Archive hours without events that the schedule missed, for example while the machine slept: they must not keep the day forever."""
    start = midnight(day)
    archived = archived_hours(connection, start, start + DAY)
    counts = count_in_database(connection, "1 hour", start, start + DAY)
    for first, last in _spans([hour.hour for hour in _hours(start) if hour not in archived and hour not in counts]):
        archive_hours(connection, store, start + first * HOUR, start + (last + 1) * HOUR)


def _detach_and_drop(connection: psycopg.Connection[Any], store: ObjectStore, day: date) -> DayFate:
    start = midnight(day)
    # Other archive runs wait, so that exactly what is counted here is dropped.
    with archive_lock(connection, [day]):
        leaving = detach_day(connection, day)
        # Nothing writes to the table any more, so this archives all events that came since the last time.
        hours = archive_hours(connection, store, start, start + DAY, leaving.table)
        rows = sum(hour.database_rows for hour in hours)
        with connection.transaction():
            _require_all_archived(connection, store, day, leaving.table)
            connection.execute(sql.SQL("DROP TABLE {}").format(leaving.table))
            record_dropped(connection, day)
            forget_restored(connection, day)
            write_audit(
                connection, change=CHANGE, action="events.day_dropped", subject=f"events of {day}",
                before={"rows": rows}, after={"archived": sum(hour.rows for hour in hours)},
            )  # fmt: skip
    return DayFate(day, rows, dropped=True)


def _require_all_archived(
    connection: psycopg.Connection[Any], store: ObjectStore, day: date, table: sql.Identifier
) -> None:
    """In the transaction that drops the table: count it once more, and check the files and the manifest that a restore will use."""
    reason = _why_not_archived(connection, store, day, table)
    start = midnight(day)
    if reason is None and not manifest_matches(store, day, archived_hours(connection, start, start + DAY).values()):
        reason = "the day's manifest does not match its files; run the retention again"
    if reason is not None:
        raise ArchiveError(f"The events of {day} stay in {table.as_string(connection)}: {reason}.")


def _why_not_archived(
    connection: psycopg.Connection[Any], store: ObjectStore, day: date, table: sql.Identifier | None = None
) -> str | None:
    """Why a day can't be dropped yet; None if it can."""
    start = midnight(day)
    archived = archived_hours(connection, start, start + DAY)
    counts = count_in_database(connection, "1 hour", start, start + DAY, *([table] if table else []))
    missing = [hour for hour in _hours(start) if hour not in archived]
    if missing:
        return f"never archived: {_list_hours(missing)}"
    changed = [hour for hour in _hours(start) if not _matches(archived[hour], counts.get(hour, Counted()))]
    if changed:
        return f"events came since it was archived: {_list_hours(changed)}"
    damaged = [hour for hour, row in archived.items() if store.facts(row.key) != FileFacts(row.bytes, row.sha256)]
    if damaged:
        return f"the file is missing or was changed: {_list_hours(damaged)}; materialise raw_events for it"
    return None


def _matches(row: ArchivedHour, counted: Counted) -> bool:
    return (row.database_rows, row.checksum) == (counted.rows, counted.checksum)


def _kept(connection: psycopg.Connection[Any], day: date, reason: str) -> DayFate:
    start = midnight(day)
    counts = count_in_database(connection, "1 day", start, start + DAY)
    return DayFate(day, sum(counted.rows for counted in counts.values()), dropped=False, reason=reason)


def _hours(start: datetime) -> list[datetime]:
    return [start + HOUR * index for index in range(24)]


def _list_hours(hours: list[datetime]) -> str:
    """`hours 00–05, 09 (UTC)`."""
    spans = [
        f"{first:02}" if first == last else f"{first:02}–{last:02}"
        for first, last in _spans([hour.hour for hour in hours])
    ]
    return f"hours {', '.join(spans)} (UTC)"


def _spans(numbers: list[int]) -> list[tuple[int, int]]:
    """The first and last of each run of consecutive numbers."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return list(zip(starts, ends, strict=True))
