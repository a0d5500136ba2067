"""Asking a planner for plans: batches in, one answer a row out, whatever fails."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from product.protocol import Plan, Row, RowInput
from replay.rows import ReplayError
from training.versions import OUTPUT_COLUMNS

BATCH_SIZE = 64
MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model raises for a row. Running out of memory is not a row's fault and ends the replay."""

Progress = Callable[[str, int, int], None]
"""Called after each batch with the planner's name, rows done, and all rows."""


class Predicts(Protocol):
    """A loaded pyfunc model: rows of `input` as a frame → a frame with `meals`, `tokens_generated`, `error`."""

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One output row an input row, in the same order."""
        ...


@dataclass(frozen=True)
class Answer:
    """One row's plan. A failed row has an empty plan and an error. `tokens` is None if the model did not count them."""

    plan: Plan
    tokens: int | None
    error: str | None = None


def answers(
    model: Predicts,
    inputs: Sequence[RowInput],
    *,
    name: str,
    batch_size: int = BATCH_SIZE,
    params: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> list[Answer]:
    """The model's answer for every input, in order. A batch that fails is asked again row by row, so that only the broken row fails.

    Raises ReplayError when the model does not answer in the shape of a planner model, or if the batch size is below 1.
    """
    if batch_size < 1:
        raise ReplayError(f"The batch size must be at least 1, not {batch_size}.")
    collected: list[Answer] = []
    for at in range(0, len(inputs), batch_size):
        collected += _batch(model, inputs[at : at + batch_size], name, params)
        if on_progress is not None:
            on_progress(name, len(collected), len(inputs))
    return collected


def inputs_frame(inputs: Sequence[RowInput]) -> pd.DataFrame:
    """A column for each field of `input`; a field that a row does not have is None there."""
    columns = list(dict.fromkeys(column for row_input in inputs for column in row_input))
    return pd.DataFrame(
        {column: pd.Series([row_input.get(column) for row_input in inputs], dtype=object) for column in columns}
    )


def inputs_of(rows: Sequence[Row]) -> list[RowInput]:
    """The `input` of each row."""
    return [row["input"] for row in rows]


def _batch(model: Predicts, inputs: Sequence[RowInput], name: str, params: dict[str, Any] | None) -> list[Answer]:
    from mlflow.exceptions import MlflowException

    try:
        output = model.predict(inputs_frame(inputs), params) if params else model.predict(inputs_frame(inputs))
    except (*MODEL_ERRORS, MlflowException) as error:
        if len(inputs) > 1:
            return [answer for row_input in inputs for answer in _batch(model, [row_input], name, params)]
        return [_failed(f"{type(error).__name__}: {_one_line(error)}")]
    missing = [column for column in OUTPUT_COLUMNS if column not in getattr(output, "columns", ())]
    if missing or len(output) != len(inputs):
        what = f"no {', '.join(missing)}" if missing else f"{len(output)} rows for {len(inputs)}"
        raise ReplayError(
            f"{name} does not answer like a planner model ({what}): it must return {', '.join(OUTPUT_COLUMNS)} for each row."
        )
    columns = (output[column].tolist() for column in OUTPUT_COLUMNS)
    return [_answer(*parts) for parts in zip(*columns, strict=True)]


def _answer(meals: Any, tokens: Any, error: Any) -> Answer:
    if isinstance(error, str) and error:
        return _failed(error, tokens)
    try:
        plan: Plan = {
            "meals": [
                {"day": int(meal["day"]), "recipe_id": str(meal["recipe_id"]), "servings": int(meal["servings"])}
                for meal in meals
            ]
        }
    except (LookupError, TypeError, ValueError) as reason:
        return _failed(f"The answer is not a plan: {type(reason).__name__}: {_one_line(reason)}", tokens)
    return Answer(plan, _count(tokens))


def _failed(error: str, tokens: Any = None) -> Answer:
    return Answer({"meals": []}, _count(tokens), error)


def _count(tokens: Any) -> int | None:
    return None if tokens is None or (isinstance(tokens, float) and math.isnan(tokens)) else int(tokens)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
