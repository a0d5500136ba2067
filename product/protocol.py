"""What the platform needs of a product: five things, as one protocol, and the shapes that cross it.

`planner/meal_planner.py` is the sample product; `tests/unit/tiny_product.py` is a second, which shows that nothing else is needed.

An *item* is what a plan is made of (a recipe id). A *row* is one training example: `input`, `target`, `metadata`
(docs/data-model.md). Rows and plans are plain dicts, as they come out of Parquet and JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import polars as pl

Plan = dict[str, Any]
"""`{"meals": [{"day": 0-6, "recipe_id": str, "servings": int}, …]}`, ordered by day."""

RowInput = dict[str, Any]
Row = dict[str, Any]

ALIGNMENT, CONSTRAINTS, EDITS = "plan_alignment_score", "constraint_respect_score", "edit_distance_score"
DIVERSITY, LEFTOVERS = "diversity_score", "leftovers_score"
"""Names of the scores that replay compares. A product may add others."""


@dataclass(frozen=True)
class Violation:
    """One broken rule of a plan: which rule, where, and a sentence."""

    rule: str
    item: str
    message: str


@dataclass(frozen=True)
class RowWindow:
    """Which plans become rows: accepted in [start, end), with history looked up `lookback_days` back from each plan."""

    start: datetime
    end: datetime
    lookback_days: int


@dataclass(frozen=True)
class DatasetRows:
    """The rows of a window, and how many of its accepted plans were left out, by reason."""

    frame: pl.DataFrame
    excluded: dict[str, int]


@runtime_checkable
class Product(Protocol):
    """The product as the platform sees it. An instance is bound to its reference data (the recipe catalogue)."""

    name: str
    """Stem of dataset folders and model names: `planner` → `planner/2025-01-03`, `planner_model`."""

    # events → rows
    def rows(self, events: pl.DataFrame, domain: Mapping[str, pl.DataFrame], window: RowWindow) -> pl.DataFrame:
        """Point-in-time rows (columns `input`, `target`, `metadata`) of cleaned events and the domain tables by name."""
        ...

    # a row → a prompt, and what may be answered
    def prompt(self, row_input: RowInput) -> str:
        """Text that a causal language model continues with items, separated by spaces."""
        ...

    def items(self) -> Sequence[str]:
        """Every item that a plan may contain, in a fixed order."""
        ...

    def item_text(self, item: str) -> str:
        """How an item is written in prompts and answers: one word without spaces."""
        ...

    def slots(self, row_input: RowInput) -> int:
        """How many items the plan needs."""
        ...

    def legal_items(self, row_input: RowInput, chosen: Sequence[str]) -> list[str]:
        """Items that may come next: within the household's constraints and not chosen before. Empty if none is left."""
        ...

    # an output → a plan, and back
    def plan(self, row_input: RowInput, chosen: Sequence[str]) -> Plan:
        """The plan of the chosen items, in order."""
        ...

    def chosen(self, plan: Plan) -> list[str]:
        """Inverse of `plan`: its items, in order."""
        ...

    # score a plan
    def scores(self, row: Row, plan: Plan) -> dict[str, float | None]:
        """Each score of one row in [0, 1] by name; None where it does not apply to this row. Source: docs/data-model.md."""
        ...

    # check constraints
    def violations(self, row_input: RowInput, plan: Plan) -> list[Violation]:
        """Every hard rule that the plan breaks; independent of `legal_items`, so that each verifies the other."""
        ...

    # reference data travels inside dataset and model
    def reference(self) -> dict[str, Any]:
        """JSON-able reference data, from which `from_reference` builds an equal product."""
        ...

    @classmethod
    def from_reference(cls, reference: dict[str, Any]) -> "Product":
        """Inverse of `reference`."""
        ...


@runtime_checkable
class HasOffsets(Protocol):
    """A product that itself asks something of its plans, apart from what people choose. Optional."""

    def offsets(self, row_input: RowInput) -> Mapping[str, float]:
        """Item → log-odds that training and decoding add to its score for this row; items without one have 0."""
        ...


@runtime_checkable
class HasRules(Protocol):
    """A product with a rule-based planner, which replay scores next to models. Optional."""

    def rule_items(self, row_input: RowInput) -> list[str]:
        """The items that the product's rules choose for this row, without a model and without the history of other units."""
        ...
