"""For tests of the replay: rows of synthetic households, a dataset folder with them, and models that answer by rule."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pandas as pd
import polars as pl
import pyarrow.parquet as pq

from experimentation.statistics.intervals import Estimate
from planner.meal_planner import MealPlanner
from planner.rows import ROW_SCHEMA
from product.protocol import ALIGNMENT, CONSTRAINTS, DIVERSITY, EDITS, LEFTOVERS, Row
from replay.gate import GateConfig
from replay.result import OFFLINE, Comparison, ReplayResult
from replay.rows import DatasetRows, Selection
from training.versions import TOKENS

PRODUCT = MealPlanner()
START = datetime(2025, 1, 6, tzinfo=UTC)
LEGACY = "00000000-0000-4000-8000-000000000001"


def sample_rows(households: int = 12, plans: int = 3, *, seed: int = 5, held_out: int = 6) -> list[Row]:
    """`plans` weekly plans of each household `h00`, `h01`, …; the first `held_out` households are the replay split."""
    synthetic = PRODUCT.synthetic_rows(households * plans, seed)
    rows = []
    for number, row in enumerate(synthetic):
        household, week = number % households, number // households
        row["input"]["household"]["id"] = f"h{household:02d}"
        row["metadata"] = {
            "timestamp": START + timedelta(days=7 * week, minutes=household),
            "plan_id": f"p{number}",
            "event_id": f"00000000-0000-4000-9000-{number:012d}",
            "policy_version_id": LEGACY,
            "proposed_plan": None,
            "slot_propensities": None,
            "slot_explored": None,
            "region": None,
            "household_size": row["input"]["household"]["size"],
            "reconstructed": False,
            "split": "replay" if household < held_out else "train",
        }
        row["target"]["user_edits"] = []
        rows.append(row)
    return rows


def dataset_folder(folder: Path, rows: Sequence[Row]) -> str:
    """A dataset version on disk; returns its folder."""
    folder.mkdir(parents=True)
    table = pl.DataFrame(list(rows), schema=ROW_SCHEMA).to_arrow()
    facts = {"product.class": "planner.meal_planner:MealPlanner", "product.reference": json.dumps(PRODUCT.reference())}
    pq.write_table(table.replace_schema_metadata(facts), folder / "training.parquet")
    (folder / "schema.json").write_text("{}")
    return str(folder)


def dataset_in_memory(rows: Sequence[Row]) -> DatasetRows:
    """The same without a file."""
    return DatasetRows(
        "planner", "2025-01-26", "memory", "0" * 64, PRODUCT, pl.DataFrame(list(rows), schema=ROW_SCHEMA).to_arrow()
    )


class RuleModel:
    """Answers like a packaged planner model, by a rule over one row's input. A rule that raises breaks the whole batch."""

    def __init__(self, rule: Callable[[Mapping[str, Any]], Any], tokens: int | None = 5) -> None:
        self.rule, self.tokens = rule, tokens
        self.calls: list[int] = []

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One output row an input row."""
        self.calls.append(len(data))
        results = [self.rule(row) for row in cast("list[dict[str, Any]]", data.to_dict("records"))]
        answered = [result if isinstance(result, dict) else {"meals": result, "error": None} for result in results]
        return pd.DataFrame([{"tokens_generated": self.tokens, **result} for result in answered])


def first_legal(row_input: Mapping[str, Any], offset: int = 0) -> list[dict[str, Any]]:
    """The catalogue's first legal recipes from the `offset`th on: a planner that knows nothing."""
    legal = PRODUCT.legal_items(dict(row_input), [])
    return list(
        PRODUCT.plan(dict(row_input), (legal[offset:] + legal[:offset])[: PRODUCT.slots(dict(row_input))])["meals"]
    )


def telling(rows: Sequence[Row], share: float = 1.0) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
    """A rule that knows what was accepted, for that share of the meals; the others are the first legal ones. For tests alone."""
    known = {json.dumps(_frame_like(row["input"]), sort_keys=True, default=str): row for row in rows}

    def rule(row_input: Mapping[str, Any]) -> list[dict[str, Any]]:
        row = known[json.dumps(_frame_like(row_input), sort_keys=True, default=str)]
        accepted = PRODUCT.chosen(row["target"]["accepted_plan"])
        kept = accepted[: round(share * len(accepted))]
        rest = [item for item in PRODUCT.legal_items(dict(row_input), kept) if item not in accepted]
        return list(PRODUCT.plan(dict(row_input), (kept + rest)[: len(accepted)])["meals"])

    return rule


def _frame_like(row_input: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row_input[name] for name in ("household", "pantry", "constraints", "recent_plans")}


# --- results made by hand, for the gate ---


def estimate(
    mean: float | None, low: float | None = None, high: float | None = None, rows: int = 400, units: int = 90
) -> Estimate:
    """An estimate with whatever interval a rule needs."""
    return Estimate(mean, low, high, rows if mean is not None else 0, units if mean is not None else 0)


def comparison(ours: float | None, theirs: float | None, reach: float | None = 0.01) -> Comparison:
    """Means of both, and their difference with an interval of ± `reach` (None: no interval)."""
    if ours is None or theirs is None:
        return Comparison(estimate(ours), estimate(theirs), estimate(None))
    gap = ours - theirs
    difference = estimate(gap) if reach is None else estimate(gap, gap - reach, gap + reach)
    return Comparison(
        estimate(ours, ours - 0.01, ours + 0.01), estimate(theirs, theirs - 0.01, theirs + 0.01), difference
    )


GOOD: dict[str, Comparison] = {
    ALIGNMENT: comparison(0.25, 0.21),
    CONSTRAINTS: comparison(1.0, 1.0, 0.0),
    EDITS: comparison(0.33, 0.30),
    DIVERSITY: comparison(0.88, 0.90),
    LEFTOVERS: comparison(0.40, 0.41),
    OFFLINE: comparison(0.40, 0.37),
    TOKENS: comparison(5.0, 5.0, 0.0),
}
"""Scores of a candidate that passes every rule."""


def result_with(scores: Mapping[str, Comparison] | None = None, **changes: Any) -> ReplayResult:
    """A passing result, with scores or other fields changed."""
    table = {**GOOD, **(scores or {})}
    fields: dict[str, Any] = {
        "model_name": "planner_model",
        "model_version": 2,
        "baseline_version": 1,
        "dataset_name": "planner",
        "dataset_version": "2025-01-26",
        "dataset_uri": "datasets/planner/2025-01-26",
        "dataset_digest": "0" * 64,
        "selection": Selection("unseen", 2000, {"planner_model 2": 1600, "planner_model 1": 0}, 400, 400, 0, 0, 42),
        "rows": 400,
        "units": 90,
        "scores": table,
        "unanchored": table,
        "unanchored_rows": 400,
        "by_proposer": (),
        "answered_with_constraint": 150,
        "candidate_failed": 0,
        "baseline_failed": 0,
        "failures": (),
        "candidate_violations": 0,
        "violations": (),
        "references": (),
        "references_left_out": (),
    }
    return ReplayResult(**{**fields, **changes})


LENIENT = GateConfig(least_unanchored_rows=1)
