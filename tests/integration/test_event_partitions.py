"""The daily partitions of events: created ahead, by several processes at once, in any session time zone."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from eventlog.partitions import ensure_event_days, ensure_event_partitions, event_days
from foundation.errors import LifecycleError

ADD_EVENT = "INSERT INTO exp.events (event_type, unit_type, unit_id, timestamp) VALUES ('plan_accepted', 'household', 'h-1', %s)"
PARTITIONS_OF_EVENTS = "SELECT tableoid::regclass::text, timestamp FROM exp.events ORDER BY timestamp"


def today() -> date:
    return datetime.now(UTC).date()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_events_are_stored_in_the_partition_of_their_utc_day(database_url: str, zone: str) -> None:
    first = today() - timedelta(days=1)
    start = datetime.combine(first, datetime.min.time(), UTC)
    with psycopg.connect(database_url, options=f"-c timezone={zone}", row_factory=dict_row) as connection:
        assert ensure_event_partitions(connection, first, days_ahead=1) == 4
        assert ensure_event_partitions(connection, first, days_ahead=1) == 0
        moments = [
            datetime(2001, 9, 9, tzinfo=UTC),
            start - timedelta(microseconds=1),
            start,
            start + timedelta(days=1, microseconds=-1),
            start + timedelta(days=1),
        ]
        for moment in moments:
            connection.execute(ADD_EVENT, (moment,))
        stored = [(row["tableoid"], row["timestamp"]) for row in connection.execute(PARTITIONS_OF_EVENTS)]
        partitions = [
            "events_history", "events_history", f"events_{first:%Y%m%d}", f"events_{first:%Y%m%d}", f"events_{today():%Y%m%d}",
        ]  # fmt: skip
        assert stored == [(f"exp.{name}", moment) for name, moment in zip(partitions, moments, strict=True)]
        # The caller's session is unchanged.
        assert connection.execute("SHOW timezone").fetchone() == {"TimeZone": zone}


def test_partitions_are_added_when_more_days_ahead_are_needed(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, today(), days_ahead=0)
        assert ensure_event_partitions(connection, today(), days_ahead=3) == 3


def test_event_is_rejected_when_its_day_has_no_partition(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, today(), days_ahead=0)
        with pytest.raises(errors.CheckViolation, match="no partition"):
            connection.execute(ADD_EVENT, (datetime.now(UTC) + timedelta(days=2),))


def test_partitions_are_refused_when_the_first_day_changes(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, date(2025, 1, 3), days_ahead=-10000)
        with pytest.raises(
            LifecycleError,
            match=r"history ends on 2025-01-03, but LIFECYCLE_FIRST_DAY is 2025-01-04",
        ):
            ensure_event_partitions(connection, date(2025, 1, 4))


def test_partitions_are_created_once_when_processes_run_in_parallel(database_url: str) -> None:
    def make(_: int) -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            return ensure_event_partitions(connection, today() - timedelta(days=3), days_ahead=1)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(4))) == [0, 0, 0, 6]


def test_partitions_of_old_days_are_created_only_on_demand(database_url: str) -> None:
    first, old = today() - timedelta(days=30), today() - timedelta(days=20)
    with psycopg.connect(database_url, autocommit=True) as connection:
        with pytest.raises(LifecycleError, match="no partitions of events yet"):
            ensure_event_days(connection, [old])
        # History, three days, today and a day ahead.
        assert ensure_event_partitions(connection, first, days_ahead=1, keep_days=3) == 6
        assert event_days(connection) == [today() + timedelta(days=index) for index in range(-3, 2)]

    def make(_: int) -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            return ensure_event_days(connection, [old, today(), first - timedelta(days=1), first])

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(4))) == [0, 0, 0, 2]


def test_partitions_are_recognised_by_their_bounds_when_renamed(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        ensure_event_partitions(connection, today(), days_ahead=0)
        connection.execute(f"ALTER TABLE exp.events_{today():%Y%m%d} RENAME TO events_renamed")
        assert ensure_event_partitions(connection, today(), days_ahead=0) == 0
        assert ensure_event_days(connection, [today()]) == 0


def test_events_can_be_stored_while_a_day_is_added(database_url: str) -> None:
    with psycopg.connect(database_url) as writer, psycopg.connect(database_url) as other:
        ensure_event_partitions(writer, today(), days_ahead=0)
        writer.commit()
        writer.execute(ADD_EVENT, (datetime.now(UTC),))
        # `writer` has not committed: a lock on the whole table would wait here.
        other.execute("SET lock_timeout = '2s'")
        assert ensure_event_partitions(other, today(), days_ahead=1) == 1
        writer.execute(ADD_EVENT, (datetime.now(UTC),))
        other.commit()
        writer.commit()
        assert writer.execute("SELECT count(*) FROM exp.events").fetchone() == (2,)


def test_partitions_have_the_constraints_and_indexes_of_the_table(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        ensure_event_partitions(connection, today(), days_ahead=0)
        with pytest.raises(errors.CheckViolation, match="unit_type"):
            connection.execute(
                "INSERT INTO exp.events (event_type, unit_type, unit_id, timestamp) VALUES ('plan_accepted', 'person', 'p', now())"
            )
        counted = connection.execute(
            "SELECT tablename, count(*) FROM pg_indexes WHERE schemaname = 'exp' AND tablename LIKE 'events%' GROUP BY 1"
        ).fetchall()
        assert len(counted) == 3
        assert len({indexes for _, indexes in counted}) == 1
