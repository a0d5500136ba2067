"""Dagster's own tables, made by one process before its three start: two that make them at once fail on each other's types
(`type "run_tags" already exists`, seen at a first start).

A command of its own (`python -m orchestration.local.dagster_tables`), because it needs Dagster and the children's environment.
"""

import psycopg

from orchestration.local.postgres import CONNECT_SECONDS

_ONE_OF_EACH_STORAGE = ("runs", "event_logs", "job_ticks")


def missing(dagster_url: str) -> bool:
    """Whether one of the instance's three storages has no tables yet. Asked by SQL, which takes no time."""
    with psycopg.connect(dagster_url, connect_timeout=CONNECT_SECONDS) as connection:
        row = connection.execute(
            "SELECT bool_or(to_regclass(name) IS NULL) FROM unnest(%s::text[]) AS name", [list(_ONE_OF_EACH_STORAGE)]
        ).fetchone()
    return bool(row and row[0])


def main() -> None:
    """Make what is missing. Each storage makes its tables in one transaction when it is first opened."""
    from dagster import DagsterInstance

    with DagsterInstance.get() as instance:
        for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
            assert storage is not None


if __name__ == "__main__":
    main()
