"""The configuration of a training: the published keys and defaults, flags over file over defaults, errors that name the key."""

from pathlib import Path

import pytest

from training.config import TrainingConfig, flags, from_command_line, leaves, load
from training.errors import TrainingError

PUBLISHED = {
    "model.model_type": "causal_lm",
    "model.precision": "bf16",
    "dataset.train_split": 0.9,
    "dataset.val_split": 0.1,
    "dataset.max_length": 2048,
    "training.learning_rate": 1e-4,
    "training.lr_scheduler": "cosine",
    "training.warmup_ratio": 0.1,
    "training.batch_size": 16,
    "training.gradient_accumulation_steps": 4,
    "training.epochs": 3,
    "training.optimizer": "adamw",
    "training.weight_decay": 0.01,
    "training.max_grad_norm": 1.0,
    "training.save_steps": 500,
    "training.eval_steps": 100,
    "training.early_stopping_patience": 3,
    "training.early_stopping_threshold": 0.01,
    "training.seed": 42,
    "lora.enabled": True,
    "lora.r": 16,
    "lora.alpha": 32,
    "lora.dropout": 0.05,
    "lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "lora.use_qlora": False,
    "lora.bits": 4,
    "mlflow.experiment_name": "planner_training",
    "mlflow.log_every_n_steps": 10,
    "output.model_name": "planner_model",
    "output.save_format": "safetensors",
    "hardware.num_gpus": 1,
}
PROJECT = Path(__file__).resolve().parents[2]


def value(config: TrainingConfig, key: str) -> object:
    current: object = config
    for part in key.split("."):
        current = getattr(current, part)
    return current


def test_defaults_match_the_published_defaults() -> None:
    config = load()
    assert {key: value(config, key) for key in PUBLISHED} == PUBLISHED


def test_keys_are_described_and_have_a_flag() -> None:
    reachable = set(flags().values())
    for key, field in leaves():
        assert field.description and field.description.endswith("."), key
        assert key in reachable


def test_the_documented_command_line_works() -> None:
    config = from_command_line(
        [
            "--dataset",
            "datasets/planner/2025-01-03",
            "--model-base",
            "some/model",
            "--epochs",
            "5",
            "--lr",
            "3e-4",
            "--batch-size",
            "8",
            "--lora-r",
            "4",
            "--lora-alpha",
            "8",
            "--output-dir",
            "here",
        ]
    )
    assert config.dataset.path == "datasets/planner/2025-01-03"
    assert config.model.base_model == "some/model"
    assert (config.training.epochs, config.training.learning_rate, config.training.batch_size) == (5, 3e-4, 8)
    assert (config.lora.r, config.lora.alpha, config.output.dir) == (4, 8, "here")


def test_flags_accept_underscores_and_keep_those_in_values() -> None:
    config = from_command_line(["--batch_size", "8", "--output_dir=my_folder", "--experiment_name", "a_b"])
    assert (config.training.batch_size, config.output.dir, config.mlflow.experiment_name) == (8, "my_folder", "a_b")


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training:\n  epochs: 7\n  learning_rate: 1e-3\nlora:\n  target_modules: [all-linear]\n")
    config = from_command_line(["--config", str(file), "--epochs", "2"])
    assert (config.training.epochs, config.training.learning_rate, config.training.batch_size) == (2, 1e-3, 16)
    assert config.lora.target_modules == ["all-linear"]


def test_flags_accept_lists_mappings_and_switches() -> None:
    config = from_command_line(
        [
            "--target-modules",
            "q_proj, v_proj",
            "--tags",
            "owner=me,why=a test",
            "--use-qlora",
            "--lora-enabled",
            "false",
            "--bits",
            "8",
        ]
    )
    assert config.lora.target_modules == ["q_proj", "v_proj"]
    assert config.mlflow.tags == {"owner": "me", "why": "a test"}
    assert (config.lora.use_qlora, config.lora.enabled, config.lora.bits) == (True, False, 8)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("training:\n  learning_rat: 1\n", ["training.learning_rat", "training.learning_rate"]),
        ("trainin:\n  epochs: 1\n", ["trainin", "training"]),
        ("Training:\n  epochs: 1\n", ["Training", "training"]),
        ("_env_file: x\n", ["_env_file"]),
        (
            "dataset:\n  preprocessing:\n    input_templat: x\n",
            ["dataset.preprocessing.input_templat", "input_template"],
        ),
        ("training:\n  epochs: many\n", ["training.epochs", "many"]),
        ("training:\n  epochs: 0\n", ["training.epochs", "greater than or equal to 1"]),
        ("model:\n  precision: fp8\n", ["model.precision", "fp8"]),
        (
            "dataset:\n  preprocessing:\n    input_template: nothing\n",
            ["dataset.preprocessing.input_template", "{prompt}"],
        ),
        ("training: [1, 2\n", ["not valid YAML"]),
        ("- a\n- b\n", ["sections"]),
    ],
)
def test_error_names_key_and_file_when_the_file_is_invalid(tmp_path: Path, text: str, named: list[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(TrainingError) as error:
        load(file)
    message = str(error.value)
    assert str(file) in message and "\n" not in message
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--epochs", "many"], ["training.epochs", "many"]),
        (["--lora-r", "0"], ["lora.r", "greater than or equal to 1"]),
        (["--bits", "16"], ["lora.bits", "4 or 8"]),
        (["--tags", "nonsense"], ["mlflow.tags", "key=value"]),
    ],
)
def test_error_names_the_key_and_not_the_file_when_a_flag_is_invalid(
    tmp_path: Path, arguments: list[str], named: list[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training:\n  seed: 1\n")
    with pytest.raises(TrainingError) as error:
        from_command_line(["--config", str(file), *arguments])
    message = str(error.value)
    assert str(file) not in message and "\n" not in message
    for part in named:
        assert part in message


def test_options_are_not_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPUT", '{"dir": "elsewhere"}')
    monkeypatch.setenv("MODEL", "something else")
    assert load() == from_command_line([])
    assert load().output.dir == "out"


def test_a_missing_file_and_an_unknown_flag_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingError, match="cannot be read"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(SystemExit) as stopped:
        from_command_line(["--learning-rat", "1"])
    assert stopped.value.code == 2
    assert "--learning-rat" in capsys.readouterr().err


def test_only_settings_that_change_the_weights_are_in_the_fingerprint() -> None:
    plain = load().fingerprint_fields()
    for key, other in {
        "output.dir": "elsewhere",
        "training.save_steps": 7,
        "mlflow.run_name": "x",
        "dataset.path": "a/b",
    }.items():
        assert load(None, {key: other}).fingerprint_fields() == plain, key
    for key, other in {
        "training.seed": 1,
        "lora.r": 8,
        "objective.swap_weight": 2.0,
        "hardware.num_threads": 2,
    }.items():
        assert load(None, {key: other}).fingerprint_fields() != plain, key


def test_the_shipped_file_is_valid() -> None:
    assert load(PROJECT / "training" / "config" / "planner.yaml").model.base_model == "builtin"
