"""Sensors: runs that start when something happens.

A sensor that ticks twice requests the same run key, so only one run starts.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg

from assets.events.asset import MOST_SILENCE, events_arrive
from assets.groups import EVENTS_TABLE
from assets.partitions import HOUR_KEY, MODEL_VERSIONS, model_version_key
from eventlog.archive.hours import anything_archived, last_arrival, mark_late_hours, waiting_hours
from foundation.settings import settings
from orchestration.jobs import archive_job, replay_job, silence_job
from product.installed import installed_product

# A killed run leaves no result, so it is requested again, but a model that breaks its replay every time is not replayed for ever.
MOST_ATTEMPTS = 3
# Sensors follow up on what schedules start, so they are off where schedules are off.
_STATUS = dg.DefaultSensorStatus.RUNNING if settings().schedules else dg.DefaultSensorStatus.STOPPED
# The schedule archives the previous hour at :05. The sensor requests only what the schedule missed.
GRACE = timedelta(minutes=20)
MOST_RANGES = 10
FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=5), timedelta(hours=6)
RAW_EVENTS = dg.AssetKey("raw_events")
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@dg.sensor(
    job=replay_job,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Each new version of the product's model is replayed and judged by the gate, no matter who registered it.",
)
def new_model_version(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Request one replay run for each registered version that has no replay result yet."""
    settled = _settled_versions()
    waiting = [key for key in _registered_versions() if key not in settled]
    if not waiting:
        return dg.SkipReason(f"Every version of {installed_product().model_name} has its replay result.")
    requests, skipped = [], []
    for key in waiting:
        attempts = _attempts(context.instance, key)
        if attempts is None:
            skipped.append(f"{key} is being replayed")
        elif attempts >= MOST_ATTEMPTS:
            skipped.append(f"{key} broke its replay {attempts} times: fix the cause and launch the job by hand")
        else:
            requests.append(dg.RunRequest(run_key=f"{key}#{attempts + 1}", partition_key=key))
    if not requests:
        return dg.SkipReason("; ".join(skipped) + ".")
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[
            MODEL_VERSIONS.build_add_request([str(request.partition_key) for request in requests])
        ],
    )


def _registered_versions() -> Iterator[str]:
    from training.registry import candidate_versions

    for version in candidate_versions(settings().tracking_uri, installed_product().model_name):
        yield model_version_key(version.name, version.version)


def _settled_versions() -> set[str]:
    from replay.stored_results import settled_model_versions

    with psycopg.connect(settings().platform_url, connect_timeout=10) as connection:
        return {model_version_key(name, int(version)) for name, version in settled_model_versions(connection)}


def _attempts(instance: dg.DagsterInstance, key: str) -> int | None:
    """How many replay runs of this version ended without a result; None while a run is under way."""
    runs = instance.get_runs(dg.RunsFilter(job_name=replay_job.name, tags={"dagster/partition": key}))
    return None if any(not run.is_finished for run in runs) else len(runs)


@dg.sensor(
    job=archive_job,
    minimum_interval_seconds=120,
    default_status=_STATUS,
    description="Archives hours that got late events or that the schedule missed, in one run per range of hours.",
)
def late_events(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Request the waiting hours, unless an archive run is under way. A range that failed waits before its next run."""
    first_day, now = settings().lineage_start, datetime.now(UTC)
    with psycopg.connect(settings().platform_url, connect_timeout=10) as connection:
        if not anything_archived(connection):
            return dg.SkipReason("Nothing was archived yet: archive_hourly or a backfill has to start.")
        mark_late_hours(connection, first_day)
        waiting = waiting_hours(connection, first_day, now - GRACE)
    if not waiting:
        return dg.SkipReason("Every full hour of events is archived.")
    if any(_archives(run) for run in context.instance.get_runs(dg.RunsFilter(statuses=UNDER_WAY))):
        return dg.SkipReason(f"{len(waiting)} hours wait for the archive run that is under way.")
    requests, skipped = [], []
    for first, last in hour_ranges(waiting)[:MOST_RANGES]:
        tags = {
            RANGE_START: first.strftime(HOUR_KEY),
            RANGE_END: last.strftime(HOUR_KEY),
        }
        runs = context.instance.get_run_records(dg.RunsFilter(job_name=archive_job.name, tags=tags))
        ready = _ready_after(runs)
        if ready is not None and now < ready:
            skipped.append(
                f"the archive run of {first:%Y-%m-%d %H}:00 failed, the next one starts at {ready:%H:%M} UTC"
            )
        else:
            key = f"{tags[RANGE_START]}..{tags[RANGE_END]}#{len(runs) + 1}"
            requests.append(dg.RunRequest(run_key=key, tags=tags))
    return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason("; ".join(skipped) + ".")


UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def _archives(run: dg.DagsterRun) -> bool:
    return run.job_name == archive_job.name or RAW_EVENTS in (run.asset_selection or ())


def hour_ranges(hours: Sequence[datetime]) -> list[tuple[datetime, datetime]]:
    """First and last hour of each range, in order. Hours less than a day apart share a range: the hours between cost little to check."""
    ranges: list[tuple[datetime, datetime]] = []
    for hour in sorted(hours):
        if ranges and hour - ranges[-1][1] < timedelta(days=1):
            ranges[-1] = (ranges[-1][0], hour)
        else:
            ranges.append((hour, hour))
    return ranges


def _ready_after(runs: Sequence[dg.RunRecord]) -> datetime | None:
    """When a range whose latest runs failed may run again, None for now. The wait doubles with each failure."""
    failures = 0
    for record in runs:  # the latest first
        if record.dagster_run.is_success:
            break
        failures += 1
    if not failures or runs[0].end_time is None:
        return None
    wait: timedelta = min(FIRST_WAIT * 2 ** min(failures - 1, 10), LONGEST_WAIT)
    return datetime.fromtimestamp(runs[0].end_time, UTC) + wait


@dg.sensor(
    job=silence_job,
    minimum_interval_seconds=60,
    default_status=_STATUS,
    description="After an hour without events, the check events_arrive of exp/events fails, and a run of alert_no_events fails once.",
)
def no_events_for_an_hour(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Report a silence once it is too long, and again when it ends. The cursor is the last event before the reported silence."""
    now = datetime.now(UTC)
    with psycopg.connect(settings().platform_url, connect_timeout=10) as connection:
        latest = last_arrival(connection)
    if latest is None:
        return dg.SkipReason("No event was ever stored.")
    since = f"{latest.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if now - latest <= MOST_SILENCE:
        reason = f"The last event came at {since}."
        if not context.cursor:
            return dg.SkipReason(reason)
        return dg.SensorResult(
            skip_reason=f"Events arrive again. {reason}",
            cursor="",
            asset_events=[_arrival_check(passed=True, latest=since)],
        )
    if context.cursor == since:
        return dg.SkipReason(f"No event came since {since}; this was reported.")
    context.log.error(f"No event came since {since}.")
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"silent since {since}", run_config={"ops": {"tell_of_silence": {"config": {"since": since}}}}
            )
        ],
        cursor=since,
        asset_events=[_arrival_check(passed=False, latest=since)],
    )


def _arrival_check(*, passed: bool, latest: str) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=EVENTS_TABLE,
        check_name=events_arrive.check_key.name,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"last event": dg.MetadataValue.text(latest)},
    )


all_sensors = [new_model_version, late_events, no_events_for_an_hour]
