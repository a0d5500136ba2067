"""The top layer: Dagster definitions, schedules, sensors, the command line and the local services."""
