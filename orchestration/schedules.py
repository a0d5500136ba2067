"""Schedules (UTC).

`LIFECYCLE_SCHEDULES=false` leaves every schedule stopped by default. The switch in the UI overrides the default.
"""

import dagster as dg

from foundation.settings import settings
from orchestration.jobs import analytics_job, archive_job, cleaning_job, dataset_job, retention_job

_STATUS = dg.DefaultScheduleStatus.RUNNING if settings().schedules else dg.DefaultScheduleStatus.STOPPED

archive_hourly = dg.build_schedule_from_partitioned_job(
    archive_job,
    name="archive_hourly",
    minute_of_hour=5,
    default_status=_STATUS,
    description="Archives the previous hour at :05.",
)
clean_daily = dg.build_schedule_from_partitioned_job(
    cleaning_job,
    name="clean_daily",
    hour_of_day=0,
    minute_of_hour=30,
    default_status=_STATUS,
    description="Cleans the previous day at 00:30.",
)
dataset_daily = dg.build_schedule_from_partitioned_job(
    dataset_job,
    name="dataset_daily",
    hour_of_day=2,
    minute_of_hour=0,
    default_status=_STATUS,
    description="Builds the dataset of the previous day at 02:00.",
)
retention_daily = dg.ScheduleDefinition(
    name="retention_daily",
    job=retention_job,
    cron_schedule="0 3 * * *",
    default_status=_STATUS,
    description="Drops days that are old enough from PostgreSQL at 03:00, after the other daily schedules.",
)
metrics_hourly = dg.ScheduleDefinition(
    name="metrics_hourly",
    job=analytics_job,
    cron_schedule="5 * * * *",
    default_status=_STATUS,
    description="Builds the metric aggregates of the previous hour, and of late events, at :05.",
)
metrics_daily = dg.ScheduleDefinition(
    name="metrics_daily",
    job=analytics_job,
    cron_schedule="0 1 * * *",
    default_status=_STATUS,
    description="Builds the metric aggregates of the previous day from its hours at 01:00.",
)

all_schedules = [archive_hourly, clean_daily, dataset_daily, retention_daily, metrics_hourly, metrics_daily]
