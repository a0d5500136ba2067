"""The environment of the platform's child processes: variables, and Dagster's home with its two files."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from foundation.settings import PROJECT_ROOT, Settings
from orchestration.local.home import cannot_write, variable_name, write_atomically

# Dagster stores the state of schedules and sensors under this name, so `dagster dev` (workspace.yaml) and the local services share it.
CODE_LOCATION = "orchestration"
DEFINITIONS_MODULE = "orchestration.definitions"

# Linux allows 107 characters in a socket's path, macOS 103.
_LONGEST_SOCKET_PATH = 100


# Our own messages and progress bars should not drown in MLflow's migrations and downloads.
QUIET_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of a child process: this process's own, all settings resolved, and the variables that Dagster, MLflow, dbt and
    torch expect.

    Raises FileNotFoundError if the embedded server was never started: its password is part of the addresses.
    """
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment.update(_own_settings(settings))
    environment.update(_dagster(settings))
    environment.update(_dbt(settings.platform_url))
    environment.update(
        {
            "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PYTHONUNBUFFERED": "1",
            **QUIET_MLFLOW,
        }
    )
    _same_endpoint_for_all(environment)
    # Two runs may execute at the same time, and the models are small: more threads than cores would only wait for each other.
    environment.setdefault("OMP_NUM_THREADS", str(min(4, _cores())))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return environment


def write_dagster_home(settings: Settings) -> Path:
    """Write `dagster.yaml` and `workspace.yaml` for this home; returns DAGSTER_HOME. Raises LifecycleError."""
    folder = settings.home / "dagster"
    kind = "s3" if settings.store_root.startswith("s3://") else "local"
    workspace = {
        "load_from": [{"grpc_server": {"socket": str(code_socket(settings.home)), "location_name": CODE_LOCATION}}]
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "dagster.yaml", (PROJECT_ROOT / "deploy" / kind / "dagster.yaml").read_text())
        write_atomically(folder / "workspace.yaml", yaml.safe_dump(workspace, sort_keys=False))
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def code_socket(home: Path) -> Path:
    """The socket of the home's code location: in `run/`, or in the folder for temporary files if that path would be too long."""
    socket = home / "run" / "code.sock"
    if len(str(socket)) <= _LONGEST_SOCKET_PATH:
        return socket
    return Path(tempfile.gettempdir()) / f"lifecycle-{hashlib.sha256(str(home).encode()).hexdigest()[:16]}.sock"


def absolute(place: str) -> str:
    """A URI unchanged, or a folder's absolute path: children have the home as their working directory."""
    return place if "://" in place else str(Path(place).absolute())


def _own_settings(settings: Settings) -> dict[str, str]:
    values = settings.model_dump(mode="json")
    values["database_url"] = settings.platform_url
    values["mlflow_tracking_uri"] = settings.tracking_uri
    values["store"] = absolute(settings.store_root)
    values["datasets"] = absolute(settings.datasets_root)
    values["config_dir"] = str(settings.config_dir.absolute())
    # Plain settings are read as text, lists as JSON.
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }
    return {variable_name(name): text for name, text in texts.items()}


def _dagster(settings: Settings) -> dict[str, str]:
    environment = {
        "DAGSTER_HOME": str(settings.home / "dagster"),
        # The URL names the driver: SQLAlchemy 2.1 uses psycopg 3 for a bare postgresql://, and dagster-postgres sends a NOTIFY with
        # a bound parameter, which only psycopg2 accepts.
        "DAGSTER_POSTGRES_URL": _with_driver(settings.sibling_url("dagster")),
        # A run over a thousand hours records a thousand materialisations, which took 41 ms each when they were stored one by one.
        "DAGSTER_EVENT_BATCH_SIZE": "500",
        "DAGSTER_COMPUTE_LOGS_DIR": str(settings.home / "logs" / "runs"),
    }
    if settings.store_root.startswith("s3://"):
        bucket, _, prefix = settings.store_root.removeprefix("s3://").partition("/")
        environment["DAGSTER_COMPUTE_LOGS_BUCKET"] = bucket
        environment["DAGSTER_COMPUTE_LOGS_PREFIX"] = f"{prefix}/compute-logs".lstrip("/")
    return environment


def _dbt(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {
        "LIFECYCLE_DBT_HOST": parts.hostname or "localhost",
        "LIFECYCLE_DBT_PORT": str(parts.port or 5432),
        "LIFECYCLE_DBT_USER": unquote(parts.username or ""),
        "LIFECYCLE_DBT_PASSWORD": unquote(parts.password or ""),
        "LIFECYCLE_DBT_DATABASE": parts.path.lstrip("/"),
    }


def _same_endpoint_for_all(environment: dict[str, str]) -> None:
    """MLflow reads a custom S3 endpoint from another variable than other programs: setting either one is enough."""
    endpoint = _first(environment, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
    if endpoint:
        environment.setdefault("AWS_ENDPOINT_URL_S3", endpoint)
        environment.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)


def _first(environment: Mapping[str, str], *names: str) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _with_driver(url: str) -> str:
    _, _, rest = url.partition("://")
    return f"postgresql+psycopg2://{rest}"


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)
