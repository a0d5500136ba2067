"""The training commands started by Dagster Pipes: progress in the run's log, and the result as a message."""

import sys
from pathlib import Path
from typing import Any

import dagster as dg
from training_support import dataset_folder, rows_of, small_base, small_product

from assets.models.asset import run_command
from training.versions import BaseModelVersion, ModelVersion

PRODUCT = small_product()
PROJECT = Path(__file__).resolve().parents[2]


def started_by_dagster(command: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """Custom messages, materialisation metadata and log lines of a command in an asset of its own."""
    reported: dict[str, Any] = {}

    @dg.asset
    def trained(context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient) -> dg.MaterializeResult[Any]:
        done = pipes.run(context=context, command=command, cwd=str(PROJECT), env={"HF_HUB_OFFLINE": "1"})
        reported["messages"] = list(done.get_custom_messages())
        reported["metadata"] = dict(done.get_materialize_result().metadata or {})
        return dg.MaterializeResult()

    # The run's own log, as the UI shows it: what other tests do to loggers does not reach it.
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([trained], instance=instance, resources={"pipes": dg.PipesSubprocessClient()})
        lines = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert result.success
    return reported["messages"], reported["metadata"], lines


def test_base_model_command_reports_its_model_and_progress(tmp_path: Path) -> None:
    dataset = dataset_folder(tmp_path / "planner" / "2025-01-12", rows_of(PRODUCT, 30), PRODUCT)
    size = "--tasters 60 --epochs 1 --hidden-size 16 --intermediate-size 32 --layers 1 --heads 2".split()
    command = [sys.executable, "-m", "training.builtin_base_model", "--dataset", str(dataset), "--output-dir"]
    messages, metadata, lines = started_by_dagster([*command, str(tmp_path / "base"), *size])
    record = BaseModelVersion.from_dict(messages[0]["base_model"])
    assert record.uri == str(tmp_path / "base") and (tmp_path / "base" / "model.safetensors").exists()
    assert metadata["items"].value == 40
    assert any("base model: step 1/1, loss" in line for line in lines)


def test_training_command_reports_its_version_and_progress(tmp_path: Path) -> None:
    dataset = dataset_folder(tmp_path / "planner" / "2025-01-12", rows_of(PRODUCT, 60), PRODUCT)
    base = small_base(tmp_path / "base", PRODUCT)
    command = [sys.executable, "-m", "training.train_planner", "--dataset", str(dataset), "--model-base", str(base)]
    messages, metadata, lines = started_by_dagster([*command, "--epochs", "1", "--output-dir", str(tmp_path / "out")])
    record = ModelVersion.from_dict(messages[0]["model_version"])
    assert (record.name, record.version) == ("planner_model", 1)
    assert metadata["tuned_val_loss"].value <= metadata["base_val_loss"].value
    assert any("val_loss" in line for line in lines) and any("fine-tuning: step 1/" in line for line in lines)


def test_killed_training_fails_with_a_hint_to_rerun(tmp_path: Path) -> None:
    """The asset's own way of starting a command: Dagster alone would only say an exit code."""

    @dg.asset
    def trained(context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient) -> None:
        run_command(pipes, context, ["sh", "-c", "kill -9 $$", "training.train_planner"])

    result = dg.materialize([trained], resources={"pipes": dg.PipesSubprocessClient()}, raise_on_error=False)
    (failure,) = result.get_step_failure_events()
    error = failure.step_failure_data.error
    assert error is not None and "`training.train_planner` did not finish" in str(error.message)
    assert "continues from its last checkpoint" in str(error.message)
