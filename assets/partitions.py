"""Partition definitions and the mappings between them.

The first day is a setting (`LIFECYCLE_FIRST_DAY`). Events before it are history, in two unpartitioned assets.
"""

from datetime import UTC, date, datetime, time, timedelta

import dagster as dg

from foundation.settings import settings

HOUR_KEY, DAY_KEY = "%Y-%m-%d-%H:%M", "%Y-%m-%d"
"""Formats of Dagster's own hourly and daily partition keys."""

MODEL_VERSIONS = dg.DynamicPartitionsDefinition(name="model_versions")
"""One partition per registered model version, with keys from `model_version_key`."""

# Longer windows are still read in full. Only the lineage graph stops here, because the mapping walks day by day.
_LONGEST_DRAWN_WINDOW = 366


def hourly(first_day: date) -> dg.HourlyPartitionsDefinition:
    """UTC hours from `first_day` on."""
    return dg.HourlyPartitionsDefinition(start_date=datetime.combine(first_day, time(), UTC))


def daily(first_day: date) -> dg.DailyPartitionsDefinition:
    """UTC days from `first_day` on."""
    return dg.DailyPartitionsDefinition(start_date=datetime.combine(first_day, time(), UTC))


HOURLY = hourly(settings().lineage_start)
DAILY = daily(settings().lineage_start)


def window_mapping(days: int) -> dg.TimeWindowPartitionMapping:
    """A daily partition depends on the `days` days that end with it, as far as they exist."""
    return dg.TimeWindowPartitionMapping(
        start_offset=1 - min(days, _LONGEST_DRAWN_WINDOW), end_offset=0, allow_nonexistent_upstream_partitions=True
    )


def dataset_window(partition_key: str, days: int) -> tuple[datetime, datetime]:
    """The window [start, end) of a day's dataset: the `days` days that end with that day, in UTC."""
    end = datetime.combine(date.fromisoformat(partition_key) + timedelta(days=1), time(), UTC)
    return end - timedelta(days=days), end


def model_version_key(name: str, version: int) -> str:
    """`planner_model@2`: the partition of a model version."""
    return f"{name}@{version}"


def parse_model_version_key(key: str) -> tuple[str, int]:
    """Inverse of `model_version_key`. Raises ValueError if the key has another form."""
    name, _, version = key.rpartition("@")
    if not name or not version.isdigit():
        raise ValueError(f"'{key}' is not a model version: write it as name@number, such as planner_model@2.")
    return name, int(version)
