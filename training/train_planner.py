"""The command `python -m training.train_planner`: a dataset folder in, a registered model version out.

Everything that can be refused is refused before training: the configuration, MLflow, the dataset, the base, the artefact store.
The same dataset, base and configuration are never trained twice: the command returns the registered version.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import LifecycleError
from product.loading import class_path
from training import registry, tracking
from training.config import BUILT_IN, TrainingConfig, from_command_line
from training.dataset import Dataset, read_dataset
from training.errors import TrainingError
from training.reporting import Reporter, reporter
from training.versions import ModelVersion

if TYPE_CHECKING:
    from training.base_and_adapters import LoadedBase
    from training.examples import Codec
    from training.loop import Outcome

RECORD_FILE = "model_version.json"
FORMAT = 2
"""Increased when the same dataset, base and configuration would give another model than before."""
BASE_COPIED_UP_TO_BYTES = 512 * 2**20
"""A larger base is not copied: the package only refers to it."""


@dataclass(frozen=True)
class Trained:
    """The registered version, and metadata for people."""

    version: ModelVersion
    metadata: dict[str, Any]


def train(config: TrainingConfig, progress: Reporter) -> Trained | None:
    """Run a whole training. Returns None in all processes of torchrun but the first.

    Raises TrainingError for everything that a user can fix.
    """
    if config.dataset.path is None:
        raise TrainingError(
            "No dataset was given: add --dataset with the folder of a dataset version, or dataset.path to the config file."
        )
    output = _writable(config.output.dir)
    tracking_uri = tracking.tracking_uri_of(config, os.environ)
    registry.check_reachable(tracking_uri)
    dataset = read_dataset(config.dataset.path, config.dataset.train_split, config.dataset.val_split)

    import torch

    from training.base_and_adapters import device_of, load_base
    from training.loop import start_ranks

    torch.set_num_threads(config.hardware.num_threads)
    rank = start_ranks(torch.cuda.is_available() and config.hardware.num_gpus > 0)
    device = device_of(config)
    source = config.model.base_model
    if source == BUILT_IN:
        source = _built_in(dataset, output, config, progress, rank)
    base = load_base(source, config, device, output / "base_download")
    fingerprint = _fingerprint(dataset, base.record.digest, config)
    registered = registry.find_by_fingerprint(tracking_uri, config.output.model_name, fingerprint)
    if registered is not None:
        if rank > 0:
            return None
        progress.say(
            f"{registered.name} version {registered.version} was trained on this dataset, base and configuration before: nothing to do."
        )
        return _done(
            config, registered, {"trained": False, **registry.run_metrics(tracking_uri, registered.run_id)}, progress
        )
    state = output / "training" / fingerprint[:16]
    state.mkdir(parents=True, exist_ok=True)
    if rank > 0:
        _fit(config, dataset, base, device, state, progress, None)
        return None
    run = tracking.start_run(tracking_uri, config, dataset, base.record, state, fingerprint)
    try:
        outcome, codec, model, prior = _fit(config, dataset, base, device, state, progress, run)
        version = _register(config, dataset, base, codec, model, prior, run, fingerprint)
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except Exception:
        run.end("FAILED")
        raise
    run.end("FINISHED")
    shutil.rmtree(state)
    return _done(config, version, _metadata(dataset, outcome), progress)


def _writable(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise TrainingError(
            f"Nothing can be written to {path} ({error.strerror}): give --output-dir a folder you may write."
        ) from error


def _built_in(dataset: Dataset, output: Path, config: TrainingConfig, progress: Reporter, rank: int) -> str:
    """Folder of the built-in base for this product; the first process builds it, the others wait."""
    import torch

    from training.builtin_base_model import BuiltInSettings, build

    folder = output / "base_model"
    if rank == 0:
        settings = BuiltInSettings(seed=config.training.seed, threads=config.hardware.num_threads)
        build(dataset.product, folder, settings, progress, dataset.train)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return str(folder)


def _fingerprint(dataset: Dataset, base_digest: str, config: TrainingConfig) -> str:
    facts = {"format": FORMAT, "dataset": dataset.digest, "base": base_digest, "config": config.fingerprint_fields()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _fit(
    config: TrainingConfig,
    dataset: Dataset,
    base: "LoadedBase",
    device: str,
    state: Path,
    progress: Reporter,
    run: tracking.TrackedRun | None,
) -> tuple["Outcome", "Codec", Any, Any]:
    """Adapters on the base, trained on the dataset. Returns the outcome, the codec, the tuned model and the prior."""
    from training.base_and_adapters import effective_precision, with_adapters
    from training.examples import Codec
    from training.items import popularity_prior, uniform_prior
    from training.loop import Task, fit

    product, objective = dataset.product, config.objective
    codec = Codec(
        product, base.tokenizer, config.dataset.preprocessing, config.dataset.max_length, objective.offset_weight
    )
    prior = uniform_prior(len(codec.items))
    if objective.popularity_prior:
        plans = [
            (product.chosen(row["target"]["accepted_plan"]), row["metadata"]["timestamp"]) for row in dataset.train
        ]
        prior = popularity_prior(codec.items, plans, objective.prior_smoothing, objective.prior_half_life_days)
    task = Task(
        codec.examples(dataset.train, objective.swap_weight),
        codec.examples(dataset.validation, objective.swap_weight),
        codec.trie,
        prior,
        codec.pad,
    )
    if not task.train or not task.validation:
        raise TrainingError(
            f"No accepted plan in {dataset.uri} has a legal item: rebuild it with the catalogue of its plans."
        )
    progress.say(
        f"{len(task.train)} rows to train on, {len(task.validation)} to validate on, {len(codec.items)} items; base {base.record.name} "
        f"on {device}"
    )
    model = with_adapters(base.model, config)

    def listen(name: str, step: int, total: int, value: float) -> None:
        if run is not None:
            run.metric(name, value, step)
            if name == "val_loss" and step == 0:
                run.metric("base_val_loss", value, step)
        if name == "train_loss":
            progress.step("fine-tuning", step, total, value)
        else:
            progress.say(f"step {step}/{total}: val_loss {value:.4f}")

    precision = effective_precision(config, device) if config.hardware.mixed_precision else "fp32"
    outcome = fit(
        model, task, config.training, listen, state / "checkpoints", config.mlflow.log_every_n_steps, precision
    )
    model.eval()
    if run is not None and outcome.base_loss is not None and outcome.best_loss is not None:
        run.metric("base_val_loss", outcome.base_loss, 0)
        run.metric("tuned_val_loss", outcome.best_loss, outcome.best_step)
    return outcome, codec, model, prior


def _register(
    config: TrainingConfig,
    dataset: Dataset,
    base: "LoadedBase",
    codec: "Codec",
    model: Any,
    prior: Any,
    run: tracking.TrackedRun,
    fingerprint: str,
) -> ModelVersion:
    """Package the tuned model, log it in the run, and register it as the next version."""
    import mlflow

    from training import pyfunc

    settings = {
        "kind": pyfunc.LANGUAGE_MODEL,
        "base": base.record.uri,
        "templates": config.dataset.preprocessing.model_dump(),
        "max_length": config.dataset.max_length,
        "num_threads": config.hardware.num_threads,
        "use_cuda": config.hardware.num_gpus > 0,
        "prior": prior.tolist(),
        "offset_weight": config.objective.offset_weight,
    }
    packages = [*pyfunc.MODEL_PACKAGES, *(["bitsandbytes"] if config.lora.use_qlora else [])]
    with tempfile.TemporaryDirectory(prefix="planner-package-", dir=config.output.dir) as scratch:
        package = Path(scratch) / pyfunc.ARTIFACT
        pyfunc.write_settings(package, class_path(dataset.product), dataset.product.reference(), settings)
        try:
            if config.lora.enabled:
                model.save_pretrained(package / "adapter")
                run.artifacts(package / "adapter", "adapter")
            _save_weights(config, base, model, package)
            base.tokenizer.save_pretrained(Path(scratch) / "tokenizer")
            run.artifacts(Path(scratch) / "tokenizer", "tokenizer")
            with registry.fluent(run.tracking_uri), mlflow.start_run(run_id=run.run_id):
                model_uri = pyfunc.log_package(
                    package,
                    config.output.model_name,
                    dataset.product,
                    pyfunc.signature(list(dataset.train[0]["input"])),
                    packages,
                )
        except tracking.storage_errors() as error:
            raise tracking.cannot_write(f"of run {run.run_id}", error) from error
    tags = {
        "task": dataset.product.name,
        registry.KIND_TAG: registry.FINE_TUNED,
        registry.FINGERPRINT_TAG: fingerprint,
        "dataset_uri": dataset.uri,
        "dataset_version": dataset.version,
        "dataset_digest": dataset.digest,
        "trained_until": dataset.trained_until.isoformat(),
        "base_model": base.record.name,
        "base_digest": base.record.digest,
    }
    return registry.register(run.tracking_uri, model_uri, config.output.model_name, run.run_id, tags)


def _save_weights(config: TrainingConfig, base: "LoadedBase", model: Any, package: Path) -> None:
    """Save the tuned weights as one model if the base is a folder; a base from the hub, or in few bits, is named and not copied."""
    if base.folder is None or config.lora.use_qlora:
        if not config.lora.enabled:
            model.save_pretrained(package / "model", safe_serialization=True)
            base.tokenizer.save_pretrained(package / "model")
        return
    files = [file for file in base.folder.rglob("*") if file.is_file()]
    if sum(file.stat().st_size for file in files) <= BASE_COPIED_UP_TO_BYTES:
        shutil.copytree(base.folder, package / "base")
    tuned = model.merge_and_unload() if config.lora.enabled else model
    tuned.save_pretrained(package / "model", safe_serialization=True)
    base.tokenizer.save_pretrained(package / "model")
    shutil.rmtree(package / "adapter", ignore_errors=True)


def _metadata(dataset: Dataset, outcome: "Outcome") -> dict[str, Any]:
    return {
        "trained": True,
        "train_rows": len(dataset.train),
        "validation_rows": len(dataset.validation),
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "resumed_from_step": outcome.resumed_from,
        "base_val_loss": outcome.base_loss,
        "tuned_val_loss": outcome.best_loss,
        "train_loss": outcome.losses[-1][1] if outcome.losses else None,
    }


def _done(config: TrainingConfig, version: ModelVersion, metadata: dict[str, Any], progress: Reporter) -> Trained:
    file = Path(config.output.dir) / RECORD_FILE
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(version.to_dict(), indent=1))
    partial.rename(file)
    progress.finished("model_version", version, metadata)
    return Trained(version, metadata)


def _quiet_mlflow() -> None:
    """Silence MLflow's bars and migration messages: ours is the only progress display."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 after one sentence on stderr (130 when interrupted)."""
    try:
        config = from_command_line(sys.argv[1:] if arguments is None else arguments)
        _quiet_mlflow()
        with reporter() as progress:
            trained = train(config, progress)
    except LifecycleError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    if trained is not None:
        print(json.dumps(trained.version.to_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
