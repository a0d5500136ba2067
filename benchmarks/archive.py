"""Measuring the archiving of an hour of events against COPY of the same rows out of PostgreSQL."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg

from benchmarks.figures import Figure

ARCHIVE_DAY = date(2026, 1, 6)
HOUR = datetime(2026, 1, 6, 10, tzinfo=UTC)
GOAL_PER_SECOND = 200_000
COLUMNS = "id, event_type, unit_type, unit_id, experiments, context, metrics, payload, timestamp, created_at, flags"

# About 500 bytes each, in order of arrival: up to five seconds late.
_FILL = """
INSERT INTO exp.events (id, event_type, unit_type, unit_id, experiments, context, metrics, payload, "timestamp", created_at)
SELECT md5(n::text)::uuid, (ARRAY['plan_generated', 'plan_accepted', 'exposure', 'meal_swapped'])[1 + n %% 4],
       'household', 'h' || n %% 5000,
       '[{"experiment_id": "00000000-0000-4000-8000-000000000001", "variant_id": "00000000-0000-4000-8000-000000000002"}]',
       jsonb_build_object('policy_version_id', '00000000-0000-4000-8000-000000000003', 'session_id', 's' || n / 20, 'platform', 'ios'),
       jsonb_build_object('latency_ms', n %% 977 + 0.5, 'token_count', n %% 13, 'cost_usd', 0.002),
       jsonb_build_object('plan_id', 'p' || n, 'meals', jsonb_build_array('r' || n %% 97, 'r' || n %% 89, 'r' || n %% 83, 'r' || n %% 79)),
       moment, moment + interval '1 second'
FROM generate_series(0, %(count)s - 1) AS n,
     LATERAL (SELECT greatest(%(start)s::timestamptz,
                              %(start)s::timestamptz + n * (interval '1 hour' / %(count)s) - n %% 5 * interval '1 s'))
     AS times (moment)
"""


def measure_archive(url: str, folder: Path, count: int, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Archive an hour of `count` generated events in the empty, migrated database at `url`; medians of `rounds`, each in a new process."""
    from eventlog.partitions import ensure_event_days, ensure_event_partitions

    with psycopg.connect(url, autocommit=True) as connection:
        ensure_event_partitions(connection, ARCHIVE_DAY, days_ahead=0, keep_days=1)
        ensure_event_days(connection, [ARCHIVE_DAY])
        connection.execute(_FILL, {"count": count, "start": HOUR})
        # The state in which autovacuum leaves the table a minute after the last event.
        connection.execute("VACUUM ANALYZE exp.events")
        say(f"archiving an hour of {count:,} events {rounds} times, and COPY of the same rows")
        runs, floors = [], []
        for number in range(rounds):
            connection.execute("TRUNCATE exp.archived_hours")
            runs.append(_archive_in_a_process(url, folder / f"archive{number}"))
            floors.append(_copy_out(connection))
    seconds = statistics.median(duration for duration, _ in runs)
    floor = statistics.median(floors)
    peak = max(memory for _, memory in runs)
    say(f"the archiving process took at most {peak:,.0f} MB")
    return [
        Figure(
            path="archive an hour: Parquet, read back, counted",
            what=f"events, {peak:,.0f} MB",
            per_second=count / seconds,
            floor="COPY of the same rows out",
            floor_per_second=count / floor,
            goal=GOAL_PER_SECOND * floor / count,
        )
    ]


def _archive_in_a_process(url: str, folder: Path) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(archive_once, (url, str(folder)))


def archive_once(url: str, folder: str) -> tuple[float, float]:
    """Archive the hour into an empty folder; returns the seconds it took and the process's peak memory in MB."""
    from eventlog.archive.archiving import archive_hours
    from foundation.object_store import ObjectStore

    with psycopg.connect(url) as connection:
        started = time.perf_counter()
        archive_hours(connection, ObjectStore(folder), HOUR, HOUR + timedelta(hours=1))
        seconds = time.perf_counter() - started
    return seconds, _peak_mb()


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _copy_out(connection: psycopg.Connection[tuple[object, ...]]) -> float:
    started = time.perf_counter()
    query = f"COPY (SELECT {COLUMNS} FROM exp.events WHERE timestamp >= %s AND timestamp < %s) TO STDOUT"
    with connection.cursor().copy(query, (HOUR, HOUR + timedelta(hours=1))) as copy:
        for _ in copy:
            pass
    return time.perf_counter() - started
