"""The planner as an MLflow pyfunc: rows of `input` in, plans out, whatever kind of planner is inside.

A package holds `planner.json` (kind, product class, settings), `reference.json` (the product's data), and for a language model
`model/` (or `adapter/`), `base/` and the prior. Loading it needs nothing but the package.
"""

import importlib
import importlib.metadata
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Object, Property

from product.loading import code_paths, load_product
from product.protocol import Product, RowInput
from training.errors import TrainingError
from training.examples import PROMPT_FROM
from training.versions import ERROR, MEALS, OUTPUT_COLUMNS, TOKENS

INPUT_FIELDS = ("household", "pantry", "constraints", "workflow_type", "mode", "previous_plan", "recent_plans")
ARTIFACT = "planner"
SETTINGS_FILE, REFERENCE_FILE = "planner.json", "reference.json"
MODEL_CODE = Path(__file__).with_name("packaged.py")
RULES, LANGUAGE_MODEL = "rules", "language-model"
ADAPTER_PARAM = "adapter"
"""Parameter of `predict`: false asks the untuned base with the same prior, a control for what was learnt."""

ROW_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
RULES_PACKAGES = ("mlflow", "numpy", "pandas", "polars", "pyarrow", "pydantic", "PyYAML", "fsspec")
MODEL_PACKAGES = (
    *RULES_PACKAGES,
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "pydantic-settings",
    "rich",
)


def signature(input_fields: Sequence[str] = INPUT_FIELDS, *, language_model: bool = True) -> ModelSignature:
    """Names of the input columns, and the answer's shape.

    Input columns are of any type: MLflow refuses a whole batch for one cell of another type, and here one bad row fails alone. A language
    model takes one column more (`PROMPT_FROM`), for a control.
    """
    meal = Object(
        [Property("day", DataType.long), Property("recipe_id", DataType.string), Property("servings", DataType.long)]
    )
    columns = [*input_fields, PROMPT_FROM] if language_model else input_fields
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in columns]),
        outputs=Schema(
            [
                ColSpec(Array(meal), MEALS),
                ColSpec(DataType.long, TOKENS),
                ColSpec(DataType.string, ERROR, required=False),
            ]
        ),
        **({"params": ParamSchema([ParamSpec(ADAPTER_PARAM, DataType.boolean, True)])} if language_model else {}),
    )


def requirements(packages: Sequence[str]) -> list[str]:
    """`name==version` of installed packages; a build's local part (`+cpu`) is dropped, so that each machine installs its own."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in packages]


class PlannerModel(PythonModel):  # type: ignore[misc]  # mlflow is not followed (pyproject.toml)
    """A packaged planner."""

    def load_context(self, context: Any) -> None:
        """Read the package. Raises TrainingError when the product's class cannot be imported."""
        self._folder = Path(context.artifacts[ARTIFACT])
        self._settings: dict[str, Any] = json.loads((self._folder / SETTINGS_FILE).read_text())
        self._product = load_product(self._settings["product"], json.loads((self._folder / REFERENCE_FILE).read_text()))
        self._decoders: dict[bool, Any] = {}
        self._rules: Any = None
        if self._settings["kind"] == RULES:
            module, _, name = self._settings["planner"].partition(":")
            self._rules = getattr(importlib.import_module(module), name)()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row out for every row in: `meals`, `tokens_generated`, `error` (what was wrong with this row, else None)."""
        inputs = [plain(record) for record in model_input.to_dict("records")]
        if self._rules is not None:
            answers = [self._by_rules(row_input) for row_input in inputs]
        else:
            adapter = bool((params or {}).get(ADAPTER_PARAM, True))
            answers = self._by_model(inputs, adapter)
        frame = pd.DataFrame(answers, columns=OUTPUT_COLUMNS, index=model_input.index)
        return frame.astype({"meals": object, "error": object})

    def _by_rules(self, row_input: RowInput) -> tuple[list[Any], int, str | None]:
        try:
            return self._meals(row_input, self._rules.plan(self._product, row_input, None)), 0, None
        except ROW_ERRORS as error:
            return [], 0, f"{type(error).__name__}: {error}"

    def _by_model(self, inputs: Sequence[RowInput], adapter: bool) -> list[tuple[list[Any], int, str | None]]:
        if adapter not in self._decoders:
            self._decoders[adapter] = load_decoder(self._folder, self._settings, self._product, adapter)
        with threads(self._settings["num_threads"]):
            decoded = self._decoders[adapter].decode(inputs)
        answers = []
        for row_input, answer in zip(inputs, decoded, strict=True):
            meals, error = [], answer.error
            if error is None:
                try:
                    meals = self._meals(row_input, answer.items)
                except ROW_ERRORS as reason:
                    error = f"{type(reason).__name__}: {reason}"
            answers.append((meals, answer.tokens, error))
        return answers

    def _meals(self, row_input: RowInput, items: Sequence[str]) -> list[Any]:
        return list(self._product.plan(row_input, items)["meals"])


def load_decoder(folder: Path, settings: Mapping[str, Any], product: Product, adapter: bool) -> Any:
    """The decoder of a package: fine-tuned, or its untuned base with the same prior."""
    import torch

    from training.base_and_adapters import load_model
    from training.config import PreprocessingSection
    from training.decoding import Decoder
    from training.examples import Codec

    device = "cuda" if torch.cuda.is_available() and settings["use_cuda"] else "cpu"
    base = str(folder / "base") if (folder / "base").is_dir() else settings["base"]
    if adapter and (folder / "model").is_dir():
        model, tokenizer = load_model(str(folder / "model"), device)
    else:
        model, tokenizer = load_model(base, device)
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload()
            model.eval()
    templates = PreprocessingSection(**settings["templates"])
    codec = Codec(product, tokenizer, templates, settings["max_length"], settings["offset_weight"])
    if len(settings["prior"]) != len(codec.items):
        raise TrainingError("The packaged model's prior and product have different items: retrain the model.")
    return Decoder(model, codec, np.array(settings["prior"]))


def log_package(
    package: Path, name: str, product: Product, model_signature: ModelSignature, packages: Sequence[str]
) -> str:
    """Log a package folder as a model of the active MLflow run, with the code and the requirements that it needs; returns its URI."""
    with warnings.catch_warnings():
        # The signature is given; MLflow recommends an example row anyway.
        warnings.filterwarnings("ignore", message=".*input example was not provided.*")
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(MODEL_CODE),
            artifacts={ARTIFACT: str(package)},
            signature=model_signature,
            pip_requirements=requirements(packages),
            code_paths=code_paths(product),
        )
    return str(logged.model_uri)


def write_settings(folder: Path, product_class: str, reference: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write `planner.json` and `reference.json` of a package."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS_FILE).write_text(json.dumps({"product": product_class, **settings}, indent=1))
    (folder / REFERENCE_FILE).write_text(json.dumps(reference))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """A fixed number of CPU threads while a model runs, as its last digits depend on it; restored afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def plain(value: Any) -> Any:
    """A cell as it was in the row: arrays as lists, numpy scalars as Python's, missing values as None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    return value
