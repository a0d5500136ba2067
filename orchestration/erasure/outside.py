"""A unit in places that the platform does not change: the product's tables, the configuration files, the audit log."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psycopg

from experimentation.config.files import read_config
from orchestration.erasure.database import audited
from orchestration.erasure.findings import Found, Unit
from product.installed import installed_product


def product_tables(connection: psycopg.Connection[Any], unit: Unit) -> Iterator[Found]:
    """Rows of the product's tables that have the unit's id in `household_id`, or in the `id` of a table `households`."""
    for name, frame in installed_product().domain_tables(connection).items():
        column = "id" if name == f"{unit.unit_type}s" else f"{unit.unit_type}_id"
        rows = frame.filter(pl.col(column) == unit.unit_id).height if column in frame.columns else 0
        if rows:
            yield Found(
                f"the product's table {name}", rows, "kept: the product removes it from its own tables", kept=True
            )


def configuration(folder: Path, unit: Unit) -> Iterator[Found]:
    """Overrides in experiments.yml: the next `lifecycle sync` would bring them back. Raises ConfigError."""
    for entry in read_config(folder).experiments:
        if entry.unit_type == unit.unit_type and unit.unit_id in entry.overrides:
            place = entry.override_place(unit.unit_id)
            yield Found(
                f"{place.file}:{place.line}, overrides of {entry.name}",
                1,
                "kept: remove it before the next lifecycle sync",
                kept=True,
            )


def audit_log(connection: psycopg.Connection[Any], unit: Unit) -> Iterator[Found]:
    """Rows of the append-only log that show an override of the unit."""
    rows = audited(connection, unit)
    if rows:
        yield Found("exp.audit_log, overrides", rows, "kept: the log is append only", kept=True)
