"""The environment of child processes: addresses of the platform under the names that other programs expect."""

from pathlib import Path

import pytest
import yaml

from foundation.settings import PROJECT_ROOT, Settings, settings
from orchestration.local.environment import child_environment, code_socket, write_dagster_home
from orchestration.local.home import prepare

URL = "postgresql://me:p%40ss%2Fword@db.example:5433/platform?sslmode=require"


@pytest.fixture
def external(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with the user's own PostgreSQL."""
    monkeypatch.setenv("DATABASE_URL", URL)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    return prepare(settings())


def test_all_programs_use_the_same_database(external: Settings) -> None:
    environment = child_environment(external)

    assert environment["DATABASE_URL"] == URL
    assert (
        environment["DAGSTER_POSTGRES_URL"]
        == "postgresql+psycopg2://me:p%40ss%2Fword@db.example:5433/dagster?sslmode=require"
    )
    assert (
        environment["MLFLOW_TRACKING_URI"]
        == "postgresql+psycopg2://me:p%40ss%2Fword@db.example:5433/mlflow?sslmode=require"
    )
    assert {name: environment[f"LIFECYCLE_DBT_{name}"] for name in ("HOST", "PORT", "USER", "PASSWORD", "DATABASE")} == {
        "HOST": "db.example", "PORT": "5433", "USER": "me", "PASSWORD": "p@ss/word", "DATABASE": "platform",
    }  # fmt: skip


def test_child_process_reads_the_same_settings(external: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = child_environment(external)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    child = settings()

    assert child.platform_url == external.platform_url
    assert child.tracking_uri == external.tracking_uri
    assert child.store_root == external.store_root and child.datasets_root == external.datasets_root
    assert child.first_day == external.first_day is not None
    assert child.config_dir == external.config_dir
    resolved = {"database_url", "mlflow_tracking_uri", "store", "datasets"}
    assert child.model_dump(exclude=resolved) == external.model_dump(exclude=resolved)


def test_telemetry_is_disabled(external: Settings) -> None:
    environment = child_environment(external)
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true" and environment["DO_NOT_TRACK"] == "1"
    for kind in ("local", "s3"):
        instance = yaml.safe_load((PROJECT_ROOT / "deploy" / kind / "dagster.yaml").read_text())
        assert instance["telemetry"] == {"enabled": False} and instance["nux"] == {"enabled": False}


def test_thread_count_of_the_user_is_kept(external: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= int(child_environment(external)["OMP_NUM_THREADS"]) <= 4
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert child_environment(external)["OMP_NUM_THREADS"] == "7"


def test_an_endpoint_reaches_mlflow_and_other_programs_from_either_variable(
    external: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert child_environment(external)["MLFLOW_S3_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9001")
    assert child_environment(external)["AWS_ENDPOINT_URL_S3"] == "http://127.0.0.1:9001"


def test_step_logs_go_to_the_bucket_when_the_store_is_one(external: Settings) -> None:
    in_bucket = external.model_copy(update={"store": "s3://bucket/team/lifecycle"})

    assert child_environment(in_bucket)["DAGSTER_COMPUTE_LOGS_BUCKET"] == "bucket"
    assert child_environment(in_bucket)["DAGSTER_COMPUTE_LOGS_PREFIX"] == "team/lifecycle/compute-logs"
    assert _compute_log_class(write_dagster_home(in_bucket)) == "S3ComputeLogManager"
    assert _compute_log_class(write_dagster_home(external)) == "LocalComputeLogManager"


def test_the_two_dagster_instances_differ_only_in_step_logs() -> None:
    local, bucket = (
        yaml.safe_load((PROJECT_ROOT / "deploy" / kind / "dagster.yaml").read_text()) for kind in ("local", "s3")
    )
    assert local.pop("compute_logs") != bucket.pop("compute_logs")
    assert local == bucket
    assert local["run_retries"]["max_retries"] == 0 and not local["run_retries"]["retry_on_asset_or_op_failure"]


def test_the_workspace_uses_the_same_location_name_as_the_checkout(external: Settings) -> None:
    written = yaml.safe_load((write_dagster_home(external) / "workspace.yaml").read_text())["load_from"][0][
        "grpc_server"
    ]
    checkout = yaml.safe_load((PROJECT_ROOT / "workspace.yaml").read_text())["load_from"][0]["python_module"]
    assert written["location_name"] == checkout["location_name"]
    assert written["socket"] == str(code_socket(external.home))


def test_socket_path_is_short_when_the_home_path_is_long() -> None:
    assert code_socket(Path("/home/me/.lifecycle")) == Path("/home/me/.lifecycle/run/code.sock")
    long_homes = [Path("/" + "long/" * 30 + end) for end in ("a", "b")]
    sockets = {code_socket(home) for home in long_homes}
    assert len(sockets) == 2 and all(len(str(socket)) <= 100 for socket in sockets)


def _compute_log_class(dagster_home: Path) -> str:
    return str(yaml.safe_load((dagster_home / "dagster.yaml").read_text())["compute_logs"]["class"])
