"""Creates Dagster's own tables in one process, before Dagster's three processes start. Two processes that create them at the same
time fail with `type "run_tags" already exists`, as happened at a first start.

Runs as a separate command (`python -m orchestration.local.dagster_tables`), because it needs Dagster and the children's environment.
"""

import psycopg

from orchestration.local.postgres import CONNECT_SECONDS

_ONE_OF_EACH_STORAGE = ("runs", "event_logs", "job_ticks")


def missing(dagster_url: str) -> bool:
    """Whether any of the instance's three storages has no tables yet. Uses SQL, because importing Dagster is slow."""
    with psycopg.connect(dagster_url, connect_timeout=CONNECT_SECONDS) as connection:
        row = connection.execute(
            "SELECT bool_or(to_regclass(name) IS NULL) FROM unnest(%s::text[]) AS name", [list(_ONE_OF_EACH_STORAGE)]
        ).fetchone()
    return bool(row and row[0])


def main() -> None:
    """Create the missing tables. Each storage creates its tables in one transaction when it is first opened."""
    from dagster import DagsterInstance

    with DagsterInstance.get() as instance:
        for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
            assert storage is not None


if __name__ == "__main__":
    main()
