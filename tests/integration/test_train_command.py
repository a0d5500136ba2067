"""The training command as a user runs it: it registers a version that loads in any process, and explains what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import free_port
from training_support import Quiet, dataset_folder, foreign_base, rows_of, small_base, small_product

from product.protocol import Row
from training import registry
from training.config import TrainingConfig, load
from training.errors import TrainingError
from training.train_planner import main, train

pytest_plugins = ["s3_service"]

PRODUCT = small_product()
ROWS = rows_of(PRODUCT, 120)
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    for name in ("MLFLOW_TRACKING_URI", "DAGSTER_PIPES_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The variable is read when the package is imported, which another test may have done before.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset_folder(tmp_path_factory.mktemp("datasets") / "planner" / "2025-01-12", ROWS, PRODUCT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_base(tmp_path_factory.mktemp("models") / "base", PRODUCT)


def options(dataset: Path, base: Path | str, output: Path, **more: Any) -> dict[str, Any]:
    given = {
        "dataset.path": str(dataset),
        "model.base_model": str(base),
        "output.dir": str(output),
        "training.batch_size": 8,
        "training.gradient_accumulation_steps": 1,
        "training.epochs": 1,
        "training.learning_rate": 5e-3,
        "training.eval_steps": 5,
        "mlflow.log_every_n_steps": 2,
    }
    return {**given, **{key.replace("__", "."): value for key, value in more.items()}}


def config(dataset: Path, base: Path | str, output: Path, **more: Any) -> TrainingConfig:
    return load(None, options(dataset, base, output, **more))


def flags(dataset: Path, base: Path | str, output: Path, **more: Any) -> list[str]:
    pairs = options(dataset, base, output, **more).items()
    return [part for key, value in pairs for part in (f"--{key.replace('.', '-').replace('_', '-')}", str(value))]


def tracking(output: Path) -> str:
    return f"sqlite:///{output.resolve() / 'mlflow.db'}"


def inputs_frame(rows: list[Row]) -> pd.DataFrame:
    inputs = [row["input"] for row in rows]
    return pd.DataFrame(
        {name: pd.Series([row_input[name] for row_input in inputs], dtype=object) for name in inputs[0]}
    )


@pytest.fixture(scope="module")
def trained(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One whole training that several tests look at; nothing changes it."""
    output = tmp_path_factory.mktemp("trained")
    done = train(config(dataset, base, output, mlflow__tags={"owner": "test"}), Quiet())
    assert done is not None
    return output, done


def test_the_mlflow_run_has_all_params_tags_metrics_and_artefacts(trained: tuple[Path, Any], dataset: Path) -> None:
    output, done = trained
    client = registry.client(tracking(output))
    run = client.get_run(done.version.run_id)
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert {
        name: params[name]
        for name in ("epochs", "batch_size", "dataset_version", "fine_tuning_method", "lora_r", "lora_alpha", "seed")
    } == {
        "epochs": "1",
        "batch_size": "8",
        "dataset_version": "2025-01-12",
        "fine_tuning_method": "lora",
        "lora_r": "16",
        "lora_alpha": "32",
        "seed": "42",
    }
    assert float(params["learning_rate"]) == 5e-3 and params["model_base"]
    tags = run.data.tags
    assert (tags["task"], tags["stage"], tags["dataset_version"], tags["owner"]) == (
        "planner",
        "training",
        "2025-01-12",
        "test",
    )
    assert tags["policy_id"]
    history = client.get_metric_history(run.info.run_id, "val_loss")
    assert [point.step for point in history] == [0, 5, 10]
    assert len(client.get_metric_history(run.info.run_id, "train_loss")) >= 4
    assert run.data.metrics["base_val_loss"] == history[0].value
    assert run.data.metrics["tuned_val_loss"] == min(point.value for point in history)
    [given] = run.inputs.dataset_inputs
    assert given.dataset.name == "planner/2025-01-12" and done.version.dataset_digest.startswith(given.dataset.digest)
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "tokenizer", "adapter", registry.TRAINING_ROWS_FILE} <= kept
    written = yaml.safe_load(Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text())
    assert written["training"]["epochs"] == 1 and "tracking_uri" not in written["mlflow"]


def test_version_is_registered_with_tags_and_training_rows(trained: tuple[Path, Any], dataset: Path) -> None:
    output, done = trained
    uri = tracking(output)
    assert json.loads((output / "model_version.json").read_text()) == done.version.to_dict()
    assert registry.get_model_version(uri, "planner_model", 1) == done.version
    assert (
        registry.list_versions(uri, "planner_model")
        == registry.candidate_versions(uri, "planner_model")
        == [done.version]
    )
    assert registry.version_exists(uri, "planner_model", 1) and not registry.version_exists(uri, "planner_model", 2)
    tags = registry.version_tags(uri, "planner_model", 1)
    seen = [row["metadata"] for row in ROWS if row["metadata"]["split"] != "replay"]
    assert tags["stage"] == "none" and tags["kind"] == "fine-tuned"
    assert (tags["dataset_version"], tags["dataset_uri"]) == ("2025-01-12", str(dataset))
    assert tags["trained_until"] == max(metadata["timestamp"] for metadata in seen).isoformat()
    rows = registry.training_rows(uri, "planner_model", 1)
    assert rows is not None
    assert set(rows["event_id"].to_pylist()) == {metadata["event_id"] for metadata in seen}


def test_stages_and_aliases(trained: tuple[Path, Any]) -> None:
    uri = tracking(trained[0])
    assert registry.version_of_alias(uri, "planner_model", "production") is None
    registry.set_stage(uri, "planner_model", 1, "production")
    production = registry.version_of_alias(uri, "planner_model", "production")
    assert production is not None and production.version == 1
    registry.set_stage(uri, "planner_model", 1, "archived")
    assert registry.candidate_versions(uri, "planner_model") == []
    registry.set_stage(uri, "planner_model", 1, "none")
    with pytest.raises(TrainingError, match="no stage 'prod'"):
        registry.set_stage(uri, "planner_model", 1, "prod")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no version 9 of planner_model"):
        registry.get_model_version(uri, "planner_model", 9)


def test_repeated_training_returns_the_registered_version(trained: tuple[Path, Any], dataset: Path, base: Path) -> None:
    output, done = trained
    progress = Quiet()
    again = train(config(dataset, base, output, mlflow__tags={"owner": "test"}), progress)
    assert again is not None and again.version == done.version
    assert progress.steps == [] and again.metadata["trained"] is False
    assert len(registry.client(tracking(output)).search_runs(["1"])) == 1


LOAD_ALONE = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
frame = pd.read_pickle(sys.argv[3])
tuned, base = model.predict(frame), model.predict(frame, params={"adapter": False})
import training
print(json.dumps({"columns": list(tuned.columns), "tuned": tuned.values.tolist(), "base": base.values.tolist(), "code": training.__file__}))
"""


def alone_in_a_new_process(output: Path, uri: str, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """What a user's own process gets, started where our code cannot be imported."""
    frame.to_pickle(folder / "frame.pkl")
    isolated = [
        sys.executable,
        "-P",
        "-c",
        f"import sys; sys.path[:] = [p for p in sys.path if p != {str(PROJECT)!r}]\n{LOAD_ALONE}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*isolated, tracking(output), uri, str(folder / "frame.pkl")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output_record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return output_record


def test_version_loads_in_a_new_process_and_only_a_broken_row_fails(trained: tuple[Path, Any], tmp_path: Path) -> None:
    output, done = trained
    held_out = [row for row in ROWS if row["metadata"]["split"] == "replay"][:8]
    frame = inputs_frame(held_out)
    frame.at[3, "household"] = None
    loaded = alone_in_a_new_process(output, done.version.uri, frame, tmp_path)
    assert "artifacts/code/training" in loaded["code"]
    assert loaded["columns"] == ["meals", "tokens_generated", "error"]
    for number, (row, (meals, tokens, error)) in enumerate(zip(held_out, loaded["tuned"], strict=True)):
        if number == 3:
            assert meals == [] and "TypeError" in error
            continue
        assert error is None and tokens == len(meals) == PRODUCT.slots(row["input"])
        assert [meal["day"] for meal in meals] == list(range(len(meals)))
        assert PRODUCT.violations(row["input"], {"meals": meals}) == []
    assert len(loaded["base"]) == len(held_out)


def test_another_product_trains_on_the_built_in_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the protocol is asked of a product: songs instead of recipes, and no made-up rows for the base."""
    monkeypatch.syspath_prepend(str(PROJECT / "tests" / "unit"))
    from tiny_product import Playlists

    songs = {f"s{number}": {"artist": f"a{number % 7}", "clean": number % 3 > 0} for number in range(30)}
    playlists = Playlists(songs)
    rows: list[Row] = []
    for number in range(60):
        row_input: dict[str, Any] = {"listener": f"l{number}", "clean_only": number % 2 == 0, "length": 2 + number % 2}
        chosen: list[str] = []
        while len(chosen) < row_input["length"]:
            chosen.append(playlists.legal_items(row_input, chosen)[number % 5])
        metadata = {"timestamp": ROWS[number]["metadata"]["timestamp"], "event_id": f"e{number}"}
        rows.append(
            {
                "input": row_input,
                "target": {"accepted_plan": playlists.plan(row_input, chosen)},
                "metadata": metadata,
            }
        )
    folder = dataset_folder(tmp_path / "playlist" / "2025-01-12", rows, playlists)
    done = train(config(folder, "builtin", tmp_path / "out", output__model_name="playlist_model"), Quiet())
    assert done is not None and done.version.name == "playlist_model"
    import mlflow

    with registry.fluent(tracking(tmp_path / "out")):
        model = mlflow.pyfunc.load_model(done.version.uri)
    answers = model.predict(pd.DataFrame([row["input"] for row in rows[:6]]))
    assert answers["error"].tolist() == [None] * 6
    assert [len(meals) for meals in answers["meals"]] == [row["input"]["length"] for row in rows[:6]]
    for row, meals in zip(rows, answers["meals"], strict=False):
        assert playlists.violations(row["input"], {"meals": meals}) == []


@pytest.mark.parametrize(("architecture", "options_"), [("qwen2", {}), ("gpt2", {"lora__enabled": False})])
def test_hub_model_trains_when_its_tokenizer_has_no_item_tokens(
    dataset: Path, tmp_path: Path, architecture: str, options_: dict[str, Any]
) -> None:
    base = foreign_base(tmp_path / architecture, architecture)
    small = dataset_folder(tmp_path / "planner" / "2025-01-12", ROWS[:30], PRODUCT)
    more = {
        "training__epochs": 1,
        # What these rows accept has nothing to do with pantries.
        "objective__offset_weight": 0.0,
        "dataset__max_length": 600,
        "dataset__preprocessing__input_template": "Plan. {prompt} =",
    }
    done = train(config(small, base, tmp_path / "out", **more, **options_), Quiet())
    assert done is not None and done.metadata["tuned_val_loss"] < done.metadata["base_val_loss"]
    import mlflow

    with registry.fluent(tracking(tmp_path / "out")):
        model = mlflow.pyfunc.load_model(done.version.uri)
    answers = model.predict(inputs_frame(ROWS[:3]))
    assert answers["error"].tolist() == [None] * 3
    assert all(
        tokens > len(meals) == 4 for tokens, meals in zip(answers["tokens_generated"], answers["meals"], strict=True)
    )


def test_a_base_loads_from_an_object_store(dataset: Path, base: Path, tmp_path: Path, s3_root: str) -> None:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(f"{s3_root}/models/base")
    for file in base.iterdir():
        filesystem.put_file(str(file), f"{path}/{file.name}")
    done = train(config(dataset, f"{s3_root}/models/base", tmp_path / "out"), Quiet())
    assert done is not None and done.version.version == 1
    with pytest.raises(TrainingError, match="cannot be loaded"):
        train(config(dataset, f"{s3_root}/models/nothing", tmp_path / "out"), Quiet())


# --- killed ---


def killed_after(command: list[str], file: Path, lines: int, environment: dict[str, str]) -> None:
    """Start the command and kill it hard once a checkpoint of it lies there."""
    with file.open("w") as log:
        child = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if len(list(file.parent.glob("out/training/*/checkpoints/step-*"))) >= lines:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    child.wait()
    assert child.returncode == -signal.SIGKILL, file.read_text()


def test_a_killed_training_resumes_to_the_same_model(dataset: Path, base: Path, tmp_path: Path) -> None:
    more = {"training__epochs": 12, "training__save_steps": 2, "training__early_stopping_threshold": 0.0}
    more["training__early_stopping_patience"] = 99
    whole = train(config(dataset, base, tmp_path / "whole", **more), Quiet())
    command = [sys.executable, "-m", "training.train_planner", *flags(dataset, base, tmp_path / "out", **more)]
    killed_after(command, tmp_path / "log", 2, dict(os.environ))
    uri = tracking(tmp_path / "out")
    [started] = registry.client(uri).search_runs(["1"])
    progress = Quiet()
    resumed = train(config(dataset, base, tmp_path / "out", **more), progress)
    assert whole is not None and resumed is not None
    assert resumed.version.run_id == started.info.run_id and resumed.metadata["resumed_from_step"] > 0
    assert progress.steps[0][1] > resumed.metadata["resumed_from_step"] - 2
    adapters = []
    for output, done in ((tmp_path / "whole", whole), (tmp_path / "out", resumed)):
        client = registry.client(tracking(output))
        local = client.download_artifacts(done.version.run_id, "adapter/adapter_model.safetensors")
        adapters.append(Path(local).read_bytes())
    assert adapters[0] == adapters[1]
    assert not list((tmp_path / "out" / "training").iterdir())


# --- refused, in one sentence ---


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_refusals_explain_how_to_fix_the_input(
    dataset: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed_port = free_port()
    out = tmp_path / "out"
    assert "add --dataset" in refused(capsys, ["--output-dir", str(out)])
    assert "There is no dataset at" in refused(capsys, flags(tmp_path / "nothing", base, out))
    assert "cannot be loaded" in refused(capsys, flags(dataset, "./nothing", out))
    assert "cannot be loaded" in refused(capsys, flags(dataset, "nobody/nothing", out))
    assert "no config.json" in refused(capsys, flags(dataset, tmp_path, out))
    closed = f"http://127.0.0.1:{closed_port}"
    message = refused(capsys, flags(dataset, base, out, mlflow__tracking_uri=closed))
    assert "is not reachable" in message and "nothing was trained" in message
    dead = f"postgresql+psycopg2://user:secret@127.0.0.1:{closed_port}/mlflow"
    message = refused(capsys, flags(dataset, base, out, mlflow__tracking_uri=dead))
    assert "is not reachable" in message and "secret" not in message
    (tmp_path / "file").write_text("")
    assert "give --output-dir a folder" in refused(capsys, flags(dataset, base, tmp_path / "file" / "out"))
    assert "CUDA devices here" in refused(capsys, flags(dataset, base, out, hardware__num_gpus=99))


def test_an_unwritable_artefact_store_is_refused_before_training(dataset: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    progress = Quiet()
    with pytest.raises(TrainingError, match="takes no artefacts"):
        train(config(dataset, base, tmp_path / "out", mlflow__artifact_root=str(tmp_path / "file" / "root")), progress)
    assert progress.steps == []
    [run] = registry.client(tracking(tmp_path / "out")).search_runs(["1"])
    assert run.info.status == "FAILED"


def test_base_is_refused_when_it_lacks_items_of_the_catalogue(dataset: Path, tmp_path: Path) -> None:
    other = small_base(tmp_path / "other", small_product(20))
    with pytest.raises(TrainingError, match="does not know 20 of 40 items"):
        train(config(dataset, other, tmp_path / "out"), Quiet())


def test_progress_and_the_record_are_printed(
    dataset: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(dataset, base, tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["version"] == 1
    assert "val_loss" in printed.err and "left" in printed.err and "planner_model version 1" in printed.err
    assert main([*flags(dataset, base, tmp_path / "out"), "--seed", "7"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["version"] == 2
