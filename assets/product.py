"""The product behind the platform: the one module of `assets` that names it. Users who bring their own change these functions.

Belongs here: making the product from its tables. Does not belong here: anything the protocol (planner/product.py) offers.
"""

from collections.abc import Mapping
from datetime import date
from typing import Any

import polars as pl
import psycopg

from planner.catalogue import Catalogue
from planner.meal_planner import MealPlanner
from planner.product import Product, RowWindow
from planner.rows import NULLABLE as NULLABLE_FIELDS
from planner.rows import PlannerRows, build_rows
from planner.store import domain_frames

__all__ = [
    "EXPERIMENT_NAME",
    "MODEL_NAME",
    "NULLABLE_FIELDS",
    "POLICY_NAME",
    "current_product",
    "dataset_rows",
    "domain_tables",
]

MODEL_NAME = "planner_model"
POLICY_NAME = "planner_policy"
EXPERIMENT_NAME = "weekly_planner"


def domain_tables(connection: psycopg.Connection[Any]) -> dict[str, pl.DataFrame]:
    """The product's own tables by name, as `Product.rows` takes them."""
    return domain_frames(connection)


def current_product(connection: psycopg.Connection[Any]) -> Product:
    """The product with the reference data that the database holds now."""
    return MealPlanner(Catalogue.from_records(domain_frames(connection)["recipes"].to_dicts()))


def dataset_rows(
    events: pl.DataFrame, domain: Mapping[str, pl.DataFrame], window: RowWindow, replay_from: date | None
) -> PlannerRows:
    """Point-in-time rows with their split, and what was left out, counted by reason."""
    return build_rows(events, domain, window, replay_from=replay_from)
