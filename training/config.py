"""Every training option: its key, default, bounds and meaning. Flags win over the file, the file over defaults.

A key is written `section.key` in the file and `--section-key` as a flag; where the key is unique among sections, `--key` works
too. Hyphens and underscores are the same in flags.
"""

import argparse
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from product.installed import installed_product
from training.errors import TrainingError
from training.registry import TRAINING_EXPERIMENT

BUILT_IN = "builtin"
ALL_LINEAR = "all-linear"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Which model to start from."""

    base_model: str = Field(
        default=BUILT_IN, description="Hub id, folder, s3:// folder, or `builtin`: the tiny model built on the spot."
    )
    model_type: Literal["causal_lm"] = Field(
        default="causal_lm", description="Kind of model; any causal language model that transformers loads."
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        default="bf16", description="Number format on CUDA; without CUDA it is always fp32."
    )


class PreprocessingSection(_Section):
    """How prompt and answer are wrapped."""

    input_template: str = Field(
        default="{prompt}", description="Text around the product's prompt, for instance of a chat format."
    )
    output_template: str = Field(
        default="{items}", description="Text around the items; the text before them closes the prompt."
    )

    @field_validator("input_template", "output_template")
    @classmethod
    def _has_place(cls, template: str, info: Any) -> str:
        place = "{prompt}" if info.field_name == "input_template" else "{items}"
        if template.count(place) != 1:
            raise ValueError(f"must contain {place} exactly once")
        return template


class DatasetSection(_Section):
    """Which rows to learn from."""

    path: str | None = Field(
        default=None, description="Dataset folder or s3:// folder with training.parquet and schema.json."
    )
    train_split: float = Field(
        default=0.9, gt=0, lt=1, description="Share of households trained on, if the dataset has no split of its own."
    )
    val_split: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of households validated on, if the dataset has no split of its own.",
    )
    max_length: int = Field(
        default=2048,
        ge=16,
        description="Most tokens of prompt and answer; longer prompts lose their oldest history.",
    )
    preprocessing: PreprocessingSection = PreprocessingSection()


class TrainingSection(_Section):
    """How the weights move."""

    learning_rate: float = Field(default=1e-4, gt=0, description="Highest learning rate, after warm-up.")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape of the learning rate after warm-up."
    )
    warmup_ratio: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    batch_size: int = Field(default=16, ge=1, description="Rows in one forward pass.")
    gradient_accumulation_steps: int = Field(default=4, ge=1, description="Forward passes in one step.")
    epochs: int = Field(default=3, ge=1, description="Passes over the training rows.")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="Optimiser.")
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    save_steps: int = Field(default=500, ge=1, description="Steps between checkpoints.")
    eval_steps: int = Field(default=100, ge=1, description="Steps between validations.")
    early_stopping_patience: int = Field(
        default=3, ge=1, description="Validations without improvement before training stops."
    )
    early_stopping_threshold: float = Field(
        default=0.01, ge=0, description="How much lower a validation loss must be to count as improvement."
    )
    seed: int = Field(default=42, description="Seed of everything random.")


def _number(value: object) -> object:
    """A flag's digits as the number that `Literal` compares with."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


class LoraSection(_Section):
    """Low-rank adapters."""

    enabled: bool = Field(default=True, description="Train adapters; false trains every weight.")
    r: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: int = Field(default=32, ge=1, description="Scale of the adapters, divided by r.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout in the adapters.")
    target_modules: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj"],
        description="Layers that get adapters; all linear layers where the model has none of these, or for `all-linear`.",
    )
    use_qlora: bool = Field(default=False, description="Keep the base in few bits (CUDA and bitsandbytes only).")
    bits: Annotated[Literal[4, 8], BeforeValidator(_number)] = Field(
        default=4, description="Bits of the base with use_qlora."
    )


class ObjectiveSection(_Section):
    """What is learnt: any order of the accepted items is right, on top of how popular an item is."""

    popularity_prior: bool = Field(
        default=True, description="Add the log share of each item in the training plans to its score, always."
    )
    prior_smoothing: float = Field(default=1.0, gt=0, description="Added to each item's count in the prior.")
    prior_half_life_days: float | None = Field(
        default=None, gt=0, description="Age at which a plan counts half in the prior; unset: never."
    )
    offset_weight: float = Field(
        default=1.0,
        ge=0,
        description="Scale of the offsets that the product adds to items (the meal planner's: using up the pantry); 0: none.",
    )
    swap_weight: float = Field(
        default=1.0, gt=0, description="How much more an item counts that the household swapped in itself."
    )


class MlflowSection(_Section):
    """What is logged where."""

    tracking_uri: str | None = Field(
        default=None, description="MLflow server or database; unset: MLFLOW_TRACKING_URI, else a file in output.dir."
    )
    artifact_root: str | None = Field(
        default=None, description="Folder or s3:// URL under which a new experiment keeps its artefacts."
    )
    experiment_name: str = Field(default=TRAINING_EXPERIMENT, description="MLflow experiment.")
    run_name: str | None = Field(
        default=None, description="Name of the MLflow run; unset: model name and dataset version."
    )
    tags: dict[str, str] = Field(default={}, description="Tags of the MLflow run, as key=value,key=value in a flag.")
    log_every_n_steps: int = Field(default=10, ge=1, description="Steps between logged training losses.")


class OutputSection(_Section):
    """Where results go."""

    dir: str = Field(default="out", description="Folder for checkpoints and model_version.json.")
    model_name: str = Field(
        default_factory=lambda: installed_product().model_name, description="Name of the registered model."
    )
    save_format: Literal["safetensors"] = Field(default="safetensors", description="Format of saved weights.")


class HardwareSection(_Section):
    """What it runs on."""

    num_gpus: int = Field(
        default=1,
        ge=0,
        description="GPUs to use if there are any; 0 stays on the CPU; more than one needs torchrun.",
    )
    num_threads: int = Field(
        default=1, ge=1, description="CPU threads; fixed, because results differ in the last digits with their number."
    )
    mixed_precision: bool = Field(
        default=True, description="Compute in model.precision on CUDA while the adapters stay in fp32."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, more time."
    )
    use_flash_attention: bool = Field(default=False, description="FlashAttention 2 (CUDA and flash-attn only).")


class TrainingConfig(BaseSettings):
    """Every section of a training. Nothing is read from the environment."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, cli_use_class_docs_for_groups=True)

    model: ModelSection = ModelSection()
    dataset: DatasetSection = DatasetSection()
    training: TrainingSection = TrainingSection()
    lora: LoraSection = LoraSection()
    objective: ObjectiveSection = ObjectiveSection()
    mlflow: MlflowSection = MlflowSection()
    output: OutputSection = OutputSection()
    hardware: HardwareSection = HardwareSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *other_sources: PydanticBaseSettingsSource,
        **named_sources: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The file's options only; pydantic-settings puts the flags before them."""
        return (init_settings,)

    def fingerprint_fields(self) -> dict[str, Any]:
        """The settings that change the resulting weights, and none of those that only say where and how often to write."""
        fields = self.model_dump(mode="json")
        for section, names in {
            "model": ["base_model"],
            "dataset": ["path"],
            "training": ["save_steps"],
            "mlflow": None,
            "output": ["dir", "save_format"],
        }.items():
            if names is None:
                del fields[section]
            else:
                for name in names:
                    del fields[section][name]
        return fields


ALIASES = {
    "dataset": "dataset.path",
    "model-base": "model.base_model",
    "lr": "training.learning_rate",
    "output-dir": "output.dir",
}


def leaves(model: type[BaseModel] = TrainingConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key as `section.key` with its pydantic field."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


@cache
def flags() -> dict[str, str]:
    """Flag (without dashes) → key."""
    keys = [key for key, _ in leaves()]
    last = [key.rsplit(".", 1)[1] for key in keys]
    named = {key.replace(".", "-").replace("_", "-"): key for key in keys}
    short = {name.replace("_", "-"): key for key, name in zip(keys, last, strict=True) if last.count(name) == 1}
    return {**short, **named, **ALIASES}


def _command_line() -> CliSettingsSource[argparse.ArgumentParser]:
    """The command line of `python -m training.train_planner`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train_planner",
        description="Fine-tune a planner model on a dataset folder, log it to MLflow and register it.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the keys below; flags win over it")
    return CliSettingsSource(
        TrainingConfig,
        root_parser=parser,
        add_argument_method=_add_flag,
        cli_avoid_json=True,
        cli_parse_none_str="null",
    )


def _add_flag(group: argparse.ArgumentParser, *_: str, dest: str, **options: Any) -> None:
    """Add a key under our own names: pydantic-settings would write `--section.key`, and has no switch that also takes a value."""
    if options["metavar"] == "bool":
        options |= {"nargs": "?", "const": "true"}
    names = sorted((f"--{flag}" for flag, key in flags().items() if key == dest), key=len)
    if names:  # A whole section as JSON has none.
        group.add_argument(*names, dest=dest, **options)


def from_command_line(arguments: Sequence[str]) -> TrainingConfig:
    """The configuration of a command line. Raises TrainingError for a bad file or value; an unknown flag exits with usage."""
    given = vars(_command_line().root_parser.parse_args([hyphens(argument) for argument in arguments]))
    return load(given.pop("config"), given)


def load(file: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> TrainingConfig:
    """Defaults, then the YAML file, then `overrides` (`section.key` → value). Raises TrainingError that names the bad key."""
    fields = {} if file is None else _read(Path(file))
    # The source reads a mapping only as JSON.
    given = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in (overrides or {}).items()}
    for key in given:
        if key not in dict(leaves()):
            raise _unknown(key, "the flags")
    try:
        source = _command_line()(parsed_args=given)
        return TrainingConfig(_cli_settings_source=source, **fields)  # type: ignore[call-arg]  # BaseSettings' own argument.
    except SettingsError as error:
        raise TrainingError(
            f"A flag cannot be read ({error}): write a list as a,b and a mapping as key=value,key=value."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        place = "the flags" if key in given else str(file)
        if first["type"] == "extra_forbidden":
            raise _unknown(key, place) from error
        raise TrainingError(f"{key} in {place} is {first['input']!r}: {first['msg']}.") from error


def _read(file: Path) -> dict[str, Any]:
    """The file's sections. Read by hand, because pydantic-settings treats a missing file as empty and ignores some unknown sections."""
    try:
        fields = yaml.safe_load(file.read_text())
    except OSError as error:
        raise TrainingError(
            f"The config file {file} cannot be read ({error.strerror}): give --config an existing YAML file."
        ) from error
    except yaml.YAMLError as error:
        raise TrainingError(f"The config file {file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise TrainingError(f"The config file {file} must hold sections such as `training:` at the top level.")
    for section in fields:
        if section not in TrainingConfig.model_fields:
            raise _unknown(str(section), str(file))
    return fields


def _unknown(key: str, place: str) -> TrainingError:
    known = {key for key, _ in leaves()}
    sections = {key.rsplit(".", count)[0] for key in known for count in range(1, key.count(".") + 1)}
    near = difflib.get_close_matches(key, sorted(known | sections), n=1)
    hint = f"; did you mean `{near[0]}`?" if near else "; see `python -m training.train_planner --help`."
    return TrainingError(f"Unknown key `{key}` in {place}{hint}")


def hyphens(argument: str) -> str:
    """A command-line argument with hyphens in its flag, where the user wrote underscores."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
