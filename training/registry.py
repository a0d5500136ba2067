"""The registry of model versions in MLflow: finding, describing, tagging them, and what they were trained on.

MLflow is imported inside the functions: it takes 2 s, and this module is also imported where MLflow is not needed.
"""

import io
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from training.errors import TrainingError
from training.versions import ModelVersion

if TYPE_CHECKING:
    import pyarrow as pa

Stage = Literal["none", "candidate", "production", "archived"]
STAGES: tuple[Stage, ...] = ("none", "candidate", "production", "archived")
STAGE_TAG, KIND_TAG, FINGERPRINT_TAG = "stage", "kind", "fingerprint"
FINE_TUNED, RULES = "fine-tuned", "rules"
"""Values of the tag `kind`: a trained language model, or a rule-based planner that was not trained."""
TRAINING_EXPERIMENT, BASELINE_EXPERIMENT = "planner_training", "planner_baselines"
DATASET_EXPERIMENT, REPLAY_EXPERIMENT = "planner_datasets", "planner_replay"
"""MLflow experiments, one a stage."""
TRAINING_ROWS_FILE = "training_rows.parquet"
ADDRESS_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
PROBE_SECONDS = 5.0
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def check_reachable(tracking_uri: str, undone: str = "nothing was trained") -> None:
    """Ask MLflow for one experiment. Raises TrainingError if it does not answer; `undone` says what was not started.

    It connects to the port first, since MLflow itself retries for minutes before it gives up.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    address = urlsplit(tracking_uri)
    shown = _without_password(tracking_uri)
    try:
        scheme = address.scheme.partition("+")[0]
        if scheme in DEFAULT_PORTS and address.hostname:
            socket.create_connection((address.hostname, address.port or DEFAULT_PORTS[scheme]), PROBE_SECONDS).close()
        if scheme == "sqlite":
            Path(address.path.removeprefix("/")).parent.mkdir(parents=True, exist_ok=True)
        client(tracking_uri).search_experiments(max_results=1)
    except (OSError, MlflowException, SQLAlchemyError) as error:
        reason = " ".join(str(error).replace(tracking_uri, shown).split())[:200]
        raise TrainingError(
            f"MLflow at {shown} is not reachable ({reason}): start it, or set MLFLOW_TRACKING_URI; {undone}."
        ) from error


def client(tracking_uri: str) -> Any:
    """An MLflow client of this address, independent of the process-wide one."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@contextmanager
def fluent(tracking_uri: str) -> Iterator[None]:
    """Set MLflow's process-wide address for the fluent functions, and restore it afterwards."""
    import mlflow

    # MLflow also writes both addresses into the environment, where settings and child processes would read them. An address that was set
    # before is there as well, so restoring the environment is enough.
    before = {name: os.environ.get(name) for name in ADDRESS_VARIABLES}
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def experiment_id(tracking_uri: str, name: str, artifact_root: str | None) -> str:
    """Id of the MLflow experiment, created if it does not exist, with its artefacts under `artifact_root`/name."""
    from mlflow.exceptions import MlflowException

    mlflow_client = client(tracking_uri)
    experiment = mlflow_client.get_experiment_by_name(name)
    if experiment is None:
        location = f"{artifact_root.rstrip('/')}/{name}" if artifact_root else None
        try:
            return str(mlflow_client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another process may have created it meanwhile; any other cause shows in the next line.
            experiment = mlflow_client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


# --- versions ---


def list_versions(tracking_uri: str, name: str) -> list[ModelVersion]:
    """Every version of the model, oldest first; empty if there is no such model."""
    return [_record(version, tracking_uri) for version in _search(tracking_uri, f"name = '{_quoted(name)}'")]


def get_model_version(tracking_uri: str, name: str, version: int) -> ModelVersion:
    """The record of one version. Raises TrainingError if it does not exist."""
    return _record(_get(tracking_uri, name, version), tracking_uri)


def latest_version(tracking_uri: str, name: str) -> ModelVersion:
    """The version with the highest number. Raises TrainingError if there is none."""
    versions = list_versions(tracking_uri, name)
    if not versions:
        raise TrainingError(
            f"No version of {name} is registered in MLflow: train one, or register the heuristic planner."
        )
    return versions[-1]


def candidate_versions(tracking_uri: str, name: str) -> list[ModelVersion]:
    """Versions that a replay may judge, oldest first: the fine-tuned ones that are not archived."""
    fine_tuned = _search(tracking_uri, f"name = '{_quoted(name)}' and tags.{KIND_TAG} = '{FINE_TUNED}'")
    return [_record(version, tracking_uri) for version in fine_tuned if version.tags.get(STAGE_TAG) != "archived"]


def version_exists(tracking_uri: str, name: str, version: int) -> bool:
    """Whether this version is registered."""
    return any(registered.version == version for registered in list_versions(tracking_uri, name))


def find_by_fingerprint(tracking_uri: str, name: str, fingerprint: str) -> ModelVersion | None:
    """The oldest version trained with exactly this dataset, base and configuration, or None."""
    versions = _search(tracking_uri, f"name = '{_quoted(name)}' and tags.{FINGERPRINT_TAG} = '{fingerprint}'")
    return _record(versions[0], tracking_uri) if versions else None


def version_tags(tracking_uri: str, name: str, version: int) -> dict[str, str]:
    """Tags of a version: stage, kind, dataset_version, dataset_digest, trained_until, …"""
    return dict(_get(tracking_uri, name, version).tags)


def run_metrics(tracking_uri: str, run_id: str) -> dict[str, float]:
    """The last value of each metric of an MLflow run."""
    return dict(client(tracking_uri).get_run(run_id).data.metrics)


def set_tags(tracking_uri: str, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version, keeping its others."""
    _get(tracking_uri, name, version)
    for key, value in tags.items():
        client(tracking_uri).set_model_version_tag(name, str(version), key, value)


def set_stage(tracking_uri: str, name: str, version: int, stage: Stage) -> None:
    """Set the tag `stage`; the aliases `candidate` and `production` follow (`production` points to one version at most).

    Raises TrainingError for a stage or version that does not exist.
    """
    if stage not in STAGES:
        raise TrainingError(f"There is no stage {stage!r}: the stages are {', '.join(STAGES)}.")
    set_tags(tracking_uri, name, version, {STAGE_TAG: stage})
    if stage in {"candidate", "production"}:
        set_alias(tracking_uri, name, version, stage)


def set_alias(tracking_uri: str, name: str, version: int, alias: str) -> None:
    """Point `models:/name@alias` to this version."""
    _get(tracking_uri, name, version)
    client(tracking_uri).set_registered_model_alias(name, alias, str(version))


def version_of_alias(tracking_uri: str, name: str, alias: str) -> ModelVersion | None:
    """The version that the alias points to, or None."""
    from mlflow.exceptions import MlflowException

    try:
        version = client(tracking_uri).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if _is_missing(error):
            return None
        raise
    return _record(version, tracking_uri)


def training_rows(tracking_uri: str, name: str, version: int) -> "pa.Table | None":
    """What the version was trained on: `event_id`, `household_id`, `timestamp` (UTC); None for a rule-based planner.

    Raises TrainingError if a trained version lacks the artefact: then it is unknown which rows are fair to score it on.
    """
    import pyarrow.parquet as pq
    from mlflow.exceptions import MlflowException

    registered = _get(tracking_uri, name, version)
    if registered.tags.get(KIND_TAG) == RULES:
        return None
    try:
        local = client(tracking_uri).download_artifacts(registered.run_id, TRAINING_ROWS_FILE)
    except (OSError, MlflowException) as error:
        raise TrainingError(
            f"{name} version {version} has no {TRAINING_ROWS_FILE} ({error}): it cannot be replayed without knowing its training rows."
        ) from error
    return pq.read_table(io.BytesIO(Path(local).read_bytes()))


def register(tracking_uri: str, model_uri: str, name: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
    """Register a logged model as the next version, its tags set in the same call."""
    import mlflow

    with fluent(tracking_uri):
        registered = mlflow.register_model(model_uri, name, tags={STAGE_TAG: "none", **tags})
    return _record(registered, tracking_uri, run_id)


# --- MLflow's answers ---


def _search(tracking_uri: str, condition: str) -> list[Any]:
    mlflow_client, versions, token = client(tracking_uri), [], None
    while True:
        page = mlflow_client.search_model_versions(condition, max_results=1000, page_token=token)
        versions += list(page)
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: int(version.version))


def _get(tracking_uri: str, name: str, version: int) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client(tracking_uri).get_model_version(name, str(version))
    except MlflowException as error:
        if _is_missing(error):
            raise TrainingError(
                f"There is no version {version} of {name} in MLflow: its UI lists the versions."
            ) from error
        raise


def _is_missing(error: Any) -> bool:
    return error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


def _record(registered: Any, tracking_uri: str, run_id: str | None = None) -> ModelVersion:
    return ModelVersion(
        name=registered.name,
        version=int(registered.version),
        uri=f"models:/{registered.name}/{registered.version}",
        run_id=run_id or registered.run_id or "",
        dataset_uri=registered.tags.get("dataset_uri"),
        dataset_digest=registered.tags.get("dataset_digest"),
    )


def _quoted(name: str) -> str:
    return name.replace("'", "''")


def _without_password(uri: str) -> str:
    """The address as it may appear in a message."""
    address = urlsplit(uri)
    if address.password is None:
        return uri
    return uri.replace(f":{address.password}@", ":…@", 1)
