"""The daily partitions of events: made ahead, by several processes at once, whatever the session's time zone."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from eventlog.partitions import ensure_event_days, ensure_event_partitions, event_days
from experimentation.runs.run import ExperimentationError

ADD_EVENT = "INSERT INTO exp.events (event_type, unit_type, unit_id, timestamp) VALUES ('plan_accepted', 'household', 'h-1', %s)"
WHERE_THEY_ARE = "SELECT tableoid::regclass::text, timestamp FROM exp.events ORDER BY timestamp"


def today() -> date:
    return datetime.now(UTC).date()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_events_lie_in_the_partition_of_their_day_in_utc(database_url: str, zone: str) -> None:
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
        found = [(row["tableoid"], row["timestamp"]) for row in connection.execute(WHERE_THEY_ARE)]
        partitions = [
            "events_history", "events_history", f"events_{first:%Y%m%d}", f"events_{first:%Y%m%d}", f"events_{today():%Y%m%d}",
        ]  # fmt: skip
        assert found == [(f"exp.{name}", moment) for name, moment in zip(partitions, moments, strict=True)]
        # The caller's session is as it was.
        assert connection.execute("SHOW timezone").fetchone() == {"TimeZone": zone}


def test_more_days_are_added_to_those_that_are_there(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, today(), days_ahead=0)
        assert ensure_event_partitions(connection, today(), days_ahead=3) == 3


def test_an_event_without_a_partition_is_refused_and_not_hidden_in_a_default_one(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, today(), days_ahead=0)
        with pytest.raises(errors.CheckViolation, match="no partition"):
            connection.execute(ADD_EVENT, (datetime.now(UTC) + timedelta(days=2),))


def test_the_first_day_does_not_move(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, date(2025, 1, 3), days_ahead=-10000)
        with pytest.raises(
            ExperimentationError,
            match=r"history ends on 2025-01-03 and the first day is set to 2025-01-04: .*LIFECYCLE_FIRST_DAY",
        ):
            ensure_event_partitions(connection, date(2025, 1, 4))


def test_several_processes_may_make_them_at_once(database_url: str) -> None:
    def make(_: int) -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            return ensure_event_partitions(connection, today() - timedelta(days=3), days_ahead=1)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(4))) == [0, 0, 0, 6]


def test_old_days_are_made_on_demand_alone(database_url: str) -> None:
    first, old = today() - timedelta(days=30), today() - timedelta(days=20)
    with psycopg.connect(database_url, autocommit=True) as connection:
        with pytest.raises(ExperimentationError, match="no partitions of events yet"):
            ensure_event_days(connection, [old])
        # History, three days, today and a day ahead.
        assert ensure_event_partitions(connection, first, days_ahead=1, keep_days=3) == 6
        assert event_days(connection) == [today() + timedelta(days=index) for index in range(-3, 2)]

    def make(_: int) -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            return ensure_event_days(connection, [old, today(), first - timedelta(days=1), first])

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(4))) == [0, 0, 0, 2]


def test_days_are_known_by_their_bounds(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        ensure_event_partitions(connection, today(), days_ahead=0)
        connection.execute(f"ALTER TABLE exp.events_{today():%Y%m%d} RENAME TO events_of_somebody")
        assert ensure_event_partitions(connection, today(), days_ahead=0) == 0
        assert ensure_event_days(connection, [today()]) == 0


def test_events_can_be_stored_and_read_while_a_day_is_added(database_url: str) -> None:
    with psycopg.connect(database_url) as one, psycopg.connect(database_url) as other:
        ensure_event_partitions(one, today(), days_ahead=0)
        one.commit()
        one.execute(ADD_EVENT, (datetime.now(UTC),))
        # `one` has not committed: what needed the whole table for itself would wait here.
        other.execute("SET lock_timeout = '2s'")
        assert ensure_event_partitions(other, today(), days_ahead=1) == 1
        one.execute(ADD_EVENT, (datetime.now(UTC),))
        other.commit()
        one.commit()
        assert one.execute("SELECT count(*) FROM exp.events").fetchone() == (2,)


def test_partitions_carry_the_rules_and_indexes_of_the_whole(database_url: str) -> None:
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
