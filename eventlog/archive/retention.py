"""Retention: days that are old enough and wholly archived leave PostgreSQL; the archive keeps them for ever.

The steps: renamed, detached, archived once more, verified, dropped. A process that is killed anywhere leaves a table `…_leaving`, and the
next run goes on from there; until the drop is committed, nothing is lost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from psycopg import errors, sql

from eventlog.archive.archiving import archive_hours
from eventlog.archive.counting import Counted, count_in_database
from eventlog.archive.hours import (
    ArchivedHour,
    archive_lock,
    archived_hours,
    forget_restored,
    kept_until,
    record_dropped,
)
from eventlog.archive.manifest import is_told_of
from eventlog.archive.period_file import ArchiveError
from eventlog.partitions import event_days, leaving_days, take_out
from foundation.audit import Change, write_audit
from foundation.object_store import FileFacts, ObjectStore

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
LOCK_TIMEOUT = "60s"
"""Detaching waits for every transaction that uses events; one that stays open this long makes the day wait for the next run."""


CHANGE = Change("event_retention", "older than the retention, and all of it in the archive")


@dataclass(frozen=True)
class DayFate:
    """What became of a day that is older than the retention; `reason` says why it was kept, and is empty where it was dropped."""

    day: date
    rows: int
    dropped: bool
    reason: str = ""


def apply_retention(
    connection: psycopg.Connection[Any], store: ObjectStore, keep_days: int, today: date
) -> Iterator[DayFate]:
    """Drop each day before `today` - `keep_days` that is wholly archived, the oldest first; say what became of each.

    `connection` is in autocommit mode. Events before the first day (history) stay. A day is dropped only when its 24 hours are archived,
    their files are as they were written and as the manifest tells, and, after it was detached, every event that it holds is counted in
    them. Raises ArchiveError when a detached day can't be archived (it stays), EventReadError, foundation.object_store.StoreError.
    """
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
    stuck: list[ArchiveError] = []
    due = [day for day in event_days(connection) if day < today - DAY * keep_days]
    # Those that an earlier run began with come first.
    for day in dict.fromkeys([*(leaving.day for leaving in leaving_days(connection)), *due]):
        try:
            yield _fate(connection, store, day)
        except errors.LockNotAvailable:
            yield _kept(connection, day, "in use by a transaction that stays open; the next run tries again")
        except ArchiveError as error:
            # One day that can't be archived must not keep all the others.
            stuck.append(error)
    if stuck:
        raise ArchiveError(" ".join(map(str, stuck)))


def _fate(connection: psycopg.Connection[Any], store: ObjectStore, day: date) -> DayFate:
    if any(leaving.day == day for leaving in leaving_days(connection)):
        return _leave(connection, store, day)
    _archive_empty_hours(connection, store, day)
    # A restore that begins meanwhile waits for this lock, and one that has begun is waited for.
    with archive_lock(connection, [day]):
        until = kept_until(connection).get(day)
        if until is not None and until > datetime.now(UTC):
            return _kept(connection, day, f"restored, and kept until {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
        if (reason := _not_archived(connection, store, day)) is not None:
            return _kept(connection, day, reason)
        return _leave(connection, store, day)


def _archive_empty_hours(connection: psycopg.Connection[Any], store: ObjectStore, day: date) -> None:
    """Nothing asks for an hour without events that its schedule left out, as while the machine slept; it must not keep the day for ever."""
    start = _midnight(day)
    known = archived_hours(connection, start, start + DAY)
    counts = count_in_database(connection, "1 hour", start, start + DAY)
    for first, last in _spans([hour.hour for hour in _hours(start) if hour not in known and hour not in counts]):
        archive_hours(connection, store, start + first * HOUR, start + (last + 1) * HOUR)


def _leave(connection: psycopg.Connection[Any], store: ObjectStore, day: date) -> DayFate:
    start = _midnight(day)
    # Other runs of the archive wait, so that what is counted here is what is dropped.
    with archive_lock(connection, [day]):
        leaving = take_out(connection, day)
        # Nothing writes to it any more: what came since the day was last archived joins the files now.
        hours = archive_hours(connection, store, start, start + DAY, leaving.table)
        rows = sum(hour.database_rows for hour in hours)
        with connection.transaction():
            _require_everything(connection, store, day, leaving.table)
            connection.execute(sql.SQL("DROP TABLE {}").format(leaving.table))
            record_dropped(connection, day)
            forget_restored(connection, day)
            write_audit(
                connection, change=CHANGE, action="events.day_dropped", subject=f"events of {day}",
                before={"rows": rows}, after={"archived": sum(hour.rows for hour in hours)},
            )  # fmt: skip
    return DayFate(day, rows, dropped=True)


def _require_everything(
    connection: psycopg.Connection[Any], store: ObjectStore, day: date, table: sql.Identifier
) -> None:
    """Count the table once more in the transaction that drops it, and look at the files and at what a restore will go by."""
    reason = _not_archived(connection, store, day, table)
    start = _midnight(day)
    if reason is None and not is_told_of(store, day, archived_hours(connection, start, start + DAY).values()):
        reason = "the day's manifest does not tell of its files as they are; run it again"
    if reason is not None:
        raise ArchiveError(f"The events of {day} stay in {table.as_string(connection)}: {reason}.")


def _not_archived(
    connection: psycopg.Connection[Any], store: ObjectStore, day: date, table: sql.Identifier | None = None
) -> str | None:
    """Why a day may not go yet, or None."""
    start = _midnight(day)
    known = archived_hours(connection, start, start + DAY)
    counts = count_in_database(connection, "1 hour", start, start + DAY, *([table] if table else []))
    never = [hour for hour in _hours(start) if hour not in known]
    if never:
        return f"never archived: {_named(never)}"
    changed = [hour for hour in _hours(start) if not _counted(known[hour], counts.get(hour, Counted()))]
    if changed:
        return f"events came since it was archived: {_named(changed)}"
    broken = [hour for hour, row in known.items() if store.facts(row.key) != FileFacts(row.bytes, row.sha256)]
    if broken:
        return f"the file is gone or not the one that was written: {_named(broken)}; materialise raw_events for it"
    return None


def _counted(row: ArchivedHour, counted: Counted) -> bool:
    return (row.database_rows, row.checksum) == (counted.rows, counted.checksum)


def _kept(connection: psycopg.Connection[Any], day: date, reason: str) -> DayFate:
    start = _midnight(day)
    counts = count_in_database(connection, "1 day", start, start + DAY)
    return DayFate(day, sum(counted.rows for counted in counts.values()), dropped=False, reason=reason)


def _hours(start: datetime) -> list[datetime]:
    return [start + HOUR * index for index in range(24)]


def _named(hours: list[datetime]) -> str:
    """`hours 00–05, 09 (UTC)`."""
    spans = [
        f"{first:02}" if first == last else f"{first:02}–{last:02}"
        for first, last in _spans([hour.hour for hour in hours])
    ]
    return f"hours {', '.join(spans)} (UTC)"


def _spans(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of numbers that follow each other."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return list(zip(starts, ends, strict=True))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
