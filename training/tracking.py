"""The MLflow run of one training: started once, continued after a kill, with params, losses, dataset and artefacts."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from product.installed import installed_product
from training import registry
from training.config import TrainingConfig
from training.dataset import Dataset, training_rows_table
from training.errors import TrainingError
from training.versions import BaseModelVersion

CONFIG_FILE = "config.yaml"
RUN_FILE = "mlflow_run_id"
DIGEST_LENGTH = 36
"""MLflow keeps this many characters of a dataset's digest; the tag `dataset_digest` has all of them."""


@dataclass(frozen=True)
class TrackedRun:
    """A running MLflow run."""

    tracking_uri: str
    run_id: str
    experiment_id: str

    def metric(self, name: str, value: float, step: int) -> None:
        """Log one value. Logging it again, as a resumed training does, changes nothing visible."""
        registry.client(self.tracking_uri).log_metric(self.run_id, name, value, step=step)

    def artifacts(self, folder: Path, name: str) -> None:
        """Keep a folder's files under `name`."""
        registry.client(self.tracking_uri).log_artifacts(self.run_id, str(folder), name)

    def end(self, status: str) -> None:
        """`FINISHED`, `FAILED` or `KILLED`."""
        registry.client(self.tracking_uri).set_terminated(self.run_id, status)


def tracking_uri_of(config: TrainingConfig, environment: Mapping[str, str]) -> str:
    """Where to log: the configuration, MLFLOW_TRACKING_URI, else a database file next to the results."""
    given = config.mlflow.tracking_uri or environment.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{Path(config.output.dir).resolve() / 'mlflow.db'}"


def artifact_root_of(config: TrainingConfig, tracking_uri: str) -> str | None:
    """Where a new experiment keeps artefacts: the configuration; next to the results for our own database file; else MLflow's default."""
    own_file = f"sqlite:///{Path(config.output.dir).resolve() / 'mlflow.db'}"
    if config.mlflow.artifact_root is None and tracking_uri == own_file:
        return str(Path(config.output.dir).resolve() / "mlflow-artifacts")
    return config.mlflow.artifact_root


def start_run(
    tracking_uri: str, config: TrainingConfig, dataset: Dataset, base: BaseModelVersion, state: Path, fingerprint: str
) -> TrackedRun:
    """Start the MLflow run, or continue the one that a killed training with the same state folder started.

    Writes the configuration as an artefact at once. Raises TrainingError if the artefact store refuses it, before anything is trained.
    """
    from mlflow.exceptions import MlflowException

    client = registry.client(tracking_uri)
    experiment = registry.experiment_id(
        tracking_uri, config.mlflow.experiment_name, artifact_root_of(config, tracking_uri)
    )
    file = state / RUN_FILE
    if file.exists():
        try:
            client.update_run(file.read_text(), status="RUNNING")
            return TrackedRun(tracking_uri, file.read_text(), experiment)
        except MlflowException:
            # The tracking server has changed since the last try: start a new run there.
            file.unlink()
    run = client.create_run(
        experiment,
        run_name=config.mlflow.run_name or f"{config.output.model_name} {dataset.name}/{dataset.version}",
        tags={
            "task": dataset.product.name,
            "stage": "training",
            "policy_id": installed_product().policy_name,
            "dataset_version": dataset.version,
            "dataset_digest": dataset.digest,
            "fingerprint": fingerprint,
            **config.mlflow.tags,
        },
    )
    run_id = str(run.info.run_id)
    for name, value in _params(config, dataset, base).items():
        client.log_param(run_id, name, value)
    _log_dataset(client, run_id, dataset)
    try:
        client.log_text(run_id, yaml.safe_dump(_shown(config), sort_keys=False), CONFIG_FILE)
        with tempfile.TemporaryDirectory(prefix="training-rows-") as scratch:
            rows = Path(scratch) / registry.TRAINING_ROWS_FILE
            pq.write_table(training_rows_table([*dataset.train, *dataset.validation]), rows)
            client.log_artifact(run_id, str(rows))
    except storage_errors() as error:
        client.set_terminated(run_id, "FAILED")
        raise cannot_write(run.info.artifact_uri, error) from error
    file.write_text(run_id)
    return TrackedRun(tracking_uri, run_id, experiment)


def storage_errors() -> tuple[type[Exception], ...]:
    """What a store raises if it refuses an artefact: a folder, S3 through boto3, or MLflow's own server."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException

    return (OSError, MlflowException, BotoCoreError, ClientError, S3UploadFailedError)


def cannot_write(where: str, error: Exception) -> TrainingError:
    """The error for an artefact store without write access."""
    reason = " ".join(str(error).split())[:200]
    return TrainingError(
        f"The artefact store {where} takes no artefacts ({reason}): give this user write access to it, or start with another "
        "--artifact-root and --experiment-name."
    )


def _params(config: TrainingConfig, dataset: Dataset, base: BaseModelVersion) -> dict[str, Any]:
    training, lora = config.training, config.lora
    method = "full" if not lora.enabled else "qlora" if lora.use_qlora else "lora"
    return {
        "learning_rate": training.learning_rate,
        "batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "epochs": training.epochs,
        "dataset_version": dataset.version,
        "model_base": base.name,
        "model_base_digest": base.digest,
        "fine_tuning_method": method,
        "lora_r": lora.r,
        "lora_alpha": lora.alpha,
        "seed": training.seed,
        "swap_weight": config.objective.swap_weight,
        "train_rows": len(dataset.train),
        "validation_rows": len(dataset.validation),
    }


def _log_dataset(client: Any, run_id: str, dataset: Dataset) -> None:
    """The dataset as an input of the run, so that MLflow shows it and its digest."""
    import json

    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag

    profile = {"train": len(dataset.train), "validation": len(dataset.validation), "held out": dataset.held_out}
    source = "s3" if dataset.uri.startswith("s3://") else "local"
    described = MlflowDataset(
        name=f"{dataset.name}/{dataset.version}",
        digest=dataset.digest[:DIGEST_LENGTH],
        source_type=source,
        source=json.dumps({"uri": dataset.uri}),
        profile=json.dumps(profile),
    )
    client.log_inputs(run_id, [DatasetInput(described, [InputTag("mlflow.data.context", "training")])])


def _shown(config: TrainingConfig) -> dict[str, Any]:
    """The configuration without the address of MLflow, which may hold a password."""
    fields = config.model_dump(mode="json")
    del fields["mlflow"]["tracking_uri"]
    return fields
