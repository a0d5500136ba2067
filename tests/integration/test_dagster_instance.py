"""Dagster's instance as the home configures it: it stores runs in PostgreSQL, and step logs in the bucket if the store is one."""

from io import TextIOBase
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.compute_log_manager import ComputeIOType

from foundation.settings import Settings, settings
from orchestration.local.databases import ensure_reachable
from orchestration.local.environment import child_environment, write_dagster_home
from orchestration.local.home import prepare

pytest_plugins = ["s3_service"]


def instance_of(current: Settings, monkeypatch: pytest.MonkeyPatch) -> DagsterInstance:
    """The instance that a child of this home opens."""
    for name, value in child_environment(current).items():
        monkeypatch.setenv(name, value)
    return DagsterInstance.from_config(str(write_dagster_home(current)))


@pytest.fixture
def on_postgres(home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a home on the test's PostgreSQL, with the databases of Dagster and MLflow created."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    settings.cache_clear()
    ensure_reachable(settings())
    return prepare(settings())


def test_storage_queue_and_retries_match_the_template(on_postgres: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with instance_of(on_postgres, monkeypatch) as instance:
        assert type(instance.run_storage).__module__.startswith("dagster_postgres")
        assert type(instance.event_log_storage).__module__.startswith("dagster_postgres")
        assert not instance.telemetry_enabled and not instance.nux_enabled
        assert instance.run_monitoring_enabled
        assert (instance.run_retries_enabled, instance.run_retries_max_retries) == (True, 0)
        assert not instance.run_retries_retry_on_asset_or_op_failure
        queue, coordinator = instance.get_concurrency_config().run_queue_config, instance.run_coordinator
        assert queue is not None and queue.max_concurrent_runs == 2
        assert isinstance(coordinator, QueuedRunCoordinator) and coordinator.dequeue_interval_seconds == 1
        assert instance.get_run_records() == []


def test_step_logs_go_to_the_bucket(
    on_postgres: Settings, s3_root: str, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_bucket = on_postgres.model_copy(update={"store": s3_root})
    key = ["a-run", "compute_logs", "a-step"]
    with instance_of(in_bucket, monkeypatch) as instance:
        assert type(instance.compute_log_manager).__name__ == "S3ComputeLogManager"
        with instance.compute_log_manager.open_log_stream(key, ComputeIOType.STDERR) as stream:
            assert isinstance(stream, TextIOBase)
            stream.write("hello from a step")

    import fsspec

    logs = f"{s3_root}/compute-logs/storage/a-run/compute_logs"
    assert fsspec.filesystem("s3", endpoint_url=s3_environment).cat(f"{logs}/a-step.err") == b"hello from a step"
