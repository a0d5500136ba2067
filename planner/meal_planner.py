"""The meal planner: the sample product, as an implementation of the protocol in `product/protocol.py`."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar, Self

import polars as pl

from planner import constraints, scores
from planner.catalogue import Catalogue, sample_catalogue
from planner.constraints import LegalRecipes
from planner.offsets import PantryOffsets
from planner.prompt import item_text, prompt_text
from planner.tasters import synthetic_rows
from product.protocol import DatasetRows, Plan, Row, RowInput, RowWindow, Violation

if TYPE_CHECKING:  # a packaged model needs no database driver
    import psycopg

DEFAULT_MEALS = 5
"""Dinners of a weekly plan: a household cooks on the days 0 to 4."""

MAX_MEALS = 7

NO_REPEAT_DAYS = 15
"""No dish of the last two weekly plans is proposed again. The prompt's history reaches further back, since it shows taste."""


class MealPlanner:
    """Weekly dinner plans from one recipe catalogue. `meals` is how many dinners every plan has (1 to 7)."""

    name = "planner"
    model_name: ClassVar[str] = "planner_model"
    policy_name: ClassVar[str] = "planner_policy"
    experiment_name: ClassVar[str] = "weekly_planner"
    baseline_planner: ClassVar[str] = "planner.planners:HeuristicPlanner"

    def __init__(self, catalogue: Catalogue | None = None, *, meals: int = DEFAULT_MEALS) -> None:
        if not 1 <= meals <= MAX_MEALS:
            raise ValueError(f"A weekly plan has 1 to {MAX_MEALS} meals, not {meals}.")
        self.catalogue = sample_catalogue() if catalogue is None else catalogue
        self.meals = meals
        self._legal = LegalRecipes(self.catalogue)
        self._offsets = PantryOffsets(self.catalogue)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MealPlanner) and (self.catalogue, self.meals) == (other.catalogue, other.meals)

    def __hash__(self) -> int:
        return hash((self.catalogue, self.meals))

    def rows(self, events: pl.DataFrame, domain: Mapping[str, pl.DataFrame], window: RowWindow) -> pl.DataFrame:
        """Point-in-time rows of the plans accepted in the window (see `rows.py`)."""
        from planner.rows import planner_rows  # reads events, which a packaged model never does

        return planner_rows(events, domain, window)

    def prompt(self, row_input: RowInput) -> str:
        """The household, its pantry, constraints and recent plans in words (see `prompt.py`)."""
        return prompt_text(row_input)

    def items(self) -> Sequence[str]:
        """Every recipe id of the catalogue, sorted."""
        return self.catalogue.ids

    def item_text(self, item: str) -> str:
        """The word that stands for a recipe in prompts and answers."""
        return item_text(item)

    def slots(self, row_input: RowInput) -> int:
        """The same number of dinners for everyone: a plan's length must not depend on what will be accepted."""
        return self.meals

    def legal_items(self, row_input: RowInput, chosen: Sequence[str]) -> list[str]:
        """Recipes that the household may eat, that are not in the plan yet, and that it did not eat in the last `NO_REPEAT_DAYS`.

        A repeat breaks no rule; it is only not proposed. Where no other recipe is left, repeats are legal.
        """
        legal = self._legal.legal(row_input, chosen)
        lately = {
            meal["recipe_id"]
            for plan in row_input.get("recent_plans") or ()
            if plan["days_ago"] <= NO_REPEAT_DAYS
            for meal in plan["meals"]
        }
        return [item for item in legal if item not in lately] or legal

    def offsets(self, row_input: RowInput) -> dict[str, float]:
        """Log-odds of recipes that use up what is in the pantry (see `offsets.py`)."""
        return self._offsets.offsets(row_input)

    def plan(self, row_input: RowInput, chosen: Sequence[str]) -> Plan:
        """One meal a day from day 0 on, each cooked for the whole household."""
        size = int(row_input["household"]["size"])
        return {"meals": [{"day": day, "recipe_id": item, "servings": size} for day, item in enumerate(chosen)]}

    def chosen(self, plan: Plan) -> list[str]:
        """The plan's recipe ids in the order of their days."""
        return [meal["recipe_id"] for meal in sorted(plan["meals"], key=lambda meal: meal["day"])]

    def scores(self, row: Row, plan: Plan) -> dict[str, float | None]:
        """Alignment, constraint respect, edit distance, diversity, leftovers and budget respect (see `scores.py`)."""
        return scores.all_scores(self.catalogue, row, plan)

    def violations(self, row_input: RowInput, plan: Plan) -> list[Violation]:
        """Every hard rule that the plan breaks (see `constraints.py`)."""
        return constraints.violations(self.catalogue, row_input, plan)

    def synthetic_rows(self, count: int, seed: int) -> list[Row]:
        """Rows of made-up tasters, for pre-training a base model on the catalogue alone (see `tasters.py`)."""
        return synthetic_rows(self, self.catalogue.to_records(), count, seed)

    def rule_items(self, row_input: RowInput) -> list[str]:
        """The heuristic planner's recipes for this row."""
        from planner.planners import HeuristicPlanner

        return HeuristicPlanner().plan(self, row_input)

    @classmethod
    def nullable_fields(cls) -> frozenset[str]:
        """Dotted paths of row fields that may be null (see `rows.py`)."""
        from planner.rows import NULLABLE

        return NULLABLE

    @classmethod
    def domain_tables(cls, connection: "psycopg.Connection[Any]") -> dict[str, pl.DataFrame]:
        """Recipes, households, their constraints and pantry snapshots, as the schema `planner` holds them."""
        from planner.store import domain_frames

        return domain_frames(connection)

    @classmethod
    def from_tables(cls, tables: Mapping[str, pl.DataFrame]) -> Self:
        """The meal planner over the recipes of these tables."""
        return cls(Catalogue.from_records(tables["recipes"].to_dicts()))

    @classmethod
    def dataset_rows(
        cls, events: pl.DataFrame, domain: Mapping[str, pl.DataFrame], window: RowWindow, replay_from: date | None
    ) -> DatasetRows:
        """Point-in-time rows with their split, and what was left out (see `rows.py`)."""
        from planner.rows import build_rows

        return build_rows(events, domain, window, replay_from=replay_from)

    def reference(self) -> dict[str, Any]:
        """The catalogue's recipes and the number of meals."""
        return {"recipes": self.catalogue.to_records(), "meals": self.meals}

    @classmethod
    def from_reference(cls, reference: dict[str, Any]) -> Self:
        """Inverse of `reference`."""
        return cls(Catalogue.from_records(reference["recipes"]), meals=int(reference.get("meals", DEFAULT_MEALS)))
