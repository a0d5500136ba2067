"""Dagster assets of the model stage: the model to start from, and the fine-tuned checkpoint."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError
from pydantic import Field

from assets.groups import ML_TEAM, MODELS, PRODUCT_TABLES
from assets.partitions import DAILY
from assets.resources import ArtefactStore, MlflowTracking, PlatformDatabase
from foundation.settings import PROJECT_ROOT, settings
from product.installed import current_product
from training.config import BUILT_IN
from training.versions import BaseModelVersion, DatasetVersion, ModelVersion

TRAINING_CONFIG = PROJECT_ROOT / "training" / "config" / "planner.yaml"


class BaseModelConfig(dg.Config):
    """Which open-weights model to start from."""

    base: str = Field(
        default=BUILT_IN,
        description="`builtin` (a tiny model pre-trained here on the catalogue), a Hugging Face id, a folder, or an s3:// folder.",
    )
    seed: int = Field(default=42, description="Seed of the built-in model's pre-training.")


class TrainingRunConfig(dg.Config):
    """How the planner is fine-tuned. Unset options come from `training/config/planner.yaml`."""

    epochs: int | None = Field(default=None, description="Passes over the training rows.")
    learning_rate: float | None = Field(default=None, description="Highest learning rate, after warm-up.")
    lora_r: int | None = Field(default=None, description="Rank of the LoRA adapters.")
    lora_alpha: int | None = Field(default=None, description="Scale of the LoRA adapters.")
    seed: int = Field(default=42, description="Seed of everything random.")
    config_file: str | None = Field(
        default=None, description="A training configuration file to use instead of the project's."
    )


@dg.asset(
    group_name=MODELS,
    kinds={"huggingface", "pytorch"},
    owners=[ML_TEAM],
    deps=[PRODUCT_TABLES],
    description=(
        "The open-weights model that fine-tuning starts from. The built-in one is a tiny Llama-type model, pre-trained by this asset "
        "on legal plans of synthetic tasters made from the recipe catalogue alone."
    ),
)
def base_model(
    context: dg.AssetExecutionContext,
    config: BaseModelConfig,
    database: PlatformDatabase,
    store: ArtefactStore,
    pipes: dg.PipesSubprocessClient,
) -> dg.MaterializeResult[BaseModelVersion]:
    """Pre-train the built-in model if it does not exist yet for this catalogue, or record the given one."""
    if config.base != BUILT_IN:
        named = BaseModelVersion(name=config.base, uri=config.base, digest=config.base)
        return dg.MaterializeResult(value=named, metadata={"uri": config.base, "kind": "given"})
    with database.connect() as connection:
        reference = current_product(connection).reference()
    with tempfile.TemporaryDirectory(prefix="base-model-") as scratch:
        reference_file, output = Path(scratch) / "reference.json", Path(scratch) / "model"
        reference_file.write_text(json.dumps(reference))
        done = run_command(
            pipes,
            context,
            _module(
                "training.builtin_base_model",
                "--reference",
                reference_file,
                "--output-dir",
                output,
                "--seed",
                config.seed,
            ),
        )
        built = BaseModelVersion.from_dict(_message(done, "base_model"))
        uri = _publish_folder(store, output, f"models/base/{built.digest[:16]}")
    record = BaseModelVersion(name=built.name, uri=uri, digest=built.digest)
    return dg.MaterializeResult(
        value=record, metadata={**_reported(done), "uri": store.link(uri)}, data_version=dg.DataVersion(record.digest)
    )


@dg.asset(
    group_name=MODELS,
    kinds={"pytorch", "mlflow"},
    owners=[ML_TEAM],
    partitions_def=DAILY,
    description=(
        "A LoRA adapter on the base model, fine-tuned on the dataset of a day in a process of its own and registered in MLflow as the "
        "next version of `planner_model`. The same data, base and settings are not trained twice: the registered version is returned."
    ),
)
def planner_checkpoint(
    context: dg.AssetExecutionContext,
    config: TrainingRunConfig,
    planner_dataset: DatasetVersion,
    base_model: BaseModelVersion,
    mlflow: MlflowTracking,
    pipes: dg.PipesSubprocessClient,
) -> dg.MaterializeResult[ModelVersion]:
    """Run `training.train_planner` through Pipes, then verify that the version is registered."""
    from training.registry import get_model_version

    output = (
        settings().home
        / "checkpoints"
        / f"{planner_dataset.name}-{planner_dataset.version}-{planner_dataset.digest[:12]}"
    )
    flags: list[Any] = [
        "--dataset",
        planner_dataset.uri,
        "--model-base",
        base_model.uri,
        "--output-dir",
        output,
        "--seed",
        config.seed,
        "--mlflow-artifact-root",
        mlflow.artefact_root(),
    ]
    for flag in ("epochs", "learning_rate", "lora_r", "lora_alpha"):
        if getattr(config, flag) is not None:
            flags += [f"--{flag.replace('_', '-')}", getattr(config, flag)]
    done = run_command(
        pipes,
        context,
        _module("training.train_planner", "--config", config.config_file or TRAINING_CONFIG, *flags),
        {"MLFLOW_TRACKING_URI": settings().tracking_uri},
    )
    reported = ModelVersion.from_dict(_message(done, "model_version"))
    # Exit code 0 proves nothing: the registry decides.
    record = get_model_version(settings().tracking_uri, reported.name, reported.version)
    page = dg.MetadataValue.url(mlflow.model_url(record.name, record.version))
    return dg.MaterializeResult(
        value=record,
        metadata={
            **_reported(done),
            "model page": page,
            "dataset": f"{planner_dataset.name}/{planner_dataset.version}",
        },
        data_version=dg.DataVersion(f"{record.name}@{record.version}"),
    )


def run_command(
    pipes: dg.PipesSubprocessClient,
    context: dg.AssetExecutionContext,
    command: list[str],
    env: dict[str, str] | None = None,
) -> Any:
    """Run a training command to its end. Raises dg.Failure if it fails; the command's own sentence is already in the Dagster run's log."""
    try:
        return pipes.run(context=context, command=command, env=env)
    except DagsterPipesExecutionError as error:
        raise dg.Failure(
            f"`{command[3]}` did not finish ({error}). Its output is in the run's compute logs; launched again, it continues from its last "
            "checkpoint.",
            allow_retries=False,
        ) from error


def _module(module: str, *arguments: object) -> list[str]:
    # -P: a folder in the working directory must not shadow one of our packages.
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def _message(done: Any, kind: str) -> dict[str, Any]:
    """The child's message about its result. Raises dg.Failure if it sent none."""
    for message in done.get_custom_messages():
        if kind in message:
            return dict(message[kind])
    raise dg.Failure(
        f"The training process ended without reporting a {kind}: read its output in the run's compute logs."
    )


def _reported(done: Any) -> dict[str, Any]:
    return dict(done.get_materialize_result().metadata or {})


def _publish_folder(store: ArtefactStore, folder: Path, prefix: str) -> str:
    target = store.open()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        target.write(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return target.uri(prefix)
